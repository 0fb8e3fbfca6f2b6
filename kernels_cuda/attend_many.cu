/* Attention of many rows (prefill) on tensor cores, sums in float32 (after FlashAttention-2, Dao
 * 2023). A block of 4 warps has 64 queries: rows of one session times the query heads of a KV head;
 * it walks over the pages that they see, a warp with 16 queries of its own, whose scores, softmax
 * and sums stay in its registers. Operands are float16, but bfloat16 where pages are float32. A
 * page's keys lie in shared memory as they do in the page, [dimension][position], and so do its
 * values, [position][dimension]: both are what a product's second factor wants (ldmatrix.trans).
 * Pieces of 16 bytes are swapped within a row by the row's last three bits, so that eight rows of a
 * matrix meet no bank twice. The next page's keys are copied while this page's weights and values
 * are multiplied, the next values during the next scores.
 *
 * Traffic: keys and values once per 64 queries, mostly from the L2 cache; 32 KB under way per block
 * with 128 dimensions. Bound by tensor cores and exponentials. */
#include "attend.h"
#include "ptx.h"

enum {
    MANY_WARPS = 4,
    MANY_THREADS = 32 * MANY_WARPS,
    MANY_QUERIES = 16 * MANY_WARPS,
    MANY_DIMS = 256, /* the largest head; */
    MANY_HELD = 128, /* up to here queries are held in registers */
    MANY_LEAST = 512 /* the fewest positions of a segment */
};

bool attend_many_fits(const linnet_model *m, int layer) {
    return m->layers[layer].heads.head_dim <= MANY_DIMS;
}

/* Where in a tile with rows of `bytes` (a multiple of 128) the 16-byte piece of a row lies. */
DEVICE uint8_t *piece(uint8_t *tile, int bytes, int row, int of) {
    return tile + row * bytes + (of ^ (row & 7)) * 16;
}

template <kv_kind KIND> DEVICE uint32_t two_of(float low, float high) {
    if constexpr (KIND == KV_F32)
        return float_to_bf16(low) | (uint32_t)float_to_bf16(high) << 16;
    else
        return float_to_f16(low) | (uint32_t)float_to_f16(high) << 16;
}

template <kv_kind KIND>
DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (KIND == KV_F32)
        mma_bf16(d, a, b);
    else
        mma_f16(d, a, b);
}

/* Eight neighbouring float32 numbers, or bytes with their scales, as 16-bit ones. */
template <kv_kind KIND> DEVICE uint4 eight_of(const float (&x)[8]) {
    return make_uint4(two_of<KIND>(x[0], x[1]), two_of<KIND>(x[2], x[3]), two_of<KIND>(x[4], x[5]),
                      two_of<KIND>(x[6], x[7]));
}

DEVICE void eight_floats(const float *from, float (&x)[8]) {
    float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

DEVICE void eight_bytes(const uint8_t *from, float (&x)[8]) {
    uint2 u = *(const uint2 *)from;
    UNROLL
    for (int i = 0; i < 4; i++) {
        x[i] = (float)(int8_t)(u.x >> 8 * i);
        x[i + 4] = (float)(int8_t)(u.y >> 8 * i);
    }
}

/* A page's keys, [head_dim rounded up to 16][64 positions]; rows past head_dim are zero. */
template <kv_kind KIND>
DEVICE void copy_keys(const kv_place_of_layer &kv, const uint8_t *head, uint8_t *tile) {
    for (int i = threadIdx.x; i < kv.padded * 8; i += MANY_THREADS) {
        int d = i / 8, of = i % 8;
        uint8_t *to = piece(tile, PAGE * 2, d, of);
        bool there = d < kv.head_dim;
        if constexpr (KIND == KV_F16) {
            cp_async16(to, there ? head + (d * PAGE + of * 8) * 2 : head, there ? 16 : 0);
            continue;
        }
        float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if constexpr (KIND == KV_F32) {
            if (there) eight_floats((const float *)head + d * PAGE + of * 8, x);
        } else {
            eight_bytes(head + d * PAGE + of * 8, x);
            uint4 u = load16(head + kv.kd_at + (d / BLOCK * PAGE + of * 8) * 2);
            uint32_t scales[4] = {u.x, u.y, u.z, u.w};
            UNROLL
            for (int k = 0; k < 8; k++)
                x[k] *= f16_to_float((uint16_t)(scales[k / 2] >> k % 2 * 16));
        }
        *(uint4 *)to = eight_of<KIND>(x);
    }
}

/* Its values, [64 positions][padded] in rows of `bytes`; zero from position `end` on: what lies
 * there may be anything. */
template <kv_kind KIND>
DEVICE void copy_values(const kv_place_of_layer &kv, const uint8_t *head, int end, int bytes,
                        uint8_t *tile) {
    int pieces = kv.padded / 8;
    const uint8_t *values = head + kv.v_at;
    for (int i = threadIdx.x; i < PAGE * pieces; i += MANY_THREADS) {
        int t = i / pieces, of = i % pieces;
        uint8_t *to = piece(tile, bytes, t, of);
        bool there = t < end;
        if constexpr (KIND == KV_F16) {
            cp_async16(to, values + (t * kv.padded + of * 8) * 2, there ? 16 : 0);
            continue;
        }
        float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if constexpr (KIND == KV_F32) {
            if (there) eight_floats((const float *)values + t * kv.padded + of * 8, x);
        } else if (there) {
            const uint16_t *scales = (const uint16_t *)(head + kv.vd_at);
            eight_bytes(values + t * kv.padded + of * 8, x);
            float scale = f16_to_float(scales[t * (kv.head_dim / BLOCK) + of * 8 / BLOCK]);
            UNROLL
            for (int k = 0; k < 8; k++)
                x[k] *= scale;
        }
        *(uint4 *)to = eight_of<KIND>(x);
    }
}

/* A second factor [16 rows][16 columns] of a tile: rows from `row`, columns from 8 `of` (two
 * products of 8 columns). */
DEVICE void load_factors(uint8_t *tile, int bytes, int row, int of, uint32_t (&b)[4]) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(b, piece(tile, bytes, row + lane / 8 % 2 * 8 + lane % 8, of + lane / 16));
}

/* Shared memory: keys [DIMS][64], values [64][DIMS], queries [64][DIMS], all 16-bit. */
template <kv_kind KIND, int DIMS>
__global__ void __launch_bounds__(MANY_THREADS) attend_tiles(attention a) {
    enum { STEPS = DIMS / 16, ROW = DIMS * 2, HELD = DIMS <= MANY_HELD ? STEPS : 1 };
    DYNAMIC_SHARED(uint8_t, keys);
    uint8_t *values = keys + PAGE * ROW, *queries = values + PAGE * ROW;
    const kv_place_of_layer &kv = a.kv;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t2 = lane % 4 * 2;
    int d = kv.head_dim;
    wait_for_previous();
    query_tile t;
    if (!find_tile(a, MANY_QUERIES, MANY_LEAST, &t)) return;
    const cuda_row &row = a.rows[t.row];
    auto page_of = [&](int i) { return kv_head(kv, row, seen_at(t.pages, i, PAGE), t.kv_head); };
    auto copy_values_of = [&](int i) {
        int end = t.to + 1 - seen_at(t.pages, i, PAGE);
        copy_values<KIND>(kv, page_of(i), end, ROW, values);
        cp_async_commit();
    };
    copy_keys<KIND>(kv, page_of(t.first), keys);
    cp_async_commit();
    copy_values_of(t.first);

    int pieces = kv.padded / 8;
    for (int i = threadIdx.x; i < MANY_QUERIES * pieces; i += MANY_THREADS) {
        int of = i / pieces, at = i % pieces * 8;
        size_t head = (size_t)(t.row + of / t.heads) * a.heads.n_heads + t.head + of % t.heads;
        float x[8];
        UNROLL
        for (int k = 0; k < 8; k++)
            x[k] = of < t.n && at + k < d ? a.q[head * d + at + k] * a.scale : 0;
        *(uint4 *)piece(queries, ROW, of, at / 8) = eight_of<KIND>(x);
    }
    __syncthreads();
    uint32_t q[HELD][4];
    auto load_queries = [&](int step, uint32_t(&to)[4]) {
        ldmatrix_x4(to, piece(queries, ROW, warp * 16 + lane % 16, step * 2 + lane / 16));
    };
    if constexpr (HELD == STEPS) {
        UNROLL
        for (int i = 0; i < STEPS; i++)
            if (i * 16 < kv.padded) load_queries(i, q[i]);
    }

    /* Rows g and g + 8 of the warp's 16 queries. */
    int position[2];
    float max[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, out[DIMS / 8][4];
    UNROLL
    for (int i = 0; i < 2; i++)
        position[i] = t.from + min(warp * 16 + g + 8 * i, t.n - 1) / t.heads;
    UNROLL
    for (int i = 0; i < DIMS / 8; i++)
        out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0;
    for (int i = t.first; i < t.end; i++) {
        int at = seen_at(t.pages, i, PAGE);
        float score[8][4];
        UNROLL
        for (int k = 0; k < 8; k++)
            score[k][0] = score[k][1] = score[k][2] = score[k][3] = 0;
        cp_async_wait<1>();
        __syncthreads();
        UNROLL
        for (int k = 0; k < STEPS; k++) {
            if (k * 16 >= kv.padded) continue;
            if constexpr (HELD != STEPS) load_queries(k, q[0]);
            UNROLL
            for (int j = 0; j < 4; j++) {
                uint32_t b[4];
                load_factors(keys, PAGE * 2, k * 16, j * 2, b);
                uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                multiply<KIND>(score[2 * j], q[HELD == STEPS ? k : 0], b0);
                multiply<KIND>(score[2 * j + 1], q[HELD == STEPS ? k : 0], b1);
            }
        }
        __syncthreads();
        if (i + 1 < t.end) copy_keys<KIND>(kv, page_of(i + 1), keys);
        cp_async_commit();

        /* All of the page is seen by all rows, or each is asked. */
        bool all = at + PAGE - 1 <= t.from && (!a.window || at > t.to - a.window);
        float keep[2];
        UNROLL
        for (int r = 0; r < 2; r++) {
            float higher = max[r];
            UNROLL
            for (int k = 0; k < 8; k++) {
                UNROLL
                for (int c = 0; c < 2; c++) {
                    float *s = &score[k][2 * r + c];
                    if (!all && !sees(a, position[r], at + k * 8 + t2 + c)) *s = -INFINITY;
                    higher = fmaxf(higher, *s);
                }
            }
            higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 1));
            higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 2));
            float from = higher == -INFINITY ? 0 : higher; /* nothing seen so far */
            keep[r] = __expf(max[r] - from);
            max[r] = higher;
            total[r] *= keep[r];
            UNROLL
            for (int k = 0; k < 8; k++) {
                UNROLL
                for (int c = 0; c < 2; c++) {
                    float *s = &score[k][2 * r + c];
                    *s = __expf(*s - from);
                    total[r] += *s;
                }
            }
        }
        UNROLL
        for (int k = 0; k < DIMS / 8; k++) {
            out[k][0] *= keep[0], out[k][1] *= keep[0];
            out[k][2] *= keep[1], out[k][3] *= keep[1];
        }
        cp_async_wait<1>();
        __syncthreads();
        UNROLL
        for (int k = 0; k < PAGE / 16; k++) {
            uint32_t p[4] = {two_of<KIND>(score[2 * k][0], score[2 * k][1]),
                             two_of<KIND>(score[2 * k][2], score[2 * k][3]),
                             two_of<KIND>(score[2 * k + 1][0], score[2 * k + 1][1]),
                             two_of<KIND>(score[2 * k + 1][2], score[2 * k + 1][3])};
            UNROLL
            for (int j = 0; j < STEPS; j++) {
                if (j * 16 >= kv.padded) continue;
                uint32_t b[4];
                load_factors(values, ROW, k * 16, j * 2, b);
                uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                multiply<KIND>(out[2 * j], p, b0);
                multiply<KIND>(out[2 * j + 1], p, b1);
            }
        }
        __syncthreads();
        if (i + 1 < t.end)
            copy_values_of(i + 1);
        else
            cp_async_commit();
    }
    cp_async_wait<0>();

    bool whole = t.segments == 1;
    float *part = part_of(a, t.index, blockIdx.x, MANY_QUERIES);
    UNROLL
    for (int r = 0; r < 2; r++) {
        int of = warp * 16 + g + 8 * r;
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        if (!whole && lane % 4 == 0)
            part[PART_HEAD * of] = max[r], part[PART_HEAD * of + 1] = total[r];
        if (of >= t.n) continue;
        size_t to = (size_t)(t.row + of / t.heads);
        UNROLL
        for (int k = 0; k < DIMS / 8; k++) {
            UNROLL
            for (int c = 0; c < 2; c++) {
                int at = k * 8 + t2 + c;
                if (at >= d) continue;
                float y = out[k][2 * r + c];
                if (whole)
                    store_mean(a, to, t.head + of % t.heads, at, y / total[r]);
                else
                    part[PART_HEAD * MANY_QUERIES + of * kv.padded + at] = y;
            }
        }
    }
    if (whole || !last_of_tile(a, t.index, t.segments)) return;
    merge_parts(a, t.index, t.segments, MANY_QUERIES, t.n, (float *)keys,
                [&](int i, int at, float y) {
                    store_mean(a, (size_t)(t.row + i / t.heads), t.head + i % t.heads, at, y);
                });
}

/* ---- The host's part ---------------------------------------------------------------------------
 */

size_t attend_many_floats(const linnet_model *m, int layer, size_t depth, int sm_count) {
    return tiles_floats(m, layer, depth, sm_count, MANY_QUERIES, MANY_LEAST);
}

template <kv_kind KIND, int DIMS> static void launch_many(const cuda_pass *p, int layer) {
    attention a = attention_of(p, layer, MANY_QUERIES);
    dim3 grid = grid_of_tiles(p, layer, MANY_QUERIES, MANY_LEAST, &a);
    launch_overlapped(p->stream, grid, dim3(MANY_THREADS), (2 * PAGE + MANY_QUERIES) * DIMS * 2,
                      attend_tiles<KIND, DIMS>, a);
}

template <kv_kind KIND> static void launch_many_kind(const cuda_pass *p, int layer) {
    int d = p->m->layers[layer].heads.head_dim;
    if (d <= 64)
        launch_many<KIND, 64>(p, layer);
    else if (d <= 128)
        launch_many<KIND, 128>(p, layer);
    else
        launch_many<KIND, MANY_DIMS>(p, layer);
}

void attend_many(const cuda_pass *p, int layer) {
    kv_kind kind = kv_places(p, layer).kind;
    if (kind == KV_F32)
        launch_many_kind<KV_F32>(p, layer);
    else if (kind == KV_F16)
        launch_many_kind<KV_F16>(p, layer);
    else
        launch_many_kind<KV_Q8_0>(p, layer);
}
