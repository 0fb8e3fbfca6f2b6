/* What http.c, connections.c, head.c, body.c, respond.c and access.c share. */
#ifndef SERVER_CONNECTION_H
#define SERVER_CONNECTION_H

#include <civetweb.h>
#include <pthread.h>

#include "server.h"

enum {
    MAX_HEADER_BYTES = 32768,
    HEAD_BUFFER = MAX_HEADER_BYTES + 64,
    MAX_TARGET = 8192,
    MAX_DEPTH = 64,
    MAX_CONTAINERS = 1 << 17 /* objects and arrays of a body */
};

typedef struct access access_rules;

typedef struct connection {
    struct connection *previous, *next;
    int fd;            /* -1: not looked for yet, or not found */
    double since;      /* of waiting for a request */
    uint64_t received; /* bytes, by then */
    double deadline;   /* the sweep ends it then; 0: none */
    bool reading;      /* ... by shutting what comes in, so that the client can be told */
    bool expired;      /* it did */
    bool answered;
} connection;

struct http {
    server *server;
    struct mg_context *context;
    access_rules *access;
    int port;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t wake;
    pthread_t sweeper;
    bool watched, stopping;
    connection *connections;
    http_stats stats;
    pthread_t starter;   /* runs http_start */
    char complaint[256]; /* civetweb's last while it starts */
};

struct request {
    server *server;
    http *http;
    connection *connection;
    struct mg_connection *mg;
    const struct mg_request_info *info; /* NULL: not even understood */
    char *path, *rest;
    const char *origin; /* to be told that it may read the answer, or NULL */
    char owner[65];
    double start;
    int status; /* of the answer; 0: none yet */
    bool head, chunked, close, unread, gone;
    char headers[1024]; /* further ones */
    char note[400];
};

/* ---- connections.c -------------------------------------------------------------------------- */
void connection_add(http *h, connection *c);
void connection_remove(http *h, connection *c);
int connection_socket(const http *h, const struct mg_request_info *info);
uint64_t connection_received(const connection *c);
/* A deadline for what is read from now on, or for the whole; 0: none. */
void connection_deadline(http *h, connection *c, double seconds, bool reading);
/* Waits for the other end to close, after an answer that came before the request's end. */
void connection_linger(const connection *c);
bool connections_watch(http *h);
void connections_stop(http *h);

/* ---- head.c --------------------------------------------------------------------------------- */
/* False: an error was answered. */
bool head_check(request *r);
bool head_path(request *r); /* decodes it into r->path */

/* ---- respond.c ------------------------------------------------------------------------------ */
bool request_write(request *r, const void *bytes, size_t n);

/* ---- access.c ------------------------------------------------------------------------------- */
linnet_status access_new(access_rules **out, const server_options *options, linnet_error *err);
void access_free(access_rules *a);
/* Checks Host, Origin and the key; false: an error was answered. Sets origin and owner. */
bool access_check(request *r, bool needs_key);
void access_preflight(request *r, const char *methods);

/* ---- routes.c ------------------------------------------------------------------------------- */
typedef struct {
    const char *method, *path; /* a path that ends in * takes all that begin so */
    handler_fn handler;
    bool open; /* without a key */
} route;
/* NULL: no such path (`methods` empty), or not with this method (those it has). */
const route *route_find(const char *method, const char *path, char *methods, size_t size);

#endif
