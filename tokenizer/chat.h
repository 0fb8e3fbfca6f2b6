/* Chat templates by recognition: the file's Jinja text is matched against known families, never
 * interpreted. Frames are encoded with special tokens on, contents and roles with them off.
 *
 * The text between two special tokens is encoded as one run, as upstream's encoding of the whole
 * rendered string does. In SentencePiece every run starts with the dummy prefix, as the published
 * tokenizers of Llama-2, Mistral v0.1/v0.2, TinyLlama and Zephyr do (Prepend, the `legacy` rule);
 * with mistral-v3, whose published tokenizer is the first non-legacy one, only a run with nothing
 * before it does. */
#ifndef CHAT_H
#define CHAT_H

#include "tokenizer.h"

typedef struct chat_template chat_template; /* static data */

const char *chat_template_name(size_t i); /* NULL past the last */
const char *chat_template_list(void);     /* "chatml llama2 ...", for messages */
const chat_template *chat_template_by_name(const char *name);
const char *chat_template_get_name(const chat_template *c);
/* Recognises tokenizer.chat_template; NULL in *out when absent or unknown, *present tells which. */
linnet_status chat_template_of(const gguf *g, const chat_template **out, bool *present,
                               linnet_error *err);
/* The error for a file whose template is absent or was not recognised: says how to choose one. */
linnet_status chat_template_unknown(const gguf *g, bool present, linnet_error *err);
/* Appends the ids of the conversation, equal to transformers' apply_chat_template, default system
 * message included; on an error `out` is as before. When `c` is what the file's own template was
 * recognised as, `g` supplies the details that its text says (a default system message, spaces,
 * when BOS comes); otherwise the family's usual ones are taken. Where the upstream template raises
 * an exception (roles out of order) so does this, as LINNET_ERR_ARGUMENT. A date in a template
 * (Llama-3.1, 3.2) is always its fixed default, 26 Jul 2024. */
linnet_status chat_render(const chat_template *c, const gguf *g, const tokenizer *t,
                          const linnet_message *messages, size_t n, bool add_generation_prompt,
                          id_list *out, linnet_error *err);

#endif
