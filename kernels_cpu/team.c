#include "team.h"

#include <limits.h>
#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SPINS = 4000, /* before sleeping: tens of microseconds, several phases of a small model */
    IDLE_SPINS = 4 * SPINS, /* between runs: the time that sampling takes */
    PIECES = 4              /* of each thread's share */
};

/* Counters carry the number of their run in the upper half, so that no run has to clear them. */
typedef struct {
    _Alignas(64) _Atomic uint64_t pieces;
} counter;

struct phase_slot {
    counter done;                      /* pieces finished, of all shares */
    _Alignas(64) _Atomic uint32_t end; /* the run in which the phase was last completed */
    atomic_int sleepers;
    counter taken[]; /* per thread: pieces taken from its share */
};

/* The gate of the current run: its number << 32 | CLOSED | workers inside. */
#define CLOSED (1u << 31)

struct team {
    int size;
    uint32_t run;
    void (*fn)(void *arg, int thread);
    void *arg;
    _Alignas(64) _Atomic uint64_t gate;
    _Alignas(64) _Atomic uint32_t bell; /* rung (changed) for a new run, and to quit */
    atomic_int sleepers;
    atomic_bool quit;
    size_t slot_bytes, n_slots;
    uint8_t *slots;
    size_t *position; /* per thread: phases begun in this run */
    pthread_t host;   /* owns the OpenMP team of size - 1 workers */
    bool hosted;
    pthread_mutex_t mutex;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

int team_default_size(void) {
    cpu_set_t set;
    int allowed = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    /* One thread per physical core: skip the later siblings of each core. */
    int cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && allowed > 0; cpu++) {
        if (!CPU_ISSET(cpu, &set)) continue;
        char path[96];
        int first = cpu;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 cpu);
        FILE *f = fopen(path, "r");
        if (f) {
            if (fscanf(f, "%d", &first) != 1) first = cpu;
            fclose(f);
        }
        if (first == cpu || first < 0 || first >= CPU_SETSIZE || !CPU_ISSET(first, &set)) cores++;
    }
    return cores > 0 ? cores : 1;
}

static size_t *position_of(team *t, int thread) {
    return t->position + (size_t)thread * (64 / sizeof(size_t)); /* a cache line each */
}

/* Enters the open run newer than `last`, if there is one. */
static bool enter(team *t, uint32_t last) {
    uint64_t v = atomic_load_explicit(&t->gate, memory_order_acquire);
    do {
        if ((uint32_t)(v >> 32) == last || (v & CLOSED)) return false;
    } while (!atomic_compare_exchange_weak(&t->gate, &v, v + 1));
    return true;
}

static void leave(team *t) {
    uint64_t v = atomic_fetch_sub(&t->gate, 1) - 1;
    if ((uint32_t)v != CLOSED) return; /* others are inside, or the caller is not waiting */
    atomic_fetch_add(&t->bell, 1);
    futex_wake_all(&t->bell);
}

static void work(team *t, int thread) {
    uint32_t last = 0;
    while (!atomic_load_explicit(&t->quit, memory_order_relaxed)) {
        uint32_t bell = atomic_load(&t->bell);
        bool in = false;
        for (int i = 0; i < IDLE_SPINS && !(in = enter(t, last)); i++) {
            if (atomic_load_explicit(&t->quit, memory_order_relaxed)) return;
            pause_cpu();
        }
        if (!in) {
            atomic_fetch_add(&t->sleepers, 1);
            if (!(in = enter(t, last)) && !atomic_load(&t->quit)) futex_wait(&t->bell, bell);
            atomic_fetch_sub(&t->sleepers, 1);
        }
        if (!in) continue;
        last = t->run;
        *position_of(t, thread) = 0;
        t->fn(t->arg, thread);
        leave(t);
    }
}

static void *host(void *arg) {
    team *t = arg;
#pragma omp parallel num_threads(t->size - 1)
    work(t, omp_get_thread_num() + 1);
    return NULL;
}

linnet_status team_new(team **out, int threads, linnet_error *err) {
    team *t = aligned_alloc(64, round_up(sizeof *t, 64));
    size_t *position = calloc((size_t)threads, 64);
    if (!t || !position) {
        free(t);
        free(position);
        return fail(err, LINNET_ERR_MEMORY, "no memory for a team of %d threads", threads);
    }
    memset(t, 0, sizeof *t);
    t->size = threads;
    t->position = position;
    t->slot_bytes = sizeof(struct phase_slot) + (size_t)threads * sizeof(counter);
    atomic_init(&t->gate, CLOSED);
    pthread_mutex_init(&t->mutex, NULL);
    if (threads > 1 && pthread_create(&t->host, NULL, host, t)) {
        team_free(t);
        return fail(err, LINNET_ERR_MEMORY, "cannot start a team of %d threads", threads);
    }
    t->hosted = threads > 1;
    *out = t;
    return LINNET_OK;
}

linnet_status team_reserve(team *t, size_t phases, linnet_error *err) {
    if (t->size == 1 || phases <= t->n_slots) return LINNET_OK;
    uint8_t *slots = aligned_alloc(64, phases * t->slot_bytes);
    if (!slots) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu phases", phases);
    memset(slots, 0, phases * t->slot_bytes);
    free(t->slots);
    t->slots = slots;
    t->n_slots = phases;
    return LINNET_OK;
}

void team_free(team *t) {
    if (!t) return;
    if (t->hosted) {
        atomic_store(&t->quit, true);
        atomic_fetch_add(&t->bell, 1);
        futex_wake_all(&t->bell);
        pthread_join(t->host, NULL);
    }
    pthread_mutex_destroy(&t->mutex);
    free(t->slots);
    free(t->position);
    free(t);
}

int team_size(const team *t) {
    return t->size;
}
void team_lock(team *t) {
    pthread_mutex_lock(&t->mutex);
}
void team_unlock(team *t) {
    pthread_mutex_unlock(&t->mutex);
}

void team_run(team *t, void (*fn)(void *arg, int thread), void *arg) {
    *position_of(t, 0) = 0;
    if (t->size == 1) {
        fn(arg, 0);
        return;
    }
    if (++t->run == 0) { /* 2^32 runs: the counters' stamps start over */
        t->run = 1;
        memset(t->slots, 0, t->n_slots * t->slot_bytes);
    }
    t->fn = fn;
    t->arg = arg;
    atomic_store(&t->gate, (uint64_t)t->run << 32);
    atomic_fetch_add(&t->bell, 1);
    if (atomic_load(&t->sleepers)) futex_wake_all(&t->bell);
    fn(arg, 0);
    /* All work is done; only those who are inside, walking to the end, have to be waited for. */
    uint64_t v = atomic_fetch_or(&t->gate, CLOSED) | CLOSED;
    for (int i = 0; (uint32_t)v != CLOSED && i < SPINS; i++) {
        pause_cpu();
        v = atomic_load(&t->gate);
    }
    while ((uint32_t)v != CLOSED) {
        uint32_t bell = atomic_load(&t->bell);
        if ((uint32_t)(v = atomic_load(&t->gate)) != CLOSED) futex_wait(&t->bell, bell);
    }
}

/* Share i of n things, and in how many pieces it is taken. */
static size_t share_of(const phase *p, int i, size_t *from, size_t *to) {
    size_t width = (size_t)p->team->size;
    *from = p->n * (size_t)i / width;
    *to = p->n * ((size_t)i + 1) / width;
    return min_size(PIECES, *to - *from);
}

phase phase_begin(team *t, int thread, size_t n) {
    size_t at = (*position_of(t, thread))++;
    struct phase_slot *slot = t->size == 1 ? NULL : (void *)(t->slots + at * t->slot_bytes);
    return (phase){.team = t, .slot = slot, .n = n, .thread = thread, .share = thread};
}

/* Adds n to a counter that may be stamped with an older run, as long as it is below `limit`; the
 * value before, or `limit`. */
static uint64_t count(_Atomic uint64_t *c, uint32_t run, uint64_t n, uint64_t limit) {
    uint64_t zero = (uint64_t)run << 32, v = atomic_load_explicit(c, memory_order_relaxed), base;
    do {
        base = v >> 32 == run ? v : zero;
        if (base - zero >= limit) return limit;
    } while (!atomic_compare_exchange_weak_explicit(c, &v, base + n, memory_order_acq_rel,
                                                    memory_order_relaxed));
    return base - zero;
}

/* Tells the others of the pieces that this thread has finished: once for its whole share, since
 * every time takes the counter from another core. */
static void tell_finished(phase *p) {
    size_t total = 0, from, to, n = p->finished;
    if (!n) return;
    p->finished = 0;
    for (int i = 0; i < p->team->size; i++)
        total += share_of(p, i, &from, &to);
    if (count(&p->slot->done.pieces, p->team->run, n, total) + n < total) return;
    atomic_store(&p->slot->end, p->team->run);
    if (atomic_load(&p->slot->sleepers)) futex_wake_all(&p->slot->end);
}

static void wait_for_end(phase *p) {
    _Atomic uint32_t *end = &p->slot->end;
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(end, memory_order_acquire) == p->team->run) return;
        pause_cpu();
    }
    atomic_fetch_add(&p->slot->sleepers, 1);
    for (uint32_t seen; (seen = atomic_load(end)) != p->team->run;)
        futex_wait(end, seen);
    atomic_fetch_sub(&p->slot->sleepers, 1);
}

bool phase_next(phase *p) {
    if (!p->slot || !p->n) { /* alone, or nothing to do */
        bool first = !p->busy && p->n;
        p->busy = true;
        p->from = 0;
        p->to = p->n;
        return first;
    }
    p->finished += p->busy;
    p->busy = false;
    for (int tried = 0; tried < p->team->size; tried++) {
        size_t from, to, pieces = share_of(p, p->share, &from, &to);
        uint64_t c = count(&p->slot->taken[p->share].pieces, p->team->run, 1, pieces);
        if (c < pieces) {
            p->from = from + (to - from) * c / pieces;
            p->to = from + (to - from) * (c + 1) / pieces;
            return p->busy = true;
        }
        tell_finished(p);
        p->share = (p->share + 1) % p->team->size;
    }
    wait_for_end(p);
    return false;
}
