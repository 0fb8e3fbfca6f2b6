/* HTTP over civetweb: requests, answers, streams; what a handler sees of the network. Every handler
 * runs on a thread of its own connection and may block. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct server server; /* server.h */
typedef struct request request;

typedef void (*handler_fn)(server *s, request *r);

/* NULL where there is none; valid until the handler returns. */
const char *request_header(const request *r, const char *name);
const char *request_method(const request *r);
const char *request_path(const request *r);
/* Who asks, for fair queueing: a hash of the API key, or the address. Never the key. */
const char *request_owner(const request *r);
/* The body as a JSON object, checked for size, UTF-8, depth and doubled keys; the caller's to
 * json_decref. NULL: an error was answered. */
json_t *request_json(request *r);
/* The client has closed the connection. Cheap enough to ask at every token. */
bool request_gone(request *r);

/* An answer; `body` is stolen. */
void respond_json(request *r, int status, json_t *body);
/* {"error": {"message", "type", "param", "code"}}, as OpenAI's API; param and code may be NULL. */
__attribute__((format(printf, 6, 7))) void respond_error(request *r, int status, const char *type,
                                                         const char *param, const char *code,
                                                         const char *format, ...);
/* Server-sent events. Each returns false once the client is gone. */
bool stream_begin(request *r);
bool stream_json(request *r, json_t *data);        /* data: {...}; stolen */
bool stream_comment(request *r, const char *text); /* ": text", keeps proxies awake */
bool stream_end(request *r);                       /* data: [DONE] */

#endif
