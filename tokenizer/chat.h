/* Chat templates by recognition: the file's Jinja text is matched against known families, never
 * interpreted. Frames are encoded with special tokens on, contents with them off. */
#ifndef CHAT_H
#define CHAT_H

#include "tokenizer.h"

typedef struct chat_template chat_template; /* static data */

const char *chat_template_name(size_t i); /* NULL past the last */
const chat_template *chat_template_by_name(const char *name);
const char *chat_template_get_name(const chat_template *c);
/* Recognises tokenizer.chat_template; NULL in *out when absent or unknown, *present tells which. */
linnet_status chat_template_of(const gguf *g, const chat_template **out, bool *present,
                               linnet_error *err);
/* Equal to transformers' apply_chat_template, default system message included. `g` supplies what
 * the text itself says (a default system message). */
linnet_status chat_render(const chat_template *c, const gguf *g, const tokenizer *t,
                          const linnet_message *messages, size_t n, bool add_generation_prompt,
                          id_list *out, linnet_error *err);

#endif
