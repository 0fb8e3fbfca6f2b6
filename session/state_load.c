/* Loading saved states.
 *
 * All bytes are hashed, then a second session is built from them and the two are exchanged when
 * nothing is left that could fail: a refused state leaves the session as it was. */
#include "state.h"

#include "../weights/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const kv_names[] = {"f16", "f32", "q8_0"};
static const char *const mode_names[] = {"sliding", "terrace", "terrace-hf"};

typedef struct {
    const char *name;     /* for messages */
    const uint8_t *bytes; /* in memory, or NULL and */
    int fd;               /* a file */
    uint64_t size, at;
    hash64 hash;
    linnet_error *err;
} source;

static linnet_status get(source *from, void *out, size_t n) {
    if (n > from->size - from->at)
        return fail(from->err, LINNET_ERR_FORMAT, "%s: truncated: it ends after %llu bytes",
                    from->name, (unsigned long long)from->size);
    if (from->bytes) {
        memcpy(out, from->bytes + from->at, n);
        from->at += n;
    } else {
        for (size_t done = 0; done < n;) {
            ssize_t got = pread(from->fd, (uint8_t *)out + done, min_size(n - done, 1 << 30),
                                (off_t)from->at);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0)
                return fail(from->err, LINNET_ERR_IO, "cannot read %s: %s", from->name,
                            got ? strerror(errno) : "it became shorter");
            done += (size_t)got;
            from->at += (uint64_t)got;
        }
    }
    if (!from->bytes) hash64_add(&from->hash, out, n); /* it may change while it is read */
    return LINNET_OK;
}

static linnet_status not_fitting(const source *from, const char *thing, unsigned long long found,
                                 unsigned long long expected) {
    return fail(from->err, LINNET_ERR_ARGUMENT,
                "%s: saved by another model: it has %llu %s, this one has %llu", from->name, found,
                thing, expected);
}

/* All but the checksum at the end, hashed; then back to the start. */
static linnet_status check_sum(source *from) {
    uint8_t piece[16384];
    uint64_t sum = 0, end = from->size - sizeof sum;
    linnet_status s = LINNET_OK;
    hash64_begin(&from->hash);
    if (from->bytes) {
        hash64_add(&from->hash, from->bytes, (size_t)end);
        from->at = end;
    } else {
        from->at = 0;
    }
    while (from->at < end && !s)
        s = get(from, piece,
                end - from->at < sizeof piece ? (size_t)(end - from->at) : sizeof piece);
    uint64_t found = hash64_end(&from->hash);
    if (!s) s = get(from, &sum, sizeof sum);
    if (!s && sum != found)
        s = fail(from->err, LINNET_ERR_FORMAT,
                 "%s: damaged: its checksum is %016llx, expected %016llx", from->name,
                 (unsigned long long)found, (unsigned long long)sum);
    from->at = 0;
    hash64_begin(&from->hash);
    return s;
}

/* The first look: a state, of this version, whole. */
static linnet_status check_outside(source *from, state_head *head) {
    linnet_status s;
    const size_t start = offsetof(state_head, identity);
    from->at = 0;
    if (from->size < sizeof *head + sizeof(uint64_t)) {
        uint8_t bytes[sizeof head->magic] = {0};
        size_t n = min_size(from->size, sizeof bytes);
        if ((s = get(from, bytes, n))) return s;
        if (n && !memcmp(bytes, STATE_MAGIC, n))
            return fail(from->err, LINNET_ERR_FORMAT,
                        "%s: truncated: %llu bytes, a state has at least %zu", from->name,
                        (unsigned long long)from->size, sizeof *head + sizeof(uint64_t));
        return fail(from->err, LINNET_ERR_FORMAT, "%s: %s", from->name,
                    from->size ? "not a saved state" : "not a saved state: it is empty");
    }
    if ((s = get(from, head, start))) return s;
    if (memcmp(head->magic, STATE_MAGIC, sizeof head->magic))
        return fail(from->err, LINNET_ERR_FORMAT, "%s: not a saved state", from->name);
    if (head->version != STATE_VERSION)
        return fail(from->err, LINNET_ERR_UNSUPPORTED,
                    "%s: a state of version %u, this program reads version %d", from->name,
                    head->version, STATE_VERSION);
    if (head->bytes != from->size)
        return fail(from->err, LINNET_ERR_FORMAT,
                    from->size < head->bytes ? "%s: truncated: %llu of %llu bytes"
                                             : "%s: damaged: %llu bytes, expected %llu",
                    from->name, (unsigned long long)from->size, (unsigned long long)head->bytes);
    if ((s = check_sum(from))) return s;
    return get(from, head, sizeof *head);
}

/* Same model, same kinds and sizes in every layer. */
static linnet_status check_model(source *from, const state_head *head, const linnet_session *x) {
    linnet_model *m = x->model;
    uint64_t identity[2];
    linnet_status s;
    if (head->n_layers != (uint32_t)m->cfg.n_layers)
        return not_fitting(from, "layers", head->n_layers, (unsigned)m->cfg.n_layers);
    for (int i = 0; i < m->cfg.n_layers; i++) {
        state_layer d, own = state_describe_layer(m, i);
        if ((s = get(from, &d, sizeof d))) return s;
        if (memcmp(&d, &own, sizeof d))
            return fail(from->err, LINNET_ERR_ARGUMENT,
                        "%s: saved by another model: layer %d is %.*s with a window of %u and "
                        "%llu bytes of state, expected %s, %u and %llu",
                        from->name, i, NAME_BYTES, d.mixer, d.window,
                        (unsigned long long)d.state_bytes, own.mixer, own.window,
                        (unsigned long long)own.state_bytes);
    }
    const struct {
        const char *thing;
        uint32_t found;
        int own;
    } sizes[] = {{"rows of logits", head->n_rows, m->cfg.n_rows},
                 {"KV heads", head->kv_heads, m->cfg.n_kv_heads},
                 {"dimensions a head", head->head_dim, m->cfg.head_dim}};
    for (int i = 0; i < 3; i++)
        if (sizes[i].found != (uint32_t)sizes[i].own)
            return not_fitting(from, sizes[i].thing, sizes[i].found, (unsigned)sizes[i].own);
    if ((s = model_identity(m, identity, from->err))) return s;
    if (memcmp(identity, head->identity, sizeof identity))
        return fail(
            from->err, LINNET_ERR_ARGUMENT,
            "%s: saved by another model: its %s is %016llx, that of %s is %016llx", from->name,
            identity[0] != head->identity[0] ? "configuration" : "weights' fingerprint",
            (unsigned long long)head->identity[identity[0] == head->identity[0]],
            gguf_path(m->file), (unsigned long long)identity[identity[0] == head->identity[0]]);
    return LINNET_OK;
}

/* What the session was opened with. */
static linnet_status check_session(const source *from, const state_head *head,
                                   const linnet_session *x) {
    kv_kind kind = x->kv.layout.kind;
    if (head->kv_kind > KV_Q8_0 || head->activations > LINNET_ACT_Q8 ||
        head->window_mode > LINNET_TERRACE_HF || head->reserved ||
        (head->flags & ~(uint32_t)HAS_LOGITS) || (head->flags && !head->n_tokens))
        return fail(from->err, LINNET_ERR_FORMAT, "%s: damaged: a kind that does not exist",
                    from->name);
    if (head->kv_kind != (uint32_t)kind && x->model->kv_layers)
        return fail(from->err, LINNET_ERR_ARGUMENT,
                    "%s: keeps keys and values as %s, the session as %s (kv, activations)",
                    from->name, kv_names[head->kv_kind], kv_names[kind]);
    if (head->window_mode != (uint32_t)x->mode)
        return fail(from->err, LINNET_ERR_ARGUMENT,
                    "%s: saved with window mode %s, the session has %s", from->name,
                    mode_names[head->window_mode], mode_names[x->mode]);
    if (head->n_tokens > (uint64_t)x->ctx)
        return fail(from->err, LINNET_ERR_CONTEXT,
                    "%s: holds %llu tokens, more than the context of %d", from->name,
                    (unsigned long long)head->n_tokens, x->ctx);
    if (head->n_pages != state_pages(x->model, (size_t)head->n_tokens))
        return fail(from->err, LINNET_ERR_FORMAT, "%s: damaged: %llu KV pages for %llu tokens",
                    from->name, (unsigned long long)head->n_pages,
                    (unsigned long long)head->n_tokens);
    uint64_t least =
        state_fixed_bytes(x->model, (size_t)head->n_tokens, head->flags & HAS_LOGITS); /* before any
                                                                                     allocation */
    if (from->size < least)
        return fail(from->err, LINNET_ERR_FORMAT, "%s: damaged: %llu bytes, expected at least %llu",
                    from->name, (unsigned long long)from->size, (unsigned long long)least);
    return LINNET_OK;
}

static linnet_status get_tokens(source *from, linnet_session *fresh) {
    size_t n = fresh->n_tokens;
    linnet_status s = LINNET_OK;
    if (!n) return s;
    if (!(fresh->tokens = malloc(n * sizeof *fresh->tokens)))
        return fail(from->err, LINNET_ERR_MEMORY, "%s: no memory for %zu tokens", from->name, n);
    fresh->tokens_cap = n;
    s = get(from, fresh->tokens, n * sizeof *fresh->tokens);
    int n_rows = fresh->model->cfg.n_rows;
    for (size_t i = 0; i < n && !s; i++)
        if (fresh->tokens[i] < 0 || fresh->tokens[i] >= n_rows)
            s = fail(from->err, LINNET_ERR_FORMAT, "%s: token %zu is %d, expected 0 to %d",
                     from->name, i, fresh->tokens[i], n_rows - 1);
    return s;
}

/* What the next token looks at of a page. */
static uint8_t least_of_page(const linnet_session *x, size_t page) {
    size_t in_windows = model_kv_start(x->model, x->mode, x->n_tokens) / PAGE;
    bool pinned = page * PAGE < (size_t)x->model->cfg.n_sink;
    if (!x->kv.layout.page_bytes[KV_WINDOWED] || pinned || page >= in_windows) return PAGE_WHOLE;
    return x->kv.layout.page_bytes[KV_ALL] ? PAGE_ALL : PAGE_NONE;
}

/* Which pages are there: at least what the next token looks at. The sizes then add up to the
 * file's; only now are pages allocated. */
static linnet_status get_page_list(source *from, linnet_session *fresh, bool has_logits,
                                   size_t n_pages) {
    size_t n = fresh->n_tokens;
    uint64_t bytes = state_fixed_bytes(fresh->model, n, has_logits);
    uint8_t *has = malloc(n_pages);
    if (!has) return fail(from->err, LINNET_ERR_MEMORY, "%s: no memory to read it", from->name);
    linnet_status s = get(from, has, n_pages);
    for (size_t i = 0; i < n_pages && !s; i++) {
        if (has[i] != PAGE_WHOLE && has[i] != least_of_page(fresh, i))
            s = fail(from->err, LINNET_ERR_FORMAT, "%s: damaged: KV page %zu is %s", from->name, i,
                     has[i] < PAGE_HAVES ? "missing" : "neither there nor dropped");
        bytes += state_page_bytes(&fresh->kv.layout, has[i], i, n);
    }
    if (!s && bytes != from->size)
        s = fail(from->err, LINNET_ERR_FORMAT, "%s: damaged: %llu bytes, expected %llu", from->name,
                 (unsigned long long)from->size, (unsigned long long)bytes);
    for (size_t i = 0; i < n_pages * KV_TABLES && !s; i++) {
        size_t page = i / KV_TABLES;
        kv_table_id table = (kv_table_id)(i % KV_TABLES);
        if (state_page_has(has[page], table))
            s = kv_reserve_in(&fresh->kv, table, page * PAGE, (page + 1) * PAGE, from->err);
    }
    free(has);
    return s;
}

static linnet_status get_page(source *from, linnet_session *fresh, size_t page, uint8_t *buffer,
                              uint8_t *packed) {
    const kv_layout *l = &fresh->kv.layout;
    size_t n = state_filled(page, fresh->n_tokens);
    uint8_t *data[KV_TABLES] = {NULL};
    linnet_status s = LINNET_OK;
    for (int i = 0; i < KV_TABLES; i++) {
        if (!state_holds(&fresh->kv.tables[i], page)) continue;
        data[i] = buffer ? buffer : fresh->kv.tables[i].pages[page]->data;
        if (!buffer) continue;
        memset(buffer, 0, l->page_bytes[i]);
        buffer += l->page_bytes[i];
    }
    for (int layer = 0; layer < l->layers; layer++) {
        const kv_slot *slot = &l->slots[layer];
        for (int head = 0; data[slot->table] && head < slot->heads && !s; head++)
            if (!(s = get(from, packed, n * kv_packed_bytes(l, layer))))
                kv_unpack(l, data[slot->table], layer, head, n, packed);
    }
    for (int i = 0; i < KV_TABLES && !s && buffer; i++)
        if (data[i])
            s = l->where->ops->write(l->where, fresh->kv.tables[i].pages[page]->data, data[i],
                                     l->page_bytes[i], from->err);
    return s;
}

static linnet_status get_pages(source *from, linnet_session *fresh, uint8_t *buffer) {
    size_t n_pages = state_pages(fresh->model, fresh->n_tokens);
    linnet_status s = LINNET_OK;
    uint8_t *packed = malloc(state_most_packed(&fresh->kv.layout) * PAGE);
    if (!packed) return fail(from->err, LINNET_ERR_MEMORY, "%s: no memory to read it", from->name);
    for (size_t i = 0; i < n_pages && !s; i++)
        s = get_page(from, fresh, i, buffer, packed);
    free(packed);
    return s;
}

/* The fixed-size state of all layers, in the order of layers. */
static linnet_status get_layers(source *from, linnet_session *fresh, uint8_t *buffer) {
    const linnet_model *m = fresh->model;
    uint8_t *state = buffer ? buffer : fresh->state;
    size_t first = model_kv_start(m, fresh->mode, fresh->n_tokens);
    linnet_status s;
    if (buffer) memset(buffer, 0, m->state_bytes);
    for (int i = 0; i < m->cfg.n_layers; i++) {
        const layer_weights *w = &m->layers[i];
        if ((s = get(from, state + w->state_at, state_layer_bytes(m, i)))) return s;
        if (w->mixer->state_fits &&
            !w->mixer->state_fits(m, i, state + w->state_at, first, fresh->n_tokens))
            return fail(from->err, LINNET_ERR_FORMAT,
                        "%s: damaged: the state of layer %d (%s) does not belong to %zu tokens",
                        from->name, i, w->mixer->name, fresh->n_tokens);
    }
    if (!buffer) return LINNET_OK;
    return m->backend->ops->write(m->backend, fresh->state, buffer, m->state_bytes, from->err);
}

static linnet_status get_state(source *from, linnet_session *fresh) {
    backend *where = fresh->model->backend;
    uint8_t *buffer;
    void *memory;
    linnet_status s = state_transfer_buffer(fresh, &buffer, from->err);
    if (!s && fresh->model->state_bytes &&
        !(s = where->ops->alloc(where, fresh->model->state_bytes, &memory, from->err))) {
        fresh->state = memory;
        s = get_layers(from, fresh, buffer);
    }
    if (!s && fresh->model->kv_layers) s = get_pages(from, fresh, buffer);
    free(buffer);
    return s;
}

/* The rest of the bytes, into a session that has nothing yet. */
static linnet_status get_session(source *from, const state_head *head, linnet_session *fresh) {
    const linnet_model *m = fresh->model;
    linnet_status s;
    fresh->n_tokens = (size_t)head->n_tokens;
    fresh->has_logits = head->flags & HAS_LOGITS;
    /* What was computed with other activations may go on, but is no cache's. */
    bool ours = fresh->mode == LINNET_SLIDING && head->activations == (uint32_t)m->act;
    fresh->n_ruled = ours ? fresh->n_tokens : 0;
    if ((s = get_tokens(from, fresh)) ||
        (head->n_pages &&
         (s = get_page_list(from, fresh, fresh->has_logits, (size_t)head->n_pages))))
        return s;
    size_t row = (size_t)m->cfg.n_rows * sizeof(float);
    if (fresh->has_logits) {
        if (!(fresh->logits = m->backend->ops->host_alloc(m->backend, row)))
            return fail(from->err, LINNET_ERR_MEMORY, "%s: no memory for %zu bytes of logits",
                        from->name, row);
        if ((s = get(from, fresh->logits, row))) return s;
    }
    if ((s = get_state(from, fresh))) return s;
    uint64_t end = hash64_end(&from->hash), sum = 0;
    if ((s = get(from, &sum, sizeof sum))) return s;
    if (from->at != from->size)
        return fail(from->err, LINNET_ERR_FORMAT, "%s: damaged: %llu bytes follow its end",
                    from->name, (unsigned long long)(from->size - from->at));
    if (!from->bytes && sum != end) /* the file changed since it was hashed */
        return fail(from->err, LINNET_ERR_IO, "%s: changed while it was read", from->name);
    return LINNET_OK;
}

static linnet_status load(source *from, linnet_session *x) {
    state_head head;
    linnet_status s;
    if (atomic_load(&x->model->closed))
        return fail(from->err, LINNET_ERR_ARGUMENT, "%s: the session's model was closed",
                    from->name);
    if ((s = check_outside(from, &head)) || (s = check_model(from, &head, x)) ||
        (s = check_session(from, &head, x)))
        return s;
    linnet_session fresh = *x;
    fresh.kv = (kv_cache){.layout = x->kv.layout};
    fresh.tokens = NULL;
    fresh.n_tokens = fresh.tokens_cap = 0;
    fresh.state = NULL;
    fresh.logits = NULL;
    fresh.lost = false;
    if ((s = get_session(from, &head, &fresh))) {
        fresh.pending = NULL;
    } else { /* exchange: what is freed below are the old parts */
        linnet_session old = *x;
        *x = fresh;
        fresh = old;
        fresh.pending = NULL; /* stays */
    }
    kv_free(&fresh.kv);
    free(fresh.tokens);
    backend *b = x->model->backend;
    b->ops->free(b, fresh.state, x->model->state_bytes);
    b->ops->host_free(b, fresh.logits);
    return s;
}

linnet_status linnet_session_load(linnet_session *x, const void *bytes, size_t size,
                                  linnet_error *err) {
    if (!x || !bytes) return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_load: NULL argument");
    source from = {.name = "the state", .bytes = bytes, .fd = -1, .size = size, .err = err};
    return load(&from, x);
}

/* A regular file, with its size. Only `follow` goes through a link. */
static linnet_status open_source(source *from, const char *path, bool follow, struct stat *st) {
    from->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (follow ? 0 : O_NOFOLLOW));
    if (from->fd < 0) /* O_NONBLOCK: a pipe must not block */
        return fail(from->err, LINNET_ERR_IO, "cannot open %s: %s", from->name, strerror(errno));
    if (!fstat(from->fd, st) && S_ISREG(st->st_mode)) {
        from->size = (uint64_t)st->st_size;
        return LINNET_OK;
    }
    return fail(from->err, LINNET_ERR_IO, "cannot read %s: it is %s", from->name,
                S_ISDIR(st->st_mode) ? "a folder" : "not a regular file");
}

linnet_status linnet_session_load_file(linnet_session *x, const char *path, linnet_error *err) {
    if (!x || !path)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_load_file: NULL argument");
    source from = {.name = gguf_short_path(path), .err = err};
    struct stat st = {0};
    linnet_status s = open_source(&from, path, true, &st);
    if (!s) s = load(&from, x);
    if (from.fd >= 0) close(from.fd);
    return s;
}

/* ---- A first look at a file ----------------------------------------------------------------- */

static linnet_status peek(source *from, linnet_model *m, state_summary *out) {
    state_head head;
    uint64_t identity[2];
    linnet_status s;
    if (from->size < sizeof head)
        return fail(from->err, LINNET_ERR_FORMAT, "%s: not a saved state", from->name);
    if ((s = model_identity(m, identity, from->err)) || (s = get(from, &head, sizeof head)))
        return s;
    uint64_t layers = sizeof(state_layer) * (uint64_t)m->cfg.n_layers;
    if (memcmp(head.magic, STATE_MAGIC, sizeof head.magic) || head.version != STATE_VERSION ||
        head.bytes != from->size || memcmp(identity, head.identity, sizeof identity) ||
        head.n_layers != (uint32_t)m->cfg.n_layers || head.kv_kind > KV_Q8_0 ||
        head.window_mode > LINNET_TERRACE_HF || head.activations > LINNET_ACT_Q8 ||
        !head.n_tokens || head.n_tokens > MAX_CTX || from->size < sizeof head + layers ||
        head.n_tokens * sizeof *out->tokens > from->size - sizeof head - layers)
        return fail(from->err, LINNET_ERR_FORMAT, "%s: no state of this model", from->name);
    *out = (state_summary){.bytes = from->size,
                           .kind = (kv_kind)head.kv_kind,
                           .mode = (linnet_window_mode)head.window_mode,
                           .act = (linnet_activations)head.activations,
                           .has_logits = head.flags & HAS_LOGITS,
                           .n_tokens = (size_t)head.n_tokens};
    from->at += layers;
    if (!(out->tokens = malloc(out->n_tokens * sizeof *out->tokens)))
        return fail(from->err, LINNET_ERR_MEMORY, "no memory for %zu tokens", out->n_tokens);
    if ((s = get(from, out->tokens, out->n_tokens * sizeof *out->tokens))) free(out->tokens);
    return s;
}

linnet_status state_peek(linnet_model *m, const char *path, state_summary *out, linnet_error *err) {
    source from = {.name = gguf_short_path(path), .err = err};
    struct stat st = {0};
    linnet_status s = open_source(&from, path, false, &st);
    hash64_begin(&from.hash);
    if (!s) s = peek(&from, m, out);
    if (from.fd >= 0) close(from.fd);
    return s;
}
