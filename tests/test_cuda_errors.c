/* What goes wrong on a GPU, on the emulated one: none there, an old driver, no code for it, too
 * little memory, a fault in a kernel. Each is a sentence; `auto` takes the CPU where it can and
 * says why; sessions that are left can be freed. */
#include "../model.h"
#include "emulation/control.h"
#include "support.h"

#define MODEL "tests/data/models/gated_delta_hybrid.gguf"

static const int32_t ids[] = {1, 5, 9, 2, 7, 3, 8, 4};
enum { IDS = sizeof ids / sizeof *ids };

static linnet_status open_with(const char *backend, linnet_model **m, linnet_error *err) {
    return linnet_model_open(m, MODEL, &(linnet_model_options){.threads = 1, .backend = backend},
                             err);
}

static void same_as_cpu(linnet_model *m) {
    linnet_error err;
    linnet_session *s = open_session(m, NULL);
    if (linnet_feed(s, ids, IDS, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    assert_non_null(linnet_session_logits(s));
    linnet_session_free(s);
}

static void falls_back(const char *sentence) {
    linnet_error err;
    linnet_model *m;
    assert_int_not_equal(open_with("cuda", &m, &err), LINNET_OK);
    assert_null(m);
    if (!strstr(err.text, sentence)) fail_msg("'%s' says nothing of '%s'", err.text, sentence);
    if (open_with("auto", &m, &err)) fail_msg("%s", err.text);
    const linnet_model_info *info = linnet_model_get_info(m);
    assert_string_equal(info->backend, "cpu");
    if (!strstr(info->note, sentence)) fail_msg("'%s' says nothing of '%s'", info->note, sentence);
    same_as_cpu(m);
    linnet_model_close(m);
}

static void machines_without_a_gpu_for_it(void **state) {
    (void)state;
    simt_set_machine(SIMT_NO_GPU);
    falls_back("no NVIDIA GPU");
    simt_set_machine(SIMT_OLD_DRIVER);
    falls_back("driver");
    simt_set_machine(SIMT_OTHER_ARCHITECTURE);
    falls_back("compute capability");
    simt_set_machine(SIMT_GPU);
    linnet_error err;
    linnet_model *m;
    assert_int_not_equal(open_with("cuda:7", &m, &err), LINNET_OK);
    assert_non_null(strstr(err.text, "7"));
    for (size_t i = 0; i < 4; i++) {
        const char *const wrong[] = {"cuda:", "cuda:x", "cuda:1x", "tpu"};
        assert_int_equal(open_with(wrong[i], &m, &err), LINNET_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, wrong[i]));
    }
}

static void auto_takes_the_gpu(void **state) {
    (void)state;
    linnet_error err;
    linnet_model *m;
    if (open_with(NULL, &m, &err)) fail_msg("%s", err.text);
    assert_non_null(strstr(linnet_model_get_info(m)->backend, "cuda:0"));
    assert_string_equal(linnet_model_get_info(m)->note, "");
    same_as_cpu(m);
    linnet_model_close(m);
}

static void too_little_memory_for_the_model(void **state) {
    (void)state;
    simt_set_memory(64 << 10);
    falls_back("MB");
    simt_set_memory(SIZE_MAX);
}

/* Every amount of memory: a sentence, or it works; what is there already goes on. */
static void too_little_memory_later(void **state) {
    (void)state;
    linnet_error err;
    linnet_model *m;
    int refused = 0;
    if (open_with("cuda", &m, &err)) fail_msg("%s", err.text);
    linnet_session *first = open_session(m, NULL);
    if (linnet_feed(first, ids, 4, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    for (size_t mb = 0; mb < 120; mb += 2) {
        linnet_session *s = NULL, *f = NULL;
        simt_set_memory(mb << 20);
        linnet_status status = linnet_session_new(&s, m, NULL, &err);
        if (!status) status = linnet_feed(s, ids, IDS, LINNET_LOGITS_LAST, &err);
        if (!status) status = linnet_session_fork(s, &f, &err);
        if (status) {
            refused++;
            if (status != LINNET_ERR_MEMORY) fail_msg("%d: %s", (int)status, err.text);
            assert_true(*err.text);
        }
        linnet_session_free(s);
        linnet_session_free(f);
    }
    simt_set_memory(SIZE_MAX);
    assert_true(refused > 0 && refused < 60);
    if (linnet_feed(first, ids + 4, 4, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    linnet_session *alone = open_session(m, NULL);
    if (linnet_feed(alone, ids, 4, LINNET_LOGITS_LAST, &err) ||
        linnet_feed(alone, ids + 4, 4, LINNET_LOGITS_LAST, &err))
        fail_msg("%s", err.text);
    assert_memory_equal(linnet_session_logits(first), linnet_session_logits(alone),
                        (size_t)linnet_model_get_info(m)->n_rows * sizeof(float));
    linnet_session_free(first);
    linnet_session_free(alone);
    linnet_model_close(m);
}

/* A fault stays, and is one sentence from then on. */
static void a_fault_in_a_kernel(void **state) {
    (void)state;
    for (uint64_t n = 1; n < 40; n += 7) {
        linnet_error err, again;
        linnet_model *m;
        if (open_with("cuda", &m, &err)) fail_msg("%s", err.text);
        linnet_session *s = open_session(m, NULL);
        simt_set_fault(n);
        linnet_status status = linnet_feed(s, ids, IDS, LINNET_LOGITS_LAST, &err);
        for (int i = 0; !status && i < 20; i++) /* later launches */
            status = linnet_feed(s, ids, 1, LINNET_LOGITS_LAST, &err);
        simt_set_fault(0);
        assert_int_equal(status, LINNET_ERR_DEVICE);
        assert_non_null(strstr(err.text, "kernel"));
        linnet_session_reset(s);
        assert_int_equal(linnet_feed(s, ids, 1, LINNET_LOGITS_LAST, &again), LINNET_ERR_DEVICE);
        assert_string_equal(err.text, again.text);
        size_t bytes = linnet_session_size(s);
        void *to = malloc(bytes);
        assert_int_not_equal(linnet_session_save(s, to, bytes, &again), LINNET_OK);
        free(to);
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

/* Numbers that are not finite are found where they begin, as on the CPU. */
static void a_model_that_overflows(void **state) {
    (void)state;
    linnet_error err, cpu_err;
    linnet_model *m, *cpu;
    if (open_with("cuda", &m, &err) || open_with("cpu", &cpu, &err)) fail_msg("%s", err.text);
    linnet_session *s = open_session(m, NULL), *c = open_session(cpu, NULL);
    const layer_weights *w = &m->layers[1];
    float inf = INFINITY;
    uint8_t *gpu = *(uint8_t **)m->prepared; /* the arena's copy is the first thing there */
    ptrdiff_t at = (const uint8_t *)w->ffn_norm.w - m->arena;
    if (m->backend->ops->write(m->backend, gpu + at, &inf, sizeof inf, &err))
        fail_msg("%s", err.text);
    cpu->layers[1].ffn_norm.w[0] = INFINITY;
    assert_int_equal(linnet_feed(s, ids, IDS, LINNET_LOGITS_LAST, &err), LINNET_ERR_NUMERIC);
    assert_int_equal(linnet_feed(c, ids, IDS, LINNET_LOGITS_LAST, &cpu_err), LINNET_ERR_NUMERIC);
    assert_string_equal(err.text, cpu_err.text);
    linnet_session_free(s);
    linnet_session_free(c);
    linnet_model_close(m);
    linnet_model_close(cpu);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(machines_without_a_gpu_for_it),
                                       cmocka_unit_test(auto_takes_the_gpu),
                                       cmocka_unit_test(too_little_memory_for_the_model),
                                       cmocka_unit_test(too_little_memory_later),
                                       cmocka_unit_test(a_fault_in_a_kernel),
                                       cmocka_unit_test(a_model_that_overflows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
