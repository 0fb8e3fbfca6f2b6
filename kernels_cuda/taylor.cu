/* BASED's linear attention by a Taylor series (attention/taylor.c, whose state this keeps). */
#include "chunks.h"
#include "pass.h"

typedef struct {
    int heads, features, moments, value_dim; /* f, F, V */
    float eps;
    size_t state_at;
} taylor_layer;

typedef struct {
    float *S, *z; /* [F][V], [F] of a head */
} taylor_state;

DEVICE taylor_state state_of(const taylor_layer &l, const cuda_row &row, int h) {
    float *S = (float *)(void *)(row.state + l.state_at);
    size_t of_head = (size_t)l.moments * l.value_dim;
    return {S + h * of_head, S + l.heads * of_head + (size_t)h * l.moments};
}

/* Where x_a x_b (a <= b) is among the moments. */
DEVICE int pair_at(int f, int a, int b) {
    return 1 + f + a * f - a * (a - 1) / 2 + b - a;
}

/* out = [1; linear x_a; square x_a^2; cross x_a x_b], by the whole block. */
DEVICE void moments_of(const float *x, int f, float linear, float square, float cross, float *out) {
    for (int i = (int)threadIdx.x; i < f * f; i += LINEAR_THREADS) {
        int a = i / f, b = i % f;
        if (a == 0) out[1 + b] = linear * x[b];
        if (a <= b) out[pair_at(f, a, b)] = (a == b ? square : cross) * x[a] * x[b];
    }
    if (threadIdx.x == 0) out[0] = 1;
}

/* Rows of a run one after another, where they are too few for chunks: decoding above all. A block
 * has `cols` columns of a head's values. Per row it reads and writes its part of the state once: 8
 * F V bytes of a head in all, loaded 16 bytes a thread and AHEAD deep, which at F = 153 is all of a
 * block's part at once, so the memory's bandwidth is the bound once there are a few blocks per SM.
 */
template <int VEC>
__global__ __launch_bounds__(LINEAR_THREADS) void taylor_steps(taylor_layer l, int cols,
                                                               const cuda_row *rows,
                                                               const cuda_run *runs, const float *q,
                                                               const float *k, const float *v,
                                                               float *y, unsigned *counters) {
    DYNAMIC_SHARED(float, shared);
    int h = blockIdx.x, f = l.features, F = l.moments, V = l.value_dim, t = (int)threadIdx.x;
    int c0 = blockIdx.y * cols;
    cols = min(cols, V - c0);
    float *scratch = shared, *phi = scratch + LINEAR_SCRATCH, *psi = phi + F, *z = psi + F;
    cuda_run run = runs[blockIdx.z];
    if (run.last - run.first >= CHUNK_LEAST) return;
    taylor_state s = state_of(l, rows[run.first], h);
    for (int i = t; i < F; i += LINEAR_THREADS)
        z[i] = s.z[i];
    float width = (float)f;
    for (size_t r = (size_t)run.first; r < (size_t)run.last; r++) {
        moments_of(k + (r * l.heads + h) * f, f, 1, 1, 1, psi);
        moments_of(q + (r * l.heads + h) * f, f, 1 / sqrtf(width), 0.5f / width, 1 / width, phi);
        __syncthreads();
        for (int i = t; i < F; i += LINEAR_THREADS)
            z[i] += psi[i];
        __syncthreads();
        float total = 0;
        for (int i = t % 32; i < F; i += 32)
            total += phi[i] * z[i];
        total = warp_sum(total) + l.eps;
        floats<VEC> value = {};
        pass_place<VEC> at = place_in_pass<VEC>(cols);
        if (at.column < cols) value = load_floats<VEC>(v + (r * l.heads + h) * V + c0 + at.column);
        float *S = s.S + c0 + at.column;
        sum_rows<VEC>(
            F, cols, scratch, [=](int i, int) { return load_floats<VEC>(S + (size_t)i * V); },
            [=](int i, floats<VEC> &row, floats<VEC> &sum) {
                for (int j = 0; j < VEC; j++) {
                    row.at[j] += psi[i] * value.at[j];
                    sum.at[j] += phi[i] * row.at[j];
                }
                store_floats<VEC>(S + (size_t)i * V, row);
            },
            [=](int c, float sum) { y[(r * l.heads + h) * V + c0 + c] = sum / total; });
    }
    if (last_of_blocks(&counters[blockIdx.z * l.heads + h], gridDim.y))
        for (int i = t; i < F; i += LINEAR_THREADS)
            s.z[i] = z[i];
}

/* A head's rows for run_chunks; q, k [rows][heads * f], v, y [rows][heads * V]. */
struct taylor_source {
    enum { direct = true };
    const float *q, *k, *v;
    float *y;
    int features, heads, value_dim;
    float eps, linear, square, cross; /* moments_of's of queries */

    DEVICE int keys_of(int r) const { return r + 1; }
    DEVICE int seen_by(int r) const { return r + 1; }
    DEVICE float load_value(int key, int c) const { return v[(size_t)key * heads * value_dim + c]; }
    DEVICE void finish(int r, int c, float sum, float den) const {
        y[(size_t)r * heads * value_dim + c] = sum / (den + eps);
    }
    DEVICE float number(const float *x, int row, int i) const {
        return x[(size_t)row * heads * features + i];
    }
    /* The moment at `at` of a row of x; pairs are found by the row of the triangle they are in. */
    DEVICE void load_features(const chunk_memory &m, int r0, int rows, int k0, int keys,
                              int at) const {
        int f = features, i = (int)threadIdx.x % CHUNK + at, a = 0, b = 0, kind = 3;
        if (i == 0)
            kind = 0;
        else if (i <= f)
            kind = 1, a = i - 1;
        else if (i < pair_at(f, f - 1, f - 1) + 1) {
            while (a + 1 < f && pair_at(f, a + 1, a + 1) <= i)
                a++;
            b = a + i - pair_at(f, a, a);
            kind = 2;
        }
        for (int r = (int)threadIdx.x / CHUNK; r < CHUNK; r += LINEAR_THREADS / CHUNK) {
            float of_q = kind == 0, of_k = kind == 0;
            if (kind == 1) {
                if (r < rows) of_q = linear * number(q, r0 + r, a);
                if (r < keys) of_k = number(k, k0 + r, a);
            } else if (kind == 2) {
                float factor = a == b ? square : cross;
                if (r < rows) of_q = factor * number(q, r0 + r, a) * number(q, r0 + r, b);
                if (r < keys) of_k = number(k, k0 + r, a) * number(k, k0 + r, b);
            }
            m.q[r * TILE_STEP + (int)threadIdx.x % CHUNK] = r < rows ? of_q : 0;
            m.k[r * TILE_STEP + (int)threadIdx.x % CHUNK] = r < keys ? of_k : 0;
        }
    }
    /* 1 + s + s^2/2 of the queries and keys themselves. */
    DEVICE void weigh(const chunk_memory &m, int r0, int rows, int k0, int keys,
                      float (&weights)[4][4]) const {
        for (int i = (int)threadIdx.x; i < CHUNK * CHUNK; i += LINEAR_THREADS) {
            int r = i / CHUNK, j = i % CHUNK;
            m.q[r * TILE_STEP + j] = r < rows && j < features ? number(q, r0 + r, j) : 0;
            m.k[r * TILE_STEP + j] = r < keys && j < features ? number(k, k0 + r, j) : 0;
        }
        __syncthreads();
        chunk_product(
            weights, (features + 7) / 8 * 8, [&](int r, int i) { return m.q[r * TILE_STEP + i]; },
            [&](int i, int k) { return m.k[k * TILE_STEP + i]; });
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 4; i++) {
                float x = linear * weights[j][i];
                weights[j][i] = 1 + x + 0.5f * x * x;
            }
    }
};

/* Runs of CHUNK_LEAST rows and more. */
__global__ __launch_bounds__(LINEAR_THREADS) void taylor_chunks(
    taylor_layer l, const cuda_row *rows, const cuda_run *runs, const float *q, const float *k,
    const float *v, float *y, unsigned *counters) {
    DYNAMIC_SHARED(float, shared);
    chunk_memory m = chunk_layout(shared);
    int h = blockIdx.x, f = l.features, F = l.moments, V = l.value_dim, t = (int)threadIdx.x;
    cuda_run run = runs[blockIdx.z];
    if (run.last - run.first < CHUNK_LEAST) return;
    taylor_state s = state_of(l, rows[run.first], h);
    for (int i = t; i < F; i += LINEAR_THREADS)
        m.z[i] = s.z[i];
    size_t of_q = ((size_t)run.first * l.heads + h) * f,
           of_v = ((size_t)run.first * l.heads + h) * V;
    float width = (float)f;
    taylor_source from = {q + of_q, k + of_q, v + of_v,         y + of_v,     f,        l.heads,
                          V,        l.eps,    1 / sqrtf(width), 0.5f / width, 1 / width};
    run_chunks(from, run.last - run.first, s.S, F, V, blockIdx.y * CHUNK_COLUMNS, m);
    if (last_of_blocks(&counters[blockIdx.z * l.heads + h], gridDim.y))
        for (int i = t; i < F; i += LINEAR_THREADS)
            s.z[i] = m.z[i];
}

static void forward(const cuda_pass *p, int layer) {
    const taylor_weights *w = (const taylor_weights *)p->m->layers[layer].mixer_weights;
    size_t qk = w->heads * w->features, values = w->heads * w->value_dim;
    /* Values first: they are loaded four at a time. */
    float *v = p->work, *y = v + p->n * values, *q = y + p->n * values, *k = q + p->n * qk;
    const product qkv[] = {
        {&w->wq, q, qk, GEMM_STORE}, {&w->wk, k, qk, GEMM_STORE}, {&w->wv, v, values, GEMM_STORE}};
    cuda_mix_in(p, layer, qkv, 3);
    taylor_layer l = {(int)w->heads,     (int)w->features, (int)w->moments,
                      (int)w->value_dim, w->eps,           p->m->layers[layer].state_at};
    int vec = l.value_dim % 4 ? 1 : 4;
    int cols = linear_columns(p->n_runs * w->heads, l.value_dim, vec, 2 * (size_t)p->sm_count);
    size_t slices = ((size_t)l.value_dim + cols - 1) / cols;
    size_t shared = (LINEAR_SCRATCH + 3 * w->moments) * sizeof(float);
    size_t runs = linear_runs(p->n_runs, w->heads, slices, CUDA_COUNTERS);
    for (size_t first = 0; first < p->n_runs; first += runs) {
        dim3 grid((unsigned)w->heads, (unsigned)slices,
                  (unsigned)min_size(runs, p->n_runs - first));
#define STEPS(vec)                                                                                 \
    launch(p->stream, grid, dim3(LINEAR_THREADS), shared, taylor_steps<vec>, l, cols, p->rows,     \
           p->runs + first, (const float *)q, (const float *)k, (const float *)v, y, p->counters)
        if (vec == 4)
            STEPS(4);
        else
            STEPS(1);
    }
    if (p->longest_run >= CHUNK_LEAST) {
        slices = ((size_t)l.value_dim + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS;
        runs = linear_runs(p->n_runs, w->heads, slices, CUDA_COUNTERS);
        for (size_t first = 0; first < p->n_runs; first += runs)
            launch(p->stream,
                   dim3((unsigned)w->heads, (unsigned)slices,
                        (unsigned)min_size(runs, p->n_runs - first)),
                   dim3(LINEAR_THREADS), chunk_floats(w->moments) * sizeof(float), taylor_chunks, l,
                   p->rows, p->runs + first, (const float *)q, (const float *)k, (const float *)v,
                   y, p->counters);
    }
    cuda_mix_out(p, layer, y, values, &w->wo);
}

extern const cuda_mixer cuda_based_taylor = {MIXER_BASED_TAYLOR, forward, NULL, NULL};
