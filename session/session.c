/* Sessions: creating, feeding (many at once), what they hold. */
#include "../model.h"
#include "sample.h"

#include <stdlib.h>
#include <string.h>

/* By default the trained length, or no limit where nothing grows with the text. */
static int ctx_of(const linnet_model *m, int wanted) {
    if (wanted) return wanted;
    if (m->cfg.learned_positions) return m->cfg.n_ctx_train;
    for (int l = 0; l < m->cfg.n_layers; l++)
        if (m->layers[l].mixer->uses_kv && !m->layers[l].window) return m->cfg.n_ctx_train;
    return MAX_CTX;
}

linnet_status linnet_session_new(linnet_session **out, linnet_model *m,
                                 const linnet_session_options *options, linnet_error *err) {
    linnet_session_options o = {0};
    if (options) o = *options;
    if (!out || !m) return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_new: NULL argument");
    *out = NULL;
    if (atomic_load(&m->closed))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_session_new: the model was closed");
    if (!m->loaded)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "%s: opened for its metadata only, without weights: no session can run it",
                    gguf_path(m->file));
    if (o.ctx < 0 || o.ctx > MAX_CTX)
        return fail(err, LINNET_ERR_ARGUMENT, "ctx is %d, expected 1 to %d", o.ctx, MAX_CTX);
    if (m->cfg.learned_positions && o.ctx > m->cfg.n_ctx_train)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "ctx is %d, but this model has learned positions for %d tokens only", o.ctx,
                    m->cfg.n_ctx_train);
    if (o.kv < LINNET_KV_F16 || o.kv > LINNET_KV_Q8_0)
        return fail(err, LINNET_ERR_ARGUMENT, "kv is %d, not one of linnet_kv_type", (int)o.kv);
    if (o.window_mode < LINNET_SLIDING || o.window_mode > LINNET_TERRACE_HF)
        return fail(err, LINNET_ERR_ARGUMENT, "window_mode is %d, not one of linnet_window_mode",
                    (int)o.window_mode);
    if (o.window_mode != LINNET_SLIDING && !m->terrace)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "window mode %s is for LoLCATs models trained with terraces (tk): %s is none, "
                    "its windows slide",
                    o.window_mode == LINNET_TERRACE ? "terrace" : "terrace-hf", gguf_path(m->file));
    kv_kind kind = model_kv_kind(m, o.kv);
    for (int i = 0; kind == KV_Q8_0 && i < m->kv_layers; i++)
        if (m->kv_slots[i].head_dim % BLOCK)
            return fail(err, LINNET_ERR_UNSUPPORTED,
                        "kv q8_0 needs heads of a multiple of %d dimensions, this model's have %d",
                        BLOCK, m->kv_slots[i].head_dim);
    linnet_session *s = calloc(1, sizeof *s);
    size_t row = (size_t)m->cfg.n_rows * sizeof(float);
    if (s) s->model = m;
    if (s) atomic_fetch_add(&m->owners, 1);
    if (s) s->logits = m->backend->ops->host_alloc(m->backend, row);
    if (s) s->pending = m->backend->ops->host_alloc(m->backend, row);
    if (!s || !s->logits || !s->pending) {
        linnet_session_free(s);
        return fail(err, LINNET_ERR_MEMORY, "no memory for a session");
    }
    void *state = NULL;
    linnet_status status = LINNET_OK;
    if (m->state_bytes) status = m->backend->ops->alloc(m->backend, m->state_bytes, &state, err);
    if (status) {
        linnet_session_free(s);
        return status;
    }
    s->state = state;
    s->ctx = ctx_of(m, o.ctx);
    s->mode = o.window_mode;
    s->kv.layout = kv_layout_of(kind, m->kv_slots, m->kv_layers);
    s->kv.layout.where = m->backend;
    *out = s;
    return LINNET_OK;
}

void linnet_session_free(linnet_session *s) {
    if (!s) return;
    kv_free(&s->kv);
    backend *b = s->model->backend;
    b->ops->free(b, s->state, s->model->state_bytes);
    free(s->tokens);
    b->ops->host_free(b, s->logits);
    b->ops->host_free(b, s->pending);
    model_release(s->model);
    free(s);
}

void linnet_session_reset(linnet_session *s) {
    kv_truncate(&s->kv, 0);
    backend *b = s->model->backend;
    s->lost = s->state && b->ops->zero(b, s->state, s->model->state_bytes, NULL);
    s->n_tokens = s->n_ruled = 0;
    s->has_logits = false;
}

const int32_t *linnet_session_tokens(const linnet_session *s, size_t *n) {
    if (n) *n = s->n_tokens;
    return s->tokens;
}

int linnet_session_ctx(const linnet_session *s) {
    return s->ctx;
}

uint64_t linnet_session_state_bytes(const linnet_session *s) {
    return kv_held_bytes(&s->kv) + s->model->state_bytes;
}

const float *linnet_session_logits(const linnet_session *s) {
    return s->has_logits ? s->logits : NULL;
}

static linnet_status check_item(const linnet_item *item, const linnet_item *first, size_t i,
                                linnet_error *err) {
    const linnet_session *s = item->session;
    if (!s || !item->tokens || !item->n_tokens)
        return fail(err, LINNET_ERR_ARGUMENT, "item %zu: expected a session and at least one token",
                    i);
    if (atomic_load(&s->model->closed))
        return fail(err, LINNET_ERR_ARGUMENT, "item %zu: the session's model was closed", i);
    if (s->lost)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "item %zu: the session's state was lost to an earlier error: reset it", i);
    if (item->want < LINNET_LOGITS_NONE || item->want > LINNET_LOGITS_ALL)
        return fail(err, LINNET_ERR_ARGUMENT, "item %zu: want is %d, not one of linnet_want", i,
                    (int)item->want);
    if (s->model != first->session->model)
        return fail(err, LINNET_ERR_ARGUMENT, "item %zu: its session belongs to another model", i);
    for (size_t j = 0; j < i; j++)
        if (first[j].session == s)
            return fail(err, LINNET_ERR_ARGUMENT, "items %zu and %zu are the same session", j, i);
    if (item->n_tokens > (size_t)s->ctx - s->n_tokens)
        return fail(err, LINNET_ERR_CONTEXT,
                    "%zu tokens do not fit: the context of %d tokens has room for %zu",
                    item->n_tokens, s->ctx, (size_t)s->ctx - s->n_tokens);
    int n_rows = s->model->cfg.n_rows;
    for (size_t t = 0; t < item->n_tokens; t++)
        if (item->tokens[t] < 0 || item->tokens[t] >= n_rows)
            return fail(err, LINNET_ERR_ARGUMENT, "token %zu is %d, expected 0 to %d", t,
                        item->tokens[t], n_rows - 1);
    return LINNET_OK;
}

/* Room for what the item brings: ids, KV pages, logits (a fork starts without). */
static linnet_status reserve(const linnet_item *item, linnet_error *err) {
    linnet_session *s = item->session;
    size_t need = s->n_tokens + item->n_tokens;
    if (need > s->tokens_cap) {
        size_t cap = max_size(need, s->tokens_cap * 2);
        int32_t *tokens = realloc(s->tokens, cap * sizeof *tokens);
        if (!tokens) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu tokens", cap);
        s->tokens = tokens;
        s->tokens_cap = cap;
    }
    size_t row = (size_t)s->model->cfg.n_rows * sizeof(float);
    backend *b = s->model->backend;
    if (!s->pending && !(s->pending = b->ops->host_alloc(b, row)))
        return fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes of logits", row);
    return kv_reserve(&s->kv, s->n_tokens, need, err);
}

/* Which windows the item's tokens see. */
static void choose_rule(const linnet_item *item) {
    linnet_session *s = item->session;
    bool past_prompt = item->sampled || (s->mode == LINNET_TERRACE_HF && s->n_tokens);
    s->rule = past_prompt ? LINNET_SLIDING : s->mode;
    s->whole = s->rule == LINNET_TERRACE_HF ? (int)item->n_tokens : 0;
}

static void commit(const linnet_item *item) {
    linnet_session *s = item->session;
    memcpy(s->tokens + s->n_tokens, item->tokens, item->n_tokens * sizeof *s->tokens);
    if (s->n_ruled == s->n_tokens && s->rule == s->mode) s->n_ruled += item->n_tokens;
    s->n_tokens += item->n_tokens;
    s->has_logits = item->want != LINNET_LOGITS_NONE;
    float *logits = s->pending;
    s->pending = s->logits;
    s->logits = logits;
    kv_drop_before(&s->kv, (size_t)s->model->cfg.n_sink,
                   model_kv_start(s->model, s->mode, s->n_tokens));
}

/* Pages past the session's tokens hold nothing it needs; a fixed-size state that was changed comes
 * back from its copy. A single step makes no copy: after an error in it the state is lost. */
static void roll_back(const linnet_item *item, const uint8_t *copy, linnet_status status) {
    linnet_session *s = item->session;
    backend *b = s->model->backend;
    kv_truncate(&s->kv, s->n_tokens);
    if (copy)
        s->lost = b->ops->copy(b, s->state, copy, s->model->state_bytes, NULL);
    else if (s->state && (status == LINNET_ERR_NUMERIC || status == LINNET_ERR_CANCELLED ||
                          status == LINNET_ERR_DEVICE))
        s->lost = true;
}

/* Whether a failing forward could leave the item's fixed-size state half changed in a way that its
 * session should not pay for: all but single steps, which may lose it. */
static bool wants_copy(const linnet_item *item, bool stoppable) {
    return item->session->model->state_bytes &&
           (stoppable || item->n_tokens > 1 || item->rows != NULL);
}

/* Copies of those states, one after the other; *out is NULL where no item wants one. */
static linnet_status copy_states(const linnet_item *items, size_t n, bool stoppable, uint8_t **out,
                                 size_t *total, linnet_error *err) {
    backend *b = items->session->model->backend;
    size_t bytes = items->session->model->state_bytes, copies = 0;
    void *memory;
    for (size_t i = 0; i < n; i++)
        copies += wants_copy(&items[i], stoppable);
    *out = NULL;
    if (!copies) return LINNET_OK;
    if (!mul_size(bytes, copies, total))
        return fail(err, LINNET_ERR_MEMORY, "no memory for a copy of %zu states of %zu bytes",
                    copies, bytes);
    linnet_status s = LINNET_OK;
    memory = copies == 1 ? (void *)atomic_exchange(&items->session->model->spare, 0) : NULL;
    if (!memory && (s = b->ops->alloc(b, *total, &memory, err))) return s;
    *out = memory;
    uint8_t *to = memory;
    for (size_t i = 0; i < n && !s; i++) {
        if (!wants_copy(&items[i], stoppable)) continue;
        s = b->ops->copy(b, to, items[i].session->state, bytes, err);
        to += bytes;
    }
    return s;
}

/* The room of a single copy is kept: new memory for every prefill would cost more than copying. */
static void free_copies(linnet_model *m, uint8_t *copies, size_t bytes) {
    uintptr_t none = 0;
    bool kept = copies && bytes == m->state_bytes &&
                atomic_compare_exchange_strong(&m->spare, &none, (uintptr_t)copies);
    if (!kept) m->backend->ops->free(m->backend, copies, bytes);
}

linnet_status linnet_forward(linnet_item *items, size_t n_items, linnet_progress_fn progress,
                             void *user, linnet_error *err) {
    if (!items || !n_items)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_forward: expected at least one item");
    linnet_status s = LINNET_OK;
    uint8_t *copies = NULL;
    size_t copied = 0;
    for (size_t i = 0; i < n_items && !s; i++)
        s = check_item(&items[i], items, i, err);
    if (s) return s;
    linnet_model *m = items->session->model;
    for (size_t i = 0; i < n_items && !s; i++)
        s = reserve(&items[i], err);
    if (!s) s = copy_states(items, n_items, progress != NULL, &copies, &copied, err);
    for (size_t i = 0; i < n_items && !s; i++)
        choose_rule(&items[i]);
    if (!s) {
        team_lock(m->team);
        s = m->backend->ops->forward(m, items, n_items, progress, user, err);
        team_unlock(m->team);
    }
    const uint8_t *copy = copies;
    for (size_t i = 0; i < n_items; i++) {
        bool copied_one = copies && wants_copy(&items[i], progress != NULL);
        if (s)
            roll_back(&items[i], copied_one ? copy : NULL, s);
        else
            commit(&items[i]);
        if (copied_one) copy += m->state_bytes;
    }
    free_copies(m, copies, copied);
    return s;
}

linnet_status linnet_feed(linnet_session *session, const int32_t *tokens, size_t n,
                          linnet_want want, linnet_error *err) {
    linnet_item item = {.session = session, .tokens = tokens, .n_tokens = n, .want = want};
    return linnet_forward(&item, 1, NULL, NULL, err);
}

linnet_status linnet_sample(const linnet_session *session, const linnet_sampling *sampling,
                            int32_t *token, linnet_error *err) {
    if (!session || !sampling || !token)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_sample: NULL argument");
    if (atomic_load(&session->model->closed))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_sample: the session's model was closed");
    if (!session->has_logits)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "the session holds no logits: feed it with LINNET_LOGITS_LAST first");
    const linnet_model *m = session->model;
    size_t n_used = m->tok ? (size_t)tokenizer_n_used(m->tok) : 0;
    return sample_token(sampling, session->logits, (size_t)m->cfg.n_rows, n_used, session->tokens,
                        session->n_tokens, token, err);
}
