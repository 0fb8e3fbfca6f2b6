/* The delta rule: a state per value head that is corrected, not only added to.
 *
 *   S = a S;  S += k (b (v - S^T k))^T;  o = S^T q            S [K, V], zero at first
 *
 * DeltaNet (Yang et al. 2024, "Parallelizing linear transformers with the delta rule") has a = 1;
 * Gated DeltaNet (Yang et al. 2025) lets it decay by a = exp(-exp(A_log) softplus(alpha + dt)).
 * q, k, v come through a causal convolution per channel and an activation; q and k are normalized
 * per head; o is normalized per head and gated. docs/mixers.md has all steps in order.
 *
 * A unit of work is 32 value dimensions of one head of one session: its part of the state stays in
 * the cache while all of the piece's tokens pass, and every token does what a single one would, so
 * prefill and decode give the same bits. */
#include "../kernels_cpu/exp.h"
#include "../kernels_cpu/pass.h"
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 32, MAX_TAPS = MAX_DELTA_CONV };

/* Sizes of a layer, and where its scratch lies in p->work. */
typedef struct {
    const delta_config *c;
    size_t heads, value_heads, key_dim, value_dim;
    size_t channels, values; /* of q, k, v together; of v */
    size_t taps;             /* of the convolution */
} sizes;

static sizes sizes_of(const linnet_model *m, const delta_weights *w) {
    const delta_config *c = &m->cfg.delta;
    sizes z = {.c = c};
    z.heads = (size_t)c->n_heads;
    z.value_heads = (size_t)c->n_value_heads;
    z.key_dim = (size_t)c->key_dim;
    z.value_dim = (size_t)c->value_dim;
    z.values = z.value_heads * z.value_dim;
    z.channels = 2 * z.heads * z.key_dim + z.values;
    z.taps = w->taps;
    return z;
}

/* All such layers have the optional tensors that the first has. */
static linnet_status check_parts(const loader *l, int layer, const delta_weights *w,
                                 linnet_error *err) {
    int first = 0;
    while (l->model->layers[first].mixer != l->model->layers[layer].mixer)
        first++;
    const delta_weights *other = l->model->layers[first].mixer_weights;
    const struct {
        const char *name;
        bool here, there;
    } parts[] = {{"attn_gate.weight", w->w_gate.rows, other->w_gate.rows},
                 {"ssm_beta.weight", w->w_beta.rows, other->w_beta.rows},
                 {"ssm_conv1d.weight", w->has_conv, other->has_conv},
                 {"ssm_conv1d.bias", w->has_conv_bias, other->has_conv_bias}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].here != parts[i].there)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: tensor blk.%d.%s is missing, but layer %d has one",
                        gguf_path(l->model->file), parts[i].here ? first : layer, parts[i].name,
                        parts[i].here ? layer : first);
    return LINNET_OK;
}

static linnet_status load(loader *l, int layer, void **weights, bool gated, linnet_error *err) {
    const config *cfg = &l->model->cfg;
    if (!cfg->delta.n_heads)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: layer %d is a delta-rule layer, but metadata key linnet.delta.head_count "
                    "is missing",
                    gguf_path(l->model->file), layer);
    if (!*weights && !(*weights = calloc(1, sizeof(delta_weights))))
        return fail(err, LINNET_ERR_MEMORY, "no memory for layer %d", layer);
    delta_weights *w = *weights;
    bool conv = cfg->delta.complete || gguf_find(l->model->file, "linnet.delta.conv_kernel") ||
                has_tensor(l, layer, "ssm_conv1d.weight");
    bool gate = cfg->delta.complete || has_tensor(l, layer, "attn_gate.weight");
    w->taps = conv ? (size_t)cfg->delta.conv_kernel : 1;
    w->has_conv = conv;
    w->has_conv_bias = conv && has_tensor(l, layer, "ssm_conv1d.bias");
    sizes z = sizes_of(l->model, w);
    size_t d = (size_t)cfg->n_embd, heads = z.value_heads;
    linnet_status s;
    if ((s = load_matrix(l, layer, "attn_qkv.weight", z.channels, 0, z.channels, d, &w->w_qkv,
                         err)) ||
        (s = load_matrix(l, layer, "ssm_out.weight", d, 0, d, z.values, &w->w_out, err)) ||
        (s = load_vector(l, layer, "ssm_norm.weight", false, z.value_dim, 0, z.value_dim, &w->norm,
                         err)))
        return s;
    if (conv && (s = load_taps(l, layer, "ssm_conv1d.weight", z.taps, z.channels, &w->conv, err)))
        return s;
    if (conv && (s = load_vector(l, layer, "ssm_conv1d.bias", true, z.channels, 0, z.channels,
                                 &w->conv_bias, err)))
        return s;
    if (gate &&
        (s = load_matrix(l, layer, "attn_gate.weight", z.values, 0, z.values, d, &w->w_gate, err)))
        return s;
    w->joint = gated && has_tensor(l, layer, "ssm_ba.weight");
    if (w->joint) {
        if ((s = load_matrix(l, layer, "ssm_ba.weight", 2 * heads, 0, 2 * heads, d, &w->w_beta,
                             err)))
            return s;
    } else if ((gated || has_tensor(l, layer, "ssm_beta.weight")) &&
               (s = load_matrix(l, layer, "ssm_beta.weight", heads, 0, heads, d, &w->w_beta, err)))
        return s;
    if ((s = check_parts(l, layer, w, err)) || !gated) return s;
    if ((!w->joint &&
         (s = load_matrix(l, layer, "ssm_alpha.weight", heads, 0, heads, d, &w->w_alpha, err))) ||
        (s = load_vector(l, layer, "ssm_a", false, heads, 0, heads, &w->log_decay, err)))
        return s;
    return load_vector(l, layer, "ssm_dt.bias", false, heads, 0, heads, &w->dt_bias, err);
}

static linnet_status load_plain(loader *l, int layer, void **weights, linnet_error *err) {
    return load(l, layer, weights, false, err);
}

static linnet_status load_gated(loader *l, int layer, void **weights, linnet_error *err) {
    return load(l, layer, weights, true, err);
}

/* State: S [value_heads][key_dim][value_dim], then the convolution's last inputs [taps - 1]
 * [channels], oldest first. */
static size_t state_bytes(const linnet_model *m, const void *weights) {
    sizes z = sizes_of(m, weights);
    return (z.key_dim * z.values + (z.taps - 1) * z.channels) * sizeof(float);
}

/* Scratch: arrays [n, width] one after the other. */
typedef struct {
    float *raw;          /* [n, channels] projections */
    float *mixed;        /* [n, channels] after convolution, activation and norms */
    float *gate, *out;   /* [n, values] */
    float *beta, *alpha; /* [n, value_heads] */
    float *write, *keep; /* [n, value_heads] b and a of the formula */
} scratch_arrays;

static size_t work_floats(const linnet_model *m, const void *weights) {
    sizes z = sizes_of(m, weights);
    return 2 * z.channels + 2 * z.values + 4 * z.value_heads;
}

static scratch_arrays arrays(const pass *p, const sizes *z) {
    scratch_arrays a;
    float *at = p->work;
    a.raw = at, at += p->n * z->channels;
    a.mixed = at, at += p->n * z->channels;
    a.gate = at, at += p->n * z->values;
    a.out = at, at += p->n * z->values;
    a.beta = at, at += p->n * z->value_heads;
    a.alpha = at, at += p->n * z->value_heads;
    a.write = at, at += p->n * z->value_heads;
    a.keep = at;
    return a;
}

static float *state_matrix(const pass *p, const sizes *z, size_t row, int layer, size_t head) {
    return (float *)row_state(p, row, layer) + head * z->key_dim * z->value_dim;
}

static float *state_taps(const pass *p, const sizes *z, size_t row, int layer) {
    return (float *)row_state(p, row, layer) + z->key_dim * z->values;
}

/* ---- Before the recurrence ----------------------------------------------------------------------
 */

static void activate(delta_activation activation, float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        switch (activation) {
        case DELTA_RELU:
            x[i] = x[i] < 0 ? 0 : x[i];
            break;
        case DELTA_ELU: /* elu(x) + 1 */
            x[i] = x[i] > 0 ? x[i] + 1 : exp_f32(x[i]);
            break;
        default:
            break;
        }
}

/* x / max(sum |x|, 1e-6), times scale. */
static void sum_norm(float *x, size_t n, float scale) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    float factor = (float)(scale / fmax(sum, 1e-6));
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] * factor;
}

/* Channels [c0, c1) of row r: the row itself is the last tap, the ones before it come from this
 * piece or from the state. */
static void convolve(const pass *p, const delta_weights *w, const sizes *z, const scratch_arrays *a,
                     int layer, size_t r, size_t c0, size_t c1, bool silu) {
    const float *x[MAX_TAPS];
    size_t back = 0;
    for (; back < z->taps; back++) {
        x[z->taps - 1 - back] = a->raw + (r - back) * z->channels;
        if (r == back || p->rows[r - back - 1].session != p->rows[r].session) break;
    }
    /* `back` rows of the piece come before r; older inputs are the last ones of the state */
    const float *old = state_taps(p, z, r, layer);
    for (size_t j = 0; j + 1 + back < z->taps; j++)
        x[j] = old + (j + back) * z->channels;
    p->k->short_conv(a->mixed + r * z->channels, x, w->conv, w->conv_bias, z->channels, z->taps, c0,
                     c1, silu);
}

/* Head h of row r: of q (h < heads), of k, then of v with its a and b. */
static void prepare(const pass *p, const delta_weights *w, const sizes *z, const scratch_arrays *a,
                    int layer, size_t r, size_t h) {
    const delta_config *c = z->c;
    if (h < 2 * z->heads) {
        size_t from = h * z->key_dim;
        float *x = a->mixed + r * z->channels + from;
        float scale = h < z->heads ? 1.0f / sqrtf((float)z->key_dim) : 1.0f;
        convolve(p, w, z, a, layer, r, from, from + z->key_dim, c->qk_activation == DELTA_SILU);
        activate(c->qk_activation, x, z->key_dim);
        if (c->sum_norm)
            sum_norm(x, z->key_dim, scale);
        else
            p->k->l2_norm(x, x, z->key_dim, 1e-6f, scale);
        return;
    }
    h -= 2 * z->heads;
    size_t from = 2 * z->heads * z->key_dim + h * z->value_dim, at = r * z->value_heads + h;
    convolve(p, w, z, a, layer, r, from, from + z->value_dim, true);
    a->write[at] = c->beta_scale;
    const float *beta = a->beta + at, *alpha = a->alpha + at;
    if (w->joint) {
        size_t group = z->value_heads / z->heads;
        beta = a->beta + r * 2 * z->value_heads + h / group * 2 * group + h % group;
        alpha = beta + group;
    }
    if (w->w_beta.rows) a->write[at] = (float)(c->beta_scale / (1 + exp(-(double)*beta)));
    a->keep[at] = 1;
    if (w->dt_bias) {
        double x = (double)*alpha + w->dt_bias[h], softplus = x > 20 ? x : log1p(exp(x));
        a->keep[at] = (float)exp(w->log_decay[h] * softplus);
    }
}

/* ---- The recurrence -----------------------------------------------------------------------------
 */

/* Columns [c0, c0 + n) of value head h, rows [from, to) of one session. */
static void recur(const pass *p, const sizes *z, const scratch_arrays *a, int layer, size_t h,
                  size_t c0, size_t n, size_t from, size_t to) {
    float *s = state_matrix(p, z, from, layer, h) + c0;
    size_t head = z->c->heads_alternate ? h % z->heads : h / (z->value_heads / z->heads);
    for (size_t r = from; r < to; r++) {
        const float *q = a->mixed + r * z->channels + head * z->key_dim;
        const float *k = q + z->heads * z->key_dim;
        const float *v = a->mixed + r * z->channels + 2 * z->heads * z->key_dim;
        size_t at = r * z->value_heads + h;
        p->k->delta_step(s, z->value_dim, z->key_dim, n, q, k, v + h * z->value_dim + c0,
                         a->keep[at], a->write[at], a->out + r * z->values + h * z->value_dim + c0);
    }
}

/* The last taps - 1 inputs of the session, of which rows [from, to) are the newest. */
static void keep_taps(const pass *p, const sizes *z, const scratch_arrays *a, int layer,
                      size_t from, size_t to) {
    float *taps = state_taps(p, z, from, layer);
    size_t n = z->taps - 1, fresh = min_size(n, to - from);
    memmove(taps, taps + fresh * z->channels, (n - fresh) * z->channels * sizeof *taps);
    memcpy(taps + (n - fresh) * z->channels, a->raw + (to - fresh) * z->channels,
           fresh * z->channels * sizeof *taps);
}

/* ---- After it ----------------------------------------------------------------------------------
 */

/* rms(o) and the gate, for one head of one row; the result is in a->gate, or a->out without. */
static void finish(const pass *p, const delta_weights *w, const sizes *z, const scratch_arrays *a,
                   size_t i) {
    float *out = a->out + i * z->value_dim, *gate = a->gate + i * z->value_dim;
    p->k->rms_norm(out, out, w->norm, z->value_dim, z->c->norm_eps);
    if (!w->w_gate.rows) return;
    if (z->c->sigmoid_gate)
        p->k->sigmoid_mul(gate, out, z->value_dim);
    else
        p->k->silu_mul(gate, out, z->value_dim);
}

static void forward(pass *p, int layer, int thread) {
    const delta_weights *w = p->m->layers[layer].mixer_weights;
    const sizes z = sizes_of(p->m, w);
    const scratch_arrays a = arrays(p, &z);
    product in[4] = {{&w->w_qkv, a.raw, z.channels, GEMM_STORE}};
    size_t n_in = 1;
    if (w->w_gate.rows) in[n_in++] = (product){&w->w_gate, a.gate, z.values, GEMM_STORE};
    if (w->w_beta.rows) in[n_in++] = (product){&w->w_beta, a.beta, w->w_beta.rows, GEMM_STORE};
    if (w->w_alpha.rows) in[n_in++] = (product){&w->w_alpha, a.alpha, z.value_heads, GEMM_STORE};
    pass_mix_in(p, thread, layer, in, n_in);

    size_t heads = 2 * z.heads + z.value_heads;
    for (phase ph = phase_begin(p->team, thread, p->n * heads); phase_next(&ph);)
        for (size_t i = ph.from; i < ph.to; i++)
            prepare(p, w, &z, &a, layer, i / heads, i % heads);

    /* of each session: its blocks of columns, and its taps */
    size_t blocks = (z.value_dim + COLUMNS - 1) / COLUMNS, units = z.value_heads * blocks + 1;
    for (phase ph = phase_begin(p->team, thread, p->n_runs * units); phase_next(&ph);)
        for (size_t i = ph.from; i < ph.to; i++) {
            size_t from = p->runs[i / units], to = p->runs[i / units + 1], u = i % units;
            size_t c0 = u % blocks * COLUMNS, n = min_size(COLUMNS, z.value_dim - c0);
            if (u + 1 < units)
                recur(p, &z, &a, layer, u / blocks, c0, n, from, to);
            else
                keep_taps(p, &z, &a, layer, from, to);
        }

    for (phase ph = phase_begin(p->team, thread, p->n * z.value_heads); phase_next(&ph);)
        for (size_t i = ph.from; i < ph.to; i++)
            finish(p, w, &z, &a, i);
    pass_mix_out(p, thread, layer, w->w_gate.rows ? a.gate : a.out, z.values, &w->w_out);
}

const mixer_ops mixer_delta_net = {
    .kind = MIXER_DELTA_NET,
    .name = "delta_net",
    .load = load_plain,
    .state_bytes = state_bytes,
    .work_floats = work_floats,
    .forward = forward,
};

const mixer_ops mixer_gated_delta_net = {
    .kind = MIXER_GATED_DELTA_NET,
    .name = "gated_delta_net",
    .load = load_gated,
    .state_bytes = state_bytes,
    .work_floats = work_floats,
    .forward = forward,
};
