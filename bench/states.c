/* How long a session's state takes to be copied, saved, loaded, and to go through Redis.
 *
 *   build/bench/states MODEL.gguf [TOKENS [HOST:PORT]]
 *
 * Medians of 21 rounds, after TOKENS (1024) random tokens, on one thread. Redis: one that runs,
 * else those two lines are left out. */
#include "../linnet.h"
#include "../server/clock.h"
#include "../server/store.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS = 21 };

static void check(linnet_status s, const linnet_error *err) {
    if (!s) return;
    fprintf(stderr, "states: %s\n", err->text);
    exit(1);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *what, double *seconds) {
    qsort(seconds, ROUNDS, sizeof *seconds, by_size);
    printf("%-14s %8.2f ms (from %.2f to %.2f)\n", what, 1e3 * seconds[ROUNDS / 2],
           1e3 * seconds[0], 1e3 * seconds[ROUNDS - 1]);
}

int main(int argc, char **argv) {
    linnet_error err;
    linnet_model *model;
    linnet_session *session, *other, *copy;
    linnet_model_options one_thread = {.threads = 1, .backend = "cpu"};
    if (argc < 2) return fprintf(stderr, "states MODEL.gguf [TOKENS [HOST:PORT]]\n"), 2;
    size_t n = argc > 2 ? (size_t)atoll(argv[2]) : 1024;
    check(linnet_model_open(&model, argv[1], &one_thread, &err), &err);
    check(linnet_session_new(&session, model, NULL, &err), &err);
    check(linnet_session_new(&other, model, NULL, &err), &err);
    uint32_t seed = 1;
    for (size_t at = 0; at < n; at += 256) {
        int32_t ids[256];
        for (size_t i = 0; i < 256; i++) {
            seed = seed * 1664525u + 1013904223u;
            ids[i] = (int32_t)((seed >> 8) % (uint32_t)linnet_model_get_info(model)->n_rows);
        }
        check(linnet_feed(session, ids, n - at < 256 ? n - at : 256, LINNET_LOGITS_LAST, &err),
              &err);
    }
    uint64_t bytes = linnet_session_size(session);
    void *buffer = malloc(bytes);
    double fork[ROUNDS], save[ROUNDS], load[ROUNDS], put[ROUNDS], get[ROUNDS];
    printf("%zu tokens, a state of %llu bytes\n", n, (unsigned long long)bytes);
    /* The first save reads the whole model for its fingerprint. */
    check(linnet_session_save(session, buffer, bytes, &err), &err);
    for (int i = 0; i < ROUNDS; i++) {
        double start = clock_seconds();
        check(linnet_session_fork(session, &copy, &err), &err);
        fork[i] = clock_seconds() - start;
        linnet_session_free(copy);
        start = clock_seconds();
        check(linnet_session_save(session, buffer, bytes, &err), &err);
        save[i] = clock_seconds() - start;
        start = clock_seconds();
        check(linnet_session_load(other, buffer, bytes, &err), &err);
        load[i] = clock_seconds() - start;
    }
    report("fork", fork);
    report("save", save);
    report("load", load);
    if (argc > 3) {
        store_redis_options o = {.address = argv[3], .prefix = "linnet:bench", .ttl_seconds = 60};
        store *redis;
        store_key key = {true, "bench"};
        size_t which;
        check(store_redis_new(&redis, &o, &err), &err);
        for (int i = 0; i < ROUNDS; i++) {
            double start = clock_seconds();
            check(redis->put(redis, key, session, &err), &err);
            put[i] = clock_seconds() - start;
            start = clock_seconds();
            check(redis->get(redis, &key, 1, other, &which, &err), &err);
            get[i] = clock_seconds() - start;
        }
        report("save to Redis", put);
        report("load from it", get);
        redis->free(redis);
    }
    free(buffer);
    linnet_session_free(session);
    linnet_session_free(other);
    linnet_model_close(model);
    return 0;
}
