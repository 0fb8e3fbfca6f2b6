/* Delta-rule layers: what they are made of on a GPU, and the steps around the recurrence. */
#include "delta.h"

#include <math.h>

enum {
    MIX_WARPS = 4, /* 1 where four would want too much shared memory */
    MIX_ROWS = 4,
    MIX_KEYS = 1024, /* the most dimensions for four */
    FINISH_THREADS = 256
};

/* ---- Layers ----------------------------------------------------------------------------------
 */

static delta_layer sizes_of(const linnet_model *m, int layer) {
    const delta_weights *w = (const delta_weights *)m->layers[layer].mixer_weights;
    const delta_config *c = &m->cfg.delta;
    delta_layer l = {};
    l.heads = c->n_heads;
    l.value_heads = c->n_value_heads;
    l.key_dim = c->key_dim;
    l.value_dim = c->value_dim;
    l.key_padded = (int)round_up((size_t)c->key_dim, 16);
    l.value_stride = (int)round_up((size_t)c->value_dim, 4) + DELTA_SCALARS;
    l.values = (size_t)c->n_value_heads * c->value_dim;
    l.channels = (size_t)2 * c->n_heads * c->key_dim + l.values;
    l.mixed_row = (size_t)2 * c->n_heads * l.key_padded + (size_t)c->n_value_heads * l.value_stride;
    l.taps = (int)w->taps;
    l.heads_alternate = c->heads_alternate;
    l.sum_norm = c->sum_norm;
    l.sigmoid_gate = c->sigmoid_gate;
    l.joint = w->joint;
    l.has_beta = w->w_beta.rows != 0;
    l.qk_activation = c->qk_activation;
    l.beta_scale = c->beta_scale;
    l.norm_eps = c->norm_eps;
    l.query_scale = 1.0f / sqrtf((float)c->key_dim);
    l.state_at = m->layers[layer].state_at;
    return l;
}

/* Takes the arrays of n rows from `at` (NULL: only counts) and returns their floats. */
static size_t take_arrays(delta_layer *l, size_t n, bool chunks, float *at) {
    size_t used = 0, heads = (size_t)l->value_heads;
    chunks = chunks && delta_chunks_fit(l);
#define TAKE(field, width)                                                                         \
    do {                                                                                           \
        if (at) l->field = at + used;                                                              \
        used += round_up(n * (width), 4);                                                          \
    } while (0)
    TAKE(raw, l->channels);
    TAKE(mixed, l->mixed_row);
    TAKE(gate, l->values);
    TAKE(out, l->values);
    TAKE(beta, heads);
    TAKE(alpha, heads);
    if (l->joint) TAKE(beta, 2 * heads);
    if (chunks) TAKE(write_keys, heads * l->key_dim);
    if (chunks) TAKE(scores, heads * DELTA_CHUNK);
#undef TAKE
    return used;
}

/* A row's share is largest for a piece of one row, which rounds up most. */
static size_t work_floats(const linnet_model *m, int layer) {
    delta_layer l = sizes_of(m, layer);
    return take_arrays(&l, 1, m->act != LINNET_ACT_EXACT, NULL);
}

/* ---- Steps -----------------------------------------------------------------------------------
 */

/* A warp: MIX_ROWS rows of a head of q, of k, or of v with its scalars, all their loads on the way
 * at once. Bounds: the projections read once from memory (a strip's older rows twice, those within
 * it from the L1 cache) and `mixed` written once. */
__global__ void __launch_bounds__(32 * MIX_WARPS) delta_mix(delta_layer l) {
    DYNAMIC_SHARED(float, heads); /* [warps][MIX_ROWS][key_padded] */
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, keys = 2 * l.heads;
    int unit = blockIdx.x * (blockDim.x / 32) + warp, from = blockIdx.y * MIX_ROWS;
    int rows = min(MIX_ROWS, (int)l.n - from);
    if (unit >= keys + l.value_heads) return;
    delta_history of[MIX_ROWS]; /* past the end: the last row again */
    UNROLL
    for (int r = 0; r < MIX_ROWS; r++)
        of[r] = delta_history_of(l, from + min(r, rows - 1));
    if (unit < keys) {
        float *head = heads + warp * MIX_ROWS * l.key_padded;
        float *to = l.mixed + from * l.mixed_row + (size_t)unit * l.key_padded;
        delta_prepare_keys(l, of, unit, head);
        for (int r = 0; r < rows; r++)
            for (int i = lane; i < l.key_padded; i += 32)
                to[r * l.mixed_row + i] = head[r * l.key_padded + i];
        return;
    }
    int h = unit - keys, padded = l.value_stride - DELTA_SCALARS;
    size_t channel = (size_t)keys * l.key_dim + (size_t)h * l.value_dim;
    float *to = l.mixed + from * l.mixed_row + delta_values_at(l, h);
    for (int i = lane; i < padded; i += 32) {
        float x[MIX_ROWS];
        UNROLL
        for (int r = 0; r < MIX_ROWS; r++)
            x[r] = i < l.value_dim ? delta_convolve(l, of[r], channel + i, true) : 0;
        UNROLL
        for (int r = 0; r < MIX_ROWS; r++)
            if (r < rows) to[r * l.mixed_row + i] = x[r];
    }
    if (lane < rows) {
        float log_keep = delta_log_keep(l, from + lane, h);
        to += lane * l.mixed_row + padded;
        to[DELTA_WRITE] = delta_write(l, from + lane, h);
        to[DELTA_LOG_KEEP] = log_keep;
        to[DELTA_KEEP] = expf(log_keep);
        to[DELTA_TO_END] = 0;
    }
}

/* Blocks of warps with a head of a row each, then `tap_blocks` for each run. */
__global__ void delta_finish(delta_layer l, int head_blocks, int tap_blocks) {
    int x = (int)blockIdx.x;
    if (x < head_blocks) {
        size_t i = (size_t)x * (FINISH_THREADS / 32) + threadIdx.x / 32;
        if (i < l.n * l.value_heads)
            delta_finish_head(l, i / l.value_heads, (int)(i % l.value_heads));
        return;
    }
    x -= head_blocks;
    cuda_run run = l.runs[x / tap_blocks];
    size_t c = (size_t)(x % tap_blocks) * FINISH_THREADS + threadIdx.x;
    if (c < l.channels) delta_keep_taps(l, delta_taps(l, run.first), run.first, run.last, c);
}

/* ---- All of it -------------------------------------------------------------------------------
 */

static void forward(const cuda_pass *p, int layer) {
    const delta_weights *w = (const delta_weights *)p->m->layers[layer].mixer_weights;
    delta_layer l = sizes_of(p->m, layer);
    take_arrays(&l, p->n, !p->exact, p->work);
    if (!w->w_gate.rows) l.gate = NULL;
    l.conv = on_gpu(p, w->conv);
    l.conv_bias = on_gpu(p, w->conv_bias);
    l.log_decay = on_gpu(p, w->log_decay);
    l.dt_bias = on_gpu(p, w->dt_bias);
    l.norm = on_gpu(p, w->norm);
    l.rows = p->rows;
    l.runs = p->runs;
    l.n = p->n;
    l.n_runs = p->n_runs;
    l.longest_run = p->longest_run;
    l.sm_count = p->sm_count;

    product in[4] = {{&w->w_qkv, (float *)l.raw, l.channels, GEMM_STORE}};
    size_t n_in = 1;
    if (w->w_gate.rows) in[n_in++] = {&w->w_gate, (float *)l.gate, l.values, GEMM_STORE};
    if (w->w_beta.rows) in[n_in++] = {&w->w_beta, (float *)l.beta, w->w_beta.rows, GEMM_STORE};
    if (w->w_alpha.rows) in[n_in++] = {&w->w_alpha, (float *)l.alpha, w->w_alpha.rows, GEMM_STORE};
    cuda_mix_in(p, layer, in, n_in);

    if (delta_step_fits(&l)) {
        delta_step(p->stream, &l, p->counters);
    } else {
        unsigned units = (unsigned)(2 * l.heads + l.value_heads);
        unsigned warps = l.key_padded <= MIX_KEYS ? MIX_WARPS : 1;
        dim3 strips((units + warps - 1) / warps, (unsigned)((p->n + MIX_ROWS - 1) / MIX_ROWS));
        launch(p->stream, strips, dim3(32 * warps),
               (size_t)warps * MIX_ROWS * l.key_padded * sizeof(float), delta_mix, l);
        if (!p->exact && l.longest_run > DELTA_CHUNK && delta_chunks_fit(&l))
            delta_chunks(p->stream, &l);
        else
            delta_recur(p->stream, &l);
        size_t heads = (p->n * l.value_heads + FINISH_THREADS / 32 - 1) / (FINISH_THREADS / 32);
        size_t taps = l.taps > 1 ? (l.channels + FINISH_THREADS - 1) / FINISH_THREADS : 0;
        launch(p->stream, dim3((unsigned)(heads + p->n_runs * taps)), dim3(FINISH_THREADS), 0,
               delta_finish, l, (int)heads, (int)taps);
    }
    cuda_mix_out(p, layer, l.out, l.values, &w->w_out);
}

extern const cuda_mixer cuda_delta_net = {MIXER_DELTA_NET, forward, NULL, work_floats};
extern const cuda_mixer cuda_gated_delta_net = {MIXER_GATED_DELTA_NET, forward, NULL, work_floats};
