/* The delta rule for one row per session, all of it in one launch. */
#include "delta.h"

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    MOST_COLUMNS = 128,
    LEAST_COLUMNS = 16,
    MOST_KEYS = 8 /* of a thread: its part of the state is in registers, 4 columns of each */
};

DEVICE float4 madd(float a, float4 x, float4 y) {
    return make_float4(fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w));
}

/* Sums of a warp's lanes that have the same columns, lane % quads, then of all warps: parts
 * [WARPS][4 quads]. Every thread gets those of its columns, the same bits. */
DEVICE float4 sum_keys(float4 x, int quads, float *parts) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = threadIdx.x % quads;
    for (int step = quads; step < 32; step *= 2) {
        x.x += __shfl_xor_sync(~0u, x.x, step);
        x.y += __shfl_xor_sync(~0u, x.y, step);
        x.z += __shfl_xor_sync(~0u, x.z, step);
        x.w += __shfl_xor_sync(~0u, x.w, step);
    }
    if (lane < quads) *(float4 *)(void *)(parts + (warp * quads + quad) * 4) = x;
    __syncthreads();
    float4 sum = make_float4(0, 0, 0, 0);
    UNROLL
    for (int w = 0; w < WARPS; w++)
        sum = madd(1, load_float4(parts + (w * quads + quad) * 4), sum);
    return sum;
}

/* Block (x, y, z): `columns` value dimensions of value head y of row z. Each number of the state is
 * read once, into registers, and written once: 8 K V bytes per head, which bounds the kernel where
 * there are many rows; a single row waits for the launch and three trips to memory. Rows of 64 to
 * 512 bytes. The first loads do not wait for the products in front: no other kernel of a piece
 * touches this layer's state.
 *
 * Blocks of one q/k head all read its taps. The last of them to finish (they count) moves these,
 * and does the norm and gate of its value heads, which need all columns. */
template <int KEYS>
__global__ void __launch_bounds__(THREADS, 2)
    delta_step_rows(delta_layer l, int columns, unsigned *counters) {
    DYNAMIC_SHARED(float,
                   q); /* [key_padded] and as many k, v [columns], parts [2][WARPS][columns] */
    SHARED(float, scalars, [2]);
    SHARED(unsigned, is_last, [1]);
    float *k = q + l.key_padded, *v = k + l.key_padded, *parts = v + columns;
    int t = threadIdx.x, warp = t / 32, lane = t % 32;
    int r = blockIdx.z, h = blockIdx.y, head = delta_key_head(l, h), c0 = blockIdx.x * columns;
    int quads = columns / 4, c = c0 + 4 * (t % quads), key0 = t / quads, key_step = THREADS / quads;
    float *state = delta_state(l, r), *taps = delta_taps(l, r);
    float *at = state + ((size_t)h * l.key_dim + key0) * l.value_dim + c;
    size_t next = (size_t)key_step * l.value_dim;
    bool inside = c < l.value_dim;
    float4 s[KEYS];
    UNROLL
    for (int j = 0; j < KEYS; j++)
        s[j] = inside && key0 + j * key_step < l.key_dim ? load_float4(at + j * next)
                                                         : make_float4(0, 0, 0, 0);
    wait_for_previous();
    let_next_start();

    const delta_history history[1] = {{taps, r, r}};
    if (warp < 2) {
        delta_prepare_keys(l, history, head + warp * l.heads, warp ? k : q);
    } else {
        for (int i = t - 64; i < columns && c0 + i < l.value_dim; i += THREADS - 64) {
            size_t channel = (size_t)2 * l.heads * l.key_dim + (size_t)h * l.value_dim + c0 + i;
            v[i] = delta_convolve(l, history[0], channel, true);
            delta_keep_taps(l, taps, r, r + 1, channel);
        }
        if (warp == WARPS - 1 && lane == 0) {
            scalars[0] = delta_write(l, r, h);
            scalars[1] = expf(delta_log_keep(l, r, h));
        }
    }
    __syncthreads();

    float4 sum = make_float4(0, 0, 0, 0);
    UNROLL
    for (int j = 0; j < KEYS; j++) {
        int i = key0 + j * key_step;
        if (i < l.key_dim) sum = madd(k[i], s[j], sum);
    }
    sum = sum_keys(sum, quads, parts);
    float write = scalars[0], keep = scalars[1];
    float4 d = make_float4(0, 0, 0, 0);
    if (inside) {
        d = load_float4(v + c - c0);
        d = make_float4(write * (d.x - keep * sum.x), write * (d.y - keep * sum.y),
                        write * (d.z - keep * sum.z), write * (d.w - keep * sum.w));
    }
    sum = make_float4(0, 0, 0, 0);
    UNROLL
    for (int j = 0; j < KEYS; j++) {
        int i = key0 + j * key_step;
        if (!inside || i >= l.key_dim) continue;
        float4 kept = make_float4(keep * s[j].x, keep * s[j].y, keep * s[j].z, keep * s[j].w);
        s[j] = madd(k[i], d, kept);
        *(float4 *)(void *)(at + j * next) = s[j];
        sum = madd(q[i], s[j], sum);
    }
    sum = sum_keys(sum, quads, parts + WARPS * columns);
    if (t < quads && inside)
        *(float4 *)(void *)(l.out + r * l.values + (size_t)h * l.value_dim + c) = sum;

    int group = l.value_heads / l.heads;
    unsigned blocks = gridDim.x * (unsigned)group;
    __threadfence();
    __syncthreads();
    if (blocks > 1) {
        if (t == 0)
            is_last[0] = atomicInc(counters + (size_t)r * l.heads + head, blocks - 1) == blocks - 1;
        __syncthreads();
        if (!is_last[0]) return;
        __threadfence();
    }
    for (int i = warp; i < group; i += WARPS)
        delta_finish_head(l, r, delta_value_head(l, head, i));
    for (int i = t; i < 2 * l.key_dim; i += THREADS)
        delta_keep_taps(l, taps, r, r + 1,
                        (size_t)(i < l.key_dim ? head : l.heads + head - 1) * l.key_dim + i);
}

bool delta_step_fits(const delta_layer *l) {
    return l->longest_run == 1 && l->value_dim % 4 == 0 &&
           l->key_dim * LEAST_COLUMNS <= MOST_KEYS * 4 * THREADS &&
           l->n * (size_t)l->heads <= CUDA_COUNTERS;
}

void delta_step(device_stream stream, const delta_layer *l, unsigned *counters) {
    /* as many columns as leave a block for (almost) every SM */
    int columns = MOST_COLUMNS;
    while (columns > LEAST_COLUMNS &&
           (columns * l->key_dim > MOST_KEYS * 4 * THREADS || columns / 2 >= l->value_dim ||
            l->n * l->value_heads * ((l->value_dim + columns - 1) / columns) * 8 <
                7 * (size_t)l->sm_count))
        columns /= 2;
    int keys = (l->key_dim * (columns / 4) + THREADS - 1) / THREADS;
    dim3 grid((unsigned)((l->value_dim + columns - 1) / columns), (unsigned)l->value_heads,
              (unsigned)l->n);
    size_t shared = ((size_t)2 * l->key_padded + (size_t)columns * (1 + 2 * WARPS)) * sizeof(float);
#define STEP(keys)                                                                                 \
    launch_overlapped(stream, grid, dim3(THREADS), shared, delta_step_rows<keys>, *l, columns,     \
                      counters)
    if (keys <= 1)
        STEP(1);
    else if (keys <= 2)
        STEP(2);
    else if (keys <= 4)
        STEP(4);
    else
        STEP(8);
}
