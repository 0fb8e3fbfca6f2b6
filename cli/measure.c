#include "measure.h"

#include <stdlib.h>
#include <string.h>

#include "../linnet_tools.h"
#include "machine.h"
#include "random.h"

typedef struct {
    const bench_test *test;
    linnet_model *model;
    linnet_session_options options;
    linnet_session **sessions; /* [n_seqs] */
    linnet_item *prefill, *step;
    /* Random ids: depth [n_depth], the same for every session; prompts [n_seqs][n_prompt]; steps
     * [n_gen][n_seqs]. */
    int32_t *depth, *prompts, *steps;
    linnet_session *base; /* at the depth */
    void *saved;          /* base, as bytes */
    size_t saved_bytes;
    bool refeed; /* a batch on a GPU: its depth is fed again, which is faster than moving states */
} bench;

static linnet_status no_memory(linnet_error *err, const char *what) {
    snprintf(err->text, sizeof err->text, "no memory for %s", what);
    return err->code = LINNET_ERR_MEMORY;
}

/* ---- ids ---------------------------------------------------------------------------------- */

/* Every run feeds the same ids. */
static void random_ids(random_stream *r, int32_t *ids, size_t n, int n_ids) {
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)random_next(r, (uint64_t)n_ids);
}

static linnet_status make_ids(bench *x, linnet_error *err) {
    const bench_test *t = x->test;
    const linnet_model_info *info = linnet_model_get_info(x->model);
    size_t depth = (size_t)t->n_depth, n = (size_t)t->n_seqs;
    size_t prompts = n * (size_t)t->n_prompt, steps = n * (size_t)t->n_gen;
    int n_ids = info->n_vocab ? info->n_vocab : info->n_rows;
    x->depth = calloc(depth + 1, sizeof *x->depth);
    x->prompts = calloc(prompts + 1, sizeof *x->prompts);
    x->steps = calloc(steps + 1, sizeof *x->steps);
    if (!x->depth || !x->prompts || !x->steps) return no_memory(err, "token ids");
    random_stream random = {0};
    random_ids(&random, x->depth, depth, n_ids);
    random_ids(&random, x->prompts, prompts, n_ids);
    random_ids(&random, x->steps, steps, n_ids);
    if (!info->add_bos || info->bos < 0) return LINNET_OK;
    for (size_t i = 0; i < n; i++) /* a text's first token, wherever it starts */
        *(depth         ? x->depth
          : t->n_prompt ? x->prompts + i * (size_t)t->n_prompt
                        : x->steps + i) = info->bos;
    return LINNET_OK;
}

/* ---- sessions ----------------------------------------------------------------------------- */

static linnet_status make_sessions(bench *x, linnet_error *err) {
    size_t n = (size_t)x->test->n_seqs;
    x->sessions = calloc(n, sizeof *x->sessions);
    x->prefill = calloc(n, sizeof *x->prefill);
    x->step = calloc(n, sizeof *x->step);
    if (!x->sessions || !x->prefill || !x->step) return no_memory(err, "a list of sessions");
    linnet_status s = LINNET_OK;
    for (size_t i = 0; i < n && !s; i++)
        s = linnet_session_new(&x->sessions[i], x->model, &x->options, err);
    return s;
}

/* The depth is fed once. One session goes on from it as a fork; many load its bytes, so that each
 * has keys and values of its own in memory: those of forks are shared, and a batch would find them
 * in the cache. On a GPU each is fed. */
static linnet_status reach_depth(bench *x, linnet_error *err) {
    const bench_test *t = x->test;
    linnet_status s;
    x->refeed =
        t->n_seqs > 1 && t->n_depth && strcmp(linnet_model_get_info(x->model)->backend, "cpu");
    if (!t->n_depth || x->refeed) return LINNET_OK;
    if ((s = linnet_session_new(&x->base, x->model, &x->options, err)) ||
        (s = linnet_feed(x->base, x->depth, (size_t)t->n_depth, LINNET_LOGITS_NONE, err)) ||
        t->n_seqs == 1)
        return s;
    x->saved_bytes = (size_t)linnet_session_size(x->base);
    if (!(x->saved = malloc(x->saved_bytes))) return no_memory(err, "a copy of the state");
    if ((s = linnet_session_save(x->base, x->saved, x->saved_bytes, err))) return s;
    linnet_session_free(x->base);
    x->base = NULL;
    return LINNET_OK;
}

static linnet_status restore(bench *x, linnet_error *err) {
    linnet_status s = LINNET_OK;
    for (int i = 0; i < x->test->n_seqs && !s; i++) {
        if (x->base) {
            linnet_session_free(x->sessions[i]);
            x->sessions[i] = NULL;
            s = linnet_session_fork(x->base, &x->sessions[i], err);
        } else if (x->saved) {
            s = linnet_session_load(x->sessions[i], x->saved, x->saved_bytes, err);
        } else {
            linnet_session_reset(x->sessions[i]);
        }
        x->step[i] = (linnet_item){.session = x->sessions[i],
                                   .tokens = x->depth,
                                   .n_tokens = (size_t)x->test->n_depth,
                                   .want = LINNET_LOGITS_NONE};
    }
    if (!s && x->refeed) s = linnet_forward(x->step, (size_t)x->test->n_seqs, NULL, NULL, err);
    return s;
}

/* ---- timing ------------------------------------------------------------------------------- */

/* Nothing but linnet_forward happens between the two readings of the clock. Without a progress
 * function it makes no copies that a cancelled call would need. */
static linnet_status run_once(bench *x, uint64_t *total_ns, uint64_t *first_ns, linnet_error *err) {
    const bench_test *t = x->test;
    size_t n = (size_t)t->n_seqs;
    linnet_status s = restore(x, err);
    for (size_t i = 0; i < n; i++) {
        x->prefill[i] = (linnet_item){.session = x->sessions[i],
                                      .tokens = x->prompts + i * (size_t)t->n_prompt,
                                      .n_tokens = (size_t)t->n_prompt,
                                      .want = LINNET_LOGITS_LAST};
        x->step[i] = (linnet_item){.session = x->sessions[i],
                                   .tokens = x->steps + i,
                                   .n_tokens = 1,
                                   .want = LINNET_LOGITS_LAST};
    }
    if (s) return s;
    uint64_t start = nanoseconds_now();
    if (t->n_prompt) s = linnet_forward(x->prefill, n, NULL, NULL, err);
    uint64_t first = nanoseconds_now();
    for (int k = 0; k < t->n_gen && !s; k++) {
        s = linnet_forward(x->step, n, NULL, NULL, err);
        for (size_t i = 0; i < n; i++)
            x->step[i].tokens += n;
    }
    *total_ns = nanoseconds_now() - start;
    *first_ns = first - start;
    return s;
}

static linnet_status run_all(bench *x, int repeats, bool pin, json_t *out, linnet_error *err) {
    linnet_status s;
    uint64_t total, first;
    json_t *samples = json_array(), *firsts = json_array();
    json_object_set_new(out, "samples_ns", samples);
    json_object_set_new(out, "ttft_samples_ns", firsts);
    if ((s = make_ids(x, err)) || (s = make_sessions(x, err)) || (s = reach_depth(x, err)) ||
        (s = run_once(x, &total, &first, err))) /* to warm up; now all threads are there, too */
        return s;
    if (pin) json_object_set_new(out, "pinned", json_boolean(pin_threads()));
    for (int i = 0; i < repeats; i++) {
        if ((s = run_once(x, &total, &first, err))) return s;
        json_array_append_new(samples, json_integer((json_int_t)total));
        if (x->test->n_prompt) json_array_append_new(firsts, json_integer((json_int_t)first));
    }
    return LINNET_OK;
}

int measure(const engine *e, const char *model, const bench_test *test, int repeats, bool pin,
            json_t **out) {
    linnet_error err;
    linnet_model_options options;
    bench x = {
        .test = test,
        .options = {.ctx = test->n_depth + test->n_prompt + test->n_gen, .kv = engine_kv(e)}};
    int code = engine_options(e, false, &options);
    if (code) return code;
    *out = json_object();
    linnet_status s = linnet_model_open(&x.model, model, &options, &err);
    if (!s) {
        const linnet_model_info *info = linnet_model_get_info(x.model);
        bool gpu = strcmp(info->backend, "cpu");
        json_object_set_new(*out, "isa", gpu ? json_null() : json_string(info->isa));
        json_object_set_new(*out, "backends", json_string(gpu ? "CUDA" : "CPU"));
        json_object_set_new(*out, "gpu_info", json_text(gpu ? info->backend : ""));
        json_set_int(*out, "n_threads", (uint64_t)info->threads);
        s = run_all(&x, repeats, pin, *out, &err);
    }
    json_set_int(*out, "peak_rss_bytes", peak_rss_bytes());
    json_set_int(*out, "peak_vram_bytes", x.model ? linnet_model_gpu_bytes(x.model) : 0);
    if (s == LINNET_ERR_MEMORY) { /* a result, not a mistake */
        json_object_set_new(*out, "oom", json_true());
        json_object_set_new(*out, "error", json_text(err.text));
        s = LINNET_OK;
    }
    for (int i = 0; x.sessions && i < test->n_seqs; i++)
        linnet_session_free(x.sessions[i]);
    linnet_session_free(x.base);
    linnet_model_close(x.model);
    free(x.sessions);
    free(x.prefill);
    free(x.step);
    free(x.depth);
    free(x.prompts);
    free(x.steps);
    free(x.saved);
    return s ? failed_with(&err) : EXIT_WORKED;
}
