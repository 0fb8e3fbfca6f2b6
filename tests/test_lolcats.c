/* LoLCATs, Hedgehog and T2R over long sequences, against float64 states
 * (tests/golden/make_lolcats.py). That they match their formulas, and themselves however a prompt
 * is cut, is in test_forward.c and test_window_modes.c. */
#include "../model.h"
#include "broken.h"

enum { LONG = 4096, MANY = 20000 };

static const struct {
    const char *folder, *name;
    linnet_window_mode mode;
    int n_sink, window;
} models[] = {
    {"models", "lolcats_softmax_full", LINNET_SLIDING, 0, 7},
    {"models", "lolcats_exp_sinks", LINNET_SLIDING, 4, 7},
    {"models", "lolcats_trained_length", LINNET_SLIDING, 3, 9},
    {"models", "hedgehog_softmax", LINNET_SLIDING, 0, 0},
    {"models", "t2r_relu", LINNET_SLIDING, 0, 0},
    {"window_modes", "terrace", LINNET_TERRACE, 0, 16},
    {"window_modes", "terrace_sinks", LINNET_TERRACE, 3, 13},
};
enum { N_MODELS = sizeof models / sizeof *models };

static linnet_model *open_number(int i, linnet_activations act) {
    char path[128];
    snprintf(path, sizeof path, "tests/data/%s/%s.gguf", models[i].folder, models[i].name);
    return open_model(path, &(linnet_model_options){.activations = act, .threads = 1});
}

/* S and z of every linear layer, apart: within 1e-3 of the RMS of the float64 ones; and what is not
 * in them is in the next position's window. */
static void states_equal_float64_after_4096_tokens(void **state) {
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        linnet_model *m = open_number(i, LINNET_ACT_EXACT);
        linnet_session *s =
            open_session(m, &(linnet_session_options){.ctx = LONG, .window_mode = models[i].mode});
        feed_long(s, 0, LONG, 500, m->cfg.n_rows);
        char path[128];
        size_t rows, cols, at = 0, heads = (size_t)m->cfg.n_heads, d = (size_t)m->cfg.head_dim;
        snprintf(path, sizeof path, "tests/data/lolcats_states/%s.npy", models[i].name);
        float *expected = read_npy(path, &rows, &cols);
        for (int l = 0; l < m->cfg.n_layers; l++) {
            const mixer_ops *x = m->layers[l].mixer;
            if (!x->state_bytes) continue;
            size_t words = x->state_bytes(m, m->layers[l].mixer_weights) / sizeof(float);
            size_t features = (words / heads - 1) / (d + 1);
            size_t n_z = heads * features, n_S = n_z * d;
            assert_int_equal(words, n_S + n_z + heads);
            assert_true(at + n_S + n_z <= cols);
            const float *S = (const float *)(s->state + m->layers[l].state_at);
            state_near(models[i].name, l, S, expected + at, n_S);
            state_near(models[i].name, l, S + n_S, expected + at + n_S, n_z);
            at += n_S + n_z;
            const uint32_t *folded = (const uint32_t *)(S + n_S + n_z);
            int W = models[i].window;
            for (size_t h = 0; h < heads && W; h++)
                assert_int_equal(folded[h], models[i].mode == LINNET_TERRACE ? (LONG / W - 1) * W
                                                                             : LONG - W + 1);
        }
        assert_int_equal(at, cols);
        assert_int_equal(m->cfg.n_sink, models[i].n_sink);
        free(expected);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* One at a time; a token whose logits are not finite is an error. The state does not grow. */
static void long_decodes_stay_finite(void **state) {
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        linnet_model *m = open_number(i, LINNET_ACT_AUTO);
        bool grows = false;
        for (int l = 0; l < m->cfg.n_layers; l++)
            grows = grows || !m->layers[l].mixer->state_bytes;
        linnet_session *s =
            open_session(m, &(linnet_session_options){.ctx = MANY, .window_mode = models[i].mode});
        uint64_t most = linnet_model_state_bytes(m, LINNET_KV_F16, 192);
        feed_long(s, 0, grows ? 2000 : MANY, 1, m->cfg.n_rows);
        assert_true(grows || linnet_session_state_bytes(s) <= most);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* The trained length limits by default where a layer keeps all keys, else nothing does. */
static void context_is_free_where_nothing_grows(void **state) {
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        linnet_model *m = open_number(i, LINNET_ACT_EXACT);
        bool grows = false;
        for (int l = 0; l < m->cfg.n_layers; l++)
            grows = grows || m->layers[l].mixer == &mixer_softmax;
        linnet_session *s = open_session(m, NULL);
        int trained = linnet_model_get_info(m)->n_ctx_train;
        assert_int_equal(linnet_session_ctx(s), grows ? trained : MAX_CTX);
        if (!grows) feed_long(s, 0, (uint64_t)trained + 100, 300, m->cfg.n_rows);
        linnet_session_free(s);
        s = open_session(m, &(linnet_session_options){.ctx = 33});
        assert_int_equal(linnet_session_ctx(s), 33);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* A trained length is for sliding windows of one length. */
static void trained_lengths_that_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *key;
        size_t at; /* behind the key */
        char value;
    } lies[] = {{"linnet.lolcats.terrace", 4, 1},
                {"linnet.attention.window_layers", 4 + 4 + 8 + 2 * 4, 8}};
    const char *model = "lolcats_trained_length";
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        bytes b = read_file(model);
        find(b, lies[i].key)[strlen(lies[i].key) + lies[i].at] = lies[i].value;
        check_opens_with(model, lies[i].key, b, LINNET_ERR_UNSUPPORTED,
                         "sliding windows of one length");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_equal_float64_after_4096_tokens),
        cmocka_unit_test(long_decodes_stay_finite),
        cmocka_unit_test(context_is_free_where_nothing_grows),
        cmocka_unit_test(trained_lengths_that_are_refused),
    };
    return cmocka_run_group_tests_name("lolcats", tests, NULL, NULL);
}
