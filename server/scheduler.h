/* Continuous batching: one thread owns the sessions. Jobs wait in a fair queue, get a slot, are
 * prefilled in pieces and then decoded together, one token of every slot a step. The threads that
 * answer requests submit jobs and read their events; nobody else touches a running session.
 *
 * Fairness: owners take turns, jobs of one owner are first come, first served. A job whose prompt
 * begins like one that is being prefilled right now waits for that snapshot instead of computing it
 * twice. */
#ifndef SERVER_SCHEDULER_H
#define SERVER_SCHEDULER_H

#include "../linnet.h"

typedef struct scheduler scheduler;
typedef struct job job;

typedef struct {
    linnet_model *model; /* the caller's; outlives the scheduler */
    linnet_cache *cache; /* likewise; may be NULL: nothing is reused */
    linnet_session_options session;
    size_t slots;     /* sessions that run at once */
    size_t max_queue; /* jobs that wait at most */
    size_t piece;     /* tokens of prefill between two decode steps at most; 0 = 256 */
    size_t unread;    /* sampled tokens that wait for a reader; one behind more is as good as gone,
                       * and its job is cancelled; 0 = 8192 */
} scheduler_options;

/* What a job is to do. What it points to is malloc'ed and the job's own from scheduler_submit on,
 * also when that fails. */
typedef struct {
    int32_t *prompt; /* all tokens, at least one */
    size_t n_prompt;
    size_t mark;              /* where the last turn begins: a place for a snapshot; 0 = none */
    linnet_session *start;    /* a state from elsewhere that holds a prefix of the prompt, or NULL;
                               * used where the cache knows no longer one */
    linnet_sampling sampling; /* bias owned; `allowed` NULL */
    size_t max_tokens;        /* sampled at most; 0: until the text or the context ends */
    bool prefill_only;        /* nothing is sampled: it ends with JOB_LENGTH */
    char **stops;
    size_t n_stops;
    int top_logprobs; /* most likely tokens to report with each; 0: the token's alone; -1: none */
    bool prompt_logprobs; /* also of the prompt's tokens */
    bool json;            /* nothing but one JSON object (json_mask.h) */
    bool ignore_end;      /* tokens that end a text are never drawn; means nothing with json */
    bool keep;            /* the end event brings a fork of the session */
    char owner[65];       /* whose turn it is: a hash of the API key, or the address */
    double seconds;       /* it ends with JOB_DEADLINE after so long; 0 = never */
} job_request;

typedef struct {
    int32_t token;
    float logprob; /* natural logarithm, of the softmax of the logits as they are: before bias,
                    * temperature and the rest */
} token_logprob;

typedef enum {
    EVENT_PROGRESS, /* prefill: done of total prompt tokens are in place */
    EVENT_PROMPT,   /* a prompt token's logprob, in order (the first token has none: NaN) */
    EVENT_TOKEN,    /* a sampled token and the text that can be shown since the last event */
    EVENT_END       /* the last event of every job */
} event_kind;

typedef enum {
    JOB_END,       /* the text's own end */
    JOB_STOP,      /* a stop string */
    JOB_LENGTH,    /* max_tokens */
    JOB_CONTEXT,   /* the context is full */
    JOB_CANCELLED, /* job_cancel, scheduler_drain's deadline, a reader that is too slow */
    JOB_DEADLINE,
    JOB_FAILED /* error says why */
} job_end;

typedef struct event {
    event_kind kind;
    size_t done, total;  /* PROGRESS; PROMPT and TOKEN: done = the token's index of its kind */
    token_logprob token; /* PROMPT, TOKEN; logprob NaN where none was asked for */
    token_logprob *top;  /* [n_top], most likely first */
    size_t n_top;
    char *text; /* TOKEN, END: whole UTF-8 characters, NUL-terminated, perhaps empty */
    /* END: */
    job_end end;
    const char *stop;           /* the stop string, the job's, or NULL */
    size_t n_prompt, n_sampled; /* the token that ended the text is not counted, nor has an event */
    linnet_reuse reuse;
    double queue_seconds, prefill_seconds, decode_seconds;
    uint64_t state_bytes; /* of the session at the end */
    /* With `keep`, unless it failed or ended before the prompt was in place: a session that holds
     * the prompt and the answer as it was shown. Cut by a stop string: every sampled token whose
     * text was shown whole; `rest` is the shown text behind them, not in the session (so too after
     * JOB_CANCELLED and JOB_DEADLINE). `ended`: the end token is in it. The reader's to free
     * (event_free does unless it was taken out and set to NULL). */
    linnet_session *session;
    char *rest;
    bool ended;
    linnet_error error;
    struct event *next;
} event;

linnet_status scheduler_start(scheduler **out, const scheduler_options *options, linnet_error *err);
/* LINNET_ERR_MEMORY with a sentence: the queue is full, or the server drains (scheduler_draining).
 * LINNET_ERR_CONTEXT: the prompt is longer than the context. LINNET_ERR_TOKENIZER: stop strings or
 * JSON of a model without a vocabulary. LINNET_ERR_ARGUMENT: ids out of range. */
linnet_status scheduler_submit(scheduler *s, job_request *request, job **out, linnet_error *err);
/* The next event, the caller's to event_free; NULL after `seconds` without one, and at once after
 * EVENT_END. */
event *job_next(job *j, double seconds);
void event_free(event *e);
/* The slot is free within one step. The END event still comes. Any thread. */
void job_cancel(job *j);
/* Cancels what still runs and forgets the job. The reader's last call. */
void job_free(job *j);
/* Takes no more jobs and returns when none runs, or cancels what runs after `seconds`. */
void scheduler_drain(scheduler *s, double seconds);
bool scheduler_draining(const scheduler *s);
void scheduler_free(scheduler *s); /* after every job was freed */

typedef struct {
    size_t slots, busy, queued;
    uint64_t jobs, cancelled, failed, refused;
    uint64_t prompt_tokens, cached_tokens, sampled_tokens, steps;
    double prefill_seconds, decode_seconds, queue_seconds;
    uint64_t state_bytes; /* of running sessions */
} scheduler_stats;
void scheduler_get_stats(scheduler *s, scheduler_stats *out);

#endif
