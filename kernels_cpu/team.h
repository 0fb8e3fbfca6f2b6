/* One thread team per model, and how it shares the work of a phase.
 *
 * Threads come from OpenMP, which keeps them between runs. Inside a run all threads walk through
 * the same code; each loop over independent things is a phase:
 *
 *     for (phase ph = phase_begin(team, thread, n); phase_next(&ph);)
 *         for (size_t i = ph.from; i < ph.to; i++) ...
 *
 * A phase ends for a thread when all n things are done, whoever did them, not when all threads have
 * come: what one thread wrote in a phase is seen by all in the next, but a thread that lost its
 * core holds up nobody unless it is in the middle of a piece; it passes the phases that went by
 * without it. Each thread has its own share, taken in a few pieces, and then helps with the
 * others'. Waiting spins for microseconds, then sleeps. Results must not depend on who does what,
 * and so do not. */
#ifndef TEAM_H
#define TEAM_H

#include "../common.h"

typedef struct team team;

/* Physical cores this process may use, at least 1. */
int team_default_size(void);
linnet_status team_new(team **out, int threads, linnet_error *err);
void team_free(team *t);
int team_size(const team *t);
/* One caller at a time may use the team. */
void team_lock(team *t);
void team_unlock(team *t);
/* Makes room for runs of up to `phases` phases. */
linnet_status team_reserve(team *t, size_t phases, linnet_error *err);
/* Runs fn(arg, thread) on thread 0 = the caller's, and on every worker that comes in time. Returns
 * when all have left. */
void team_run(team *t, void (*fn)(void *arg, int thread), void *arg);

typedef struct {
    struct team *team;
    struct phase_slot *slot;
    size_t n, from, to;
    int thread, share; /* whose share is being taken from */
    bool busy;         /* [from, to) is in hand */
    size_t finished;   /* pieces that the others do not know of yet */
} phase;

/* Every thread of a run begins the same phases in the same order. */
phase phase_begin(team *t, int thread, size_t n);
/* Takes the next piece; false once the whole phase is done. */
bool phase_next(phase *p);

#endif
