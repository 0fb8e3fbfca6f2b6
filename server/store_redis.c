/* States in Redis, or what speaks its protocol (Valkey): one value each, as linnet_session_save
 * writes it, so replicas of one model continue each other's conversations.
 *
 * Connections are made when needed and kept for the next call. After one failed nothing is tried
 * for a while that doubles, up to 10 s: a Redis that is down must not slow every request. A command
 * has a deadline as a whole, not only for each read: a server that trickles is as good as down. */
#include "clock.h"
#include "error.h"
#include "store.h"

#include <errno.h>
#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MAX_IDLE = 16, MAX_KEYS = 16, KEY_BYTES = 320, READ_BYTES = 1 << 18, BYTES_PER_S = 1 << 24 };

typedef struct {
    store base;
    char host[256];
    int port; /* 0: host is the path of a socket */
    char address[280], prefix[128], ttl[24];
    double connect_seconds, command_seconds;
    uint64_t max_bytes;
    pthread_mutex_t lock; /* all below */
    redisContext *idle[MAX_IDLE];
    size_t n_idle;
    double retry_at, pause;
} redis;

static struct timeval timeval_of(double seconds) {
    time_t whole = (time_t)seconds;
    return (struct timeval){whole, (suseconds_t)((seconds - (double)whole) * 1e6)};
}

/* ---- Connections ---------------------------------------------------------------------------- */

static void forget_idle(redis *r) {
    pthread_mutex_lock(&r->lock);
    while (r->n_idle)
        redisFree(r->idle[--r->n_idle]);
    pthread_mutex_unlock(&r->lock);
}

static void pause_after_failure(redis *r) {
    pthread_mutex_lock(&r->lock);
    r->pause = r->pause < 0.25 ? 0.25 : r->pause < 5 ? 2 * r->pause : 10;
    r->retry_at = clock_seconds() + r->pause;
    pthread_mutex_unlock(&r->lock);
}

/* An idle connection, or a new one (*fresh). */
static linnet_status take(redis *r, redisContext **out, bool *fresh, linnet_error *err) {
    pthread_mutex_lock(&r->lock);
    double wait = r->retry_at - clock_seconds();
    *out = wait <= 0 && r->n_idle ? r->idle[--r->n_idle] : NULL;
    pthread_mutex_unlock(&r->lock);
    *fresh = !*out;
    if (*out) return LINNET_OK;
    if (wait > 0)
        return refuse(err, LINNET_ERR_IO, "redis at %s failed and is left alone for %.1f s",
                      r->address, wait);
    struct timeval patience = timeval_of(r->connect_seconds);
    redisContext *c = r->port ? redisConnectWithTimeout(r->host, r->port, patience)
                              : redisConnectUnixWithTimeout(r->host, patience);
    linnet_status status = LINNET_OK;
    if (!c || c->err || redisSetTimeout(c, timeval_of(r->command_seconds)) != REDIS_OK) {
        status = refuse(err, LINNET_ERR_IO, "redis at %s: %s", r->address,
                        c && c->err ? c->errstr : "out of memory");
        if (c) redisFree(c);
        pause_after_failure(r);
        c = NULL;
    }
    *out = c;
    return status;
}

static void give_back(redis *r, redisContext *c) {
    pthread_mutex_lock(&r->lock);
    r->retry_at = r->pause = 0;
    bool keep = r->n_idle < MAX_IDLE;
    if (keep) r->idle[r->n_idle++] = c;
    pthread_mutex_unlock(&r->lock);
    if (!keep) redisFree(c);
}

/* ---- Commands ------------------------------------------------------------------------------- */

typedef struct {
    int argc;
    const char *argv[5];
    size_t bytes[5];
} command;

static command command_of(const char *name, const char *key) {
    return (command){2, {name, key}, {strlen(name), strlen(key)}};
}

static void add_argument(command *c, const void *at, size_t n) {
    c->argv[c->argc] = at;
    c->bytes[c->argc++] = n;
}

/* True while `moved` bytes since `start` are not too few. */
static bool in_time(const redis *r, double start, size_t moved) {
    return clock_seconds() - start < r->command_seconds + (double)moved / BYTES_PER_S;
}

/* The next reply of c; NULL: c->errstr says why. */
static redisReply *read_reply(const redis *r, redisContext *c, char *buffer) {
    double start = clock_seconds();
    size_t got = 0;
    void *reply = NULL;
    for (;;) {
        if (redisReaderGetReply(c->reader, &reply) != REDIS_OK) {
            snprintf(c->errstr, sizeof c->errstr, "not an answer of Redis: %.90s",
                     c->reader->errstr);
            return NULL;
        }
        if (reply) return reply;
        const char *trouble = got > r->max_bytes + READ_BYTES ? "an answer without end"
                              : !in_time(r, start, got)       ? "too slow"
                                                              : NULL;
        ssize_t n = trouble ? 0 : recv(c->fd, buffer, READ_BYTES, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n > 0 && redisReaderFeed(c->reader, buffer, (size_t)n) == REDIS_OK) {
            got += (size_t)n;
            continue;
        }
        if (!trouble)
            trouble = n == 0                                     ? "closed the connection"
                      : n < 0 && (errno == EAGAIN || errno == 0) ? "does not answer"
                      : n < 0                                    ? strerror(errno)
                                                                 : "out of memory";
        snprintf(c->errstr, sizeof c->errstr, "%s", trouble);
        return NULL;
    }
}

/* Sends n commands at once and reads their replies; false: c->errstr says why. */
static bool exchange(const redis *r, redisContext *c, command *commands, size_t n,
                     redisReply **replies) {
    size_t total = 0;
    int done = 0;
    for (size_t i = 0; i < n; i++) {
        if (redisAppendCommandArgv(c, commands[i].argc, commands[i].argv, commands[i].bytes))
            return false;
        for (int k = 0; k < commands[i].argc; k++)
            total += commands[i].bytes[k];
    }
    double start = clock_seconds();
    while (!done) {
        if (redisBufferWrite(c, &done) != REDIS_OK) return false;
        if (!done && !in_time(r, start, total)) {
            snprintf(c->errstr, sizeof c->errstr, "too slow");
            return false;
        }
    }
    char *buffer = malloc(READ_BYTES);
    if (!buffer) snprintf(c->errstr, sizeof c->errstr, "out of memory");
    size_t got = 0;
    while (buffer && got < n && (replies[got] = read_reply(r, c, buffer)))
        got++;
    free(buffer);
    if (got == n) return true;
    while (got)
        freeReplyObject(replies[--got]);
    return false;
}

/* The same over a connection of the pool. One that was idle may have been closed since (Redis was
 * restarted): then again over a new one. */
static linnet_status ask(redis *r, command *commands, size_t n, redisReply **replies,
                         linnet_error *err) {
    for (;;) {
        redisContext *c;
        bool fresh;
        linnet_status status = take(r, &c, &fresh, err);
        if (status) return status;
        if (exchange(r, c, commands, n, replies)) {
            give_back(r, c);
            return LINNET_OK;
        }
        status = refuse(err, LINNET_ERR_IO, "redis at %s: %s", r->address,
                        *c->errstr ? c->errstr : "failed");
        redisFree(c);
        if (fresh) {
            pause_after_failure(r);
            return status;
        }
        forget_idle(r);
    }
}

static linnet_status ask_one(redis *r, command c, int type, redisReply **out, linnet_error *err) {
    linnet_status status = ask(r, &c, 1, out, err);
    if (status || (*out)->type == type || (*out)->type == REDIS_REPLY_NIL) return status;
    status = refuse(err, LINNET_ERR_IO, "redis at %s answers %s: %.200s", r->address, c.argv[0],
                    (*out)->type == REDIS_REPLY_ERROR ? (*out)->str : "with something else");
    freeReplyObject(*out);
    *out = NULL;
    return status;
}

/* ---- The store ------------------------------------------------------------------------------ */

static void key_text(const redis *r, store_key key, char out[KEY_BYTES]) {
    snprintf(out, KEY_BYTES, "%s:%s%s", r->prefix, key.named ? "name:" : "", key.text);
}

static linnet_status redis_put(store *s, store_key key, const linnet_session *session,
                               linnet_error *err) {
    redis *r = (redis *)s;
    uint64_t n = linnet_session_size(session);
    char name[KEY_BYTES];
    if (n > r->max_bytes)
        return refuse(err, LINNET_ERR_MEMORY,
                      "a state of %llu bytes is not shared: the limit is %llu",
                      (unsigned long long)n, (unsigned long long)r->max_bytes);
    void *bytes = malloc(n);
    if (!bytes)
        return refuse(err, LINNET_ERR_MEMORY, "no memory for a state of %llu bytes",
                      (unsigned long long)n);
    linnet_status status = linnet_session_save(session, bytes, n, err);
    if (!status) {
        redisReply *reply;
        key_text(r, key, name);
        command c = command_of("SET", name);
        add_argument(&c, bytes, n);
        add_argument(&c, "EX", 2);
        add_argument(&c, r->ttl, strlen(r->ttl));
        status = ask_one(r, c, REDIS_REPLY_STATUS, &reply, err);
        if (!status) freeReplyObject(reply);
    }
    free(bytes);
    return status;
}

/* The first of the keys that is there, n if none is. */
static linnet_status first_there(redis *r, char names[][KEY_BYTES], size_t n, size_t *which,
                                 linnet_error *err) {
    command commands[MAX_KEYS];
    redisReply *replies[MAX_KEYS];
    for (size_t i = 0; i < n; i++)
        commands[i] = command_of("EXISTS", names[i]);
    linnet_status status = ask(r, commands, n, replies, err);
    *which = n;
    for (size_t i = n; i-- > 0 && !status;) {
        if (replies[i]->type == REDIS_REPLY_INTEGER && replies[i]->integer == 1) *which = i;
    }
    for (size_t i = 0; i < n && !status; i++)
        freeReplyObject(replies[i]);
    return status;
}

static linnet_status redis_get(store *s, const store_key *keys, size_t n, linnet_session *into,
                               size_t *which, linnet_error *err) {
    redis *r = (redis *)s;
    char names[MAX_KEYS][KEY_BYTES];
    size_t asked = n < MAX_KEYS ? n : MAX_KEYS, found = 0;
    linnet_status status = LINNET_OK;
    redisReply *reply = NULL;
    for (size_t i = 0; i < asked; i++)
        key_text(r, keys[i], names[i]);
    *which = n;
    if (asked > 1) status = first_there(r, names, asked, &found, err);
    if (status || found == asked) return status;
    status = ask_one(r, command_of("GET", names[found]), REDIS_REPLY_STRING, &reply, err);
    if (!status && reply->type == REDIS_REPLY_STRING) {
        status = linnet_session_load(into, reply->str, reply->len, err);
        *which = found;
    }
    if (reply) freeReplyObject(reply);
    return status;
}

static void redis_free(store *s) {
    redis *r = (redis *)s;
    forget_idle(r);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* HOST:PORT, [IPv6]:PORT or a path. */
static bool parse_address(redis *r, const char *text) {
    const char *colon = strrchr(text, ':');
    size_t n = *text == '/' ? strlen(text) : colon ? (size_t)(colon - text) : 0;
    char *end = NULL;
    if (!n || strlen(text) >= sizeof r->address) return false;
    strcpy(r->address, text);
    if (*text != '/') {
        long port = strtol(colon + 1, &end, 10);
        if (end == colon + 1 || *end || port < 1 || port > 65535) return false;
        r->port = (int)port;
        bool v6 = text[0] == '[' && text[n - 1] == ']';
        if (v6) text++, n -= 2;
        if (!v6 && memchr(text, ':', n)) return false;
    }
    if (!n || n >= sizeof r->host) return false;
    memcpy(r->host, text, n);
    return true;
}

linnet_status store_redis_new(store **out, const store_redis_options *o, linnet_error *err) {
    redis *r = calloc(1, sizeof *r);
    if (!r) return refuse(err, LINNET_ERR_MEMORY, "out of memory");
    if (!parse_address(r, o->address) || strlen(o->prefix) >= sizeof r->prefix) {
        free(r);
        return refuse(err, LINNET_ERR_ARGUMENT,
                      "redis: expected HOST:PORT, [IPv6]:PORT or the path of a socket, found '%s'",
                      o->address);
    }
    strcpy(r->prefix, o->prefix);
    r->connect_seconds = o->connect_seconds > 0 ? o->connect_seconds : 0.5;
    r->command_seconds = o->command_seconds > 0 ? o->command_seconds : 2;
    double ttl = o->ttl_seconds > 0 ? o->ttl_seconds : 7 * 24 * 3600.0;
    snprintf(r->ttl, sizeof r->ttl, "%.0f", ttl < 1 ? 1 : ttl);
    r->max_bytes = o->max_bytes ? o->max_bytes : (uint64_t)512 << 20;
    pthread_mutex_init(&r->lock, NULL);
    r->base = (store){
        .name = "redis", .hashes = true, .put = redis_put, .get = redis_get, .free = redis_free};
    *out = &r->base;
    return LINNET_OK;
}
