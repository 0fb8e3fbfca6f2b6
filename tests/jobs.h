/* Jobs of the scheduler, from the reader's side: what several tests of it need. */
#ifndef JOBS_H
#define JOBS_H

#include "../server/scheduler.h"
#include "copy_model.h"
#include "support.h"

#include <time.h>
#include <unistd.h>

/* ---- Models -------------------------------------------------------------------------------- */

/* The hybrid: recurrent layers and a softmax one, tokens are bytes, none ends a text. */
static const char *const talker = "tests/data/models/text.gguf";
static char folder[] = "/tmp/linnet-scheduler-XXXXXX", hybrid[64];

static inline int make_models(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return 1;
    snprintf(hybrid, sizeof hybrid, "%s/hybrid.gguf", folder);
    write_random_model(hybrid);
    return 0;
}

static inline int remove_models(void **state) {
    (void)state;
    unlink(hybrid);
    return rmdir(folder);
}

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

static inline linnet_model *open_one(const char *path) {
    return open_model(path, &(linnet_model_options){.threads = 1});
}

static inline scheduler *start_with(const scheduler_options *o) {
    linnet_error err;
    scheduler *s;
    if (scheduler_start(&s, o, &err)) fail_msg("%s", err.text);
    return s;
}

static inline scheduler *start(linnet_model *m, linnet_cache *cache, size_t slots, size_t piece) {
    return start_with(&(scheduler_options){
        .model = m, .cache = cache, .slots = slots, .max_queue = 1000, .piece = piece});
}

static inline linnet_cache *open_cache(linnet_model *m, size_t every) {
    linnet_error err;
    linnet_cache *c;
    if (linnet_cache_new(&c, m, &(linnet_cache_options){.every = every}, &err))
        fail_msg("%s", err.text);
    return c;
}

static inline job_request ask(const int32_t *prompt, size_t n, size_t max_tokens) {
    job_request r = {.n_prompt = n, .max_tokens = max_tokens, .top_logprobs = -1};
    linnet_sampling p = LINNET_SAMPLING_DEFAULT;
    r.prompt = malloc(n * sizeof *r.prompt);
    memcpy(r.prompt, prompt, n * sizeof *r.prompt);
    r.sampling = p;
    snprintf(r.owner, sizeof r.owner, "someone");
    return r;
}

static inline job_request ask_text(linnet_model *m, const char *text, size_t max_tokens) {
    int32_t ids[512];
    size_t n;
    assert_int_equal(linnet_tokenize(m, text, strlen(text), LINNET_ADD_BOS, ids, 512, &n, NULL), 0);
    return ask(ids, n, max_tokens);
}

static inline void add_stop(job_request *r, const char *stop) {
    r->stops = realloc(r->stops, (r->n_stops + 1) * sizeof *r->stops);
    r->stops[r->n_stops++] = strdup(stop);
}

/* Adds to the logit of one token. */
static inline void add_bias(job_request *r, int32_t token, float bias) {
    size_t n = r->sampling.n_bias;
    linnet_logit_bias *list = malloc((n + 1) * sizeof *list);
    if (n) memcpy(list, r->sampling.bias, n * sizeof *list);
    list[n] = (linnet_logit_bias){token, bias};
    free((void *)(uintptr_t)r->sampling.bias);
    r->sampling.bias = list;
    r->sampling.n_bias = n + 1;
}

static inline job *submit(scheduler *s, job_request r) {
    linnet_error err;
    job *j;
    if (scheduler_submit(s, &r, &j, &err)) fail_msg("%s", err.text);
    return j;
}

/* Takes the events up to one of `kind`, or the end. */
static inline void read_until(job *j, outcome *o, event_kind kind) {
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
            if (e->n_top) memcpy(o->top[o->n_tokens], e->top, e->n_top * sizeof *e->top);
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

static inline void finish(job *j, outcome *o) {
    read_until(j, o, EVENT_END);
    job_free(j);
    assert_false(o->progress_fell);
}

static inline outcome *run_job(scheduler *s, job_request r) {
    outcome *o = calloc(1, sizeof *o);
    finish(submit(s, r), o);
    return o;
}

static inline void forget(outcome *o) {
    event_free(o->end);
    free(o->prompt);
    free(o);
}

static inline void wait_for_free_slots(scheduler *s) {
    scheduler_stats t;
    for (int i = 0; i < 1000; i++) {
        scheduler_get_stats(s, &t);
        if (!t.busy && !t.queued) return;
        usleep(10000);
    }
    fail_msg("%zu slots stay busy", t.busy);
}

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline job_request quick(const char *owner, size_t tokens) {
    int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    job_request r = ask(ids, 8, tokens);
    r.ignore_end = true;
    snprintf(r.owner, sizeof r.owner, "%s", owner);
    return r;
}

#endif
