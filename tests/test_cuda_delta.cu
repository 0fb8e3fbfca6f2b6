/* The delta rule's kernels on the emulated GPU against the formulas of docs/mixers.md in float64,
 * token by token: sizes, lengths and decays that the golden models do not have, and other orders of
 * threads, which must give equal bits. */
#include "../kernels_cuda/delta.h"
#include "gpu.h"

#include <cstdlib>
#include <vector>

typedef std::vector<float> floats;

static uint64_t seed;

static int begin(void **state) {
    seed = 1;
    return open_gpu(state);
}

/* In [-1, 1). */
static float noise() {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 40) / (1 << 23) - 1);
}

static floats noises(size_t n, float scale) {
    floats x(n);
    for (float &y : x)
        y = scale * noise();
    return x;
}

static void let_go(const void *p) {
    device_free(gpu, const_cast<void *>(p));
}

static double rms(const std::vector<double> &x) {
    double sum = 0;
    for (double y : x)
        sum += y * y;
    return sqrt(sum / (double)x.size());
}

static void near(const char *what, const floats &got, const std::vector<double> &want, double at) {
    double scale = rms(want), worst = 0;
    assert_int_equal(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++)
        if (!(fabs(got[i] - want[i]) <= worst)) worst = fabs(got[i] - want[i]);
    if (getenv("VERBOSE")) printf("%s: %.2g of the RMS %.2g\n", what, worst / scale, scale);
    if (!(worst <= at * scale)) fail_msg("%s: differs by %g of the RMS", what, worst / scale);
}

/* S = a S; S += k (b (v - S^T k))^T; o = S^T q */
static void step(double *s, int K, int V, const double *q, const double *k, const double *v,
                 double b, double a, double *o) {
    for (int c = 0; c < V; c++) {
        double sum = 0;
        for (int i = 0; i < K; i++)
            sum += k[i] * (s[i * V + c] *= a);
        double d = b * (v[c] - sum);
        o[c] = 0;
        for (int i = 0; i < K; i++)
            o[c] += q[i] * (s[i * V + c] += k[i] * d);
    }
}

/* ---- Runs of rows ---------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int heads, value_heads, K, V;
    std::vector<int> lengths;
    float alike;    /* how much of a key all keys share */
    float log_keep; /* the strongest decay of a token, of value head 0; others are weaker */
    float write;    /* b, all the same; 0: of every size up to 2 */
    int sm_count;
    bool orders; /* in other orders, too */
} runs_case;

static delta_layer layer_of(int heads, int value_heads, int K, int V) {
    delta_layer l = {};
    l.heads = heads;
    l.value_heads = value_heads;
    l.key_dim = K;
    l.value_dim = V;
    l.key_padded = (K + 15) / 16 * 16;
    l.value_stride = (V + 3) / 4 * 4 + DELTA_SCALARS;
    l.values = (size_t)value_heads * V;
    l.channels = (size_t)2 * heads * K + l.values;
    l.mixed_row = (size_t)2 * heads * l.key_padded + (size_t)value_heads * l.value_stride;
    return l;
}

static void check_runs(const runs_case *c, bool chunks) {
    delta_layer l = layer_of(c->heads, c->value_heads, c->K, c->V);
    int K = c->K, V = c->V, group = c->value_heads / c->heads;
    std::vector<cuda_run> runs;
    for (int n : c->lengths) {
        int first = runs.empty() ? 0 : runs.back().last;
        runs.push_back({first, first + n});
        l.longest_run = max_size(l.longest_run, (size_t)n);
    }
    l.n = (size_t)runs.back().last;
    l.n_runs = runs.size();
    l.sm_count = c->sm_count;
    l.heads_alternate = group == 3;
    l.state_at = 64; /* bytes that belong to another layer */
    size_t state_floats = 16 + (size_t)K * l.values;

    floats mixed = noises(l.n * l.mixed_row, 1);
    for (size_t r = 0; r < l.n; r++) {
        for (int u = 0; u < 2 * c->heads; u++) {
            float *x = &mixed[r * l.mixed_row + (size_t)u * l.key_padded];
            double sum = 0;
            for (int i = 0; i < K; i++) {
                x[i] = c->alike * (i % 3 ? 1.0f : -1.0f) + (1 - c->alike) * x[i];
                sum += (double)x[i] * x[i];
            }
            for (int i = 0; i < l.key_padded; i++)
                x[i] = i < K ? (float)(x[i] / sqrt(sum) / (u < c->heads ? sqrt(K) : 1)) : 0;
        }
        for (int h = 0; h < c->value_heads; h++) {
            float *x = &mixed[r * l.mixed_row + (size_t)2 * c->heads * l.key_padded +
                              (size_t)h * l.value_stride];
            for (int i = V; i < l.value_stride; i++)
                x[i] = 0;
            x += l.value_stride - DELTA_SCALARS;
            x[DELTA_WRITE] = c->write > 0 ? c->write : 1 + noise();
            x[DELTA_LOG_KEEP] = c->log_keep * (1 + noise()) / 2 / (float)(1 + 30 * h);
            x[DELTA_KEEP] = expf(x[DELTA_LOG_KEEP]);
        }
    }
    floats states = noises(l.n_runs * state_floats, 1);

    /* what is expected */
    std::vector<double> want_out(l.n * l.values), want_states(states.begin(), states.end());
    for (size_t i = 0; i < l.n_runs; i++)
        for (int r = runs[i].first; r < runs[i].last; r++)
            for (int h = 0; h < c->value_heads; h++) {
                const float *row = &mixed[(size_t)r * l.mixed_row];
                int head = l.heads_alternate ? h % c->heads : h / group;
                const float *q = row + head * l.key_padded, *k = q + c->heads * l.key_padded;
                const float *v = row + 2 * c->heads * l.key_padded + h * l.value_stride;
                std::vector<double> qd(q, q + K), kd(k, k + K), vd(v, v + V);
                const float *x = v + l.value_stride - DELTA_SCALARS;
                step(&want_states[i * state_floats + 16 + (size_t)h * K * V], K, V, qd.data(),
                     kd.data(), vd.data(), x[DELTA_WRITE], exp((double)x[DELTA_LOG_KEEP]),
                     &want_out[(size_t)r * l.values + (size_t)h * V]);
            }

    floats first_out, first_states;
    for (int order = 0; order < (c->orders ? 4 : 1); order++) {
        simt_set_order(order == 0   ? SIMT_FORWARD
                       : order == 1 ? SIMT_REVERSE
                                    : SIMT_SHUFFLED,
                       (uint64_t)order);
        float *states_at = upload(states);
        std::vector<cuda_row> rows(l.n);
        for (size_t i = 0; i < l.n_runs; i++)
            for (int r = runs[i].first; r < runs[i].last; r++) {
                rows[r].state = (uint8_t *)(states_at + i * state_floats);
                rows[r].run = (int)i;
            }
        const float nan = NAN;
        l.rows = upload(rows);
        l.runs = upload(runs);
        l.mixed = upload(mixed);
        l.out = upload(floats(l.n * l.values, nan));
        l.write_keys = upload(floats(l.n * (size_t)c->value_heads * K, nan));
        l.scores = upload(floats(l.n * (size_t)c->value_heads * DELTA_CHUNK, nan));
        if (chunks) {
            assert_true(delta_chunks_fit(&l));
            delta_chunks(stream, &l);
        } else {
            delta_recur(stream, &l);
        }
        linnet_error err;
        if (device_finish(gpu, &err)) fail_msg("%s: %s", c->name, err.text);
        floats out = download(l.out, l.n * l.values), after = download(states_at, states.size());
        for (const void *p : {(const void *)l.rows, (const void *)l.runs, (const void *)l.mixed,
                              (const void *)l.out, (const void *)l.write_keys,
                              (const void *)l.scores, (const void *)states_at})
            let_go(p);
        if (order == 0) {
            char what[128];
            double at = c->alike > 0.9f ? 1e-4 : 1e-5;
            snprintf(what, sizeof what, "%s, %s: outputs", c->name, chunks ? "chunks" : "recur");
            near(what, out, want_out, at);
            snprintf(what, sizeof what, "%s, %s: states", c->name, chunks ? "chunks" : "recur");
            near(what, after, want_states, at);
            for (size_t i = 0; i < l.n_runs; i++) /* the other layer's */
                assert_memory_equal(&after[i * state_floats], &states[i * state_floats],
                                    16 * sizeof(float));
            first_out = out;
            first_states = after;
        }
        if (memcmp(out.data(), first_out.data(), out.size() * sizeof(float)) ||
            memcmp(after.data(), first_states.data(), after.size() * sizeof(float)))
            fail_msg("%s: a race: other bits in order %d", c->name, order);
    }
    simt_set_order(SIMT_FORWARD, 0);
}

static void test_chunks(void **state) {
    (void)state;
    const std::vector<int> all = {1, 63, 64, 65, 130, 200}, some = {65, 3, 130};
    const runs_case cases[] = {
        {"64 x 64", 1, 2, 64, 64, all, 0, -0.3f, 0, 1, false},
        {"64 x 64 in orders", 2, 2, 64, 64, {70, 3}, 0, -0.3f, 0, 1, true},
        {"128 x 128", 1, 1, 128, 128, all, 0.3f, -0.05f, 0, 132, false},
        {"64 x 128, no decay", 1, 1, 64, 128, some, 0.2f, 0, 0, 132, false},
        {"64 x 128, strong decay", 1, 2, 64, 128, some, 0, -90, 0, 1, false},
        {"16 x 16, all forgotten", 1, 3, 16, 16, all, 0, -1e29f, 0, 132, true},
        {"keys alike", 1, 1, 64, 16, all, 0.98f, 0, 0.95f, 132, false},
        {"keys alike, b 1.98", 1, 1, 64, 16, all, 0.98f, 0, 1.98f, 132, false},
        {"208 x 80 in orders", 1, 1, 208, 80, {1, 100}, 0, -0.3f, 0, 132, true},
        {"256 x 32", 1, 3, 256, 32, {66, 129}, 0, -0.1f, 0, 1, false},
    };
    for (const runs_case &c : cases)
        check_runs(&c, true);
}

static void test_recurrence(void **state) {
    (void)state;
    const runs_case cases[] = {
        {"64 x 64", 1, 2, 64, 64, {1, 70, 9}, 0, -0.3f, 0, 132, true},
        {"128 x 48, b 1.98", 1, 1, 128, 48, {40, 3}, 0.3f, 0, 1.98f, 132, false},
        {"odd: 33 x 19", 2, 6, 33, 19, {5, 1, 21}, 0, -90, 0, 132, true},
        {"256 x 20", 1, 1, 256, 20, {12, 3}, 0, -0.1f, 0, 132, false},
        {"300 x 16, state in memory", 1, 1, 300, 16, {3, 10}, 0, -0.1f, 0, 132, false},
        {"700 x 17, state in memory", 1, 2, 700, 17, {3, 10}, 0, -0.1f, 0, 132, true},
        {"4096 x 3, state in memory", 1, 1, 4096, 3, {1, 3}, 0, -0.1f, 0, 132, false},
    };
    for (const runs_case &c : cases)
        check_runs(&c, false);
}

/* ---- A row per session ----------------------------------------------------------------------- */

static double silu(double x) {
    return x / (1 + exp(-x));
}

/* delta_step: convolution, silu, l2, b, decay, recurrence, norm and gate, with taps. `sm_count`
 * decides how a head's columns are spread over blocks. */
static void check_step(int heads, int value_heads, int K, int V, int sm_count) {
    enum { N = 3, STEPS = 3 };
    delta_layer l = layer_of(heads, value_heads, K, V);
    int group = value_heads / heads, W = 4;
    l.taps = W;
    l.has_beta = true;
    l.beta_scale = 2;
    l.norm_eps = 1e-6f;
    l.query_scale = (float)(1 / sqrt(K));
    l.n = l.n_runs = N;
    l.longest_run = 1;
    l.sm_count = sm_count;
    size_t state_floats = round_up((size_t)K * l.values + (size_t)(W - 1) * l.channels, 16);
    floats conv = noises((size_t)W * l.channels, 1), decay(value_heads), norm = noises(V, 1);
    floats dt = noises(value_heads, 2), states = noises(N * state_floats, 0.5f);
    for (float &x : decay)
        x = -1 - noise();
    std::vector<double> want_states(states.begin(), states.end());
    floats first_out, first_states;
    for (int order = 0; order < 4; order++) {
        uint64_t kept = seed;
        simt_set_order(order == 0   ? SIMT_FORWARD
                       : order == 1 ? SIMT_REVERSE
                                    : SIMT_SHUFFLED,
                       (uint64_t)order);
        float *states_at = upload(states);
        unsigned *counters = upload(std::vector<unsigned>(N * heads));
        std::vector<cuda_row> rows(N);
        for (int i = 0; i < N; i++)
            rows[i].state = (uint8_t *)(states_at + i * state_floats);
        l.rows = upload(rows);
        l.conv = upload(conv);
        l.log_decay = upload(decay);
        l.dt_bias = upload(dt);
        l.norm = upload(norm);
        floats out;
        for (int t = 0; t < STEPS; t++) {
            floats raw = noises(N * l.channels, 1), gate = noises(N * l.values, 2);
            floats beta = noises(N * (size_t)value_heads, 3);
            floats alpha = noises(N * (size_t)value_heads, 3);
            l.raw = upload(raw);
            l.gate = upload(gate);
            l.beta = upload(beta);
            l.alpha = upload(alpha);
            l.out = upload(floats(N * l.values, NAN));
            assert_true(delta_step_fits(&l));
            delta_step(stream, &l, counters);
            linnet_error err;
            if (device_finish(gpu, &err)) fail_msg("%s", err.text);
            out = download(l.out, N * l.values);
            for (const float *p : {l.raw, l.gate, l.beta, l.alpha, (const float *)l.out})
                let_go(p);
            if (order) continue;
            std::vector<double> want(N * l.values);
            for (int n = 0; n < N; n++) {
                double *state = &want_states[n * state_floats];
                double *taps = state + (size_t)K * l.values;
                std::vector<double> x(l.channels);
                for (size_t c = 0; c < l.channels; c++) {
                    for (int j = 0; j < W; j++)
                        x[c] += conv[j * l.channels + c] *
                                (j + 1 < W ? taps[j * l.channels + c] : raw[n * l.channels + c]);
                    x[c] = silu(x[c]);
                    for (int j = 0; j + 1 < W; j++)
                        taps[j * l.channels + c] =
                            j + 2 < W ? taps[(j + 1) * l.channels + c] : raw[n * l.channels + c];
                }
                for (int u = 0; u < 2 * heads; u++) {
                    double sum = 1e-6;
                    for (int i = 0; i < K; i++)
                        sum += x[u * K + i] * x[u * K + i];
                    for (int i = 0; i < K; i++)
                        x[u * K + i] /= sqrt(sum) * (u < heads ? sqrt(K) : 1);
                }
                for (int h = 0; h < value_heads; h++) {
                    size_t at = n * value_heads + h, to = n * l.values + (size_t)h * V;
                    double b = 2 / (1 + exp(-(double)beta[at])), sum = 0;
                    double a = exp(decay[h] * log1p(exp((double)alpha[at] + dt[h])));
                    const double *q = &x[h / group * K];
                    step(state + (size_t)h * K * V, K, V, q, q + heads * K,
                         &x[2 * heads * K + h * V], b, a, &want[to]);
                    for (int i = 0; i < V; i++)
                        sum += want[to + i] * want[to + i] / V;
                    for (int i = 0; i < V; i++)
                        want[to + i] *= norm[i] * silu(gate[to + i]) / sqrt(sum + 1e-6);
                }
            }
            near("step: outputs", out, want, 2e-5);
        }
        floats after = download(states_at, states.size());
        for (unsigned x : download(counters, N * heads))
            assert_int_equal(x, 0);
        for (const void *p : {(const void *)l.rows, (const void *)l.conv, (const void *)l.log_decay,
                              (const void *)l.dt_bias, (const void *)l.norm,
                              (const void *)states_at, (const void *)counters})
            let_go(p);
        if (order == 0) {
            near("step: states", after, want_states, 1e-5);
            first_out = out;
            first_states = after;
        }
        if (memcmp(out.data(), first_out.data(), out.size() * sizeof(float)) ||
            memcmp(after.data(), first_states.data(), after.size() * sizeof(float)))
            fail_msg("%d x %d: a race: other bits in order %d", K, V, order);
        if (order < 3) seed = kept; /* the same inputs again */
    }
    simt_set_order(SIMT_FORWARD, 0);
}

static void test_step(void **state) {
    (void)state;
    check_step(2, 4, 128, 128, 132); /* 16 columns a block */
    check_step(1, 1, 128, 128, 1);   /* all 128 */
    check_step(2, 2, 64, 64, 1);
    check_step(1, 3, 33, 20, 132);
    check_step(1, 1, 256, 68, 4);
    check_step(1, 2, 500, 16, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_step, begin, close_gpu),
        cmocka_unit_test_setup_teardown(test_recurrence, begin, close_gpu),
        cmocka_unit_test_setup_teardown(test_chunks, begin, close_gpu),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
