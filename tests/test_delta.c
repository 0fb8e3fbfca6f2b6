/* The delta rule over long sequences, against float64 states (tests/golden/make_delta.py), and what
 * a broken file of such a model is told. That the mixers match upstream's formulas is in
 * test_forward.c, and themselves however a prompt is cut in test_grid.c. */
#include "../model.h"
#include "broken.h"
#include "build_gguf.h"

static const char *const names[] = {
    "delta_relu_sum_no_conv", "delta_identity_sum_wide", "delta_elu_twice_beta",
    "delta_odd_heads",        "delta_hybrid_list",       "delta_hybrid_shapes",
    "delta_conv_bias_powlu",  "gated_delta_groups",      "gated_delta_hybrid"};
enum { N_NAMES = sizeof names / sizeof *names, LONG = 4096 };

static linnet_model *open_named(const char *name, linnet_activations act, int threads) {
    char path[128];
    snprintf(path, sizeof path, "tests/data/models/%s.gguf", name);
    return open_model(path, &(linnet_model_options){.activations = act, .threads = threads});
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
            state_near(names[i], l, got, expected + layer++ * cols, cols);
        }
        assert_int_equal(layer, rows);
        free(expected);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* ---- Broken files -------------------------------------------------------------------------------
 */

/* The file with `kv`, one more key and value of `n` bytes, and another that keeps alignment. */
static void check_with_key(const char *name, const void *kv, size_t n, linnet_status status,
                           const char *says) {
    enum { HEAD = 24, PAD = 256 };
    bytes file = read_file(name), b = {calloc(1, file.n + PAD), file.n + PAD};
    uint64_t keys;
    memcpy(b.data, file.data, HEAD);
    memcpy(&keys, b.data + 16, 8);
    keys += 2;
    memcpy(b.data + 16, &keys, 8);
    memcpy(b.data + HEAD, kv, n);
    buf pad = {0};
    char text[PAD] = "";
    memset(text, 'x', PAD - n - 23);
    put_kv_str(&pad, "pad", text);
    assert_int_equal(n + pad.n, PAD);
    memcpy(b.data + HEAD + n, pad.p, pad.n);
    memcpy(b.data + HEAD + PAD, file.data + HEAD, file.n - HEAD);
    free(pad.p);
    free(file.data);
    check_opens_with(name, "one more key", b, status, says);
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
        {"blk.0.ssm_conv1d.weight", "blk.0.ssm_conv2d.weight", 0, format,
         "blk.0.ssm_conv1d.weight is missing"},
        {"blk.0.attn_gate.weight", "blk.0.attn_gatx.weight", 0, format,
         "tensor blk.0.attn_gate.weight is missing, but layer 1 has one"},
        {"blk.1.attn_gate.weight", "blk.1.attn_gatx.weight", 0, format,
         "tensor blk.1.attn_gate.weight is missing, but layer 0 has one"},
        {"gated_delta_net", "gated_delta_nex", 0, unsupported,
         "linnet.mixers names 'gated_delta_nex'"},
    };
    for (size_t i = 0; i < sizeof gated / sizeof *gated; i++)
        check_breakage("gated_delta_groups", &gated[i], 0);
    const breakage plain[] = {
        {"blk.1.ssm_out.weight", "blk.1.ssm_oux.weight", 0, format,
         "blk.1.ssm_out.weight is missing"},
        {"identity", "identitx", 0, unsupported,
         "qk_activation is 'identitx', expected one of silu relu elu identity"},
    };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        check_breakage("delta_identity_sum_wide", &plain[i], 0);
    const breakage biased[] = {
        {"blk.1.ssm_conv1d.bias", "blk.1.ssm_conv1d.bixx", 0, format,
         "tensor blk.1.ssm_conv1d.bias is missing, but layer 0 has one"},
        {"blk.1.ssm_beta.weight", "blk.1.ssm_bexx.weight", 0, format,
         "tensor blk.1.ssm_beta.weight is missing, but layer 0 has one"},
    };
    for (size_t i = 0; i < sizeof biased / sizeof *biased; i++)
        check_breakage("delta_conv_bias_powlu", &biased[i], 0);
    static const size_t element = 0, entries = 12; /* of an array, behind its type */
    const struct {
        breakage b;
        size_t skip;
    } shapes[] = {
        {{"linnet.attention.head_count", NULL, 0, format,
          "linnet.attention.head_count of layer 1 is 0, expected 1 to"},
         entries + 4},
        {{"linnet.attention.head_count", NULL, 5, format,
          "embedding_length 48 is not a multiple of layer 1's head_count 5"},
         entries + 4},
        {{"linnet.attention.head_count", NULL, 6, format, "6 heads over 8 KV heads"}, entries + 4},
        {{"linnet.attention.head_count_kv", NULL, 3, format, "4 heads over 3 KV heads"},
         entries + 12},
        {{"linnet.attention.head_count_kv", NULL, 2, format, "attn_k.weight: expected"},
         entries + 4},
        {{"linnet.rope.freq_base", NULL, bits(0.5f), format,
          "linnet.rope.freq_base of layer 3 is 0.5, expected an f32 of 1.0001 to"},
         entries + 12},
        {{"linnet.rope.freq_base", NULL, 4, format, "freq_base of layer 0 is nan, expected an f32"},
         element},
        {{"blk.0.attn_q.bias", "blk.2.ssm_dt.bias", 0, unsupported, /* delta_net has no decay */
          "blk.2.ssm_dt.bias is not part of the architecture"},
         0},
        {{"softmax", "lolcats", 0, unsupported,
          "layer 0 has LoLCATs' attention, but heads or rotary frequencies differ between layers"},
         0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_breakage("delta_hybrid_shapes", &shapes[i].b, shapes[i].skip);
    buf kv = {0};
    put_kv_str(&kv, "linnet.rope.scaling.type", "linear");
    check_with_key("delta_hybrid_shapes", kv.p, kv.n, unsupported,
                   "layers with different rotary frequencies and a scaling of them");
    kv.n = 0;
    put_kv_array(&kv, "linnet.rope.freq_base", 6, 1);
    put_f32(&kv, 500);
    check_with_key("delta_identity_sum_wide", kv.p, kv.n, format,
                   "linnet.rope.freq_base has 1 entries for 2 layers");
    kv.n = 0;
    put_kv_u32(&kv, "linnet.rope.dimension_count", 24);
    check_with_key("delta_hybrid_shapes", kv.p, kv.n, format,
                   "layer 1 has heads of 6 dimensions, of which 24 rotate");
    free(kv.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_equal_float64_after_4096_tokens),
        cmocka_unit_test(broken_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
