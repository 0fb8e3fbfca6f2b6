#include "job.h"
#include "../error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- Time --------------------------------------------------------------------------------- */

bool condition_start(pthread_cond_t *c) {
    pthread_condattr_t a;
    if (pthread_condattr_init(&a)) return false;
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    bool ok = !pthread_cond_init(c, &a);
    pthread_condattr_destroy(&a);
    return ok;
}

void condition_wait(pthread_cond_t *c, pthread_mutex_t *lock, double until) {
    if (until > 1e9) { /* a machine up for 30 years, and INFINITY */
        pthread_cond_wait(c, lock);
        return;
    }
    double whole = floor(until);
    struct timespec t = {(time_t)whole, (long)((until - whole) * 1e9)};
    pthread_cond_timedwait(c, lock, &t);
}

/* ---- Events ------------------------------------------------------------------------------- */

event *event_new(event_kind kind, size_t n_top, size_t bytes) {
    event *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->kind = kind;
    e->token = (token_logprob){-1, NAN};
    e->n_top = n_top;
    e->top = n_top ? calloc(n_top, sizeof *e->top) : NULL;
    e->text = bytes ? calloc(bytes + 1, 1) : NULL;
    if ((n_top && !e->top) || (bytes && !e->text)) {
        event_free(e);
        return NULL;
    }
    return e;
}

void event_free(event *e) {
    if (!e) return;
    free(e->top);
    free(e->text);
    free(e->rest);
    linnet_session_free(e->session);
    free(e);
}

char *text_copy(const char *text, size_t bytes) {
    static const char bad[] = "\xef\xbf\xbd";
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += text[i] ? 1 : 3;
    char *to = malloc(n + 1), *at = to;
    if (!to) return NULL;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i])
            *at++ = text[i];
        else
            at = (char *)memcpy(at, bad, 3) + 3;
    }
    *at = 0;
    return to;
}

void job_post(job *j, event *e) {
    pthread_mutex_lock(&j->lock);
    *j->last = e;
    j->last = &e->next;
    if (e->kind == EVENT_TOKEN && ++j->unread > j->most_unread) atomic_store(&j->cancelled, true);
    pthread_cond_signal(&j->arrived);
    pthread_mutex_unlock(&j->lock);
}

event *job_take_end(job *j) {
    event *e = j->end;
    j->end = NULL;
    return e;
}

event *job_next(job *j, double seconds) {
    double until = clock_seconds() + seconds;
    pthread_mutex_lock(&j->lock);
    while (!j->first && !j->over && clock_seconds() < until)
        condition_wait(&j->arrived, &j->lock, until);
    event *e = j->first;
    if (e) {
        j->first = e->next;
        if (!j->first) j->last = &j->first;
        e->next = NULL;
        if (e->kind == EVENT_TOKEN) j->unread--;
        if (e->kind == EVENT_END) j->over = true;
    }
    pthread_mutex_unlock(&j->lock);
    return e;
}

/* ---- Life --------------------------------------------------------------------------------- */

void request_free(job_request *r) {
    free(r->prompt);
    linnet_session_free(r->start);
    free((void *)(uintptr_t)r->sampling.bias);
    for (size_t i = 0; i < r->n_stops && r->stops; i++)
        free(r->stops[i]);
    free(r->stops);
    *r = (job_request){0};
}

linnet_status job_new(job **out, scheduler *s, job_request *request, linnet_error *err) {
    job *j = calloc(1, sizeof *j);
    event *end = event_new(EVENT_END, 0, 1);
    if (!j || !end || pthread_mutex_init(&j->lock, NULL)) goto failed;
    if (!condition_start(&j->arrived)) {
        pthread_mutex_destroy(&j->lock);
        goto failed;
    }
    j->r = *request;
    j->s = s;
    j->submitted = clock_seconds();
    j->deadline = request->seconds > 0 ? j->submitted + request->seconds : INFINITY;
    j->last = &j->first;
    j->end = end;
    j->holders = 2;
    *out = j;
    return LINNET_OK;
failed:
    free(j);
    event_free(end);
    request_free(request);
    return fail(err, LINNET_ERR_MEMORY, "no memory for a job");
}

void job_release(job *j) {
    pthread_mutex_lock(&j->lock);
    bool last = --j->holders == 0;
    pthread_mutex_unlock(&j->lock);
    if (!last) return;
    for (event *e = j->first, *next; e; e = next) {
        next = e->next;
        event_free(e);
    }
    event_free(j->end);
    request_free(&j->r);
    pthread_cond_destroy(&j->arrived);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

void job_cancel(job *j) {
    atomic_store(&j->cancelled, true);
    scheduler_wake(j->s);
}

void job_free(job *j) {
    if (!j) return;
    job_cancel(j);
    job_release(j);
}
