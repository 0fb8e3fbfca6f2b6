/* Every allocation that fails in turn while a model is opened, fed and asked to write: each time
 * LINNET_ERR_MEMORY with a sentence, nothing leaked (AddressSanitizer's run sees that), and a
 * session that goes on as if it had not been asked. The linker turns the library's allocations into
 * the __wrap_ functions here (Makefile). */
#include "support.h"

#include <errno.h>
#include <glob.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

static atomic_long fail_at, calls; /* the number of the call that fails; 0 = none */

static bool may_allocate(void) {
    return atomic_fetch_add(&calls, 1) + 1 != atomic_load(&fail_at);
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
char *__real_strdup(const char *s);
void *__real_mmap(void *at, size_t n, int access, int flags, int fd, off_t offset);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
char *__wrap_strdup(const char *s);
void *__wrap_mmap(void *at, size_t n, int access, int flags, int fd, off_t offset);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg);

void *__wrap_malloc(size_t n) {
    return may_allocate() ? __real_malloc(n) : NULL;
}
void *__wrap_calloc(size_t n, size_t size) {
    return may_allocate() ? __real_calloc(n, size) : NULL;
}
void *__wrap_realloc(void *p, size_t n) {
    return may_allocate() ? __real_realloc(p, n) : NULL;
}
void *__wrap_aligned_alloc(size_t align, size_t n) {
    return may_allocate() ? __real_aligned_alloc(align, n) : NULL;
}
char *__wrap_strdup(const char *s) {
    return may_allocate() ? __real_strdup(s) : NULL;
}
void *__wrap_mmap(void *at, size_t n, int access, int flags, int fd, off_t offset) {
    /* a file that cannot be mapped is an error of the system's, not of memory: not tried here */
    return fd >= 0 || may_allocate() ? __real_mmap(at, n, access, flags, fd, offset) : MAP_FAILED;
}
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *arg) {
    return may_allocate() ? __real_pthread_create(t, a, f, arg) : EAGAIN;
}

/* ---- A life with a model -----------------------------------------------------------------------
 */

enum { WIDEST = 512, MAX_TEXT = 4096 };
typedef struct {
    const char *path;
    linnet_model_options options;
    linnet_kv_type kv;
    bool has_text;
    /* what came out */
    float logits[WIDEST];
    char text[MAX_TEXT];
    size_t n_text;
    int32_t ids[64];
    size_t n_ids;
} life;

static bool keep_text(void *user, const char *text, size_t n) {
    life *l = user;
    assert_true(l->n_text + n <= MAX_TEXT);
    memcpy(l->text + l->n_text, text, n);
    l->n_text += n;
    return true;
}

static bool on(void *user, const char *what, size_t done, size_t total) {
    (void)user, (void)what;
    return done <= total;
}

/* Feeds ids; after an error the session must be where it was, and the same call works once there is
 * memory again. */
static linnet_status feed(linnet_session *s, const int32_t *ids, size_t n, linnet_error *err) {
    size_t before, after;
    linnet_session_tokens(s, &before);
    uint64_t held = linnet_session_state_bytes(s);
    bool logits = linnet_session_logits(s) != NULL;
    linnet_item item = {s, ids, n, LINNET_LOGITS_LAST, NULL, NULL, false};
    linnet_status status = linnet_forward(&item, 1, on, NULL, err);
    if (!status) return status;
    linnet_session_tokens(s, &after);
    assert_int_equal(before, after);
    assert_int_equal(held, linnet_session_state_bytes(s));
    assert_int_equal(logits, linnet_session_logits(s) != NULL);
    assert_int_equal(linnet_forward(&item, 1, on, NULL, NULL), LINNET_OK);
    return status;
}

static linnet_status use_text(life *l, linnet_model *m, linnet_session *s, linnet_error *err) {
    static const linnet_message talk[] = {{"system", "Be brief."}, {"user", "the sea"}};
    static const char *const stops[] = {"never in it", "nor this"};
    linnet_generate_options o = LINNET_GENERATE_DEFAULT;
    linnet_status status;
    size_t n;
    if ((status = linnet_tokenize(m, "and the other<|im_end|>", 23, LINNET_PARSE_SPECIAL, l->ids,
                                  64, &l->n_ids, err)) ||
        (status = linnet_detokenize(m, l->ids, l->n_ids, 0, l->text, MAX_TEXT, &n, err)) ||
        (status = linnet_chat_tokenize(m, "chatml", talk, 2, true, NULL, 0, &n, err)) ||
        (status = feed(s, l->ids, l->n_ids, err)))
        return status;
    o.max_tokens = 30;
    o.stops = stops;
    o.n_stops = 2;
    o.sampling = (linnet_sampling){.seed = 7,
                                   .temperature = 1,
                                   .top_k = 200,
                                   .top_p = 0.95f,
                                   .repeat_penalty = 1.1f,
                                   .repeat_last = 64};
    return linnet_generate(s, &o, keep_text, l, NULL, err);
}

/* Opens, checks, feeds in two pieces that need several pages, writes. */
static linnet_status live(life *l, linnet_error *err) {
    linnet_model *m = (void *)1;
    linnet_session *s = NULL;
    int32_t ids[100];
    l->n_text = l->n_ids = 0;
    linnet_status status = linnet_model_open(&m, l->path, &l->options, err);
    if (status) assert_null(m);
    if (!status) status = linnet_model_check(m, err);
    if (!status) status = linnet_session_new(&s, m, &(linnet_session_options){.kv = l->kv}, err);
    if (!status) {
        size_t width = (size_t)linnet_model_get_info(m)->n_rows;
        assert_true(width <= WIDEST);
        for (size_t i = 0; i < 100; i++)
            ids[i] = (int32_t)((i * 31 + 7) % width);
        status = feed(s, ids, 3, err);
        linnet_status later = feed(s, ids + 3, 97, status ? NULL : err);
        status = status ? status : later;
        memcpy(l->logits, linnet_session_logits(s), width * sizeof(float));
        if (!status && l->has_text) status = use_text(l, m, s, err);
    }
    linnet_session_free(s);
    linnet_model_close(m);
    return status;
}

/* The most calls that may fail without an error: those that only shrink a buffer. */
static void each_allocation(life *l, long least, long most_harmless) {
    static life got;
    linnet_error err = {0};
    atomic_store(&fail_at, 0);
    atomic_store(&calls, 0);
    if (live(l, &err)) fail_msg("%s", err.text);
    long total = atomic_load(&calls), harmless = 0;
    assert_true(total >= least);
    for (long i = 1; i <= total; i++) {
        memcpy(&got, l, sizeof got);
        memset(got.logits, 0, sizeof got.logits);
        memset(got.text, 0, sizeof got.text);
        err = (linnet_error){0};
        atomic_store(&fail_at, i);
        atomic_store(&calls, 0);
        linnet_status status = live(&got, &err);
        atomic_store(&fail_at, 0);
        if (status) {
            if (status != LINNET_ERR_MEMORY || err.code != LINNET_ERR_MEMORY ||
                !(strstr(err.text, "no memory") || strstr(err.text, "cannot start a team")))
                fail_msg("%s: allocation %ld of %ld: code %d, '%s'", l->path, i, total, status,
                         err.text);
        } else {
            harmless++;
            assert_int_equal(got.n_text, l->n_text);
            assert_memory_equal(got.text, l->text, l->n_text);
            assert_memory_equal(got.logits, l->logits, sizeof l->logits);
        }
        /* a failed feed was made good: its logits are those of a life without errors */
        if (got.logits[0] != 0) assert_memory_equal(got.logits, l->logits, sizeof l->logits);
    }
    if (harmless > most_harmless)
        fail_msg("%s: %ld of %ld failed allocations went unseen", l->path, harmless, total);
}

static void text_model(void **state) {
    (void)state;
    static life l;
    for (int no_mmap = 0; no_mmap < 2; no_mmap++)
        for (int threads = 1; threads <= 3; threads += 2) {
            if (no_mmap && threads > 1) continue; /* a late worker may allocate or not */
            l = (life){.path = "tests/data/models/text.gguf", .has_text = true};
            l.options = (linnet_model_options){.threads = threads, .no_mmap = no_mmap};
            each_allocation(&l, 60, 3);
        }
}

/* Every kind of model that the goldens have: mixers, positions, windows. */
static void golden_models(void **state) {
    (void)state;
    static life l;
    glob_t found;
    assert_int_equal(glob("tests/data/models/*.logits.npy", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char path[256];
        size_t n = strlen(found.gl_pathv[i]) - strlen(".logits.npy");
        snprintf(path, sizeof path, "%.*s.gguf", (int)n, found.gl_pathv[i]);
        l = (life){.path = path, .options = {.threads = 1}};
        each_allocation(&l, 20, 1);
    }
    globfree(&found);
}

/* Forks, saves and loads, in memory and as a file; nothing is left of a failed one. */
static linnet_status keep_state(linnet_session *s, linnet_session *other, const char *path,
                                linnet_error *err) {
    linnet_session *fork = (void *)1;
    size_t n = (size_t)linnet_session_size(s);
    uint8_t *bytes = __real_malloc(n);
    linnet_status status = linnet_session_fork(s, &fork, err);
    if (status) assert_null(fork);
    if (!status) status = linnet_feed(fork, (int32_t[]){1, 2}, 2, LINNET_LOGITS_LAST, err);
    linnet_session_free(fork);
    if (!status) status = linnet_session_save(s, bytes, n, err);
    if (!status) status = linnet_session_load(other, bytes, n, err);
    if (!status) status = linnet_session_save_file(s, path, err);
    if (!status) status = linnet_session_load_file(other, path, err);
    free(bytes);
    return status;
}

static void states(void **state) {
    (void)state;
    static const char *const names[] = {"llama_f16", "lolcats_exp_sinks", "gated_delta_hybrid"};
    char folder[] = "/tmp/linnet_memory_XXXXXX", path[64], model[128];
    if (!mkdtemp(folder)) fail_msg("no folder");
    snprintf(path, sizeof path, "%s/a.state", folder);
    for (int i = 0; i < 3; i++) {
        linnet_error err;
        int32_t ids[100];
        long total = 1;
        snprintf(model, sizeof model, "tests/data/models/%s.gguf", names[i]);
        for (long fail = 0; fail <= total; fail++) {
            linnet_model *m =
                open_model(model, &(linnet_model_options){.threads = 1, .no_mmap = true});
            linnet_session *s = open_session(m, NULL), *other = open_session(m, NULL);
            for (int k = 0; k < 100; k++)
                ids[k] = k % 30;
            if (linnet_feed(s, ids, 100, LINNET_LOGITS_LAST, &err) ||
                linnet_feed(other, ids + 1, 70, LINNET_LOGITS_NONE, &err))
                fail_msg("%s", err.text);
            atomic_store(&calls, 0);
            atomic_store(&fail_at, fail);
            linnet_status status = keep_state(s, other, path, &err);
            atomic_store(&fail_at, 0);
            if (!fail) total = atomic_load(&calls);
            if (!status != !fail) fail_msg("%s: allocation %ld of %ld", model, fail, total);
            if (fail) assert_int_equal(status, LINNET_ERR_MEMORY);
            if (fail) assert_non_null(strstr(err.text, "no memory"));
            unlink(path);
            /* both go on: `other` from where it was or from the state */
            size_t n;
            linnet_session_tokens(other, &n);
            assert_true(n == 70 || n == 100);
            if (keep_state(s, other, path, &err)) fail_msg("%s", err.text);
            size_t size = (size_t)linnet_session_size(s);
            uint8_t *one = malloc(size), *two = malloc(size);
            assert_int_equal(linnet_session_size(other), size);
            assert_int_equal(linnet_session_save(s, one, size, NULL), LINNET_OK);
            assert_int_equal(linnet_session_save(other, two, size, NULL), LINNET_OK);
            assert_memory_equal(one, two, size);
            free(one);
            free(two);
            unlink(path);
            linnet_session_free(s);
            linnet_session_free(other);
            linnet_model_close(m);
        }
        assert_true(total > 15);
    }
    assert_int_equal(rmdir(folder), 0); /* no unfinished file */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_model),
        cmocka_unit_test(golden_models),
        cmocka_unit_test(states),
    };
    return cmocka_run_group_tests_name("model_memory", tests, NULL, NULL);
}
