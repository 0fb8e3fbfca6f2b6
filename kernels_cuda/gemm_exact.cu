/* Products of many rows in float32: tiles of 64 rows of input and 64 of W in shared memory, 32
 * columns at a time, 4 x 4 sums per thread. Bound: the fma units; shared memory gives 2 bytes per
 * fma. Every sum runs over the columns in order, whatever the number of rows. */
#include "products.h"

enum { EXACT_TILE = 64, EXACT_PAD = 4, EXACT_THREADS = 256 };

template <dtype T>
__global__ void __launch_bounds__(EXACT_THREADS)
    multiply_exact(gpu_products m, const float *src, size_t n) {
    typedef packed_as<T> k;
    enum { UNITS = BLOCK / k::unit };
    SHARED(float, x, [BLOCK][EXACT_TILE + EXACT_PAD]);
    SHARED(float, w, [BLOCK][EXACT_TILE + EXACT_PAD]);
    unsigned product = 0, tid = threadIdx.x;
    while (product + 1 < m.n && blockIdx.y >= m.of[product + 1].first)
        product++;
    const gpu_product &of = m.of[product];
    unsigned row0 = (blockIdx.y - of.first) * EXACT_TILE;
    size_t c0 = (size_t)blockIdx.x * EXACT_TILE;
    unsigned ty = tid / 16, tx = tid % 16;
    float acc[4][4] = {};
    for (unsigned from = 0; from < m.cols; from += BLOCK) {
        for (unsigned i = tid; i < EXACT_TILE * BLOCK; i += EXACT_THREADS) {
            unsigned c = i / BLOCK, j = i % BLOCK;
            bool there = c0 + c < n && from + j < m.cols;
            x[j][c] = there ? src[(c0 + c) * m.cols + from + j] : 0;
        }
        for (unsigned i = tid; i < EXACT_TILE * UNITS; i += EXACT_THREADS) {
            /* Neighbouring lanes have neighbouring rows: no two of them write to one bank. */
            unsigned r = row0 + i % EXACT_TILE, j = i / EXACT_TILE, u = from / k::unit + j;
            float values[k::unit] = {};
            if (r < of.rows && u < m.units)
                unit_values<T>(
                    load_unit<T>(of.data + r / PANEL * m.panel_bytes, r % PANEL, u, m.units), u,
                    values);
            UNROLL
            for (unsigned e = 0; e < k::unit; e++)
                w[j * k::unit + e][i % EXACT_TILE] = values[e];
        }
        __syncthreads();
        for (unsigned j = 0; j < BLOCK; j++) {
            float4 a = *(const float4 *)&x[j][4 * ty], b = *(const float4 *)&w[j][4 * tx];
            float of_x[4] = {a.x, a.y, a.z, a.w}, of_w[4] = {b.x, b.y, b.z, b.w};
            UNROLL
            for (int c = 0; c < 4; c++)
                UNROLL
            for (int r = 0; r < 4; r++)
                acc[c][r] = fmaf(of_w[r], of_x[c], acc[c][r]);
        }
        __syncthreads();
    }
    for (int c = 0; c < 4; c++)
        for (int r = 0; r < 4; r++) {
            size_t at = c0 + 4 * ty + (unsigned)c;
            unsigned row = row0 + 4 * tx + (unsigned)r;
            if (at >= n || row >= of.rows) continue;
            float *y = of.y + at * of.ldy + row, sum = acc[c][r];
            if (of.bias) sum += of.bias[row];
            *y = of.add ? *y + sum : sum;
        }
}

void exact_products(const cuda_pass *p, dtype type, const gpu_products *of, const float *src,
                    size_t n) {
    gpu_products m = *of;
    unsigned tiles = 0;
    for (unsigned i = 0; i < m.n; i++) {
        m.of[i].first = tiles;
        tiles += (m.of[i].rows + EXACT_TILE - 1) / EXACT_TILE;
    }
    dim3 grid((unsigned)((n + EXACT_TILE - 1) / EXACT_TILE), tiles);
#define CALL(T) launch(p->stream, grid, dim3(EXACT_THREADS), 0, multiply_exact<T>, m, src, n)
    FOR_DTYPE(type, CALL)
#undef CALL
}
