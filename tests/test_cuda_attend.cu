/* Softmax attention on the emulated GPU against float64: heads of many sizes and groups, sessions
 * of many depths side by side, windows, sinks, norms, rotations and gates, all types of KV pages;
 * decoding, and prefill in float32 and on tensor cores. Whatever no row may look at is NaN. */
#include "../common.h"
extern "C" {
#include "../session/kv.h"
}
#include "../kernels_cuda/attend.h"
#include "gpu.h"

#include <cstdlib>
#include <vector>

using std::vector;

static uint64_t seed;

static float draw() {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 40) / (1 << 24) * 2 - 1);
}

static vector<float> draws(size_t n) {
    vector<float> v(n);
    for (float &x : v)
        x = draw();
    return v;
}

typedef struct {
    int from, n; /* positions before the piece, and of the piece */
} run_of_rows;

typedef struct {
    int head_dim, group, n_kv_heads;
    kv_kind kind;
    int window, n_sink;
    rope_kind rope;
    bool norms, whole, gated, exact;
    vector<run_of_rows> runs;
} attend_case;

/* A session's pages on the host, which become pages of the GPU. */
typedef struct {
    kv_cache cache;
    vector<kv_page> pages;
    vector<kv_page *> list;
    vector<vector<uint8_t>> bytes;
    vector<uint8_t *> on_gpu;
} paged;

enum { LAYER = 1, DEPTH = 1024 }; /* the layer under test lies behind another in the pages */

typedef struct {
    attend_case c;
    linnet_model *m;
    layer_weights layers[2];
    kv_slot slots[2];
    vector<linnet_session *> sessions;
    vector<paged> of_run;
    softmax_weights weights;
    vector<float> q, key, value, work, cos, sin, q_norm, k_norm;
    vector<row> rows;
    vector<cuda_row> gpu_rows;
    vector<cuda_run> gpu_runs;
    cuda_pass p;
} bench;

/* ---- In float64 --------------------------------------------------------------------------------
 */

/* x [heads, d] as queries and keys are made ready, in place. */
static void make_ready(const bench &b, size_t r, const vector<float> &norm, int heads,
                       vector<double> &x) {
    int d = b.c.head_dim, half = b.layers[LAYER].heads.rope_dim / 2;
    const config &cfg = b.m->cfg;
    for (int h = 0; b.c.norms && h < heads; h++) {
        double square = 0;
        size_t from = b.c.whole ? 0 : h * d, n = b.c.whole ? heads * d : d;
        if (b.c.whole && h) break;
        for (size_t i = from; i < from + n; i++)
            square += x[i] * x[i];
        for (size_t i = from; i < from + n; i++)
            x[i] *= (double)norm[i - from] / sqrt(square / (double)n + (double)cfg.norm_eps);
    }
    for (int h = 0; b.c.rope != ROPE_NONE && h < heads; h++)
        for (int i = 0; i < half; i++) {
            size_t u = h * d + (b.c.rope == ROPE_PAIRS ? 2 * i : i);
            size_t v = b.c.rope == ROPE_PAIRS ? u + 1 : u + half;
            double c = b.cos[r * cfg.n_angles + i], s = b.sin[r * cfg.n_angles + i];
            double a = x[u], o = x[v];
            x[u] = a * c - o * s;
            x[v] = a * s + o * c;
        }
}

/* The head's output for the query; keys and values [position][d]. */
static void attend(const bench &b, int position, const double *q, const vector<float> &keys,
                   const vector<float> &values, double *out) {
    int d = b.c.head_dim;
    vector<double> w(position + 1, 0);
    double max = -INFINITY, sum = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int t = 0; t <= position; t++) {
            if (b.c.window && t <= position - b.c.window && t >= b.c.n_sink) continue;
            double score = 0;
            for (int i = 0; !pass && i < d; i++)
                score += q[i] * (double)keys[(size_t)t * d + i];
            if (!pass)
                w[t] = score / sqrt(d), max = fmax(max, w[t]);
            else
                w[t] = exp(w[t] - max), sum += w[t];
        }
    for (int i = 0; i < d; i++)
        out[i] = 0;
    for (int t = 0; t <= position; t++) {
        if (b.c.window && t <= position - b.c.window && t >= b.c.n_sink) continue;
        for (int i = 0; i < d; i++)
            out[i] += w[t] / sum * (double)values[(size_t)t * d + i];
    }
}

/* ---- A piece -----------------------------------------------------------------------------------
 */

/* Pages with random keys and values before the piece; what nobody sees is dropped. */
static void fill_pages(bench &b, paged &s, const run_of_rows &run) {
    int d = b.c.head_dim, end = run.from + run.n, n = (end + PAGE - 1) / PAGE;
    kv_table_id table = b.slots[LAYER].table;
    kv_cache &cache = s.cache;
    cache.layout = kv_layout_of(b.c.kind, b.slots, 2);
    s.pages = vector<kv_page>(n);
    s.list.resize(n);
    s.bytes.assign(n, vector<uint8_t>(cache.layout.page_bytes[table], 0xff));
    for (int i = 0; i < n; i++) {
        s.pages[i].data = s.bytes[i].data();
        s.list[i] = &s.pages[i];
    }
    cache.tables[table].pages = s.list.data();
    cache.tables[table].n_pages = n;
    for (int t = 0; t < run.from; t++)
        for (int h = 0; h < b.c.n_kv_heads; h++) {
            vector<float> k = draws(d), v = draws(d);
            for (float &x : k)
                x *= 2;
            kv_write(&cache, &kernels_generic, t, LAYER, h, k.data(), v.data());
        }
    for (int i = 0; i < n; i++) {
        bool seen =
            !b.c.window || i * PAGE < b.c.n_sink || (i + 1) * PAGE > run.from - b.c.window + 1;
        s.on_gpu.push_back(seen ? upload(s.bytes[i]) : NULL);
    }
}

static void set_up(bench &b) {
    const attend_case &c = b.c;
    size_t n = 0, d = c.head_dim, heads = c.n_kv_heads * c.group;
    b.m = static_cast<linnet_model *>(calloc(1, sizeof *b.m));
    config &cfg = b.m->cfg;
    cfg.norm_eps = 1e-5f;
    cfg.rope = c.rope;
    cfg.n_sink = c.n_sink;
    cfg.gated_attention = c.gated;
    cfg.n_angles = 3 * d / 8 + 1;
    memset(b.layers, 0, sizeof b.layers);
    kv_table_id table = c.window ? KV_WINDOWED : KV_ALL;
    b.slots[0] = {2, 16, table, {}};
    b.slots[LAYER] = {c.n_kv_heads, c.head_dim, table, {}};
    kv_place(b.slots, 2);
    b.m->layers = b.layers;
    layer_weights &l = b.layers[LAYER];
    l.kv_slot = 1;
    l.window = c.window;
    l.heads = {(int)heads, c.n_kv_heads, c.head_dim, (int)(3 * d / 4), 1e4, 0};
    size_t depth = DEPTH, longest = 0;
    b.of_run.resize(c.runs.size());
    for (size_t i = 0; i < c.runs.size(); i++) {
        const run_of_rows &run = c.runs[i];
        linnet_session *s = static_cast<linnet_session *>(calloc(1, sizeof *s));
        b.sessions.push_back(s);
        fill_pages(b, b.of_run[i], run);
        s->kv.layout = b.of_run[i].cache.layout;
        uint8_t *const *pages[KV_TABLES] = {};
        pages[table] = upload(b.of_run[i].on_gpu);
        b.gpu_runs.push_back({(int)n, (int)n + run.n});
        for (int t = 0; t < run.n; t++, n++) {
            b.rows.push_back({s, 0, run.from + t, i, false});
            b.gpu_rows.push_back({NULL,
                                  {pages[KV_ALL], pages[KV_WINDOWED]},
                                  NULL,
                                  0,
                                  run.from + t,
                                  (int)i,
                                  0,
                                  0,
                                  0});
        }
        while (depth < (size_t)(run.from + run.n))
            depth *= 2;
        longest = max_size(longest, run.n);
    }
    b.q = draws(n * heads * d);
    b.key = draws(n * c.n_kv_heads * d);
    b.value = draws(n * c.n_kv_heads * d);
    b.work = draws(n * heads * 2 * d);
    b.q_norm = draws(heads * d);
    b.k_norm = draws(heads * d);
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < cfg.n_angles; i++) {
            double angle = b.rows[r].position * pow(0.7, (double)i);
            b.cos.push_back((float)cos(angle));
            b.sin.push_back((float)sin(angle));
        }
    cuda_pass &p = b.p;
    p = {};
    p.m = b.m;
    p.stream = stream;
    p.sm_count = 13; /* few, so that there are tiles of several segments, and of one */
    p.exact = c.exact;
    p.n = n;
    p.host_rows = b.rows.data();
    p.n_runs = c.runs.size();
    p.longest_run = longest;
    p.depth = depth;
    p.rows = upload(b.gpu_rows);
    p.runs = upload(b.gpu_runs);
    p.cos = upload(b.cos);
    p.sin = upload(b.sin);
    p.partial_floats = cuda_softmax.partial_floats(b.m, LAYER, n, depth, p.sm_count);
    p.partial = upload(vector<float>(p.partial_floats + 1, 12345));
    p.counters = upload(vector<unsigned>(CUDA_COUNTERS, 0));
    b.weights = {};
    if (c.norms) {
        b.weights.q_norm = upload(b.q_norm);
        b.weights.k_norm = upload(b.k_norm);
        b.weights.q_whole = b.weights.k_whole = c.whole;
    }
}

/* One pass over fresh copies of all that it changes. */
static vector<float> run_once(bench &b) {
    linnet_error err;
    cuda_pass &p = b.p;
    p.q = upload(b.q);
    p.key = upload(b.key);
    p.value = upload(b.value);
    p.work = upload(b.work);
    p.mixed = upload(vector<float>(b.q.size(), NAN));
    for (paged &s : b.of_run)
        for (size_t i = 0; i < s.on_gpu.size(); i++)
            if (s.on_gpu[i] &&
                device_upload(gpu, s.on_gpu[i], s.bytes[i].data(), s.bytes[i].size(), &err))
                fail_msg("%s", err.text);
    cuda_attend(&p, LAYER, &b.weights);
    if (device_finish(gpu, &err)) fail_msg("%s", err.text);
    vector<float> out = download(p.mixed, b.q.size());
    for (float *x : {p.q, p.key, p.value, p.work, p.mixed})
        device_free(gpu, x);
    for (unsigned x : download(p.counters, CUDA_COUNTERS))
        assert_int_equal(x, 0);
    assert_true(download(p.partial + p.partial_floats, 1)[0] == 12345);
    return out;
}

/* Largest difference, over the RMS of what is expected. */
static double compare(bench &b, const vector<float> &got) {
    const attend_case &c = b.c;
    size_t d = c.head_dim, heads = c.n_kv_heads * c.group, r = 0;
    double worst = 0, square = 0;
    for (size_t i = 0; i < c.runs.size(); i++) {
        kv_cache &cache = b.of_run[i].cache;
        size_t first = r, end = c.runs[i].from + c.runs[i].n;
        for (; r < first + c.runs[i].n; r++) { /* keys and values as pages keep them */
            size_t all = c.n_kv_heads * d;
            vector<double> k(b.key.begin() + r * all, b.key.begin() + (r + 1) * all);
            make_ready(b, r, b.k_norm, c.n_kv_heads, k);
            vector<float> rounded(k.begin(), k.end());
            for (int h = 0; h < c.n_kv_heads; h++)
                kv_write(&cache, &kernels_generic, b.rows[r].position, LAYER, h, &rounded[h * d],
                         &b.value[r * all + h * d]);
        }
        vector<vector<float>> keys(c.n_kv_heads, vector<float>(end * d)), values = keys;
        for (int h = 0; h < c.n_kv_heads; h++)
            for (size_t t = 0; t < end; t++)
                kv_read(&cache, t, LAYER, h, &keys[h][t * d], &values[h][t * d]);
        for (r = first; r < first + c.runs[i].n; r++) {
            vector<double> q(heads * d), out(d);
            for (size_t j = 0; j < heads * d; j++)
                q[j] =
                    c.gated ? b.work[(r * heads + j / d) * 2 * d + j % d] : b.q[r * heads * d + j];
            make_ready(b, r, b.q_norm, (int)heads, q);
            for (size_t h = 0; h < heads; h++) {
                attend(b, b.rows[r].position, &q[h * d], keys[h / c.group], values[h / c.group],
                       out.data());
                for (size_t j = 0; j < d; j++) {
                    size_t at = (r * heads + h) * d + j;
                    if (c.gated)
                        out[j] /= 1 + exp(-(double)b.work[((r * heads + h) * 2 + 1) * d + j]);
                    square += out[j] * out[j];
                    if (!(fabs(got[at] - out[j]) <= worst)) worst = fabs(got[at] - out[j]);
                }
            }
        }
    }
    return worst / sqrt(square / (double)got.size());
}

static void tear_down(bench &b) {
    for (paged &s : b.of_run)
        for (uint8_t *page : s.on_gpu)
            device_free(gpu, page);
    device_free(gpu, (void *)b.gpu_rows[0].pages[b.slots[LAYER].table]);
    for (size_t r = 1; r < b.gpu_rows.size(); r++)
        if (b.gpu_rows[r].run != b.gpu_rows[r - 1].run)
            device_free(gpu, (void *)b.gpu_rows[r].pages[b.slots[LAYER].table]);
    for (linnet_session *s : b.sessions)
        free(s);
    device_free(gpu, (void *)b.p.rows);
    device_free(gpu, (void *)b.p.runs);
    device_free(gpu, b.p.cos);
    device_free(gpu, b.p.sin);
    device_free(gpu, b.p.partial);
    device_free(gpu, b.p.counters);
    device_free(gpu, b.weights.q_norm);
    device_free(gpu, b.weights.k_norm);
    free(b.m);
}

static void try_case(const attend_case &c, bool orders) {
    bench b;
    b.c = c;
    set_up(b);
    simt_set_order(SIMT_FORWARD, 0);
    vector<float> out = run_once(b);
    char name[200];
    snprintf(name, sizeof name,
             "head_dim %d, group %d, kv %d, window %d, sinks %d, rope %d, norms %d%d, gated %d, "
             "exact %d, %zu rows",
             c.head_dim, c.group, c.kind, c.window, c.n_sink, c.rope, c.norms, c.whole, c.gated,
             c.exact, b.p.n);
    /* Pages of 16 bits may round a number to its other neighbour; tensor cores round all. */
    bool tensor_cores = !c.exact && b.p.longest_run > 1;
    double bound = tensor_cores       ? c.kind == KV_F32 ? 6e-2 : 1e-2
                   : c.kind == KV_F32 ? 2e-5
                   : c.kind == KV_F16 ? 1e-4
                                      : 3e-2;
    double worst = compare(b, out);
    if (!(worst <= bound)) fail_msg("%s: differs by %g of the RMS", name, worst);
    for (int order = 1; orders && order < 4; order++) {
        simt_set_order(order == 1 ? SIMT_REVERSE : SIMT_SHUFFLED, (uint64_t)order);
        vector<float> again = run_once(b);
        if (memcmp(out.data(), again.data(), out.size() * sizeof(float)))
            fail_msg("%s: other bits in order %d", name, order);
    }
    tear_down(b);
}

/* Number i of the ways a model can be. */
static attend_case way(int head_dim, int group, kv_kind kind, int i) {
    static const int windows[][2] = {{0, 0}, {100, 5}, {64, 70}, {0, 3}, {7, 0}, {200, 65}};
    attend_case c = {};
    c.head_dim = head_dim;
    c.group = group;
    c.n_kv_heads = 1 + i % 2;
    c.kind = kind;
    c.window = windows[i % 6][0];
    c.n_sink = windows[i % 6][1];
    c.rope = (rope_kind)(i % 3);
    c.norms = i % 4 < 2;
    c.whole = i % 8 == 1;
    c.gated = i % 5 == 2;
    return c;
}

static const int dims[] = {16, 20, 64, 70, 128, 256};
static const int groups[] = {1, 3, 8};

/* All of them with depths of their own; orders for one in three. */
static void every_way(const vector<vector<run_of_rows>> &runs, bool exact) {
    int i = 0;
    for (int d : dims)
        for (int group : groups)
            for (int kind = 0; kind < KV_KINDS; kind++) {
                if (kind == KV_Q8_0 && d % BLOCK) continue;
                attend_case c = way(d, group, (kv_kind)kind, i);
                c.exact = exact;
                c.runs = runs[i % runs.size()];
                try_case(c, i++ % 3 == 0);
            }
}

static void test_decode(void **state) {
    (void)state;
    every_way({{{0, 1}, {62, 1}, {63, 1}, {64, 1}, {299, 1}}, {{1499, 1}}, {{299, 1}, {700, 1}}},
              true);
}

static void test_prefill_exact(void **state) {
    (void)state;
    every_way({{{0, 66}}, {{62, 3}, {299, 1}, {0, 20}}, {{1480, 20}}}, true);
}

static void test_prefill_tensor_cores(void **state) {
    (void)state;
    every_way({{{0, 66}}, {{62, 3}, {299, 1}, {0, 20}}, {{1480, 20}}}, false);
}

/* The largest heads, and groups that take several blocks. */
static void test_odd_sizes(void **state) {
    (void)state;
    for (int exact = 0; exact < 2; exact++)
        for (int kind = 0; kind < KV_KINDS; kind++) {
            attend_case c = way(512, 6, (kv_kind)kind, 1);
            c.exact = exact;
            c.runs = {{300, 1}, {64, 1}};
            try_case(c, true);
            c.runs = {{300, 3}, {64, 1}};
            try_case(c, true);
            c = way(32, 71, (kv_kind)kind, 0);
            c.exact = exact;
            c.runs = {{300, 1}, {64, 1}};
            try_case(c, true);
            c.runs = {{300, 3}, {64, 1}};
            try_case(c, true);
        }
}

static int begin(void **state) {
    seed = 1;
    return open_gpu(state);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, close_gpu)
    const struct CMUnitTest tests[] = {TEST(test_decode), TEST(test_prefill_exact),
                                       TEST(test_prefill_tensor_cores), TEST(test_odd_sizes)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
