/* Attention of many rows (prefill) in float32. A block has 32 queries: rows of one session times
 * the query heads of a KV head; it walks over the pages they see with a running maximum. Keys and
 * values come in slices of 64 dimensions of a page's 64 positions, as float32, two slices in shared
 * memory where there is room: one under way while the other is used. Each of 128 threads has the
 * scores of 4 queries and 4 positions, then 4 queries and every 16th float4 of the values'
 * dimensions; 16 lanes share 4 queries, so that softmax stays within them.
 *
 * Traffic: keys and values once per 32 queries, mostly from the L2 cache. Bound by arithmetic: 16
 * fma for two 16-byte loads from shared memory. */
#include "attend.h"
#include "ptx.h"

enum {
    EXACT_QUERIES = 32,
    EXACT_THREADS = 128,
    SLICE = 64,             /* dimensions */
    EXACT_LEAST = 256,      /* the fewest positions of a segment */
    EXACT_P = SLICE * 4 + 4 /* floats between the weights of two groups of 4 queries */
};

/* Slice j of the keys of the page at `at`: [64 dimensions][64 positions]. */
template <kv_kind KIND>
DEVICE void copy_keys(const kv_place_of_layer &kv, const uint8_t *head, int j, float *to) {
    int n = min((int)SLICE, kv.head_dim - j * SLICE) * PAGE;
    if constexpr (KIND == KV_F32) {
        const float *from = (const float *)head + j * SLICE * PAGE;
        for (int i = threadIdx.x * 4; i < n; i += EXACT_THREADS * 4)
            cp_async16(to + i, from + i);
    } else {
        for (int i = threadIdx.x; i < n; i += EXACT_THREADS)
            to[i] = kv_key<KIND>(kv, head, i % PAGE, j * SLICE + i / PAGE);
    }
}

/* Slice j of the values: [64 positions][64 dimensions]; zero from position `end` on: what lies
 * there may be anything. */
template <kv_kind KIND>
DEVICE void copy_values(const kv_place_of_layer &kv, const uint8_t *head, int j, int end,
                        float *to) {
    int width = min((int)SLICE, kv.padded - j * SLICE);
    if constexpr (KIND == KV_F32) {
        const float *from = (const float *)(head + kv.v_at) + j * SLICE;
        for (int i = threadIdx.x; i < PAGE * SLICE / 4; i += EXACT_THREADS) {
            int t = i / (SLICE / 4), d = i % (SLICE / 4) * 4;
            if (d >= width) continue;
            cp_async16(to + t * SLICE + d, from + (size_t)t * kv.padded + d, t < end ? 16 : 0);
        }
    } else {
        for (int i = threadIdx.x; i < PAGE * SLICE; i += EXACT_THREADS) {
            int t = i / SLICE, d = i % SLICE;
            if (d < width && j * SLICE + d < kv.head_dim)
                to[i] = t < end ? kv_value<KIND>(kv, head, t, j * SLICE + d) : 0;
        }
    }
}

/* Shared memory: slices [1 or 2][64][64]; q [head_dim][32]; weights of scores [8][64 positions][4],
 * position t at t % 4 * 16 + t / 4, so that lanes of neighbouring positions lie side by side. */
template <kv_kind KIND, int SLICES>
__global__ void __launch_bounds__(EXACT_THREADS) attend_slices(attention a) {
    enum { BUFFERS = SLICES > 4 ? 1 : 2 };
    DYNAMIC_SHARED(float, memory);
    float *q = memory + BUFFERS * SLICE * PAGE;
    const kv_place_of_layer &kv = a.kv;
    int d = kv.head_dim, four = threadIdx.x / 16, lane = threadIdx.x % 16;
    float *weights = q + d * EXACT_QUERIES + four * EXACT_P;
    wait_for_previous();
    query_tile t;
    if (!find_tile(a, EXACT_QUERIES, EXACT_LEAST, &t)) return;
    const cuda_row &row = a.rows[t.row];
    int n_slices = (d + SLICE - 1) / SLICE;

    /* Slice j of page i: its keys, then its values. */
    auto copy = [&](int i, int j, float *to) {
        int at = seen_at(t.pages, i, PAGE);
        const uint8_t *head = kv_head(kv, row, at, t.kv_head);
        if (j < n_slices)
            copy_keys<KIND>(kv, head, j, to);
        else
            copy_values<KIND>(kv, head, j - n_slices, t.to + 1 - at, to);
        cp_async_commit();
    };
    int page = t.first, slice = 0, buffer = 0;
    /* The next slice, copied while another is used, or only now. */
    auto next = [&]() {
        if (BUFFERS == 1) {
            copy(page, slice, memory);
        } else {
            int s = slice + 1 < 2 * n_slices ? slice + 1 : 0, i = s ? page : page + 1;
            if (i < t.end)
                copy(i, s, memory + (buffer ^ 1) * SLICE * PAGE);
            else
                cp_async_commit();
        }
        cp_async_wait<BUFFERS - 1>();
        __syncthreads();
        return (const float *)memory + buffer * SLICE * PAGE;
    };
    auto done = [&]() {
        __syncthreads();
        buffer = BUFFERS == 1 ? 0 : buffer ^ 1;
        if (++slice == 2 * n_slices) slice = 0, page++;
    };
    if (BUFFERS == 2) copy(page, 0, memory);

    for (int i = threadIdx.x; i < d * EXACT_QUERIES; i += EXACT_THREADS) {
        int of = i % EXACT_QUERIES, k = i / EXACT_QUERIES;
        size_t head = (size_t)(t.row + of / t.heads) * a.heads.n_heads + t.head + of % t.heads;
        q[i] = of < t.n ? a.q[head * d + k] * a.scale : 0;
    }
    int position[4];
    float max[4], total[4], out[4][SLICES][4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        position[i] = t.from + min(4 * four + i, t.n - 1) / t.heads;
        max[i] = -INFINITY, total[i] = 0;
        UNROLL
        for (int j = 0; j < SLICES; j++)
            out[i][j][0] = out[i][j][1] = out[i][j][2] = out[i][j][3] = 0;
    }
    while (page < t.end) {
        int at = seen_at(t.pages, page, PAGE);
        float score[4][4]; /* [query][position 4 lane + ...] */
        UNROLL
        for (int i = 0; i < 4; i++)
            score[i][0] = score[i][1] = score[i][2] = score[i][3] = 0;
        for (int j = 0; j < n_slices; j++) {
            const float *keys = next() + 4 * lane,
                        *queries = q + j * SLICE * EXACT_QUERIES + 4 * four;
            int n = min((int)SLICE, d - j * SLICE);
            for (int k = 0; k < n; k++) {
                float4 x = *(const float4 *)(queries + k * EXACT_QUERIES);
                float4 y = *(const float4 *)(keys + k * PAGE);
                float of_query[4] = {x.x, x.y, x.z, x.w};
                UNROLL
                for (int i = 0; i < 4; i++) {
                    score[i][0] = fmaf(of_query[i], y.x, score[i][0]);
                    score[i][1] = fmaf(of_query[i], y.y, score[i][1]);
                    score[i][2] = fmaf(of_query[i], y.z, score[i][2]);
                    score[i][3] = fmaf(of_query[i], y.w, score[i][3]);
                }
            }
            done();
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            float higher = max[i];
            UNROLL
            for (int k = 0; k < 4; k++) {
                if (!sees(a, position[i], at + 4 * lane + k)) score[i][k] = -INFINITY;
                higher = fmaxf(higher, score[i][k]);
            }
            UNROLL
            for (int step = 8; step; step /= 2)
                higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, step));
            float from = higher == -INFINITY ? 0 : higher; /* nothing seen so far */
            float keep = expf(max[i] - from);
            max[i] = higher;
            total[i] *= keep;
            UNROLL
            for (int k = 0; k < 4; k++) {
                score[i][k] = expf(score[i][k] - from);
                total[i] += score[i][k];
            }
            UNROLL
            for (int j = 0; j < SLICES; j++) {
                UNROLL
                for (int k = 0; k < 4; k++)
                    out[i][j][k] *= keep;
            }
        }
        UNROLL
        for (int k = 0; k < 4; k++)
            *(float4 *)(weights + (k * 16 + lane) * 4) =
                make_float4(score[0][k], score[1][k], score[2][k], score[3][k]);
        __syncwarp();
        int n_there = min((int)PAGE, t.to + 1 - at);
        UNROLL
        for (int j = 0; j < SLICES; j++) {
            if (j >= n_slices) continue;
            const float *values = next() + 4 * lane;
            for (int k = 0; k < n_there; k++) {
                float4 p = *(const float4 *)(weights + (k % 4 * 16 + k / 4) * 4);
                float4 v = *(const float4 *)(values + k * SLICE);
                float of_query[4] = {p.x, p.y, p.z, p.w};
                UNROLL
                for (int i = 0; i < 4; i++) {
                    out[i][j][0] = fmaf(of_query[i], v.x, out[i][j][0]);
                    out[i][j][1] = fmaf(of_query[i], v.y, out[i][j][1]);
                    out[i][j][2] = fmaf(of_query[i], v.z, out[i][j][2]);
                    out[i][j][3] = fmaf(of_query[i], v.w, out[i][j][3]);
                }
            }
            done();
        }
    }
    cp_async_wait<0>();

    bool whole = t.segments == 1;
    float *part = part_of(a, t.index, blockIdx.x, EXACT_QUERIES);
    UNROLL
    for (int i = 0; i < 4; i++) {
        int of = 4 * four + i;
        UNROLL
        for (int step = 8; step; step /= 2)
            total[i] += __shfl_xor_sync(~0u, total[i], step);
        if (!whole && lane == 0) part[PART_HEAD * of] = max[i], part[PART_HEAD * of + 1] = total[i];
        if (of >= t.n) continue;
        UNROLL
        for (int j = 0; j < SLICES; j++) {
            UNROLL
            for (int k = 0; k < 4; k++) {
                int at = j * SLICE + 4 * lane + k;
                if (at >= d) continue;
                if (whole)
                    store_mean(a, (size_t)(t.row + of / t.heads), t.head + of % t.heads, at,
                               out[i][j][k] / total[i]);
                else
                    part[PART_HEAD * EXACT_QUERIES + of * kv.padded + at] = out[i][j][k];
            }
        }
    }
    if (whole || !last_of_tile(a, t.index, t.segments)) return;
    merge_parts(a, t.index, t.segments, EXACT_QUERIES, t.n, memory, [&](int i, int at, float y) {
        store_mean(a, (size_t)(t.row + i / t.heads), t.head + i % t.heads, at, y);
    });
}

/* ---- The host's part ---------------------------------------------------------------------------
 */

size_t attend_exact_floats(const linnet_model *m, int layer, size_t depth, int sm_count) {
    return tiles_floats(m, layer, depth, sm_count, EXACT_QUERIES, EXACT_LEAST);
}

template <kv_kind KIND, int SLICES> static void launch_exact(const cuda_pass *p, int layer) {
    attention a = attention_of(p, layer, EXACT_QUERIES);
    dim3 grid = grid_of_tiles(p, layer, EXACT_QUERIES, EXACT_LEAST, &a);
    size_t floats = (SLICES > 4 ? 1 : 2) * SLICE * PAGE + (size_t)a.kv.head_dim * EXACT_QUERIES +
                    EXACT_QUERIES / 4 * EXACT_P;
    launch_overlapped(p->stream, grid, dim3(EXACT_THREADS), floats * sizeof(float),
                      attend_slices<KIND, SLICES>, a);
}

template <kv_kind KIND> static void launch_exact_kind(const cuda_pass *p, int layer) {
    int d = p->m->layers[layer].heads.head_dim;
    if (d <= 64)
        launch_exact<KIND, 1>(p, layer);
    else if (d <= 128)
        launch_exact<KIND, 2>(p, layer);
    else if (d <= 256)
        launch_exact<KIND, 4>(p, layer);
    else
        launch_exact<KIND, 8>(p, layer);
}

void attend_exact(const cuda_pass *p, int layer) {
    kv_kind kind = kv_places(p, layer).kind;
    if (kind == KV_F32)
        launch_exact_kind<KV_F32>(p, layer);
    else if (kind == KV_F16)
        launch_exact_kind<KV_F16>(p, layer);
    else
        launch_exact_kind<KV_Q8_0>(p, layer);
}
