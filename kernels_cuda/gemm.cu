/* Products of many rows (prefill) by tensor cores: f16 x f16, summed in float32.
 *
 * A block computes ROWS rows of input times WIDE rows of W, 64 columns a step; a warp a part of
 * W_ROWS x W_WIDE. Both tiles lie in shared memory as rows of 128 bytes whose 16-byte parts are
 * permuted (part ^ row % 8), so that neither ldmatrix nor the stores meet a bank twice; STAGES of
 * them, filled ahead by cp.async, W of f16 too. Other types are loaded into registers a step
 * ahead, and written as f16 once this step is multiplied: a weight leaves memory packed, once per
 * ROWS rows of input (from L2 but the first time: blocks with the same W run side by side).
 *
 * With a gated activation a block's W are WIDE/2 rows of W^gate and the same of W^up, placed so
 * that a thread has both results of a number: only the product leaves, as f16 for the next
 * product.
 *
 * Bound: tensor cores (mma.sync); per step and block 128 x 128 x 64 multiplications against 16 KB
 * of input and 8192 weights to unpack, at about 4 operations each. */
#include "products.h"
#include "ptx.h"

enum { STEP = 64 }; /* columns */

template <int ROWS_, int WIDE_, int W_ROWS_, int W_WIDE_, int STAGES_> struct tile_shape {
    enum {
        ROWS = ROWS_,
        WIDE = WIDE_,
        W_ROWS = W_ROWS_, /* of a warp */
        W_WIDE = W_WIDE_,
        STAGES = STAGES_,
        ACROSS = WIDE / W_WIDE, /* warps side by side */
        THREADS = ROWS / W_ROWS * ACROSS * 32,
        X_BYTES = ROWS * STEP * 2,
        W_BYTES = WIDE * STEP * 2,
        STAGE_BYTES = X_BYTES + W_BYTES
    };
};
/* Of 96 KB; and for so few rows that the large ones would leave SMs idle, of 48 KB. */
typedef tile_shape<128, 128, 64, 32, 3> large_tile;
typedef tile_shape<64, 32, 32, 16, 4> small_tile;

/* Part (16 bytes) of a row in a tile. */
DEVICE uint8_t *tile_part(uint8_t *tile, unsigned row, unsigned part) {
    return tile + row * (STEP * 2) + (part ^ row % 8) * 16;
}

/* Row i of a block's W: of which product, and which row. */
typedef struct {
    unsigned product, row;
} w_row;

template <class S> DEVICE w_row find_row(unsigned product, unsigned tile, unsigned i, bool gated) {
    if (!gated) return {product, tile * S::WIDE + i};
    unsigned half = S::W_WIDE / 2, j = i % S::W_WIDE;
    return {j / half, tile * (S::WIDE / 2) + i / S::W_WIDE * half + j % half};
}

template <class S>
DEVICE void load_x(uint8_t *to, const packed_rows &x, size_t n, size_t row0, unsigned column) {
    for (unsigned i = threadIdx.x; i < S::ROWS * 8; i += S::THREADS) {
        unsigned r = i / 8, part = i % 8;
        bool there = row0 + r < n;
        cp_async16(tile_part(to, r, part), x.at + (there ? row0 + r : 0) * x.ld + column + part * 8,
                   there ? 16 : 0);
    }
}

/* A thread's units of a step of W: unit i of the tile is unit i % PER_ROW of row i / PER_ROW. */
template <dtype T, class S> struct w_units {
    typedef packed_as<T> k;
    enum {
        PER_ROW = STEP / k::unit,
        ALL = S::WIDE * PER_ROW,
        MINE = (ALL + S::THREADS - 1) / S::THREADS
    };
    packed_unit raw[MINE];
    bool there[MINE];

    DEVICE void load(const gpu_products &m, unsigned product, unsigned tile, bool gated,
                     unsigned column) {
        UNROLL
        for (int j = 0; j < MINE; j++) {
            unsigned i = threadIdx.x + j * S::THREADS, u = column / k::unit + i % PER_ROW;
            w_row w = find_row<S>(product, tile, i / PER_ROW, gated);
            const gpu_product &of = m.of[w.product];
            there[j] = i < ALL && w.row < of.rows && u < m.units;
            if (there[j])
                raw[j] = load_unit<T>(of.data + w.row / PANEL * m.panel_bytes, w.row % PANEL, u,
                                      m.units);
        }
    }

    DEVICE void store(uint8_t *to, unsigned column) const {
        UNROLL
        for (int j = 0; j < MINE; j++) {
            unsigned i = threadIdx.x + j * S::THREADS, row = i / PER_ROW, at = i % PER_ROW;
            if (i >= ALL) continue;
            float v[k::unit] = {};
            if (there[j]) unit_values<T>(raw[j], column / k::unit + at, v);
            if constexpr (k::unit == 4) {
                uint2 two = {f16_pair(v[0], v[1]), f16_pair(v[2], v[3])};
                *(uint2 *)(tile_part(to, row, at / 2) + at % 2 * 8) = two;
            } else {
                UNROLL
                for (unsigned part = 0; part < k::unit / 8; part++) {
                    const float *f = v + 8 * part;
                    uint4 four = {f16_pair(f[0], f[1]), f16_pair(f[2], f[3]), f16_pair(f[4], f[5]),
                                  f16_pair(f[6], f[7])};
                    *(uint4 *)tile_part(to, row, at * (k::unit / 8) + part) = four;
                }
            }
        }
    }
};

/* f16 needs no unpacking: straight to shared memory. */
template <class S>
DEVICE void copy_w(uint8_t *to, const gpu_products &m, unsigned product, unsigned tile, bool gated,
                   unsigned column) {
    for (unsigned i = threadIdx.x; i < S::WIDE * 8; i += S::THREADS) {
        unsigned r = i / 8, part = i % 8, u = column / 8 + part;
        w_row w = find_row<S>(product, tile, r, gated);
        const gpu_product &of = m.of[w.product];
        bool there = w.row < of.rows && u < m.units;
        const uint8_t *from = of.data;
        if (there) from += w.row / PANEL * m.panel_bytes + (w.row % PANEL * m.units + u) * 16;
        cp_async16(tile_part(to, r, part), from, there ? 16 : 0);
    }
}

/* acc += of a warp's part, one step. */
template <class S>
DEVICE void multiply_step(const uint8_t *stage, unsigned first_row, unsigned first_w,
                          float (&acc)[S::W_ROWS / 16][S::W_WIDE / 8][4]) {
    uint8_t *x = (uint8_t *)stage, *w = x + S::X_BYTES;
    unsigned lane = threadIdx.x % 32;
    UNROLL
    for (unsigned part = 0; part < STEP / 8; part += 2) {
        uint32_t a[S::W_ROWS / 16][4], b[S::W_WIDE / 16][4];
        UNROLL
        for (int i = 0; i < S::W_ROWS / 16; i++)
            ldmatrix_x4(a[i], tile_part(x, first_row + 16 * i + lane % 16, part + lane / 16));
        UNROLL
        for (int j = 0; j < S::W_WIDE / 16; j++)
            ldmatrix_x4(b[j], tile_part(w, first_w + 16 * j + lane / 16 * 8 + lane % 8,
                                        part + lane / 8 % 2));
        UNROLL
        for (int i = 0; i < S::W_ROWS / 16; i++)
            UNROLL
        for (int j = 0; j < S::W_WIDE / 8; j++) {
            uint32_t half[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
            mma_f16(acc[i][j], a[i], half);
        }
    }
}

/* Once in a kernel, not for every number that a thread has. */
__device__ __attribute__((noinline)) float activate_one(int kind, float gate, float up) {
    return activated(kind, gate, up);
}

template <dtype T, class S>
__global__ void __launch_bounds__(S::THREADS)
    multiply_many(gpu_products m, packed_rows x, size_t n, packed_rows packed) {
    DYNAMIC_SHARED(uint8_t, stages);
    enum { COPIED = T == DTYPE_F16, M = S::W_ROWS / 16, N = S::W_WIDE / 8 };
    bool active = m.activation != NO_ACTIVATION, gated = active && m.activation != FFN_GELU;
    unsigned product = 0, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    while (!gated && product + 1 < m.n && blockIdx.y >= m.of[product + 1].first)
        product++;
    unsigned tile = blockIdx.y - m.of[product].first;
    size_t row0 = (size_t)blockIdx.x * S::ROWS;
    unsigned first_row = warp / S::ACROSS * S::W_ROWS, first_w = warp % S::ACROSS * S::W_WIDE;
    int steps = (int)(x.ld / STEP);
    float acc[M][N][4] = {};
    w_units<T, S> units = {};

#define STAGE(step) (stages + (step) % S::STAGES * S::STAGE_BYTES)
    for (int s = 0; s < S::STAGES - 1; s++) {
        if (s < steps) {
            load_x<S>(STAGE(s), x, n, row0, (unsigned)s * STEP);
            if constexpr (COPIED) {
                copy_w<S>(STAGE(s) + S::X_BYTES, m, product, tile, gated, (unsigned)s * STEP);
            } else {
                units.load(m, product, tile, gated, (unsigned)s * STEP);
                units.store(STAGE(s) + S::X_BYTES, (unsigned)s * STEP);
            }
        }
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        int ahead = step + S::STAGES - 1;
        unsigned column = (unsigned)ahead * STEP;
        cp_async_wait<S::STAGES - 2>();
        __syncthreads(); /* this step has come, and all are done with the one before it */
        if (ahead < steps) {
            load_x<S>(STAGE(ahead), x, n, row0, column);
            if constexpr (COPIED)
                copy_w<S>(STAGE(ahead) + S::X_BYTES, m, product, tile, gated, column);
            else
                units.load(m, product, tile, gated, column);
        }
        cp_async_commit();
        multiply_step<S>(STAGE(step), first_row, first_w, acc);
        if constexpr (!COPIED)
            if (ahead < steps) units.store(STAGE(ahead) + S::X_BYTES, column);
    }
    cp_async_wait<0>();
#undef STAGE

    const gpu_product &of = m.of[product];
    unsigned g = lane / 4, t = lane % 4;
    UNROLL
    for (int i = 0; i < M; i++)
        UNROLL
    for (int half = 0; half < 2; half++) {
        size_t c = row0 + first_row + 16 * i + 8 * half + g;
        if (c >= n) continue;
        if (active) {
            UNROLL
            for (int j = 0; j < N; j++) {
                if (gated && j >= N / 2) break;
                unsigned r = find_row<S>(product, tile, first_w + 8 * j + 2 * t, gated).row;
                if (r >= packed.ld) continue; /* a pair: both are even */
                float y[2];
                UNROLL
                for (int e = 0; e < 2; e++) {
                    float gate = acc[i][j][2 * half + e] * x.scale, up = 0;
                    if (of.bias && r + e < of.rows) gate += of.bias[r + e];
                    if (gated) {
                        up = acc[i][(j + N / 2) % N][2 * half + e] * x.scale;
                        if (m.of[1].bias && r + e < of.rows) up += m.of[1].bias[r + e];
                    }
                    y[e] = activate_one(m.activation, gate, up) * (1 / packed.scale);
                }
                *(uint32_t *)(packed.at + c * packed.ld + r) = f16_pair(y[0], y[1]);
            }
        } else {
            UNROLL
            for (int j = 0; j < N; j++)
                UNROLL
            for (int e = 0; e < 2; e++) {
                unsigned r = tile * S::WIDE + first_w + 8 * j + 2 * t + e;
                if (r >= of.rows) continue;
                float *y = of.y + c * of.ldy + r, sum = acc[i][j][2 * half + e] * x.scale;
                if (of.bias) sum += of.bias[r];
                *y = of.add ? *y + sum : sum;
            }
        }
    }
}

/* ---- Launches ----------------------------------------------------------------------------- */

/* Rows of the grid: tiles of all products. */
template <class S> static unsigned place_tiles(gpu_products *m, size_t ld_packed) {
    bool active = m->activation != NO_ACTIVATION;
    unsigned tiles = 0, wide = is_gated(m->activation) ? S::WIDE / 2 : S::WIDE;
    for (unsigned i = 0; i < (active ? 1 : m->n); i++) {
        m->of[i].first = tiles;
        unsigned rows = active ? (unsigned)ld_packed : m->of[i].rows;
        tiles += (rows + wide - 1) / wide;
    }
    return tiles;
}

template <dtype T, class S>
static void launch_many(const cuda_pass *p, const gpu_products *of, const packed_rows *x, size_t n,
                        const packed_rows *y) {
    gpu_products m = *of;
    unsigned tiles = place_tiles<S>(&m, y->ld);
    launch(p->stream, dim3((unsigned)((n + S::ROWS - 1) / S::ROWS), tiles), dim3(S::THREADS),
           S::STAGES * S::STAGE_BYTES, multiply_many<T, S>, m, *x, n, *y);
}

void tensor_products(const cuda_pass *p, dtype type, const gpu_products *m, const packed_rows *x,
                     size_t n, const packed_rows *y) {
    gpu_products trial = *m;
    size_t blocks =
        place_tiles<large_tile>(&trial, y->ld) * ((n + large_tile::ROWS - 1) / large_tile::ROWS);
    bool large = blocks >= (size_t)p->sm_count;
#define CALL(T)                                                                                    \
    if (large)                                                                                     \
        launch_many<T, large_tile>(p, m, x, n, y);                                                 \
    else                                                                                           \
        launch_many<T, small_tile>(p, m, x, n, y)
    FOR_DTYPE(type, CALL)
#undef CALL
}
