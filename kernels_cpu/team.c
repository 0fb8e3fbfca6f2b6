#include "team.h"

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
    PIECES = 4    /* of each thread's share */
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

struct team {
    int size, width; /* asked for; there in this run */
    uint32_t run;
    size_t slot_bytes, n_slots;
    uint8_t *slots;
    size_t *position; /* per thread: phases begun in this run */
    pthread_mutex_t mutex;
};

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

linnet_status team_new(team **out, int threads, linnet_error *err) {
    team *t = calloc(1, sizeof *t);
    size_t *position = calloc((size_t)threads, 64);
    if (!t || !position) {
        free(t);
        free(position);
        return fail(err, LINNET_ERR_MEMORY, "no memory for a team of %d threads", threads);
    }
    t->size = threads;
    t->width = 1;
    t->position = position;
    t->slot_bytes = sizeof(struct phase_slot) + (size_t)threads * sizeof(counter);
    pthread_mutex_init(&t->mutex, NULL);
    *out = t;
    return LINNET_OK;
}

linnet_status team_reserve(team *t, size_t phases, linnet_error *err) {
    if (phases <= t->n_slots) return LINNET_OK;
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

static size_t *position_of(team *t, int thread) {
    return t->position + (size_t)thread * (64 / sizeof(size_t)); /* a cache line each */
}

void team_run(team *t, void (*fn)(void *arg, int thread), void *arg) {
    if (++t->run == 0) { /* 2^32 runs: the counters' stamps start over */
        t->run = 1;
        memset(t->slots, 0, t->n_slots * t->slot_bytes);
    }
    if (t->size == 1) {
        t->width = 1;
        *position_of(t, 0) = 0;
        fn(arg, 0);
        return;
    }
#pragma omp parallel num_threads(t->size)
    {
        *position_of(t, omp_get_thread_num()) = 0;
#pragma omp single
        t->width = omp_get_num_threads(); /* may be fewer than asked for */
        fn(arg, omp_get_thread_num());
    }
}

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Share i of n things, and in how many pieces it is taken. */
static size_t share_of(const phase *p, int i, size_t *from, size_t *to) {
    size_t width = (size_t)p->team->width;
    *from = p->n * (size_t)i / width;
    *to = p->n * ((size_t)i + 1) / width;
    return min_size(PIECES, *to - *from);
}

phase phase_begin(team *t, int thread, size_t n) {
    size_t at = (*position_of(t, thread))++;
    struct phase_slot *slot = t->width == 1 ? NULL : (void *)(t->slots + at * t->slot_bytes);
    return (phase){.team = t, .slot = slot, .n = n, .thread = thread, .share = thread};
}

/* Adds one to a counter that may be stamped with an older run, as long as it is below `limit`; the
 * value before, or `limit`. */
static uint64_t count(_Atomic uint64_t *c, uint32_t run, uint64_t limit) {
    uint64_t zero = (uint64_t)run << 32, v = atomic_load_explicit(c, memory_order_relaxed), base;
    do {
        base = v >> 32 == run ? v : zero;
        if (base - zero >= limit) return limit;
    } while (!atomic_compare_exchange_weak_explicit(c, &v, base + 1, memory_order_acq_rel,
                                                    memory_order_relaxed));
    return base - zero;
}

static void finish_piece(phase *p) {
    size_t total = 0, from, to;
    for (int i = 0; i < p->team->width; i++)
        total += share_of(p, i, &from, &to);
    if (count(&p->slot->done.pieces, p->team->run, total) + 1 < total) return;
    atomic_store(&p->slot->end, p->team->run);
    if (atomic_load(&p->slot->sleepers))
        syscall(SYS_futex, &p->slot->end, FUTEX_WAKE_PRIVATE, p->team->width, NULL, NULL, 0);
}

static void wait_for_end(phase *p) {
    _Atomic uint32_t *end = &p->slot->end;
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(end, memory_order_acquire) == p->team->run) return;
        pause_cpu();
    }
    atomic_fetch_add(&p->slot->sleepers, 1);
    for (uint32_t seen; (seen = atomic_load(end)) != p->team->run;)
        syscall(SYS_futex, end, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
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
    if (p->busy) finish_piece(p);
    p->busy = false;
    for (int tried = 0; tried < p->team->width; tried++) {
        size_t from, to, pieces = share_of(p, p->share, &from, &to);
        uint64_t c = count(&p->slot->taken[p->share].pieces, p->team->run, pieces);
        if (c < pieces) {
            p->from = from + (to - from) * c / pieces;
            p->to = from + (to - from) * (c + 1) / pieces;
            return p->busy = true;
        }
        p->share = (p->share + 1) % p->team->width;
    }
    wait_for_end(p);
    return false;
}
