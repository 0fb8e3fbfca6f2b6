/* Setting conversations up, and asking their stores. */
#include "clock.h"
#include "conversations_parts.h"
#include "../error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- Stores --------------------------------------------------------------------------------- */

void conversations_say(const conversations *c, const char *line) {
    if (c->options.log) c->options.log(line);
}

/* Counts what went wrong, and tells the log: that the store fails (*down) and that it works again,
 * each when it changes; that it has states which are refused, once. */
static void note(conversations *c, shared *s, bool *down, linnet_status status, const char *what,
                 const linnet_error *err) {
    char line[1400] = "";
    bool *told = status && status != LINNET_ERR_IO ? &s->refused : down;
    pthread_mutex_lock(&c->lock);
    if (status) c->stats.store_errors++;
    if (status && !*told)
        snprintf(line, sizeof line, "%s: %s; conversations go on without it", what, err->text);
    else if (!status && *told)
        snprintf(line, sizeof line, "%s: the %s works again", what, s->store->name);
    *told = status != LINNET_OK;
    pthread_mutex_unlock(&c->lock);
    if (*line) conversations_say(c, line);
}

linnet_status store_put(conversations *c, shared *s, store_key key, const linnet_session *session,
                        linnet_error *err) {
    double start = clock_seconds();
    linnet_status status = s->store->put(s->store, key, session, err);
    pthread_mutex_lock(&c->lock);
    c->stats.store_writes++;
    c->stats.store_write_seconds += clock_seconds() - start;
    pthread_mutex_unlock(&c->lock);
    note(c, s, &s->no_write, status, "writing a state", err);
    return status;
}

linnet_session *store_get(conversations *c, shared *s, const store_key *keys, size_t n,
                          size_t *which) {
    linnet_session *session = NULL;
    linnet_error err;
    if (linnet_session_new(&session, c->options.model, &c->options.session, &err)) return NULL;
    double start = clock_seconds();
    linnet_status status = s->store->get(s->store, keys, n, session, which, &err);
    pthread_mutex_lock(&c->lock);
    c->stats.store_reads++;
    c->stats.store_read_seconds += clock_seconds() - start;
    pthread_mutex_unlock(&c->lock);
    note(c, s, &s->no_read, status, "reading a state", &err);
    if (!status && *which < n) return session;
    linnet_session_free(session);
    return NULL;
}

linnet_session *stored(conversations *c, const char *name, const char **source) {
    store_key key = {true, name};
    linnet_session *session = NULL;
    size_t which;
    for (size_t i = 0; i < c->n_stores && !session; i++) {
        session = store_get(c, &c->stores[i], &key, 1, &which);
        if (session && source) *source = c->stores[i].store->name;
    }
    return session;
}

/* ---- Beginning and end ---------------------------------------------------------------------- */

/* What a state must have in common with this server to be continued here, from the head of one
 * (docs/state.md), and how the template writes a short exchange. */
static linnet_status make_seed(conversations *c, linnet_error *err) {
    enum { IDENTITY = 24, IDENTITY_BYTES = 16, KV = 48, WINDOW_MODE = 64, HEAD = 88 };
    static const linnet_message talk[] = {{"user", "a"}, {"assistant", "a"}, {"user", "a"}};
    linnet_session *session;
    linnet_status status = linnet_session_new(&session, c->options.model, &c->options.session, err);
    if (status) return status;
    uint64_t n = linnet_session_size(session);
    uint8_t *bytes = n >= HEAD ? malloc(n) : NULL;
    status = bytes ? linnet_session_save(session, bytes, n, err)
                   : fail(err, LINNET_ERR_MEMORY, "out of memory");
    if (!status) {
        crypto_generichash_state h;
        linnet_error unknown;
        id_text ids;
        crypto_generichash_init(&h, NULL, 0, KEY);
        crypto_generichash_update(&h, bytes + IDENTITY, IDENTITY_BYTES);
        crypto_generichash_update(&h, bytes + KV, 4);
        crypto_generichash_update(&h, bytes + WINDOW_MODE, 4);
        const char *name = linnet_model_get_info(c->options.model)->chat_template;
        if (c->template) name = c->template;
        hash_text(&h, name, strlen(name));
        if (!ids_from(c, talk, 3, 0, true, NULL, &ids, &unknown)) {
            crypto_generichash_update(&h, (const uint8_t *)ids.at, ids.n * sizeof *ids.at);
            free(ids.at);
        }
        crypto_generichash_final(&h, c->seed, KEY);
        sodium_bin2hex(c->fingerprint, sizeof c->fingerprint, bytes + IDENTITY, IDENTITY_BYTES);
    }
    free(bytes);
    linnet_session_free(session);
    return status;
}

static linnet_status make_folder(const char *path, linnet_error *err) {
    if (!mkdir(path, 0700) || errno == EEXIST) return LINNET_OK;
    return fail(err, LINNET_ERR_IO, "cannot create %s: %s", path, strerror(errno));
}

static linnet_status open_folder(conversations *c, linnet_error *err) {
    char *states = NULL, *dir = NULL, *ids = NULL;
    linnet_status status = make_folder(c->options.dir, err);
    if (!status &&
        (asprintf(&states, "%s/states", c->options.dir) < 0 ||
         asprintf(&dir, "%s/%s", states, c->fingerprint) < 0 || asprintf(&ids, "%s/ids", dir) < 0))
        status = fail(err, LINNET_ERR_MEMORY, "out of memory");
    if (!status) status = make_folder(states, err);
    if (!status) status = make_folder(dir, err);
    if (!status) status = store_folder_new(&c->stores[c->n_stores].store, dir, err);
    if (!status) c->n_stores++;
    if (!status) status = journal_open(&c->journal, ids, &c->shelf, err);
    free(states);
    free(dir);
    free(ids);
    return status;
}

static linnet_status open_redis(conversations *c, linnet_error *err) {
    char prefix[64];
    snprintf(prefix, sizeof prefix, "linnet:%s", c->fingerprint);
    store_redis_options o = {.address = c->options.redis,
                             .prefix = prefix,
                             .ttl_seconds = c->options.redis_ttl_seconds,
                             .max_bytes = c->options.redis_max_bytes};
    linnet_status status = store_redis_new(&c->stores[c->n_stores].store, &o, err);
    if (!status) c->n_stores++;
    return status;
}

linnet_status conversations_new(conversations **out, const conversations_options *options,
                                linnet_error *err) {
    if (sodium_init() < 0) return fail(err, LINNET_ERR_DEVICE, "libsodium does not start");
    conversations *c = calloc(1, sizeof *c);
    if (!c) return fail(err, LINNET_ERR_MEMORY, "out of memory");
    c->options = *options;
    c->shelf.budget = options->bytes ? options->bytes : (uint64_t)256 << 20;
    pthread_mutex_init(&c->lock, NULL);
    linnet_status status = LINNET_OK;
    if (options->template && !(c->template = strdup(options->template)))
        status = fail(err, LINNET_ERR_MEMORY, "out of memory");
    if (!status) status = make_seed(c, err);
    if (!status && options->redis) status = open_redis(c, err);
    if (!status && options->dir) status = open_folder(c, err);
    if (status) {
        conversations_free(c);
        return status;
    }
    *out = c;
    return LINNET_OK;
}

void conversations_free(conversations *c) {
    if (!c) return;
    for (size_t i = 0; i < c->n_stores; i++)
        c->stores[i].store->free(c->stores[i].store);
    journal_close(c->journal);
    shelf_clear(&c->shelf);
    pthread_mutex_destroy(&c->lock);
    free(c->template);
    free(c);
}

void conversations_get_stats(conversations *c, conversations_stats *out) {
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    out->remembered = c->shelf.n_timelines;
    out->named = c->shelf.n_sessions;
    out->bytes = c->shelf.bytes;
    out->store_up = true;
    for (size_t i = 0; i < c->n_stores; i++)
        out->store_up = out->store_up && !c->stores[i].no_read && !c->stores[i].no_write;
    pthread_mutex_unlock(&c->lock);
}
