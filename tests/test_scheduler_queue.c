/* The queue, refusals, and jobs that are cancelled, late or drained. */
#include "jobs.h"

#include <pthread.h>
#include <sys/resource.h>

/* ---- Queue --------------------------------------------------------------------------------- */

/* 60,000 tokens of a model without an end: minutes of prefill. */
static job_request endless(void) {
    enum { LONG = 60000 };
    int32_t *ids = malloc(LONG * sizeof *ids);
    for (int i = 0; i < LONG; i++)
        ids[i] = (int32_t)((unsigned)i * (unsigned)i % 251);
    job_request r = ask(ids, LONG, 0);
    free(ids);
    return r;
}

static linnet_session_options long_context = {.ctx = 70000};

/* A job that keeps the only slot until it is cancelled. */
static job *occupy(scheduler *s) {
    job *j = submit(s, endless());
    outcome *o = calloc(1, sizeof *o);
    read_until(j, o, EVENT_PROGRESS);
    forget(o);
    return j;
}

/* Jobs that end when they are cancelled show in which order they begin. */
static void test_fair_queue(void **state) {
    static const char *const owners[] = {"greedy", "greedy", "greedy", "greedy", "modest",
                                         "greedy", "late",   "modest", "greedy"};
    static const int order[] = {0, 4, 6, 1, 7, 2, 3, 5, 8};
    enum { N = sizeof order / sizeof *order };
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start_with(&(scheduler_options){
        .model = m, .slots = 1, .max_queue = N, .piece = 64, .session = long_context});
    job *jobs[N], *first = occupy(s);
    for (int i = 0; i < N; i++) {
        job_request r = endless();
        snprintf(r.owner, sizeof r.owner, "%s", owners[i]);
        jobs[i] = submit(s, r);
    }
    job_free(first);
    for (int k = 0; k < N; k++) {
        int began = -1;
        double until = now() + 60;
        for (int i = 0; began < 0 && now() < until; i = (i + 1) % N) {
            event *e = jobs[i] ? job_next(jobs[i], 0.001) : NULL;
            if (e) began = i;
            event_free(e);
        }
        assert_int_equal(began, order[k]);
        job_free(jobs[began]);
        jobs[began] = NULL;
    }
    scheduler_free(s);
    linnet_model_close(m);
}

static void test_full_queue(void **state) {
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start_with(&(scheduler_options){
        .model = m, .slots = 1, .max_queue = 2, .piece = 64, .session = long_context});
    job *first = occupy(s), *a = submit(s, quick("x", 1)), *b = submit(s, quick("x", 1)), *c;
    job_request r = quick("x", 1);
    linnet_error err;
    assert_int_equal(scheduler_submit(s, &r, &c, &err), LINNET_ERR_MEMORY);
    assert_non_null(strstr(err.text, "queue is full: 2 jobs wait"));
    assert_null(c);
    job_free(a); /* one that waits leaves between two steps */
    scheduler_stats t;
    for (t.queued = 2; t.queued == 2;)
        scheduler_get_stats(s, &t);
    c = submit(s, quick("x", 1));
    scheduler_get_stats(s, &t);
    assert_int_equal(t.refused, 1);
    assert_int_equal(t.slots, 1);
    job_free(first);
    job_free(b);
    job_free(c);
    wait_for_free_slots(s);
    scheduler_get_stats(s, &t);
    assert_int_equal(t.state_bytes, 0);
    scheduler_free(s);
    linnet_model_close(m);
}

static void test_refusals(void **state) {
    static const struct {
        int what;
        linnet_status code;
        const char *text;
    } cases[] = {{0, LINNET_ERR_ARGUMENT, "no tokens"},
                 {1, LINNET_ERR_CONTEXT, "has 300 tokens, the context 256"},
                 {2, LINNET_ERR_ARGUMENT, "token 3 is 300, expected 0 to 299"},
                 {3, LINNET_ERR_ARGUMENT, "token 0 is -1"},
                 {4, LINNET_ERR_ARGUMENT, "top_logprobs is 301"}};
    (void)state;
    linnet_model *m = open_one(talker);
    linnet_error err;
    job *j;
    scheduler *s = start(m, NULL, 1, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[300] = {0};
        job_request r = ask(ids, 300, 1);
        r.n_prompt = cases[i].what == 0 ? 0 : cases[i].what == 1 ? 300 : 5;
        if (cases[i].what == 2) r.prompt[3] = 300;
        if (cases[i].what == 3) r.prompt[0] = -1;
        if (cases[i].what == 4) r.top_logprobs = 301;
        add_stop(&r, "freed");
        assert_int_equal(scheduler_submit(s, &r, &j, &err), cases[i].code);
        if (!strstr(err.text, cases[i].text)) fail_msg("%s", err.text);
    }
    /* The sampler refuses at its first token: the job fails, the next one runs. */
    job_request r = quick("x", 3);
    r.sampling.temperature = -1;
    outcome *o = run_job(s, r);
    assert_int_equal(o->end->end, JOB_FAILED);
    assert_int_equal(o->end->error.code, LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(o->end->error.text, "temperature"));
    forget(o);
    o = run_job(s, quick("x", 3));
    assert_int_equal(o->end->end, JOB_LENGTH);
    forget(o);
    scheduler_free(s);

    scheduler_options wrong = {.model = m, .slots = 0};
    assert_int_equal(scheduler_start(&s, &wrong, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "expected 1 to 4096, not 0"));
    wrong = (scheduler_options){.model = m, .slots = 1, .session = {.ctx = -1}};
    assert_int_equal(scheduler_start(&s, &wrong, &err), LINNET_ERR_ARGUMENT);
    linnet_model_close(m);
    m = open_one("tests/data/window_modes/terrace.gguf");
    wrong =
        (scheduler_options){.model = m, .slots = 1, .session = {.window_mode = LINNET_TERRACE_HF}};
    assert_int_equal(scheduler_start(&s, &wrong, &err), LINNET_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "terrace-hf"));
    linnet_model_close(m);

    m = open_one("tests/data/models/llama_f16.gguf");
    s = start(m, NULL, 1, 0);
    r = quick("x", 1);
    r.json = true;
    assert_int_equal(scheduler_submit(s, &r, &j, &err), LINNET_ERR_TOKENIZER);
    assert_non_null(strstr(err.text, "JSON mode"));
    scheduler_free(s);
    linnet_model_close(m);
}

/* ---- Cancelling, deadlines, draining ------------------------------------------------------- */

static void test_cancel_in_prefill(void **state) {
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start_with(&(scheduler_options){
        .model = m, .slots = 2, .max_queue = 10, .piece = 64, .session = long_context});
    job *j = submit(s, endless());
    outcome *o = calloc(1, sizeof *o);
    read_until(j, o, EVENT_PROGRESS);
    read_until(j, o, EVENT_PROGRESS);
    /* A job beside it is not held up: it says all it has to say. */
    outcome *other = run_job(s, quick("other", 20));
    assert_int_equal(other->end->end, JOB_LENGTH);
    forget(other);
    double began = now();
    job_cancel(j);
    finish(j, o);
    assert_int_equal(o->end->end, JOB_CANCELLED);
    assert_true(now() - began < 5);
    assert_true(o->last_progress < 60000);
    assert_null(o->end->session);
    forget(o);
    wait_for_free_slots(s);
    /* Readers that leave without a word. */
    for (int i = 0; i < 4; i++)
        job_free(submit(s, endless()));
    job_request late = endless();
    late.seconds = 0.05;
    o = run_job(s, late);
    assert_int_equal(o->end->end, JOB_DEADLINE);
    forget(o);
    wait_for_free_slots(s);
    scheduler_stats t;
    scheduler_get_stats(s, &t);
    assert_int_equal(t.cancelled, 5);
    assert_int_equal(t.state_bytes, 0);
    scheduler_free(s);
    linnet_model_close(m);
}

/* A job that waits is too late or unwanted while the only slot is taken. */
static void test_cancel_in_queue(void **state) {
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start_with(&(scheduler_options){
        .model = m, .slots = 1, .max_queue = 10, .piece = 64, .session = long_context});
    job *busy = submit(s, endless()), *a = submit(s, endless());
    job_request r = endless();
    r.seconds = 0.01;
    outcome *late = run_job(s, r);
    assert_int_equal(late->end->end, JOB_DEADLINE);
    assert_int_equal(late->n_progress, 0);
    forget(late);
    scheduler_stats t;
    scheduler_get_stats(s, &t);
    assert_int_equal(t.cancelled, 0);
    assert_true(t.queue_seconds >= 0.01);
    job_cancel(a);
    outcome *o = calloc(1, sizeof *o);
    finish(a, o);
    assert_int_equal(o->end->end, JOB_CANCELLED);
    forget(o);
    job_free(busy);
    scheduler_free(s);
    linnet_model_close(m);
}

/* A reader that falls behind has its job cancelled; what it did not read yet it still gets. */
static void test_slow_reader(void **state) {
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start_with(&(scheduler_options){.model = m, .slots = 1, .unread = 10});
    job *j = submit(s, quick("slow", 300));
    wait_for_free_slots(s);
    outcome *o = calloc(1, sizeof *o);
    finish(j, o);
    assert_int_equal(o->end->end, JOB_CANCELLED);
    assert_int_equal(o->n_tokens, 11);
    forget(o);
    scheduler_stats t;
    scheduler_get_stats(s, &t);
    assert_int_equal(t.cancelled, 1);
    scheduler_free(s);

    /* One that is less behind gets it all. */
    s = start_with(&(scheduler_options){.model = m, .slots = 1});
    j = submit(s, quick("not so slow", 300));
    wait_for_free_slots(s);
    o = calloc(1, sizeof *o);
    finish(j, o);
    assert_int_equal(o->end->end, JOB_LENGTH);
    assert_int_equal(o->n_tokens, 300);
    forget(o);
    scheduler_free(s);
    linnet_model_close(m);
}

static void *drain(void *s) {
    scheduler_drain(s, 0.2);
    return NULL;
}

static void test_drain(void **state) {
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start_with(&(scheduler_options){
        .model = m, .slots = 1, .max_queue = 10, .piece = 64, .session = long_context});
    linnet_error err;
    job *running = submit(s, endless()), *waiting = submit(s, endless()), *j;
    assert_false(scheduler_draining(s));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, drain, s), 0);
    while (!scheduler_draining(s))
        usleep(1000);
    job_request r = quick("x", 1);
    assert_int_equal(scheduler_submit(s, &r, &j, &err), LINNET_ERR_MEMORY);
    assert_non_null(strstr(err.text, "shutting down"));
    outcome *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    finish(running, a);
    finish(waiting, b);
    assert_int_equal(a->end->end, JOB_CANCELLED);
    assert_int_equal(b->end->end, JOB_CANCELLED);
    pthread_join(thread, NULL);
    forget(a);
    forget(b);
    scheduler_free(s);

    /* What ends by itself in time does. */
    s = start(m, NULL, 1, 0);
    running = submit(s, quick("x", 5));
    scheduler_drain(s, 30);
    a = calloc(1, sizeof *a);
    finish(running, a);
    assert_int_equal(a->end->end, JOB_LENGTH);
    forget(a);
    scheduler_free(s);
    linnet_model_close(m);
}

static void test_idle(void **state) {
    (void)state;
    linnet_model *m = open_one(talker);
    scheduler *s = start(m, NULL, 2, 0);
    forget(run_job(s, quick("x", 3)));
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    usleep(300000);
    getrusage(RUSAGE_SELF, &after);
    double used = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) +
                  (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec) * 1e-6;
    assert_true(used < 0.05);
    scheduler_free(s);
    linnet_model_close(m);
}

/* ---- Many readers -------------------------------------------------------------------------- */

typedef struct {
    scheduler *s;
    int number;
} client;

static void *read_and_leave(void *user) {
    client *c = user;
    for (int i = 0; i < 6; i++) {
        char owner[16];
        snprintf(owner, sizeof owner, "%d", c->number % 3);
        job_request r = quick(owner, 15);
        r.sampling.temperature = 1;
        r.sampling.seed = (uint64_t)(c->number * 10 + i);
        job *j = submit(c->s, r);
        if ((c->number + i) % 3 == 0) {
            event_free(job_next(j, 10));
            job_free(j);
            continue;
        }
        outcome *o = calloc(1, sizeof *o);
        finish(j, o);
        if (o->end->end != JOB_LENGTH || o->n_tokens != 15) abort();
        scheduler_stats t;
        scheduler_get_stats(c->s, &t);
        forget(o);
    }
    return NULL;
}

static void test_many_readers(void **state) {
    (void)state;
    linnet_model *m = open_one(talker);
    linnet_cache *cache = open_cache(m, 64);
    scheduler *s = start(m, cache, 4, 0);
    enum { CLIENTS = 12 };
    pthread_t threads[CLIENTS];
    client clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (client){s, i};
        assert_int_equal(pthread_create(&threads[i], NULL, read_and_leave, &clients[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(threads[i], NULL);
    wait_for_free_slots(s);
    scheduler_stats t;
    scheduler_get_stats(s, &t);
    assert_int_equal(t.jobs, CLIENTS * 6);
    scheduler_free(s);
    linnet_cache_free(cache);
    linnet_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fair_queue),      cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_cancel_in_prefill),
        cmocka_unit_test(test_cancel_in_queue), cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_drain),           cmocka_unit_test(test_idle),
        cmocka_unit_test(test_many_readers),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
