/* Softmax attention over all earlier positions, or a sliding window of them, with grouped KV heads.
 *
 *   o_t = sum_{s in (t - window, t]} softmax_s(q_t . k_s / sqrt(d)) v_s        (Vaswani et al.
 * 2017)
 *
 * Query heads of a group share a KV head (Ainslie et al. 2023); q and k are normalized where the
 * model says so, per head (Qwen3) or over all heads at once (OLMo 2), then rotated (Su et al.
 * 2021). Gated attention (Qwen3-Next): W^Q gives [query | gate] per head, and o_t is multiplied by
 * sigmoid(gate) before W^O.
 *
 * A window also sees the first n_sink positions, which stay pinned (attention sinks, Xiao et al.
 * 2024).
 *
 * The positions are cut into segments of 16 pages at fixed places. Within a segment pages are taken
 * in order with a running maximum; segments are merged in order. So a token's result does not
 * depend on how many threads or neighbours there are: a long segment list is shared by threads when
 * rows are few (decode at depth), and walked by one thread when there are many (prefill). */
#include "../kernels_cpu/exp.h"
#include "../kernels_cpu/pass.h"
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A norm of q or k: a head's vector, or all heads' as one (`whole`); the tensor's length says. All
 * models with gated attention have them. */
static linnet_status load_qk_norm(loader *l, int layer, const char *name, int heads, float **out,
                                  bool *whole, linnet_error *err) {
    const config *c = &l->model->cfg;
    size_t d = (size_t)l->model->layers[layer].heads.head_dim, all = (size_t)heads * d;
    *whole = tensor_length(l, layer, name) == all && heads > 1;
    size_t n = *whole ? all : d;
    return load_vector(l, layer, name, !c->gated_attention, n, 0, n, out, err);
}

static linnet_status load(loader *l, int layer, void **weights, linnet_error *err) {
    if (!*weights && !(*weights = calloc(1, sizeof(softmax_weights))))
        return fail(err, LINNET_ERR_MEMORY, "no memory for layer %d", layer);
    softmax_weights *w = *weights;
    const config *c = &l->model->cfg;
    const head_layout *g = &l->model->layers[layer].heads;
    size_t d = (size_t)c->n_embd, q = (size_t)g->n_heads * g->head_dim;
    size_t kv = (size_t)g->n_kv_heads * g->head_dim, q_all = c->gated_attention ? 2 * q : q;
    size_t all = q_all + 2 * kv;
    linnet_status s;
    if (has_tensor(l, layer, "attn_qkv.weight")) { /* one matrix, rows q then k then v */
        const char *name = "attn_qkv.weight", *bias = "attn_qkv.bias";
        if ((s = load_matrix(l, layer, name, all, 0, q_all, d, &w->wq, err)) ||
            (s = load_matrix(l, layer, name, all, q_all, kv, d, &w->wk, err)) ||
            (s = load_matrix(l, layer, name, all, q_all + kv, kv, d, &w->wv, err)) ||
            (s = load_vector(l, layer, bias, true, all, 0, q_all, &w->wq.bias, err)) ||
            (s = load_vector(l, layer, bias, true, all, q_all, kv, &w->wk.bias, err)) ||
            (s = load_vector(l, layer, bias, true, all, q_all + kv, kv, &w->wv.bias, err)))
            return s;
    } else {
        struct {
            const char *weight, *bias;
            size_t rows;
            matrix *m;
        } all_three[] = {{"attn_q.weight", "attn_q.bias", q_all, &w->wq},
                         {"attn_k.weight", "attn_k.bias", kv, &w->wk},
                         {"attn_v.weight", "attn_v.bias", kv, &w->wv}};
        for (int i = 0; i < 3; i++) {
            size_t rows = all_three[i].rows;
            matrix *m = all_three[i].m;
            if ((s = load_matrix(l, layer, all_three[i].weight, rows, 0, rows, d, m, err)) ||
                (s = load_vector(l, layer, all_three[i].bias, true, rows, 0, rows, &m->bias, err)))
                return s;
        }
    }
    if ((s = load_matrix(l, layer, "attn_output.weight", d, 0, d, q, &w->wo, err)) ||
        (s = load_vector(l, layer, "attn_output.bias", true, d, 0, d, &w->wo.bias, err)) ||
        (s = load_qk_norm(l, layer, "attn_q_norm.weight", g->n_heads, &w->q_norm, &w->q_whole,
                          err)) ||
        (s = load_qk_norm(l, layer, "attn_k_norm.weight", g->n_kv_heads, &w->k_norm, &w->k_whole,
                          err)))
        return s;
    return LINNET_OK;
}

/* Normalizes and rotates queries and keys of row r; stores key and value. */
static void place_row(pass *p, const softmax_weights *w, int layer, size_t r) {
    const config *c = &p->m->cfg;
    const head_layout *g = &p->m->layers[layer].heads;
    size_t hd = (size_t)g->head_dim;
    const row *row = &p->rows[r];
    float *q = p->q + r * g->n_heads * hd, *k = p->key + r * g->n_kv_heads * hd;
    const float *v = p->value + r * g->n_kv_heads * hd;
    float scale = 1.0f / sqrtf((float)g->head_dim);
    if (c->gated_attention)
        for (size_t h = 0; h < (size_t)g->n_heads; h++)
            memcpy(q + h * hd, p->work + (r * g->n_heads + h) * 2 * hd, hd * sizeof(float));
    if (w->q_whole) p->k->rms_norm(q, q, w->q_norm, g->n_heads * hd, c->norm_eps);
    if (w->k_whole) p->k->rms_norm(k, k, w->k_norm, g->n_kv_heads * hd, c->norm_eps);
    for (int h = 0; h < g->n_heads; h++, q += hd) {
        if (w->q_norm && !w->q_whole) p->k->rms_norm(q, q, w->q_norm, hd, c->norm_eps);
        pass_rotate(p, layer, r, q);
        for (size_t i = 0; i < hd; i++)
            q[i] *= scale;
    }
    for (int h = 0; h < g->n_kv_heads; h++, k += hd, v += hd) {
        if (w->k_norm && !w->k_whole) p->k->rms_norm(k, k, w->k_norm, hd, c->norm_eps);
        pass_rotate(p, layer, r, k);
        kv_write(&row->session->kv, p->k, (size_t)row->position, p->m->layers[layer].kv_slot, h, k,
                 v);
    }
}

/* Rows [first, last) of one session, all query heads of one KV head, as a tile. */
typedef struct {
    size_t first, last;
    int kv_head;
} tile;

/* The tile's queries over one page: what their windows show of it, or the sinks before those. */
static void attend_page(pass *p, int layer, const tile *t, int at, bool sinks, attend_sum *sums,
                        float *out) {
    const head_layout *g = &p->m->layers[layer].heads;
    const kv_cache *kv = &p->rows[t->first].session->kv;
    int group = g->n_heads / g->n_kv_heads, window = p->m->layers[layer].window, used = 0;
    size_t padded = round_up(g->head_dim, 16), n = (t->last - t->first) * (size_t)group;
    attend_query queries[ATTEND_TILE];
    for (size_t i = 0; i < n; i++) {
        size_t r = t->first + i / group;
        int head = t->kv_head * group + (int)(i % group), position = p->rows[r].position;
        int first = window && position >= window ? position - window + 1 : 0; /* of the window */
        int low = sinks ? 0 : first - at, high = sinks ? first - at : position + 1 - at;
        if (sinks && high > p->m->cfg.n_sink - at) high = p->m->cfg.n_sink - at;
        if (low < 0) low = 0;
        if (high > PAGE) high = PAGE;
        if (low >= high) continue;
        queries[used++] = (attend_query){p->q + (r * g->n_heads + head) * g->head_dim,
                                         out + i * padded, &sums[i], low, high};
    }
    if (!used) return;
    kv_view view = kv_at(kv, at / PAGE, p->m->layers[layer].kv_slot, t->kv_head);
    p->k->attend(kv->layout.kind, &view, g->head_dim, queries, used);
}

/* Attention of a tile within one segment: sums [queries], out [queries][padded]; query i is row
 * first + i / group, head kv_head * group + i % group. */
static void attend_segment(pass *p, int layer, const tile *t, int segment, attend_sum *sums,
                           float *out) {
    const head_layout *g = &p->m->layers[layer].heads;
    int group = g->n_heads / g->n_kv_heads, window = p->m->layers[layer].window;
    size_t padded = round_up(g->head_dim, 16), n = (t->last - t->first) * (size_t)group;
    for (size_t i = 0; i < n; i++)
        sums[i] = (attend_sum){-INFINITY, 0};
    memset(out, 0, n * padded * sizeof(float));
    int end = p->rows[t->last - 1].position + 1; /* rows of a session are in order */
    int first = p->rows[t->first].position;
    int from = segment * ATTEND_SEGMENT,
        to = from + ATTEND_SEGMENT < end ? from + ATTEND_SEGMENT : end;
    for (int at = from; window && at < to && at < p->m->cfg.n_sink; at += PAGE)
        attend_page(p, layer, t, at, true, sums, out);
    if (window && first - window + 1 > from) from = (first - window + 1) / PAGE * PAGE;
    for (int at = from; at < to; at += PAGE)
        attend_page(p, layer, t, at, false, sums, out);
}

/* total (+) part: both relative to the larger maximum. */
static void merge(attend_sum *total, float *out, const attend_sum *part, const float *part_out,
                  size_t n) {
    if (part->max == -INFINITY) return; /* nothing of this segment is visible */
    float max = part->max > total->max ? part->max : total->max;
    float keep = exp_f32(total->max - max), add = exp_f32(part->max - max);
    total->max = max;
    total->sum = total->sum * keep + part->sum * add;
    for (size_t d = 0; d < n; d++)
        out[d] = out[d] * keep + part_out[d] * add;
}

static void store(pass *p, int layer, const tile *t, size_t i, const attend_sum *sum,
                  const float *out) {
    const head_layout *g = &p->m->layers[layer].heads;
    int group = g->n_heads / g->n_kv_heads;
    size_t r = t->first + i / group, head = t->kv_head * group + i % group;
    float *dst = p->mixed + (r * g->n_heads + head) * g->head_dim;
    for (int d = 0; d < g->head_dim; d++)
        dst[d] = out[d] / sum->sum;
    if (!p->m->cfg.gated_attention) return;
    const float *gate = p->work + (2 * (r * g->n_heads + head) + 1) * g->head_dim;
    for (int d = 0; d < g->head_dim; d++)
        dst[d] /= 1.0f + exp_f32(-gate[d]);
}

static size_t segments_of(const pass *p, size_t row) {
    return (size_t)p->rows[row].position / ATTEND_SEGMENT + 1;
}

/* Many rows: every (block of rows, KV head) is a unit, which one thread takes through all segments.
 */
static void attend_rows(pass *p, int layer, int thread) {
    const head_layout *g = &p->m->layers[layer].heads;
    size_t group = (size_t)(g->n_heads / g->n_kv_heads), padded = round_up(g->head_dim, 16);
    size_t heads = (size_t)g->n_kv_heads;
    float *total = p->attend_out + (size_t)thread * 2 * ATTEND_TILE * padded;
    float *part = total + ATTEND_TILE * padded;
    attend_sum *totals = p->attend_sums + (size_t)thread * 2 * ATTEND_TILE;
    attend_sum *parts = totals + ATTEND_TILE;
    for (phase ph = phase_begin(p->team, thread, p->n_blocks * heads); phase_next(&ph);)
        for (size_t u = ph.from; u < ph.to; u++) {
            tile t = {p->blocks[u / heads], p->blocks[u / heads + 1], (int)(u % heads)};
            size_t n = (t.last - t.first) * group;
            for (size_t i = 0; i < n; i++)
                totals[i] = (attend_sum){-INFINITY, 0};
            memset(total, 0, n * padded * sizeof(float));
            for (size_t s = 0; s < segments_of(p, t.last - 1); s++) {
                attend_segment(p, layer, &t, (int)s, parts, part);
                for (size_t i = 0; i < n; i++)
                    merge(&totals[i], total + i * padded, &parts[i], part + i * padded, padded);
            }
            for (size_t i = 0; i < n; i++)
                store(p, layer, &t, i, &totals[i], total + i * padded);
        }
}

/* Few rows: every (row, KV head, segment) is a unit of its own, results at [unit][head of the
 * group]; then the segments are merged. Segment s of row r and KV head h is unit (S h + s) of those
 * that start at S n_kv_heads r, S the segments of the deepest row. */
static void attend_split(pass *p, int layer, int thread) {
    const head_layout *g = &p->m->layers[layer].heads;
    size_t group = (size_t)(g->n_heads / g->n_kv_heads), padded = round_up(g->head_dim, 16);
    size_t heads = (size_t)g->n_kv_heads, deepest = 0;
    for (size_t r = 0; r < p->n; r++)
        deepest = max_size(deepest, segments_of(p, r));
    for (phase ph = phase_begin(p->team, thread, p->n * heads * deepest); phase_next(&ph);)
        for (size_t u = ph.from; u < ph.to; u++) {
            tile t = {u / deepest / heads, u / deepest / heads + 1, (int)(u / deepest % heads)};
            if (u % deepest < segments_of(p, t.first))
                attend_segment(p, layer, &t, (int)(u % deepest), p->attend_sums + u * group,
                               p->attend_out + u * group * padded);
        }
    for (phase ph = phase_begin(p->team, thread, p->n * heads); phase_next(&ph);)
        for (size_t v = ph.from; v < ph.to; v++) {
            tile t = {v / heads, v / heads + 1, (int)(v % heads)};
            for (size_t i = 0; i < group; i++) {
                attend_sum total = {-INFINITY, 0};
                float out[MAX_HEAD_DIM] = {0};
                for (size_t s = 0; s < segments_of(p, t.first); s++) {
                    size_t at = (v * deepest + s) * group + i;
                    merge(&total, out, &p->attend_sums[at], p->attend_out + at * padded, padded);
                }
                store(p, layer, &t, i, &total, out);
            }
        }
}

static void forward(pass *p, int layer, int thread) {
    const softmax_weights *w = p->m->layers[layer].mixer_weights;
    const config *c = &p->m->cfg;
    const head_layout *g = &p->m->layers[layer].heads;
    size_t q = (size_t)g->n_heads * g->head_dim, kv = (size_t)g->n_kv_heads * g->head_dim;
    float *to = c->gated_attention ? p->work : p->q; /* [n, heads, 2, head_dim] with gates */
    const product qkv[] = {{&w->wq, to, c->gated_attention ? 2 * q : q, GEMM_STORE},
                           {&w->wk, p->key, kv, GEMM_STORE},
                           {&w->wv, p->value, kv, GEMM_STORE}};
    pass_mix_in(p, thread, layer, qkv, 3);
    for (phase ph = phase_begin(p->team, thread, p->n); phase_next(&ph);)
        for (size_t r = ph.from; r < ph.to; r++)
            place_row(p, w, layer, r);
    if (p->split_attention)
        attend_split(p, layer, thread);
    else
        attend_rows(p, layer, thread);
    pass_mix_out(p, thread, layer, p->mixed, q, &w->wo);
}

static size_t work_floats(const linnet_model *m, const void *weights) {
    (void)weights;
    return m->cfg.gated_attention ? 2 * (size_t)m->cfg.n_heads * m->cfg.head_dim : 0;
}

const mixer_ops mixer_softmax = {
    .kind = MIXER_SOFTMAX,
    .name = "softmax",
    .load = load,
    .uses_kv = true,
    .work_floats = work_floats,
    .forward = forward,
};
