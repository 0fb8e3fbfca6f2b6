#include "answer.h"

#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "connection.h"

/* Seconds between two looks at the client, and between two signs of life in a stream. */
static const double glance = 0.05, silence = 5;

/* ---- pieces ------------------------------------------------------------------------------- */

char *token_text(const linnet_model *model, int32_t token, size_t *n) {
    size_t cap = 64;
    for (;;) {
        char *text = malloc(cap + 1);
        if (!text) return NULL;
        if (linnet_detokenize(model, &token, 1, LINNET_PARSE_SPECIAL | LINNET_MIDDLE | LINNET_BYTES,
                              text, cap, n, NULL))
            *n = 0;
        if (*n <= cap) {
            text[*n] = '\0';
            return text;
        }
        free(text);
        cap = *n;
    }
}

/* Bytes of the UTF-8 character at the start; 0: none is there. */
static size_t character(const unsigned char *p, size_t n) {
    unsigned c = p[0];
    size_t length = c < 0x80                ? 1
                    : c >= 0xc2 && c < 0xe0 ? 2
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4
                                            : 0;
    if (!length || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) || (c == 0xf0 && p[1] < 0x90) ||
        (c == 0xf4 && p[1] > 0x8f))
        return 0;
    return length;
}

json_t *text_json(const char *bytes, size_t n) {
    if (!memchr(bytes, '\0', n)) {
        json_t *as_it_is = json_stringn(bytes, n);
        if (as_it_is) return as_it_is;
    }
    char *out = malloc(3 * n + 1);
    size_t at = 0;
    if (!out) return NULL;
    for (size_t i = 0; i < n;) {
        size_t length = character((const unsigned char *)bytes + i, n - i);
        memcpy(out + at, length ? bytes + i : "\xef\xbf\xbd", length ? length : 3);
        at += length ? length : 3;
        i += length ? length : 1;
    }
    json_t *text = json_stringn(out, at);
    free(out);
    return text;
}

json_t *logprob_json(float logprob) {
    if (isnan(logprob)) return json_null();
    return json_real(isinf(logprob) ? -9999 : logprob); /* JSON has no infinity; OpenAI's way */
}

bool choice_append(choice *c, const char *text) {
    size_t n = strlen(text);
    if (c->n_text + n + 1 > c->cap) {
        size_t cap = 2 * c->cap + n + 64;
        char *grown = realloc(c->text, cap);
        if (!grown) return false;
        c->text = grown;
        c->cap = cap;
    }
    memcpy(c->text + c->n_text, text, n + 1);
    c->n_text += n;
    return true;
}

static void free_job_request(job_request *j) {
    for (size_t i = 0; i < j->n_stops; i++)
        free(j->stops[i]);
    free(j->stops);
    free(j->prompt);
    free((void *)j->sampling.bias);
    linnet_session_free(j->start);
}

/* ---- JSON around the choices -------------------------------------------------------------- */

static json_t *envelope(const answer *a, const char *object, json_t *choices) {
    return json_pack("{s:s,s:s,s:I,s:s,s:o}", "id", a->id, "object", object, "created",
                     (json_int_t)a->created, "model", a->server->model_name, "choices", choices);
}

static const char *end_word(job_end end) {
    static const char *const words[] = {"end",       "stop",     "length", "context",
                                        "cancelled", "deadline", "failed"};
    return words[end];
}

static const char *finish_reason(const event *end) {
    return end->end == JOB_END || end->end == JOB_STOP ? "stop" : "length";
}

/* "usage" and "linnet", of the whole request. A prompt with several answers counts once. */
static void add_usage(const answer *a, json_t *to) {
    size_t prompts = 0, cached = 0, sampled = 0;
    double queue = 0, prefill = 0, decode = 0;
    uint64_t state = 0;
    const event *first = NULL;
    for (size_t i = 0; i < a->n; i++) {
        const choice *c = &a->choices[i];
        bool new_prompt = i == 0 || c->prompt != a->choices[i - 1].prompt;
        if (new_prompt) prompts += c->n_prompt;
        if (!c->end) continue;
        if (!first) first = c->end;
        if (new_prompt) cached += c->end->reuse.n_reused;
        sampled += c->end->n_sampled;
        queue = fmax(queue, c->end->queue_seconds);
        prefill += c->end->prefill_seconds;
        decode = fmax(decode, c->end->decode_seconds);
        state += c->end->state_bytes;
    }
    json_object_set_new(to, "usage",
                        json_pack("{s:I,s:I,s:I,s:{s:I}}", "prompt_tokens", (json_int_t)prompts,
                                  "completion_tokens", (json_int_t)sampled, "total_tokens",
                                  (json_int_t)(prompts + sampled), "prompt_tokens_details",
                                  "cached_tokens", (json_int_t)cached));
    if (!first) return;
    const char *reuse = first->reuse.text;
    json_object_set_new(to, "linnet",
                        json_pack("{s:o,s:s,s:I,s:I,s:f,s:f,s:f}", "reuse",
                                  text_json(reuse, strlen(reuse)), "end", end_word(first->end),
                                  "seed", (json_int_t)a->fields->sampling.seed, "state_bytes",
                                  (json_int_t)state, "queue_seconds", queue, "prefill_seconds",
                                  prefill, "decode_seconds", decode));
}

static void note(const answer *a) {
    size_t sampled = 0, prompts = 0;
    const event *first = NULL;
    for (size_t i = 0; i < a->n; i++) {
        const choice *c = &a->choices[i];
        if (i == 0 || c->prompt != a->choices[i - 1].prompt) prompts += c->n_prompt;
        if (c->end) sampled += c->end->n_sampled;
        if (c->end && !first) first = c->end;
    }
    if (first)
        request_note(a->request, "%zu + %zu tokens, %s; %s", prompts, sampled, end_word(first->end),
                     first->reuse.text);
}

/* ---- the stream --------------------------------------------------------------------------- */

static bool send_chunk(answer *a, json_t *element) {
    json_t *choices = json_array();
    if (element) json_array_append_new(choices, element);
    json_t *chunk = envelope(a, a->format->chunk_object, choices);
    if (a->fields->include_usage) json_object_set_new(chunk, "usage", json_null());
    a->last_write = clock_seconds();
    return stream_json(a->request, chunk);
}

static void send_progress(answer *a, const event *e) {
    if (!a->saw_progress) a->cached = e->done;
    a->saw_progress = true;
    if (!a->fields->progress) return;
    json_t *chunk = envelope(a, a->format->chunk_object, json_array());
    json_object_set_new(chunk, "prompt_progress",
                        json_pack("{s:I,s:I,s:I,s:f}", "total", (json_int_t)e->total, "processed",
                                  (json_int_t)e->done, "cached", (json_int_t)a->cached, "seconds",
                                  clock_seconds() - a->started));
    a->last_write = clock_seconds();
    stream_json(a->request, chunk);
}

static void stream_token(answer *a, size_t i, const char *text) {
    choice *c = &a->choices[i];
    if (!*text && !c->logprobs) return;
    json_t *logprobs = c->logprobs;
    if (logprobs) c->logprobs = a->format->new_logprobs();
    send_chunk(a, a->format->part(a, i, text, logprobs, NULL));
}

/* There is no answer to show, not even a part of one. */
static bool is_failure(const event *e) {
    return e->end == JOB_FAILED || e->end == JOB_CANCELLED ||
           (e->end == JOB_DEADLINE && !e->n_sampled);
}

/* ---- events ------------------------------------------------------------------------------- */

/* An event of choice i; its session and texts are freed with it, but those of the end are kept. */
static void take_event(answer *a, size_t i, event *e) {
    choice *c = &a->choices[i];
    bool stream = a->fields->stream;
    switch (e->kind) {
    case EVENT_PROGRESS:
        if (stream) send_progress(a, e);
        break;
    case EVENT_PROMPT:
        if (c->logprobs) a->format->add_logprob(a, c, e);
        break;
    case EVENT_TOKEN:
        if (!a->saw_token) request_first_token(a->request);
        a->saw_token = true;
        if (c->logprobs && !isnan(e->token.logprob)) a->format->add_logprob(a, c, e);
        if (e->text && !choice_append(c, e->text)) a->request->gone = true;
        if (stream) stream_token(a, i, e->text ? e->text : "");
        break;
    case EVENT_END:
        if (e->text && *e->text) {
            if (!choice_append(c, e->text)) a->request->gone = true;
            if (stream) stream_token(a, i, e->text);
        }
        c->end = e;
        if (stream && !is_failure(e)) {
            json_t *logprobs = NULL;
            if (c->shown_prompt && !e->n_sampled) { /* the prompt's: no token took them along */
                logprobs = c->logprobs;
                c->logprobs = NULL;
            }
            send_chunk(a, a->format->part(a, i, NULL, logprobs, finish_reason(e)));
        }
        return;
    }
    event_free(e);
}

/* All of them, or the first one's error. */
static linnet_status submit(answer *a, linnet_error *err) {
    for (size_t i = 0; i < a->n; i++) {
        choice *c = &a->choices[i];
        linnet_status status = scheduler_submit(a->server->scheduler, &c->job, &c->running, err);
        memset(&c->job, 0, sizeof c->job); /* the scheduler's, whatever it said */
        if (status) {
            c->running = NULL;
            return status;
        }
    }
    return LINNET_OK;
}

/* Waits for the next event of any choice; false: none came. */
static bool next_events(answer *a) {
    bool any = false;
    size_t waiting = a->n;
    for (size_t i = 0; i < a->n; i++) {
        choice *c = &a->choices[i];
        if (!c->running || c->end) continue;
        event *e;
        while (!c->end && (e = job_next(c->running, 0))) {
            take_event(a, i, e);
            any = true;
        }
        if (!c->end && waiting == a->n) waiting = i;
    }
    if (any || waiting == a->n) return any;
    /* All of them come with the same step, so it does not matter whose is waited for. */
    event *e = job_next(a->choices[waiting].running, glance);
    if (e) take_event(a, waiting, e);
    return e != NULL;
}

static bool all_ended(const answer *a) {
    for (size_t i = 0; i < a->n; i++)
        if (a->choices[i].running && !a->choices[i].end) return false;
    return true;
}

/* ---- the answer --------------------------------------------------------------------------- */

static void respond_whole(answer *a) {
    json_t *choices = json_array();
    for (size_t i = 0; i < a->n; i++) {
        choice *c = &a->choices[i];
        json_array_append_new(choices, a->format->whole(a, i, c->logprobs, finish_reason(c->end)));
        c->logprobs = NULL;
    }
    json_t *body = envelope(a, a->format->object, choices);
    add_usage(a, body);
    respond_json(a->request, 200, body);
}

static void end_stream(answer *a) {
    if (a->fields->include_usage) {
        json_t *chunk = envelope(a, a->format->chunk_object, json_array());
        add_usage(a, chunk);
        stream_json(a->request, chunk);
    }
    stream_end(a->request);
}

/* The first choice that has no answer to show. */
static const event *first_failure(const answer *a) {
    for (size_t i = 0; i < a->n; i++) {
        const event *e = a->choices[i].end;
        if (e && is_failure(e)) return e;
    }
    return NULL;
}

static void respond_failure(answer *a, const event *e) {
    static const char late[] = "the request's time was over before its answer began (--timeout)";
    static const char stopping[] = "the server is stopping";
    static const char slow[] = "the answer was read too slowly";
    bool stops = scheduler_draining(a->server->scheduler);
    const char *text = e->end == JOB_FAILED     ? e->error.text
                       : e->end == JOB_DEADLINE ? late
                       : stops                  ? stopping
                                                : slow;
    const char *code = e->end == JOB_FAILED     ? NULL
                       : e->end == JOB_DEADLINE ? "timeout"
                       : stops                  ? "stopping"
                                                : "too_slow";
    if (a->fields->stream)
        stream_error(a->request, "server_error", code, text);
    else if (e->end == JOB_FAILED)
        respond_failed(a->request, &e->error);
    else
        respond_busy(a->request, code, text);
}

static void follow(answer *a) {
    bool cancelled = false;
    while (!all_ended(a)) {
        bool any = next_events(a);
        if (!cancelled && request_gone(a->request)) {
            for (size_t i = 0; i < a->n; i++)
                if (a->choices[i].running) job_cancel(a->choices[i].running);
            cancelled = true;
        }
        if (!any && a->fields->stream && clock_seconds() - a->last_write > silence) {
            a->last_write = clock_seconds();
            stream_comment(a->request, "working");
        }
    }
}

static void begin_stream(answer *a) {
    stream_begin(a->request);
    a->last_write = clock_seconds();
    for (size_t i = 0; i < a->n; i++) {
        json_t *first = a->format->first(a, i);
        if (first) send_chunk(a, first);
    }
}

static void run(answer *a) {
    linnet_error err;
    unsigned char random[12];
    char hex[25];
    randombytes_buf(random, sizeof random);
    sodium_bin2hex(hex, sizeof hex, random, sizeof random);
    snprintf(a->id, sizeof a->id, "%s%s", a->format->id, hex);
    a->created = (int64_t)time(NULL);
    a->started = clock_seconds();
    if (a->fields->top_logprobs >= 0)
        for (size_t i = 0; i < a->n; i++)
            a->choices[i].logprobs = a->format->new_logprobs();
    if (submit(a, &err)) { /* job_free cancels the others */
        if (err.code == LINNET_ERR_MEMORY)
            respond_busy(a->request, "overloaded", err.text);
        else
            respond_failed(a->request, &err);
        return;
    }
    if (a->fields->stream) begin_stream(a);
    follow(a);
    note(a);
    if (a->format->done) a->format->done(a);
    if (a->request->gone) return;
    const event *failure = first_failure(a);
    if (failure)
        respond_failure(a, failure);
    else if (a->fields->stream)
        end_stream(a);
    else
        respond_whole(a);
}

/* More than run and wait at most would never be taken, however often they are sent. */
static bool fits(const answer *a) {
    const server_options *o = &a->server->options;
    size_t most = o->slots + o->max_queue;
    if (a->n <= most) return true;
    respond_error(a->request, 400, "invalid_request_error", NULL, "too_many_answers",
                  "%zu answers are asked for, and this server takes %zu at once", a->n, most);
    return false;
}

void answer_run(answer *a) {
    if (fits(a)) run(a);
    answer_drop(a);
}

void answer_drop(answer *a) {
    for (size_t i = 0; i < a->n; i++) {
        choice *c = &a->choices[i];
        free_job_request(&c->job);
        event_free(c->end);
        if (c->running) job_free(c->running);
        json_decref(c->logprobs);
        free(c->text);
    }
    free(a->choices);
    a->choices = NULL;
}
