/* A job between its reader and the engine: what it asks, its events, who still needs it. */
#ifndef SERVER_JOB_H
#define SERVER_JOB_H

#include "clock.h"
#include "scheduler.h"

#include <pthread.h>
#include <stdatomic.h>

struct job {
    job_request r;
    scheduler *s;
    atomic_bool cancelled;
    double submitted, deadline; /* clock_seconds; deadline INFINITY: none */
    job *next;                  /* in the queue */
    /* The prefill whose snapshot it last waited for, and of how many of its tokens. */
    uint64_t waited_for;
    size_t waited_tokens;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t arrived;
    event *first, **last;
    size_t unread, most_unread; /* events of tokens */
    event *end;  /* allocated with the job, so that it always comes; NULL once posted */
    bool over;   /* the reader took its end */
    int holders; /* the reader, the scheduler */
};

/* A condition variable whose waits are in clock_seconds. */
bool condition_start(pthread_cond_t *c);
/* Waits until `until` at most; INFINITY: for ever. */
void condition_wait(pthread_cond_t *c, pthread_mutex_t *lock, double until);

/* Takes over what the request points to, also when it fails. */
linnet_status job_new(job **out, scheduler *s, job_request *request, linnet_error *err);
void job_release(job *j); /* one holder less */
void request_free(job_request *r);

/* An event with n_top places and room for `bytes` of text, or NULL. */
event *event_new(event_kind kind, size_t n_top, size_t bytes);
/* The same bytes as a string; a NUL inside becomes U+FFFD. NULL: no memory. */
char *text_copy(const char *text, size_t bytes);
/* Hands an event to the reader and wakes it. */
void job_post(job *j, event *e);
/* The job's last event, to be filled in and posted. */
event *job_take_end(job *j);

/* In scheduler.c: something changed that the engine must look at. */
void scheduler_wake(scheduler *s);

#endif
