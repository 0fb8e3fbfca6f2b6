/* Softmax attention over KV pages: what its kernels share. softmax.cu chooses among
 *   attend_few   (attend_few.cu)   one row per session: decoding
 *   attend_many  (attend_many.cu)  rows of a session in tiles, on tensor cores
 *   attend_exact (attend_exact.cu) the same in float32
 * All of them cut what a tile sees into segments, one per block, where blocks are few; the last
 * block of a tile that finishes merges its segments in their order. How many segments there are at
 * most is decided on the host; how many a tile takes, by its own position. */
#ifndef CUDA_ATTEND_H
#define CUDA_ATTEND_H

#include "rope.h"

enum {
    TILE_SEGMENTS = 16, /* the most of a tile of several rows */
    PART_HEAD = 4       /* floats of a part beside the sums of values, per query */
};

typedef struct {
    kv_place_of_layer kv;
    head_layout heads;
    int window, n_sink;
    int group;         /* query heads of a KV head */
    int chunk, chunks; /* of those a block takes at most `chunk`: blocks for a group */
    int segments;      /* the most of a tile */
    float scale;
    const cuda_row *rows;
    const cuda_run *runs;
    int n_runs;
    const float *q;     /* [n, heads, head_dim] */
    const float *gates; /* [n, heads, 2, head_dim], the second half; NULL: none */
    float *out;         /* [n, heads, head_dim] */
    float *partial;     /* [tiles][segments], see part_of */
    unsigned *counters; /* [tiles] */
} attention;

/* What lies between the products of a softmax layer: from queries, keys and values as they leave
 * those to p->mixed. */
void cuda_attend(const cuda_pass *p, int layer, const softmax_weights *w);

void attend_few(const cuda_pass *p, int layer, const softmax_weights *w);
void attend_many(const cuda_pass *p, int layer);
void attend_exact(const cuda_pass *p, int layer);
bool attend_many_fits(const linnet_model *m, int layer);
size_t attend_few_floats(const linnet_model *m, int layer, size_t depth, int sm_count);
size_t attend_many_floats(const linnet_model *m, int layer, size_t depth, int sm_count);
size_t attend_exact_floats(const linnet_model *m, int layer, size_t depth, int sm_count);

/* Positions that a row of a piece at most sees. */
static inline size_t seen_at_most(const linnet_model *m, int layer, size_t depth) {
    size_t window = (size_t)m->layers[layer].window;
    return window ? min_size(depth, window + (size_t)m->cfg.n_sink) : depth;
}

/* Segments for `tiles` of rows that see `seen` positions: so many that there are `blocks` blocks,
 * with at least `least` positions each. More than one only where tiles are fewer than blocks, so
 * that there are never 2 * blocks of them. */
static inline int segments_for(size_t tiles, size_t seen, size_t blocks, size_t least) {
    size_t s = min_size((blocks + tiles - 1) / tiles, seen / least);
    return s > 1 && tiles * s <= CUDA_COUNTERS ? (int)s : 1;
}

/* Floats of their results. */
static inline size_t parts_floats(const linnet_model *m, int layer, size_t blocks, size_t queries) {
    size_t padded = round_up((size_t)m->layers[layer].heads.head_dim, 16);
    return 2 * blocks * queries * (padded + PART_HEAD);
}

/* All but segments; of the query heads of a group at most `chunk` are one block's. */
static inline attention attention_of(const cuda_pass *p, int layer, int most) {
    attention a = {};
    a.kv = kv_places(p, layer);
    a.heads = p->m->layers[layer].heads;
    a.window = p->m->layers[layer].window;
    a.n_sink = p->m->cfg.n_sink;
    a.group = a.heads.n_heads / a.heads.n_kv_heads;
    a.chunks = (a.group + most - 1) / most;
    a.chunk = (a.group + a.chunks - 1) / a.chunks;
    a.chunks = (a.group + a.chunk - 1) / a.chunk; /* none is empty */
    a.segments = 1;
    a.scale = 1.0f / sqrtf((float)a.heads.head_dim);
    a.rows = p->rows;
    a.runs = p->runs;
    a.n_runs = (int)p->n_runs;
    a.q = p->q;
    a.gates = p->m->cfg.gated_attention ? p->work : NULL;
    a.out = p->mixed;
    a.partial = p->partial;
    a.counters = p->counters;
    return a;
}

/* ---- What is seen ------------------------------------------------------------------------------
 */

/* Places of `size` positions (a tile or a page) in which the rows at positions [from, to] see
 * something: first those of the sinks, then those of the windows. */
typedef struct {
    int sinks, first, n;
} seen;

DEVICE seen seen_by(const attention &a, int from, int to, int size) {
    int first = a.window && from >= a.window ? from - a.window + 1 : 0;
    /* Sinks may lie before the window of the last row and in that of the first. */
    int last_first = a.window && to >= a.window ? to - a.window + 1 : 0;
    seen s;
    s.first = first / size;
    s.sinks = min((min(a.n_sink, last_first) + size - 1) / size, s.first);
    s.n = s.sinks + to / size - s.first + 1;
    return s;
}

/* The first position of place i. */
DEVICE int seen_at(const seen &s, int i, int size) {
    return (i < s.sinks ? i : i - s.sinks + s.first) * size;
}

DEVICE bool sees(const attention &a, int position, int at) {
    return at <= position && (!a.window || at > position - a.window || at < a.n_sink);
}

/* A block's queries: rows of one session times query heads of a KV head; query i is head
 * `head` + i % heads of row `row` + i / heads. */
typedef struct {
    int row, kv_head, head, heads, n; /* n: queries */
    int from, to;                     /* positions of the first and of the last row */
    size_t index;                     /* among all tiles */
    seen pages;
    int segments, first, end; /* of the pages, what the block's segment has */
} query_tile;

/* Of tiles of at most `queries` queries, segments of at least `least` positions, the one for block
 * (segment, chunk of heads, tile of rows), deepest first. False: there is none. */
DEVICE bool find_tile(const attention &a, int queries, int least, query_tile *t) {
    int rows = max(1, queries / a.chunk), i = (int)(gridDim.z - 1 - blockIdx.z), run = 0;
    for (; run < a.n_runs; run++) {
        int n = (a.runs[run].last - a.runs[run].first + rows - 1) / rows;
        if (i < n) break;
        i -= n;
    }
    if (run == a.n_runs) return false;
    t->row = a.runs[run].first + i * rows;
    rows = min(rows, a.runs[run].last - t->row);
    t->kv_head = blockIdx.y / a.chunks;
    int chunk = blockIdx.y % a.chunks;
    t->head = t->kv_head * a.group + chunk * a.chunk;
    t->heads = min(a.chunk, (t->kv_head + 1) * a.group - t->head);
    t->n = rows * t->heads;
    t->from = a.rows[t->row].position;
    t->to = t->from + rows - 1;
    t->index = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    t->pages = seen_by(a, t->from, t->to, PAGE);
    int each = t->pages.n;
    if (a.segments > 1) each = max((each + a.segments - 1) / a.segments, least / PAGE);
    t->segments = (t->pages.n + each - 1) / each;
    t->first = blockIdx.x * each;
    t->end = min(t->first + each, t->pages.n);
    return t->first < t->end;
}

/* The grid for them, and a.segments. */
static inline dim3 grid_of_tiles(const cuda_pass *p, int layer, int queries, size_t least,
                                 attention *a) {
    size_t rows = max_size(1, (size_t)(queries / a->chunk));
    size_t tiles = p->n / rows + p->n_runs, heads = (size_t)(a->heads.n_kv_heads * a->chunks);
    a->segments = segments_for(tiles * heads, seen_at_most(p->m, layer, p->depth),
                               (size_t)p->sm_count, least);
    if (a->segments > TILE_SEGMENTS) a->segments = TILE_SEGMENTS;
    return dim3((unsigned)a->segments, (unsigned)heads, (unsigned)tiles);
}

/* Floats of partial results for any number of such tiles. */
static inline size_t tiles_floats(const linnet_model *m, int layer, size_t depth, int sm_count,
                                  size_t queries, size_t least) {
    if (seen_at_most(m, layer, depth) < 2 * least) return 0;
    return parts_floats(m, layer, (size_t)sm_count, queries);
}

/* ---- Results ---------------------------------------------------------------------------------
 */

/* Number d of head h of row r: the mean of values, gated. */
DEVICE void store_mean(const attention &a, size_t r, int h, int d, float y) {
    size_t head = r * a.heads.n_heads + h;
    if (a.gates) y /= 1.0f + expf(-a.gates[(2 * head + 1) * a.heads.head_dim + d]);
    a.out[head * a.heads.head_dim + d] = y;
}

/* The place of a segment's results: for each query its maximum and sum (and two floats that align
 * the rest), then its sums of values. */
DEVICE float *part_of(const attention &a, size_t tile, int segment, int queries) {
    return a.partial + (tile * a.segments + segment) * queries * (a.kv.padded + PART_HEAD);
}

/* What a part with this maximum counts. A query may see nothing of a part; and the maximum of NaNs
 * is as low, but their sum is NaN. */
DEVICE float part_weight(float of_part, float of_all) {
    return of_part == -INFINITY && of_all > of_part ? 0 : expf(of_part - of_all);
}

/* All threads of a block call this when the block's part is written: true for the last block of the
 * tile, which then sees the parts of all. */
DEVICE bool last_of_tile(const attention &a, size_t tile, int segments) {
    SHARED(unsigned, before, [1]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before[0] = atomicInc(&a.counters[tile], (unsigned)segments - 1);
    __syncthreads();
    __threadfence();
    return before[0] == (unsigned)segments - 1; /* and the counter is 0 again */
}

/* Merges the parts of a tile, segments in their order: store(query, d, mean). Shared memory:
 * `weights`, 16-byte aligned, [queries][segments] and 4 floats per thread (merge_floats). Four
 * neighbouring values are one thread's, or where threads are left several threads' that share the
 * segments, each with eight loads under way. */
static inline size_t merge_floats(size_t queries, size_t segments, size_t threads) {
    return round_up(queries * segments, 4) + 4 * threads;
}

template <class F>
DEVICE void merge_parts(const attention &a, size_t tile, int segments, int queries, int n,
                        float *weights, F store) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_threads = blockDim.x;
    const float *first = part_of(a, tile, 0, queries);
    size_t step = (size_t)queries * (a.kv.padded + PART_HEAD);
    for (int i = warp; i < n; i += n_threads / 32) {
        float max = -INFINITY, sum = 0;
        for (int s = lane; s < segments; s += 32)
            max = fmaxf(max, first[s * step + PART_HEAD * i]);
        max = warp_max(max);
        for (int s = lane; s < segments; s += 32) {
            const float *head = first + s * step + PART_HEAD * i;
            float weight = part_weight(head[0], max);
            weights[i * segments + s] = weight;
            sum = fmaf(head[1], weight, sum);
        }
        sum = warp_sum(sum);
        for (int s = lane; s < segments; s += 32)
            weights[i * segments + s] /= sum;
    }
    __syncthreads();
    float4 *shares = (float4 *)(weights + (queries * segments + 3) / 4 * 4);
    int row = a.kv.padded / 4, quads = n * row, shared_by = max(1, n_threads / quads);
    for (int from = 0; from < quads; from += n_threads) {
        int of = threadIdx.x / quads, j = from + threadIdx.x - of * quads;
        if (shared_by == 1) of = 0, j = from + threadIdx.x;
        float4 y = make_float4(0, 0, 0, 0);
        if (j < quads && of < shared_by) {
            const float *x = first + PART_HEAD * queries + (size_t)j * 4;
            const float *w = weights + j / row * segments;
            for (int s = of; s < segments; s += 8 * shared_by) {
                float4 value[8];
                UNROLL
                for (int k = 0; k < 8; k++) {
                    int at = s + k * shared_by;
                    value[k] = *(const float4 *)(x + (at < segments ? at : s) * step);
                }
                UNROLL
                for (int k = 0; k < 8; k++) {
                    int at = s + k * shared_by;
                    if (at >= segments) continue;
                    y.x = fmaf(w[at], value[k].x, y.x);
                    y.y = fmaf(w[at], value[k].y, y.y);
                    y.z = fmaf(w[at], value[k].z, y.z);
                    y.w = fmaf(w[at], value[k].w, y.w);
                }
            }
        }
        shares[threadIdx.x] = y;
        __syncthreads();
        for (int k = 1; of == 0 && j < quads && k < shared_by; k++) {
            float4 z = shares[k * quads + j];
            y.x += z.x, y.y += z.y, y.z += z.z, y.w += z.w;
        }
        float four[4] = {y.x, y.y, y.z, y.w};
        for (int k = 0; of == 0 && j < quads && k < 4; k++) {
            int d = j % row * 4 + k;
            if (d < a.heads.head_dim) store(j / row, d, four[k]);
        }
        __syncthreads();
    }
}

#endif
