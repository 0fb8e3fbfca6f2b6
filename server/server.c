/* linnet serve: starting, draining, stopping. */
#include "server.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "../error.h"

static void say(const server *s, const char *line) {
    if (s->options.log) s->options.log(line);
}

/* The file's name without folder and .gguf. */
static void name_model(server *s) {
    const char *slash = strrchr(s->options.model_path, '/');
    const char *base = slash ? slash + 1 : s->options.model_path;
    size_t n = strlen(base);
    if (n > 5 && !strcmp(base + n - 5, ".gguf")) n -= 5;
    snprintf(s->model_name, sizeof s->model_name, "%.*s", (int)(n < 255 ? n : 255), base);
    for (char *c = s->model_name; *c; c++) /* it goes into JSON and into the log */
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f) *c = '_';
}

/* What the first request would pay for: activations, the thread team's start, weights in caches. A
 * model that fails here tells each request why. */
static void warm_up(linnet_session *session, int ctx) {
    static const int32_t tokens[32];
    size_t most = sizeof tokens / sizeof *tokens;
    linnet_feed(session, tokens, ctx < (int)most ? (size_t)ctx : most, LINNET_LOGITS_LAST, NULL);
}

static linnet_status start(server *s, linnet_error *err) {
    const server_options *o = &s->options;
    linnet_status status;
    linnet_session *session;
    if ((status = linnet_session_new(&session, s->model, &o->session, err))) return status;
    s->ctx = linnet_session_ctx(session);
    warm_up(session, s->ctx);
    linnet_session_free(session);
    linnet_cache_options cache = {.bytes = o->cache_bytes, .dir = o->cache_dir};
    if (o->cache_bytes && (status = linnet_cache_new(&s->cache, s->model, &cache, err)))
        return status;
    scheduler_options scheduling = {.model = s->model,
                                    .cache = s->cache,
                                    .session = o->session,
                                    .slots = o->slots,
                                    .max_queue = o->max_queue};
    if ((status = scheduler_start(&s->scheduler, &scheduling, err))) return status;
    conversations_options talks = {.model = s->model,
                                   .cache = s->cache,
                                   .cache_bytes = o->cache_bytes,
                                   .session = o->session,
                                   .template = o->template,
                                   .dir = o->cache_dir,
                                   .redis = o->redis,
                                   .redis_ttl_seconds = o->redis_ttl_seconds,
                                   .redis_max_bytes = o->redis_max_bytes,
                                   .bytes = o->cache_bytes / 4,
                                   .log = o->log};
    if ((status = conversations_new(&s->conversations, &talks, err))) return status;
    return http_start(&s->http, s, err);
}

static bool is_loopback(const char *host) {
    return !strcasecmp(host, "localhost") || !strncmp(host, "127.", 4) || !strcmp(host, "::1");
}

static void nap(void) {
    struct timespec t = {0, 100000000};
    nanosleep(&t, NULL);
}

/* Takes no more requests, lets those that run come to their end. */
static void drain(server *s) {
    say(s, "stopping: running requests come to their end first, another signal ends them");
    scheduler_drain(s->scheduler, s->options.drain_seconds);
    for (int i = 0; i < 50 && http_busy(s->http); i++) /* last bytes on their way */
        nap();
}

linnet_status server_run(linnet_model *model, const server_options *options, bool (*stop)(void),
                         linnet_error *err) {
    server s = {.options = *options, .model = model, .started = (double)time(NULL)};
    char line[600];
    if (sodium_init() < 0)
        return fail(err, LINNET_ERR_IO, "libsodium has no source of random numbers");
    name_model(&s);
    linnet_status status = start(&s, err);
    if (!status) {
        snprintf(line, sizeof line,
                 "serving %s, %zu slot%s, %d tokens of context, at http://%s%s%s:%d/", s.model_name,
                 options->slots, options->slots == 1 ? "" : "s", s.ctx,
                 strchr(options->host, ':') ? "[" : "", options->host,
                 strchr(options->host, ':') ? "]" : "", http_port(s.http));
        say(&s, line);
        if (!is_loopback(options->host) && !options->api_key_file)
            say(&s, "there are no API keys: everybody who reaches this address can use it");
        while (!stop())
            nap();
        drain(&s);
    }
    http_stop(s.http);
    if (s.conversations) conversations_free(s.conversations);
    if (s.scheduler) scheduler_free(s.scheduler);
    linnet_cache_free(s.cache);
    return status;
}
