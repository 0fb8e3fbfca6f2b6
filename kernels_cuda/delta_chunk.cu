/* The delta rule for long runs, 64 tokens at a time (Yang et al. 2024, the WY form). In a chunk
 * with rows k_i, q_i, v_i, the state S before it and G_i = log a of its rows up to i, itself
 * included:
 *
 *   A_ij = b_i e^(G_i - G_j) k_i.k_j  for i > j, else 0     P_ij = e^(G_i - G_j) q_i.k_j  for i >=
 * j (I + A) U = diag(b) V                                   (I + A) W = diag(b e^G) K D = U - W S;
 * O = diag(e^G) Q S + P D;   S = e^(G_n) S + K^T diag(e^(G_n - G)) D
 *
 * U, W and P need no state: delta_chunk_solve makes them for all chunks at once, then
 * delta_chunk_scan walks over the chunks. Only differences of logarithms are raised, none above 0.
 * Everything is float32 and stays so: products run on the tensor cores as 3xTF32, each number
 * in two parts x = high + low of 11 bits, the product of the low parts left out; plain TF32 would
 * cost 1e-3, and (I + A) may be ill-conditioned. */
#include "delta.h"
#include "ptx.h"

enum { THREADS = 256, C = DELTA_CHUNK };

/* x in two parts for mma_tf32, which itself ignores the last bits of the low one. */
DEVICE uint2 split(float x) {
    uint32_t high = to_tf32(x);
    return make_uint2(high, __float_as_uint(x - __uint_as_float(high)));
}

/* d += a b for a 16x8 and b 8x8 in parts; the small products first. */
DEVICE void mma_3xtf32(float (&d)[4], const uint32_t (&a_high)[4], const uint32_t (&a_low)[4],
                       const uint2 &b0, const uint2 &b1) {
    uint32_t high[2] = {b0.x, b1.x}, low[2] = {b0.y, b1.y};
    mma_tf32(d, a_low, high);
    mma_tf32(d, a_high, low);
    mma_tf32(d, a_high, high);
}

/* A tensor core does not mind in which order the terms of a sum come. Of 16 of them, lane 4 g + t
 * takes 4 t ... 4 t + 3, neighbours in memory, two for each of two mma. This splits its four of
 * rows g and g + 8 of a into what mma number `half` takes. */
DEVICE void split_rows(const float (&top)[4], const float (&bottom)[4], int half,
                       uint32_t (&high)[4], uint32_t (&low)[4]) {
    UNROLL
    for (int i = 0; i < 2; i++) {
        uint2 x = split(top[2 * half + i]), y = split(bottom[2 * half + i]);
        high[2 * i] = x.x, low[2 * i] = x.y;
        high[2 * i + 1] = y.x, low[2 * i + 1] = y.y;
    }
}

DEVICE void copy4(float (&to)[4], const float *from) {
    float4 x = load_float4(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

/* ---- Without the state ------------------------------------------------------------------- */

/* Chunks have slots: those of run i begin at first/64 + i, which leaves room for each run's tail.
 * Returns the run whose slots hold `slot`. */
DEVICE int run_of_slot(const delta_layer &l, int slot) {
    int low = 0, high = (int)l.n_runs - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (l.runs[middle].first / C + middle <= slot)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Block (x, y): the chunk in slot x, value head y. U takes the place of v in `mixed`, W and P get
 * their own arrays, and e^G and e^(G_n - G) the scalars' places. First K K^T and Q K^T (warp w: 16
 * rows of the one, w < 4, or the other, up to the diagonal), over 64 dimensions at a time; then
 * each thread solves for columns of U and W in registers, A being read by all at once. Bound: the
 * solve's 64*63/2 (key_dim + value_dim) FMA, 2016 per thread and column; memory per head: q, k, v
 * in, U, W, P out, (3 K + 2 V + 64) * 256 bytes per chunk. */
__global__ void __launch_bounds__(THREADS, 2) delta_chunk_solve(delta_layer l) {
    enum { STRIDE = 80, A_STRIDE = C + 4 }; /* 16 and 4 modulo 32: no bank conflicts */
    SHARED(float, tile, [2 * C * STRIDE]);  /* slabs of K and Q, then A^T [C][A_STRIDE] */
    SHARED(float, log_high, [C]);           /* G */
    SHARED(float, log_low, [C]);
    SHARED(float, write, [C]);
    SHARED(float, write_kept, [C]); /* b e^G */
    float *keys = tile, *queries = tile + C * STRIDE;
    int t = threadIdx.x, warp = t / 32, lane = t % 32, group = lane / 4, quad = lane % 4;
    int i_run = run_of_slot(l, (int)blockIdx.x), h = blockIdx.y, head = delta_key_head(l, h);
    cuda_run run = l.runs[i_run];
    int row0 = run.first + ((int)blockIdx.x - run.first / C - i_run) * C;
    int count = min(C, run.last - row0);
    if (count <= 0) return;
    float *first = l.mixed + row0 * l.mixed_row;
    const float *q = first + (size_t)head * l.key_padded;
    const float *k = q + (size_t)l.heads * l.key_padded;
    float *v = first + delta_values_at(l, h), *scalars = first + delta_scalars_at(l, h);

    if (warp == 0) { /* rows 2 lane and 2 lane + 1, G summed in double */
        double of_row[2], sum = 0;
        float *row = scalars + 2 * lane * l.mixed_row;
        for (int i = 0; i < 2; i++)
            sum = of_row[i] =
                sum + (2 * lane + i < count ? row[i * l.mixed_row + DELTA_LOG_KEEP] : 0);
        double pair = sum;
        for (int step = 1; step < 32; step *= 2) {
            double before = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += before;
        }
        double end = __shfl_sync(~0u, sum, 31);
        for (int i = 0; i < 2; i++) {
            int r = 2 * lane + i;
            double g = sum - pair + of_row[i];
            log_high[r] = (float)g;
            log_low[r] = (float)(g - (double)log_high[r]);
            if (r >= count) continue;
            float *x = row + i * l.mixed_row, kept = expf(log_high[r]);
            write[r] = x[DELTA_WRITE];
            write_kept[r] = write[r] * kept;
            x[DELTA_KEEP] = kept;
            x[DELTA_TO_END] = expf((float)(end - g));
        }
    }

    /* the warp's 16 rows of K K^T or Q K^T: tile n has columns 8 n ... 8 n + 7. Warps w and w + 4,
     * which share a tensor core, have a long and a short row of tiles. */
    int m = warp < 4 ? warp : 7 - warp;
    float sums[8][4];
    UNROLL
    for (int n = 0; n < 8; n++)
        sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
    for (int from = 0; from < l.key_dim; from += 64) {
        int width = min(64, l.key_dim - from); /* a multiple of 16 */
        __syncthreads();
        for (int i = t; i < 2 * C * 16; i += THREADS) {
            int r = i / 16 % C, at = i % 16 * 4;
            bool is_key = i < C * 16, there = r < count && at < width;
            const float *x = (is_key ? k : q) + r * l.mixed_row + from + at;
            *(float4 *)(void *)((is_key ? keys : queries) + r * STRIDE + at) =
                there ? load_float4(x) : make_float4(0, 0, 0, 0);
        }
        __syncthreads();
        const float *a = (warp < 4 ? keys : queries) + (16 * m + group) * STRIDE + 4 * quad;
        const float *b = keys + group * STRIDE + 4 * quad;
        for (int at = 0; at < width; at += 16) {
            float top[4], bottom[4];
            uint32_t high[2][4], low[2][4];
            copy4(top, a + at);
            copy4(bottom, a + 8 * STRIDE + at);
            split_rows(top, bottom, 0, high[0], low[0]);
            split_rows(top, bottom, 1, high[1], low[1]);
            UNROLL
            for (int n = 0; n < 8; n++) {
                if (n > 2 * m + 1) break; /* above the diagonal */
                float4 x = load_float4(b + n * 8 * STRIDE + at);
                mma_3xtf32(sums[n], high[0], low[0], split(x.x), split(x.y));
                mma_3xtf32(sums[n], high[1], low[1], split(x.z), split(x.w));
            }
        }
    }
    __syncthreads(); /* A^T takes the place of the slabs */
    float *a = tile;
    UNROLL
    for (int n = 0; n < 8; n++)
        UNROLL
    for (int x = 0; x < 4; x++) {
        int i = 16 * m + group + x / 2 * 8, j = 8 * n + 2 * quad + x % 2;
        bool there = i < count && j <= i;
        float decay = there ? expf((log_high[i] - log_high[j]) + (log_low[i] - log_low[j])) : 0;
        float y = there ? decay * sums[n][x] : 0;
        if (warp < 4)
            a[j * A_STRIDE + i] = there && j < i ? write[i] * y : 0;
        else if (i < count && n <= 2 * m + 1)
            l.scores[((size_t)(row0 + i) * l.value_heads + h) * C + j] = y;
    }
    __syncthreads();

    for (int c = t; c < l.value_dim + l.key_dim; c += THREADS) {
        bool is_value = c < l.value_dim;
        const float *from = is_value ? v + c : k + (c - l.value_dim);
        const float *scale = is_value ? write : write_kept;
        float x[C];
        UNROLL
        for (int i = 0; i < C; i++, from += l.mixed_row)
            x[i] = i < count ? *from * scale[i] : 0;
        UNROLL
        for (int j = 0; j < C - 1; j++) { /* x_i -= A_ij x_j for all i > j */
            UNROLL
            for (int i = j / 4 * 4; i < C; i += 4) {
                float4 y = load_float4(a + j * A_STRIDE + i); /* 0 for i <= j */
                x[i] = fmaf(-y.x, x[j], x[i]);
                x[i + 1] = fmaf(-y.y, x[j], x[i + 1]);
                x[i + 2] = fmaf(-y.z, x[j], x[i + 2]);
                x[i + 3] = fmaf(-y.w, x[j], x[i + 3]);
            }
        }
        float *to = is_value ? v + c
                             : l.write_keys + ((size_t)row0 * l.value_heads + h) * l.key_dim +
                                   (c - l.value_dim);
        size_t next = is_value ? l.mixed_row : (size_t)l.value_heads * l.key_dim;
        UNROLL
        for (int i = 0; i < C; i++, to += next)
            if (i < count) *to = x[i];
    }
}

/* ---- With it ----------------------------------------------------------------------------- */

/* What a lane has of 16 rows (its g and g + 8) and 64 columns of a matrix, and the columns of which
 * are split into four times 16. */
struct a_part {
    float top[4][4], bottom[4][4];
};

/* Columns [from, from + 64) below `columns` of rows in which the lane's quads begin at top and
 * bottom; NULL: zeros. */
DEVICE void load_rows(a_part &a, const float *top, const float *bottom, int from, int columns) {
    UNROLL
    for (int s = 0; s < 4; s++) {
        int at = from + 16 * s;
        UNROLL
        for (int i = 0; i < 4; i++)
            a.top[s][i] = a.bottom[s][i] = 0;
        if (at < columns && top) copy4(a.top[s], top + at);
        if (at < columns && bottom) copy4(a.bottom[s], bottom + at);
    }
}

/* The transpose of `rows` rows of 16 columns; the lane's columns (2 g and 2 g + 1) begin at x. */
DEVICE void load_transposed(a_part &a, const float *x, size_t stride, int rows) {
    UNROLL
    for (int s = 0; s < 4; s++)
        UNROLL
    for (int i = 0; i < 4; i++) {
        int r = 16 * s + 4 * (threadIdx.x % 4) + i;
        float2 y = make_float2(0, 0);
        if (r < rows) y = *(const float2 *)(const void *)(x + r * stride);
        a.top[s][i] = y.x;
        a.bottom[s][i] = y.y;
    }
}

/* sums += a b: 16 terms; b is in shared memory, in parts, from the lane's row 4 t and column g on.
 */
template <int TILES>
DEVICE void multiply_16(float (&sums)[TILES][4], const float (&top)[4], const float (&bottom)[4],
                        const uint2 *b) {
    enum { STRIDE = 8 * TILES + 1 };
    UNROLL
    for (int half = 0; half < 2; half++) {
        uint32_t high[4], low[4];
        split_rows(top, bottom, half, high, low);
        UNROLL
        for (int n = 0; n < TILES; n++)
            mma_3xtf32(sums[n], high, low, b[2 * half * STRIDE + 8 * n],
                       b[(2 * half + 1) * STRIDE + 8 * n]);
    }
}

/* Block (x, y, z): 8 TILES columns of value head y of run z, chunk after chunk. Shared memory has S
 * and D split into parts, rows of an odd number of 8 bytes: reads without bank conflicts. S itself
 * is in registers: warp w has the 16 keys that begin at 16 w, and at 16 (w + 8) where SLABS is 2.
 * Each chunk in two steps: warps 0 ... 3 make D, 16 rows each, as 4 ... 7 make Q S; then all warps
 * update S, and the latter add P D and store O. Rows of W, Q, K and P come from the L2 cache
 * straight to registers, each needed by one warp alone, and ahead of the step that needs them.
 * Per chunk: 8 TILES (3 K + 40) 64 multiplications, three times over on tensor cores, and 256 (3 K
 * + 40 + 16 TILES) bytes; every block of a head reads its W, Q, K and P. */
template <int TILES, int SLABS>
__global__ void __launch_bounds__(THREADS) delta_chunk_scan(delta_layer l) {
    enum { COLUMNS = 8 * TILES, STRIDE = COLUMNS + 1 };
    DYNAMIC_SHARED(uint2, state_parts); /* [key_dim][STRIDE], then D [C][STRIDE] */
    SHARED(float, to_end, [C]);
    uint2 *d_parts = state_parts + l.key_dim * STRIDE;
    int t = threadIdx.x, warp = t / 32, lane = t % 32, group = lane / 4, quad = lane % 4;
    int h = blockIdx.y, head = delta_key_head(l, h), K = l.key_dim;
    int m = warp % 4, mine = 16 * m + group; /* rows of the chunk: mine, mine + 8 */
    bool is_d = warp < 4;
    cuda_run run = l.runs[blockIdx.z];
    int column = (int)blockIdx.x * COLUMNS + 2 * quad; /* of the lane's sums, and the next */
    const float *q = l.mixed + (size_t)head * l.key_padded, *k = q + (size_t)l.heads * l.key_padded;
    const float *u = l.mixed + delta_values_at(l, h) + column;
    const float *scalars = l.mixed + delta_scalars_at(l, h);
    float *out = l.out + (size_t)h * l.value_dim + column;
    const float *scores = l.scores + (size_t)h * C + 4 * quad;
    /* step one's rows: of W, or of Q */
    const float *factor = (is_d ? l.write_keys + (size_t)h * K : q) + 4 * quad;
    size_t score_stride = (size_t)l.value_heads * C;
    size_t stride = is_d ? (size_t)l.value_heads * K : l.mixed_row;

    /* keys 2 g and 2 g + 1 of a slab stand at g and g + 8 of its tiles */
    float *state = delta_state(l, run.first) + (size_t)h * K * l.value_dim + column;
    float s[SLABS][TILES][4];
    UNROLL
    for (int i = 0; i < SLABS; i++)
        UNROLL
    for (int x = 0; x < 4; x++)
        UNROLL
    for (int n = 0; n < TILES; n++) {
        int key = 16 * (warp + 8 * i) + 2 * group + x / 2, c = 8 * n + x % 2;
        s[i][n][x] = 0;
        if (key >= K) continue;
        s[i][n][x] = state[(size_t)key * l.value_dim + c];
        state_parts[key * STRIDE + 2 * quad + c] = split(s[i][n][x]);
    }
    a_part ahead; /* of the step's rows, the columns that are multiplied next */
#define ROW(base, r, stride) ((r) < run.last ? (base) + (r) * (stride) : NULL)
    load_rows(ahead, ROW(factor, run.first + mine, stride),
              ROW(factor, run.first + mine + 8, stride), 0, K);
    __syncthreads();

    for (int row0 = run.first; row0 < run.last; row0 += C) {
        int count = min(C, run.last - row0), r0 = row0 + mine, r1 = r0 + 8;
        bool busy = 16 * m < count;
        if (t < C) to_end[t] = t < count ? scalars[(row0 + t) * l.mixed_row + DELTA_TO_END] : 0;
        float keep0 = r0 < run.last ? scalars[r0 * l.mixed_row + DELTA_KEEP] : 0;
        float keep1 = r1 < run.last ? scalars[r1 * l.mixed_row + DELTA_KEEP] : 0;
        float keep = scalars[(row0 + count - 1) * l.mixed_row + DELTA_KEEP];
        a_part keys;
        if (16 * warp < K)
            load_transposed(keys, k + row0 * l.mixed_row + 16 * warp + 2 * group, l.mixed_row,
                            count);

        /* -D = -U + W S, or Q S */
        float sums[TILES][4];
        UNROLL
        for (int n = 0; n < TILES; n++)
            UNROLL
        for (int x = 0; x < 4; x++) {
            int r = x < 2 ? r0 : r1;
            sums[n][x] = is_d && r < run.last ? -u[r * l.mixed_row + 8 * n + x % 2] : 0;
        }
        for (int from = 0; from < K; from += 64) {
            bool last = from + 64 >= K; /* then comes the next chunk */
            int a = last ? r0 + C : r0, b = last ? r1 + C : r1;
            a_part next;
            load_rows(next, ROW(factor, a, stride), ROW(factor, b, stride), last ? 0 : from + 64,
                      K);
            UNROLL
            for (int i = 0; i < 4; i++)
                if (busy && from + 16 * i < K)
                    multiply_16(sums, ahead.top[i], ahead.bottom[i],
                                state_parts + (from + 16 * i + 4 * quad) * STRIDE + group);
            ahead = next;
        }
        a_part score;
        if (is_d) {
            UNROLL
            for (int n = 0; n < TILES; n++)
                UNROLL
            for (int x = 0; x < 4; x++)
                d_parts[(mine + x / 2 * 8) * STRIDE + 8 * n + 2 * quad + x % 2] =
                    split(-sums[n][x]);
        } else {
            load_rows(score, ROW(scores, r0, score_stride), ROW(scores, r1, score_stride), 0,
                      16 * m + 16);
            UNROLL
            for (int n = 0; n < TILES; n++)
                UNROLL
            for (int x = 0; x < 4; x++)
                sums[n][x] *= x < 2 ? keep0 : keep1;
        }
        __syncthreads();

        /* S = e^(G_n) S + K^T diag(e^(G_n - G)) D */
        UNROLL
        for (int i = 0; i < SLABS; i++) {
            int slab = 16 * (warp + 8 * i);
            if (slab >= K) continue;
            if (i)
                load_transposed(keys, k + row0 * l.mixed_row + slab + 2 * group, l.mixed_row,
                                count);
            UNROLL
            for (int n = 0; n < TILES; n++)
                UNROLL
            for (int x = 0; x < 4; x++)
                s[i][n][x] *= keep;
            UNROLL
            for (int j = 0; j < 4; j++) {
                if (16 * j >= count) continue;
                float end[4];
                copy4(end, to_end + 16 * j + 4 * quad);
                UNROLL
                for (int x = 0; x < 4; x++)
                    keys.top[j][x] *= end[x], keys.bottom[j][x] *= end[x];
                multiply_16(s[i], keys.top[j], keys.bottom[j],
                            d_parts + (16 * j + 4 * quad) * STRIDE + group);
            }
            UNROLL
            for (int n = 0; n < TILES; n++)
                UNROLL
            for (int x = 0; x < 4; x++)
                state_parts[(slab + 2 * group + x / 2) * STRIDE + 8 * n + 2 * quad + x % 2] =
                    split(s[i][n][x]);
        }
        /* O = diag(e^G) Q S + P D */
        if (!is_d && busy) {
            UNROLL
            for (int j = 0; j < 4; j++)
                if (j <= m)
                    multiply_16(sums, score.top[j], score.bottom[j],
                                d_parts + (16 * j + 4 * quad) * STRIDE + group);
            UNROLL
            for (int n = 0; n < TILES; n++) {
                if (r0 < run.last)
                    *(float2 *)(void *)(out + r0 * l.values + 8 * n) =
                        make_float2(sums[n][0], sums[n][1]);
                if (r1 < run.last)
                    *(float2 *)(void *)(out + r1 * l.values + 8 * n) =
                        make_float2(sums[n][2], sums[n][3]);
            }
        }
        __syncthreads();
    }
    UNROLL
    for (int i = 0; i < SLABS; i++)
        UNROLL
    for (int x = 0; x < 4; x++)
        UNROLL
    for (int n = 0; n < TILES; n++) {
        int key = 16 * (warp + 8 * i) + 2 * group + x / 2;
        if (key < K) state[(size_t)key * l.value_dim + 8 * n + x % 2] = s[i][n][x];
    }
#undef ROW
}

bool delta_chunks_fit(const delta_layer *l) {
    return l->key_dim % 16 == 0 && l->key_dim <= DELTA_CHUNK_KEYS && l->value_dim % 16 == 0;
}

void delta_chunks(device_stream stream, const delta_layer *l) {
    size_t slots = l->n / C + l->n_runs;
    launch(stream, dim3((unsigned)slots, (unsigned)l->value_heads), dim3(THREADS), 0,
           delta_chunk_solve, *l);
    /* wide blocks read less, as long as there is one for (almost) every SM */
    bool wide = l->value_dim % 32 == 0 &&
                l->n_runs * l->value_heads * (l->value_dim / 32) * 8 >= 7 * (size_t)l->sm_count;
    int columns = wide ? 32 : 16;
    dim3 grid((unsigned)(l->value_dim / columns), (unsigned)l->value_heads, (unsigned)l->n_runs);
    size_t shared = (size_t)(l->key_dim + C) * (columns + 1) * sizeof(uint2);
#define SCAN(tiles, slabs)                                                                         \
    launch(stream, grid, dim3(THREADS), shared, delta_chunk_scan<tiles, slabs>, *l)
    if (wide && l->key_dim <= 128)
        SCAN(4, 1);
    else if (wide)
        SCAN(4, 2);
    else if (l->key_dim <= 128)
        SCAN(2, 1);
    else
        SCAN(2, 2);
}
