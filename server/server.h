/* What all handlers share: `linnet serve` on the public header alone.
 *
 *   server.c         starting, draining, stopping
 *   http.c           civetweb: from a connection to a handler
 *   connections.c    sockets and their deadlines
 *   head.c body.c respond.c   what comes in, checked; answers, errors in OpenAI's shape, streams
 *   access.c         Host, CORS, API keys
 *   routes.c         which path is whose
 *   chat.c completions.c   /v1/chat/completions, /v1/completions
 *   sampling.c       the fields that both share, checked
 *   answer.c         jobs to choices, at once or as a stream
 *   tokens.c models.c states.c health.c    the small endpoints, /metrics in Prometheus' text form
 *   page.c page/     the web page at /
 *   scheduler.c      continuous batching: queue.c what waits, slot.c what runs, shown.c its text,
 *                    logprobs.c, json_mask.c (JSON mode); job.c between it and readers
 *   conversations*.c sampled ids by message, states by name: shelf.c in memory, journal.c ids in
 *                    a file, store_*.c states in a folder or Redis
 */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include "conversations.h"
#include "http.h"
#include "scheduler.h"

typedef struct {
    const char *model_path; /* its name in /v1/models: the file's name without folder and .gguf */
    const char *host;       /* default 127.0.0.1 */
    int port;               /* 0: any free one, told */
    const char *template;   /* or NULL */
    size_t slots, max_queue, max_connections, max_body;
    double request_seconds, header_seconds, drain_seconds;
    uint64_t cache_bytes; /* 0: no prefix cache */
    const char *cache_dir, *redis, *api_key_file;
    double redis_ttl_seconds; /* and redis_max_bytes: 0 = as conversations.h says */
    uint64_t redis_max_bytes;
    const char *const *cors_origins; /* exact origins, or "*"; default none */
    size_t n_cors_origins;
    const char *const *hosts; /* further names that Host may have */
    size_t n_hosts;
    linnet_session_options session;
    void (*log)(const char *line); /* one line, no newline */
} server_options;

struct server {
    server_options options;
    linnet_model *model;
    linnet_cache *cache;
    scheduler *scheduler;
    conversations *conversations;
    http *http;
    char model_name[256];
    int ctx;        /* of its sessions */
    double started; /* unix time */
};

/* Serves until `stop` returns true (asked ten times a second), then drains. The model is the
 * caller's. */
linnet_status server_run(linnet_model *model, const server_options *options, bool (*stop)(void),
                         linnet_error *err);

#endif
