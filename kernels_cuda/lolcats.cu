/* LoLCATs attention and Hedgehog's (attention/lolcats.c has the formulas and the state, which this
 * keeps). */
#include "chunks.h"
#include "kv.h"

typedef struct {
    int n_heads, group, head_dim, window, n_sink; /* group: heads of a KV head */
    int width, rank, features;
    feature_map map;
    bool full_space, skip;
    float eps;
    learned q, k;
    const float *gamma, *lambda;
    int trained_length,
        half; /* half of the dimensions that rotate, with `freq` [half] radians a position */
    const float *freq;
    size_t state_at;
    kv_place_of_layer kv; /* with a window */
} lolcats_layer;

/* ---- Which keys are where ------------------------------------------------------------------- */

/* As window_first of model.h. */
DEVICE int first_in_window(int mode, int window, int t) {
    int first = mode == LINNET_TERRACE ? (t / window - 1) * window : t - window + 1;
    return max(first, 0);
}

/* The first position in the window of position t of the row's session. */
DEVICE int first_of(const lolcats_layer &l, const cuda_row &row, int t) {
    int W = l.window, L = row.whole;
    if (row.rule != LINNET_TERRACE_HF || t >= L)
        return first_in_window(row.rule == LINNET_TERRACE ? LINNET_TERRACE : LINNET_SLIDING, W, t);
    if (L <= W) return 0;
    int offset = (L + W - 1) / W * W - L;
    return max(((t + offset) / W - 1) * W - offset, 0);
}

/* A prompt of at most one window under terrace-hf: wholly in both parts. */
DEVICE bool counts_twice(const lolcats_layer &l, const cuda_row &row) {
    return row.rule == LINNET_TERRACE_HF && row.whole <= l.window;
}

typedef struct {
    float *S, *z; /* [features][head_dim], [features] */
    uint32_t *folded;
} head_state;

DEVICE head_state state_of(const lolcats_layer &l, const cuda_row &row, int h) {
    size_t heads = (size_t)l.n_heads, f = (size_t)l.features, d = (size_t)l.head_dim;
    float *S = (float *)(void *)(row.state + l.state_at), *z = S + heads * f * d;
    return {S + h * f * d, z + h * f, (uint32_t *)(void *)(z + heads * f) + h};
}

/* Positions before it are in S and z, or sinks. A loaded state may lie: only pages that are there
 * are read. */
DEVICE int folded_before(const lolcats_layer &l, const cuda_row &row, uint32_t folded) {
    int t = row.position;
    uint32_t low =
        row.rule == LINNET_TERRACE_HF ? 0 : (uint32_t)first_in_window(row.mode, l.window, t);
    uint32_t high = (uint32_t)first_in_window(LINNET_SLIDING, l.window, t);
    return (int)min(max(folded, low), high);
}

/* The keys that enter the state with a run, from `first` on, before `end`. Runs go in chunks if
 * they are long and have no more such keys than rows, so that each key's features have a place.
 * (They may have more under terraces, where a window leaves at once.) The answer stays the same
 * when the chunks are done, for the kernel behind them that takes the other runs. */
typedef struct {
    int folded, first, end;
    bool in_chunks;
} run_keys;

DEVICE run_keys keys_of_run(const lolcats_layer &l, const cuda_row *rows, cuda_run run,
                            const head_state &s) {
    int n = run.last - run.first;
    if (!l.window) return {0, 0, n, n >= CHUNK_LEAST};
    const cuda_row &row = rows[run.first], &last = rows[run.last - 1];
    run_keys k;
    k.folded = folded_before(l, row, *s.folded);
    k.first = max(k.folded, l.n_sink);
    k.end = max(k.first, first_of(l, last, last.position + 1));
    k.in_chunks = n >= CHUNK_LEAST && k.end - k.first <= n && !counts_twice(l, row);
    return k;
}

/* ---- Features ------------------------------------------------------------------------------- */

/* `factor` times the half `sign` of phi of u [width], by one warp; phi's clamp to eps is last. */
DEVICE void activate_half(const lolcats_layer &l, const float *u, float sign, float factor,
                          float *phi) {
    int lane = (int)threadIdx.x % 32;
    float shift = 0, total = 1;
    if (l.map == SOFTMAX_DIM || l.map == EXP_DIM) {
        shift = -INFINITY;
        for (int i = lane; i < l.width; i += 32)
            shift = fmaxf(shift, sign * u[i]);
        shift = warp_max(shift);
    }
    if (l.map == SOFTMAX_DIM) {
        total = 0;
        for (int i = lane; i < l.width; i += 32)
            total += expf(sign * u[i] - shift);
        total = warp_sum(total);
    }
    for (int i = lane; i < l.width; i += 32) {
        float x = sign * u[i];
        if (l.map == SOFTMAX_DIM)
            x = expf(x - shift) / total;
        else if (l.map == EXP_DIM)
            x = expf(x - shift);
        else if (l.map == POS_ELU)
            x = x > 0 ? 1 + x : expf(x);
        phi[i] = factor * (x < l.eps ? l.eps : x); /* NaN stays */
    }
}

template <int VEC, class F>
DEVICE void learned_part(const lolcats_layer &l, const learned &m, int h, const float *x,
                         float *inner, float *scratch, F finish) {
    int d = l.head_dim, width = l.width, rank = l.rank;
    if (!rank) {
        float bias = m.bias ? m.bias[h] : 0;
        bool skip = l.skip;
        multiply_transposed<VEC>(
            m.layer + (size_t)h * d * width, x, d, width, scratch,
            [=](int i, float sum) { finish(i, (skip ? x[i] : 0) + bias + sum); });
        return;
    }
    const float *down_bias = m.down_bias + (size_t)h * rank,
                *up_bias = m.up_bias + (size_t)h * width;
    multiply_transposed<VEC>(m.down + (size_t)h * d * rank, x, d, rank, scratch,
                             [=](int i, float sum) {
                                 float y = down_bias[i] + sum;
                                 inner[i] = y < 0 ? 0 : y; /* NaN stays */
                             });
    multiply_transposed<VEC>(m.up + (size_t)h * rank * width, inner, rank, width, scratch,
                             [=](int i, float sum) { finish(i, x[i] + up_bias[i] + sum); });
}

/* `factor` times phi [features] of x [head_dim] by head h's map, by the whole block, all in shared
 * memory; u [width] and inner [rank] are room for it. Starts and ends with a barrier. */
template <int VEC>
DEVICE void featurize(const lolcats_layer &l, const learned &m, int h, const float *x, float *u,
                      float *inner, float *scratch, float factor, float *phi) {
    __syncthreads();
    learned_part<VEC>(l, m, h, x, inner, scratch, [=](int i, float y) { u[i] = y; });
    int half = (int)threadIdx.x / 32;
    if (half * l.width < l.features)
        activate_half(l, u, half ? -1.0f : 1.0f, factor, phi + half * l.width);
    __syncthreads();
}

/* ---- Beyond a trained length ---------------------------------------------------------------- */

/* By how many positions a vector at `position` is turned back before its map; as lolcats_back of
 * model.h. */
DEVICE int back_of(const lolcats_layer &l, bool query, int position) {
    int last = (query ? l.trained_length : l.trained_length / 2) - 1;
    return l.trained_length && l.half ? max(position - last, 0) : 0;
}

/* Number i of the vector with these numbers, turned back by `back` positions. */
template <class F> DEVICE float turned(const lolcats_layer &l, int back, int i, F number) {
    float x = number(i);
    if (!back || i >= 2 * l.half) return x;
    bool low = i < l.half;
    float angle = (float)back * l.freq[low ? i : i - l.half], c = cosf(angle), s = sinf(angle);
    return low ? x * c + number(i + l.half) * s : x * c - number(i - l.half) * s;
}

/* Of the linear part, with n keys in it. */
DEVICE float share_of(const lolcats_layer &l, int n) {
    return n > l.trained_length && l.trained_length ? (float)l.trained_length / (float)n : 1;
}

/* ---- Windows -------------------------------------------------------------------------------- */

/* PER neighbouring numbers as a page keeps them, aligned to their bytes. */
template <kv_kind KIND, int PER> DEVICE floats<PER> stored(const void *p) {
    constexpr int size = KIND == KV_F32 ? 4 : KIND == KV_F16 ? 2 : 1, bytes = PER * size;
    floats<PER> r;
    if constexpr (bytes < 4) {
        r.at[0] = KIND == KV_F16 ? f16_to_float(*(const uint16_t *)p) : (float)*(const int8_t *)p;
    } else {
        uint32_t word[bytes / 4];
        if constexpr (bytes % 16 == 0)
            for (int i = 0; i < bytes / 16; i++) {
                uint4 w = load16((const uint8_t *)p + 16 * i);
                word[4 * i] = w.x, word[4 * i + 1] = w.y;
                word[4 * i + 2] = w.z, word[4 * i + 3] = w.w;
            }
        else if constexpr (bytes == 8) {
            uint2 w = *(const uint2 *)p;
            word[0] = w.x, word[1] = w.y;
        } else
            word[0] = *(const uint32_t *)p;
        for (int i = 0; i < PER; i++)
            r.at[i] = KIND == KV_F32   ? __uint_as_float(word[i])
                      : KIND == KV_F16 ? f16_to_float((uint16_t)(word[i / 2] >> i % 2 * 16))
                                       : (float)(int8_t)(word[i / 4] >> i % 4 * 8);
    }
    return r;
}

/* Of a head's page: number d of the keys of 8 positions from `at`. */
template <kv_kind KIND>
DEVICE floats<8> keys_of_8(const kv_place_of_layer &k, const uint8_t *head, int at, int d) {
    size_t i = (size_t)d * PAGE + at, size = KIND == KV_F32 ? 4 : KIND == KV_F16 ? 2 : 1;
    floats<8> key = stored<KIND, 8>(head + i * size);
    if (KIND == KV_Q8_0) {
        floats<8> scale = stored<KV_F16, 8>(head + k.kd_at + 2 * (size_t)(d / BLOCK * PAGE + at));
        for (int j = 0; j < 8; j++)
            key.at[j] *= scale.at[j];
    }
    return key;
}

/* Of a head's page: numbers c ... of the value at place `at`. */
template <kv_kind KIND, int VEC>
DEVICE floats<VEC> value_at(const kv_place_of_layer &k, const uint8_t *head, int at, int c) {
    size_t i = (size_t)at * k.padded + c, size = KIND == KV_F32 ? 4 : KIND == KV_F16 ? 2 : 1;
    floats<VEC> value = stored<KIND, VEC>(head + k.v_at + i * size);
    if (KIND == KV_Q8_0) {
        const uint16_t *scales = (const uint16_t *)(const void *)(head + k.vd_at);
        float scale = f16_to_float(scales[at * (k.head_dim / BLOCK) + c / BLOCK]);
        for (int j = 0; j < VEC; j++)
            value.at[j] *= scale;
    }
    return value;
}

/* A softmax under way over parts of its positions, the same in every thread: the largest score so
 * far, and the sum of exp(score - max). */
typedef struct {
    float max, total;
} softmax_sum;

/* Places [from, to) of a page join: q [head_dim] and room of SCORES floats in shared memory; `sum`
 * is this thread's part of the values, of every at.step-th place. */
enum { SCORES = (LINEAR_WARPS + 1) * PAGE };

template <int VEC, kv_kind KIND>
DEVICE void attend_page(const kv_place_of_layer &k, const uint8_t *head, int from, int to,
                        const float *q, float scale, int c0, int cols, const pass_place<VEC> &at,
                        float *scores, softmax_sum *soft, floats<VEC> *sum) {
    int t = (int)threadIdx.x, lane = t % 32, place = t % 8 * 8, d = k.head_dim;
    float *weights = scores + LINEAR_WARPS * PAGE;
    floats<8> score = {};
    if (place < to && place + 8 > from)
        for (int i = t / 8; i < d; i += LINEAR_THREADS / 8) {
            floats<8> key = keys_of_8<KIND>(k, head, place, i);
            for (int j = 0; j < 8; j++)
                score.at[j] += q[i] * scale * key.at[j];
        }
    for (int j = 0; j < 8; j++) {
        score.at[j] += __shfl_xor_sync(~0u, score.at[j], 16);
        score.at[j] += __shfl_xor_sync(~0u, score.at[j], 8);
        if (lane < 8) scores[t / 32 * PAGE + place + j] = score.at[j];
    }
    __syncthreads();
    float s[PAGE / 32], most = -INFINITY, total = 0; /* places lane, lane + 32: in every warp */
    for (int i = 0; i < PAGE / 32; i++) {
        int j = lane + 32 * i;
        s[i] = -INFINITY;
        if (j < from || j >= to) continue;
        s[i] = scores[j];
        for (int w = 1; w < LINEAR_WARPS; w++)
            s[i] += scores[w * PAGE + j];
        most = fmaxf(most, s[i]);
    }
    most = fmaxf(soft->max, warp_max(most));
    float keep = expf(soft->max - most);
    for (int i = 0; i < PAGE / 32; i++) {
        float weight = s[i] == -INFINITY ? 0 : expf(s[i] - most);
        total += weight;
        if (t < 32) weights[lane + 32 * i] = weight;
    }
    soft->max = most;
    soft->total = soft->total * keep + warp_sum(total);
    __syncthreads();
    for (int i = 0; i < VEC; i++)
        sum->at[i] *= keep;
    if (at.column < cols)
        for (int j = from + at.row; j < to; j += at.step) {
            floats<VEC> value = value_at<KIND, VEC>(k, head, j, c0 + at.column);
            for (int i = 0; i < VEC; i++)
                sum->at[i] += weights[j] * value.at[i];
        }
}

/* ---- Row by row ------------------------------------------------------------------------------ */

enum { FOLDED_AT_ONCE = 4 /* keys that enter the state in one pass over it */ };

/* What a block of lolcats_steps holds in shared memory. */
typedef struct {
    float *scratch, *scores; /* [LINEAR_SCRATCH], [SCORES] */
    float *x, *u, *inner;    /* [head_dim] a query or key; room of featurize */
    float *phi, *phi_k;      /* [features] of the query; [FOLDED_AT_ONCE][features] of keys */
    float *values;           /* [FOLDED_AT_ONCE][LINEAR_COLUMNS] of keys */
    float *z, *mixed;        /* [features]; [LINEAR_COLUMNS] of the window */
} steps_memory;

static inline size_t steps_floats(const lolcats_layer &l) {
    return LINEAR_SCRATCH + SCORES + (FOLDED_AT_ONCE + 1) * LINEAR_COLUMNS +
           round_up((size_t)l.head_dim, 4) + round_up((size_t)l.width, 4) +
           round_up((size_t)l.rank, 4) + (FOLDED_AT_ONCE + 2) * round_up((size_t)l.features, 4);
}

DEVICE steps_memory steps_layout(const lolcats_layer &l, float *shared) {
    steps_memory m;
    int f = (l.features + 3) / 4 * 4;
    m.scratch = shared;
    m.scores = m.scratch + LINEAR_SCRATCH;
    m.values = m.scores + SCORES;
    m.mixed = m.values + FOLDED_AT_ONCE * LINEAR_COLUMNS;
    m.x = m.mixed + LINEAR_COLUMNS;
    m.u = m.x + (l.head_dim + 3) / 4 * 4;
    m.inner = m.u + (l.width + 3) / 4 * 4;
    m.phi = m.inner + (l.rank + 3) / 4 * 4;
    m.phi_k = m.phi + f;
    m.z = m.phi_k + FOLDED_AT_ONCE * f;
    return m;
}

typedef enum { NO_READ, READ_BEFORE, READ_AFTER } state_read;

/* One pass over columns [c0, c0 + cols) of a head's state: n keys enter it, whose features are in
 * m.phi_k and values in m.values; finish(c, sum over features of m.phi S) with S before or after.
 */
template <int VEC, class F>
DEVICE void pass_state(const lolcats_layer &l, float *S, const steps_memory &m, int c0, int cols,
                       int n, state_read read, F finish) {
    size_t d = (size_t)l.head_dim;
    int f = l.features, stride = (f + 3) / 4 * 4, column = place_in_pass<VEC>(cols).column;
    const float *phi = m.phi, *phi_k = m.phi_k, *values = m.values + column;
    S += c0;
    sum_rows<VEC>(
        f, cols, m.scratch, [=](int i, int c) { return load_floats<VEC>(S + i * d + c); },
        [=](int i, floats<VEC> &row, floats<VEC> &sum) {
            for (int j = 0; j < VEC && read == READ_BEFORE; j++)
                sum.at[j] += phi[i] * row.at[j];
            for (int k = 0; k < n; k++) {
                floats<VEC> value = load_floats<VEC>(values + k * LINEAR_COLUMNS);
                for (int j = 0; j < VEC; j++)
                    row.at[j] += phi_k[k * stride + i] * value.at[j];
            }
            for (int j = 0; j < VEC && read == READ_AFTER; j++)
                sum.at[j] += phi[i] * row.at[j];
            if (n) store_floats<VEC>(S + i * d + column, row);
        },
        finish);
}

/* Keys and values of a piece, and what comes of a row's head. */
typedef struct {
    const float *q, *key, *value; /* [head_dim] of a head; the last two without a window */
    float *y;
} step_rows;

/* Makes x the query or a key; of a key, its value's columns become the k-th of the pass. */
template <kv_kind KIND>
DEVICE void take_vector(const lolcats_layer &l, const cuda_row &row, int h, const step_rows &in,
                        const steps_memory &m, int c0, int cols, bool query, int position, int k) {
    const uint8_t *head = query || !l.window ? NULL : kv_head(l.kv, row, position, h / l.group);
    int back = back_of(l, query, head ? position : row.position);
    for (int i = (int)threadIdx.x; i < l.head_dim; i += LINEAR_THREADS)
        m.x[i] = turned(l, back, i, [&](int j) {
            return query  ? in.q[j]
                   : head ? kv_key<KIND>(l.kv, head, position % PAGE, j)
                          : in.key[j];
        });
    for (int c = (int)threadIdx.x; c < cols && !query; c += LINEAR_THREADS)
        m.values[k * LINEAR_COLUMNS + c] =
            head ? kv_value<KIND>(l.kv, head, position % PAGE, c0 + c) : in.value[c0 + c];
}

/* The softmax of the window [first, t] and the sinks for the query in m.x: gamma times the sum of
 * values goes to m.mixed; returns gamma times the sum of weights. */
template <int VEC, kv_kind KIND>
DEVICE float attend_window(const lolcats_layer &l, const cuda_row &row, int h,
                           const steps_memory &m, int c0, int cols, int first) {
    pass_place<VEC> at = place_in_pass<VEC>(cols);
    softmax_sum soft = {-INFINITY, 0};
    floats<VEC> sum = {};
    float scale = 1.0f / sqrtf((float)l.head_dim), gamma = l.gamma[h], *mixed = m.mixed;
    int sinks = min(l.n_sink, first), t = row.position;
    int sink_pages = (sinks + PAGE - 1) / PAGE, pages = t / PAGE + 1 - first / PAGE;
    for (int i = 0; i < sink_pages + pages; i++) {
        bool sink = i < sink_pages;
        int page = sink ? i : first / PAGE + i - sink_pages;
        int from = sink ? 0 : first, to = sink ? sinks : t + 1;
        attend_page<VEC, KIND>(l.kv, kv_head(l.kv, row, page * PAGE, h / l.group),
                               max(from - page * PAGE, 0), min(to - page * PAGE, PAGE), m.x, scale,
                               c0, cols, at, m.scores, &soft, &sum);
    }
    sum_places<VEC>(at, cols, sum, m.scratch, [=](int c, float x) { mixed[c] = gamma * x; });
    return gamma * soft.total;
}

/* What a row does, in this order (without a window READ alone, its own key with it). */
typedef enum {
    LEFT_BEFORE, /* keys enter the state that left the window before the row */
    OWN,         /* its own key, where a prompt counts twice */
    READ,        /* its output; the first keys that leave the window now */
    LEFT,        /* the others */
    DONE
} step_stage;

/* Row `row` of head h through columns [c0, c0 + cols) of S and through m.z; *folded is the
 * session's of this layer and head. Each turn of the loop is one pass over the state: features of
 * what takes part, then the pass. */
template <int VEC, kv_kind KIND>
DEVICE void step(const lolcats_layer &l, const cuda_row &row, int h, const step_rows &in, float *S,
                 const steps_memory &m, int c0, int cols, int *folded) {
    int t = row.position, d = l.head_dim, f = l.features, stride = (f + 3) / 4 * 4;
    bool window = l.window != 0, twice = window && counts_twice(l, row);
    int first = window ? max(*folded, first_of(l, row, t)) : 0;
    int next = window ? max(first, first_of(l, row, t + 1)) : 0;
    bool ends = twice && t + 1 == row.whole; /* what is in both parts was for the prompt alone */
    bool linear = !window || first > l.n_sink || twice;
    float den = window ? 0 : 1e-12f, *mixed = m.mixed;
    float lambda = (l.lambda ? l.lambda[h] : 1) * share_of(l, window ? first - l.n_sink : t + 1);
    int stage = window ? LEFT_BEFORE : READ, from = max(*folded, l.n_sink);
    int to = window ? first : from + 1;
    while (stage != DONE) {
        bool reads = stage == READ;
        int n = ends && reads ? 0 : min(max(to - from, 0), FOLDED_AT_ONCE);
        for (int v = 0; v < n + reads; v++) {
            bool query = reads && v == (window ? 0 : n);
            int k = v - (reads && window);
            __syncthreads();
            take_vector<KIND>(l, row, h, in, m, c0, cols, query, from + k, k);
            float *phi = query ? m.phi : m.phi_k + k * stride;
            if (!query || linear)
                featurize<VEC>(l, query ? l.q : l.k, h, m.x, m.u, m.inner, m.scratch,
                               query ? lambda : 1, phi);
            else
                __syncthreads();
            if (query && linear) {
                float sum = 0;
                for (int i = (int)threadIdx.x % 32; i < f; i += 32)
                    sum += phi[i] * m.z[i];
                den += warp_sum(sum);
                __syncthreads();
            }
            for (int i = (int)threadIdx.x; i < f && !query; i += LINEAR_THREADS)
                m.z[i] += phi[i];
            if (query && window && back_of(l, true, t)) { /* the window sees it as it is */
                for (int i = (int)threadIdx.x; i < d; i += LINEAR_THREADS)
                    m.x[i] = in.q[i];
                __syncthreads();
            }
            if (query && window) den += attend_window<VEC, KIND>(l, row, h, m, c0, cols, first);
        }
        __syncthreads();
        if (reads && !linear)
            for (int c = (int)threadIdx.x; c < cols; c += LINEAR_THREADS)
                in.y[c] = mixed[c] / den;
        if (n || (reads && linear))
            pass_state<VEC>(l, S, m, c0, cols, n,
                            !reads || !linear ? NO_READ
                            : window          ? READ_BEFORE
                                              : READ_AFTER,
                            [=](int c, float total) {
                                if (reads && linear)
                                    in.y[c] = ((window ? mixed[c] : 0) + total) / den;
                            });
        if (reads && ends) {
            pass_place<VEC> at = place_in_pass<VEC>(cols);
            for (int i = (int)threadIdx.x; i < f; i += LINEAR_THREADS)
                m.z[i] = 0;
            for (int i = at.row; i < f && at.column < cols; i += at.step)
                store_floats<VEC>(S + (size_t)i * d + c0 + at.column, floats<VEC>{});
        }
        from += n;
        while (stage != DONE && (reads || from >= to)) { /* to the next stage that has work */
            reads = false;
            stage = window ? stage + 1 : DONE;
            if (stage == OWN) from = max(t, l.n_sink), to = twice ? t + 1 : 0;
            if (stage == READ) {
                from = max(first, l.n_sink), to = next;
                break;
            }
        }
    }
    *folded = next;
}

/* Rows of a run one after another, where they do not go in chunks: decoding above all. A block has
 * `cols` columns of a head. Decoding a token of a head reads its window's keys and values, both
 * maps, and reads and writes the state once: 8 f D bytes, 16 bytes a thread and AHEAD deep. All
 * blocks of a head read its maps and keys (from L2), which is less than the state is while D <= 4
 * cols. */
template <int VEC, kv_kind KIND>
__global__ __launch_bounds__(LINEAR_THREADS,
                             3) void lolcats_steps(lolcats_layer l, int cols, const cuda_row *rows,
                                                   const cuda_run *runs, const float *q,
                                                   const float *key, const float *value, float *y,
                                                   unsigned *counters) {
    DYNAMIC_SHARED(float, shared);
    steps_memory m = steps_layout(l, shared);
    int h = blockIdx.x, d = l.head_dim, t = (int)threadIdx.x, c0 = blockIdx.y * cols;
    cols = min(cols, d - c0);
    cuda_run run = runs[blockIdx.z];
    head_state s = state_of(l, rows[run.first], h);
    if (keys_of_run(l, rows, run, s).in_chunks) return;
    for (int i = t; i < l.features; i += LINEAR_THREADS)
        m.z[i] = s.z[i];
    int folded = l.window ? folded_before(l, rows[run.first], *s.folded) : 0;
    for (size_t r = (size_t)run.first; r < (size_t)run.last; r++) {
        size_t at = (r * l.n_heads + h) * d, kv = (r * (l.n_heads / l.group) + h / l.group) * d;
        step_rows in = {q + at, key + kv, value + kv, y + at + c0};
        step<VEC, KIND>(l, rows[r], h, in, s.S, m, c0, cols, &folded);
    }
    __syncthreads();
    if (!last_of_blocks(&counters[blockIdx.z * l.n_heads + h], gridDim.y)) return;
    for (int i = t; i < l.features; i += LINEAR_THREADS)
        s.z[i] = m.z[i];
    if (l.window && t == 0) *s.folded = (uint32_t)folded;
}

/* ---- In chunks ------------------------------------------------------------------------------- */

/* What is found out for lolcats_chunks: of head h and row r of the piece, at r + n h. */
typedef struct {
    float *phi, *phi_k; /* [heads][n][features] of queries, times lambda; of keys, from the first
                         * that enters the state with the run: the i-th is at the run's row i */
    float *den;         /* [heads][n] of the window */
} row_features;

static row_features features_in(const cuda_pass *p, const lolcats_layer &l) {
    size_t all = p->n * (size_t)l.n_heads * (size_t)l.features;
    return {p->work, p->work + all, p->work + 2 * all};
}

/* Which vector row r stands for: its query, or the key at its place among those that enter the
 * state with its run. Nothing where `is` is false. */
typedef struct {
    bool is;
    float factor; /* of phi */
    const uint8_t *page;
    int at;         /* of a key in its page, */
    const float *x; /* else */
    int back;       /* positions that it is turned */
} row_vector;

DEVICE row_vector vector_of(const lolcats_layer &l, const cuda_row *rows, const cuda_run *runs,
                            size_t r, int h, bool query, const float *q, const float *key) {
    const cuda_row &row = rows[r];
    cuda_run run = runs[row.run];
    run_keys k = keys_of_run(l, rows, run, state_of(l, rows[run.first], h));
    int kv_heads = l.n_heads / l.group, position = k.first + (int)r - run.first;
    int first = l.window ? max(k.folded, first_of(l, row, row.position)) : 0;
    int back = back_of(l, query, query || !l.window ? row.position : position);
    row_vector v = {k.in_chunks, 1, NULL, 0, NULL, back};
    if (query) {
        v.x = q + (r * l.n_heads + h) * l.head_dim;
        v.factor = (l.lambda ? l.lambda[h] : 1) *
                   share_of(l, l.window ? first - l.n_sink : row.position + 1);
        if (l.window && first <= l.n_sink) v.factor = 0;
    } else if (!l.window)
        v.x = key + (r * kv_heads + h / l.group) * l.head_dim;
    else if ((v.is = v.is && position < k.end)) {
        v.page = kv_head(l.kv, row, position, h / l.group);
        v.at = position % PAGE;
    }
    return v;
}

template <kv_kind KIND> DEVICE float number_of(const lolcats_layer &l, const row_vector &v, int i) {
    return turned(l, v.back, i,
                  [&](int j) { return v.page ? kv_key<KIND>(l.kv, v.page, v.at, j) : v.x[j]; });
}

/* Features of any maps: a block per head, row and map. */
template <int VEC, kv_kind KIND>
__global__ __launch_bounds__(LINEAR_THREADS) void lolcats_features(lolcats_layer l, size_t n,
                                                                   const cuda_row *rows,
                                                                   const cuda_run *runs,
                                                                   const float *q, const float *key,
                                                                   row_features out) {
    DYNAMIC_SHARED(float, shared);
    steps_memory m = steps_layout(l, shared);
    int h = blockIdx.x;
    size_t r = blockIdx.y;
    bool query = blockIdx.z == 0;
    row_vector v = vector_of(l, rows, runs, r, h, query, q, key);
    if (!v.is) return;
    for (int i = (int)threadIdx.x; i < l.head_dim; i += LINEAR_THREADS)
        m.x[i] = number_of<KIND>(l, v, i);
    featurize<VEC>(l, query ? l.q : l.k, h, m.x, m.u, m.inner, m.scratch, v.factor,
                   (query ? out.phi : out.phi_k) + (h * n + r) * (size_t)l.features);
}

enum {
    TILED_WIDTH = 128,    /* of maps whose u of a tile fits shared memory */
    MAP_STEP = CHUNK + 8, /* floats from row to row, for b of chunk_product */
    U_STEP = TILED_WIDTH + 4
};

/* The same of CHUNK rows for maps without an adapter and of at most TILED_WIDTH: u = X W on tensor
 * cores, so that a map is read once per CHUNK rows. */
template <kv_kind KIND>
__global__ __launch_bounds__(LINEAR_THREADS) void lolcats_tiled_features(
    lolcats_layer l, size_t n, const cuda_row *rows, const cuda_run *runs, const float *q,
    const float *key, row_features out) {
    DYNAMIC_SHARED(float, shared);
    SHARED(row_vector, vectors, [CHUNK]);
    float *x = shared, *map = x + CHUNK * TILE_STEP, *u = map + CHUNK * MAP_STEP;
    int h = blockIdx.x, t = (int)threadIdx.x, d = l.head_dim, width = l.width;
    size_t r0 = (size_t)blockIdx.y * CHUNK;
    bool query = blockIdx.z == 0;
    const learned &w = query ? l.q : l.k;
    const float *layer = w.layer + (size_t)h * d * width;
    if (t < CHUNK)
        vectors[t] = r0 + t < n ? vector_of(l, rows, runs, r0 + t, h, query, q, key) : row_vector{};
    __syncthreads();
    for (int c0 = 0; c0 < width; c0 += CHUNK) {
        float sum[4][4] = {};
        for (int k0 = 0; k0 < d; k0 += CHUNK) {
            for (int i = t; i < CHUNK * CHUNK; i += LINEAR_THREADS) {
                int a = i / CHUNK, b = i % CHUNK;
                map[a * MAP_STEP + b] =
                    k0 + a < d && c0 + b < width ? layer[(size_t)(k0 + a) * width + c0 + b] : 0;
                int r = l.window && !query ? b : a, k = l.window && !query ? a : b;
                x[r * TILE_STEP + k] = /* neighbours in memory are positions of pages */
                    vectors[r].is && k0 + k < d ? number_of<KIND>(l, vectors[r], k0 + k) : 0;
            }
            __syncthreads();
            chunk_product(
                sum, CHUNK, [&](int r, int k) { return x[r * TILE_STEP + k]; },
                [&](int k, int c) { return map[k * MAP_STEP + c]; });
            __syncthreads();
        }
        float bias = w.bias ? w.bias[h] : 0;
        each_of_product(sum, [&](int r, int c, float y) {
            if (c0 + c >= width || !vectors[r].is) return;
            u[r * U_STEP + c0 + c] =
                (l.skip ? number_of<KIND>(l, vectors[r], c0 + c) : 0) + bias + y;
        });
    }
    __syncthreads();
    for (int i = t / 32; i < 2 * CHUNK; i += LINEAR_WARPS) {
        int r = i / 2, half = i % 2;
        if (!vectors[r].is || half * width >= l.features) continue;
        float *phi = (query ? out.phi : out.phi_k) + (h * n + r0 + r) * (size_t)l.features;
        activate_half(l, u + r * U_STEP, half ? -1.0f : 1.0f, vectors[r].factor,
                      phi + half * width);
    }
}

/* The softmax of the windows of CHUNK rows of a run, and of the sinks: gamma times its sums to y
 * and den. A block has CHUNK columns of a head; it takes the pages that any of its rows sees in
 * order, scores and sums on tensor cores, the maximum and the sum of weights as they come. */
template <kv_kind KIND>
__global__
__launch_bounds__(LINEAR_THREADS) void lolcats_windows(lolcats_layer l, size_t n, int slices,
                                                       const cuda_row *rows, const cuda_run *runs,
                                                       const float *q, float *y, float *den) {
    DYNAMIC_SHARED(float, shared);
    SHARED(float, keep, [CHUNK]);
    float *x = shared, *w = x + CHUNK * TILE_STEP, *keys = w + CHUNK * TILE_STEP,
          *values = keys + CHUNK * MAP_STEP;
    int h = blockIdx.x / slices, c0 = (int)(blockIdx.x % slices) * CHUNK, d = l.head_dim;
    int t = (int)threadIdx.x;
    cuda_run run = runs[blockIdx.z];
    size_t r0 = (size_t)run.first + blockIdx.y * CHUNK;
    if (r0 >= (size_t)run.last) return;
    run_keys k = keys_of_run(l, rows, run, state_of(l, rows[run.first], h));
    if (!k.in_chunks) return;
    int n_rows = min(CHUNK, run.last - (int)r0), t0 = rows[r0].position, t1 = t0 + n_rows;
    const cuda_row &row = rows[r0];
    int my_row = t / 4, first = max(k.folded, first_of(l, row, t0));
    int my_t = min(t0 + my_row, t1 - 1), my_first = max(k.folded, first_of(l, row, my_t));
    int last_first = max(k.folded, first_of(l, row, t1 - 1));
    int sinks = min(l.n_sink, last_first), sink_pages = (sinks + PAGE - 1) / PAGE;
    int pages = (t1 - 1) / PAGE + 1 - first / PAGE;
    float scale = 1.0f / sqrtf((float)d), most = -INFINITY, total = 0, out[4][4] = {};
    for (int i = 0; i < sink_pages + pages; i++) {
        bool sink = i < sink_pages;
        int page = sink ? i : first / PAGE + i - sink_pages, at = page * PAGE;
        int from = sink ? 0 : first, to = sink ? sinks : t1; /* of any row */
        const uint8_t *head = kv_head(l.kv, row, at, h / l.group);
        float score[4][4] = {};
        for (int j = t; j < CHUNK * CHUNK; j += LINEAR_THREADS) {
            int a = j / CHUNK, c = j % CHUNK;
            bool is = at + a >= from && at + a < to && c0 + c < d;
            values[a * MAP_STEP + c] = is ? kv_value<KIND>(l.kv, head, a, c0 + c) : 0;
        }
        for (int k0 = 0; k0 < d; k0 += CHUNK) {
            for (int j = t; j < CHUNK * CHUNK; j += LINEAR_THREADS) {
                int a = j / CHUNK, b = j % CHUNK;
                x[a * TILE_STEP + b] = a < n_rows && k0 + b < d
                                           ? q[((r0 + a) * l.n_heads + h) * d + k0 + b] * scale
                                           : 0;
                bool is = k0 + a < d && at + b >= from && at + b < to;
                keys[a * MAP_STEP + b] = is ? kv_key<KIND>(l.kv, head, b, k0 + a) : 0;
            }
            __syncthreads();
            chunk_product(
                score, CHUNK, [&](int r, int j) { return x[r * TILE_STEP + j]; },
                [&](int j, int c) { return keys[j * MAP_STEP + c]; });
            __syncthreads();
        }
        each_of_product(score, [&](int r, int c, float s) { w[r * TILE_STEP + c] = s; });
        __syncthreads();
        /* Four threads have a row. */
        int low = sink ? 0 : my_first, high = sink ? min(l.n_sink, my_first) : my_t + 1;
        float *mine = w + my_row * TILE_STEP, before = most, added = 0;
        for (int c = t % 4; c < CHUNK; c += 4)
            if (at + c >= low && at + c < high) most = fmaxf(most, mine[c]);
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        for (int c = t % 4; c < CHUNK; c += 4) {
            mine[c] = at + c >= low && at + c < high ? expf(mine[c] - most) : 0;
            added += mine[c];
        }
        float kept = most == -INFINITY ? 1 : expf(before - most);
        total = total * kept + added;
        if (t % 4 == 0) keep[my_row] = kept;
        __syncthreads();
        each_of_product(out, [&](int r, int, float &sum) { sum *= keep[r]; });
        chunk_product(
            out, CHUNK, [&](int r, int j) { return w[r * TILE_STEP + j]; },
            [&](int j, int c) { return values[j * MAP_STEP + c]; });
        __syncthreads();
    }
    float gamma = l.gamma[h];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (c0 == 0 && t % 4 == 0 && my_row < n_rows) den[h * n + r0 + my_row] = gamma * total;
    each_of_product(out, [&](int r, int c, float sum) {
        if (r < n_rows && c0 + c < d) y[((r0 + r) * l.n_heads + h) * d + c0 + c] = gamma * sum;
    });
}

/* A head's rows for run_chunks; pointers are at the run's first row. */
template <kv_kind KIND> struct lolcats_source {
    enum { direct = false };
    const lolcats_layer &l;
    const cuda_row *rows;
    run_keys k;
    int h;
    row_features in;
    const float *value; /* [rows][kv heads][head_dim] */
    float *y;           /* [rows][heads][head_dim] */

    DEVICE int keys_of(int r) const {
        if (!l.window) return r + 1;
        return max(first_of(l, rows[r], rows[r].position + 1) - k.first, 0);
    }
    DEVICE int seen_by(int r) const {
        if (!l.window) return r + 1;
        return max(first_of(l, rows[r], rows[r].position) - k.first, 0);
    }
    DEVICE float load_value(int key, int c) const {
        if (!l.window) return value[(size_t)key * (l.n_heads / l.group) * l.head_dim + c];
        int position = k.first + key;
        return kv_value<KIND>(l.kv, kv_head(l.kv, rows[0], position, h / l.group), position % PAGE,
                              c);
    }
    DEVICE void finish(int r, int c, float sum, float den) const {
        float *out = y + (size_t)r * l.n_heads * l.head_dim + c;
        *out = l.window ? (*out + sum) / (in.den[r] + den) : sum / (den + 1e-12f);
    }
    DEVICE void load_features(const chunk_memory &m, int r0, int rows, int k0, int keys,
                              int at) const {
        int i = (int)threadIdx.x % CHUNK;
        bool is = at + i < l.features;
        for (int r = (int)threadIdx.x / CHUNK; r < CHUNK; r += LINEAR_THREADS / CHUNK) {
            size_t of_q = (size_t)(r0 + r) * l.features + at + i;
            size_t of_k = (size_t)(k0 + r) * l.features + at + i;
            m.q[r * TILE_STEP + i] = is && r < rows ? in.phi[of_q] : 0;
            m.k[r * TILE_STEP + i] = is && r < keys ? in.phi_k[of_k] : 0;
        }
    }
    DEVICE void weigh(const chunk_memory &, int, int, int, int, float (&)[4][4]) const {}
};

template <kv_kind KIND>
__global__ __launch_bounds__(LINEAR_THREADS) void lolcats_chunks(
    lolcats_layer l, size_t n, const cuda_row *rows, const cuda_run *runs, const float *value,
    float *y, row_features in, unsigned *counters) {
    DYNAMIC_SHARED(float, shared);
    chunk_memory m = chunk_layout(shared);
    int h = blockIdx.x, d = l.head_dim, t = (int)threadIdx.x;
    cuda_run run = runs[blockIdx.z];
    size_t first = (size_t)run.first, at = h * n + first, f = (size_t)l.features;
    head_state s = state_of(l, rows[first], h);
    run_keys k = keys_of_run(l, rows, run, s);
    if (!k.in_chunks) return;
    for (int i = t; i < l.features; i += LINEAR_THREADS)
        m.z[i] = s.z[i];
    lolcats_source<KIND> from = {l,
                                 rows + first,
                                 k,
                                 h,
                                 {in.phi + at * f, in.phi_k + at * f, in.den + at},
                                 value + (first * (l.n_heads / l.group) + h / l.group) * d,
                                 y + (first * l.n_heads + h) * d};
    run_chunks(from, run.last - run.first, s.S, l.features, d, blockIdx.y * CHUNK_COLUMNS, m);
    if (!last_of_blocks(&counters[blockIdx.z * l.n_heads + h], gridDim.y)) return;
    for (int i = t; i < l.features; i += LINEAR_THREADS)
        s.z[i] = m.z[i];
    const cuda_row &last = rows[run.last - 1];
    if (l.window && t == 0)
        *s.folded = (uint32_t)max(k.folded, first_of(l, last, last.position + 1));
}

/* ---- The layer ------------------------------------------------------------------------------- */

static learned on_gpu_of(const cuda_pass *p, const learned &m) {
    return {on_gpu(p, m.layer),     on_gpu(p, m.bias), on_gpu(p, m.down),
            on_gpu(p, m.down_bias), on_gpu(p, m.up),   on_gpu(p, m.up_bias)};
}

static lolcats_layer layer_of(const cuda_pass *p, int layer) {
    const layer_weights *of = &p->m->layers[layer];
    const lolcats_weights *w = (const lolcats_weights *)of->mixer_weights;
    const config *c = &p->m->cfg;
    lolcats_layer l = {};
    l.n_heads = c->n_heads;
    l.group = c->n_heads / c->n_kv_heads;
    l.head_dim = c->head_dim;
    l.window = of->window;
    l.n_sink = c->n_sink;
    l.width = w->width;
    l.rank = w->rank;
    l.features = w->features;
    l.map = w->map;
    l.full_space = w->full_space;
    l.skip = w->skip;
    l.eps = w->eps;
    l.q = on_gpu_of(p, w->q);
    l.k = on_gpu_of(p, w->k);
    l.gamma = on_gpu(p, w->gamma);
    l.lambda = on_gpu(p, w->lambda);
    l.trained_length = c->trained_length;
    l.half = c->rope == ROPE_NONE ? 0 : of->heads.rope_dim / 2;
    l.freq = p->rope_freq + of->heads.angles;
    l.state_at = of->state_at;
    if (of->kv_slot >= 0) l.kv = kv_places(p, layer);
    return l;
}

/* Launches with the types of the layer and its pages. */
template <int VEC, kv_kind KIND> static void run(const cuda_pass *p, const lolcats_layer &l) {
    size_t heads = (size_t)l.n_heads, d = (size_t)l.head_dim, slices, runs;
    size_t shared = steps_floats(l) * sizeof(float);
    row_features features = features_in(p, l);
    if (p->longest_run >= CHUNK_LEAST) {
        slices = (d + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS;
        runs = linear_runs(p->n_runs, heads, slices, CUDA_COUNTERS);
        unsigned tiles = (unsigned)((p->n + CHUNK - 1) / CHUNK);
        if (!l.rank && l.width <= TILED_WIDTH)
            launch(p->stream, dim3((unsigned)heads, tiles, 2), dim3(LINEAR_THREADS),
                   CHUNK * (TILE_STEP + MAP_STEP + U_STEP) * sizeof(float),
                   lolcats_tiled_features<KIND>, l, p->n, p->rows, p->runs, (const float *)p->q,
                   (const float *)p->key, features);
        else
            launch(p->stream, dim3((unsigned)heads, (unsigned)p->n, 2), dim3(LINEAR_THREADS),
                   shared, lolcats_features<VEC, KIND>, l, p->n, p->rows, p->runs,
                   (const float *)p->q, (const float *)p->key, features);
        if (l.window) {
            unsigned of_head = (unsigned)((d + CHUNK - 1) / CHUNK);
            unsigned of_run = (unsigned)((p->longest_run + CHUNK - 1) / CHUNK);
            launch(p->stream, dim3((unsigned)heads * of_head, of_run, (unsigned)p->n_runs),
                   dim3(LINEAR_THREADS), 2 * CHUNK * (TILE_STEP + MAP_STEP) * sizeof(float),
                   lolcats_windows<KIND>, l, p->n, (int)of_head, p->rows, p->runs,
                   (const float *)p->q, p->mixed, features.den);
        }
        for (size_t first = 0; first < p->n_runs; first += runs)
            launch(p->stream,
                   dim3((unsigned)heads, (unsigned)slices,
                        (unsigned)min_size(runs, p->n_runs - first)),
                   dim3(LINEAR_THREADS), chunk_floats((size_t)l.features) * sizeof(float),
                   lolcats_chunks<KIND>, l, p->n, p->rows, p->runs + first, (const float *)p->value,
                   p->mixed, features, p->counters);
    }
    int cols = linear_columns(p->n_runs * heads, l.head_dim, VEC, (size_t)p->sm_count);
    slices = (d + cols - 1) / cols;
    runs = linear_runs(p->n_runs, heads, slices, CUDA_COUNTERS);
    for (size_t first = 0; first < p->n_runs; first += runs)
        launch(p->stream,
               dim3((unsigned)heads, (unsigned)slices, (unsigned)min_size(runs, p->n_runs - first)),
               dim3(LINEAR_THREADS), shared, lolcats_steps<VEC, KIND>, l, cols, p->rows,
               p->runs + first, (const float *)p->q, (const float *)p->key, (const float *)p->value,
               p->mixed, p->counters);
}

template <int VEC> static void run_kind(const cuda_pass *p, const lolcats_layer &l) {
    if (!l.window || l.kv.kind == KV_F32)
        run<VEC, KV_F32>(p, l);
    else if (l.kv.kind == KV_F16)
        run<VEC, KV_F16>(p, l);
    else
        run<VEC, KV_Q8_0>(p, l);
}

static size_t work_floats(const linnet_model *m, int layer) {
    const lolcats_weights *w = (const lolcats_weights *)m->layers[layer].mixer_weights;
    return (size_t)m->cfg.n_heads * (2 * (size_t)w->features + 1);
}

static void forward(const cuda_pass *p, int layer) {
    const lolcats_weights *w = (const lolcats_weights *)p->m->layers[layer].mixer_weights;
    const config *c = &p->m->cfg;
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    const product qkv[] = {{&w->wq, p->q, q, GEMM_STORE},
                           {&w->wk, p->key, kv, GEMM_STORE},
                           {&w->wv, p->value, kv, GEMM_STORE}};
    cuda_mix_in(p, layer, qkv, 3);
    cuda_place(p, layer, NULL);
    lolcats_layer l = layer_of(p, layer);
    if (l.head_dim % 4 || l.width % 4 || l.rank % 4)
        run_kind<1>(p, l);
    else
        run_kind<4>(p, l);
    cuda_mix_out(p, layer, p->mixed, q, &w->wo);
}

extern const cuda_mixer cuda_lolcats = {MIXER_LOLCATS, forward, NULL, work_floats};
extern const cuda_mixer cuda_hedgehog = {MIXER_HEDGEHOG, forward, NULL, work_floats};
