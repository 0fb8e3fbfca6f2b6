/* BASED's mixers over long sequences, against float64 states (tests/golden/make_based.py), and what
 * a broken file of such a model is told. That the mixers match their formulas is in test_forward.c,
 * and themselves however a prompt is cut in test_grid.c. */
#include "../model.h"
#include "broken.h"

static const char *const names[] = {"based_hybrid", "based_conv_4", "based_taylor_8",
                                    "based_taylor_16"};
enum { N_NAMES = sizeof names / sizeof *names, LONG = 4096 };

static linnet_model *open_named(const char *name, linnet_activations act) {
    char path[128];
    snprintf(path, sizeof path, "tests/data/models/%s.gguf", name);
    return open_model(path, &(linnet_model_options){.activations = act, .threads = 1});
}

/* Every layer's state after 4,096 tokens is within 1e-3 (of its RMS) of the float64 one. */
static void states_equal_float64_after_4096_tokens(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i++) {
        linnet_model *m = open_named(names[i], LINNET_ACT_EXACT);
        linnet_session *s = open_session(m, &(linnet_session_options){.ctx = LONG});
        feed_long(s, 0, LONG, 500, m->cfg.n_rows);
        char path[128];
        size_t rows, cols, at = 0;
        snprintf(path, sizeof path, "tests/data/based_states/%s.npy", names[i]);
        float *expected = read_npy(path, &rows, &cols);
        for (int l = 0; l < m->cfg.n_layers; l++) {
            const mixer_ops *x = m->layers[l].mixer;
            if (!x->state_bytes) continue;
            size_t n = x->state_bytes(m, m->layers[l].mixer_weights) / sizeof(float);
            assert_true(at + n <= cols);
            const float *got = (const float *)(s->state + m->layers[l].state_at);
            state_near(names[i], l, got, expected + at, n);
            at += n;
        }
        assert_int_equal(at, cols);
        free(expected);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* z[0] of every head counts the tokens. */
static void taylor_counts_tokens(void **state) {
    (void)state;
    linnet_model *m = open_named("based_taylor_8", LINNET_ACT_EXACT);
    linnet_session *s = open_session(m, &(linnet_session_options){0});
    feed_long(s, 0, 77, 10, m->cfg.n_rows);
    const size_t heads = 3, moments = 45, values = 12;
    for (size_t h = 0; h < heads; h++) {
        const float *z = (const float *)(s->state + m->layers[1].state_at) +
                         heads * moments * values + h * moments;
        assert_true(z[0] == 77);
    }
    linnet_session_free(s);
    linnet_model_close(m);
}

/* ---- Broken files -------------------------------------------------------------------------------
 */

static void broken_files_are_refused(void **state) {
    (void)state;
    const linnet_status format = LINNET_ERR_FORMAT, unsupported = LINNET_ERR_UNSUPPORTED;
    const breakage hybrid[] = {
        {"linnet.based.head_count", "linnet.based.head_counx", 0, format,
         "\"linnet.based.head_count\" is missing"},
        {"linnet.based.head_count", NULL, 0, format, "is 0, expected 1 to"},
        {"linnet.based.head_count", NULL, 100000, format, "100000 heads of 16 features"},
        {"linnet.based.head_count", NULL, 3, format,
         "blk.1.attn_q.weight: expected shape [32, 48], found [32, 32]"},
        {"linnet.based.feature_length", NULL, 65, format, "is 65, expected 1 to 64"},
        {"linnet.based.feature_length", NULL, 8, format, "attn_q.weight: expected shape [32, 16]"},
        {"linnet.based.value_length", NULL, 17, format, "attn_v.weight: expected shape [32, 34]"},
        {"linnet.based.epsilon", NULL, bits(-1), format, "epsilon is -1, expected 0 to 1"},
        {"linnet.based.epsilon", NULL, bits(NAN), format, "is NaN, expected a finite number"},
        {"linnet.shortconv.l_cache", NULL, 0, format, "is 0, expected 1 to 64"},
        {"linnet.shortconv.l_cache", NULL, 4, format,
         "blk.0.shortconv.conv.weight: expected shape [4, 64, 1], found [3, 64, 1, 1]"},
        {"linnet.shortconv.inner_length", NULL, 63, format,
         "blk.0.shortconv.in_proj.weight: expected shape [32, 126], found [32, 128]"},
        {"linnet.shortconv.inner_length", "linnet.shortconv.inner_lengtx", 0, format,
         "\"linnet.shortconv.inner_length\" is missing"},
        {"blk.1.attn_v.weight", "blk.1.attn_x.weight", 0, format, "blk.1.attn_v.weight is missing"},
        {"blk.0.shortconv.conv.weight", "blk.0.shortconv.cone.weight", 0, format,
         "blk.0.shortconv.conv.weight is missing"},
        {"blk.0.shortconv.in_proj.bias", "blk.0.shortconv.in_proj.bixs", 0, unsupported,
         "blk.0.shortconv.in_proj.bixs is not part of the architecture"},
        {"based_taylor", "based_taylos", 0, unsupported, "linnet.mixers names 'based_taylos'"},
    };
    for (size_t i = 0; i < sizeof hybrid / sizeof *hybrid; i++)
        check_breakage("based_hybrid", &hybrid[i], 0);
    const breakage gated[] = {
        {"sigmoid", "sigmoif", 0, unsupported,
         "linnet.feed_forward.activation is 'sigmoif', expected silu, gelu, sigmoid or "
         "powlu"},
    };
    check_breakage("based_slide_112", &gated[0], 0);
}

/* The convolution's projections are matrices like others; its taps are not. */
static void quantized_models_run(void **state) {
    (void)state;
    char path[] = "/tmp/linnet_based_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    linnet_error err;
    if (linnet_quantize("tests/data/models/based_hybrid.gguf", path, "q8_0", NULL, &err))
        fail_msg("%s", err.text);
    linnet_model *m = open_model(path, &(linnet_model_options){.threads = 1});
    unlink(path);
    int matrices = 0, taps = 0;
    for (size_t i = 0; i < linnet_model_get_info(m)->n_tensors; i++) {
        const char *type, *name = linnet_model_tensor(m, i, &type, (uint64_t[4]){0}, NULL);
        if (strstr(name, "shortconv.conv.weight")) {
            assert_string_equal(type, "f32");
            taps++;
        } else if (strstr(name, "_proj.weight") || strstr(name, "attn_q.weight")) {
            assert_string_equal(type, "q8_0");
            matrices++;
        }
    }
    assert_int_equal(taps, 2);
    assert_int_equal(matrices, 2 * 2 + 3);
    linnet_session *s = open_session(m, &(linnet_session_options){0});
    feed_long(s, 0, 100, 33, m->cfg.n_rows);
    linnet_session_free(s);
    linnet_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_equal_float64_after_4096_tokens),
        cmocka_unit_test(taylor_counts_tokens),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(quantized_models_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
