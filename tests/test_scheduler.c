/* The engine of the server: every job says what it would say alone, bit for bit, whatever else
 * runs; beginnings are shared; a faulty job fails alone. */
#include "../weights/gguf.h"
#include "jobs.h"

#include <glob.h>
#include <jansson.h>

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

static linnet_model *open_broken(void) {
    char broken[64];
    snprintf(broken, sizeof broken, "%s/broken.gguf", folder);
    break_model(hybrid, broken);
    linnet_model *m = open_one(broken);
    unlink(broken);
    return m;
}

/* One job's NaN, in its prompt or in a decode step, ends that job alone; the others, whose
 * recurrent states the failing step took along, say what they say alone. */
static void test_one_faulty_job(void **state) {
    (void)state;
    linnet_model *m = open_broken();
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

/* A job whose state another's NaN took is cancelled while its prompt is fed again: there is nothing
 * to keep, though it had begun to answer. */
static void test_cancelled_replay(void **state) {
    (void)state;
    linnet_model *m = open_broken();
    scheduler *s = start_with(&(scheduler_options){
        .model = m, .slots = 2, .max_queue = 2, .piece = 1, .session = {.ctx = 8192}});
    enum { N = 2000 };
    int32_t ids[N], poison = POISON;
    for (int i = 0; i < N; i++)
        ids[i] = i * i % 64;
    job_request r = ask(ids, N, 4000);
    r.keep = true;
    add_bias(&r, POISON, -INFINITY);
    job *j = submit(s, r);
    outcome *o = calloc(1, sizeof *o);
    read_until(j, o, EVENT_TOKEN);
    outcome *faulty = run_job(s, ask(&poison, 1, 5));
    assert_int_equal(faulty->end->end, JOB_FAILED);
    job_cancel(j);
    event *e;
    while ((e = job_next(j, 60))->kind != EVENT_END)
        event_free(e);
    assert_int_equal(e->end, JOB_CANCELLED);
    assert_null(e->session);
    event_free(e);
    job_free(j);
    free(o);
    forget(faulty);
    scheduler_free(s);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mixer),    cmocka_unit_test(test_few_slots),
        cmocka_unit_test(test_logprobs),       cmocka_unit_test(test_shared_beginnings),
        cmocka_unit_test(test_one_faulty_job), cmocka_unit_test(test_cancelled_replay),
        cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
