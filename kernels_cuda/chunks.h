/* Linear attention over many rows of a run, in chunks of CHUNK rows: within a chunk the products of
 * queries and keys directly, what came before through the state, which is read and written once per
 * chunk. One block has CHUNK_COLUMNS columns of a head's values and takes the chunks in order.
 *
 *   y_r = phi_q(r)^T S + sum over keys j of the chunk that r sees of w(r, j) v_j
 *   S  += sum over keys of the chunk of phi_k(j) v_j^T
 *
 * All products are on tensor cores in 3xTF32: a = hi + lo, b = hi + lo, each to 11 bits, and lo lo
 * is left out, so that errors are those of float32. States are summed in float32. */
#ifndef CHUNKS_H
#define CHUNKS_H

#include "linear.h"
#include "ptx.h"

enum {
    CHUNK = 64,         /* rows, keys, and features of a tile */
    CHUNK_COLUMNS = 32, /* of values */
    CHUNK_LEAST = 16,   /* rows of a run that is taken in chunks */
    /* Floats from one row of a tile to the next, so that the lanes of a fragment hit 32 banks. */
    TILE_STEP = CHUNK + 4,
    VALUE_STEP = CHUNK_COLUMNS + 8
};

typedef struct {
    float *q, *k, *w; /* [CHUNK][TILE_STEP] a tile of features of queries, of keys; weights */
    float *v, *s;     /* [CHUNK][VALUE_STEP] values of keys; a tile of the state */
    float *den;       /* [CHUNK] of queries */
    float *z;         /* [features] */
} chunk_memory;

static inline size_t chunk_floats(size_t features) {
    return 3 * CHUNK * TILE_STEP + 2 * CHUNK * VALUE_STEP + CHUNK + features;
}

DEVICE chunk_memory chunk_layout(float *shared) {
    chunk_memory m;
    m.q = shared;
    m.k = m.q + CHUNK * TILE_STEP;
    m.w = m.k + CHUNK * TILE_STEP;
    m.v = m.w + CHUNK * TILE_STEP;
    m.s = m.v + CHUNK * VALUE_STEP;
    m.den = m.s + CHUNK * VALUE_STEP;
    m.z = m.den + CHUNK;
    return m;
}

typedef struct {
    uint32_t hi, lo;
} split_float;

DEVICE split_float split(float x) {
    uint32_t hi = to_tf32(x);
    return {hi, to_tf32(x - __uint_as_float(hi))};
}

/* sum[i] += a b for this warp's part of a product with CHUNK rows and 16 N columns, `depth` (a
 * multiple of 8) terms deep: rows 16 (warp % 4) ..., columns 8 N (warp / 4) ...; a(row, k), b(k,
 * column). A lane's numbers lie as mma_tf32's d. */
template <int N, class A, class B>
DEVICE void chunk_product(float (&sum)[N][4], int depth, A a, B b) {
    int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    int row = warp % 4 * 16 + g, column = warp / 4 * 8 * N + g;
    for (int k = t; k < depth; k += 8) {
        uint32_t a_hi[4], a_lo[4];
        for (int i = 0; i < 4; i++) {
            split_float x = split(a(row + i % 2 * 8, k + i / 2 * 4));
            a_hi[i] = x.hi, a_lo[i] = x.lo;
        }
        for (int j = 0; j < N; j++) {
            uint32_t b_hi[2], b_lo[2];
            for (int i = 0; i < 2; i++) {
                split_float x = split(b(k + i * 4, column + 8 * j));
                b_hi[i] = x.hi, b_lo[i] = x.lo;
            }
            mma_tf32(sum[j], a_lo, b_hi);
            mma_tf32(sum[j], a_hi, b_lo);
            mma_tf32(sum[j], a_hi, b_hi);
        }
    }
}

/* use(row, column, sum) for each number of this lane's part. */
template <int N, class F> DEVICE void each_of_product(float (&sum)[N][4], F use) {
    int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    for (int j = 0; j < N; j++)
        for (int i = 0; i < 4; i++)
            use(warp % 4 * 16 + g + i / 2 * 8, warp / 4 * 8 * N + 8 * j + 2 * t + i % 2, sum[j][i]);
}

/* The run of rows [0, n) through columns [c0, c0 + CHUNK_COLUMNS) of S [features][width] and
 * through m.z. A source has
 *     keys_of(r)            keys that rows after r find in the state: 0 ... of the run, in order
 *     seen_by(r)            keys that row r sees in all
 *     load_value(key, c), finish(r, c, sum, den)
 *     load_features(m, r0, rows, k0, keys, at)
 *                           fills m.q and m.k with features at ... at + CHUNK of rows and keys;
 *                           zero past the ends
 *     weigh(m, r0, rows, k0, keys, weights)
 *                           what has to be added to weights, the products of the features that the
 *                           loop has summed; or weights from elsewhere, and then
 *     direct                the loop sums no such products
 * The bytes that a chunk moves are 8 features CHUNK_COLUMNS of the state (from L2) and its rows. */
template <class T>
DEVICE void run_chunks(const T &from, int n, float *S, int features, int width, int c0,
                       const chunk_memory &m) {
    int t = (int)threadIdx.x, k0 = 0;
    for (int r0 = 0; r0 < n; r0 += CHUNK) {
        int rows = min(CHUNK, n - r0), last_key = from.keys_of(r0 + rows - 1);
        float out[2][4] = {}, den = 0; /* den: of row t / 4, a quarter of the terms */
        bool reads = true;
        do { /* once per tile of keys: the first also reads the state */
            int keys = min(CHUNK, last_key - k0);
            float weights[4][4] = {};
            for (int i = t; i < CHUNK * CHUNK_COLUMNS; i += LINEAR_THREADS) {
                int k = i / CHUNK_COLUMNS, c = i % CHUNK_COLUMNS;
                m.v[k * VALUE_STEP + c] =
                    k < keys && c0 + c < width ? from.load_value(k0 + k, c0 + c) : 0;
            }
            for (int at = 0; at < features; at += CHUNK) {
                int tile = min(CHUNK, features - at);
                from.load_features(m, r0, rows, k0, keys, at);
                for (int i = t; i < CHUNK * CHUNK_COLUMNS; i += LINEAR_THREADS) {
                    int f = i / CHUNK_COLUMNS, c = i % CHUNK_COLUMNS;
                    m.s[f * VALUE_STEP + c] =
                        f < tile && c0 + c < width ? S[(size_t)(at + f) * width + c0 + c] : 0;
                }
                __syncthreads();
                if (reads) {
                    for (int f = t % 4; f < tile; f += 4)
                        den += m.q[t / 4 * TILE_STEP + f] * m.z[at + f];
                    chunk_product(
                        out, CHUNK, [&](int r, int f) { return m.q[r * TILE_STEP + f]; },
                        [&](int f, int c) { return m.s[f * VALUE_STEP + c]; });
                }
                if (keys > 0) {
                    if (!T::direct)
                        chunk_product(
                            weights, CHUNK, [&](int r, int f) { return m.q[r * TILE_STEP + f]; },
                            [&](int f, int k) { return m.k[k * TILE_STEP + f]; });
                    float state[2][4] = {};
                    chunk_product(
                        state, CHUNK, [&](int f, int k) { return m.k[k * TILE_STEP + f]; },
                        [&](int k, int c) { return m.v[k * VALUE_STEP + c]; });
                    each_of_product(state, [&](int f, int c, float sum) {
                        if (f < tile && c0 + c < width)
                            S[(size_t)(at + f) * width + c0 + c] = m.s[f * VALUE_STEP + c] + sum;
                    });
                }
                __syncthreads(); /* den has read z */
                if (t < tile && keys > 0) {
                    float sum = 0;
                    for (int k = 0; k < keys; k++)
                        sum += m.k[k * TILE_STEP + t];
                    m.z[at + t] += sum;
                }
                __syncthreads();
            }
            reads = false;
            if (keys > 0) {
                if (T::direct) from.weigh(m, r0, rows, k0, keys, weights);
                each_of_product(weights, [&](int r, int k, float w) {
                    bool seen = r < rows && k < keys && k0 + k < from.seen_by(r0 + r);
                    m.w[r * TILE_STEP + k] = seen ? w : 0;
                });
                __syncthreads();
                for (int k = t % 4; k < CHUNK; k += 4)
                    den += m.w[t / 4 * TILE_STEP + k];
                chunk_product(
                    out, CHUNK, [&](int r, int k) { return m.w[r * TILE_STEP + k]; },
                    [&](int k, int c) { return m.v[k * VALUE_STEP + c]; });
                k0 += keys;
            }
            __syncthreads(); /* m.v and m.w are read */
        } while (k0 < last_key);
        den += __shfl_xor_sync(~0u, den, 1);
        den += __shfl_xor_sync(~0u, den, 2);
        if (t % 4 == 0) m.den[t / 4] = den;
        __syncthreads();
        each_of_product(out, [&](int r, int c, float sum) {
            if (r < rows && c0 + c < width) from.finish(r0 + r, c0 + c, sum, m.den[r]);
        });
    }
}

#endif
