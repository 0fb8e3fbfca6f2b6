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

/* Spins before sleeping: about 20 microseconds, several times a phase of a small model. */
enum { SPINS = 4000 };

struct team {
    int size, width;
    pthread_mutex_t mutex;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int generation;
    atomic_int sleepers;
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
        snprintf(path, sizeof path,
                 "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
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
    team *t = aligned_alloc(64, round_up(sizeof *t, 64));
    if (!t) return fail(err, LINNET_ERR_MEMORY, "no memory for a thread team");
    memset(t, 0, sizeof *t);
    t->size = threads;
    t->width = 1;
    pthread_mutex_init(&t->mutex, NULL);
    *out = t;
    return LINNET_OK;
}

void team_free(team *t) {
    if (!t) return;
    pthread_mutex_destroy(&t->mutex);
    free(t);
}

int team_size(const team *t) { return t->size; }
int team_width(const team *t) { return t->width; }
void team_lock(team *t) { pthread_mutex_lock(&t->mutex); }
void team_unlock(team *t) { pthread_mutex_unlock(&t->mutex); }

void team_run(team *t, void (*fn)(void *arg, int thread), void *arg) {
    if (t->size == 1) {
        t->width = 1;
        fn(arg, 0);
        return;
    }
#pragma omp parallel num_threads(t->size)
    {
#pragma omp single
        t->width = omp_get_num_threads();
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

void team_barrier(team *t) {
    if (t->width == 1) return;
    int generation = atomic_load_explicit(&t->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->width - 1) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store(&t->generation, generation + 1);
        if (atomic_load(&t->sleepers))
            syscall(SYS_futex, &t->generation, FUTEX_WAKE_PRIVATE, t->width, NULL, NULL, 0);
        return;
    }
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&t->generation, memory_order_acquire) != generation) return;
        pause_cpu();
    }
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->generation) == generation)
        syscall(SYS_futex, &t->generation, FUTEX_WAIT_PRIVATE, generation, NULL, NULL, 0);
    atomic_fetch_sub(&t->sleepers, 1);
}
