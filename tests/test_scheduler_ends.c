/* How jobs end, and what they leave: session, rest, the end token. */
#include "jobs.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_cut_from_outside),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
