/* The delta rule over long sequences, against float64 states (tests/golden/make_delta.py), and what
 * a broken file of such a model is told. That the mixers match upstream's formulas is in
 * test_forward.c, and themselves however a prompt is cut in test_grid.c. */
#include "../model.h"
#include "support.h"

#include <unistd.h>

static const char *const names[] = {
    "delta_relu_sum_no_conv", "delta_identity_sum_wide", "delta_elu_twice_beta", "delta_odd_heads",
    "delta_hybrid_list",      "gated_delta_groups",      "gated_delta_hybrid"};
enum { N_NAMES = sizeof names / sizeof *names, LONG = 4096 };

static linnet_model *open_named(const char *name, linnet_activations act, int threads) {
    char path[128];
    snprintf(path, sizeof path, "tests/data/models/%s.gguf", name);
    return open_model(path, &(linnet_model_options){.activations = act, .threads = threads});
}

/* As make_delta.py makes them. */
static int32_t long_id(uint64_t t, int vocab) {
    return (int32_t)((t * t * 7 + t * 3 + t / 11) % (uint64_t)vocab);
}

static void feed_long(linnet_session *s, uint64_t from, uint64_t to, uint64_t chunk, int vocab) {
    int32_t ids[512];
    linnet_error err;
    for (uint64_t t = from; t < to; t += chunk) {
        uint64_t n = to - t < chunk ? to - t : chunk;
        for (uint64_t i = 0; i < n; i++)
            ids[i] = long_id(t + i, vocab);
        if (linnet_feed(s, ids, n, LINNET_LOGITS_LAST, &err))
            fail_msg("token %d: %s", (int)t, err.text);
    }
}

/* The state of every delta-rule layer after 4,096 tokens: within 1e-3 of the float64 one. */
static void states_equal_float64_after_4096_tokens(void **state) {
    (void)state;
    for (int i = 0; i < N_NAMES; i++) {
        linnet_model *m = open_named(names[i], LINNET_ACT_EXACT, 1);
        linnet_session *s = open_session(m, &(linnet_session_options){.ctx = LONG});
        feed_long(s, 0, LONG, 500, m->cfg.n_rows);
        char path[128];
        size_t rows, cols, layer = 0;
        snprintf(path, sizeof path, "tests/data/delta_states/%s.npy", names[i]);
        float *expected = read_npy(path, &rows, &cols);
        for (int l = 0; l < m->cfg.n_layers; l++) {
            if (!m->layers[l].mixer->state_bytes) continue;
            const float *got = (const float *)(s->state + m->layers[l].state_at);
            const float *want = expected + layer++ * cols;
            double error = 0, square = 0;
            for (size_t j = 0; j < cols; j++) {
                error += pow((double)got[j] - want[j], 2);
                square += pow(want[j], 2);
            }
            assert_true(square > 0);
            if (!(sqrt(error / square) <= 1e-3))
                fail_msg("%s: layer %d: state error %g", names[i], l, sqrt(error / square));
        }
        assert_int_equal(layer, rows);
        free(expected);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* ---- Broken files -------------------------------------------------------------------------------
 */

typedef struct {
    char *data;
    size_t n;
} bytes;

static bytes read_file(const char *name) {
    char path[128];
    bytes b = {malloc(1 << 20), 0};
    snprintf(path, sizeof path, "tests/data/models/%s.gguf", name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot be opened", path);
    b.n = fread(b.data, 1, 1 << 20, f);
    fclose(f);
    return b;
}

/* Where a whole string of the file begins: after its length. */
static char *find(bytes b, const char *text) {
    uint64_t n = strlen(text);
    for (char *at = b.data; (at = memmem(at, b.n - (size_t)(at - b.data), text, n)); at++)
        if (!memcmp(at - sizeof n, &n, sizeof n)) return at;
    fail_msg("%s is not in the file", text);
    return NULL;
}

/* What opening a file says after a change: `text` is replaced by `other` of the same length, or
 * (other NULL) the four bytes of the number that follows the key `text` become `value`. */
typedef struct {
    const char *text, *other;
    uint32_t value;
    linnet_status status;
    const char *says;
} breakage;

static void check_breakage(const char *name, const breakage *c) {
    char path[] = "/tmp/linnet_delta_XXXXXX";
    bytes b = read_file(name);
    char *at = find(b, c->text);
    if (c->other)
        memcpy(at, c->other, strlen(c->other));
    else
        memcpy(at + strlen(c->text) + 4, &c->value, 4);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b.data, b.n), b.n);
    close(fd);
    linnet_model *m;
    linnet_error err;
    linnet_status s = linnet_model_open(&m, path, NULL, &err);
    unlink(path);
    free(b.data);
    if (s != c->status || !strstr(err.text, c->says))
        fail_msg("%s: %s: status %d, \"%s\"; expected %d, \"%s\"", name, c->text, (int)s,
                 s ? err.text : "", (int)c->status, c->says);
}

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static void broken_files_are_refused(void **state) {
    (void)state;
    const linnet_status format = LINNET_ERR_FORMAT, unsupported = LINNET_ERR_UNSUPPORTED;
    const breakage gated[] = {
        {"linnet.delta.head_count", "linnet.delta.head_counx", 0, format,
         "layer 0 is a delta-rule layer, but metadata key linnet.delta.head_count is missing"},
        {"linnet.delta.head_count", NULL, 0, format,
         "linnet.delta.head_count\" is 0, expected 1 to"},
        {"linnet.delta.value_head_count", NULL, 5, format,
         "linnet.delta.value_head_count is 5, expected a multiple of head_count 2"},
        {"linnet.delta.key_length", "linnet.delta.key_lengtx", 0, format,
         "linnet.delta.key_length\" is missing"},
        {"linnet.delta.key_length", NULL, 5000, format, "is 5000, expected 1 to 4096"},
        {"linnet.delta.key_length", NULL, 12, format,
         "attn_qkv.weight: expected shape [32, 162], found [32, 158]"},
        {"linnet.delta.value_length", NULL, 20, format, "attn_qkv.weight: expected shape"},
        {"linnet.delta.conv_kernel", NULL, 33, format, "is 33, expected 1 to 32"},
        {"linnet.delta.conv_kernel", NULL, 3, format, "ssm_conv1d.weight: expected shape [3, "},
        {"linnet.delta.beta_scale", NULL, bits(2.5f), format, "is 2.5, expected 0 to 2"},
        {"linnet.delta.beta_scale", NULL, bits(NAN), format, "is NaN, expected a finite number"},
        {"linnet.delta.norm_epsilon", NULL, bits(-1), format, "is -1, expected 0 to 1"},
        {"sigmoid", "sigmoif", 0, unsupported,
         "gate_activation is 'sigmoif', expected one of silu sigmoid"},
        {"blk.1.ssm_a", "blk.1.ssm_b", 0, format, "tensor blk.1.ssm_a is missing"},
        {"blk.1.ssm_dt.bias", "blk.1.ssm_dx.bias", 0, format, "blk.1.ssm_dt.bias is missing"},
        {"blk.1.ssm_norm.weight", "blk.1.ssm_nork.weight", 0, format,
         "blk.1.ssm_norm.weight is missing"},
        {"blk.0.ssm_beta.weight", "blk.0.ssm_bexx.weight", 0, format,
         "blk.0.ssm_beta.weight is missing"},
        {"blk.0.ssm_conv1d.weight", "blk.0.ssm_conv2d.weight", 0, unsupported,
         "blk.0.ssm_conv2d.weight is not part of the architecture"},
        {"gated_delta_net", "gated_delta_nex", 0, unsupported,
         "linnet.mixers names 'gated_delta_nex'"},
    };
    for (size_t i = 0; i < sizeof gated / sizeof *gated; i++)
        check_breakage("gated_delta_groups", &gated[i]);
    const breakage plain[] = {
        {"identity", "identitx", 0, unsupported,
         "qk_activation is 'identitx', expected one of silu relu elu identity"},
        {"blk.0.attn_gate.weight", "blk.0.ssm_alpha.weight", 0, unsupported,
         "blk.0.ssm_alpha.weight is not part of the architecture"},
    };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        check_breakage("delta_identity_sum_wide", &plain[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_equal_float64_after_4096_tokens),
        cmocka_unit_test(broken_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
