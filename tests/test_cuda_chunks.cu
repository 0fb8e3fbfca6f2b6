/* Linear attention in chunks (kernels_cuda/chunks.h) against the recurrence in float64: lengths
 * around the chunk's, states that are carried in, keys that enter the state with their row, behind
 * a window, or a block at a time; the same bits in every order of threads. */
#include "../kernels_cuda/chunks.h"
#include "../kernels_cuda/pass.h"
#include "gpu.h"

#include <cstdlib>
#include <vector>

enum { RUNS = 2, F = 70, V = 33 };

/* When a key enters the state: with its row; `lag` rows later; or the block of `lag` rows before
 * the last when a block ends. Keys are numbered from the first that the run puts in. */
typedef enum { WITH_ROW, BEHIND, BY_BLOCKS } entering;

DEVICE int keys_after(entering how, int lag, int r) {
    int keys = how == WITH_ROW ? r + 1 : how == BEHIND ? r + 1 - lag : ((r + 1) / lag - 1) * lag;
    return max(keys, 0);
}

struct test_source {
    enum { direct = false };
    entering how;
    int lag;
    const float *q, *k, *v; /* [rows][F], [rows][F], [rows][V] */
    float *y;               /* [rows][V] */

    DEVICE int keys_of(int r) const { return keys_after(how, lag, r); }
    DEVICE int seen_by(int r) const { return keys_after(how, lag, how == WITH_ROW ? r : r - 1); }
    DEVICE float load_value(int key, int c) const { return v[key * V + c]; }
    DEVICE void finish(int r, int c, float sum, float den) const { y[r * V + c] = sum / (1 + den); }
    DEVICE void load_features(const chunk_memory &m, int r0, int rows, int k0, int keys,
                              int at) const {
        for (int i = (int)threadIdx.x; i < CHUNK * CHUNK; i += LINEAR_THREADS) {
            int r = i / CHUNK, f = i % CHUNK;
            bool is = at + f < F;
            m.q[r * TILE_STEP + f] = is && r < rows ? q[(r0 + r) * F + at + f] : 0;
            m.k[r * TILE_STEP + f] = is && r < keys ? k[(k0 + r) * F + at + f] : 0;
        }
    }
    DEVICE void weigh(const chunk_memory &, int, int, int, int, float (&)[4][4]) const {}
};

/* Run blockIdx.z has n rows from n blockIdx.z; S [RUNS][F][V], z [RUNS][F]. */
__global__ void chunks(entering how, int lag, int n, const float *q, const float *k, const float *v,
                       float *y, float *S, float *z, unsigned *counters) {
    DYNAMIC_SHARED(float, shared);
    chunk_memory m = chunk_layout(shared);
    int run = (int)blockIdx.z, row = run * n;
    for (int i = (int)threadIdx.x; i < F; i += LINEAR_THREADS)
        m.z[i] = z[run * F + i];
    test_source from = {how, lag, q + row * F, k + row * F, v + row * V, y + row * V};
    run_chunks(from, n, S + run * F * V, F, V, (int)blockIdx.y * CHUNK_COLUMNS, m);
    if (last_of_blocks(&counters[run], gridDim.y))
        for (int i = (int)threadIdx.x; i < F; i += LINEAR_THREADS)
            z[run * F + i] = m.z[i];
}

static float random_float(uint32_t *seed) {
    *seed = *seed * 1664525 + 1013904223;
    return (float)(*seed >> 8) / (1 << 24);
}

static std::vector<float> random_floats(size_t n, uint32_t seed, float low, float high) {
    std::vector<float> v(n);
    for (float &x : v)
        x = low + (high - low) * random_float(&seed);
    return v;
}

static void compare(const char *what, int n, const std::vector<float> &got,
                    const std::vector<double> &want) {
    double square = 0, worst = 0;
    for (size_t i = 0; i < want.size(); i++) {
        square += want[i] * want[i];
        worst = fmax(worst, fabs(got[i] - want[i]));
        if (got[i] != got[i]) fail_msg("%s of %d rows: NaN at %zu", what, n, i);
    }
    double rms = sqrt(square / (double)want.size());
    if (worst > 1e-5 * rms)
        fail_msg("%s of %d rows: an error of %g of the RMS", what, n, worst / rms);
}

static void run_of(entering how, int lag, int n) {
    std::vector<float> q = random_floats((size_t)RUNS * n * F, 1, 0, 1),
                       k = random_floats((size_t)RUNS * n * F, 2, 0, 1),
                       v = random_floats((size_t)RUNS * n * V, 3, -1, 1),
                       S = random_floats((size_t)RUNS * F * V, 4, -1, 1),
                       z = random_floats((size_t)RUNS * F, 5, 0, 2);
    std::vector<double> y_want((size_t)RUNS * n * V), S_want(S.begin(), S.end()),
        z_want(z.begin(), z.end());
    for (int run = 0; run < RUNS; run++) {
        double *s = &S_want[(size_t)run * F * V], *zs = &z_want[(size_t)run * F];
        int key = 0;
        auto enter = [&](int until) {
            for (; key < until; key++)
                for (int f = 0; f < F; f++) {
                    double phi = k[(size_t)(run * n + key) * F + f];
                    zs[f] += phi;
                    for (int c = 0; c < V; c++)
                        s[f * V + c] += phi * v[(size_t)(run * n + key) * V + c];
                }
        };
        for (int r = 0; r < n; r++) {
            const float *row = &q[(size_t)(run * n + r) * F];
            double den = 1;
            if (how == WITH_ROW) enter(r + 1);
            for (int f = 0; f < F; f++)
                den += row[f] * zs[f];
            for (int c = 0; c < V; c++) {
                double sum = 0;
                for (int f = 0; f < F; f++)
                    sum += row[f] * s[f * V + c];
                y_want[(size_t)(run * n + r) * V + c] = sum / den;
            }
            enter(keys_after(how, lag, r));
        }
    }
    std::vector<float> first[3];
    for (int order = SIMT_FORWARD; order <= SIMT_SHUFFLED; order++) {
        simt_set_order((simt_order)order, 7);
        float *q_at = upload(q), *k_at = upload(k), *v_at = upload(v), *S_at = upload(S),
              *z_at = upload(z);
        float *y_at = upload(std::vector<float>((size_t)RUNS * n * V));
        unsigned *counters = upload(std::vector<unsigned>(RUNS));
        launch(stream, dim3(1, (V + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS, RUNS), dim3(LINEAR_THREADS),
               chunk_floats(F) * sizeof(float), chunks, how, lag, n, (const float *)q_at,
               (const float *)k_at, (const float *)v_at, y_at, S_at, z_at, counters);
        std::vector<float> got[3] = {take_back(y_at, y_want.size()), take_back(S_at, S.size()),
                                     take_back(z_at, z.size())};
        compare("outputs", n, got[0], y_want);
        compare("the state", n, got[1], S_want);
        compare("the sum of features", n, got[2], z_want);
        for (int i = 0; i < 3; i++) {
            if (!order) first[i] = got[i];
            assert_memory_equal(first[i].data(), got[i].data(), got[i].size() * sizeof(float));
        }
        for (unsigned left : take_back(counters, RUNS))
            assert_int_equal(left, 0);
        device_free(gpu, q_at);
        device_free(gpu, k_at);
        device_free(gpu, v_at);
    }
    simt_set_order(SIMT_FORWARD, 0);
}

static void test_with_row(void **state) {
    (void)state;
    const int lengths[] = {1, 63, 64, 65, 130, 200};
    for (int n : lengths)
        run_of(WITH_ROW, 0, n);
}

static void test_behind_a_window(void **state) {
    (void)state;
    const int lengths[] = {16, 64, 130};
    for (int n : lengths)
        run_of(BEHIND, 20, n);
}

/* Blocks of 70 keys are more than one tile at once. */
static void test_by_blocks(void **state) {
    (void)state;
    run_of(BY_BLOCKS, 70, 200);
    run_of(BY_BLOCKS, 24, 65);
}

/* A layer of BASED whose queries take 15 floats a row: values, which are loaded four at a time, lie
 * aligned all the same. All weights are 0, and so is what it adds. */
static void test_odd_taylor(void **state) {
    (void)state;
    enum { HEADS = 3, FEATURES = 5, MOMENTS = 21, VALUES = 4, EMBD = 16, ARENA = 1 << 14 };
    static_assert(MOMENTS == 1 + FEATURES + FEATURES * (FEATURES + 1) / 2, "");
    size_t panel = cuda_panel_bytes(DTYPE_F32, EMBD);
    std::vector<uint8_t> arena(ARENA);
    auto weights = [&](size_t rows) { /* the same zeros for all */
                                      return matrix{arena.data(), NULL,  rows,
                                                    EMBD,         panel, DTYPE_F32};
    };
    taylor_weights w = {weights(HEADS * FEATURES),
                        weights(HEADS * FEATURES),
                        weights(HEADS * VALUES),
                        {arena.data(), NULL, EMBD, HEADS * VALUES,
                         cuda_panel_bytes(DTYPE_F32, HEADS * VALUES), DTYPE_F32},
                        HEADS,
                        FEATURES,
                        MOMENTS,
                        VALUES,
                        1e-12f};
    layer_weights layer = {};
    layer.mixer_weights = &w;
    linnet_model *m = (linnet_model *)calloc(1, sizeof *m);
    m->act = LINNET_ACT_EXACT;
    m->cfg.n_embd = EMBD;
    m->layers = &layer;
    uint8_t *arena_gpu = upload(arena);
    cuda_row row = {};
    row.state = upload(std::vector<uint8_t>(HEADS * MOMENTS * (VALUES + 1) * sizeof(float)));
    cuda_run run = {0, 1};
    cuda_pass p = {};
    p.m = m;
    p.stream = stream;
    p.sm_count = 2;
    p.exact = true;
    p.weights = (ptrdiff_t)((uintptr_t)arena_gpu - (uintptr_t)arena.data());
    p.n = p.n_runs = p.longest_run = 1;
    p.rows = upload(std::vector<cuda_row>(1, row));
    p.runs = upload(std::vector<cuda_run>(1, run));
    p.x = upload(std::vector<float>(EMBD, 1));
    p.work = upload(std::vector<float>(2 * HEADS * (FEATURES + VALUES)));
    p.counters = upload(std::vector<unsigned>(HEADS));
    p.not_finite = upload(std::vector<unsigned long long>(1, UINT64_MAX));
    cuda_based_taylor.forward(&p, 0);
    linnet_error err;
    if (device_finish(gpu, &err)) fail_msg("%s", err.text);
    for (float x : take_back(p.x, EMBD))
        assert_true(x == 1);
    device_free(gpu, arena_gpu);
    device_free(gpu, row.state);
    device_free(gpu, (void *)p.rows);
    device_free(gpu, (void *)p.runs);
    device_free(gpu, p.work);
    device_free(gpu, p.counters);
    device_free(gpu, p.not_finite);
    free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_with_row),
        cmocka_unit_test(test_behind_a_window),
        cmocka_unit_test(test_by_blocks),
        cmocka_unit_test(test_odd_taylor),
    };
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
