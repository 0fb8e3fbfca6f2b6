/* The delta rule (attention/delta.c has the formulas): what its kernels share. delta.cu chooses
 *   delta_step        (delta_step.cu)   one row per session: decoding, all of it in one launch
 *   delta_mix, then   (delta.cu)        convolution, activation, norms, b and the decay of all rows
 *     delta_recur     (delta_recur.cu)  the recurrence, token by token: short runs, odd sizes,
 * exact delta_chunks    (delta_chunk.cu)  or 64 tokens at a time, on tensor cores and delta_finish
 * (delta.cu)        norm and gate, and the taps that the session keeps. */
#ifndef CUDA_DELTA_H
#define CUDA_DELTA_H

#include "pass.h"

enum {
    DELTA_CHUNK = 64,
    DELTA_CHUNK_KEYS = 256, /* the most dimensions of a key that delta_chunks takes */
    /* behind a head's values in `mixed` */
    DELTA_WRITE = 0,    /* b */
    DELTA_LOG_KEEP = 1, /* log a; all <= 0 */
    DELTA_KEEP = 2,     /* a; delta_chunks: product of a from the chunk's start, its own included */
    DELTA_TO_END = 3,   /* delta_chunks: product of the later rows' a, to the chunk's end */
    DELTA_SCALARS = 4
};

/* A layer, its weights and arrays on the GPU, and its piece. Arrays begin at multiples of 16 bytes.
 */
typedef struct {
    int heads, value_heads, key_dim, value_dim;
    int key_padded;          /* to a multiple of 16, with zeros */
    int value_stride;        /* of a head in `mixed`: values padded to 4, DELTA_SCALARS */
    size_t channels, values; /* of q, k, v together; of v */
    size_t mixed_row;        /* 2 heads * key_padded + value_heads * value_stride */
    int taps;                /* of the convolution */
    bool heads_alternate, sum_norm, sigmoid_gate, joint, has_beta;
    delta_activation qk_activation;
    float beta_scale, norm_eps, query_scale;
    const float *conv, *conv_bias;    /* [taps, channels], [channels]; NULL: none */
    const float *log_decay, *dt_bias; /* [value_heads]; NULL: no decay */
    const float *norm;                /* [value_dim] */
    const float *raw;                 /* [n, channels] projections */
    const float *gate;                /* [n, values] or NULL */
    const float *beta, *alpha;        /* [n, value_heads], or joint */
    float *mixed;                     /* [n, mixed_row] q, k, v with scalars; then U for v */
    float *out;                       /* [n, values] */
    float *write_keys;                /* [n, value_heads, key_dim] W of delta_chunks */
    float *scores;                    /* [n, value_heads, DELTA_CHUNK] its masked q.k */
    size_t state_at;                  /* of the layer in a session's state */
    const cuda_row *rows;
    const cuda_run *runs;
    size_t n, n_runs, longest_run;
    int sm_count;
} delta_layer;

/* Host functions; delta_step_fits: whether delta_step does such a piece, and so on. */
bool delta_step_fits(const delta_layer *l);
void delta_step(device_stream stream, const delta_layer *l, unsigned *counters);
void delta_recur(device_stream stream, const delta_layer *l);
bool delta_chunks_fit(const delta_layer *l);
void delta_chunks(device_stream stream, const delta_layer *l);

/* ---- On the GPU -------------------------------------------------------------------------- */
DEVICE float4 load_float4(const float *p) {
    uint4 u = load16(p);
    return make_float4(__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z),
                       __uint_as_float(u.w));
}

/* S [value_heads][key_dim][value_dim], then taps [taps - 1][channels], oldest first. */
DEVICE float *delta_state(const delta_layer &l, int row) {
    return (float *)(void *)(l.rows[row].state + l.state_at);
}

DEVICE float *delta_taps(const delta_layer &l, int row) {
    return delta_state(l, row) + (size_t)l.key_dim * l.values;
}

/* Whose queries and keys value head h uses, and the i-th value head of such a head. */
DEVICE int delta_key_head(const delta_layer &l, int h) {
    return l.heads_alternate ? h % l.heads : h / (l.value_heads / l.heads);
}

DEVICE int delta_value_head(const delta_layer &l, int head, int i) {
    return l.heads_alternate ? head + i * l.heads : head * (l.value_heads / l.heads) + i;
}

/* Where head h's values and scalars lie in a row of `mixed`; queries are at head * key_padded, keys
 * `heads` heads later. */
DEVICE size_t delta_values_at(const delta_layer &l, int h) {
    return (size_t)2 * l.heads * l.key_padded + (size_t)h * l.value_stride;
}

DEVICE size_t delta_scalars_at(const delta_layer &l, int h) {
    return delta_values_at(l, h) + l.value_stride - DELTA_SCALARS;
}

/* Where a row's older inputs are: the rows of its session begin at `first`, and before those come
 * the session's taps. */
typedef struct {
    const float *taps;
    int row, first;
} delta_history;

DEVICE delta_history delta_history_of(const delta_layer &l, int row) {
    int first = l.runs[l.rows[row].run].first;
    return {delta_taps(l, first), row, first};
}

/* Channel c of a row after the convolution. */
DEVICE float delta_convolve(const delta_layer &l, const delta_history &of, size_t c, bool silu) {
    float sum = !l.conv ? l.raw[of.row * l.channels + c] : l.conv_bias ? l.conv_bias[c] : 0.0f;
    if (l.conv) {
        UNROLL_BY_4
        for (int j = 0; j < l.taps; j++) {
            int at = of.row - (l.taps - 1 - j);
            const float *x = at >= of.first
                                 ? l.raw + at * l.channels
                                 : of.taps + (size_t)(at - of.first + l.taps - 1) * l.channels;
            sum = fmaf(l.conv[j * l.channels + c], x[c], sum);
        }
    }
    return silu ? sum / (1.0f + expf(-sum)) : sum;
}

/* Head `unit` of q (unit < heads) or of k in some rows, by one warp: convolution, activation, norm;
 * to [ROWS][key_padded] in shared memory. A lane reads back only what it wrote. */
template <int ROWS>
DEVICE void delta_prepare_keys(const delta_layer &l, const delta_history (&of)[ROWS], int unit,
                               float *to) {
    float sum[ROWS], x[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        sum[r] = 0;
    UNROLL_BY_4
    for (int i = threadIdx.x % 32; i < l.key_dim; i += 32) {
        UNROLL
        for (int r = 0; r < ROWS; r++)
            x[r] = delta_convolve(l, of[r], (size_t)unit * l.key_dim + i,
                                  l.qk_activation == DELTA_SILU);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            float y = x[r];
            if (l.qk_activation == DELTA_RELU) y = y < 0 ? 0 : y;
            if (l.qk_activation == DELTA_ELU) y = y > 0 ? y + 1 : expf(y); /* elu(x) + 1 */
            sum[r] = l.sum_norm ? sum[r] + fabsf(y) : fmaf(y, y, sum[r]);
            to[r * l.key_padded + i] = y;
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
        float all = warp_sum(sum[r]), scale = unit < l.heads ? l.query_scale : 1.0f;
        scale = l.sum_norm ? scale / fmaxf(all, 1e-6f) : scale / sqrtf(all + 1e-6f);
        for (int i = threadIdx.x % 32; i < l.key_padded; i += 32) {
            float *y = to + r * l.key_padded + i;
            *y = i < l.key_dim ? *y * scale : 0;
        }
    }
}

/* b and log a of value head h. */
DEVICE float delta_write(const delta_layer &l, int r, int h) {
    if (!l.has_beta) return l.beta_scale;
    int group = l.value_heads / l.heads;
    float x = l.joint ? l.beta[(size_t)r * 2 * l.value_heads + h / group * 2 * group + h % group]
                      : l.beta[(size_t)r * l.value_heads + h];
    return l.beta_scale / (1.0f + expf(-x));
}

DEVICE float delta_log_keep(const delta_layer &l, int r, int h) {
    if (!l.dt_bias) return 0;
    int group = l.value_heads / l.heads;
    float x =
        l.joint ? l.beta[(size_t)r * 2 * l.value_heads + h / group * 2 * group + group + h % group]
                : l.alpha[(size_t)r * l.value_heads + h];
    x += l.dt_bias[h];
    float log_keep = l.log_decay[h] * (x > 20 ? x : log1pf(expf(x)));
    return log_keep < -1e30f ? -1e30f : log_keep; /* differences of sums stay numbers */
}

/* rms(o) and the gate, in place, for a head of a row, by one warp. Other blocks may have written o:
 * it is not read through the L1 cache. */
DEVICE void delta_finish_head(const delta_layer &l, size_t r, int h) {
    size_t at = r * l.values + (size_t)h * l.value_dim;
    volatile const float *o = l.out + at;
    float sum = 0;
    UNROLL_BY_4
    for (int i = threadIdx.x % 32; i < l.value_dim; i += 32) {
        float x = o[i];
        sum = fmaf(x, x, sum);
    }
    float scale = 1.0f / sqrtf(warp_sum(sum) / l.value_dim + l.norm_eps);
    UNROLL_BY_4
    for (int i = threadIdx.x % 32; i < l.value_dim; i += 32) {
        float y = o[i] * scale * l.norm[i];
        if (l.gate) {
            float g = l.gate[at + i], e = 1.0f + expf(-g);
            y = l.sigmoid_gate ? y / e : g / e * y;
        }
        l.out[at + i] = y;
    }
}

/* Keeps the last inputs of channel c of the session whose rows are [first, last), by one thread. */
DEVICE void delta_keep_taps(const delta_layer &l, float *taps, int first, int last, size_t c) {
    int n = l.taps - 1, fresh = min(n, last - first);
    for (int j = 0; j < n; j++)
        taps[j * l.channels + c] = j + fresh < n ? taps[(j + fresh) * l.channels + c]
                                                 : l.raw[(size_t)(last - n + j) * l.channels + c];
}

#endif
