/* The forward pass against upstream's logits (tests/golden/make_models.py). That it equals itself
 * however the prompt is cut, whatever the threads or neighbours, is in test_grid.c. */
#include "each_model.h"

enum { MAX_IDS = 512 };

/* A tests/data/models/NAME.logits.npy, with NAME.gguf and NAME.ids beside it. */
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

int main(void) {
    find_names(".logits.npy");
    add("exact", exact_equals_upstream);
    add("near", faster_paths_are_near);
    return _cmocka_run_group_tests("forward", tests, n_tests, NULL, NULL);
}
