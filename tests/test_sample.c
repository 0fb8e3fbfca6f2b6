/* The sampler: the generator against the paper's vectors, distributions against transformers and
 * against a plain reference, drawn frequencies by chi-square, every setting at its limits. */
#include "../session/sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const linnet_sampling DEFAULTS = LINNET_SAMPLING_DEFAULT;

/* ---- The generator ----------------------------------------------------------------------- */

/* Random123's tests/kat_vectors, the three lines "philox4x32 10": counter, key, result. */
static void philox_known_answers(void **state) {
    (void)state;
    static const uint32_t kat[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32_10(kat[i], kat[i] + 4, out);
        assert_memory_equal(out, kat[i] + 6, sizeof out);
    }
}

static void uniform_is_fixed_by_seed_and_position(void **state) {
    (void)state;
    /* By the first vector: seed 0, position 0 is 0x6627e8d5e169c58d >> 11, over 2^53. */
    assert_true(sample_uniform(0, 0) == (double)(0x6627e8d5e169c58dull >> 11) / 9007199254740992.0);
    assert_true(sample_uniform(1, 0) != sample_uniform(0, 0));
    assert_true(sample_uniform(1ull << 32, 0) != sample_uniform(0, 0));
    assert_true(sample_uniform(0, 1ull << 32) != sample_uniform(0, 0));
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double u = sample_uniform(7, i);
        assert_true(u >= 0 && u < 1);
        sum += u;
        squares += u * u;
    }
    /* Mean 1/2 and second moment 1/3, within four standard errors. */
    assert_true(fabs(sum / 1e5 - 1.0 / 2) < 4 * sqrt(1.0 / 12 / 1e5));
    assert_true(fabs(squares / 1e5 - 1.0 / 3) < 4 * sqrt(4.0 / 45 / 1e5));
}

/* ---- A plain reference ------------------------------------------------------------------- */

typedef struct {
    double logit;
    int id;
} ranked;

static int rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id - y->id;
}

/* The steps of sample.h word for word, with a full sort and libm. Returns false if a decision lay
 * within rounding of a threshold. */
static bool reference(const linnet_sampling *s, const float *logits, int n, const int32_t *history,
                      size_t n_history, double *p) {
    ranked *r = malloc((size_t)n * sizeof *r);
    double *w = malloc((size_t)n * sizeof *w);
    assert_non_null(r);
    assert_non_null(w);
    for (int i = 0; i < n; i++) {
        float x = logits[i];
        for (size_t b = 0; b < s->n_bias; b++)
            if (s->bias[b].token == i) x += s->bias[b].bias;
        if (s->allowed && !(s->allowed[i / 32] >> (i % 32) & 1)) x = -INFINITY;
        bool seen = false;
        for (size_t h = 0; h < n_history && h < (size_t)s->repeat_last; h++)
            seen |= history[n_history - 1 - h] == i;
        if (seen && s->repeat_penalty != 1)
            x = x > 0 ? x / s->repeat_penalty : x * s->repeat_penalty;
        r[i] = (ranked){x, i};
        p[i] = 0;
    }
    qsort(r, (size_t)n, sizeof *r, rank);
    int kept = s->top_k && s->top_k < n ? s->top_k : n;
    bool clear = true;
    if (s->temperature == 0) kept = 1;
    double total = 0;
    for (int i = 0; i < kept; i++) {
        w[i] = s->temperature == 0 ? 1 : exp((r[i].logit - r[0].logit) / (double)s->temperature);
        total += w[i];
    }
    if (s->top_p < 1) {
        double mass = 0;
        int i = 0;
        while (i < kept && mass < (double)s->top_p * total) {
            mass += w[i++];
            clear &= fabs(mass - (double)s->top_p * total) > 1e-12 * total;
        }
        kept = i;
    }
    while (kept > 1 && w[kept - 1] < (double)s->min_p)
        kept--;
    for (int i = 0; i < n && s->min_p > 0; i++)
        clear &= i >= kept + 1 || fabs(w[i] - (double)s->min_p) > 1e-12;
    double mass = 0;
    for (int i = 0; i < kept; i++)
        mass += w[i];
    for (int i = 0; i < kept; i++)
        p[r[i].id] = w[i] / mass;
    free(r);
    free(w);
    return clear;
}

/* Numbers for tests, nothing to do with the generator above: xorshift64*. */
static uint64_t lcg = 88172645463325252ull;
static uint32_t random_u32(void) {
    lcg ^= lcg >> 12;
    lcg ^= lcg << 25;
    lcg ^= lcg >> 27;
    return (uint32_t)(lcg * 2685821657736338717ull >> 32);
}
static double random_unit(void) {
    return random_u32() / 4294967296.0;
}
static float random_logit(float scale) {
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += random_unit();
    return (float)(sum - 6) * scale;
}

static void equals_reference_on_random_settings(void **state) {
    (void)state;
    enum { MAX = 5000 };
    static float logits[MAX];
    static double p[MAX], want[MAX];
    int32_t history[100];
    const int sizes[] = {1, 2, 5, 40, 255, 256, 257, 1000, MAX};
    int compared = 0, cases = 0, sampled = 0;
    for (; cases < 3000; cases++) {
        int n = sizes[random_u32() % 9];
        if (n == MAX && cases % 4) n = 300;
        float scale = (float)(random_unit() * 5);
        bool ties = random_u32() % 3 == 0;
        for (int i = 0; i < n; i++) {
            logits[i] = random_logit(scale);
            if (ties) logits[i] = roundf(logits[i]);
            if (i && random_u32() % 20 == 0) logits[i] = -INFINITY;
        }
        size_t n_history = random_u32() % 100;
        for (size_t i = 0; i < n_history; i++)
            history[i] = (int32_t)(random_u32() % (uint32_t)(n + 3)) - 1; /* some outside */
        linnet_logit_bias bias[3];
        linnet_sampling s = DEFAULTS;
        s.seed = random_u32();
        s.temperature = random_u32() % 8 ? (float)(0.05 + 2 * random_unit()) : 0;
        s.top_k = random_u32() % 2 ? 0 : (int)(random_u32() % (uint32_t)(n + 5));
        s.top_p = random_u32() % 2 ? 1 : (float)(1 - random_unit());
        s.min_p = random_u32() % 2 ? 0 : (float)(random_unit() * 0.5);
        s.repeat_penalty = random_u32() % 2 ? 1 : (float)(0.5 + random_unit());
        s.repeat_last = (int)(random_u32() % 120);
        s.n_bias = n > 3 ? random_u32() % 4 : 0;
        s.bias = s.n_bias ? bias : NULL;
        for (size_t i = 0; i < s.n_bias; i++) {
            bias[i].token = 1 + (int32_t)(random_u32() % (uint32_t)(n - 1));
            bias[i].bias = random_u32() % 4 ? random_logit(3) : -INFINITY;
        }
        uint32_t allowed[(MAX + 31) / 32];
        for (int i = 0; i < (n + 31) / 32; i++)
            allowed[i] = random_u32() | (cases % 3 ? 0 : random_u32());
        allowed[0] |= 1; /* which neither a bias nor -infinity takes away */
        if (random_u32() % 3 == 0) s.allowed = allowed;
        linnet_error err;
        assert_int_equal(sample_distribution(&s, logits, (size_t)n, 0, history, n_history, p, &err),
                         0);
        bool clear = reference(&s, logits, n, history, n_history, want);
        double sum = 0;
        for (int i = 0; i < n; i++) {
            sum += p[i];
            if (!clear) continue;
            assert_true((p[i] > 0) == (want[i] > 0));
            assert_true(fabs(p[i] - want[i]) <= 1e-12);
        }
        assert_true(fabs(sum - 1) < 1e-12);
        compared += clear;

        /* The token is where the cumulative distribution, in order of ids, passes u. */
        int32_t token = -1, again = -1;
        assert_int_equal(sample_token(&s, logits, (size_t)n, 0, history, n_history, &token, &err),
                         0);
        assert_int_equal(sample_token(&s, logits, (size_t)n, 0, history, n_history, &again, &err),
                         0);
        assert_int_equal(token, again);
        assert_true(token >= 0 && token < n && p[token] > 0);
        double below = 0, u = sample_uniform(s.seed, n_history);
        for (int i = 0; i < token; i++)
            below += p[i];
        assert_true(below <= u + 1e-12 && u < below + p[token] + 1e-12);
        sampled++;
    }
    assert_true(compared > 2800); /* few cases may hide behind "within rounding" */
    assert_int_equal(sampled, cases);
}

/* ---- transformers ------------------------------------------------------------------------ */

typedef struct {
    unsigned char *data;
    size_t n, at;
} bytes;

static void take(bytes *b, void *out, size_t n) {
    assert_true(n <= b->n - b->at);
    memcpy(out, b->data + b->at, n);
    b->at += n;
}

static void equals_transformers(void **state) {
    (void)state;
    FILE *f = fopen("tests/data/sample/transformers.bin", "rb");
    assert_non_null(f);
    bytes b = {malloc(1 << 20), 0, 0};
    assert_non_null(b.data);
    b.n = fread(b.data, 1, 1 << 20, f);
    fclose(f);
    char magic[4];
    uint32_t cases;
    take(&b, magic, 4);
    assert_memory_equal(magic, "LNSP", 4);
    take(&b, &cases, 4);
    assert_true(cases >= 200);
    for (uint32_t i = 0; i < cases; i++) {
        uint32_t n, n_history, n_bias, top_k, repeat_last;
        linnet_sampling s = DEFAULTS;
        float logits[512], want[512];
        int32_t history[64];
        linnet_logit_bias bias[4];
        double p[512], largest = 0;
        take(&b, &n, 4);
        take(&b, &n_history, 4);
        take(&b, &n_bias, 4);
        assert_true(n <= 512 && n_history <= 64 && n_bias <= 4);
        take(&b, &s.temperature, 4);
        take(&b, &top_k, 4);
        take(&b, &s.top_p, 4);
        take(&b, &s.min_p, 4);
        take(&b, &s.repeat_penalty, 4);
        take(&b, &repeat_last, 4);
        take(&b, logits, n * sizeof *logits);
        take(&b, history, n_history * sizeof *history);
        for (uint32_t k = 0; k < n_bias; k++) {
            take(&b, &bias[k].token, 4);
            take(&b, &bias[k].bias, 4);
        }
        take(&b, want, n * sizeof *want);
        s.top_k = (int)top_k;
        s.repeat_last = (int)repeat_last;
        s.bias = bias;
        s.n_bias = n_bias;
        linnet_error err;
        assert_int_equal(sample_distribution(&s, logits, n, n, history, n_history, p, &err), 0);
        for (uint32_t k = 0; k < n; k++) {
            if ((p[k] > 0) != (want[k] > 0))
                fail_msg("case %u: token %u is kept here %d, in transformers %d", i, k, p[k] > 0,
                         want[k] > 0);
            largest = fmax(largest, fabs(p[k] - (double)want[k]));
        }
        /* Bias and penalty are float32 here and float64 there. */
        if (largest > 1e-6) fail_msg("case %u: probabilities differ by %g", i, largest);
    }
    assert_int_equal(b.at, b.n);
    free(b.data);
}

/* ---- Drawn frequencies ------------------------------------------------------------------- */

static void frequencies_follow_the_distribution(void **state) {
    (void)state;
    enum { N = 24, DRAWS = 20000 };
    static const int32_t history[DRAWS];
    const struct {
        const char *name;
        linnet_sampling s;
    } settings[] = {
        {"temperature 1", {1, 1, 0, 1, 0, 1, 64, NULL, 0, NULL}},
        {"temperature 0.5", {2, 0.5f, 0, 1, 0, 1, 64, NULL, 0, NULL}},
        {"temperature 3", {3, 3, 0, 1, 0, 1, 64, NULL, 0, NULL}},
        {"top-k 5", {4, 1, 5, 1, 0, 1, 64, NULL, 0, NULL}},
        {"top-p 0.8", {5, 1, 0, 0.8f, 0, 1, 64, NULL, 0, NULL}},
        {"min-p 0.1", {6, 1, 0, 1, 0.1f, 1, 64, NULL, 0, NULL}},
        {"all together", {7, 1.5f, 10, 0.9f, 0.05f, 1.3f, 64, NULL, 0, NULL}},
        {"the largest seed", {UINT64_MAX, 1, 0, 1, 0, 1, 64, NULL, 0, NULL}},
    };
    float logits[N];
    for (int i = 0; i < N; i++)
        logits[i] = 2 * sinf((float)(i * i));
    for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
        const linnet_sampling *s = &settings[k].s;
        double p[N];
        int counts[N] = {0};
        /* The history is all token 0, so past the first draw the distribution stands. */
        assert_true(reference(s, logits, N, history, 1, p));
        for (size_t position = 1; position <= DRAWS; position++) {
            int32_t token;
            assert_int_equal(sample_token(s, logits, N, N, history, position, &token, NULL), 0);
            counts[token]++;
        }
        double chi = 0, rest_p = 0;
        int bins = 0, rest = 0;
        for (int i = 0; i < N; i++) {
            if (p[i] == 0) assert_int_equal(counts[i], 0);
            if (p[i] * DRAWS < 10) { /* too few for the approximation: one bin for all of them */
                rest_p += p[i];
                rest += counts[i];
                continue;
            }
            chi += pow(counts[i] - p[i] * DRAWS, 2) / (p[i] * DRAWS);
            bins++;
        }
        if (rest_p * DRAWS >= 5) {
            chi += pow(rest - rest_p * DRAWS, 2) / (rest_p * DRAWS);
            bins++;
        }
        assert_true(bins >= 3);
        /* The 99.9 % quantile of chi-square, Wilson and Hilferty 1931 (z = 3.0902). */
        double df = bins - 1, c = 2 / (9 * df);
        double critical = df * pow(1 - c + 3.0902 * sqrt(c), 3);
        if (chi > critical)
            fail_msg("%s: chi-square %.1f with %d bins, critical %.1f", settings[k].name, chi, bins,
                     critical);
    }
}

/* ---- Limits ------------------------------------------------------------------------------ */

enum { NV = 4 };
static const float FOUR[NV] = {1, 3, 2, 0};

typedef struct {
    const char *name;
    linnet_sampling s;
    linnet_status code;
    const char *says;
} setting_case;

static const linnet_logit_bias BIAS_HIGH = {4, 1}, BIAS_NEGATIVE = {-1, 1}, BIAS_NAN = {0, NAN},
                               BIAS_INF = {3, INFINITY}, BIAS_LAST = {3, 1e30f},
                               BIAS_OUT = {1, -INFINITY}, BIAS_LEAST = {0, -3.4e38f},
                               BIAS_MIN_ID = {INT32_MIN, 0}, BIAS_MAX_ID = {INT32_MAX, 0};

#define WITH(...)                                                                                  \
    { .temperature = 1, .top_p = 1, .repeat_penalty = 1, .repeat_last = 64, __VA_ARGS__ }
#define ARG LINNET_ERR_ARGUMENT

/* Designated initializers may repeat a field: the later one counts. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#endif
static const setting_case SETTINGS[] = {
    {"all at their defaults", LINNET_SAMPLING_DEFAULT, 0, NULL},
    {"seed 0", WITH(.seed = 0), 0, NULL},
    {"seed at its largest", WITH(.seed = UINT64_MAX), 0, NULL},
    {"temperature 0", WITH(.temperature = 0), 0, NULL},
    {"temperature -0", WITH(.temperature = -0.0f), 0, NULL},
    {"temperature at the least float", WITH(.temperature = 1e-45f), 0, NULL},
    {"temperature at its largest", WITH(.temperature = 10000), 0, NULL},
    {"temperature too large", WITH(.temperature = 10001), ARG, "temperature"},
    {"temperature negative", WITH(.temperature = -0.1f), ARG, "temperature"},
    {"temperature -least", WITH(.temperature = -1e-45f), ARG, "temperature"},
    {"temperature NaN", WITH(.temperature = NAN), ARG, "nan"},
    {"temperature infinite", WITH(.temperature = INFINITY), ARG, "inf"},
    {"temperature -infinite", WITH(.temperature = -INFINITY), ARG, "-inf"},
    {"top_k 0", WITH(.top_k = 0), 0, NULL},
    {"top_k 1", WITH(.top_k = 1), 0, NULL},
    {"top_k = all", WITH(.top_k = NV), 0, NULL},
    {"top_k beyond all", WITH(.top_k = NV + 1), 0, NULL},
    {"top_k at its largest", WITH(.top_k = INT32_MAX), 0, NULL},
    {"top_k negative", WITH(.top_k = -1), ARG, "top_k"},
    {"top_k at its least", WITH(.top_k = INT32_MIN), ARG, "top_k"},
    {"top_p 1", WITH(.top_p = 1), 0, NULL},
    {"top_p just below 1", WITH(.top_p = 0x1.fffffep-1f), 0, NULL},
    {"top_p at the least float", WITH(.top_p = 1e-45f), 0, NULL},
    {"top_p 0", WITH(.top_p = 0), ARG, "top_p must be in (0, 1]"},
    {"top_p just above 1", WITH(.top_p = 0x1.000002p0f), ARG, "top_p"},
    {"top_p negative", WITH(.top_p = -0.5f), ARG, "top_p"},
    {"top_p NaN", WITH(.top_p = NAN), ARG, "top_p"},
    {"top_p infinite", WITH(.top_p = INFINITY), ARG, "top_p"},
    {"min_p 0", WITH(.min_p = 0), 0, NULL},
    {"min_p at the least float", WITH(.min_p = 1e-45f), 0, NULL},
    {"min_p 1", WITH(.min_p = 1), 0, NULL},
    {"min_p just above 1", WITH(.min_p = 0x1.000002p0f), ARG, "min_p"},
    {"min_p negative", WITH(.min_p = -1e-45f), ARG, "min_p"},
    {"min_p NaN", WITH(.min_p = NAN), ARG, "min_p"},
    {"min_p infinite", WITH(.min_p = INFINITY), ARG, "min_p"},
    {"penalty 1", WITH(.repeat_penalty = 1), 0, NULL},
    {"penalty small", WITH(.repeat_penalty = 1e-6f), 0, NULL},
    {"penalty at its largest", WITH(.repeat_penalty = 3.4e38f), 0, NULL},
    {"penalty that overflows", WITH(.repeat_penalty = 1e-45f), LINNET_ERR_NUMERIC,
     "after logit bias, mask and repetition penalty"},
    {"penalty 0", WITH(.repeat_penalty = 0), ARG, "repeat_penalty"},
    {"penalty negative", WITH(.repeat_penalty = -1), ARG, "repeat_penalty"},
    {"penalty NaN", WITH(.repeat_penalty = NAN), ARG, "repeat_penalty"},
    {"penalty infinite", WITH(.repeat_penalty = INFINITY), ARG, "repeat_penalty"},
    {"repeat_last 0", WITH(.repeat_penalty = 2, .repeat_last = 0), 0, NULL},
    {"repeat_last at its largest", WITH(.repeat_penalty = 2, .repeat_last = INT32_MAX), 0, NULL},
    {"repeat_last negative", WITH(.repeat_last = -1), ARG, "repeat_last"},
    {"repeat_last at its least", WITH(.repeat_last = INT32_MIN), ARG, "repeat_last"},
    {"bias of the last token", WITH(.bias = &BIAS_LAST, .n_bias = 1), 0, NULL},
    {"bias -infinite", WITH(.bias = &BIAS_OUT, .n_bias = 1), 0, NULL},
    {"bias at its least", WITH(.bias = &BIAS_LEAST, .n_bias = 1), 0, NULL},
    {"bias past the last token", WITH(.bias = &BIAS_HIGH, .n_bias = 1), ARG,
     "token 4 is not in the model's vocabulary [0, 4)"},
    {"bias of token -1", WITH(.bias = &BIAS_NEGATIVE, .n_bias = 1), ARG, "token -1"},
    {"bias of the least id", WITH(.bias = &BIAS_MIN_ID, .n_bias = 1), ARG, "vocabulary"},
    {"bias of the largest id", WITH(.bias = &BIAS_MAX_ID, .n_bias = 1), ARG, "vocabulary"},
    {"bias NaN", WITH(.bias = &BIAS_NAN, .n_bias = 1), ARG, "token 0"},
    {"bias infinite", WITH(.bias = &BIAS_INF, .n_bias = 1), ARG, "token 3"},
    {"bias list NULL", WITH(.bias = NULL, .n_bias = 1), ARG, "NULL"},
    {"bias list without entries", WITH(.bias = &BIAS_NAN, .n_bias = 0), 0, NULL},
};
#pragma GCC diagnostic pop

static void settings_at_their_limits(void **state) {
    (void)state;
    const int32_t history[] = {1, 1, 2, 99, -5};
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) {
        const setting_case *c = &SETTINGS[i];
        linnet_error err = {0, ""};
        int32_t token = -7;
        linnet_status code = sample_token(&c->s, FOUR, NV, NV, history, 5, &token, &err);
        if (code != c->code) fail_msg("%s: status %d (%s)", c->name, code, err.text);
        if (code) {
            if (err.code != code || !strstr(err.text, c->says))
                fail_msg("%s: '%s' does not say '%s'", c->name, err.text, c->says);
            if (token != -7) fail_msg("%s: wrote a token in spite of the error", c->name);
            assert_int_equal(sample_token(&c->s, FOUR, NV, NV, history, 5, &token, NULL), code);
        } else if (token < 0 || token >= NV) {
            fail_msg("%s: token %d", c->name, token);
        }
    }
}

static int32_t pick(linnet_sampling s, const float *logits, size_t n) {
    int32_t token = -1;
    linnet_error err;
    if (sample_token(&s, logits, n, 0, NULL, 0, &token, &err)) fail_msg("%s", err.text);
    return token;
}

/* The number of tokens that can be drawn. */
static int kept(linnet_sampling s, const float *logits, size_t n) {
    double p[64];
    int count = 0;
    assert_int_equal(sample_distribution(&s, logits, n, 0, NULL, 0, p, NULL), 0);
    for (size_t i = 0; i < n; i++)
        count += p[i] > 0;
    return count;
}

static void greedy_takes_the_lowest_of_equals(void **state) {
    (void)state;
    const float ties[] = {1, 5, 5, -INFINITY, 5}, equal[] = {2, 2, 2}, one[] = {-1e30f};
    assert_int_equal(pick(DEFAULTS, ties, 5), 1);
    assert_int_equal(pick(DEFAULTS, equal, 3), 0);
    assert_int_equal(pick(DEFAULTS, one, 1), 0);
    const float zeros[] = {-0.0f, 0.0f};
    assert_int_equal(pick(DEFAULTS, zeros, 2), 0);
    linnet_sampling s = DEFAULTS;
    for (s.seed = 0; s.seed < 50; s.seed++) { /* top-k 1 and the least top-p are greedy too */
        linnet_sampling k = s, p = s, t = s;
        k.temperature = p.temperature = 1;
        k.top_k = 1;
        p.top_p = 1e-6f;
        t.temperature = 1e-45f;
        assert_int_equal(pick(k, ties, 5), 1);
        assert_int_equal(pick(p, ties, 5), 1);
        assert_int_equal(pick(t, FOUR, 4), 1);
    }
}

static void equal_logits_and_one_token(void **state) {
    (void)state;
    const float equal[10] = {0}, one[] = {12.5f};
    linnet_sampling s = DEFAULTS;
    s.temperature = 0.7f;
    assert_int_equal(kept(s, equal, 10), 10);
    assert_int_equal(kept(s, one, 1), 1);
    assert_int_equal(pick(s, one, 1), 0);
    s.min_p = 1; /* everything equals the best */
    assert_int_equal(kept(s, equal, 10), 10);
    s.top_p = 0.45f; /* 4.5 tokens of ten: the fifth crosses it */
    assert_int_equal(kept(s, equal, 10), 5);
    s.top_p = 0.5f; /* five of ten are exactly enough */
    assert_int_equal(kept(s, equal, 10), 5);
    s.top_p = 0.45f;
    s.top_k = 3; /* of three, 45 % are two */
    assert_int_equal(kept(s, equal, 10), 2);
    double p[10];
    assert_int_equal(sample_distribution(&s, equal, 10, 0, NULL, 0, p, NULL), 0);
    assert_true(p[0] == 0.5 && p[1] == 0.5 && p[2] == 0); /* lower ids first */
}

static void top_p_keeps_the_token_that_crosses(void **state) {
    (void)state;
    const float logits[] = {logf(0.5f), logf(0.3f), logf(0.15f), logf(0.05f)};
    const struct {
        float top_p;
        int kept;
    } cases[] = {{0.49f, 1}, {0.51f, 2}, {0.79f, 2}, {0.81f, 3}, {0.96f, 4}, {1, 4}};
    linnet_sampling s = DEFAULTS;
    s.temperature = 1;
    for (size_t i = 0; i < 6; i++) {
        s.top_p = cases[i].top_p;
        assert_int_equal(kept(s, logits, 4), cases[i].kept);
    }
}

static void rows_without_a_token_are_ignored(void **state) {
    (void)state;
    float logits[8] = {0, 1, 0, 0, 50, NAN, INFINITY, 50};
    linnet_sampling s = DEFAULTS;
    int32_t token = -1;
    assert_int_equal(sample_token(&s, logits, 8, 4, NULL, 0, &token, NULL), 0);
    assert_int_equal(token, 1);
    s.temperature = 5;
    for (s.seed = 0; s.seed < 200; s.seed++) {
        assert_int_equal(sample_token(&s, logits, 8, 4, NULL, 0, &token, NULL), 0);
        assert_in_range(token, 0, 3);
    }
    double p[8];
    assert_int_equal(sample_distribution(&s, logits, 8, 4, NULL, 0, p, NULL), 0);
    for (int i = 4; i < 8; i++)
        assert_true(p[i] == 0);
    /* A vocabulary larger than the output matrix: the rows decide. */
    assert_int_equal(sample_token(&s, logits, 4, 100, NULL, 0, &token, NULL), 0);
    assert_in_range(token, 0, 3);
}

static void logits_that_are_no_numbers(void **state) {
    (void)state;
    enum { N = 300 };
    static float logits[N];
    const float temperatures[] = {0, 1};
    linnet_error err;
    int32_t token = -1;
    for (int t = 0; t < 2; t++) {
        linnet_sampling s = DEFAULTS;
        s.temperature = temperatures[t];
        for (int at = 0; at < N; at += 13) {
            char row[32];
            snprintf(row, sizeof row, "row %d of", at);
            for (int i = 0; i < N; i++)
                logits[i] = (float)i;
            logits[at] = NAN;
            assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err),
                             LINNET_ERR_NUMERIC);
            assert_non_null(strstr(err.text, row));
            assert_non_null(strstr(err.text, "NaN"));
            logits[at] = -NAN;
            assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err),
                             LINNET_ERR_NUMERIC);
            logits[at] = INFINITY;
            assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err),
                             LINNET_ERR_NUMERIC);
            assert_non_null(strstr(err.text, row));
            assert_non_null(strstr(err.text, "+infinity"));
            /* Forbidding the token does not hide it. */
            linnet_logit_bias out = {at, -INFINITY};
            s.bias = &out;
            s.n_bias = 1;
            assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err),
                             LINNET_ERR_NUMERIC);
            s.n_bias = 0;
            uint32_t others[(N + 31) / 32];
            memset(others, 0xFF, sizeof others);
            others[at / 32] &= ~((uint32_t)1 << (at % 32));
            s.allowed = others;
            assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err),
                             LINNET_ERR_NUMERIC);
            assert_non_null(strstr(err.text, row));
            s.allowed = NULL;
        }
        for (int i = 0; i < N; i++)
            logits[i] = -INFINITY;
        assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err), LINNET_ERR_NUMERIC);
        assert_non_null(strstr(err.text, "all 300 rows are -infinity"));
        logits[N - 1] = -3e38f; /* one is left */
        assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err), 0);
        assert_int_equal(token, N - 1);
        linnet_logit_bias out = {N - 1, -INFINITY};
        s.bias = &out;
        s.n_bias = 1;
        assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err), LINNET_ERR_NUMERIC);
        assert_non_null(strstr(err.text, "after logit bias"));
        s.n_bias = 0;
        uint32_t mask[(N + 31) / 32] = {0};
        s.allowed = mask;
        assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err), LINNET_ERR_NUMERIC);
        assert_non_null(strstr(err.text, "no token is left"));
        mask[N / 32] = ~(uint32_t)0; /* bits past the last row mean nothing */
        assert_int_equal(sample_token(&s, logits, N, 0, NULL, 0, &token, &err), 0);
    }
    assert_int_equal(token, N - 1);
}

static void logits_at_the_ends_of_float(void **state) {
    (void)state;
    const float wide[] = {3.4e38f, -3.4e38f, 1e-45f, 3.3e38f};
    linnet_sampling s = DEFAULTS;
    s.temperature = 1;
    assert_int_equal(pick(s, wide, 4), 0);
    s.temperature = 10000;
    s.top_p = 0.9f;
    assert_int_equal(pick(s, wide, 4), 0);
    /* Far below the best, but within reach of a double: a token that weighs e^-700. */
    const float deep[] = {0, -700, -709};
    double p[3];
    s = DEFAULTS;
    s.temperature = 1;
    assert_int_equal(sample_distribution(&s, deep, 3, 0, NULL, 0, p, NULL), 0);
    assert_true(fabs(p[1] / exp(-700) - 1) < 1e-12);
    assert_true(p[2] == 0);
}

static void weights_are_exponentials(void **state) {
    (void)state;
    linnet_sampling s = DEFAULTS;
    s.temperature = 1;
    for (int i = 0; i < 20000; i++) {
        const float logits[] = {0, (float)i * -0.035f}; /* down to -700 */
        double p[2];
        assert_int_equal(sample_distribution(&s, logits, 2, 0, NULL, 0, p, NULL), 0);
        /* Six roundings of 2^-53 and the series' rest. */
        assert_true(fabsl(p[1] / p[0] / expl((long double)logits[1]) - 1) < 7e-16L);
    }
}

static void penalty_and_bias(void **state) {
    (void)state;
    const float logits[] = {4, -4, 0, 3.9f};
    const int32_t history[] = {3, 0, 1, 0, 0, 2};
    linnet_sampling s = DEFAULTS;
    int32_t token;
    s.repeat_penalty = 2;
    s.repeat_last = 5; /* token 3 is one too old; token 0 counts once: 4 -> 2, -4 -> -8 */
    s.temperature = 1;
    double p[4], z = exp(2) + exp(-8) + exp(0) + exp((double)3.9f);
    assert_int_equal(sample_distribution(&s, logits, 4, 0, history, 6, p, NULL), 0);
    assert_true(fabs(p[0] - exp(2) / z) < 1e-12 && fabs(p[1] - exp(-8) / z) < 1e-12);
    assert_true(fabs(p[2] - 1 / z) < 1e-12 && fabs(p[3] - exp((double)3.9f) / z) < 1e-12);
    s.temperature = 0; /* greedy obeys it as well */
    assert_int_equal(sample_token(&s, logits, 4, 0, history, 6, &token, NULL), 0);
    assert_int_equal(token, 3);
    s.repeat_last = 6; /* 3.9 -> 1.95 */
    assert_int_equal(sample_token(&s, logits, 4, 0, history, 6, &token, NULL), 0);
    assert_int_equal(token, 0);
    /* The bias comes before the penalty: (-4 + 6) / 2 = 1; two entries add up. */
    const linnet_logit_bias bias[] = {{1, 2}, {1, 4}};
    s.bias = bias;
    s.n_bias = 2;
    s.temperature = 1;
    z = exp(2) + exp(1) + exp(0) + exp((double)(3.9f / 2));
    assert_int_equal(sample_distribution(&s, logits, 4, 0, history, 6, p, NULL), 0);
    assert_true(fabs(p[1] - exp(1) / z) < 1e-12);
    assert_true(logits[0] == 4 && logits[1] == -4); /* the session's logits are not touched */
}

static void drawn_by_seed_and_position_alone(void **state) {
    (void)state;
    enum { N = 1000 };
    static float logits[N];
    for (int i = 0; i < N; i++)
        logits[i] = random_logit(1);
    int32_t zeros[40] = {0}, ones[40];
    for (int i = 0; i < 40; i++)
        ones[i] = 1;
    linnet_sampling s = DEFAULTS, whole = DEFAULTS;
    s.temperature = whole.temperature = 1;
    whole.top_k = N; /* the other way to name all tokens */
    int by_position = 0, by_seed = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        int32_t a, b, c, d, e;
        s.seed = whole.seed = seed;
        assert_int_equal(sample_token(&s, logits, N, N, zeros, seed, &a, NULL), 0);
        assert_int_equal(sample_token(&s, logits, N, N, ones, seed, &b, NULL), 0);
        assert_int_equal(sample_token(&whole, logits, N, N, zeros, seed, &c, NULL), 0);
        assert_int_equal(a, b);
        assert_int_equal(a, c);
        assert_int_equal(sample_token(&s, logits, N, N, zeros, (seed + 1) % 40, &d, NULL), 0);
        s.seed++;
        assert_int_equal(sample_token(&s, logits, N, N, zeros, seed, &e, NULL), 0);
        by_position += a != d;
        by_seed += a != e;
    }
    assert_true(by_position >= 35 && by_seed >= 35);
}

static void arguments_that_are_missing(void **state) {
    (void)state;
    linnet_sampling s = DEFAULTS;
    linnet_error err;
    int32_t token = -1;
    assert_int_equal(sample_token(NULL, FOUR, 4, 4, NULL, 0, &token, &err), ARG);
    assert_non_null(strstr(err.text, "settings"));
    assert_int_equal(sample_token(&s, NULL, 4, 4, NULL, 0, &token, &err), ARG);
    assert_non_null(strstr(err.text, "logits"));
    assert_int_equal(sample_token(&s, FOUR, 4, 4, NULL, 1, &token, &err), ARG);
    assert_non_null(strstr(err.text, "history"));
    assert_int_equal(sample_token(&s, FOUR, 0, 0, NULL, 0, &token, &err), ARG);
    assert_non_null(strstr(err.text, "rows"));
    assert_int_equal(sample_token(&s, FOUR, (size_t)1 << 40, 0, NULL, 0, &token, &err), ARG);
    assert_int_equal(token, -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(uniform_is_fixed_by_seed_and_position),
        cmocka_unit_test(equals_reference_on_random_settings),
        cmocka_unit_test(equals_transformers),
        cmocka_unit_test(frequencies_follow_the_distribution),
        cmocka_unit_test(settings_at_their_limits),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(equal_logits_and_one_token),
        cmocka_unit_test(top_p_keeps_the_token_that_crosses),
        cmocka_unit_test(rows_without_a_token_are_ignored),
        cmocka_unit_test(logits_that_are_no_numbers),
        cmocka_unit_test(logits_at_the_ends_of_float),
        cmocka_unit_test(weights_are_exponentials),
        cmocka_unit_test(penalty_and_bias),
        cmocka_unit_test(drawn_by_seed_and_position_alone),
        cmocka_unit_test(arguments_that_are_missing),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
