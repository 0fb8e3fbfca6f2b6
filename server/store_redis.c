/* States in Redis, or what speaks its protocol (Valkey): one value each, as linnet_session_save
 * writes it, so replicas of one model continue each other's conversations.
 *
 * Connections are made when needed and kept for the next call. After one failed nothing is tried
 * for a while that doubles, up to 10 s: a Redis that is down must not slow every request. A command
 * has a deadline as a whole, not only for each read: a server that trickles is as good as down. */
#include "clock.h"
#include "../error.h"
#include "store.h"

#include <errno.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum {
    MAX_IDLE = 16,
    MAX_KEYS = 16,
    MAX_ARGUMENTS = 5,
    KEY_BYTES = 320,
    READ_BYTES = 1 << 14,
    LONGEST_HEAD = 14, /* of a state's length, line end included */
    MAX_SPARE = 64 << 20,
    BYTES_PER_S = 1 << 24
};

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
    uint8_t *spare; /* a buffer for states: fresh memory costs more time than the copy into it */
    size_t spare_bytes;
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

/* Nothing came that nobody asked for: it would be taken for the next answer, and a state that way
 * for another conversation's. One that was closed is not quiet either. */
static bool is_quiet(const redisContext *c) {
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    return c->reader->pos == c->reader->len && poll(&p, 1, 0) == 0;
}

/* An idle connection, or a new one (*fresh). */
static linnet_status take(redis *r, redisContext **out, bool *fresh, linnet_error *err) {
    pthread_mutex_lock(&r->lock);
    double wait = r->retry_at - clock_seconds();
    for (*out = NULL; wait <= 0 && r->n_idle && !*out;) {
        *out = r->idle[--r->n_idle];
        if (is_quiet(*out)) break;
        redisFree(*out);
        *out = NULL;
    }
    pthread_mutex_unlock(&r->lock);
    *fresh = !*out;
    if (*out) return LINNET_OK;
    if (wait > 0)
        return fail(err, LINNET_ERR_IO, "redis at %s failed and is left alone for %.1f s",
                    r->address, wait);
    struct timeval patience = timeval_of(r->connect_seconds);
    redisContext *c = r->port ? redisConnectWithTimeout(r->host, r->port, patience)
                              : redisConnectUnixWithTimeout(r->host, patience);
    linnet_status status = LINNET_OK;
    if (!c || c->err || redisSetTimeout(c, timeval_of(r->command_seconds)) != REDIS_OK) {
        status = fail(err, LINNET_ERR_IO, "redis at %s: %s", r->address,
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

/* ---- Buffers -------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *at;
    size_t n, cap;
} buffer;

static bool take_buffer(redis *r, size_t n, buffer *out) {
    pthread_mutex_lock(&r->lock);
    *out = (buffer){r->spare, n, r->spare_bytes};
    r->spare = NULL;
    r->spare_bytes = 0;
    pthread_mutex_unlock(&r->lock);
    if (out->cap >= n && out->at) return true;
    free(out->at);
    *out = (buffer){malloc(n ? n : 1), n, n};
    return out->at != NULL;
}

static void return_buffer(redis *r, buffer *b) {
    uint8_t *other = b->at;
    pthread_mutex_lock(&r->lock);
    if (b->at && b->cap > r->spare_bytes && b->cap <= MAX_SPARE) {
        other = r->spare;
        r->spare = b->at;
        r->spare_bytes = b->cap;
    }
    pthread_mutex_unlock(&r->lock);
    free(other);
    *b = (buffer){0};
}

/* ---- Commands ------------------------------------------------------------------------------- */

typedef struct {
    size_t argc;
    const void *argv[MAX_ARGUMENTS];
    size_t bytes[MAX_ARGUMENTS];
} command;

static command command_of(const char *name, const char *key) {
    return (command){2, {name, key}, {strlen(name), strlen(key)}};
}

static void add_argument(command *c, const void *at, size_t n) {
    c->argv[c->argc] = at;
    c->bytes[c->argc++] = n;
}

/* Fails the connection. */
static bool broken(redisContext *c, const char *why) {
    snprintf(c->errstr, sizeof c->errstr, "%s", why);
    return false;
}

/* True while `moved` bytes since `start` are not too few. */
static bool in_time(const redis *r, double start, size_t moved) {
    return clock_seconds() - start < r->command_seconds + (double)moved / BYTES_PER_S;
}

/* hiredis would copy a state twice on its way out: this sends it from where it lies. */
static bool send_command(const redis *r, redisContext *c, const command *what) {
    char heads[MAX_ARGUMENTS][48];
    struct iovec parts[2 * MAX_ARGUMENTS + 1];
    size_t n = 0, sent = 0;
    for (size_t i = 0; i < what->argc; i++) {
        int length =
            i ? snprintf(heads[i], sizeof heads[i], "\r\n$%zu\r\n", what->bytes[i])
              : snprintf(heads[i], sizeof heads[i], "*%zu\r\n$%zu\r\n", what->argc, what->bytes[i]);
        parts[n++] = (struct iovec){heads[i], (size_t)length};
        parts[n++] = (struct iovec){(void *)what->argv[i], what->bytes[i]};
    }
    parts[n++] = (struct iovec){(void *)"\r\n", 2};
    double start = clock_seconds();
    for (struct msghdr m = {.msg_iov = parts, .msg_iovlen = n}; m.msg_iovlen;) {
        ssize_t some = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (some < 0 && errno == EINTR) continue;
        if (some < 0) return broken(c, errno == EAGAIN ? "takes no data" : strerror(errno));
        sent += (size_t)some;
        if (!in_time(r, start, sent)) return broken(c, "too slow");
        while (m.msg_iovlen && (size_t)some >= m.msg_iov->iov_len) {
            some -= (ssize_t)m.msg_iov->iov_len;
            m.msg_iov++, m.msg_iovlen--;
        }
        if (m.msg_iovlen) {
            m.msg_iov->iov_base = (uint8_t *)m.msg_iov->iov_base + some;
            m.msg_iov->iov_len -= (size_t)some;
        }
    }
    return true;
}

static bool receive(const redis *r, redisContext *c, void *at, size_t cap, size_t *got,
                    double start, size_t before) {
    ssize_t n;
    do {
        if (!in_time(r, start, before)) return broken(c, "too slow");
        n = recv(c->fd, at, cap, 0);
    } while (n < 0 && errno == EINTR);
    if (n == 0) return broken(c, "closed the connection");
    if (n < 0) return broken(c, errno == EAGAIN ? "does not answer" : strerror(errno));
    *got = (size_t)n;
    return true;
}

/* Bytes of "$N\r\n" at the beginning of an answer with a state in it, else 0. */
static size_t bulk_head(const char *at, size_t n, size_t *length) {
    size_t i = 1;
    for (*length = 0; i < n && i < 12 && at[i] >= '0' && at[i] <= '9'; i++)
        *length = 10 * *length + (size_t)(at[i] - '0');
    return n > i + 1 && at[0] == '$' && *length && at[i] == '\r' && at[i + 1] == '\n' ? i + 2 : 0;
}

/* The next reply of c. A text that is wanted for `state` goes there, and *reply stays NULL. */
static bool read_reply(redis *r, redisContext *c, redisReply **reply, buffer *state) {
    char some[READ_BYTES];
    double start = clock_seconds();
    size_t total = 0, got, length, head;
    *reply = NULL;
    for (;;) {
        void *parsed = NULL;
        if (redisReaderGetReply(c->reader, &parsed) != REDIS_OK) {
            char why[128];
            snprintf(why, sizeof why, "not an answer of Redis: %.90s", c->reader->errstr);
            return broken(c, why);
        }
        if ((*reply = parsed)) return true;
        if (total > (state ? r->max_bytes : 0) + READ_BYTES)
            return broken(c, "an answer without end");
        if (!receive(r, c, some, sizeof some, &got, start, total)) return false;
        size_t piece;
        while (state && !total && got < LONGEST_HEAD && *some == '$' && !memchr(some, '\n', got)) {
            if (!receive(r, c, some + got, sizeof some - got, &piece, start, got)) return false;
            got += piece;
        }
        head = state && !total ? bulk_head(some, got, &length) : 0;
        total += got;
        if (head) break;
        if (redisReaderFeed(c->reader, some, got) != REDIS_OK) return broken(c, "out of memory");
    }
    if (length > r->max_bytes) return broken(c, "a larger value than any state");
    if (got - head > length + 2) return broken(c, "more than was asked for");
    if (!take_buffer(r, length + 2, state)) return broken(c, "out of memory");
    memcpy(state->at, some + head, got - head);
    for (size_t have = got - head; have < length + 2; have += got)
        if (!receive(r, c, state->at + have, length + 2 - have, &got, start, have)) return false;
    if (memcmp(state->at + length, "\r\n", 2)) return broken(c, "not an answer of Redis");
    state->n = length;
    return true;
}

/* Sends n commands at once and reads their replies; false: c->errstr says why. */
static bool exchange(redis *r, redisContext *c, command *commands, size_t n, redisReply **replies,
                     buffer *state) {
    for (size_t i = 0; i < n; i++)
        if (!send_command(r, c, &commands[i])) return false;
    size_t got = 0;
    while (got < n && read_reply(r, c, &replies[got], state))
        got++;
    if (got == n) return true;
    while (got)
        freeReplyObject(replies[--got]);
    if (state) return_buffer(r, state);
    return false;
}

/* The same over a connection of the pool. One that was idle may have been closed since (Redis was
 * restarted): then again over a new one. */
static linnet_status ask(redis *r, command *commands, size_t n, redisReply **replies, buffer *state,
                         linnet_error *err) {
    for (;;) {
        redisContext *c;
        bool fresh;
        linnet_status status = take(r, &c, &fresh, err);
        if (status) return status;
        if (exchange(r, c, commands, n, replies, state)) {
            give_back(r, c);
            return LINNET_OK;
        }
        status = fail(err, LINNET_ERR_IO, "redis at %s: %s", r->address,
                      *c->errstr ? c->errstr : "failed");
        redisFree(c);
        if (fresh) {
            pause_after_failure(r);
            return status;
        }
        forget_idle(r);
    }
}

/* One command whose reply is of a type, nil, or (with `state`) a text. */
static linnet_status ask_one(redis *r, command c, int type, buffer *state, linnet_error *err) {
    redisReply *reply;
    linnet_status status = ask(r, &c, 1, &reply, state, err);
    if (status || !reply) return status;
    if (reply->type != type && reply->type != REDIS_REPLY_NIL)
        status = fail(err, LINNET_ERR_IO, "redis at %s answers %s: %.200s", r->address,
                      (const char *)c.argv[0],
                      reply->type == REDIS_REPLY_ERROR ? reply->str : "with something else");
    freeReplyObject(reply);
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
        return fail(err, LINNET_ERR_MEMORY,
                    "a state of %llu bytes is not shared: the limit is %llu", (unsigned long long)n,
                    (unsigned long long)r->max_bytes);
    buffer bytes;
    if (!take_buffer(r, n, &bytes))
        return fail(err, LINNET_ERR_MEMORY, "no memory for a state of %llu bytes",
                    (unsigned long long)n);
    linnet_status status = linnet_session_save(session, bytes.at, n, err);
    if (!status) {
        key_text(r, key, name);
        command c = command_of("SET", name);
        add_argument(&c, bytes.at, n);
        add_argument(&c, "EX", 2);
        add_argument(&c, r->ttl, strlen(r->ttl));
        status = ask_one(r, c, REDIS_REPLY_STATUS, NULL, err);
    }
    return_buffer(r, &bytes);
    return status;
}

/* The first of the keys that is there, n if none is. */
static linnet_status first_there(redis *r, char names[][KEY_BYTES], size_t n, size_t *which,
                                 linnet_error *err) {
    command commands[MAX_KEYS];
    redisReply *replies[MAX_KEYS];
    for (size_t i = 0; i < n; i++)
        commands[i] = command_of("EXISTS", names[i]);
    linnet_status status = ask(r, commands, n, replies, NULL, err);
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
    buffer state = {0};
    for (size_t i = 0; i < asked; i++)
        key_text(r, keys[i], names[i]);
    *which = n;
    if (asked > 1) status = first_there(r, names, asked, &found, err);
    if (status || found == asked) return status;
    status = ask_one(r, command_of("GET", names[found]), REDIS_REPLY_NIL, &state, err);
    if (!status && state.at) {
        status = linnet_session_load(into, state.at, state.n, err);
        *which = found;
    }
    return_buffer(r, &state);
    return status;
}

static void redis_free(store *s) {
    redis *r = (redis *)s;
    forget_idle(r);
    free(r->spare);
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
    if (!r) return fail(err, LINNET_ERR_MEMORY, "out of memory");
    if (!parse_address(r, o->address) || strlen(o->prefix) >= sizeof r->prefix) {
        free(r);
        return fail(err, LINNET_ERR_ARGUMENT,
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
