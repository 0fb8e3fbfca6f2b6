/* BASED's linear attention (Arora et al. 2024): softmax's exponential by its Taylor series of
 * second order, so that all earlier keys and values fit in a state of fixed size. Per head, f
 * features of q and k (no positions), V values:
 *
 *   w(q, k) = 1 + s + s^2/2,  s = q.k / sqrt(f)
 *   y_t = sum_{j<=t} w(q_t, k_j) v_j / (sum_{j<=t} w(q_t, k_j) + eps)
 *
 * As a product of features: w(q, k) = phi(q) . psi(k) with all factors on the query's side, exact
 * powers of two for f = 16, and each pair a < b once instead of twice:
 *
 *   psi(k) = [1; k_a; k_a k_b for a <= b]
 *   phi(q) = [1; q_a / sqrt(f); q_a^2 / 2f; q_a q_b / f for a < b]
 *
 * which are F = 1 + f + f(f+1)/2 numbers, 153 for f = 16 (upstream keeps 1 + f + f^2 = 273).
 * State, float32: S [heads][F][V] = sum of psi(k) v^T, z [heads][F] = sum of psi(k); z[0] counts
 * the tokens. A head takes a session's tokens in order, so prefill and decode are the same steps.
 */
#include "../kernels_cpu/pass.h"
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { F = TAYLOR_MAX_FEATURES, MAX_MOMENTS = 1 + F + F * (F + 1) / 2 };

static linnet_status read_shape(const gguf *g, taylor_weights *w, linnet_error *err) {
    int64_t heads = 0, features = 0, value_dim = 0;
    double eps = 1e-12;
    linnet_status s;
    if ((s = gguf_get_int(g, "linnet.based.head_count", true, 1, MAX_DIM, &heads, err)) ||
        (s = gguf_get_int(g, "linnet.based.feature_length", true, 1, TAYLOR_MAX_FEATURES, &features,
                          err)) ||
        (s = gguf_get_int(g, "linnet.based.value_length", true, 1, MAX_DIM, &value_dim, err)) ||
        (s = gguf_get_float(g, "linnet.based.epsilon", false, &eps, err)))
        return s;
    if (!(eps >= 0 && eps <= 1))
        return fail(err, LINNET_ERR_FORMAT, "%s: linnet.based.epsilon is %g, expected 0 to 1",
                    gguf_path(g), eps);
    if (heads * value_dim > MAX_DIM || heads * features > MAX_DIM)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: linnet.based: %lld heads of %lld features and %lld values: expected at "
                    "most %d in all",
                    gguf_path(g), (long long)heads, (long long)features, (long long)value_dim,
                    MAX_DIM);
    w->heads = (size_t)heads;
    w->features = (size_t)features;
    w->moments = 1 + w->features + w->features * (w->features + 1) / 2;
    w->value_dim = (size_t)value_dim;
    w->eps = (float)eps;
    return LINNET_OK;
}

static linnet_status load(loader *l, int layer, void **weights, linnet_error *err) {
    if (!*weights && !(*weights = calloc(1, sizeof(taylor_weights))))
        return fail(err, LINNET_ERR_MEMORY, "no memory for layer %d", layer);
    taylor_weights *w = *weights;
    linnet_status s = read_shape(l->model->file, w, err);
    if (s) return s;
    size_t d = (size_t)l->model->cfg.n_embd;
    size_t qk = w->heads * w->features, v = w->heads * w->value_dim;
    if ((s = load_matrix(l, layer, "attn_q.weight", qk, 0, qk, d, &w->wq, err)) ||
        (s = load_matrix(l, layer, "attn_k.weight", qk, 0, qk, d, &w->wk, err)) ||
        (s = load_matrix(l, layer, "attn_v.weight", v, 0, v, d, &w->wv, err)))
        return s;
    return load_matrix(l, layer, "attn_output.weight", d, 0, d, v, &w->wo, err);
}

static size_t state_bytes(const linnet_model *m, const void *weights) {
    (void)m;
    const taylor_weights *w = weights;
    return w->heads * w->moments * (w->value_dim + 1) * sizeof(float);
}

static size_t work_floats(const linnet_model *m, const void *weights) {
    (void)m;
    const taylor_weights *w = weights;
    return w->heads * 2 * (w->features + w->value_dim);
}

/* out = [1; linear x_a; square x_a^2; cross x_a x_b]. */
static void moments_of(const float *x, size_t f, float linear, float square, float cross,
                       float *out) {
    *out++ = 1;
    for (size_t a = 0; a < f; a++)
        *out++ = linear * x[a];
    for (size_t a = 0; a < f; a++) {
        *out++ = square * x[a] * x[a];
        float scaled = cross * x[a];
        for (size_t b = a + 1; b < f; b++)
            *out++ = scaled * x[b];
    }
}

/* Eight partial sums, so that the additions need not wait for each other. */
static float dot(const float *x, const float *y, size_t n) {
    float sum[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            sum[j] += x[i + j] * y[i + j];
    for (size_t j = 0; i + j < n; j++)
        sum[j] += x[i + j] * y[i + j];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* Rows [first, last) of one session through head h; q, k [n, heads * f], v, y [n, heads * V]. */
static void run_head(const pass *p, const taylor_weights *w, int layer, size_t first, size_t last,
                     size_t h, const float *q, const float *k, const float *v, float *y) {
    float *state = row_state(p, first, layer);
    float *S = state + h * w->moments * w->value_dim;
    float *z = state + w->heads * w->moments * w->value_dim + h * w->moments;
    float phi[MAX_MOMENTS], psi[MAX_MOMENTS], f = (float)w->features;
    for (size_t r = first; r < last; r++) {
        const float *value = v + (r * w->heads + h) * w->value_dim;
        float *out = y + (r * w->heads + h) * w->value_dim;
        moments_of(k + (r * w->heads + h) * w->features, w->features, 1, 1, 1, psi);
        moments_of(q + (r * w->heads + h) * w->features, w->features, 1 / sqrtf(f), 0.5f / f, 1 / f,
                   phi);
        p->k->add_outer(S, psi, value, w->moments, w->value_dim);
        for (size_t i = 0; i < w->moments; i++)
            z[i] += psi[i];
        memset(out, 0, w->value_dim * sizeof *out);
        p->k->add_rows(out, phi, S, w->moments, w->value_dim);
        float total = dot(phi, z, w->moments) + w->eps;
        for (size_t i = 0; i < w->value_dim; i++)
            out[i] /= total;
    }
}

static void forward(pass *p, int layer, int thread) {
    const taylor_weights *w = p->m->layers[layer].mixer_weights;
    size_t qk = w->heads * w->features, values = w->heads * w->value_dim;
    float *q = p->work, *k = q + p->n * qk, *v = k + p->n * qk, *y = v + p->n * values;
    const product qkv[] = {
        {&w->wq, q, qk, GEMM_STORE}, {&w->wk, k, qk, GEMM_STORE}, {&w->wv, v, values, GEMM_STORE}};
    pass_mix_in(p, thread, layer, qkv, 3);
    for (phase ph = phase_begin(p->team, thread, p->n_runs * w->heads); phase_next(&ph);)
        for (size_t u = ph.from; u < ph.to; u++) {
            size_t run = u / w->heads;
            run_head(p, w, layer, p->runs[run], p->runs[run + 1], u % w->heads, q, k, v, y);
        }
    pass_mix_out(p, thread, layer, y, values, &w->wo);
}

const mixer_ops mixer_based_taylor = {
    .kind = MIXER_BASED_TAYLOR,
    .name = "based_taylor",
    .load = load,
    .state_bytes = state_bytes,
    .work_floats = work_floats,
    .forward = forward,
};
