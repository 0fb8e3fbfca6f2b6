/* LoLCATs attention: softmax over a window, linear attention with learned feature maps over what
 * left it (Zhang et al. 2024, "LoLCATs"; HazyResearch/lolcats); and the same without a window:
 * Hedgehog (Zhang et al. 2024) and T2R (Kasai et al. 2021).
 *
 * Query i of head h, S the positions in its window or among the sinks, N the earlier rest:
 *
 *   c   = max over S of s_j,  s_j = q_i.k_j / sqrt(d)
 *   num = sum_S gamma exp(s_j - c) v_j + lambda sum_N (phi_q(q_i).phi_k(k_j)) v_j
 *   den = sum_S gamma exp(s_j - c)     + lambda sum_N (phi_q(q_i).phi_k(k_j))
 *   y_i = num / den
 *
 * c is the maximum of the window alone and does not scale the linear part: the two are not parts of
 * one kernel. Without a window y_i = sum (phi.phi) v / (sum phi.phi + 1e-12) over j <= i. Upstream
 * adds that 1e-12 in prefill only; here it is there always, so that decoding equals it.
 *
 * With a trained length L (linnet.lolcats.trained_length; not upstream's) the linear part beyond it
 * is held as it is there: maps see queries rotated to position L - 1 and keys to L/2 - 1 at most,
 * and n keys in N count as L of them: lambda is lambda L / max(n, L). Maps learn positions
 * themselves, not their differences, and a sum grows with its keys; where both stay in what was
 * trained, so does y.
 *
 * Feature maps see rotated, unscaled vectors. There is one per query head, on keys repeated for the
 * heads of their group, so the linear state is per query head, but the window's keys and values are
 * per KV head, in the session's pages:
 *
 *   S [heads][features][head_dim]   sum of phi_k(k_j) v_j^T     z [heads][features]   of phi_k(k_j)
 *   folded [heads]                  positions before it are in S and z, or sinks
 *
 * A key goes from its page into S and z when it has left every later window. Rows of a session are
 * taken in order, one head by one thread, so that prefill does what decoding does, bit for bit. */
#include "../kernels_cpu/exp.h"
#include "../kernels_cpu/pass.h"
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const feature_map_names[] = {"softmax_dim", "exp_dim", "pos_elu", "relu"};

/* ---- Loading ------------------------------------------------------------------------------------
 */

static linnet_status read_options(const loader *l, int layer, lolcats_weights *w,
                                  linnet_error *err) {
    const gguf *g = l->model->file;
    const char *map_key = "linnet.lolcats.feature_map";
    gguf_str name;
    int64_t width = 0, rank = 0;
    double eps = 1e-12;
    bool terrace = false;
    linnet_status s;
    w->full_space = true;
    if ((s = gguf_get_str(g, map_key, true, &name, err)) ||
        (s = gguf_get_int(g, "linnet.lolcats.feature_dim", true, 1, LOLCATS_MAX_FEATURES, &width,
                          err)) ||
        (s = gguf_get_int(g, "linnet.lolcats.adapter_rank", false, 0, LOLCATS_MAX_FEATURES, &rank,
                          err)) ||
        (s = gguf_get_float(g, "linnet.lolcats.eps", false, &eps, err)) ||
        (s = gguf_get_bool(g, "linnet.lolcats.full_space", false, &w->full_space, err)) ||
        (s = gguf_get_bool(g, "linnet.lolcats.skip", false, &w->skip, err)) ||
        (s = gguf_get_bool(g, "linnet.lolcats.tied", false, &w->tied, err)) ||
        (s = gguf_get_bool(g, "linnet.lolcats.terrace", false, &terrace, err)))
        return s;
    for (w->map = 0; w->map < N_FEATURE_MAPS; w->map++)
        if (name.n == strlen(feature_map_names[w->map]) &&
            !memcmp(name.p, feature_map_names[w->map], name.n))
            break;
    if (w->map == N_FEATURE_MAPS)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: %s is '%.*s', expected softmax_dim, exp_dim, pos_elu or relu",
                    gguf_path(g), map_key, (int)min_size(name.n, 40), name.p);
    if (!(eps >= 0 && eps <= 1))
        return fail(err, LINNET_ERR_FORMAT, "%s: linnet.lolcats.eps is %g, expected 0 to 1",
                    gguf_path(g), eps);
    if ((w->skip || rank) && width != l->model->cfg.head_dim)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: linnet.lolcats.feature_dim is %d, expected %d, the head dimension, to "
                    "which the maps of layer %d add",
                    gguf_path(g), (int)width, l->model->cfg.head_dim, layer);
    if (l->model->cfg.rope == ROPE_PAIRS)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: layer %d has feature maps, but rows of q and k in neighbouring pairs: "
                    "expected the architecture linnet",
                    gguf_path(g), layer);
    bool twice = w->full_space && (w->map == SOFTMAX_DIM || w->map == EXP_DIM);
    w->width = (int)width;
    w->rank = (int)rank;
    w->eps = (float)eps;
    w->features = twice ? 2 * w->width : w->width;
    int window = l->model->layers[layer].window, lag = window ? window - 1 : 0;
    if (window) l->model->terrace = l->model->terrace || terrace;
    if (!l->model->cfg.trained_length) return LINNET_OK;
    if (terrace || (l->model->map_lag >= 0 && l->model->map_lag != lag))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: layer %d: linnet.lolcats.trained_length is for sliding windows of one "
                    "length in all LoLCATs layers",
                    gguf_path(g), layer);
    l->model->map_lag = lag;
    return LINNET_OK;
}

static linnet_status load_learned(loader *l, int layer, const lolcats_weights *w, char which,
                                  learned *out, linnet_error *err) {
    const config *c = &l->model->cfg;
    size_t heads = (size_t)c->n_heads, d = (size_t)c->head_dim, width = (size_t)w->width;
    size_t rank = (size_t)w->rank;
    char name[64];
    linnet_status s;
#define NAME(suffix) (snprintf(name, sizeof name, "attn_feature_%c" suffix, which), name)
    if (!rank) {
        if ((s = load_floats(l, layer, NAME(".weight"), (size_t[]){width, d, heads}, &out->layer,
                             err)))
            return s;
        return load_vector(l, layer, NAME(".bias"), true, heads, 0, heads, &out->bias, err);
    }
    if ((s = load_floats(l, layer, NAME("_down.weight"), (size_t[]){rank, d, heads}, &out->down,
                         err)) ||
        (s = load_floats(l, layer, NAME("_down.bias"), (size_t[]){rank, heads, 1}, &out->down_bias,
                         err)) ||
        (s = load_floats(l, layer, NAME("_up.weight"), (size_t[]){width, rank, heads}, &out->up,
                         err)))
        return s;
    return load_floats(l, layer, NAME("_up.bias"), (size_t[]){width, heads, 1}, &out->up_bias, err);
#undef NAME
}

/* Factors are between 0 and 1. */
static linnet_status load_factors(loader *l, int layer, const char *name, bool optional,
                                  float **out, linnet_error *err) {
    size_t heads = (size_t)l->model->cfg.n_heads;
    linnet_status s = load_vector(l, layer, name, optional, heads, 0, heads, out, err);
    for (size_t h = 0; !s && l->fill && *out && h < heads; h++)
        if (!((*out)[h] >= 0 && (*out)[h] <= 1))
            s = fail(err, LINNET_ERR_FORMAT, "%s: blk.%d.%s[%zu] is %g, expected 0 to 1",
                     gguf_path(l->model->file), layer, name, h, (double)(*out)[h]);
    return s;
}

static linnet_status load(loader *l, int layer, void **weights, linnet_error *err) {
    if (!*weights && !(*weights = calloc(1, sizeof(lolcats_weights))))
        return fail(err, LINNET_ERR_MEMORY, "no memory for layer %d", layer);
    lolcats_weights *w = *weights;
    const config *c = &l->model->cfg;
    size_t d = (size_t)c->n_embd, q = (size_t)c->n_heads * c->head_dim;
    size_t kv = (size_t)c->n_kv_heads * c->head_dim;
    const struct {
        const char *weight, *bias;
        size_t rows, cols;
        matrix *m;
    } matrices[] = {{"attn_q.weight", "attn_q.bias", q, d, &w->wq},
                    {"attn_k.weight", "attn_k.bias", kv, d, &w->wk},
                    {"attn_v.weight", "attn_v.bias", kv, d, &w->wv},
                    {"attn_output.weight", "attn_output.bias", d, q, &w->wo}};
    if (l->model->heads_differ)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: layer %d has LoLCATs' attention, but heads or rotary frequencies differ "
                    "between layers",
                    gguf_path(l->model->file), layer);
    linnet_status s = read_options(l, layer, w, err);
    for (int i = 0; i < 4 && !s; i++) {
        size_t rows = matrices[i].rows;
        matrix *m = matrices[i].m;
        if (!(s = load_matrix(l, layer, matrices[i].weight, rows, 0, rows, matrices[i].cols, m,
                              err)))
            s = load_vector(l, layer, matrices[i].bias, true, rows, 0, rows, &m->bias, err);
    }
    if (!s) s = load_learned(l, layer, w, 'q', &w->q, err);
    if (!s && !w->tied) s = load_learned(l, layer, w, 'k', &w->k, err);
    if (w->tied) w->k = w->q;
    return s;
}

static linnet_status load_windowed(loader *l, int layer, void **weights, linnet_error *err) {
    if (!l->model->layers[layer].window)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: layer %d is lolcats, but no window is given for it",
                    gguf_path(l->model->file), layer);
    linnet_status s = load(l, layer, weights, err);
    if (s) return s;
    lolcats_weights *w = *weights;
    if ((s = load_factors(l, layer, "attn_window_factor.weight", false, &w->gamma, err))) return s;
    return load_factors(l, layer, "attn_linear_factor.weight", true, &w->lambda, err);
}

static linnet_status load_linear(loader *l, int layer, void **weights, linnet_error *err) {
    l->model->layers[layer].window = 0; /* a window of the softmax layers is not its own */
    return load(l, layer, weights, err);
}

static size_t state_bytes(const linnet_model *m, const void *weights) {
    const lolcats_weights *w = weights;
    size_t heads = (size_t)m->cfg.n_heads, features = (size_t)w->features;
    return heads * (features * ((size_t)m->cfg.head_dim + 1) * sizeof(float) + sizeof(uint32_t));
}

/* ---- Features -----------------------------------------------------------------------------------
 */

/* 16 interleaved partial sums, then those in order. */
static float sum_lanes(const float lanes[16]) {
    float sum = 0;
    for (int i = 0; i < 16; i++)
        sum += lanes[i];
    return sum;
}

static float dot(const float *a, const float *b, int n) {
    float lanes[16] = {0};
    for (int i = 0; i < n; i++)
        lanes[i % 16] += a[i] * b[i];
    return sum_lanes(lanes);
}

/* phi [features] of x [head_dim] by head h's map; the clamp to eps is last. */
static void featurize(const pass *p, const lolcats_weights *w, const learned *m, int h,
                      const float *x, float *phi) {
    const kernels *k = p->k;
    size_t d = (size_t)p->m->cfg.head_dim, width = (size_t)w->width, rank = (size_t)w->rank;
    size_t head = (size_t)h;
    float u[LOLCATS_MAX_FEATURES], inner[LOLCATS_MAX_FEATURES];
    if (rank) {
        memcpy(inner, m->down_bias + head * rank, rank * sizeof *inner);
        k->add_rows(inner, x, m->down + head * d * rank, d, rank);
        for (size_t i = 0; i < rank; i++)
            inner[i] = inner[i] < 0 ? 0 : inner[i]; /* NaN stays */
        for (size_t i = 0; i < width; i++)
            u[i] = x[i] + m->up_bias[head * width + i];
        k->add_rows(u, inner, m->up + head * rank * width, rank, width);
    } else {
        for (size_t i = 0; i < width; i++)
            u[i] = (w->skip ? x[i] : 0) + (m->bias ? m->bias[head] : 0);
        k->add_rows(u, x, m->layer + head * d * width, d, width);
    }
    switch (w->map) {
    case SOFTMAX_DIM:
    case EXP_DIM:
        k->softmax(phi, u, 1, width, w->map == SOFTMAX_DIM);
        if (w->full_space) k->softmax(phi + width, u, -1, width, w->map == SOFTMAX_DIM);
        break;
    case POS_ELU: /* 1 + elu(u) */
        k->exp_shifted(phi, u, 1, 0, width);
        for (size_t i = 0; i < width; i++)
            phi[i] = u[i] > 0 ? 1 + u[i] : phi[i];
        break;
    default:
        memcpy(phi, u, width * sizeof *phi);
    }
    for (int i = 0; i < w->features; i++)
        phi[i] = phi[i] < w->eps ? w->eps : phi[i];
}

/* ---- One head -----------------------------------------------------------------------------------
 */

typedef struct {
    pass *p;
    const lolcats_weights *w;
    linnet_session *session;
    int layer, h, kv_head, window;
    float *S, *z; /* [features][head_dim], [features] */
    uint32_t *folded;
} head;

static head head_of(pass *p, const lolcats_weights *w, int layer, size_t row, int h) {
    const config *c = &p->m->cfg;
    size_t heads = (size_t)c->n_heads, f = (size_t)w->features, d = (size_t)c->head_dim;
    float *S = row_state(p, row, layer), *z = S + heads * f * d;
    uint32_t *folded = (uint32_t *)(z + heads * f) + h;
    const linnet_session *s = p->rows[row].session;
    int window = p->m->layers[layer].window, t = p->rows[row].position;
    if (window) { /* a loaded state may lie: only pages that are there are read */
        int low = s->rule == LINNET_TERRACE_HF ? 0 : window_first(s->mode, window, t);
        int high = window_first(LINNET_SLIDING, window, t);
        if (*folded < (uint32_t)low) *folded = (uint32_t)low;
        if (*folded > (uint32_t)high) *folded = (uint32_t)high;
    }
    return (head){.p = p,
                  .w = w,
                  .session = p->rows[row].session,
                  .layer = layer,
                  .h = h,
                  .kv_head = h / (c->n_heads / c->n_kv_heads),
                  .window = window,
                  .S = S + (size_t)h * f * d,
                  .z = z + (size_t)h * f,
                  .folded = folded};
}

/* x [head_dim], rotated, as maps see it: itself, or turned back in `room`. `r`: the query's row, or
 * the one with which the key enters. */
static const float *turned(const head *a, size_t r, bool query, const float *x, float *room) {
    const config *c = &a->p->m->cfg;
    const head_layout *g = &a->p->m->layers[a->layer].heads;
    int t = a->p->rows[r].position - (query ? 0 : a->p->m->map_lag), half = g->rope_dim / 2;
    if (!c->trained_length || c->rope == ROPE_NONE || !lolcats_back(c->trained_length, query, t))
        return x;
    const float *cos = a->p->back + (4 * r + (query ? 0 : 2)) * c->n_angles + g->angles;
    const float *sin = cos + c->n_angles;
    memcpy(room, x, (size_t)c->head_dim * sizeof *room);
    for (int i = 0; i < half; i++) {
        room[i] = x[i] * cos[i] + x[i + half] * sin[i];
        room[i + half] = x[i + half] * cos[i] - x[i] * sin[i];
    }
    return room;
}

/* `r`: the row with which the key enters. */
static void add_key(const head *a, size_t r, const float *key, const float *value) {
    float phi[2 * LOLCATS_MAX_FEATURES], room[MAX_HEAD_DIM];
    size_t f = (size_t)a->w->features;
    featurize(a->p, a->w, &a->w->k, a->h, turned(a, r, false, key, room), phi);
    a->p->k->add_outer(a->S, phi, value, f, (size_t)a->p->m->cfg.head_dim);
    for (size_t i = 0; i < f; i++)
        a->z[i] += phi[i];
}

static void add_position(const head *a, size_t r, int position) {
    float key[MAX_HEAD_DIM], value[MAX_HEAD_DIM];
    if (position < a->p->m->cfg.n_sink) return;
    kv_read(&a->session->kv, (size_t)position, a->p->m->layers[a->layer].kv_slot, a->kv_head, key,
            value);
    add_key(a, r, key, value);
}

/* Positions before `to` leave the window at row r. */
static void fold_to(const head *a, size_t r, int to) {
    for (; (int)*a->folded < to; ++*a->folded)
        add_position(a, r, (int)*a->folded);
}

/* num += lambda phi_q^T S, *den += lambda phi_q.z; n keys are in S. */
static void add_linear(const head *a, size_t r, const float *q, int n, float *num, float *den) {
    float phi[2 * LOLCATS_MAX_FEATURES], room[MAX_HEAD_DIM];
    int f = a->w->features, trained = a->p->m->cfg.trained_length;
    float factor = a->w->lambda ? a->w->lambda[a->h] : 1;
    if (trained && n > trained) factor *= (float)trained / (float)n;
    featurize(a->p, a->w, &a->w->q, a->h, turned(a, r, true, q, room), phi);
    for (int i = 0; factor != 1 && i < f; i++)
        phi[i] *= factor;
    a->p->k->add_rows(num, phi, a->S, (size_t)f, (size_t)a->p->m->cfg.head_dim);
    *den += dot(phi, a->z, f);
}

/* Upstream's own prefill of L = whole tokens under a terrace: blocks end with the prompt, so the
 * first one is the short one; but a prompt of at most one window is wholly in both parts. */
static bool counts_twice(const head *a) {
    return a->session->rule == LINNET_TERRACE_HF && a->session->whole <= a->window;
}

/* The first position in the window of position t. */
static int first_of(const head *a, int t) {
    int W = a->window, L = a->session->whole;
    linnet_window_mode rule = a->session->rule;
    if (rule != LINNET_TERRACE_HF || t >= L)
        return window_first(rule == LINNET_TERRACE ? rule : LINNET_SLIDING, W, t);
    if (L <= W) return 0;
    int offset = (L + W - 1) / W * W - L, first = ((t + offset) / W - 1) * W - offset;
    return first > 0 ? first : 0;
}

/* Softmax over positions [from, to): what `sum` and `out` hold grows. */
static void attend_positions(const head *a, const float *q, int from, int to, attend_sum *sum,
                             float *out) {
    const linnet_model *m = a->p->m;
    const kv_cache *kv = &a->session->kv;
    for (int at = from / PAGE * PAGE; at < to; at += PAGE) {
        kv_view view = kv_at(kv, (size_t)at / PAGE, m->layers[a->layer].kv_slot, a->kv_head);
        attend_query query = {q, out, sum, from > at ? from - at : 0,
                              to - at < PAGE ? to - at : PAGE};
        a->p->k->attend(kv->layout.kind, &view, m->cfg.head_dim, &query, 1);
    }
}

static void window_row(const head *a, size_t r) {
    const config *c = &a->p->m->cfg;
    int t = a->p->rows[r].position, d = c->head_dim;
    const float *q = a->p->q + (r * c->n_heads + a->h) * d;
    float scaled[MAX_HEAD_DIM], num[MAX_HEAD_DIM] = {0}, scale = 1.0f / sqrtf((float)d), den;
    attend_sum sum = {-INFINITY, 0};
    bool twice = counts_twice(a);
    fold_to(a, r, first_of(a, t));
    if (twice) add_position(a, r, t);
    int first = (int)*a->folded;
    for (int i = 0; i < d; i++)
        scaled[i] = q[i] * scale;
    attend_positions(a, scaled, 0, c->n_sink < first ? c->n_sink : first, &sum, num);
    attend_positions(a, scaled, first, t + 1, &sum, num);
    den = a->w->gamma[a->h] * sum.sum;
    for (int i = 0; i < d; i++)
        num[i] *= a->w->gamma[a->h];
    if (first > c->n_sink || twice) add_linear(a, r, q, first - c->n_sink, num, &den);
    float *y = a->p->mixed + (r * c->n_heads + a->h) * d;
    for (int i = 0; i < d; i++)
        y[i] = num[i] / den;
    if (twice && t + 1 == a->session->whole) { /* for the prefill alone */
        memset(a->S, 0, (size_t)a->w->features * d * sizeof *a->S);
        memset(a->z, 0, (size_t)a->w->features * sizeof *a->z);
    }
    fold_to(a, r, first_of(a, t + 1));
}

static void linear_row(const head *a, size_t r) {
    const config *c = &a->p->m->cfg;
    size_t d = (size_t)c->head_dim;
    const float *q = a->p->q + (r * c->n_heads + a->h) * d;
    size_t kv = (r * c->n_kv_heads + a->kv_head) * d;
    float num[MAX_HEAD_DIM] = {0}, den = 0;
    add_key(a, r, a->p->key + kv, a->p->value + kv);
    add_linear(a, r, q, a->p->rows[r].position + 1, num, &den);
    float *y = a->p->mixed + (r * c->n_heads + a->h) * d;
    for (size_t i = 0; i < d; i++)
        y[i] = num[i] / (den + 1e-12f);
}

/* ---- The layer ----------------------------------------------------------------------------------
 */

/* Rotates queries and keys of row r; keeps key and value where there is a window. */
static void place_row(pass *p, int layer, size_t r) {
    const config *c = &p->m->cfg;
    size_t d = (size_t)c->head_dim;
    const row *row = &p->rows[r];
    int slot = p->m->layers[layer].kv_slot;
    for (int h = 0; h < c->n_heads; h++)
        pass_rotate(p, layer, r, p->q + (r * c->n_heads + h) * d);
    for (int h = 0; h < c->n_kv_heads; h++) {
        size_t at = (r * c->n_kv_heads + h) * d;
        pass_rotate(p, layer, r, p->key + at);
        if (slot >= 0)
            kv_write(&row->session->kv, p->k, (size_t)row->position, slot, h, p->key + at,
                     p->value + at);
    }
}

static void forward(pass *p, int layer, int thread) {
    const lolcats_weights *w = p->m->layers[layer].mixer_weights;
    const config *c = &p->m->cfg;
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    size_t heads = (size_t)c->n_heads;
    const product qkv[] = {{&w->wq, p->q, q, GEMM_STORE},
                           {&w->wk, p->key, kv, GEMM_STORE},
                           {&w->wv, p->value, kv, GEMM_STORE}};
    pass_mix_in(p, thread, layer, qkv, 3);
    for (phase ph = phase_begin(p->team, thread, p->n); phase_next(&ph);)
        for (size_t r = ph.from; r < ph.to; r++)
            place_row(p, layer, r);
    for (phase ph = phase_begin(p->team, thread, p->n_runs * heads); phase_next(&ph);)
        for (size_t u = ph.from; u < ph.to; u++) {
            size_t first = p->runs[u / heads], last = p->runs[u / heads + 1];
            head a = head_of(p, w, layer, first, (int)(u % heads));
            for (size_t r = first; r < last; r++)
                if (a.window)
                    window_row(&a, r);
                else
                    linear_row(&a, r);
        }
    pass_mix_out(p, thread, layer, p->mixed, q, &w->wo);
}

static bool state_fits(const linnet_model *m, int layer, const void *state, size_t first,
                       size_t n_tokens) {
    const lolcats_weights *w = m->layers[layer].mixer_weights;
    size_t heads = (size_t)m->cfg.n_heads, d = (size_t)m->cfg.head_dim;
    const uint32_t *folded =
        (const uint32_t *)((const float *)state + heads * (size_t)w->features * (d + 1));
    for (size_t h = 0; h < heads; h++)
        if (folded[h] < first || folded[h] > n_tokens) return false;
    return true;
}

const mixer_ops mixer_lolcats = {
    .kind = MIXER_LOLCATS,
    .name = "lolcats",
    .load = load_windowed,
    .uses_kv = true,
    .state_bytes = state_bytes,
    .state_fits = state_fits,
    .forward = forward,
};

const mixer_ops mixer_hedgehog = {
    .kind = MIXER_HEDGEHOG,
    .name = "hedgehog",
    .load = load_linear,
    .state_bytes = state_bytes,
    .forward = forward,
};
