/* The windows of LoLCATs models trained with terraces: each mode against a float64 evaluation of
 * its index sets (tests/golden/make_lolcats.py), however the prompt is cut, and what follows it. */
#include "../model.h"
#include "support.h"

#include <unistd.h>

enum { MAX_IDS = 256 };

typedef struct {
    const char *name;
    linnet_model *m;
    int32_t ids[MAX_IDS];
    size_t n, width;
} subject;

static subject load(const char *name, linnet_activations act, int threads) {
    subject s = {.name = name};
    char path[256];
    snprintf(path, sizeof path, "tests/data/window_modes/%s.gguf", name);
    linnet_model_options o = {.activations = act, .threads = threads};
    s.m = open_model(path, &o);
    snprintf(path, sizeof path, "tests/data/window_modes/%s.ids", name);
    s.n = read_ids(path, s.ids, MAX_IDS);
    s.width = (size_t)linnet_model_get_info(s.m)->n_rows;
    return s;
}

static float *reference(const subject *s, const char *mode) {
    char path[256];
    size_t rows, width;
    snprintf(path, sizeof path, "tests/data/window_modes/%s.%s.npy", s->name, mode);
    float *x = read_npy(path, &rows, &width);
    assert_int_equal(rows, s->n);
    assert_int_equal(width, s->width);
    return x;
}

/* 1e-4 of the RMS over rows [from, to). */
static void near(const subject *s, const char *what, const float *out, const float *expected,
                 size_t from, size_t to) {
    double worst = 0, square = 0;
    for (size_t i = from * s->width; i < to * s->width; i++) {
        double d = fabs((double)out[i] - expected[i]);
        worst = d > worst || isnan(d) ? d : worst;
        square += (double)expected[i] * expected[i];
    }
    double error = worst / sqrt(square / (double)((to - from) * s->width));
    if (!(error <= 1e-4)) fail_msg("%s: %s: error %g of the logits' RMS", s->name, what, error);
}

static linnet_session *session_in(const subject *s, linnet_window_mode mode) {
    linnet_session_options o = {.window_mode = mode};
    return open_session(s->m, &o);
}

/* Feeds ids [from, to) in pieces of `chunk`, 0 = at once; rows go to their place in `out`. */
static void feed_some(const subject *s, linnet_session *session, bool sampled, size_t from,
                      size_t to, size_t chunk, float *out) {
    rows_at at = {out, s->width};
    for (size_t i = from, n; i < to; i += n) {
        n = chunk && chunk < to - i ? chunk : to - i;
        linnet_item item = {session, s->ids + i, n, LINNET_LOGITS_ALL, collect_rows, &at, sampled};
        linnet_error err;
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s", err.text);
    }
}

static void feed_part(const subject *s, linnet_session *session, size_t from, size_t to,
                      size_t chunk, float *out) {
    feed_some(s, session, false, from, to, chunk, out);
}

static const char *const names[] = {"terrace", "terrace_sinks"};

static void modes_equal_their_index_sets(void **state) {
    (void)state;
    static const char *const modes[] = {"sliding", "terrace"};
    static const size_t chunks[] = {0, 1, 2, 7, 13, 16, 63};
    for (int k = 0; k < 2; k++) {
        subject s = load(names[k], LINNET_ACT_EXACT, 2);
        size_t bytes = s.n * s.width * sizeof(float);
        float *out = malloc(bytes), *first = malloc(bytes);
        for (int mode = 0; mode < 2; mode++) {
            float *expected = reference(&s, modes[mode]);
            for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
                linnet_session *session = session_in(&s, (linnet_window_mode)mode);
                feed_part(&s, session, 0, s.n, chunks[c], c ? out : first);
                if (!c) near(&s, modes[mode], first, expected, 0, s.n);
                if (c && memcmp(out, first, bytes))
                    fail_msg("%s: %s in chunks of %zu differs", s.name, modes[mode], chunks[c]);
                linnet_session_free(session);
            }
            free(expected);
        }
        free(out);
        free(first);
        linnet_model_close(s.m);
    }
}

/* A prompt under upstream's own prefill, in one piece; then the plain sliding window, one token at
 * a time or several. */
static void upstreams_prefill_then_slides(void **state) {
    (void)state;
    int found = 0;
    for (int k = 0; k < 2; k++) {
        subject s = load(names[k], LINNET_ACT_EXACT, 2);
        float *out = malloc(s.n * s.width * sizeof *out);
        for (size_t prompt = 1; prompt <= s.n; prompt++) {
            char mode[32], path[256];
            snprintf(mode, sizeof mode, "hf_%zu", prompt);
            snprintf(path, sizeof path, "tests/data/window_modes/%s.%s.npy", s.name, mode);
            if (access(path, R_OK)) continue;
            found++;
            float *expected = reference(&s, mode);
            for (size_t chunk = 0; chunk < 6; chunk += 1 + 2 * chunk) {
                linnet_session *session = session_in(&s, LINNET_TERRACE_HF);
                feed_part(&s, session, 0, prompt, 0, out);
                near(&s, mode, out, expected, 0, prompt);
                feed_part(&s, session, prompt, s.n, chunk, out);
                near(&s, "after the prompt", out, expected, prompt, s.n);
                linnet_session_free(session);
            }
            free(expected);
        }
        free(out);
        linnet_model_close(s.m);
    }
    assert_int_equal(found, 8);
}

/* Sampled tokens slide whatever the prompt's windows were: the linear state catches up with the
 * window's start, without gap or overlap. */
static void sampled_tokens_slide(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        subject s = load(names[k], LINNET_ACT_EXACT, 1);
        const size_t prompt = 41;
        float *expected = reference(&s, "terrace_41");
        float *out = malloc(s.n * s.width * sizeof *out);
        linnet_session *session = session_in(&s, LINNET_TERRACE);
        feed_part(&s, session, 0, prompt, 10, out);
        feed_some(&s, session, true, prompt, s.n, 1, out);
        near(&s, "sampled tokens", out, expected, 0, s.n);
        /* fed again: the window is what was not folded yet, and no dropped page is read */
        linnet_error err;
        for (int i = 0; i < 200; i++)
            if (linnet_feed(session, s.ids, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
        linnet_session_free(session);
        free(expected);
        free(out);
        linnet_model_close(s.m);
    }
}

static void modes_of_other_models_are_refused(void **state) {
    (void)state;
    linnet_model *m = open_model("tests/data/models/lolcats_softmax_full.gguf", NULL);
    linnet_session_options o = {.window_mode = LINNET_TERRACE};
    linnet_session *session;
    linnet_error err;
    assert_int_equal(linnet_session_new(&session, m, &o, &err), LINNET_ERR_ARGUMENT);
    assert_null(session);
    assert_non_null(strstr(err.text, "terrace"));
    o.window_mode = (linnet_window_mode)3;
    assert_int_equal(linnet_session_new(&session, m, &o, &err), LINNET_ERR_ARGUMENT);
    linnet_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(modes_equal_their_index_sets),
        cmocka_unit_test(upstreams_prefill_then_slides),
        cmocka_unit_test(sampled_tokens_slide),
        cmocka_unit_test(modes_of_other_models_are_refused),
    };
    return cmocka_run_group_tests_name("window modes", tests, NULL, NULL);
}
