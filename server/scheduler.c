/* The engine thread: admits jobs into slots, advances all of them with one forward a step.
 *
 * Memory: a free slot has no session, so what runs is bounded by the slots, each with the state of
 * its context (linnet_model_state_bytes). The cache's snapshots are bounded by its own budget;
 * pages of keys and values that a session shares with a snapshot exist once and count for the
 * cache. So a server holds at most weights + slots x state of a full context + the cache's bytes,
 * and a job that finds no memory fails alone. */
#include "scheduler.h"
#include "../error.h"
#include "queue.h"
#include "slot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE = 256,
    UNREAD = 8192,
    LEAST_PIECE = 32, /* shares of a prefill are not cut smaller */
    MAX_SLOTS = 4096
};

/* A step takes no longer than about this on a slow machine, whatever the piece: a cancelled job
 * leaves its slot between two steps. */
static const double step_seconds = 0.25;

struct scheduler {
    scheduler_options options;
    slot_shared shared;
    slot *slots;
    slot **order;       /* of a step's prefills */
    linnet_item *items; /* [slots], and whose they are */
    slot **whose;
    pthread_t thread;
    uint64_t serial;
    size_t turn; /* which slot's prefill comes first */
    uint64_t steps;
    double seconds_per_row; /* of a prefill, as it was lately; 0: not known */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t work, idle;
    queue waiting;
    size_t busy;
    bool woken, stop_all, quit;
    atomic_bool draining; /* read without it */
    scheduler_stats stats;

    pthread_mutex_t json_lock; /* held while shared.json is made */
};

/* ---- Admission ---------------------------------------------------------------------------- */

static bool is_over(const job *j, double now, job_end *why) {
    if (atomic_load(&j->cancelled))
        *why = JOB_CANCELLED;
    else if (now >= j->deadline)
        *why = JOB_DEADLINE;
    else
        return false;
    return true;
}

static bool over_now(void *user, job *j) {
    job_end why;
    return *(bool *)user || is_over(j, clock_seconds(), &why);
}

/* Waiting jobs that were cancelled, or are too late. Locked. */
static void drop_waiting(scheduler *s) {
    for (job *j; (j = queue_remove(&s->waiting, over_now, &s->stop_all));) {
        event *e = job_take_end(j);
        e->end = JOB_CANCELLED;
        is_over(j, clock_seconds(), &e->end);
        e->n_prompt = j->r.n_prompt;
        e->queue_seconds = clock_seconds() - j->submitted;
        s->stats.cancelled += e->end == JOB_CANCELLED;
        s->stats.queue_seconds += e->queue_seconds;
        job_post(j, e);
        job_release(j);
    }
}

/* False while a prefill that begins alike is on its way to a longer snapshot than those a job has
 * waited for before: so every wait ends. */
static bool ready(void *user, job *j) {
    scheduler *s = user;
    for (size_t i = 0; i < s->options.slots; i++) {
        const slot *x = &s->slots[i];
        size_t tokens = slot_busy(x) ? slot_will_keep(x, j) : 0;
        if (!tokens || (x->serial != j->waited_for && tokens <= j->waited_tokens)) continue;
        j->waited_for = x->serial;
        if (tokens > j->waited_tokens) j->waited_tokens = tokens;
        return false;
    }
    return true;
}

/* What happened in the slots since the last time, to the statistics. */
static void account(scheduler *s) {
    uint64_t state_bytes = 0;
    for (size_t i = 0; i < s->options.slots; i++)
        if (slot_busy(&s->slots[i])) state_bytes += linnet_session_state_bytes(s->slots[i].session);
    pthread_mutex_lock(&s->lock);
    s->stats.state_bytes = state_bytes;
    for (size_t i = 0; i < s->options.slots; i++) {
        slot *x = &s->slots[i];
        if (!x->serial || x->accounted) continue;
        s->stats.sampled_tokens += x->n_sampled - x->n_accounted;
        x->n_accounted = x->n_sampled;
        if (slot_busy(x)) continue;
        x->accounted = true;
        s->busy--;
        s->stats.cancelled += x->why == JOB_CANCELLED;
        s->stats.failed += x->why == JOB_FAILED;
        s->stats.queue_seconds += x->queue_seconds;
        s->stats.prefill_seconds += x->prefill_seconds;
        s->stats.decode_seconds += x->decode_seconds;
    }
    pthread_mutex_unlock(&s->lock);
}

static void admit(scheduler *s) {
    for (size_t i = 0; i < s->options.slots; i++) {
        slot *x = &s->slots[i];
        if (slot_busy(x)) continue;
        pthread_mutex_lock(&s->lock);
        job *j = queue_take(&s->waiting, ready, s);
        if (j) s->busy++;
        pthread_mutex_unlock(&s->lock);
        if (!j) return;
        size_t n_prompt = j->r.n_prompt;
        slot_begin(x, &s->shared, j, ++s->serial); /* the job may be gone */
        pthread_mutex_lock(&s->lock);
        s->stats.prompt_tokens += n_prompt;
        s->stats.cached_tokens += x->reuse.n_reused;
        pthread_mutex_unlock(&s->lock);
    }
}

/* ---- A step ------------------------------------------------------------------------------- */

static int by_need(const void *a, const void *b) {
    const slot *x = *(slot *const *)a, *y = *(slot *const *)b;
    size_t m = x->n - x->held, n = y->n - y->held;
    return m != n ? (m > n) - (m < n) : (x > y) - (x < y);
}

static void add_item(scheduler *s, size_t *n, slot *x, size_t room) {
    slot_item(x, room, &s->items[*n]);
    s->whose[(*n)++] = x;
}

/* How many tokens of prefill a step with `n` decoding slots takes. */
static size_t prefill_room(const scheduler *s, size_t n) {
    size_t most = s->options.piece;
    if (s->seconds_per_row > 0) {
        double rows = step_seconds / s->seconds_per_row;
        if (rows < (double)most) most = rows < LEAST_PIECE ? LEAST_PIECE : (size_t)rows;
        if (most > s->options.piece) most = s->options.piece;
    }
    return most > 2 * n ? most - n : (most + 1) / 2;
}

/* One token of every decoding slot, and what fits of the prefills: a share each, those that need
 * less first; where shares would be too small some wait for the next step. */
static size_t collect(scheduler *s) {
    size_t n = 0, n_prefill = 0, slots = s->options.slots;
    for (size_t i = 0; i < slots; i++) {
        slot *x = &s->slots[(s->turn + i) % slots];
        if (!slot_busy(x) || x->alone) continue;
        if (slot_decodes(x))
            add_item(s, &n, x, 1);
        else
            s->order[n_prefill++] = x;
    }
    size_t room = prefill_room(s, n), at_once = (room + LEAST_PIECE - 1) / LEAST_PIECE;
    if (n_prefill > at_once) {
        s->turn = (size_t)(s->order[at_once] - s->slots);
        n_prefill = at_once;
    }
    qsort(s->order, n_prefill, sizeof *s->order, by_need);
    for (size_t i = 0; i < n_prefill && room; i++) {
        size_t share = room / (n_prefill - i);
        add_item(s, &n, s->order[i], share ? share : 1);
        room -= s->items[n - 1].n_tokens;
    }
    return n;
}

/* linnet_forward, timed. */
static linnet_status forward(scheduler *s, size_t n, linnet_error *err) {
    double began = clock_seconds();
    size_t rows = 0;
    linnet_status status = linnet_forward(s->items, n, NULL, NULL, err);
    for (size_t i = 0; i < n; i++)
        rows += s->items[i].n_tokens;
    if (!status && rows >= LEAST_PIECE) {
        double now = (clock_seconds() - began) / (double)rows, before = s->seconds_per_row;
        s->seconds_per_row = before > 0 ? 0.8 * before + 0.2 * now : now;
    }
    s->steps++;
    return status;
}

/* An item failed by itself. */
static void fail_slot(slot *x, linnet_error *err) {
    if (x->starved) fail(err, LINNET_ERR_MEMORY, "no memory for an event");
    slot_fail(x, err);
}

/* Items that failed together, one by one: whose fault was it? A session whose state the error took
 * begins again, by itself until it is past the place; the guilty one fails there. */
static void find_guilty(scheduler *s, size_t n) {
    linnet_error err;
    for (size_t i = 0; i < n; i++) {
        slot *x = s->whose[i];
        linnet_status status = linnet_forward(&s->items[i], 1, NULL, NULL, &err);
        if (!status)
            slot_fed(x, &s->items[i]);
        else if (status == LINNET_ERR_ARGUMENT)
            slot_replay(x);
        else
            fail_slot(x, &err);
    }
}

static void step(scheduler *s) {
    linnet_error err;
    size_t n = collect(s);
    if (n && forward(s, n, &err)) {
        if (n > 1)
            find_guilty(s, n);
        else
            fail_slot(s->whose[0], &err);
    } else {
        for (size_t i = 0; i < n; i++)
            slot_fed(s->whose[i], &s->items[i]);
    }
    for (size_t i = 0; i < s->options.slots; i++) {
        slot *x = &s->slots[i];
        if (!slot_busy(x) || !x->alone) continue;
        slot_item(x, s->options.piece, s->items);
        if (forward(s, 1, &err))
            fail_slot(x, &err);
        else
            slot_fed(x, s->items);
    }
}

/* ---- The thread --------------------------------------------------------------------------- */

static void stop_running(scheduler *s, bool all) {
    double now = clock_seconds();
    for (size_t i = 0; i < s->options.slots; i++) {
        slot *x = &s->slots[i];
        job_end why = JOB_CANCELLED;
        if (slot_busy(x) && (is_over(x->job, now, &why) || all)) slot_stop(x, why);
    }
}

static void *run(void *arg) {
    scheduler *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        drop_waiting(s);
        if (!s->busy && !s->waiting.n) {
            pthread_cond_broadcast(&s->idle);
            if (s->quit) break;
            while (!s->woken)
                condition_wait(&s->work, &s->lock, INFINITY);
            s->woken = false;
            continue;
        }
        bool all = s->stop_all;
        pthread_mutex_unlock(&s->lock);
        stop_running(s, all);
        account(s);
        admit(s);
        step(s);
        account(s);
        pthread_mutex_lock(&s->lock);
        s->stats.steps = s->steps;
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void wake(scheduler *s) {
    s->woken = true;
    pthread_cond_signal(&s->work);
}

void scheduler_wake(scheduler *s) {
    pthread_mutex_lock(&s->lock);
    wake(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- Starting and stopping ---------------------------------------------------------------- */

/* What a session of these options is like, and the masks. */
static linnet_status describe(scheduler *s, linnet_error *err) {
    slot_shared *h = &s->shared;
    linnet_session *x;
    const linnet_model_info *info = linnet_model_get_info(h->model);
    if (h->session.window_mode == LINNET_TERRACE_HF)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "window mode terrace-hf wants the whole prompt in one feed: a server feeds it "
                    "in pieces");
    linnet_status status = linnet_session_new(&x, h->model, &h->session, err);
    if (status) return status;
    h->ctx = linnet_session_ctx(x);
    linnet_session_free(x);
    h->has_text = info->n_vocab > 0;
    h->n_rows = (size_t)info->n_rows;
    h->n_ids = h->has_text && info->n_vocab < info->n_rows ? (size_t)info->n_vocab : h->n_rows;
    h->cuts = true;
    for (int l = 0, window; l < info->n_layers; l++)
        h->cuts =
            h->cuts && !strcmp(linnet_model_mixer(h->model, l, &window), "softmax") && !window;
    uint32_t *not_end = calloc(h->n_rows / 32 + 1, sizeof *not_end);
    if (!not_end) return fail(err, LINNET_ERR_MEMORY, "no memory for a mask");
    for (size_t i = 0; i < h->n_rows; i++)
        if (!h->has_text || !linnet_is_end(h->model, (int32_t)i))
            not_end[i / 32] |= (uint32_t)1 << (i % 32);
    h->not_end = not_end;
    return LINNET_OK;
}

static void release(scheduler *s) {
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->json_lock);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->idle);
    json_mask_free(s->shared.json);
    free((void *)(uintptr_t)s->shared.not_end);
    free(s->slots);
    free(s->order);
    free(s->whose);
    free(s->items);
    free(s);
}

linnet_status scheduler_start(scheduler **out, const scheduler_options *options,
                              linnet_error *err) {
    *out = NULL;
    if (!options->model || !options->slots || options->slots > MAX_SLOTS)
        return fail(err, LINNET_ERR_ARGUMENT, "slots: expected 1 to %d, not %zu", MAX_SLOTS,
                    options->slots);
    scheduler *s = calloc(1, sizeof *s);
    if (!s) return fail(err, LINNET_ERR_MEMORY, "no memory for a scheduler");
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->json_lock, NULL);
    bool ok = condition_start(&s->work) && condition_start(&s->idle);
    s->options = *options;
    if (!s->options.piece) s->options.piece = PIECE;
    if (!s->options.unread) s->options.unread = UNREAD;
    s->shared = (slot_shared){
        .model = options->model, .cache = options->cache, .session = options->session};
    queue_start(&s->waiting);
    s->slots = calloc(options->slots, sizeof *s->slots);
    s->order = calloc(options->slots, sizeof *s->order);
    s->whose = calloc(options->slots, sizeof *s->whose);
    s->items = calloc(options->slots, sizeof *s->items);
    linnet_status status = LINNET_OK;
    if (!ok || !s->slots || !s->order || !s->whose || !s->items)
        status = fail(err, LINNET_ERR_MEMORY, "no memory for %zu slots", options->slots);
    if (!status) status = describe(s, err);
    if (!status && pthread_create(&s->thread, NULL, run, s))
        status = fail(err, LINNET_ERR_MEMORY, "the engine's thread cannot be started");
    if (status)
        release(s);
    else
        *out = s;
    return status;
}

void scheduler_drain(scheduler *s, double seconds) {
    double until = clock_seconds() + seconds;
    pthread_mutex_lock(&s->lock);
    s->draining = true;
    while (s->busy || s->waiting.n) {
        if (!s->stop_all && clock_seconds() >= until) {
            s->stop_all = true;
            wake(s);
        }
        condition_wait(&s->idle, &s->lock, s->stop_all ? INFINITY : until);
    }
    pthread_mutex_unlock(&s->lock);
}

bool scheduler_draining(const scheduler *s) {
    return s->draining;
}

void scheduler_free(scheduler *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->draining = s->stop_all = s->quit = true;
    wake(s);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    release(s);
}

/* ---- Jobs --------------------------------------------------------------------------------- */

static linnet_status check(const scheduler *s, const job_request *r, linnet_error *err) {
    const slot_shared *h = &s->shared;
    if (!r->prompt || !r->n_prompt)
        return fail(err, LINNET_ERR_ARGUMENT, "the prompt has no tokens");
    if (r->n_prompt > (size_t)h->ctx)
        return fail(err, LINNET_ERR_CONTEXT, "the prompt has %zu tokens, the context %d",
                    r->n_prompt, h->ctx);
    for (size_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || (size_t)r->prompt[i] >= h->n_rows)
            return fail(err, LINNET_ERR_ARGUMENT, "token %zu is %d, expected 0 to %zu", i,
                        r->prompt[i], h->n_rows - 1);
    if (!h->has_text && (r->n_stops || r->json))
        return fail(err, LINNET_ERR_TOKENIZER,
                    "%s: the model file has no vocabulary, so its tokens have no text",
                    r->json ? "JSON mode" : "stop strings");
    if (r->top_logprobs > 0 && (size_t)r->top_logprobs > h->n_ids)
        return fail(err, LINNET_ERR_ARGUMENT, "top_logprobs is %d, the vocabulary has %zu tokens",
                    r->top_logprobs, h->n_ids);
    return LINNET_OK;
}

static linnet_status need_json(scheduler *s, linnet_error *err) {
    linnet_status status = LINNET_OK;
    pthread_mutex_lock(&s->json_lock);
    if (!s->shared.json) status = json_mask_new(&s->shared.json, s->shared.model, err);
    pthread_mutex_unlock(&s->json_lock);
    return status;
}

linnet_status scheduler_submit(scheduler *s, job_request *request, job **out, linnet_error *err) {
    *out = NULL;
    linnet_status status = check(s, request, err);
    if (!status && request->json) status = need_json(s, err);
    if (status) {
        request_free(request);
        return status;
    }
    job *j;
    status = job_new(&j, s, request, err);
    if (status) return status;
    j->most_unread = s->options.unread;
    pthread_mutex_lock(&s->lock);
    size_t room = s->options.max_queue + (s->options.slots - s->busy);
    if (s->draining)
        status = fail(err, LINNET_ERR_MEMORY, "the server is shutting down");
    else if (s->waiting.n >= room)
        status = fail(err, LINNET_ERR_MEMORY, "the queue is full: %zu jobs wait", s->waiting.n);
    else if (!queue_push(&s->waiting, j))
        status = fail(err, LINNET_ERR_MEMORY, "no memory for a job");
    s->stats.jobs += !status;
    s->stats.refused += status != LINNET_OK;
    if (!status) wake(s);
    pthread_mutex_unlock(&s->lock);
    if (status) {
        job_release(j);
        job_release(j);
    } else {
        *out = j;
    }
    return status;
}

void scheduler_get_stats(scheduler *s, scheduler_stats *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    out->slots = s->options.slots;
    out->busy = s->busy;
    out->queued = s->waiting.n;
    pthread_mutex_unlock(&s->lock);
}
