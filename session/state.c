/* State as a value: what a session has to save, and saving it (state_load.c loads). Saving walks
 * the session once, into a buffer or a file. */
#include "state.h"

#include "../weights/atomic.h"
#include "../weights/hash.h"

#include <stdlib.h>
#include <string.h>

/* ---- What a session has to save ------------------------------------------------------------- */

size_t state_layer_bytes(const linnet_model *m, int layer) {
    const layer_weights *w = &m->layers[layer];
    return w->mixer->state_bytes ? w->mixer->state_bytes(m, w->mixer_weights) : 0;
}

state_layer state_describe_layer(const linnet_model *m, int layer) {
    const layer_weights *w = &m->layers[layer];
    state_layer d = {.window = (uint32_t)w->window,
                     .keeps_kv = w->kv_slot >= 0,
                     .state_bytes = state_layer_bytes(m, layer)};
    snprintf(d.mixer, sizeof d.mixer, "%s", w->mixer->name);
    return d;
}

size_t state_pages(const linnet_model *m, size_t n_tokens) {
    return m->kv_layers ? round_up(n_tokens, PAGE) / PAGE : 0;
}

bool state_holds(const kv_table *t, size_t page) {
    return page < t->n_pages && t->pages[page];
}

uint8_t state_has(const linnet_session *x, size_t page) {
    bool all = state_holds(&x->kv.tables[KV_ALL], page);
    bool windowed = state_holds(&x->kv.tables[KV_WINDOWED], page);
    if (all && !windowed && x->kv.layout.page_bytes[KV_WINDOWED]) return PAGE_ALL;
    return all || windowed ? PAGE_WHOLE : PAGE_NONE;
}

bool state_page_has(uint8_t has, kv_table_id table) {
    return has == PAGE_WHOLE || (has == PAGE_ALL && table == KV_ALL);
}

/* Positions of a page that hold tokens. */
size_t state_filled(size_t page, size_t n_tokens) {
    return min_size(PAGE, n_tokens - page * PAGE);
}

/* The most that a head takes of a position. */
size_t state_most_packed(const kv_layout *l) {
    size_t most = 0;
    for (int i = 0; i < l->layers; i++)
        most = max_size(most, kv_packed_bytes(l, i));
    return most;
}

/* Bytes of what a state has of a page's tokens. */
uint64_t state_page_bytes(const kv_layout *l, uint8_t has, size_t page, size_t n_tokens) {
    uint64_t bytes = 0; /* of a position */
    for (int i = 0; i < l->layers; i++)
        if (state_page_has(has, l->slots[i].table))
            bytes += kv_packed_bytes(l, i) * (uint64_t)l->slots[i].heads;
    return state_filled(page, n_tokens) * bytes;
}

/* Everything but the pages. */
uint64_t state_fixed_bytes(const linnet_model *m, size_t n_tokens, bool has_logits) {
    uint64_t bytes = sizeof(state_head) + sizeof(state_layer) * (uint64_t)m->cfg.n_layers +
                     4 * (uint64_t)n_tokens + state_pages(m, n_tokens) + sizeof(uint64_t);
    if (has_logits) bytes += 4 * (uint64_t)m->cfg.n_rows;
    for (int i = 0; i < m->cfg.n_layers; i++)
        bytes += state_layer_bytes(m, i);
    return bytes;
}

uint64_t linnet_session_size(const linnet_session *s) {
    if (!s) return 0;
    uint64_t bytes = state_fixed_bytes(s->model, s->n_tokens, s->has_logits);
    for (size_t i = 0; i < state_pages(s->model, s->n_tokens); i++)
        bytes += state_page_bytes(&s->kv.layout, state_has(s, i), i, s->n_tokens);
    return bytes;
}

/* ---- Saving --------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *at;       /* where the next byte goes, or */
    atomic_file *file; /* the file it goes to */
    hash64 hash;
    linnet_error *err;
} sink;

static linnet_status put(sink *to, const void *data, size_t n) {
    hash64_add(&to->hash, data, n);
    if (to->file) return atomic_write(to->file, data, n, to->err);
    memcpy(to->at, data, n);
    to->at += n;
    return LINNET_OK;
}

static linnet_status put_layers(sink *to, const linnet_model *m) {
    linnet_status s = LINNET_OK;
    for (int i = 0; i < m->cfg.n_layers && !s; i++) {
        state_layer d = state_describe_layer(m, i);
        s = put(to, &d, sizeof d);
    }
    return s;
}

/* Bytes of the backend's memory where the host can read them: themselves, or a copy in `buffer`,
 * which is NULL on the CPU. */
static linnet_status view(backend *where, const uint8_t *memory, size_t n, uint8_t *buffer,
                          const uint8_t **out, linnet_error *err) {
    *out = where->ops->host_memory ? memory : buffer;
    return where->ops->host_memory ? LINNET_OK : where->ops->read(where, buffer, memory, n, err);
}

static linnet_status put_page(sink *to, const linnet_session *x, size_t page, uint8_t *buffer,
                              uint8_t *packed) {
    const kv_layout *l = &x->kv.layout;
    const uint8_t *data[KV_TABLES] = {NULL};
    size_t n = state_filled(page, x->n_tokens);
    linnet_status s = LINNET_OK;
    for (int i = 0; i < KV_TABLES && !s; i++) {
        size_t bytes = l->page_bytes[i];
        if (!state_holds(&x->kv.tables[i], page)) continue;
        s = view(l->where, x->kv.tables[i].pages[page]->data, bytes, buffer, &data[i], to->err);
        if (buffer) buffer += bytes;
    }
    for (int layer = 0; layer < l->layers; layer++) {
        const kv_slot *slot = &l->slots[layer];
        for (int head = 0; data[slot->table] && head < slot->heads && !s; head++) {
            kv_pack(l, data[slot->table], layer, head, n, packed);
            s = put(to, packed, n * kv_packed_bytes(l, layer));
        }
    }
    return s;
}

static linnet_status put_pages(sink *to, const linnet_session *x, uint8_t *buffer) {
    size_t n_pages = state_pages(x->model, x->n_tokens);
    linnet_status s = LINNET_OK;
    uint8_t *packed = n_pages ? malloc(state_most_packed(&x->kv.layout) * PAGE) : NULL;
    if (n_pages && !packed)
        return fail(to->err, LINNET_ERR_MEMORY, "no memory for a page of the state");
    for (size_t i = 0; i < n_pages && !s; i++)
        s = put_page(to, x, i, buffer, packed);
    free(packed);
    return s;
}

linnet_status state_transfer_buffer(const linnet_session *x, uint8_t **out, linnet_error *err) {
    const kv_layout *l = &x->kv.layout;
    size_t pages = l->page_bytes[KV_ALL] + l->page_bytes[KV_WINDOWED];
    size_t bytes = max_size(pages, x->model->state_bytes);
    *out = NULL;
    if (x->model->backend->ops->host_memory || !bytes || (*out = malloc(bytes))) return LINNET_OK;
    return fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes of the state", bytes);
}

/* The fixed-size state of all layers, then the pages. */
static linnet_status put_state(sink *to, const linnet_session *x) {
    const linnet_model *m = x->model;
    const uint8_t *state = NULL;
    uint8_t *buffer;
    linnet_status s = state_transfer_buffer(x, &buffer, to->err);
    if (!s && x->state) s = view(m->backend, x->state, m->state_bytes, buffer, &state, to->err);
    for (int i = 0; i < m->cfg.n_layers && !s; i++) {
        size_t n = state_layer_bytes(m, i);
        if (n) s = put(to, state + m->layers[i].state_at, n);
    }
    if (!s) s = put_pages(to, x, buffer);
    free(buffer);
    return s;
}

static linnet_status put_session(sink *to, const linnet_session *x, const uint64_t identity[2]) {
    const linnet_model *m = x->model;
    const kv_layout *l = &x->kv.layout;
    state_head head = {.version = STATE_VERSION,
                       .flags = x->has_logits ? HAS_LOGITS : 0,
                       .bytes = linnet_session_size(x),
                       .identity = {identity[0], identity[1]},
                       .n_layers = (uint32_t)m->cfg.n_layers,
                       .n_rows = (uint32_t)m->cfg.n_rows,
                       .kv_kind = (uint32_t)l->kind,
                       .activations = (uint32_t)m->act,
                       .kv_heads = (uint32_t)m->cfg.n_kv_heads,
                       .head_dim = (uint32_t)m->cfg.head_dim,
                       .window_mode = (uint32_t)x->mode,
                       .n_tokens = x->n_tokens,
                       .n_pages = state_pages(m, x->n_tokens)};
    memcpy(head.magic, STATE_MAGIC, sizeof head.magic);
    hash64_begin(&to->hash);
    linnet_status s;
    if ((s = put(to, &head, sizeof head)) || (s = put_layers(to, m))) return s;
    if (x->n_tokens && (s = put(to, x->tokens, x->n_tokens * sizeof *x->tokens))) return s;
    for (size_t i = 0; i < head.n_pages; i++) {
        uint8_t has = state_has(x, i);
        if ((s = put(to, &has, 1))) return s;
    }
    if (x->has_logits && (s = put(to, x->logits, (size_t)m->cfg.n_rows * sizeof(float)))) return s;
    if ((s = put_state(to, x))) return s;
    uint64_t sum = hash64_end(&to->hash);
    return put(to, &sum, sizeof sum);
}

/* Whether the session can be saved, and the identity of its model. */
static linnet_status may_save(const linnet_session *x, uint64_t identity[2], linnet_error *err) {
    if (atomic_load(&x->model->closed))
        return fail(err, LINNET_ERR_ARGUMENT, "nothing to save: the session's model was closed");
    if (x->lost)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "nothing to save: the session's state was lost to an earlier error: reset it");
    return model_identity(x->model, identity, err);
}

linnet_status linnet_session_save(const linnet_session *x, void *bytes, size_t size,
                                  linnet_error *err) {
    uint64_t identity[2];
    if (!x || !bytes) return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_save: NULL argument");
    if (size != linnet_session_size(x))
        return fail(err, LINNET_ERR_ARGUMENT, "the state takes %llu bytes, the buffer has %zu",
                    (unsigned long long)linnet_session_size(x), size);
    linnet_status s = may_save(x, identity, err);
    sink to = {.at = bytes, .err = err};
    return s ? s : put_session(&to, x, identity);
}

linnet_status linnet_session_save_file(const linnet_session *x, const char *path,
                                       linnet_error *err) {
    uint64_t identity[2];
    atomic_file file;
    if (!x || !path)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_save_file: NULL argument");
    linnet_status s = may_save(x, identity, err);
    if (s) return s;
    sink to = {.file = &file, .err = err};
    s = atomic_open(&file, path, 0600, err);
    if (!s) s = put_session(&to, x, identity);
    if (!s) s = atomic_finish(&file, err);
    atomic_free(&file);
    return s;
}
