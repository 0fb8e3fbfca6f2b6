/* What is said of broken files of the Qwen and OLMo hybrids. That whole ones match upstream is in
 * test_forward.c (tests/golden/make_qwen_hybrid.py). */
#include "broken.h"

/* `text` becomes `other` of the same length; or, other NULL, the byte `at` bytes behind `text`
 * becomes `value`: 4 is the first of a number, 16 of an array's first element. */
typedef struct {
    const char *text, *other;
    int at, value;
    int status; /* LINNET_OK: still opens */
    const char *says;
} byte_change;

static void check(const char *name, const byte_change *c) {
    bytes b = read_file(name);
    char *at = find(b, c->text);
    if (c->other)
        memcpy(at, c->other, strlen(c->other));
    else
        at[strlen(c->text) + (size_t)c->at] = (char)c->value;
    check_opens_with(name, c->text, b, (linnet_status)c->status, c->says);
}

static void check_all(const char *name, const byte_change *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        check(name, &list[i]);
}
#define CHECK_ALL(name, list) check_all(name, list, sizeof(list) / sizeof *(list))

enum { FORMAT = LINNET_ERR_FORMAT, UNSUPPORTED = LINNET_ERR_UNSUPPORTED };

static void broken_qwen35_files_are_refused(void **state) {
    (void)state;
    static const byte_change keys[] = {
        {"qwen35", "qwen36", 0, 0, UNSUPPORTED, "architecture 'qwen36' is not supported"},
        {"qwen35.ssm.state_size", "qwen35.ssm.state_sizx", 0, 0, FORMAT,
         "qwen35.ssm.state_size\" is missing"},
        {"qwen35.ssm.inner_size", "qwen35.ssm.inner_sizx", 0, 0, FORMAT,
         "qwen35.ssm.inner_size\" is missing"},
        {"qwen35.ssm.conv_kernel", NULL, 4, 33, FORMAT, "is 33, expected 1 to 32"},
        {"qwen35.ssm.conv_kernel", NULL, 4, 3, FORMAT,
         "blk.0.ssm_conv1d.weight: expected shape [3, 96"},
        {"qwen35.ssm.group_count", NULL, 4, 0, FORMAT, "is 0, expected 1 to"},
        {"qwen35.ssm.group_count", NULL, 4, 3, FORMAT,
         "3 key heads of 12, 4 value heads, inner size 48: expected multiples"},
        {"qwen35.ssm.inner_size", NULL, 4, 47, FORMAT, "inner size 47: expected multiples"},
        {"qwen35.ssm.state_size", NULL, 4, 11, FORMAT,
         "blk.0.attn_qkv.weight: expected shape [24, 92], found [24, 96]"},
        {"qwen35.attention.recurrent_layers", NULL, 16, 0, FORMAT,
         "tensor blk.0.attn_qkv.weight: expected shape [24, 192], found [24, 96]"},
        {"qwen35.full_attention_interval", NULL, 4, 0, FORMAT, "is 0, expected 1 to"},
        {"qwen35.attention.key_length", NULL, 4, 18, UNSUPPORTED,
         "keys of 18 and values of 16 dimensions: expected equal ones"},
        {"qwen35.rope.dimension_count", NULL, 4, 3, FORMAT, "is 3, expected an even number"},
        {"qwen35.rope.dimension_count", NULL, 4, 18, FORMAT, "is 18, expected 2 to 16"},
        {"qwen35.attention.head_count", NULL, 4, 2, FORMAT,
         "blk.2.attn_q.weight: expected shape [24, 64], found [24, 128]"},
    };
    CHECK_ALL("qwen35_r2", keys);
    static const byte_change tensors[] = {
        {"blk.0.attn_gate.weight", "blk.0.attn_gatx.weight", 0, 0, FORMAT,
         "tensor blk.0.attn_gate.weight is missing"},
        {"blk.1.ssm_conv1d.weight", "blk.1.ssm_conv2d.weight", 0, 0, FORMAT,
         "tensor blk.1.ssm_conv1d.weight is missing"},
        {"blk.1.ssm_beta.weight", "blk.1.ssm_bets.weight", 0, 0, FORMAT,
         "tensor blk.1.ssm_beta.weight is missing"},
        {"blk.1.ssm_alpha.weight", "blk.1.ssm_alphx.weight", 0, 0, FORMAT,
         "tensor blk.1.ssm_alpha.weight is missing"},
        {"blk.1.ssm_a", "blk.1.ssm_x", 0, 0, FORMAT, "tensor blk.1.ssm_a is missing"},
        {"blk.0.post_attention_norm.weight", "blk.0.post_attention_nork.weight", 0, 0, FORMAT,
         "tensor blk.0.post_attention_norm.weight is missing"},
        {"blk.2.attn_q_norm.weight", "blk.2.attn_x_norm.weight", 0, 0, FORMAT,
         "tensor blk.2.attn_q_norm.weight is missing"},
        {"blk.2.attn_output.weight", "blk.2.attn_outpux.weight", 0, 0, FORMAT,
         "tensor blk.2.attn_output.weight is missing"},
    };
    CHECK_ALL("qwen35_r2", tensors);
}

/* The block behind the layers is skipped only where the file counts it as such. */
static void prediction_blocks_are_counted(void **state) {
    (void)state;
    static const byte_change list[] = {
        {"qwen35.nextn_predict_layers", NULL, 4, 1, LINNET_OK, ""},
        {"qwen35.nextn_predict_layers", NULL, 4, 0, UNSUPPORTED,
         "blk.3.nextn.eh_proj.weight is not part of the architecture"},
        {"qwen35.nextn_predict_layers", NULL, 4, 4, FORMAT, "is 4, expected 0 to 3"},
        {"qwen35.nextn_predict_layers", NULL, 4, 2, LINNET_OK, ""}, /* one layer less */
        {"qwen35.block_count", NULL, 4, 3, FORMAT, "has 4 entries for 3 blocks"},
        {"blk.3.nextn.eh_proj.weight", "blk.4.nextn.eh_proj.weight", 0, 0, UNSUPPORTED,
         "blk.4.nextn.eh_proj.weight is not part of the architecture"},
    };
    CHECK_ALL("qwen35_tied", list);
    linnet_model *m = open_model("tests/data/models/qwen35_tied.gguf", NULL);
    assert_int_equal(linnet_model_get_info(m)->n_layers, 3);
    assert_string_equal(linnet_model_mixer(m, 0, NULL), "softmax");
    assert_string_equal(linnet_model_mixer(m, 1, NULL), "gated_delta_net");
    assert_null(linnet_model_mixer(m, 3, NULL));
    linnet_model_close(m);
}

static void broken_qwen3next_files_are_refused(void **state) {
    (void)state;
    static const byte_change list[] = {
        {"blk.0.ssm_ba.weight", "blk.0.ssm_bx.weight", 0, 0, FORMAT,
         "tensor blk.0.ssm_beta.weight is missing"},
        {"blk.1.attn_qkv.weight", "blk.1.ssm_inxx.weight", 0, 0, FORMAT,
         "tensor blk.1.attn_qkv.weight is missing"},
    };
    CHECK_ALL("qwen3next_r2", list);
}

static void broken_olmo_files_are_refused(void **state) {
    (void)state;
    static const byte_change list[] = {
        {"blk.2.post_attention_norm.weight", "blk.2.post_attention_nork.weight", 0, 0, FORMAT,
         "tensor blk.2.attn_norm.weight is missing"},
        {"blk.2.post_ffw_norm.weight", "blk.2.post_ffw_nork.weight", 0, 0, FORMAT,
         "tensor blk.2.ffn_norm.weight is missing"},
        {"blk.0.attn_norm.weight", "blk.0.attn_nork.weight", 0, 0, FORMAT,
         "tensor blk.0.attn_norm.weight is missing"},
        {"none", "nine", 0, 0, UNSUPPORTED,
         "linnet.rope.pairing is 'nine', expected halves or none"},
        {"linnet.attention.head_count", NULL, 4, 2, FORMAT, "is 4, expected 1 to 2"},
    };
    CHECK_ALL("olmo_hybrid_nope", list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_qwen35_files_are_refused),
        cmocka_unit_test(prediction_blocks_are_counted),
        cmocka_unit_test(broken_qwen3next_files_are_refused),
        cmocka_unit_test(broken_olmo_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
