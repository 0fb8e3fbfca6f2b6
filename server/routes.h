/* The handlers, a function for each path. */
#ifndef SERVER_ROUTES_H
#define SERVER_ROUTES_H

#include "server.h"

void handle_chat(server *s, request *r);
void handle_completions(server *s, request *r);
void handle_embeddings(server *s, request *r);
void handle_tokenize(server *s, request *r);
void handle_detokenize(server *s, request *r);
void handle_tokenizer_info(server *s, request *r);
void handle_models(server *s, request *r);
void handle_model(server *s, request *r);
void handle_health(server *s, request *r);
void handle_metrics(server *s, request *r);
void handle_states(server *s, request *r); /* states.c; request_rest: save, restore, fork */
void handle_page(server *s, request *r);

/* "messages" of a body as ids, without a look at earlier conversations; *ids malloc'ed. False: an
 * error was answered. */
bool chat_tokens(server *s, request *r, const json_t *body, bool generation_prompt, int32_t **ids,
                 size_t *n);

#endif
