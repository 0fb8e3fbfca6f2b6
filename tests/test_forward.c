/* The forward pass against upstream's logits (tests/golden/make_models.py), and against itself:
 * however the prompt is cut, whatever the threads, instruction set, mapping or neighbours, the bits
 * are equal. */
#include "support.h"

#include <glob.h>

/* Every tests/data/models/NAME.logits.npy, with NAME.gguf and NAME.ids beside it. */
enum { MAX_NAMES = 128, MAX_IDS = 512 };
static char names[MAX_NAMES][64];
static int n_names;

static void find_names(void) {
    static const char folder[] = "tests/data/models/", suffix[] = ".logits.npy";
    glob_t found;
    assert_int_equal(glob("tests/data/models/*.logits.npy", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc && n_names < MAX_NAMES; i++)
        snprintf(names[n_names++], sizeof *names, "%.*s",
                 (int)(strlen(found.gl_pathv[i]) - strlen(folder) - strlen(suffix)),
                 found.gl_pathv[i] + strlen(folder));
    globfree(&found);
}

typedef struct {
    char path[256];
    int32_t ids[MAX_IDS];
    size_t n, rows, width;
    float *logits;
} golden;

static golden load(const char *name) {
    golden g;
    char path[256];
    snprintf(g.path, sizeof g.path, "tests/data/models/%s.gguf", name);
    snprintf(path, sizeof path, "tests/data/models/%s.ids", name);
    g.n = read_ids(path, g.ids, MAX_IDS);
    snprintf(path, sizeof path, "tests/data/models/%s.logits.npy", name);
    g.logits = read_npy(path, &g.rows, &g.width);
    assert_int_equal(g.rows, g.n);
    return g;
}

static float *run(const golden *g, linnet_model_options o, linnet_session_options so,
                  size_t chunk) {
    linnet_model *m = open_model(g->path, &o);
    linnet_session *s = open_session(m, &so);
    assert_int_equal(linnet_model_get_info(m)->n_rows, g->width);
    float *out = malloc(g->n * g->width * sizeof *out);
    feed_all(s, g->ids, g->n, chunk, g->width, out);
    assert_memory_equal(linnet_session_logits(s), out + (g->n - 1) * g->width,
                        g->width * sizeof *out);
    assert_int_equal(linnet_session_state_bytes(s), linnet_model_state_bytes(m, so.kv, g->n));
    linnet_session_free(s);
    linnet_model_close(m);
    return out;
}

/* max |out - logits| / rms(logits) */
static double relative_error(const golden *g, const float *out) {
    double worst = 0, square = 0;
    for (size_t i = 0; i < g->n * g->width; i++) {
        double d = fabs((double)out[i] - g->logits[i]);
        worst = d > worst || isnan(d) ? d : worst;
        square += (double)g->logits[i] * g->logits[i];
    }
    return worst / sqrt(square / (double)(g->n * g->width));
}

/* Exact path: 1e-4 of the logits' RMS. */
static void exact_equals_upstream(void **state) {
    golden g = load(*state);
    linnet_model_options o = {.activations = LINNET_ACT_EXACT};
    float *out = run(&g, o, (linnet_session_options){0}, 0);
    double error = relative_error(&g, out);
    if (!(error <= 1e-4)) fail_msg("%s: error %g of the logits' RMS", g.path, error);
    free(out);
    free(g.logits);
}

/* 16-bit activations and f16 KV: 1e-2 of the RMS; 8-bit ones and q8_0 KV are near too. */
static void faster_paths_are_near(void **state) {
    golden g = load(*state);
    linnet_model_options o = {.activations = LINNET_ACT_AUTO};
    float *out = run(&g, o, (linnet_session_options){0}, 0);
    double error = relative_error(&g, out);
    if (!(error <= 1e-2)) fail_msg("%s: auto: error %g of the logits' RMS", g.path, error);
    free(out);
    o.activations = LINNET_ACT_Q8;
    out = run(&g, o, (linnet_session_options){.kv = LINNET_KV_F32}, 0);
    error = relative_error(&g, out);
    if (!(error <= 0.3)) fail_msg("%s: q8: error %g of the logits' RMS", g.path, error);
    free(out);
    free(g.logits);
}

/* Every way to the same logits, bit for bit, in both precisions. */
static void all_ways_are_equal(void **state) {
    static const size_t chunks[] = {1, 2, 7, 8, 63, 64, 65};
    golden g = load(*state);
    for (int act = LINNET_ACT_AUTO; act <= LINNET_ACT_EXACT; act++) {
        linnet_model_options o = {.activations = (linnet_activations)act, .threads = 1};
        linnet_session_options so = {0};
        size_t bytes = g.n * g.width * sizeof(float);
        float *first = run(&g, o, so, 0);
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            float *out = run(&g, o, so, chunks[c]);
            if (memcmp(out, first, bytes)) fail_msg("%s: chunks of %zu differ", g.path, chunks[c]);
            free(out);
        }
        for (int threads = 2; threads <= 8; threads += 3) {
            o.threads = threads;
            float *out = run(&g, o, so, 9);
            if (memcmp(out, first, bytes)) fail_msg("%s: %d threads differ", g.path, threads);
            free(out);
        }
        o.no_mmap = true;
        float *out = run(&g, o, so, 0);
        if (memcmp(out, first, bytes)) fail_msg("%s: no_mmap differs", g.path);
        free(out);
        static const char *const isas[] = {"generic", "avx2", "avx512"};
        for (int i = 0; i < 3; i++) {
            linnet_model *probe;
            o.isa = isas[i];
            if (linnet_model_open(&probe, g.path, &o, NULL)) continue; /* not on this CPU */
            linnet_model_close(probe);
            out = run(&g, o, so, 50);
            if (memcmp(out, first, bytes)) fail_msg("%s: %s differs", g.path, isas[i]);
            free(out);
        }
        free(first);
    }
    free(g.logits);
}

/* Sessions at mixed depths in one forward, each bitwise as alone. */
static void batches_are_equal(void **state) {
    golden g = load(*state);
    linnet_model_options o = {.threads = 2};
    linnet_model *m = open_model(g.path, &o);
    enum { SESSIONS = 3 };
    const size_t split[SESSIONS] = {5, 1, 17}; /* tokens of each per round */
    float *alone = run(&g, o, (linnet_session_options){0}, 0), *rows[SESSIONS];
    rows_at at[SESSIONS];
    linnet_session *s[SESSIONS];
    size_t fed[SESSIONS] = {0};
    for (int i = 0; i < SESSIONS; i++) {
        s[i] = open_session(m, NULL);
        rows[i] = calloc(g.n * g.width, sizeof(float));
        at[i] = (rows_at){rows[i], g.width};
    }
    for (;;) {
        linnet_item items[SESSIONS];
        size_t n = 0;
        for (int i = 0; i < SESSIONS; i++) {
            size_t some = g.n - fed[i] < split[i] ? g.n - fed[i] : split[i];
            if (!some) continue;
            items[n++] =
                (linnet_item){s[i], g.ids + fed[i], some, LINNET_LOGITS_ALL, collect_rows, &at[i]};
            fed[i] += some;
        }
        if (!n) break;
        linnet_error err;
        if (linnet_forward(items, n, NULL, NULL, &err)) fail_msg("%s", err.text);
    }
    for (int i = 0; i < SESSIONS; i++) {
        if (memcmp(rows[i], alone, g.n * g.width * sizeof(float)))
            fail_msg("%s: session %d of the batch differs", g.path, i);
        free(rows[i]);
        linnet_session_free(s[i]);
    }
    linnet_model_close(m);
    free(alone);
    free(g.logits);
}

static struct CMUnitTest tests[4 * MAX_NAMES];
static size_t n_tests;

static void add(const char *what, CMUnitTestFunction f) {
    static char test_names[4 * MAX_NAMES][96];
    for (int i = 0; i < n_names; i++) {
        char *name = test_names[n_tests];
        snprintf(name, sizeof *test_names, "%.60s_%.30s", names[i], what);
        tests[n_tests++] = (struct CMUnitTest){name, f, NULL, NULL, names[i]};
    }
}

int main(void) {
    find_names();
    add("exact", exact_equals_upstream);
    add("near", faster_paths_are_near);
    add("all_ways", all_ways_are_equal);
    add("batches", batches_are_equal);
    return _cmocka_run_group_tests("forward", tests, n_tests, NULL, NULL);
}
