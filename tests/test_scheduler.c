/* Slots, queue and events: every job says what it would say alone, bit for bit, whatever else runs;
 * jobs that are cancelled, late, too long or faulty end alone. */
#include "../server/scheduler.h"
#include "../weights/gguf.h"
#include "copy_model.h"
#include "support.h"

#include <glob.h>
#include <jansson.h>
#include <pthread.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const char *const talker = "tests/data/models/text.gguf";
static char folder[] = "/tmp/linnet-scheduler-XXXXXX", hybrid[64], broken[64];

/* ---- Running jobs -------------------------------------------------------------------------- */

enum { MOST_TOP = 3, MOST_TOKENS = 400, MOST_PROMPT = 4096 };

typedef struct {
    event *end;
    char text[8192];
    size_t n_tokens, n_prompt_tokens, n_progress, last_progress;
    token_logprob tokens[MOST_TOKENS], top[MOST_TOKENS][MOST_TOP];
    token_logprob *prompt; /* [MOST_PROMPT], or NULL: none wanted */
    bool progress_fell;
} outcome;

static linnet_model *open_one(const char *path) {
    return open_model(path, &(linnet_model_options){.threads = 1});
}

static scheduler *start_with(const scheduler_options *o) {
    linnet_error err;
    scheduler *s;
    if (scheduler_start(&s, o, &err)) fail_msg("%s", err.text);
    return s;
}

static scheduler *start(linnet_model *m, linnet_cache *cache, size_t slots, size_t piece) {
    return start_with(&(scheduler_options){
        .model = m, .cache = cache, .slots = slots, .max_queue = 1000, .piece = piece});
}

static linnet_cache *open_cache(linnet_model *m, size_t every) {
    linnet_error err;
    linnet_cache *c;
    if (linnet_cache_new(&c, m, &(linnet_cache_options){.every = every}, &err))
        fail_msg("%s", err.text);
    return c;
}

static job_request ask(const int32_t *prompt, size_t n, size_t max_tokens) {
    job_request r = {.n_prompt = n, .max_tokens = max_tokens, .top_logprobs = -1};
    linnet_sampling p = LINNET_SAMPLING_DEFAULT;
    r.prompt = malloc(n * sizeof *r.prompt);
    memcpy(r.prompt, prompt, n * sizeof *r.prompt);
    r.sampling = p;
    snprintf(r.owner, sizeof r.owner, "someone");
    return r;
}

static job_request ask_text(linnet_model *m, const char *text, size_t max_tokens) {
    int32_t ids[512];
    size_t n;
    assert_int_equal(linnet_tokenize(m, text, strlen(text), LINNET_ADD_BOS, ids, 512, &n, NULL), 0);
    return ask(ids, n, max_tokens);
}

static void add_stop(job_request *r, const char *stop) {
    r->stops = realloc(r->stops, (r->n_stops + 1) * sizeof *r->stops);
    r->stops[r->n_stops++] = strdup(stop);
}

/* Adds to the logit of one token. */
static void add_bias(job_request *r, int32_t token, float bias) {
    size_t n = r->sampling.n_bias;
    linnet_logit_bias *list = malloc((n + 1) * sizeof *list);
    if (n) memcpy(list, r->sampling.bias, n * sizeof *list);
    list[n] = (linnet_logit_bias){token, bias};
    free((void *)(uintptr_t)r->sampling.bias);
    r->sampling.bias = list;
    r->sampling.n_bias = n + 1;
}

static job *submit(scheduler *s, job_request r) {
    linnet_error err;
    job *j;
    if (scheduler_submit(s, &r, &j, &err)) fail_msg("%s", err.text);
    return j;
}

/* Takes the events up to one of `kind`, or the end. */
static void read_until(job *j, outcome *o, event_kind kind) {
    for (bool over = o->end != NULL; !over;) {
        event *e = job_next(j, 60);
        if (!e) fail_msg("no event for a minute");
        over = e->kind == kind;
        if (e->text) strcat(o->text, e->text);
        switch (e->kind) {
        case EVENT_PROGRESS:
            o->progress_fell = o->progress_fell || e->done < o->last_progress;
            o->last_progress = e->done;
            o->n_progress++;
            break;
        case EVENT_PROMPT:
            assert_int_equal(e->done, o->n_prompt_tokens);
            if (o->prompt) o->prompt[o->n_prompt_tokens] = e->token;
            o->n_prompt_tokens++;
            break;
        case EVENT_TOKEN:
            assert_int_equal(e->done, o->n_tokens);
            assert_true(o->n_tokens < MOST_TOKENS);
            memcpy(o->top[o->n_tokens], e->top, e->n_top * sizeof *e->top);
            o->tokens[o->n_tokens++] = e->token;
            break;
        case EVENT_END:
            assert_int_equal(e->n_sampled, o->n_tokens);
            assert_null(job_next(j, 60)); /* at once: it is over */
            o->end = e;
            over = true;
            continue;
        }
        event_free(e);
    }
}

static void finish(job *j, outcome *o) {
    read_until(j, o, EVENT_END);
    job_free(j);
    assert_false(o->progress_fell);
}

static outcome *run_job(scheduler *s, job_request r) {
    outcome *o = calloc(1, sizeof *o);
    finish(submit(s, r), o);
    return o;
}

static void forget(outcome *o) {
    event_free(o->end);
    free(o->prompt);
    free(o);
}

static void wait_for_free_slots(scheduler *s) {
    scheduler_stats t;
    for (int i = 0; i < 1000; i++) {
        scheduler_get_stats(s, &t);
        if (!t.busy && !t.queued) return;
        usleep(10000);
    }
    fail_msg("%zu slots stay busy", t.busy);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- The same bits ------------------------------------------------------------------------- */

enum { JOBS = 16 };

/* Prompts of all lengths, some that begin alike, drawn tokens and greedy ones. */
static job_request job_of(int i, size_t width, size_t ctx) {
    static const size_t lengths[JOBS] = {1,  2,  130, 64, 65, 63, 7,   100,
                                         90, 33, 128, 5,  99, 17, 101, 48};
    int32_t ids[256] = {0};
    size_t n = lengths[i] + 24 < ctx ? lengths[i] : ctx / 4 + 1;
    for (size_t t = 0; t < n; t++)
        ids[t] = (int32_t)((t * (t + 3) + (i % 3 && t > 40 ? (size_t)i : 0)) % width);
    job_request r = ask(ids, n, (size_t)(4 + i));
    r.mark = n > 70 ? 66 : 0;
    r.top_logprobs = i % 4 ? MOST_TOP : -1;
    if (i % 4 == 0) r.top_logprobs = i % 8 ? 0 : -1;
    r.ignore_end = true;
    r.sampling.temperature = i % 2 ? 1.5f : 0;
    r.sampling.seed = (uint64_t)i;
    r.sampling.top_k = i % 5 ? 0 : 9;
    r.sampling.repeat_penalty = i % 3 ? 1 : 1.3f;
    r.prompt_logprobs = i == 3 || i == 10;
    r.keep = i % 2;
    snprintf(r.owner, sizeof r.owner, "owner %d", i % 5);
    return r;
}

static void same(const char *name, int i, const outcome *a, const outcome *b) {
    if (a->end->end != b->end->end || a->n_tokens != b->n_tokens ||
        memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) ||
        memcmp(a->top, b->top, sizeof a->top) || strcmp(a->text, b->text) ||
        a->n_prompt_tokens != b->n_prompt_tokens)
        fail_msg("%s: job %d differs from itself alone (%s)", name, i, b->end->error.text);
    if (a->prompt)
        assert_memory_equal(a->prompt + 1, b->prompt + 1,
                            (a->n_prompt_tokens - 1) * sizeof *a->prompt);
    assert_int_equal(!a->end->session, !b->end->session);
    if (!a->end->session) return;
    size_t n, k;
    const int32_t *x = linnet_session_tokens(a->end->session, &n);
    const int32_t *y = linnet_session_tokens(b->end->session, &k);
    assert_int_equal(n, k);
    assert_memory_equal(x, y, n * sizeof *x);
    assert_int_equal(linnet_session_size(a->end->session), linnet_session_size(b->end->session));
    uint64_t bytes = linnet_session_size(a->end->session);
    uint8_t *p = malloc(bytes), *q = malloc(bytes);
    assert_int_equal(linnet_session_save(a->end->session, p, bytes, NULL), 0);
    assert_int_equal(linnet_session_save(b->end->session, q, bytes, NULL), 0);
    if (memcmp(p, q, bytes)) fail_msg("%s: job %d leaves another state than alone", name, i);
    free(p);
    free(q);
}

static void together(const char *path, size_t slots, size_t piece, bool cached) {
    linnet_model *m = open_one(path);
    size_t width = (size_t)linnet_model_get_info(m)->n_rows;
    if (linnet_model_get_info(m)->n_vocab) width = (size_t)linnet_model_get_info(m)->n_vocab;
    linnet_session *s = open_session(m, NULL);
    size_t ctx = (size_t)linnet_session_ctx(s);
    linnet_session_free(s);
    outcome *alone[JOBS];
    scheduler *one = start(m, NULL, 1, 0);
    for (int i = 0; i < JOBS; i++) {
        job_request r = job_of(i, width, ctx);
        alone[i] = calloc(1, sizeof *alone[i]);
        if (r.prompt_logprobs) alone[i]->prompt = calloc(MOST_PROMPT, sizeof *alone[i]->prompt);
        finish(submit(one, r), alone[i]);
        assert_int_not_equal(alone[i]->end->end, JOB_FAILED);
    }
    scheduler_free(one);
    linnet_cache *cache = cached ? open_cache(m, 64) : NULL;
    scheduler *many = start(m, cache, slots, piece);
    job *jobs[JOBS];
    for (int i = 0; i < JOBS; i++)
        jobs[i] = submit(many, job_of(i, width, ctx));
    for (int i = 0; i < JOBS; i++) {
        outcome *o = calloc(1, sizeof *o);
        if (alone[i]->prompt) o->prompt = calloc(MOST_PROMPT, sizeof *o->prompt);
        finish(jobs[i], o);
        same(path, i, alone[i], o);
        forget(o);
        forget(alone[i]);
    }
    scheduler_free(many);
    linnet_cache_free(cache);
    linnet_model_close(m);
}

static void test_every_mixer(void **state) {
    glob_t found;
    (void)state;
    assert_int_equal(glob("tests/data/models/*.gguf", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++)
        together(found.gl_pathv[i], JOBS, 40, i % 2);
    globfree(&found);
}

static void test_few_slots(void **state) {
    (void)state;
    together(talker, 3, 17, true);
    together(talker, 2, 1, false);
    together(hybrid, 5, 64, true);
    together(hybrid, 16, 1000, true);
}

/* ---- Logprobs ------------------------------------------------------------------------------ */

static float by_hand(const float *row, size_t n, int32_t token) {
    double sum = 0, max = -INFINITY;
    for (size_t i = 0; i < n; i++)
        max = fmax(max, (double)row[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp((double)row[i] - max);
    return (float)((double)row[token] - max - log(sum));
}

static void test_logprobs(void **state) {
    (void)state;
    linnet_model *m = open_one(talker);
    size_t width = (size_t)linnet_model_get_info(m)->n_rows;
    linnet_cache *cache = open_cache(m, 64);
    scheduler *s = start(m, cache, 2, 20);
    for (int round = 0; round < 2; round++) { /* the second finds all of it in the cache */
        job_request r = ask_text(m,
                                 "the cat and the hat, the cat and the hat, and the rest of them "
                                 "that are in the cache by now",
                                 6);
        size_t n = r.n_prompt;
        int32_t ids[600];
        r.prompt_logprobs = true;
        r.top_logprobs = MOST_TOP;
        r.sampling.temperature = 1;
        r.sampling.seed = 5;
        add_bias(&r, 40, 3);
        outcome *o = calloc(1, sizeof *o);
        o->prompt = calloc(MOST_PROMPT, sizeof *o->prompt);
        finish(submit(s, r), o);
        assert_int_equal(o->n_tokens, 6);
        assert_int_equal(o->n_prompt_tokens, n);
        assert_int_equal(o->end->reuse.n_reused, 0);
        assert_int_equal(o->end->reuse.n_fed, n);
        assert_true(isnan(o->prompt[0].logprob));
        for (size_t i = 0; i < n; i++)
            ids[i] = o->prompt[i].token;
        for (size_t i = 0; i < 6; i++)
            ids[n + i] = o->tokens[i].token;
        float *rows = malloc((n + 6) * width * sizeof *rows);
        linnet_session *x = open_session(m, NULL);
        feed_all(x, ids, n + 6, 0, width, rows);
        for (size_t i = 1; i < n + 6; i++) {
            const float *row = rows + (i - 1) * width;
            token_logprob got = i < n ? o->prompt[i] : o->tokens[i - n];
            assert_int_equal(got.token, ids[i]);
            assert_float_equal(got.logprob, by_hand(row, width, ids[i]), 1e-5);
            if (i < n) continue;
            for (int k = 0; k < MOST_TOP; k++) {
                token_logprob t = o->top[i - n][k];
                size_t above = 0;
                assert_float_equal(t.logprob, by_hand(row, width, t.token), 1e-5);
                for (size_t v = 0; v < width; v++)
                    above += row[v] > row[t.token];
                assert_int_equal(above, k);
                if (t.token == got.token) assert_true(t.logprob == got.logprob);
            }
        }
        linnet_session_free(x);
        free(rows);
        forget(o);
    }
    scheduler_free(s);
    linnet_cache_free(cache);
    linnet_model_close(m);
}

/* ---- Ends ---------------------------------------------------------------------------------- */

/* The state of the end event is that of a session fed with its tokens; prompt and `rest` in place.
 */
static void check_kept(linnet_model *m, const outcome *o, const int32_t *prompt, size_t n_prompt) {
    size_t n, bytes, rest = strlen(o->end->rest);
    char text[8192];
    const int32_t *held = linnet_session_tokens(o->end->session, &n);
    assert_true(n >= n_prompt);
    assert_memory_equal(held, prompt, n_prompt * sizeof *held);
    for (size_t i = n_prompt; i < n - o->end->ended; i++)
        assert_int_equal(held[i], o->tokens[i - n_prompt].token);
    if (o->end->ended) assert_true(linnet_is_end(m, held[n - 1]));
    assert_int_equal(linnet_detokenize(m, held + n_prompt, n - n_prompt, LINNET_MIDDLE, text,
                                       sizeof text, &bytes, NULL),
                     0);
    assert_int_equal(bytes + rest, strlen(o->text));
    assert_memory_equal(text, o->text, bytes);
    assert_string_equal(o->text + bytes, o->end->rest);
    linnet_session *x = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(x, held, n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    const float *a = linnet_session_logits(x), *b = linnet_session_logits(o->end->session);
    assert_non_null(b);
    assert_memory_equal(a, b, (size_t)linnet_model_get_info(m)->n_rows * sizeof *a);
    linnet_session_free(x);
}

/* Every piece of what a model says as a stop string. */
static void test_stop_strings(void **state) {
    (void)state;
    const char *const models[] = {talker, hybrid};
    for (int k = 0; k < 2; k++) {
        linnet_model *m = open_one(models[k]);
        scheduler *s = start(m, NULL, 8, 0);
        for (uint64_t seed = 0; seed < 2; seed++) {
            job_request r = ask_text(m, "once and again", 60);
            r.sampling.temperature = 0.9f;
            r.sampling.seed = seed;
            r.ignore_end = true;
            add_bias(&r, 0, -INFINITY); /* a NUL is shown as U+FFFD */
            int32_t *prompt = r.prompt;
            size_t n_prompt = r.n_prompt;
            prompt = memcpy(malloc(n_prompt * sizeof *prompt), r.prompt, n_prompt * sizeof *prompt);
            outcome *all = run_job(s, r);
            assert_int_equal(all->end->end, JOB_LENGTH);
            size_t n = strlen(all->text);
            for (size_t at = 0; at + 1 < n; at += 1 + at % 3) {
                char stop[40];
                size_t length = 1 + (at * 7 + seed) % 11;
                if (at + length > n) length = n - at;
                memcpy(stop, all->text + at, length);
                stop[length] = 0;
                r = ask(prompt, n_prompt, 60);
                r.sampling.temperature = 0.9f;
                r.sampling.seed = seed;
                r.ignore_end = r.keep = true;
                add_bias(&r, 0, -INFINITY);
                add_stop(&r, "this is never said");
                add_stop(&r, stop);
                outcome *o = run_job(s, r);
                assert_int_equal(o->end->end, JOB_STOP);
                size_t shown = (size_t)(strstr(all->text, stop) - all->text);
                while (shown && ((unsigned char)all->text[shown] & 0xC0) == 0x80)
                    shown--;
                assert_int_equal(strlen(o->text), shown);
                assert_memory_equal(o->text, all->text, shown);
                assert_false(o->end->ended);
                check_kept(m, o, prompt, n_prompt);
                /* What is not in the session is less than the next token's text. */
                size_t held;
                linnet_session_tokens(o->end->session, &held);
                assert_true(held - n_prompt < o->n_tokens);
                forget(o);
            }
            forget(all);
            free(prompt);
        }
        scheduler_free(s);
        linnet_model_close(m);
    }
}

static int32_t end_token(linnet_model *m) {
    int32_t t = 0;
    while (!linnet_is_end(m, t))
        t++;
    return t;
}

static void test_ends(void **state) {
    (void)state;
    linnet_model *m = open_one(talker);
    scheduler *s = start(m, NULL, 2, 0);
    int32_t end = end_token(m);
    job_request r = ask_text(m, "and then", 0);
    size_t n = r.n_prompt, held;
    int32_t prompt[64];
    memcpy(prompt, r.prompt, n * sizeof *prompt);

    add_bias(&r, end, 1000);
    r.keep = true;
    outcome *o = run_job(s, r);
    assert_int_equal(o->end->end, JOB_END);
    assert_int_equal(o->n_tokens, 0);
    assert_true(o->end->ended);
    assert_string_equal(o->end->rest, "");
    linnet_session_tokens(o->end->session, &held);
    assert_int_equal(held, n + 1);
    check_kept(m, o, prompt, n);
    forget(o);

    r = ask(prompt, n, 0); /* the context: 256 */
    add_bias(&r, end, 1000);
    r.ignore_end = r.keep = true;
    o = run_job(s, r);
    assert_int_equal(o->end->end, JOB_CONTEXT);
    assert_int_equal(o->n_tokens, 256 - n);
    check_kept(m, o, prompt, n);
    forget(o);

    r = ask(prompt, n, 7);
    r.ignore_end = r.keep = true;
    o = run_job(s, r);
    assert_int_equal(o->end->end, JOB_LENGTH);
    assert_int_equal(o->n_tokens, 7);
    check_kept(m, o, prompt, n);
    linnet_session_tokens(o->end->session, &held);
    assert_int_equal(held, n + 7);
    assert_int_equal(o->end->state_bytes, linnet_session_state_bytes(o->end->session));
    assert_true(o->end->queue_seconds >= 0 && o->end->prefill_seconds > 0 &&
                o->end->decode_seconds > 0);

    /* The state goes on: as a start it saves the prompt's computation. */
    linnet_session *start_state = o->end->session;
    o->end->session = NULL;
    r = ask(linnet_session_tokens(start_state, NULL), held, 5);
    r.start = start_state;
    r.ignore_end = true;
    outcome *next = run_job(s, r);
    assert_int_equal(next->end->reuse.n_reused, held);
    assert_int_equal(next->end->reuse.n_fed, 0);
    r = ask(prompt, n, 12);
    r.ignore_end = true;
    outcome *whole = run_job(s, r);
    assert_memory_equal(whole->tokens + 7, next->tokens, 5 * sizeof *next->tokens);
    forget(whole);
    forget(next);
    forget(o);

    r = ask(prompt, n, 7);
    r.prefill_only = r.keep = true;
    o = run_job(s, r);
    assert_int_equal(o->end->end, JOB_LENGTH);
    assert_int_equal(o->n_tokens, 0);
    check_kept(m, o, prompt, n);
    forget(o);

    r = ask(prompt, n, 0);
    r.ignore_end = true;
    r.seconds = 1e-6;
    o = run_job(s, r);
    assert_int_equal(o->end->end, JOB_DEADLINE);
    forget(o);
    scheduler_free(s);
    linnet_model_close(m);
}

/* Whatever a reader saw when a job was cut from outside is in session and rest. */
static void test_cut_from_outside(void **state) {
    (void)state;
    linnet_model *m = open_one(hybrid);
    scheduler *s = start(m, NULL, 2, 0);
    for (int i = 0; i < 12; i++) {
        job_request r = ask_text(m, "say something", 300);
        size_t n = r.n_prompt;
        int32_t prompt[64];
        memcpy(prompt, r.prompt, n * sizeof *prompt);
        r.keep = true;
        r.sampling.temperature = 1;
        r.sampling.seed = (uint64_t)i;
        add_bias(&r, 0, -INFINITY); /* a NUL is shown as U+FFFD */
        if (i % 2) add_stop(&r, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
        r.ignore_end = true;
        job *j = submit(s, r);
        outcome *o = calloc(1, sizeof *o);
        for (int k = 0; k < 1 + i; k++)
            read_until(j, o, EVENT_TOKEN);
        job_cancel(j);
        finish(j, o);
        if (o->end->end == JOB_CANCELLED) {
            assert_non_null(o->end->session);
            size_t held, bytes;
            char text[8192];
            const int32_t *ids = linnet_session_tokens(o->end->session, &held);
            assert_true(held >= n && held <= n + o->n_tokens);
            assert_memory_equal(ids, prompt, n * sizeof *ids);
            linnet_detokenize(m, ids + n, held - n, LINNET_MIDDLE, text, sizeof text, &bytes, NULL);
            /* A character that was cut is U+FFFD here and may be whole there. */
            size_t same_bytes = bytes;
            while (same_bytes && memcmp(text, o->text, same_bytes))
                same_bytes--;
            assert_true(same_bytes + 4 > bytes);
        }
        forget(o);
    }
    scheduler_free(s);
    linnet_model_close(m);
}

/* ---- Queue --------------------------------------------------------------------------------- */

static job_request quick(const char *owner, size_t tokens) {
    int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    job_request r = ask(ids, 8, tokens);
    r.ignore_end = true;
    snprintf(r.owner, sizeof r.owner, "%s", owner);
    return r;
}

/* 60,000 tokens of a model without an end: minutes of prefill. */
static job_request endless(void) {
    enum { LONG = 60000 };
    int32_t *ids = malloc(LONG * sizeof *ids);
    for (int i = 0; i < LONG; i++)
        ids[i] = i * i % 251;
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
    job_cancel(a);
    outcome *o = calloc(1, sizeof *o);
    finish(a, o);
    assert_int_equal(o->end->end, JOB_CANCELLED);
    forget(o);
    job_free(busy);
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

/* ---- Reuse --------------------------------------------------------------------------------- */

/* Jobs that begin alike and come at once: one of them computes the beginning. */
static void test_shared_beginnings(void **state) {
    (void)state;
    const char *const models[] = {talker, hybrid};
    for (int k = 0; k < 2; k++) {
        linnet_model *m = open_one(models[k]);
        linnet_cache *cache = open_cache(m, 64);
        scheduler *s = start(m, cache, 4, 16);
        int32_t ids[200];
        job *jobs[4];
        size_t fed = 0;
        for (int t = 0; t < 200; t++)
            ids[t] = (t * t + 7 * t) % 256;
        for (int i = 0; i < 4; i++) {
            ids[199] = i; /* 199 tokens are the same */
            job_request r = ask(ids, 200, 2);
            r.mark = 190;
            jobs[i] = submit(s, r);
        }
        for (int i = 0; i < 4; i++) {
            outcome *o = calloc(1, sizeof *o);
            finish(jobs[i], o);
            assert_int_equal(o->n_tokens <= 2, 1);
            assert_int_equal(o->end->reuse.n_fed + o->end->reuse.n_reused, 200);
            assert_true(strlen(o->end->reuse.text) > 0);
            fed += o->end->reuse.n_fed;
            forget(o);
        }
        /* The last snapshot of 199 common tokens is at the mark, or at 128. */
        if (fed > 200 + 3 * 72) fail_msg("%s: %zu tokens were computed", models[k], fed);
        scheduler_stats t;
        scheduler_get_stats(s, &t);
        assert_int_equal(t.prompt_tokens, 800);
        assert_int_equal(t.cached_tokens, 800 - fed);
        scheduler_free(s);
        linnet_cache_free(cache);
        linnet_model_close(m);
    }
}

/* ---- Faults -------------------------------------------------------------------------------- */

enum { POISON = 'Z' };

/* The hybrid, with NaN in the embedding of one token. */
static void break_model(const char *from, const char *to) {
    linnet_error err;
    gguf *g;
    if (gguf_open(&g, from, false, &err)) fail_msg("%s", err.text);
    uint64_t at = 0, bytes;
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    for (size_t i = 0; !at; i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        if (!strcmp(t->name, "token_embd.weight")) at = t->offset + POISON * t->dims[0] * 4;
    }
    gguf_close(g);
    fseek(in, 0, SEEK_END);
    bytes = (uint64_t)ftell(in);
    rewind(in);
    char *data = malloc(bytes);
    float nan = NAN;
    assert_int_equal(fread(data, 1, bytes, in), bytes);
    memcpy(data + at, &nan, sizeof nan);
    assert_int_equal(fwrite(data, 1, bytes, out), bytes);
    free(data);
    fclose(in);
    fclose(out);
}

/* One job's NaN, in its prompt or in a decode step, ends that job alone; the others, whose
 * recurrent states the failing step took along, say what they say alone. */
static void test_one_faulty_job(void **state) {
    (void)state;
    linnet_model *m = open_one(broken);
    enum { N = 6 };
    outcome *alone[N];
    for (int at = 0; at < 4; at++) {
        scheduler *s = start(m, NULL, at == 3 ? 1 : N, 32);
        job *jobs[N];
        for (int round = 0; round < 2; round++) {
            for (int i = 0; i < N; i++) {
                int32_t ids[100];
                size_t n = (size_t)(10 + 13 * i);
                for (size_t t = 0; t < n; t++)
                    ids[t] = (int32_t)((t * t + (size_t)i) % 64);
                bool faulty = round && i == 2;
                if (faulty && at == 0) ids[n - 3] = POISON;
                job_request r = ask(ids, n, 30);
                r.sampling.temperature = 1;
                r.sampling.seed = (uint64_t)i;
                r.keep = true;
                for (int32_t t = 64; t < 256; t++)
                    if (t == POISON) add_bias(&r, t, faulty && at ? (float)(at * at) : -INFINITY);
                jobs[i] = submit(s, r);
                if (!round) {
                    alone[i] = calloc(1, sizeof *alone[i]);
                    finish(jobs[i], alone[i]);
                    assert_int_equal(alone[i]->end->end, JOB_LENGTH);
                }
            }
            for (int i = 0; round && i < N; i++) {
                outcome *o = calloc(1, sizeof *o);
                finish(jobs[i], o);
                if (i == 2) {
                    assert_int_equal(o->end->end, JOB_FAILED);
                    assert_int_equal(o->end->error.code, LINNET_ERR_NUMERIC);
                    assert_null(o->end->session);
                } else {
                    same("one faulty job", i, alone[i], o);
                }
                forget(o);
                forget(alone[i]);
            }
        }
        scheduler_stats t;
        scheduler_get_stats(s, &t);
        assert_int_equal(t.failed, 1);
        scheduler_free(s);
    }
    linnet_model_close(m);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static void test_json(void **state) {
    (void)state;
    linnet_model *m = open_one(talker);
    scheduler *s = start(m, NULL, 8, 0);
    int whole = 0;
    job *jobs[24];
    for (int i = 0; i < 24; i++) {
        job_request r = ask_text(m, "answer in json", (size_t)(20 + 8 * i));
        r.json = true;
        r.sampling.temperature = 2;
        r.sampling.seed = (uint64_t)i;
        add_bias(&r, '}' - 33, 5);
        add_bias(&r, '"' - 33, 5);
        jobs[i] = submit(s, r);
    }
    for (int i = 0; i < 24; i++) {
        outcome *o = calloc(1, sizeof *o);
        finish(jobs[i], o);
        json_error_t e;
        json_t *j = json_loads(o->text, 0, &e);
        if (o->end->end == JOB_END) {
            if (!json_is_object(j)) fail_msg("%s: %s", e.text, o->text);
            whole++;
        } else {
            assert_int_equal(o->end->end, JOB_LENGTH);
            assert_null(j);
        }
        json_decref(j);
        forget(o);
    }
    assert_true(whole >= 5);
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

static int make_models(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return 1;
    snprintf(hybrid, sizeof hybrid, "%s/hybrid.gguf", folder);
    snprintf(broken, sizeof broken, "%s/broken.gguf", folder);
    write_random_model(hybrid);
    break_model(hybrid, broken);
    return 0;
}

static int remove_models(void **state) {
    (void)state;
    unlink(hybrid);
    unlink(broken);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mixer),
        cmocka_unit_test(test_few_slots),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_cut_from_outside),
        cmocka_unit_test(test_fair_queue),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_cancel_in_prefill),
        cmocka_unit_test(test_cancel_in_queue),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_shared_beginnings),
        cmocka_unit_test(test_one_faulty_job),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_many_readers),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
