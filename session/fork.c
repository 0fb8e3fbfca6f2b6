/* Copies of sessions in memory: forks, and a session that becomes (the beginning of) another. */
#include "fork.h"

#include <stdlib.h>
#include <string.h>

static linnet_status copy_state(const linnet_session *x, uint8_t **out, linnet_error *err) {
    backend *b = x->model->backend;
    size_t bytes = x->model->state_bytes;
    void *memory;
    linnet_status s = b->ops->alloc(b, bytes, &memory, err);
    if (s) return s;
    *out = memory;
    return b->ops->copy(b, memory, x->state, bytes, err);
}

linnet_status linnet_session_fork(const linnet_session *x, linnet_session **out,
                                  linnet_error *err) {
    if (!x || !out) return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_fork: NULL argument");
    *out = NULL;
    linnet_model *m = x->model;
    if (atomic_load(&m->closed))
        return fail(err, LINNET_ERR_ARGUMENT,
                    "linnet_session_fork: the session's model was closed");
    size_t row = (size_t)m->cfg.n_rows * sizeof(float);
    linnet_session *f = malloc(sizeof *f);
    if (!f) return fail(err, LINNET_ERR_MEMORY, "no memory for a session");
    *f = *x;
    f->kv = (kv_cache){.layout = x->kv.layout};
    f->tokens_cap = x->n_tokens;
    f->tokens = x->n_tokens ? malloc(x->n_tokens * sizeof *f->tokens) : NULL;
    f->logits = x->has_logits ? m->backend->ops->host_alloc(m->backend, row) : NULL;
    f->state = NULL;
    f->pending = NULL;
    atomic_fetch_add(&m->owners, 1);
    linnet_status s = LINNET_OK;
    if ((x->n_tokens && !f->tokens) || (x->has_logits && !f->logits))
        s = fail(err, LINNET_ERR_MEMORY, "no memory for a session of %zu tokens", x->n_tokens);
    if (!s) s = kv_fork(&x->kv, &f->kv, err);
    if (!s && x->state) s = copy_state(x, &f->state, err);
    if (s) {
        linnet_session_free(f);
        return s;
    }
    if (f->tokens) memcpy(f->tokens, x->tokens, x->n_tokens * sizeof *f->tokens);
    if (f->logits) memcpy(f->logits, x->logits, row);
    *out = f;
    return LINNET_OK;
}

bool model_can_cut(const linnet_model *m) {
    return !m->state_bytes && model_kv_start(m, LINNET_SLIDING, MAX_CTX) == MAX_CTX;
}

bool session_can_cut(const linnet_session *x, size_t n) {
    if (n == x->n_tokens) return true;
    if (n > x->n_tokens || x->model->state_bytes || x->mode != LINNET_SLIDING) return false;
    const kv_table *windowed = &x->kv.tables[KV_WINDOWED];
    for (size_t i = model_kv_start(x->model, x->mode, n) / PAGE; i * PAGE < n; i++)
        if (windowed->n_pages && !windowed->pages[i]) return false;
    return true;
}

/* s gets room for n tokens of `from`, and for its logits. */
static linnet_status make_room(linnet_session *s, size_t n, bool logits, linnet_error *err) {
    backend *b = s->model->backend;
    size_t row = (size_t)s->model->cfg.n_rows * sizeof(float);
    if (n > s->tokens_cap) {
        int32_t *tokens = realloc(s->tokens, n * sizeof *tokens);
        if (!tokens) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu tokens", n);
        s->tokens = tokens;
        s->tokens_cap = n;
    }
    if (logits && !s->logits && !(s->logits = b->ops->host_alloc(b, row)))
        return fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes of logits", row);
    return LINNET_OK;
}

linnet_status session_become(linnet_session *s, const linnet_session *from, size_t n,
                             linnet_error *err) {
    linnet_model *m = s->model;
    bool logits = n == from->n_tokens && from->has_logits;
    if (s == from) {
        kv_truncate(&s->kv, n);
    } else {
        kv_cache kv = {0};
        linnet_status status = make_room(s, n, logits, err);
        if (!status) status = kv_fork(&from->kv, &kv, err);
        if (!status && s->state) {
            status = m->backend->ops->copy(m->backend, s->state, from->state, m->state_bytes, err);
            if (status) s->lost = true;
        }
        if (status) {
            kv_free(&kv);
            return status;
        }
        kv_truncate(&kv, n);
        kv.layout = s->kv.layout;
        for (int i = 0; i < KV_TABLES; i++) { /* goes on cutting pages from its slabs */
            kv.tables[i].slab = s->kv.tables[i].slab;
            s->kv.tables[i].slab = NULL;
        }
        kv_free(&s->kv);
        s->kv = kv;
        if (n) memcpy(s->tokens, from->tokens, n * sizeof *s->tokens);
        if (logits) memcpy(s->logits, from->logits, (size_t)m->cfg.n_rows * sizeof *s->logits);
    }
    s->n_tokens = s->n_ruled = n;
    s->has_logits = logits;
    s->lost = false;
    return LINNET_OK;
}
