/* HTTP over civetweb: requests, answers, streams; what a handler sees of the network. Every handler
 * runs on a thread of its own connection and may block. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../linnet.h"

typedef struct server server; /* server.h */
typedef struct request request;

typedef void (*handler_fn)(server *s, request *r);

/* ---- For server.c --------------------------------------------------------------------------- */
typedef struct http http;
/* Answers requests from here on; of `s` the options and the model's name must be there. */
linnet_status http_start(http **out, server *s, linnet_error *err);
int http_port(const http *h);
bool http_busy(http *h); /* requests are being answered */
void http_stop(http *h); /* returns when no handler runs; NULL is allowed */

enum { HTTP_BUCKETS = 14 }; /* the last one has no bound */
extern const double http_bounds[HTTP_BUCKETS - 1];
typedef struct {
    uint64_t buckets[HTTP_BUCKETS], count;
    double sum;
} histogram;
typedef struct {
    uint64_t connections, requests, classes[6]; /* answers by status / 100; 0: the client left */
    size_t open, busy;
    histogram seconds, first_token; /* of whole requests; until the first sampled token */
} http_stats;
void http_get_stats(http *h, http_stats *out);

/* ---- For handlers --------------------------------------------------------------------------- */
/* NULL where there is none; valid until the handler returns. */
const char *request_header(const request *r, const char *name);
const char *request_method(const request *r);
const char *request_path(const request *r);
/* What stands for the * of a route's path, percent-decoded. */
const char *request_rest(const request *r);
/* Who asks, for fair queueing: a hash of the API key, or the address. Never the key. */
const char *request_owner(const request *r);
/* The body as a JSON object, checked for size, UTF-8, depth and doubled keys; the caller's to
 * json_decref. NULL: an error was answered. */
json_t *request_json(request *r);
/* The client has closed the connection. Cheap enough to ask at every token. */
bool request_gone(request *r);
/* What the log's line says of this request. */
__attribute__((format(printf, 2, 3))) void request_note(request *r, const char *format, ...);
void request_first_token(request *r); /* the histogram's moment */

/* A further header of the answer; before it. */
void respond_header(request *r, const char *name, const char *value);
/* An answer; `body` is stolen. */
void respond_json(request *r, int status, json_t *body);
/* {"error": {"message", "type", "param", "code"}}, as OpenAI's API; param and code may be NULL. */
__attribute__((format(printf, 6, 7))) void respond_error(request *r, int status, const char *type,
                                                         const char *param, const char *code,
                                                         const char *format, ...);
/* The library's sentence, with the status that fits its code. */
void respond_failed(request *r, const linnet_error *err);
/* 503 with Retry-After. */
void respond_busy(request *r, const char *code, const char *message);
void respond_bytes(request *r, int status, const char *type, const void *body, size_t n);
/* Server-sent events. Each returns false once the client is gone. */
bool stream_begin(request *r);
bool stream_json(request *r, json_t *data);        /* data: {...}; stolen */
bool stream_comment(request *r, const char *text); /* ": text", keeps proxies awake */
bool stream_end(request *r);                       /* data: [DONE] */
/* data: {"error": ...}, and the end. */
bool stream_error(request *r, const char *type, const char *code, const char *message);

#endif
