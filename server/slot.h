/* A slot: one session that a job runs in. Engine thread only.
 *
 * A slot has a timeline of tokens, the prompt's and then those sampled, and a session that holds
 * the first `held` of them. All there is to do is to feed what is missing; when nothing is, the
 * next token is sampled. So prefill, decoding, the last token of an answer that is kept, and the
 * replay of a session whose state an error lost are one thing. */
#ifndef SERVER_SLOT_H
#define SERVER_SLOT_H

#include "job.h"
#include "json_mask.h"
#include "shown.h"

typedef struct {
    linnet_model *model;
    linnet_cache *cache; /* or NULL */
    linnet_session_options session;
    int ctx;
    size_t n_ids, n_rows;    /* tokens of the vocabulary (rows where there is none), rows */
    bool has_text;           /* there is a vocabulary */
    bool cuts;               /* every layer's state can be truncated */
    const uint32_t *not_end; /* the tokens that do not end a text */
    json_mask *json;         /* set before the first job that needs it is queued */
} slot_shared;

typedef struct {
    job *job; /* NULL: the slot is free */
    const slot_shared *with;
    uint64_t serial; /* of its job */
    linnet_session *session;
    int32_t *timeline;
    size_t n, cap, held;
    size_t progress;    /* most tokens of the prompt ever held */
    size_t snapshot_at; /* of the prompt: where the next snapshot is due */
    bool keep_due;      /* it holds what the snapshot is to be */
    size_t kept;        /* tokens of the longest one found or left */
    size_t n_logprobs;  /* prompt tokens whose EVENT_PROMPT was posted */
    size_t n_sampled;
    bool alone; /* an error is looked for: it runs by itself until it has fed all */
    bool closing, ended;
    job_end why;
    const char *stop;
    json_state json;
    linnet_text *text;
    shown shown;
    char *last_text; /* of the end event */
    linnet_reuse reuse;
    double admitted, first; /* clock_seconds; first: the prompt was in place, 0: not yet */
    double queue_seconds, prefill_seconds, decode_seconds; /* when free again: of the last job */
    size_t n_accounted; /* the scheduler's statistics: of n_sampled */
    bool accounted;     /* ... and of its end */
    bool starved;       /* no memory for an event in a forward */
} slot;

/* Takes the job, finds what can be reused. The job may be over at once. */
void slot_begin(slot *x, const slot_shared *with, job *j, uint64_t serial);
static inline bool slot_busy(const slot *x) {
    return x->job;
}
static inline bool slot_decodes(const slot *x) {
    return slot_busy(x) && x->held + 1 == x->n && x->held >= x->job->r.n_prompt;
}
/* Of at most `room` tokens. */
void slot_item(slot *x, size_t room, linnet_item *item);
/* The item was fed: events, snapshots, the next token. */
void slot_fed(slot *x, const linnet_item *item);
/* Ends the job for a reason from outside. */
void slot_stop(slot *x, job_end why);
void slot_fail(slot *x, const linnet_error *err);
/* The session's state was lost: everything is fed again. */
void slot_replay(slot *x);
/* Tokens of job j's prompt that will be in the cache once x's prefill is further, if those are
 * worth waiting for; else 0. */
size_t slot_will_keep(const slot *x, const job *j);

#endif
