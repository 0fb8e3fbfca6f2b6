/* Attention of single rows, each of its own session (decoding): one launch does all between the
 * products. A block has a segment of a row's positions and the query heads of a KV head (at most
 * 8): it normalizes and rotates its queries, and that of the row's last segment also the row's key,
 * which it puts in its page with the value. Each warp takes tiles of the segment, 32 bytes of every
 * key row (8, 16 or 32 positions) and the values there, with two tiles of its own in shared memory:
 * one under way (cp.async, 16 bytes a lane) while the other is used. Warps meet only at the end.
 *
 * Traffic: keys and values that the row sees once (again from the L2 cache for every further 8
 * heads of a group), the queries once per segment. Bound by memory. With float16 and heads of 64
 * (128) numbers a warp has 4 (8) KB under way, a block of 8 (4) warps 32 KB; two or three blocks
 * share an SM.
 *   float32 and q8_0: 1 fma per number and query head. Scores: a lane has 4 or 8 neighbouring
 * positions of every 8th or 16th key row, for all heads of the block; lanes then deal the sums out
 * among themselves, halving what each holds with each step. Values: a lane has pairs of dimensions
 * 64 apart, for all heads.
 *   float16, up to 256 dimensions: 8 heads are half of what a tensor core multiplies at once. The
 * other half has what float16 leaves of the queries, and of the weights, so that the sums are as
 * good as those of float32 numbers. */
#include "attend.h"
#include "ptx.h"

enum {
    FEW_WARPS = 8,         /* of a block, fewer where tiles are large */
    FEW_HEADS = 8,         /* the most query heads of a block */
    FEW_WIDE_HEADS = 4,    /* with more than 256 dimensions */
    FEW_SHARED = 72 << 10, /* for tiles: two or three blocks share an SM */
    FEW_UNSPLIT = 256,     /* so many positions are one segment; */
    FEW_LEAST = 64         /* the fewest of one of several */
};

template <kv_kind KIND> struct few_tile {
    enum {
        SIZE = KIND == KV_F32   ? 4
               : KIND == KV_F16 ? 2
                                : 1,
        POSITIONS = 32 / SIZE,
        EACH = KIND == KV_F32 ? 4 : 8, /* neighbouring positions of a lane */
        ACROSS = POSITIONS / EACH,     /* lanes along a key row; */
        ROWS = 32 / ACROSS             /* so many key rows at once */
    };
};

/* Bytes of a tile: keys [head_dim][32 bytes], values [positions][padded], scales of both; 16 bytes
 * more per position for tensor cores. */
static inline __host__ __device__ size_t few_tile_bytes(const kv_place_of_layer &k) {
    size_t values = (size_t)k.padded * 32, scales = (size_t)k.head_dim / BLOCK * 64;
    return (size_t)k.head_dim * 32 + values + (k.kind == KV_Q8_0 ? 2 * scales : 0) +
           (k.kind == KV_F16 ? 16 * 16 : 0);
}

/* One warp starts to copy the tile at position `at` of a head. TENSOR: rows of values are 16 bytes
 * longer, and in key rows 4 ... 7 of eight the two pieces are swapped, so that eight rows of a
 * matrix meet no bank twice. */
template <kv_kind KIND, bool TENSOR>
DEVICE void copy_tile(const kv_place_of_layer &k, const uint8_t *head, int at, uint8_t *to) {
    typedef few_tile<KIND> T;
    int lane = threadIdx.x % 32, place = at % PAGE;
    for (int i = lane; i < k.head_dim * 2; i += 32)
        cp_async16(to + (TENSOR ? i ^ (i >> 3 & 1) : i) * 16,
                   head + (i / 2) * PAGE * T::SIZE + place * T::SIZE + i % 2 * 16);
    to += k.head_dim * 32;
    const uint8_t *v = head + k.v_at + (size_t)place * k.padded * T::SIZE;
    if constexpr (TENSOR) {
        int pieces = k.padded / 8, row = lane / pieces, of = lane % pieces;
        int rows = 32 / pieces, rest = 32 % pieces;
        for (int i = lane; i < k.padded * 2; i += 32) {
            cp_async16(to + (i + row) * 16, v + i * 16);
            row += rows, of += rest;
            if (of >= pieces) of -= pieces, row++;
        }
    } else {
        for (int i = lane; i < k.padded * 2; i += 32)
            cp_async16(to + i * 16, v + i * 16);
    }
    if (KIND != KV_Q8_0) return;
    to += k.padded * 32;
    int blocks = k.head_dim / BLOCK;
    for (int i = lane; i < blocks * 4; i += 32) {
        cp_async16(to + i * 16, head + k.kd_at + (i / 4) * PAGE * 2 + place * 2 + i % 4 * 16);
        cp_async16(to + blocks * 64 + i * 16, head + k.vd_at + place * blocks * 2 + i * 16);
    }
}

/* Two 16-bit numbers of a register. */
DEVICE void two_halves(uint32_t u, float *to) {
    to[0] = f16_to_float((uint16_t)u);
    to[1] = f16_to_float((uint16_t)(u >> 16));
}

/* Four signed bytes: over the low byte of 2^23, plus 128. */
DEVICE void four_bytes(uint32_t u, float *to) {
    u ^= 0x80808080u;
    UNROLL
    for (int i = 0; i < 4; i++)
        to[i] = __uint_as_float(__byte_perm(u, 0x4b000000u, 0x7650u + (unsigned)i)) - 8388736.0f;
}

/* A lane's positions of key row d. */
template <kv_kind KIND>
DEVICE void keys_of_lane(const uint8_t *tile, int d, int part, float (&k)[few_tile<KIND>::EACH]) {
    const uint8_t *from = tile + d * 32 + part * few_tile<KIND>::EACH * few_tile<KIND>::SIZE;
    if constexpr (KIND == KV_F32) {
        float4 f = *(const float4 *)from;
        k[0] = f.x, k[1] = f.y, k[2] = f.z, k[3] = f.w;
    } else if constexpr (KIND == KV_F16) {
        uint4 u = load16(from);
        two_halves(u.x, k), two_halves(u.y, k + 2), two_halves(u.z, k + 4), two_halves(u.w, k + 6);
    } else {
        uint2 u = *(const uint2 *)from;
        four_bytes(u.x, k), four_bytes(u.y, k + 4);
    }
}

/* N floats that lie together, as few loads as there can be. */
template <int N> DEVICE void load_floats(const float *from, float (&to)[N]) {
    if constexpr (N % 4 == 0) {
        UNROLL
        for (int i = 0; i < N; i += 4) {
            float4 f = *(const float4 *)(from + i);
            to[i] = f.x, to[i + 1] = f.y, to[i + 2] = f.z, to[i + 3] = f.w;
        }
    } else {
        UNROLL
        for (int i = 0; i < N; i++)
            to[i] = from[i];
    }
}

/* Adds up M numbers over the lanes that differ in bits LOW ... BIT; sum `at` + i is left in v[i].
 */
template <int M, int BIT, int LOW> DEVICE void deal_sums(float *v, int &at) {
    if constexpr (BIT >= LOW && M > 1) {
        bool upper = threadIdx.x & BIT;
        UNROLL
        for (int i = 0; i < M / 2; i++) {
            float mine = upper ? v[i + M / 2] : v[i], give = upper ? v[i] : v[i + M / 2];
            v[i] = mine + __shfl_xor_sync(~0u, give, BIT);
        }
        if (upper) at += M / 2;
        deal_sums<M / 2, BIT / 2, LOW>(v, at);
    } else if constexpr (BIT >= LOW) {
        v[0] += __shfl_xor_sync(~0u, v[0], BIT);
        deal_sums<1, BIT / 2, LOW>(v, at);
    }
}

/* Scores of a tile to [positions][HEADS]; q [head_dim][HEADS]. */
template <kv_kind KIND, int HEADS>
DEVICE void score_tile(const kv_place_of_layer &kv, const uint8_t *tile, const float *q,
                       float *scores) {
    typedef few_tile<KIND> T;
    int lane = threadIdx.x % 32, part = lane % T::ACROSS, row = lane / T::ACROSS;
    float sum[HEADS * T::EACH], k[T::EACH], of_head[HEADS];
    UNROLL
    for (int i = 0; i < HEADS * T::EACH; i++)
        sum[i] = 0;
    const uint16_t *scales = (const uint16_t *)(tile + (kv.head_dim + kv.padded) * 32);
    for (int d = row; d < kv.head_dim; d += T::ROWS) {
        keys_of_lane<KIND>(tile, d, part, k);
        if constexpr (KIND == KV_Q8_0) {
            float scale[8];
            uint4 u = load16(scales + d / BLOCK * T::POSITIONS + part * T::EACH);
            two_halves(u.x, scale), two_halves(u.y, scale + 2);
            two_halves(u.z, scale + 4), two_halves(u.w, scale + 6);
            UNROLL
            for (int i = 0; i < T::EACH; i++)
                k[i] *= scale[i];
        }
        load_floats<HEADS>(q + d * HEADS, of_head);
        UNROLL
        for (int h = 0; h < HEADS; h++) {
            UNROLL
            for (int i = 0; i < T::EACH; i++)
                sum[h * T::EACH + i] = fmaf(of_head[h], k[i], sum[h * T::EACH + i]);
        }
    }
    int at = 0;
    deal_sums<HEADS * T::EACH, 16, T::ACROSS>(sum, at);
    enum {
        LEFT = HEADS * T::EACH > T::ROWS ? HEADS * T::EACH / T::ROWS : 1,
        COPIES = HEADS * T::EACH < T::ROWS ? T::ROWS / (HEADS * T::EACH) : 1
    };
    if (row % COPIES) return;
    UNROLL
    for (int i = 0; i < LEFT; i++) {
        int h = (at + i) / T::EACH, t = part * T::EACH + (at + i) % T::EACH;
        scores[t * HEADS + h] = sum[i];
    }
}

/* Numbers d, d + 1 of the value at place t of a tile. */
template <kv_kind KIND>
DEVICE void two_values(const kv_place_of_layer &kv, const uint8_t *values, int t, int d,
                       float (&v)[2]) {
    int i = t * kv.padded + d;
    if constexpr (KIND == KV_F32) {
        float2 f = *(const float2 *)((const float *)values + i);
        v[0] = f.x, v[1] = f.y;
    } else if constexpr (KIND == KV_F16) {
        two_halves(*(const uint32_t *)((const uint16_t *)values + i), v);
    } else {
        const uint8_t *scales = values + kv.padded * 32 + kv.head_dim / BLOCK * 64;
        int blocks = kv.head_dim / BLOCK;
        float scale = f16_to_float(((const uint16_t *)scales)[t * blocks + d / BLOCK]);
        uint32_t u = *(const uint16_t *)(values + i) ^ 0x8080u;
        v[0] = scale * (__uint_as_float(__byte_perm(u, 0x4b000000u, 0x7650u)) - 8388736.0f);
        v[1] = scale * (__uint_as_float(__byte_perm(u, 0x4b000000u, 0x7651u)) - 8388736.0f);
    }
}

/* The block's key and value to their page. */
DEVICE void place_key(const placing &l, const kv_place_of_layer &kv, const cuda_row &row, size_t r,
                      int head, float scale, float *temporary) {
    normalize_key(l, r, head, scale, temporary);
    uint8_t *page = kv_head(kv, row, row.position, head);
    const float *value = l.value + (r * l.heads.n_kv_heads + head) * kv.head_dim;
    for (int i = threadIdx.x % 32; i < kv.head_dim; i += 32)
        keep(kv, page, row.position % PAGE, i, rotated(l, r, temporary, i), value[i]);
}

/* What a warp has of its tiles: for each head the largest score, the sum of weights and that of
 * values. Lane / LANES is the head whose maximum and (its part of the) sum a lane has. */
template <kv_kind KIND, int HEADS, int PAIRS> struct few_sums {
    typedef few_tile<KIND> T;
    enum {
        TENSOR = 0,
        LANES = 32 / HEADS, /* of a head, in its softmax; a lane has every LANES-th position */
        OF_LANE = T::POSITIONS > LANES ? T::POSITIONS / LANES : 1
    };
    float max, total, out[HEADS][PAIRS][2];

    DEVICE void begin() {
        max = -INFINITY, total = 0;
        UNROLL
        for (int h = 0; h < HEADS; h++) {
            UNROLL
            for (int j = 0; j < PAIRS; j++)
                out[h][j][0] = out[h][j][1] = 0;
        }
    }

    /* Queries lie [head_dim][HEADS]. */
    static DEVICE void put_query(const kv_place_of_layer &kv, float *q, int h, int d, float x) {
        if (d < kv.head_dim) q[d * HEADS + h] = x;
    }

    /* The tile at position `at`; `scores`: the warp's [positions][HEADS]. */
    DEVICE void add(const attention &a, uint8_t *tile, const float *q, float *scores, int position,
                    int at) {
        int lane = threadIdx.x % 32, h = lane / LANES, t = lane % LANES;
        score_tile<KIND, HEADS>(a.kv, tile, q, scores);
        __syncwarp();
        float score[OF_LANE], higher = max;
        UNROLL
        for (int k = 0; k < OF_LANE; k++) {
            bool there = t + k * LANES < T::POSITIONS && sees(a, position, at + t + k * LANES);
            score[k] = there ? scores[(t + k * LANES) * HEADS + h] : -INFINITY;
            higher = fmaxf(higher, score[k]);
        }
        UNROLL
        for (int step = LANES / 2; step; step /= 2)
            higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, step));
        float keep = expf(max - higher);
        max = higher;
        total *= keep;
        UNROLL
        for (int k = 0; k < OF_LANE; k++) {
            float p = expf(score[k] - higher);
            total += p;
            if (t + k * LANES < T::POSITIONS) scores[(t + k * LANES) * HEADS + h] = p;
        }
        UNROLL
        for (int g = 0; g < HEADS; g++) {
            float factor = __shfl_sync(~0u, keep, g * LANES);
            UNROLL
            for (int j = 0; j < PAIRS; j++)
                out[g][j][0] *= factor, out[g][j][1] *= factor;
        }
        __syncwarp();
        /* What lies behind the row's position may be anything. */
        int n_there = min((int)T::POSITIONS, position + 1 - at);
        const uint8_t *values = tile + a.kv.head_dim * 32;
        for (int k = 0; k < n_there; k++) {
            float p[HEADS], v[2];
            load_floats<HEADS>(scores + k * HEADS, p);
            UNROLL
            for (int j = 0; j < PAIRS; j++) {
                if (64 * j + 2 * lane >= a.kv.padded) continue;
                two_values<KIND>(a.kv, values, k, 64 * j + 2 * lane, v);
                UNROLL
                for (int g = 0; g < HEADS; g++) {
                    out[g][j][0] = fmaf(p[g], v[0], out[g][j][0]);
                    out[g][j][1] = fmaf(p[g], v[1], out[g][j][1]);
                }
            }
        }
    }

    /* The sums of values to [HEADS][padded]. */
    DEVICE void put(const kv_place_of_layer &kv, float *to) {
        int lane = threadIdx.x % 32;
        UNROLL
        for (int h = 0; h < HEADS; h++) {
            UNROLL
            for (int j = 0; j < PAIRS; j++) {
                if (64 * j + 2 * lane >= kv.padded) continue;
                to[h * kv.padded + 64 * j + 2 * lane] = out[h][j][0];
                to[h * kv.padded + 64 * j + 2 * lane + 1] = out[h][j][1];
            }
        }
    }
};

/* x, y as float16, and what that leaves of them. */
DEVICE void split_halves(float x, float y, uint32_t *high, uint32_t *low) {
    uint16_t a = float_to_f16(x), b = float_to_f16(y);
    *high = a | (uint32_t)b << 16;
    *low = float_to_f16(x - f16_to_float(a)) | (uint32_t)float_to_f16(y - f16_to_float(b)) << 16;
}

/* On tensor cores: rows 0 ... 7 of a first factor are heads, rows 8 ... 15 what float16 leaves of
 * them; so are the rows of the product, which belong together. */
template <int PAIRS> struct few_sums<KV_F16, FEW_HEADS, PAIRS> {
    enum { TENSOR = 1, LANES = 4 };
    float max, total, out[PAIRS * 8][4];

    DEVICE void begin() {
        max = -INFINITY, total = 0;
        UNROLL
        for (int j = 0; j < PAIRS * 8; j++)
            out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
    }

    /* Queries lie [16][padded and 8 more], as float16. */
    static DEVICE void put_query(const kv_place_of_layer &kv, float *q, int h, int d, float x) {
        uint16_t *to = (uint16_t *)q + h * (kv.padded + 8) + d, high = float_to_f16(x);
        to[0] = high;
        to[8 * (kv.padded + 8)] = float_to_f16(x - f16_to_float(high));
    }

    DEVICE void add(const attention &a, uint8_t *tile, const float *q, float *, int position,
                    int at) {
        const kv_place_of_layer &kv = a.kv;
        int lane = threadIdx.x % 32, t2 = lane % 4 * 2;
        int value_bytes = kv.padded * 2 + 16;
        uint8_t *values = tile + kv.head_dim * 32;
        /* Weights of what lies behind the row's position are 0, but it may be anything. */
        int n_there = position + 1 - at;
        if (n_there < 16) {
            for (int i = n_there * value_bytes + lane * 16; i < 16 * value_bytes; i += 32 * 16)
                *(uint4 *)(values + i) = make_uint4(0, 0, 0, 0);
            __syncwarp();
        }
        /* Scores of 2 x 8 positions; matrices of a tile as in load_factors (attend_many.cu). */
        float c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        int row = lane % 16, half = lane / 16;
        const uint8_t *queries = (const uint8_t *)q + row * value_bytes + half * 16;
        for (int k = 0; k < kv.padded; k += 16) {
            uint32_t x[4], b[4];
            int dim = min(k + row, kv.head_dim - 1); /* queries are 0 from head_dim on */
            ldmatrix_x4(x, queries + k * 2);
            ldmatrix_x4_trans(b, tile + dim * 32 + (half ^ (dim >> 2 & 1)) * 16);
            uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            mma_f16(c[0], x, b0);
            mma_f16(c[1], x, b1);
        }
        float score[2][2], higher = max;
        UNROLL
        for (int j = 0; j < 2; j++) {
            UNROLL
            for (int k = 0; k < 2; k++) {
                bool there = sees(a, position, at + 8 * j + t2 + k);
                score[j][k] = there ? c[j][k] + c[j][2 + k] : -INFINITY;
                higher = fmaxf(higher, score[j][k]);
            }
        }
        higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 2));
        higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 1));
        float keep = expf(max - higher);
        max = higher;
        total *= keep;
        UNROLL
        for (int j = 0; j < 2; j++) {
            UNROLL
            for (int k = 0; k < 2; k++) {
                score[j][k] = expf(score[j][k] - higher);
                total += score[j][k];
            }
        }
        UNROLL
        for (int j = 0; j < PAIRS * 8; j++)
            out[j][0] *= keep, out[j][1] *= keep, out[j][2] *= keep, out[j][3] *= keep;
        uint32_t p[4];
        split_halves(score[0][0], score[0][1], &p[0], &p[1]);
        split_halves(score[1][0], score[1][1], &p[2], &p[3]);
        values += row * value_bytes + half * 16;
        UNROLL
        for (int j = 0; j < PAIRS * 4; j++) {
            if (j * 16 >= kv.padded) continue;
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + j * 32);
            uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            mma_f16(out[2 * j], p, b0);
            mma_f16(out[2 * j + 1], p, b1);
        }
    }

    DEVICE void put(const kv_place_of_layer &kv, float *to) {
        int lane = threadIdx.x % 32;
        to += lane / 4 * kv.padded + lane % 4 * 2;
        UNROLL
        for (int j = 0; j < PAIRS * 8; j++) {
            if (j * 8 >= kv.padded) continue;
            to[j * 8] = out[j][0] + out[j][2];
            to[j * 8 + 1] = out[j][1] + out[j][3];
        }
    }
};

/* Bytes of a block's queries, in either order. */
static inline __host__ __device__ size_t few_query_bytes(const kv_place_of_layer &k, int heads) {
    size_t floats = (size_t)k.head_dim * heads * sizeof(float), halves = (k.padded + 8) * 32;
    size_t most = k.kind == KV_F16 && halves > floats ? halves : floats;
    return (most + 15) / 16 * 16;
}

/* Shared memory: tiles [warps][2]; queries; scores [warps][positions][HEADS]; a head
 * [head_dim] per warp. When the tiles are done with, there lie sums of values
 * [warps][HEADS][padded], then maxima and sums [warps][HEADS][2], and weights of segments. */
template <kv_kind KIND, int HEADS, int PAIRS>
__global__ void __launch_bounds__(32 * FEW_WARPS) attend_rows(attention a, placing l) {
    typedef few_tile<KIND> T;
    typedef few_sums<KIND, HEADS, PAIRS> W;
    DYNAMIC_SHARED(uint8_t, memory);
    const kv_place_of_layer &kv = a.kv;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    int d = kv.head_dim, head = blockIdx.y / a.chunks, chunk = blockIdx.y % a.chunks;
    size_t r = blockIdx.z, tile_bytes = few_tile_bytes(kv);
    int first_head = head * a.group + chunk * a.chunk;
    int n = min(a.chunk, (head + 1) * a.group - first_head);
    uint8_t *tiles = memory + warp * 2 * tile_bytes;
    float *q = (float *)(memory + n_warps * 2 * tile_bytes);
    float *all_scores = q + few_query_bytes(kv, HEADS) / sizeof(float);
    float *scores = all_scores + warp * T::POSITIONS * HEADS;
    float *temporary = all_scores + n_warps * T::POSITIONS * HEADS + warp * d;
    const cuda_row &row = a.rows[r];
    int position = row.position;
    seen s = seen_by(a, position, position, T::POSITIONS);
    int each = s.n; /* tiles of a segment */
    if (s.n * T::POSITIONS > FEW_UNSPLIT && a.segments > 1)
        each = max((s.n + a.segments - 1) / a.segments, FEW_LEAST / T::POSITIONS);
    int segments = (s.n + each - 1) / each, segment = blockIdx.x;
    if (segment >= segments) {
        wait_for_previous();
        return;
    }
    int end = min((segment + 1) * each, s.n), i = segment * each + warp;
    auto copy = [&](int tile, int to) {
        int at = seen_at(s, tile, T::POSITIONS);
        copy_tile<KIND, W::TENSOR>(kv, kv_head(kv, row, at, head), at, tiles + to * tile_bytes);
    };
    /* What earlier pieces have left is there before the products are done. */
    bool early = i < end && i != s.n - 1;
    if (early) copy(i, 0);
    wait_for_previous();
    float q_scale = l.q_whole ? scale_of_queries(l, r) : 0;
    for (int h = warp; h < HEADS; h += n_warps) {
        if (h < n) normalize_query(l, r, first_head + h, q_scale, temporary);
        for (int k = lane; k < kv.padded; k += 32) {
            float x = h < n && k < d ? rotated(l, r, temporary, k) * a.scale : 0;
            W::put_query(kv, q, h, k, x);
        }
    }
    if (segment == segments - 1) { /* blocks of one group write the same bits */
        float k_scale = l.k_whole ? scale_of_keys(l, r) : 0;
        if (warp == n_warps - 1) place_key(l, kv, row, r, head, k_scale, temporary);
    }
    __syncthreads();
    if (!early && i < end) copy(i, 0);
    cp_async_commit();

    W mine;
    mine.begin();
    for (int buffer = 0; i < end; i += n_warps, buffer ^= 1) {
        if (i + n_warps < end) copy(i + n_warps, buffer ^ 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncwarp();
        mine.add(a, tiles + buffer * tile_bytes, q, scores, position, seen_at(s, i, T::POSITIONS));
        __syncwarp(); /* the tile and the scores are free again */
    }
    cp_async_wait<0>();
    __syncthreads();

    /* The warps' results to shared memory, then together. */
    float *sums = (float *)memory, *maxima = sums + n_warps * HEADS * kv.padded;
    float *weights = maxima + (n_warps * HEADS * 2 + 3) / 4 * 4;
    float total = mine.total;
    UNROLL
    for (int step = W::LANES / 2; step; step /= 2)
        total += __shfl_xor_sync(~0u, total, step);
    if (lane % W::LANES == 0) {
        maxima[(warp * HEADS + lane / W::LANES) * 2] = mine.max;
        maxima[(warp * HEADS + lane / W::LANES) * 2 + 1] = total;
    }
    mine.put(kv, sums + warp * HEADS * kv.padded);
    __syncthreads();
    size_t tile = r * gridDim.y + blockIdx.y;
    float *part = part_of(a, tile, segment, HEADS);
    for (int j = threadIdx.x; j < n * kv.padded; j += blockDim.x) {
        int g = j / kv.padded, at = j % kv.padded;
        float highest = -INFINITY, y = 0, all = 0;
        for (int w = 0; w < n_warps; w++)
            highest = fmaxf(highest, maxima[(w * HEADS + g) * 2]);
        for (int w = 0; w < n_warps; w++) {
            float weight = part_weight(maxima[(w * HEADS + g) * 2], highest);
            all = fmaf(maxima[(w * HEADS + g) * 2 + 1], weight, all);
            y = fmaf(sums[(w * HEADS + g) * kv.padded + at], weight, y);
        }
        if (segments > 1) {
            part[PART_HEAD * HEADS + j] = y;
            if (!at) part[PART_HEAD * g] = highest, part[PART_HEAD * g + 1] = all;
        } else if (at < d) {
            store_mean(a, r, first_head + g, at, y / all);
        }
    }
    if (segments == 1 || !last_of_tile(a, tile, segments)) return;
    merge_parts(a, tile, segments, HEADS, n, weights,
                [&](int g, int at, float y) { store_mean(a, r, first_head + g, at, y); });
}

/* ---- The host's part ---------------------------------------------------------------------------
 */

static int few_heads(int head_dim) {
    return head_dim > 256 ? FEW_WIDE_HEADS : FEW_HEADS;
}

static int few_warps(size_t tile_bytes) {
    return (int)max_size(1, min_size(FEW_WARPS, FEW_SHARED / (2 * tile_bytes)));
}

/* So many at least, where there is work for them: one per SM, or two of half as many warps. */
static size_t few_blocks(int sm_count, int warps) {
    return (size_t)sm_count * (warps < FEW_WARPS ? 2 : 1);
}

size_t attend_few_floats(const linnet_model *m, int layer, size_t depth, int sm_count) {
    if (seen_at_most(m, layer, depth) <= FEW_UNSPLIT) return 0;
    return parts_floats(m, layer, few_blocks(sm_count, 1), FEW_HEADS);
}

typedef struct {
    const cuda_pass *p;
    attention a;
    placing l;
} few_launch;

template <kv_kind KIND, int HEADS, int PAIRS> static void launch_few(const few_launch &f) {
    const kv_place_of_layer &kv = f.a.kv;
    size_t warps = (size_t)few_warps(few_tile_bytes(kv)), d = (size_t)kv.head_dim;
    size_t tiles = warps * 2 * few_tile_bytes(kv), positions = few_tile<KIND>::POSITIONS;
    size_t loop =
        tiles + few_query_bytes(kv, HEADS) + warps * (positions * HEADS + d) * sizeof(float);
    size_t end = (warps * HEADS * ((size_t)kv.padded + 4) +
                  merge_floats(HEADS, (size_t)f.a.segments, warps * 32)) *
                 sizeof(float);
    dim3 grid((unsigned)f.a.segments, (unsigned)(f.a.heads.n_kv_heads * f.a.chunks),
              (unsigned)f.p->n);
    launch_overlapped(f.p->stream, grid, dim3((unsigned)warps * 32), max_size(loop, end),
                      attend_rows<KIND, HEADS, PAIRS>, f.a, f.l);
}

template <kv_kind KIND, int HEADS> static void launch_few_heads(const few_launch &f) {
    int d = f.a.kv.padded;
    if constexpr (HEADS <= FEW_WIDE_HEADS)
        if (d > 256) return launch_few<KIND, HEADS, 8>(f);
    if constexpr (HEADS == FEW_HEADS || KIND != KV_F16) {
        if (d <= 64)
            launch_few<KIND, HEADS, 1>(f);
        else if (d <= 128)
            launch_few<KIND, HEADS, 2>(f);
        else
            launch_few<KIND, HEADS, 4>(f);
    }
}

template <kv_kind KIND> static void launch_few_kind(const few_launch &f) {
    int n = f.a.chunk;
    if (KIND == KV_F16 && f.a.kv.head_dim <= 256)
        launch_few_heads<KIND, 8>(f);
    else if (n <= 1)
        launch_few_heads<KIND, 1>(f);
    else if (n <= 2)
        launch_few_heads<KIND, 2>(f);
    else if (n <= 4)
        launch_few_heads<KIND, 4>(f);
    else
        launch_few_heads<KIND, 8>(f);
}

void attend_few(const cuda_pass *p, int layer, const softmax_weights *w) {
    few_launch f = {p, attention_of(p, layer, few_heads(p->m->layers[layer].heads.head_dim)),
                    placing_of(p, layer, w)};
    size_t seen = seen_at_most(p->m, layer, p->depth);
    size_t tiles = p->n * (size_t)(f.a.heads.n_kv_heads * f.a.chunks);
    if (seen > FEW_UNSPLIT)
        f.a.segments = segments_for(
            tiles, seen, few_blocks(p->sm_count, few_warps(few_tile_bytes(f.a.kv))), FEW_LEAST);
    if (f.a.kv.kind == KV_F32)
        launch_few_kind<KV_F32>(f);
    else if (f.a.kv.kind == KV_F16)
        launch_few_kind<KV_F16>(f);
    else
        launch_few_kind<KV_Q8_0>(f);
}
