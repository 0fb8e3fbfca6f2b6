/* The prefix cache: snapshots of sessions, found again by their tokens. cache.h has the parts. */
#include "cache.h"

#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_EVERY = 1024,
    NEAR = PAGE,     /* a stop so near to the last one, or to the end, is not worth a piece */
    LONG_FEED = 256, /* a feed of so many tokens also stops near its end */
};
static const uint64_t DEFAULT_BYTES = (uint64_t)1 << 30, DEFAULT_DIR_BYTES = (uint64_t)16 << 30;

linnet_status linnet_cache_new(linnet_cache **out, linnet_model *model,
                               const linnet_cache_options *options, linnet_error *err) {
    linnet_cache_options o = {0};
    if (options) o = *options;
    if (!out || !model) return fail(err, LINNET_ERR_ARGUMENT, "linnet_cache_new: NULL argument");
    *out = NULL;
    if (atomic_load(&model->closed) || !model->loaded)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_cache_new: the model %s",
                    model->loaded ? "was closed" : "was opened for its metadata only");
    linnet_cache *c = calloc(1, sizeof *c);
    if (!c) return fail(err, LINNET_ERR_MEMORY, "no memory for a cache");
    c->model = model;
    atomic_fetch_add(&model->owners, 1);
    c->bytes_max = o.bytes ? o.bytes : DEFAULT_BYTES;
    c->dir_max = o.dir_bytes ? o.dir_bytes : DEFAULT_DIR_BYTES;
    size_t every = o.every ? min_size(o.every, MAX_CTX) : DEFAULT_EVERY;
    c->every = round_up(every, PAGE);
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->folder_lock, NULL);
    linnet_status s = o.dir ? folder_open(c, o.dir, err) : LINNET_OK;
    if (s)
        linnet_cache_free(c);
    else
        *out = c;
    return s;
}

void linnet_cache_free(linnet_cache *c) {
    if (!c) return;
    linnet_cache_flush(c, NULL);
    while (c->n)
        cache_take_out(c, c->entries[c->n - 1]);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->folder_lock);
    free(c->entries);
    free(c->pages.at);
    free(c->dir);
    model_release(c->model);
    free(c);
}

/* ---- Restoring ------------------------------------------------------------------------------- */

/* Why no more was reused. */
static void explain(const linnet_session *s, size_t n, size_t used, size_t common,
                    const char *source, linnet_reuse *reuse) {
    const linnet_model *m = s->model;
    char *to = reuse->text;
    size_t room = sizeof reuse->text;
    reuse->n_reused = used;
    reuse->n_fed = n - used;
    int at = used == n ? snprintf(to, room, "all %zu tokens reused from %s", n, source)
             : used    ? snprintf(to, room, "%zu of %zu tokens reused from %s", used, n, source)
                       : snprintf(to, room, "0 of %zu tokens reused", n);
    to += at;
    room -= (size_t)at;
    if (used == n) return;
    if (s->mode == LINNET_TERRACE_HF) {
        snprintf(to, room, ": window mode terrace-hf computes a prompt as a whole");
        return;
    }
    if (common == used) {
        snprintf(to, room, used ? "; the rest is new" : ": none held begins like this");
        return;
    }
    if (common == n && used == n - 1) {
        snprintf(to, room, "; the last is fed for its logits");
        return;
    }
    if (common == n)
        at = snprintf(to, room, ": what holds them all goes on");
    else
        at = snprintf(to, room, ": the tokens differ from position %zu on", common);
    to += at;
    room -= (size_t)at;
    const char *mixer = NULL;
    for (int i = 0; i < m->cfg.n_layers && !mixer; i++)
        if (state_layer_bytes(m, i)) mixer = m->layers[i].mixer->name;
    if (mixer)
        snprintf(to, room, ", and a %s state cannot be truncated", mixer);
    else
        snprintf(to, room, ", and what has left the windows is not kept");
}

/* Brings the state of a pinned entry into memory. False: it could not be read. Takes the lock. */
static bool fetch(linnet_cache *c, cache_entry *e) {
    linnet_error err = {0};
    linnet_session *state = folder_load(c, e, &err);
    pthread_mutex_lock(&c->lock);
    bool there = e->state != NULL; /* another thread was faster */
    if (state && !there) there = !cache_hold(c, e, state, NULL);
    if (state && e->state != state) linnet_session_free(state);
    if (!there) {
        if (err.code == LINNET_ERR_FORMAT)
            folder_remove(c, e);
        else
            folder_forget(c, e);
        if (!e->removed) cache_take_out(c, e);
    }
    return there;
}

static linnet_status check(const linnet_cache *c, const linnet_session *s, const char *what,
                           linnet_error *err) {
    if (!s) return fail(err, LINNET_ERR_ARGUMENT, "%s: NULL argument", what);
    if (atomic_load(&s->model->closed))
        return fail(err, LINNET_ERR_ARGUMENT, "%s: the session's model was closed", what);
    if (c && s->model != c->model)
        return fail(err, LINNET_ERR_ARGUMENT, "%s: the session belongs to another model", what);
    return LINNET_OK;
}

/* How many of the tokens the session itself serves. */
static size_t own_serves(const linnet_session *s, const int32_t *tokens, size_t n, size_t *common) {
    *common = 0;
    if (s->lost || s->n_ruled != s->n_tokens) return 0;
    *common = common_tokens(s->tokens, s->n_tokens, tokens, n);
    return cache_serves(s->mode, s->n_tokens, *common, n, s->has_logits,
                        session_can_cut(s, min_size(*common, n - 1)));
}

/* `cache` may be NULL: then there is the session's own past. */
static linnet_status restore(linnet_cache *c, linnet_session *s, const int32_t *tokens, size_t n,
                             linnet_reuse *reuse, linnet_error *err) {
    size_t own_common, common = 0, serves = 0, own = own_serves(s, tokens, n, &own_common);
    const char *source = "the session";
    cache_entry *e = NULL;
    const cache_entry *loaded = NULL;
    linnet_status status = LINNET_OK;
    if (c && own < n) {
        folder_refresh(c);
        pthread_mutex_lock(&c->lock);
        while ((e = cache_search(c, cache_kind(s), tokens, n, &serves, &common)) && serves > own) {
            e->pins++;
            if (e->state) break;
            pthread_mutex_unlock(&c->lock);
            if (fetch(c, e)) loaded = e;
            cache_unpin(c, e);
        }
        if (serves <= own) e = NULL;
        if (e) e->uses++, e->last = ++c->now;
        pthread_mutex_unlock(&c->lock);
    }
    common = max_size(common, own_common);
    if (e) {
        source = e == loaded ? "the folder" : "memory";
        status = session_become(s, e->state, serves, err);
        pthread_mutex_lock(&c->lock);
        cache_unpin(c, e);
        cache_evict(c);
        pthread_mutex_unlock(&c->lock);
    } else if (own && own < s->n_tokens) {
        status = session_become(s, s, own, err);
    } else if (!own) {
        linnet_session_reset(s);
    }
    if (status) return status;
    size_t used = e ? serves : own;
    if (c) {
        pthread_mutex_lock(&c->lock);
        *(used ? &c->stats.hits : &c->stats.misses) += 1;
        pthread_mutex_unlock(&c->lock);
    }
    explain(s, n, used, common, source, reuse);
    return LINNET_OK;
}

linnet_status linnet_cache_restore(linnet_cache *c, linnet_session *s, const int32_t *tokens,
                                   size_t n, linnet_reuse *reuse, linnet_error *err) {
    linnet_reuse unused;
    if (!c || !tokens || !n)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "linnet_cache_restore: expected a cache and at least one token");
    linnet_status status = check(c, s, "linnet_cache_restore", err);
    return status ? status : restore(c, s, tokens, n, reuse ? reuse : &unused, err);
}

/* ---- Keeping --------------------------------------------------------------------------------- */

size_t linnet_cache_next(const linnet_cache *c, size_t held, size_t n, size_t mark) {
    if (!c || held >= n) return 0;
    size_t stop = n, place = (held + NEAR + c->every - 1) / c->every * c->every;
    if (place + NEAR <= n) stop = place;
    if (model_can_cut(c->model)) return stop - held; /* a later snapshot serves for any earlier */
    if (n - held >= LONG_FEED) {
        /* What is asked next may begin like this prompt but for its last words. */
        place = (n - NEAR / 8) / PAGE * PAGE;
        if (mark < n && mark + NEAR > place && mark < place + NEAR) place = mark;
        if (place >= held + NEAR && place < stop) stop = place;
    }
    if (mark >= held + NEAR && mark < stop) stop = mark;
    return stop - held;
}

/* Whether a snapshot of s would tell nothing new; notes the use. */
static bool known(linnet_cache *c, const linnet_session *s) {
    int kind = cache_kind(s);
    cache_entry *e = cache_find(c, kind, s->tokens, s->n_tokens);
    if (e && s->has_logits && !e->has_logits) return false;
    if (e && !e->state && s->has_logits == e->has_logits) return false;
    if (!e) { /* one that goes on from there, and can be cut */
        size_t place = cache_place(c, kind, s->tokens, s->n_tokens);
        e = place < c->n ? c->entries[place] : NULL;
        if (!e || !e->state || e->kind != kind ||
            common_tokens(e->tokens, e->n, s->tokens, s->n_tokens) < s->n_tokens ||
            !cache_can_cut(e, s->n_tokens))
            return false;
    }
    e->last = ++c->now;
    return true;
}

/* Shorter snapshots that the entry, cut, serves for. */
static void drop_redundant(linnet_cache *c, cache_entry *e) {
    for (;;) {
        size_t place = cache_place(c, e->kind, e->tokens, e->n) - 1;
        cache_entry *p = place ? c->entries[place - 1] : NULL;
        if (!p || p->kind != e->kind || !p->state ||
            common_tokens(p->tokens, p->n, e->tokens, e->n) < p->n || !cache_can_cut(e, p->n))
            break;
        e->uses = e->uses > p->uses ? e->uses : p->uses;
        if (p->pins) break;
        if (!p->file_bytes) {
            cache_take_out(c, p);
            continue;
        }
        cache_let_go(c, p); /* until the folder has e */
        break;
    }
}

static linnet_status insert(linnet_cache *c, linnet_session *f, linnet_error *err) {
    int kind = cache_kind(f);
    cache_entry *e = cache_find(c, kind, f->tokens, f->n_tokens);
    linnet_status s = LINNET_OK;
    uint64_t uses = 1, file_bytes = 0;
    if (e && e->state) { /* without logits */
        uses = e->uses;
        file_bytes = e->file_bytes;
        cache_take_out(c, e);
        e = NULL;
    }
    if (!e) {
        e = calloc(1, sizeof *e);
        if (!e) return fail(err, LINNET_ERR_MEMORY, "no memory for a cache entry");
        *e = (cache_entry){.kind = kind,
                           .tokens = f->tokens,
                           .n = f->n_tokens,
                           .can_cut = f->mode == LINNET_SLIDING && model_can_cut(c->model),
                           .uses = uses,
                           .file_bytes = file_bytes,
                           .dirty = c->dir != NULL};
        if ((s = cache_insert(c, e, err))) {
            free(e);
            return s;
        }
    }
    if (e->file_bytes && f->has_logits && !e->has_logits) e->dirty = true;
    if ((s = cache_hold(c, e, f, err))) {
        if (e->tokens != f->tokens) return s;
        f->tokens = NULL;
        cache_take_out(c, e);
        return s;
    }
    e->last = ++c->now;
    drop_redundant(c, e);
    cache_evict(c);
    return LINNET_OK;
}

static linnet_status keep(linnet_cache *c, const linnet_session *s, linnet_error *err) {
    if (!s->n_tokens || s->lost || s->n_ruled != s->n_tokens) return LINNET_OK;
    if (cache_own_bytes(s) + kv_held_bytes(&s->kv) > c->bytes_max) return LINNET_OK;
    pthread_mutex_lock(&c->lock);
    bool there = known(c, s);
    pthread_mutex_unlock(&c->lock);
    if (there) return LINNET_OK;
    linnet_session *f;
    linnet_status status = linnet_session_fork(s, &f, err);
    if (status) return status;
    pthread_mutex_lock(&c->lock);
    there = known(c, f);
    if (!there) status = insert(c, f, err);
    pthread_mutex_unlock(&c->lock);
    if (there || status) linnet_session_free(f);
    return status;
}

linnet_status linnet_cache_keep(linnet_cache *c, const linnet_session *s, linnet_error *err) {
    if (!c) return fail(err, LINNET_ERR_ARGUMENT, "linnet_cache_keep: NULL argument");
    linnet_status status = check(c, s, "linnet_cache_keep", err);
    return status ? status : keep(c, s, err);
}

/* ---- The whole ------------------------------------------------------------------------------- */

/* A snapshot that cannot be taken costs time later, no more. */
static void try_keep(linnet_cache *c, const linnet_session *s) {
    linnet_error ignored;
    if (c) (void)keep(c, s, &ignored);
}

linnet_status linnet_session_sync(linnet_session *s, linnet_cache *c, const int32_t *tokens,
                                  size_t n, size_t mark, linnet_reuse *reuse, linnet_error *err) {
    linnet_reuse unused;
    linnet_status status = check(c, s, "linnet_session_sync", err);
    if (status) return status;
    if (!tokens || !n)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_sync: expected at least one token");
    if (n > (size_t)s->ctx)
        return fail(err, LINNET_ERR_CONTEXT, "%zu tokens do not fit the context of %d", n, s->ctx);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->model->cfg.n_rows)
            return fail(err, LINNET_ERR_ARGUMENT, "token %zu is %d, expected 0 to %d", i, tokens[i],
                        s->model->cfg.n_rows - 1);
    /* What the session is about to forget may be asked for again. */
    if (common_tokens(s->tokens, s->n_tokens, tokens, n) < s->n_tokens) try_keep(c, s);
    if ((status = restore(c, s, tokens, n, reuse ? reuse : &unused, err))) return status;
    for (size_t held = s->n_tokens; held < n; held = s->n_tokens) {
        size_t step = n - held;
        if (c && s->mode != LINNET_TERRACE_HF) step = linnet_cache_next(c, held, n, mark);
        linnet_want want = held + step == n ? LINNET_LOGITS_LAST : LINNET_LOGITS_NONE;
        if ((status = linnet_feed(s, tokens + held, step, want, err))) return status;
        try_keep(c, s);
    }
    return LINNET_OK;
}

linnet_status linnet_cache_flush(linnet_cache *c, linnet_error *err) {
    if (!c) return fail(err, LINNET_ERR_ARGUMENT, "linnet_cache_flush: NULL argument");
    return c->dir ? folder_flush(c, err) : LINNET_OK;
}

void linnet_cache_get_stats(const linnet_cache *cache, linnet_cache_stats *stats) {
    linnet_cache *c = (linnet_cache *)cache; /* its lock changes */
    pthread_mutex_lock(&c->lock);
    *stats = c->stats;
    stats->bytes = c->bytes;
    pthread_mutex_unlock(&c->lock);
}
