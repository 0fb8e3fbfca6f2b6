/* One thread team per model. Threads come from OpenMP (libgomp keeps them between regions); the
 * barrier inside a region is our own: it spins for microseconds, then sleeps, so that a machine
 * with more runnable threads than cores does not collapse. */
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
/* Runs fn(arg, thread) on every thread, thread 0 being the caller's. `team_width` is how many there
 * really are during the run (OpenMP may give fewer than asked). */
void team_run(team *t, void (*fn)(void *arg, int thread), void *arg);
int team_width(const team *t);
/* Waits for all threads of the run; what each wrote before is seen by all after. */
void team_barrier(team *t);
/* This thread's share [*from, *to) of n things. */
static inline void team_share(const team *t, int thread, size_t n, size_t *from, size_t *to) {
    size_t width = (size_t)team_width(t);
    *from = n * (size_t)thread / width;
    *to = n * ((size_t)thread + 1) / width;
}

#endif
