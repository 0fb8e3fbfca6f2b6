#include "slot.h"
#include "../error.h"
#include "logprobs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A snapshot of so many tokens more is worth waiting for. */
enum { WORTH_WAITING = 64 };

/* ---- The end ------------------------------------------------------------------------------ */

/* A snapshot that cannot be kept is computed again when it is wanted. */
static void keep_snapshot(slot *x) {
    x->keep_due = false;
    if (!linnet_cache_keep(x->with->cache, x->session, NULL)) x->kept = x->held;
}

/* Posts the end event and frees the slot. `err`: why it failed, or NULL. */
static void finish(slot *x, const linnet_error *err) {
    job *j = x->job;
    event *e = job_take_end(j);
    double now = clock_seconds();
    if (x->keep_due) keep_snapshot(x);
    bool prompt_done = x->first > 0;
    x->queue_seconds = x->admitted - j->submitted;
    x->prefill_seconds = (prompt_done ? x->first : now) - x->admitted;
    x->decode_seconds = prompt_done ? now - x->first : 0;
    e->end = x->why;
    e->stop = x->stop;
    e->n_prompt = j->r.n_prompt;
    e->n_sampled = x->n_sampled;
    e->done = x->n_sampled;
    e->reuse = x->reuse;
    e->queue_seconds = x->queue_seconds;
    e->prefill_seconds = x->prefill_seconds;
    e->decode_seconds = x->decode_seconds;
    if (x->session) e->state_bytes = linnet_session_state_bytes(x->session);
    if (x->last_text) {
        free(e->text);
        e->text = x->last_text;
        x->last_text = NULL;
    }
    if (err) {
        e->end = JOB_FAILED;
        e->error = *err;
    } else if (j->r.keep && prompt_done && x->held >= j->r.n_prompt) { /* not amid a replay */
        size_t bytes;
        const char *rest = shown_after(&x->shown, x->held - j->r.n_prompt, &bytes);
        e->rest = text_copy(rest, bytes);
        e->session = x->session;
        e->ended = x->ended;
        x->session = NULL;
    }
    linnet_session_free(x->session);
    linnet_text_free(x->text);
    shown_free(&x->shown);
    free(x->timeline);
    x->session = NULL;
    x->text = NULL;
    x->timeline = NULL;
    x->job = NULL;
    job_post(j, e);
    job_release(j);
}

void slot_fail(slot *x, const linnet_error *err) {
    x->why = JOB_FAILED;
    finish(x, err);
}

static void no_memory(slot *x, const char *what) {
    linnet_error err;
    fail(&err, LINNET_ERR_MEMORY, "no memory for %s", what);
    slot_fail(x, &err);
}

/* The job's own pointer to a stop string. */
static const char *own_stop(const job *j, const char *stop) {
    for (size_t i = 0; i < j->r.n_stops; i++)
        if (!strcmp(j->r.stops[i], stop)) return j->r.stops[i];
    return NULL;
}

/* Makes the session hold exactly the tokens that were shown whole, or be on the way to it. */
static void cut_to_shown(slot *x) {
    size_t n_prompt = x->job->r.n_prompt, to = n_prompt + x->shown.whole;
    if (x->held > to) { /* there is a fork: it was made before the first of the others was fed */
        linnet_session_free(x->session);
        x->session = x->shown.back;
        x->shown.back = NULL;
        x->held = n_prompt + x->shown.back_at;
    }
    x->ended = false;
    x->n = to;
}

/* Ends the job; what is to be kept may have to be fed first. */
static void close_job(slot *x, job_end why) {
    const job *j = x->job;
    x->why = why;
    if (x->text && why != JOB_STOP) {
        size_t bytes;
        const char *stop, *text = linnet_text_push(x->text, -1, &bytes, NULL, &stop);
        linnet_error err;
        linnet_status s =
            stop ? shown_token(&x->shown, text, bytes, SIZE_MAX, x->shown.n, NULL, &err)
                 : shown_rest(&x->shown, text, bytes, &err);
        if (!s && !(x->last_text = text_copy(text, bytes)))
            s = fail(&err, LINNET_ERR_MEMORY, "no memory for a text");
        if (s) {
            slot_fail(x, &err);
            return;
        }
        if (stop) {
            x->stop = own_stop(j, stop);
            x->why = JOB_STOP;
        }
    }
    if (j->r.keep && x->why == JOB_STOP) cut_to_shown(x);
    bool feed = x->why == JOB_STOP || x->why == JOB_END || x->why == JOB_LENGTH;
    if (j->r.keep && feed && x->held < x->n)
        x->closing = true;
    else
        finish(x, NULL);
}

void slot_stop(slot *x, job_end why) {
    if (x->closing) return; /* it is over with the next step */
    if (x->first > 0) {
        close_job(x, why);
        return;
    }
    x->why = why;
    finish(x, NULL);
}

/* ---- The beginning ------------------------------------------------------------------------ */

/* How much of the prompt the session holds, if it holds nothing else. */
static size_t prefix_held(const slot *x) {
    const job_request *r = &x->job->r;
    size_t n;
    const int32_t *held = linnet_session_tokens(x->session, &n);
    bool all = n == r->n_prompt;
    if (!n || n > r->n_prompt || memcmp(held, r->prompt, n * sizeof *held)) return 0;
    return all && !linnet_session_logits(x->session) ? 0 : n;
}

/* Makes the session hold the longest prefix of the prompt that the cache or the job itself has. */
static linnet_status restore(slot *x, linnet_error *err) {
    job_request *r = &x->job->r;
    linnet_status s = LINNET_OK;
    if (r->start && !r->prompt_logprobs && linnet_session_ctx(r->start) == x->with->ctx) {
        x->session = r->start;
        r->start = NULL;
    } else {
        s = linnet_session_new(&x->session, x->with->model, &x->with->session, err);
    }
    if (!s && r->prompt_logprobs) { /* which need the logits of every position */
        snprintf(x->reuse.text, sizeof x->reuse.text,
                 "0 of %zu tokens reused: the prompt's logprobs are wanted", r->n_prompt);
    } else if (!s && x->with->cache) {
        s = linnet_cache_restore(x->with->cache, x->session, r->prompt, r->n_prompt, &x->reuse,
                                 err);
    } else if (!s) {
        size_t n = prefix_held(x);
        if (!n) linnet_session_reset(x->session);
        snprintf(x->reuse.text, sizeof x->reuse.text, "%zu of %zu tokens reused: there is no cache",
                 n, r->n_prompt);
    }
    if (!s) linnet_session_tokens(x->session, &x->held);
    x->reuse.n_reused = x->held;
    x->reuse.n_fed = r->n_prompt - x->held;
    return s;
}

static size_t next_snapshot(const slot *x) {
    const job_request *r = &x->job->r;
    size_t left = r->n_prompt - x->held;
    if (!x->with->cache || !left) return r->n_prompt;
    size_t n = linnet_cache_next(x->with->cache, x->held, r->n_prompt, r->mark);
    return x->held + (n && n < left ? n : left);
}

static bool post_progress(slot *x) {
    event *e = event_new(EVENT_PROGRESS, 0, 0);
    if (!e) return false;
    e->done = x->held;
    e->total = x->job->r.n_prompt;
    job_post(x->job, e);
    return true;
}

static void advance(slot *x);

void slot_begin(slot *x, const slot_shared *with, job *j, uint64_t serial) {
    linnet_error err;
    *x = (slot){.job = j, .with = with, .serial = serial, .admitted = clock_seconds()};
    json_begin(&x->json);
    x->n = j->r.n_prompt;
    x->cap = x->n + 64;
    x->timeline = x->cap > x->n ? malloc(x->cap * sizeof *x->timeline) : NULL;
    if (!x->timeline) {
        no_memory(x, "a timeline");
        return;
    }
    memcpy(x->timeline, j->r.prompt, x->n * sizeof *x->timeline);
    linnet_status s = restore(x, &err);
    if (s) {
        slot_fail(x, &err);
        return;
    }
    x->kept = x->progress = x->held;
    x->snapshot_at = next_snapshot(x);
    if (!post_progress(x))
        no_memory(x, "an event");
    else if (x->held == x->n)
        advance(x);
}

/* ---- Logprobs of the prompt --------------------------------------------------------------- */

/* A prompt token's event; `logits` of the position before it, NULL for the first. */
static void post_prompt_token(slot *x, const float *logits) {
    const job_request *r = &x->job->r;
    size_t n_top = logits && r->top_logprobs > 0 ? (size_t)r->top_logprobs : 0;
    event *e = event_new(EVENT_PROMPT, n_top, 0);
    if (!e) {
        x->starved = true;
        return;
    }
    e->done = x->n_logprobs;
    e->total = r->n_prompt;
    e->token.token = r->prompt[x->n_logprobs++];
    if (logits)
        logprobs(logits, x->with->n_rows, x->with->n_ids, e->token.token, &e->token, e->top, n_top);
    job_post(x->job, e);
}

/* Rows that an error made come again were posted. */
static bool take_rows(void *user, size_t first, size_t n, const float *logits) {
    slot *x = user;
    if (x->starved) return false;
    for (size_t i = 0; i < n; i++) {
        if (first + i + 1 != x->n_logprobs || x->n_logprobs == x->job->r.n_prompt) continue;
        post_prompt_token(x, logits + i * x->with->n_rows);
    }
    return !x->starved;
}

/* ---- Sampling ----------------------------------------------------------------------------- */

static linnet_status sample(slot *x, int32_t *token, linnet_error *err) {
    const job_request *r = &x->job->r;
    linnet_sampling p = r->sampling;
    bool any = true;
    p.allowed = NULL;
    if (r->json)
        p.allowed = json_mask_allowed(x->with->json, &x->json, &any);
    else if (r->ignore_end)
        p.allowed = x->with->not_end;
    if (!any)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "JSON mode: no token of this vocabulary continues the object");
    return linnet_sample(x->session, &p, token, err);
}

static event *token_event(slot *x, int32_t token) {
    int top = x->job->r.top_logprobs;
    event *e = event_new(EVENT_TOKEN, top > 0 ? (size_t)top : 0, 0);
    if (!e) return NULL;
    e->done = x->n_sampled;
    e->token.token = token;
    if (top >= 0)
        logprobs(linnet_session_logits(x->session), x->with->n_rows, x->with->n_ids, token,
                 &e->token, e->top, e->n_top);
    return e;
}

static bool push_timeline(slot *x, int32_t token) {
    if (x->n == x->cap) {
        int32_t *more = realloc(x->timeline, 2 * x->cap * sizeof *more);
        if (!more) return false;
        x->timeline = more;
        x->cap *= 2;
    }
    x->timeline[x->n++] = token;
    return true;
}

/* A token that does not end the text: its event, its text. */
static linnet_status show(slot *x, int32_t token, linnet_error *err) {
    const job_request *r = &x->job->r;
    if (r->json && !json_mask_accept(x->with->json, &x->json, token))
        return fail(err, LINNET_ERR_UNSUPPORTED, "JSON mode: token %d is not JSON", token);
    event *e = token_event(x, token);
    size_t bytes = 0, held = 0;
    const char *stop = NULL, *text = "";
    if (e && x->text) text = linnet_text_push(x->text, token, &bytes, &held, &stop);
    if (!e || !(e->text = text_copy(text, bytes))) {
        event_free(e);
        return fail(err, LINNET_ERR_MEMORY, "no memory for an event");
    }
    linnet_session *fork = r->keep && r->n_stops ? x->session : NULL;
    linnet_status s = shown_token(&x->shown, text, bytes, stop ? SIZE_MAX : held,
                                  x->held - r->n_prompt, fork, err);
    if (s) {
        event_free(e);
        return s;
    }
    x->n_sampled++;
    if (stop) x->stop = own_stop(x->job, stop);
    job_post(x->job, e);
    return LINNET_OK;
}

/* The object is complete, and the vocabulary has no token that says so. */
static bool nothing_follows(const slot *x) {
    bool any = true;
    if (x->job->r.json && json_complete(&x->json)) json_mask_allowed(x->with->json, &x->json, &any);
    return !any;
}

/* Nothing is left to feed. */
static void advance(slot *x) {
    const job_request *r = &x->job->r;
    linnet_error err;
    int32_t token = 0;
    linnet_status s = LINNET_OK;
    x->alone = false;
    if (x->closing) {
        finish(x, NULL);
        return;
    }
    if (!(x->first > 0)) {
        x->first = clock_seconds();
        if (x->with->has_text && !r->prefill_only)
            s = linnet_text_new(&x->text, x->session, (const char *const *)r->stops, r->n_stops,
                                &err);
    }
    if (s) {
        slot_fail(x, &err);
    } else if (r->prefill_only) {
        close_job(x, JOB_LENGTH);
    } else if (x->held >= (size_t)x->with->ctx) {
        close_job(x, JOB_CONTEXT);
    } else if (nothing_follows(x)) {
        close_job(x, JOB_END);
    } else if ((s = sample(x, &token, &err))) {
        slot_fail(x, &err);
    } else if (!push_timeline(x, token)) {
        no_memory(x, "a timeline");
    } else if (linnet_is_end(x->with->model, token)) {
        x->ended = r->keep;
        close_job(x, JOB_END);
    } else if ((s = show(x, token, &err))) {
        slot_fail(x, &err);
    } else if (x->stop) {
        close_job(x, JOB_STOP);
    } else if (r->max_tokens && x->n_sampled == r->max_tokens) {
        close_job(x, JOB_LENGTH);
    }
}

/* ---- Feeding ------------------------------------------------------------------------------ */

void slot_item(slot *x, size_t room, linnet_item *item) {
    const job_request *r = &x->job->r;
    bool in_prompt = x->held < r->n_prompt;
    size_t to = !in_prompt ? x->n : x->snapshot_at > x->held ? x->snapshot_at : r->n_prompt;
    size_t n = to - x->held < room ? to - x->held : room;
    *item = (linnet_item){.session = x->session,
                          .tokens = x->timeline + x->held,
                          .n_tokens = n,

                          .want = x->held + n == x->n ? LINNET_LOGITS_LAST : LINNET_LOGITS_NONE,
                          .sampled = !in_prompt};
    if (in_prompt && r->prompt_logprobs) {
        item->want = LINNET_LOGITS_ALL;
        item->rows = take_rows;
        item->user = x;
        if (!x->n_logprobs) post_prompt_token(x, NULL);
    }
}

void slot_fed(slot *x, const linnet_item *item) {
    const job_request *r = &x->job->r;
    x->held += item->n_tokens;
    if (x->held <= r->n_prompt && x->held > x->progress) {
        x->progress = x->held;
        x->keep_due = x->held == x->snapshot_at && x->with->cache;
        if (x->keep_due && x->held < x->n) keep_snapshot(x);
        if (!post_progress(x)) {
            no_memory(x, "an event");
            return;
        }
    }
    if (x->held < r->n_prompt && x->held >= x->snapshot_at) x->snapshot_at = next_snapshot(x);
    if (x->held == x->n) advance(x);
    if (slot_busy(x) && x->keep_due) keep_snapshot(x); /* the first token is on its way */
}

void slot_replay(slot *x) {
    linnet_session_reset(x->session);
    x->held = 0;
    x->snapshot_at = x->job->r.n_prompt;
    x->alone = true;
}

size_t slot_will_keep(const slot *x, const job *j) {
    const job_request *r = &x->job->r;
    if (!x->with->cache || x->first > 0 || x->alone || j->r.prompt_logprobs) return 0;
    size_t common = 0, most = r->n_prompt < j->r.n_prompt ? r->n_prompt : j->r.n_prompt;
    while (common < most && r->prompt[common] == j->r.prompt[common])
        common++;
    if (common < x->kept + WORTH_WAITING) return 0;
    size_t best = 0;
    for (size_t at = x->snapshot_at; at <= common || x->with->cuts;) {
        best = at < common ? at : common;
        if (at >= common || at >= r->n_prompt) break;
        size_t next = linnet_cache_next(x->with->cache, at, r->n_prompt, r->mark);
        if (!next) break;
        at += next;
    }
    return best >= x->kept + WORTH_WAITING ? best : 0;
}
