/* The thread team: every index of a phase exactly once, a later phase sees the whole of the former,
 * over many runs, more threads than cores, and callers from several threads. */
#include "../kernels_cpu/team.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_N = 300, MAX_PHASES = 24 };

static team *make_team(int threads) {
    team *t;
    linnet_error err;
    if (team_new(&t, threads, &err)) fail_msg("%s", err.text);
    return t;
}

/* ---- Every index once --------------------------------------------------------------------------
 */

typedef struct {
    team *t;
    size_t n[MAX_PHASES], phases;
    atomic_int taken[MAX_PHASES][MAX_N];
    atomic_int empty, outside; /* pieces that should not be */
    atomic_uint came;          /* bit per thread that ran */
    useconds_t late;           /* how long threads other than 0 sleep before they begin */
} count_job;

static void count_all(void *arg, int thread) {
    count_job *j = arg;
    atomic_fetch_or(&j->came, 1u << thread);
    if (thread && j->late) usleep(j->late);
    for (size_t p = 0; p < j->phases; p++)
        for (phase ph = phase_begin(j->t, thread, j->n[p]); phase_next(&ph);) {
            if (ph.from >= ph.to) atomic_fetch_add(&j->empty, 1);
            if (ph.to > j->n[p]) atomic_fetch_add(&j->outside, 1);
            for (size_t i = ph.from; i < ph.to && i < MAX_N; i++)
                atomic_fetch_add(&j->taken[p][i], 1);
        }
}

static void run_counted(count_job *j, int threads) {
    linnet_error err;
    if (team_reserve(j->t, j->phases, &err)) fail_msg("%s", err.text);
    atomic_store(&j->empty, 0);
    atomic_store(&j->outside, 0);
    atomic_store(&j->came, 0);
    for (size_t p = 0; p < j->phases; p++)
        for (size_t i = 0; i < MAX_N; i++)
            atomic_store(&j->taken[p][i], 0);
    team_run(j->t, count_all, j);
    assert_true(atomic_load(&j->came) & 1); /* the caller itself is thread 0 */
    assert_true(atomic_load(&j->came) < 1u << threads);
    assert_int_equal(atomic_load(&j->empty), 0);
    assert_int_equal(atomic_load(&j->outside), 0);
    for (size_t p = 0; p < j->phases; p++)
        for (size_t i = 0; i < MAX_N; i++)
            if (atomic_load(&j->taken[p][i]) != (i < j->n[p]))
                fail_msg("%d threads, phase %zu of %zu things: %zu was taken %d times", threads, p,
                         j->n[p], i, atomic_load(&j->taken[p][i]));
}

static void every_index_once(void **state) {
    (void)state;
    count_job *j = calloc(1, sizeof *j);
    for (int threads = 1; threads <= 9; threads++) {
        j->t = make_team(threads);
        assert_int_equal(team_size(j->t), threads);
        j->phases = 1;
        for (size_t n = 0; n <= MAX_N; n += n < 80 ? 1 : 11) {
            j->n[0] = n;
            run_counted(j, threads);
        }
        /* many phases of different sizes in a run, empty ones between */
        j->phases = MAX_PHASES;
        for (size_t round = 0; round < 20; round++) {
            for (size_t p = 0; p < MAX_PHASES; p++)
                j->n[p] = (p * 37 + round * 11) % 5 ? (p * 101 + round * 13) % MAX_N : 0;
            run_counted(j, threads);
        }
        team_free(j->t);
    }
    free(j);
}

/* Workers that come when all is done find every phase over; those who come in the middle help. */
static void late_workers(void **state) {
    (void)state;
    count_job *j = calloc(1, sizeof *j);
    j->t = make_team(4);
    j->phases = 6;
    for (size_t p = 0; p < j->phases; p++)
        j->n[p] = p == 3 ? 0 : 40 + p;
    for (int round = 0; round < 40; round++) {
        j->late = (useconds_t)(round * 25);
        run_counted(j, 4);
    }
    team_free(j->t);
    free(j);
}

/* The caller holds the run open until every worker is in it. */
static void wait_for_all(void *arg, int thread) {
    count_job *j = arg;
    atomic_fetch_or(&j->came, 1u << thread);
    for (int i = 0; thread == 0 && i < 20000 && atomic_load(&j->came) != (1u << j->phases) - 1; i++)
        usleep(500);
}

static void all_workers_come(void **state) {
    (void)state;
    count_job *j = calloc(1, sizeof *j);
    for (int threads = 1; threads <= 9; threads++) {
        j->t = make_team(threads);
        j->phases = (size_t)threads;
        for (int round = 0; round < 3; round++) {
            atomic_store(&j->came, 0);
            team_run(j->t, wait_for_all, j);
            assert_int_equal(atomic_load(&j->came), (1u << threads) - 1);
        }
        team_free(j->t);
    }
    free(j);
}

/* ---- Order -------------------------------------------------------------------------------------
 */

enum { WIDTH = 96, CHAIN = 12 };
typedef struct {
    team *t;
    uint64_t rows[CHAIN + 1][WIDTH]; /* plain memory: the phases alone order it */
} chain_job;

/* Row p + 1 from all of row p. */
static void chain(void *arg, int thread) {
    chain_job *j = arg;
    for (size_t p = 0; p < CHAIN; p++)
        for (phase ph = phase_begin(j->t, thread, WIDTH); phase_next(&ph);)
            for (size_t i = ph.from; i < ph.to; i++) {
                uint64_t sum = i;
                for (size_t k = 0; k < WIDTH; k++)
                    sum = sum * 6364136223846793005u + j->rows[p][k];
                j->rows[p + 1][i] = sum;
            }
}

static void check_chain(chain_job *j, chain_job *alone, team *one, uint64_t seed) {
    for (size_t i = 0; i < WIDTH; i++)
        j->rows[0][i] = alone->rows[0][i] = seed * 1000 + i;
    alone->t = one;
    team_run(one, chain, alone);
    team_run(j->t, chain, j);
    if (memcmp(j->rows, alone->rows, sizeof j->rows))
        fail_msg("%d threads: a phase did not see the one before it", team_size(j->t));
}

static void phases_in_order(void **state) {
    (void)state;
    team *one = make_team(1);
    chain_job *j = calloc(1, sizeof *j), *alone = calloc(1, sizeof *alone);
    for (int threads = 2; threads <= 9; threads++) {
        j->t = make_team(threads);
        assert_int_equal(team_reserve(j->t, CHAIN, NULL), 0);
        for (uint64_t seed = 0; seed < 100; seed++)
            check_chain(j, alone, one, seed);
        team_free(j->t);
    }
    team_free(one);
    free(j);
    free(alone);
}

/* 10,000 runs on one team, with pauses so that workers also go to sleep between runs. */
static void many_runs(void **state) {
    (void)state;
    team *one = make_team(1);
    chain_job *j = calloc(1, sizeof *j), *alone = calloc(1, sizeof *alone);
    j->t = make_team(3);
    assert_int_equal(team_reserve(j->t, CHAIN, NULL), 0);
    for (uint64_t seed = 0; seed < 10000; seed++) {
        check_chain(j, alone, one, seed);
        if (seed % 500 == 0) usleep(2000);
        if (seed == 5000) assert_int_equal(team_reserve(j->t, 4 * CHAIN, NULL), 0);
    }
    team_free(j->t);
    team_free(one);
    free(j);
    free(alone);
}

static void far_more_threads_than_cores(void **state) {
    (void)state;
    team *one = make_team(1);
    chain_job *j = calloc(1, sizeof *j), *alone = calloc(1, sizeof *alone);
    j->t = make_team(33);
    assert_int_equal(team_reserve(j->t, CHAIN, NULL), 0);
    for (uint64_t seed = 0; seed < 50; seed++)
        check_chain(j, alone, one, seed);
    team_free(j->t);
    team_free(one);
    free(j);
    free(alone);
}

/* ---- Callers -----------------------------------------------------------------------------------
 */

typedef struct {
    team *t;
    atomic_int *inside; /* callers between lock and unlock */
    atomic_int failed;
    uint64_t seed;
} caller;

static void *call(void *arg) {
    caller *c = arg;
    chain_job *j = calloc(1, sizeof *j), *alone = calloc(1, sizeof *alone);
    team *one;
    if (team_new(&one, 1, NULL)) return NULL;
    j->t = c->t;
    alone->t = one;
    for (uint64_t round = 0; round < 300; round++) {
        for (size_t i = 0; i < WIDTH; i++)
            j->rows[0][i] = alone->rows[0][i] = (c->seed + round) * 1000 + i;
        team_run(one, chain, alone);
        team_lock(c->t);
        if (atomic_fetch_add(c->inside, 1)) atomic_fetch_add(&c->failed, 1);
        team_run(c->t, chain, j);
        atomic_fetch_sub(c->inside, 1);
        team_unlock(c->t);
        if (memcmp(j->rows, alone->rows, sizeof j->rows)) atomic_fetch_add(&c->failed, 1);
    }
    team_free(one);
    free(j);
    free(alone);
    return NULL;
}

static void callers_take_turns(void **state) {
    (void)state;
    enum { CALLERS = 4 };
    pthread_t threads[CALLERS];
    static caller callers[CALLERS];
    atomic_int inside = 0;
    team *t = make_team(3);
    assert_int_equal(team_reserve(t, CHAIN, NULL), 0);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){.t = t, .inside = &inside, .seed = (uint64_t)i * 100000};
        assert_int_equal(pthread_create(&threads[i], NULL, call, &callers[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CALLERS; i++)
        assert_int_equal(atomic_load(&callers[i].failed), 0);
    team_free(t);
}

/* ---- Ends --------------------------------------------------------------------------------------
 */

static void freed_at_any_moment(void **state) {
    (void)state;
    team_free(NULL);
    for (int i = 0; i < 200; i++) {
        team *t = make_team(1 + i % 5);
        if (i % 3 == 1) sched_yield();
        if (i % 3 == 2) usleep(300); /* its workers spin, or sleep already */
        team_free(t);
    }
    count_job *j = calloc(1, sizeof *j);
    j->phases = 1;
    j->n[0] = 7;
    for (int i = 0; i < 200; i++) { /* straight after a run */
        j->t = make_team(4);
        run_counted(j, 4);
        team_free(j->t);
    }
    free(j);
}

static void reserving(void **state) {
    (void)state;
    team *t = make_team(2);
    linnet_error err = {0};
    assert_int_equal(team_reserve(t, 0, &err), 0);
    assert_int_equal(team_reserve(t, 100, &err), 0);
    assert_int_equal(team_reserve(t, 10, &err), 0); /* never shrinks */
    count_job *j = calloc(1, sizeof *j);
    j->t = t;
    j->phases = MAX_PHASES;
    for (size_t p = 0; p < MAX_PHASES; p++)
        j->n[p] = p;
    run_counted(j, 2);
    free(j);
    team_free(t);
    assert_true(team_default_size() >= 1);
    assert_true(team_default_size() <= sysconf(_SC_NPROCESSORS_CONF));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_once),   cmocka_unit_test(late_workers),
        cmocka_unit_test(all_workers_come),   cmocka_unit_test(phases_in_order),
        cmocka_unit_test(many_runs),          cmocka_unit_test(far_more_threads_than_cores),
        cmocka_unit_test(callers_take_turns), cmocka_unit_test(freed_at_any_moment),
        cmocka_unit_test(reserving),
    };
    return cmocka_run_group_tests_name("team", tests, NULL, NULL);
}
