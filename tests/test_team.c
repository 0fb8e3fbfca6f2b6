/* The thread team: every thing of a phase is done once, a phase sees all of the one before, however
 * many threads there are and whoever starts the run. */
#include "../kernels_cpu/team.h"
#include "support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { PHASES = 40, MOST = 300 };

typedef struct {
    team *team;
    size_t n;
    atomic_int done[MOST];   /* times that index i was done, over all phases */
    size_t values[MOST + 1]; /* plain memory: phase p writes what phase p - 1 left, plus one */
    atomic_int wrong;
    atomic_int threads;
} board;

static void walk(void *arg, int thread) {
    board *b = arg;
    atomic_fetch_add(&b->threads, 1);
    for (size_t round = 0; round < PHASES; round++) {
        /* neighbours' values of the last round: a missing one shows */
        for (phase ph = phase_begin(b->team, thread, b->n); phase_next(&ph);)
            for (size_t i = ph.from; i < ph.to; i++) {
                size_t other = (i + b->n / 2) % b->n;
                if (round % 2 && b->values[other] < round / 2 + 1) atomic_fetch_add(&b->wrong, 1);
                if (!(round % 2)) {
                    b->values[i]++;
                    atomic_fetch_add(&b->done[i], 1);
                }
            }
    }
}

static void run_board(team *t, board *b, size_t n) {
    linnet_error err;
    memset(b, 0, sizeof *b);
    b->team = t;
    b->n = n;
    assert_int_equal(team_reserve(t, PHASES, &err), LINNET_OK);
    team_run(t, walk, b);
    assert_int_equal(b->wrong, 0);
    assert_in_range(b->threads, 1, team_size(t));
    for (size_t i = 0; i < MOST; i++)
        if (b->done[i] != (i < n ? PHASES / 2 : 0))
            fail_msg("%d threads, n %zu: index %zu done %d times", team_size(t), n, i, b->done[i]);
}

static void every_thing_once_and_phases_in_order(void **state) {
    static const size_t counts[] = {0, 1, 2, 3, 7, 8, 9, 31, 64, 100, 299};
    static board b;
    (void)state;
    for (int threads = 1; threads <= 9; threads++) {
        team *t;
        assert_int_equal(team_new(&t, threads, NULL), LINNET_OK);
        assert_int_equal(team_size(t), threads);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            run_board(t, &b, counts[c]);
        team_free(t);
    }
}

static void many_runs(void **state) {
    static board b;
    team *t;
    (void)state;
    assert_int_equal(team_new(&t, 3, NULL), LINNET_OK);
    for (int run = 0; run < 2000; run++) {
        run_board(t, &b, (size_t)run % 20);
        if (run % 500 == 0) usleep(3000); /* long enough for the workers to fall asleep */
    }
    team_free(t);
}

static void teams_that_never_ran(void **state) {
    (void)state;
    for (int i = 0; i < 200; i++) {
        team *t;
        assert_int_equal(team_new(&t, 1 + i % 5, NULL), LINNET_OK);
        team_free(t);
    }
    team_free(NULL);
    assert_true(team_default_size() >= 1);
}

static void *caller(void *arg) {
    static _Thread_local board b;
    team *t = arg;
    for (int run = 0; run < 300; run++) {
        team_lock(t);
        run_board(t, &b, 50);
        team_unlock(t);
    }
    return NULL;
}

static void callers_take_turns(void **state) {
    pthread_t threads[3];
    team *t;
    (void)state;
    assert_int_equal(team_new(&t, 3, NULL), LINNET_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, caller, t), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    team_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_thing_once_and_phases_in_order),
        cmocka_unit_test(many_runs),
        cmocka_unit_test(teams_that_never_ran),
        cmocka_unit_test(callers_take_turns),
    };
    return cmocka_run_group_tests_name("team", tests, NULL, NULL);
}
