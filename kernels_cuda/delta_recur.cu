/* The delta rule token by token, for runs of rows. */
#include "delta.h"
#include "ptx.h"

enum {
    THREADS = 64,
    COLUMNS = THREADS / 4, /* of a block: four lanes share a column */
    MOST_TOKENS = 8,       /* of a stage, of which two are in shared memory */
    STAGE_BYTES = 32 << 10
};

/* Floats of a token: q, k, the block's values, scalars. */
static inline int token_floats(const delta_layer *l) {
    return 2 * l->key_padded + COLUMNS + DELTA_SCALARS;
}

/* Starts the copies of rows [from, to) to `stage` [to - from][token]. */
DEVICE void stage_rows(const delta_layer &l, int h, int c0, int from, int to, int token,
                       float *stage) {
    int head = delta_key_head(l, h), quads = l.key_padded / 4, of_token = token / 4;
    int padded = l.value_stride - DELTA_SCALARS;
    for (int i = threadIdx.x; i < (to - from) * of_token; i += THREADS) {
        int r = from + i / of_token, at = i % of_token;
        const float *row = l.mixed + r * l.mixed_row, *x;
        int bytes = 16;
        if (at < quads) {
            x = row + (size_t)head * l.key_padded + 4 * at;
        } else if (at < 2 * quads) {
            x = row + (size_t)(l.heads + head) * l.key_padded + 4 * (at - quads);
        } else if (at < of_token - 1) {
            int c = c0 + 4 * (at - 2 * quads);
            if (c >= padded) c = bytes = 0;
            x = row + delta_values_at(l, h) + c;
        } else {
            x = row + delta_scalars_at(l, h);
        }
        cp_async16(stage + 4 * i, x, bytes);
    }
}

/* Block (x, y, z): COLUMNS value dimensions of value head y of run z. A lane has every fourth
 * quad of keys of one column, KEYS numbers of the state, in registers for the whole run; with KEYS
 * 0 they stay in global memory. A token costs key_dim/4 * 4 FMA per lane and two trips through the
 * lanes, about a fifth of a microsecond on paper whatever the number of heads: latency is the
 * bound. Rows come to shared memory ahead of their use; q and k are read again by each of the
 * head's blocks, from the L2 cache. */
template <int KEYS>
__global__ void __launch_bounds__(THREADS, 1)
    delta_recur_runs(delta_layer l, int token, int stage_tokens) {
    DYNAMIC_SHARED(float, stages); /* [2][stage_tokens][token] */
    int h = blockIdx.y, part = threadIdx.x % 4, c0 = blockIdx.x * COLUMNS;
    int c = c0 + threadIdx.x / 4;
    cuda_run run = l.runs[blockIdx.z];
    bool inside = c < l.value_dim;
    float *state = delta_state(l, run.first) + (size_t)h * l.key_dim * l.value_dim + c;
    size_t stride = (size_t)l.value_dim;
    float s[KEYS ? KEYS : 1]; /* key 16 j + 4 part + e at 4 j + e */
    UNROLL
    for (int i = 0; i < KEYS; i++) {
        int key = i / 4 * 16 + 4 * part + i % 4;
        s[i] = inside && key < l.key_dim ? state[key * stride] : 0;
    }
    stage_rows(l, h, c0, run.first, min(run.first + stage_tokens, run.last), token, stages);
    cp_async_commit();
    for (int from = run.first, odd = 0; from < run.last; from += stage_tokens, odd ^= 1) {
        int to = min(from + stage_tokens, run.last);
        if (to < run.last)
            stage_rows(l, h, c0, to, min(to + stage_tokens, run.last), token,
                       stages + (odd ^ 1) * stage_tokens * token);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        const float *row = stages + odd * stage_tokens * token;
        for (int r = from; r < to; r++, row += token) {
            const float *q = row + 4 * part, *k = q + l.key_padded, *v = row + 2 * l.key_padded;
            float write = v[COLUMNS + DELTA_WRITE], keep = v[COLUMNS + DELTA_KEEP];
            float sum[4] = {0, 0, 0, 0};
            if (KEYS) {
                UNROLL
                for (int i = 0; i < KEYS; i += 4) {
                    if (4 * i >= l.key_padded) break;
                    float4 x = load_float4(k + 4 * i);
                    sum[0] = fmaf(x.x, s[i], sum[0]);
                    sum[1] = fmaf(x.y, s[i + 1], sum[1]);
                    sum[2] = fmaf(x.z, s[i + 2], sum[2]);
                    sum[3] = fmaf(x.w, s[i + 3], sum[3]);
                }
            } else if (inside) {
                for (int i = part; i < l.key_dim; i += 4)
                    sum[0] = fmaf((k - 4 * part)[i], state[i * stride], sum[0]);
            }
            float all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            all += __shfl_xor_sync(~0u, all, 1);
            all += __shfl_xor_sync(~0u, all, 2);
            float d = write * (v[c - c0] - keep * all);
            sum[0] = sum[1] = sum[2] = sum[3] = 0;
            if (KEYS) {
                UNROLL
                for (int i = 0; i < KEYS; i += 4) {
                    if (4 * i >= l.key_padded) break;
                    float4 x = load_float4(k + 4 * i), y = load_float4(q + 4 * i);
                    s[i] = fmaf(x.x, d, keep * s[i]);
                    s[i + 1] = fmaf(x.y, d, keep * s[i + 1]);
                    s[i + 2] = fmaf(x.z, d, keep * s[i + 2]);
                    s[i + 3] = fmaf(x.w, d, keep * s[i + 3]);
                    sum[0] = fmaf(y.x, s[i], sum[0]);
                    sum[1] = fmaf(y.y, s[i + 1], sum[1]);
                    sum[2] = fmaf(y.z, s[i + 2], sum[2]);
                    sum[3] = fmaf(y.w, s[i + 3], sum[3]);
                }
            } else if (inside) {
                for (int i = part; i < l.key_dim; i += 4) {
                    float x = fmaf((k - 4 * part)[i], d, keep * state[i * stride]);
                    state[i * stride] = x;
                    sum[0] = fmaf((q - 4 * part)[i], x, sum[0]);
                }
            }
            all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            all += __shfl_xor_sync(~0u, all, 1);
            all += __shfl_xor_sync(~0u, all, 2);
            if (part == 0 && inside) l.out[r * l.values + (size_t)h * l.value_dim + c] = all;
        }
        __syncthreads(); /* the stage may be written again */
    }
    cp_async_wait<0>();
    UNROLL
    for (int i = 0; i < KEYS; i++) {
        int key = i / 4 * 16 + 4 * part + i % 4;
        if (inside && key < l.key_dim) state[key * stride] = s[i];
    }
}

void delta_recur(device_stream stream, const delta_layer *l) {
    int token = token_floats(l), most = STAGE_BYTES / (token * (int)sizeof(float));
    int tokens = most < 1 ? 1 : most < MOST_TOKENS ? most : MOST_TOKENS;
    dim3 grid((unsigned)((l->value_dim + COLUMNS - 1) / COLUMNS), (unsigned)l->value_heads,
              (unsigned)l->n_runs);
    size_t shared = (size_t)2 * tokens * token * sizeof(float);
#define RECUR(keys)                                                                                \
    launch(stream, grid, dim3(THREADS), shared, delta_recur_runs<keys>, *l, token, tokens)
    if (l->key_padded <= 64)
        RECUR(16);
    else if (l->key_padded <= 128)
        RECUR(32);
    else if (l->key_padded <= 256)
        RECUR(64);
    else
        RECUR(0);
}
