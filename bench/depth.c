/* Decode time and state by depth, one row per depth: what a recurrent state buys.
 *
 *   build/bench/depth MODEL.gguf [THREADS [DEPTH ...]]     depths ascending, default 256 2048 8192
 *
 * The session is fed pseudo-random ids up to each depth (not timed), then 33 steps are timed one by
 * one; the row has their median. */
#include "../linnet.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { STEPS = 33 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void check(linnet_status s, const linnet_error *err) {
    if (!s) return;
    fprintf(stderr, "depth: %s\n", err->text);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "depth: expected MODEL.gguf [THREADS [DEPTH ...]]\n");
        return 2;
    }
    static char *fallback[] = {"256", "2048", "8192"};
    char **depths = argc > 3 ? argv + 3 : fallback;
    int n_depths = argc > 3 ? argc - 3 : 3;
    linnet_error err;
    linnet_model *model;
    linnet_session *session;
    linnet_model_options o = {.threads = argc > 2 ? atoi(argv[2]) : 0};
    linnet_session_options so = {.ctx = atoi(depths[n_depths - 1]) + STEPS + 1};
    check(linnet_model_open(&model, argv[1], &o, &err), &err);
    check(linnet_session_new(&session, model, &so, &err), &err);
    int rows = linnet_model_get_info(model)->n_rows;
    uint32_t random = 1;
    size_t depth = 0;
    printf("| depth | ms a token | state bytes |\n|---:|---:|---:|\n");
    for (int i = 0; i < n_depths; i++) {
        double ms[STEPS];
        size_t want = (size_t)atoi(depths[i]);
        while (depth < want) {
            int32_t ids[512];
            size_t n = want - depth < 512 ? want - depth : 512;
            for (size_t t = 0; t < n; t++)
                ids[t] = (int32_t)((random = random * 1664525 + 1013904223) >> 8) % rows;
            check(linnet_feed(session, ids, n, LINNET_LOGITS_NONE, &err), &err);
            depth += n;
        }
        for (int t = 0; t < STEPS; t++, depth++) {
            int32_t id = (int32_t)((random = random * 1664525 + 1013904223) >> 8) % rows;
            double start = now();
            check(linnet_feed(session, &id, 1, LINNET_LOGITS_LAST, &err), &err);
            ms[t] = 1e3 * (now() - start);
        }
        qsort(ms, STEPS, sizeof *ms, ascending);
        printf("| %zu | %.3f | %llu |\n", want, ms[STEPS / 2],
               (unsigned long long)linnet_session_state_bytes(session));
        fflush(stdout);
    }
    linnet_session_free(session);
    linnet_model_close(model);
    return 0;
}
