/* The matrix products alone, on one thread: how near they come to what the CPU can do.
 *
 *   build/bench/kernels [ISA [ROWS COLS]]     default auto 1536 576
 *
 * Per type and number of columns: the best of many runs over a matrix that stays in the cache, as
 * GB/s of weights (one column: above the memory's bandwidth means that decoding waits for memory)
 * and billions of operations a second (a multiplication and an addition are two), which
 * bench/README.md compares with the peak of the CPU. */
#include "../kernels_cpu/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *room(size_t bytes) {
    void *p = aligned_alloc(64, round_up(bytes, 64));
    if (!p) exit(1);
    memset(p, 1, round_up(bytes, 64));
    return p;
}

static activations make_input(const kernels *k, size_t n, size_t cols, bool narrow) {
    size_t blocks = round_up(cols, BLOCK) / BLOCK * n;
    activations a = {.n = n, .cols = cols};
    a.f = room(blocks * BLOCK * sizeof *a.f);
    if (narrow) a.rounded = room(blocks * BLOCK * sizeof *a.rounded);
    a.q = room(blocks * BLOCK * sizeof *a.q);
    a.scale = room(blocks * sizeof *a.scale);
    a.scaled_sum = room(blocks * sizeof *a.scaled_sum);
    a.sum = room(2 * blocks * sizeof *a.sum);
    a.wide = room(blocks);
    float *x = room(cols * sizeof *x);
    for (size_t c = 0; c < n; c++) {
        for (size_t i = 0; i < cols; i++)
            x[i] = sinf((float)(c * cols + i));
        k->quantize(&a, c, x, 0, round_up(cols, BLOCK) / BLOCK, narrow);
    }
    free(x);
    return a;
}

static double best_time(const kernels *k, const matrix *w, const activations *x, float *y) {
    double best = 1e9, start = now();
    for (int i = 0; i < 5 || now() - start < 0.15; i++) {
        double t = now();
        k->gemm(w, 0, w->rows / PANEL, x, y, w->rows, GEMM_STORE);
        t = now() - t;
        best = t < best ? t : best;
    }
    return best;
}

static void measure(const kernels *k, dtype type, size_t rows, size_t cols, bool narrow) {
    static const size_t counts[] = {1, 2, 4, 8, 23, 32, 256};
    matrix w = {.rows = rows, .cols = cols, .type = type};
    w.panel_bytes = packed_panel_bytes(type, cols);
    w.data = room(rows / PANEL * w.panel_bytes);
    printf("| %s, %s |", dtype_get(type)->name,
           is_float_type(type) ? narrow ? "bf16" : "f32"
           : narrow            ? "8-bit"
                               : "16-bit");
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        activations x = make_input(k, counts[i], cols, narrow);
        float *y = room(counts[i] * rows * sizeof *y);
        double t = best_time(k, &w, &x, y);
        if (i == 0) printf(" %.0f |", (double)(rows / PANEL * w.panel_bytes) / t * 1e-9);
        printf(" %.0f |", 2.0 * (double)(rows * cols * counts[i]) / t * 1e-9);
        fflush(stdout);
        free(x.f), free(x.rounded), free(x.q), free(x.scale), free(x.scaled_sum), free(x.sum),
            free(x.wide), free(y);
    }
    printf("\n");
    free((void *)w.data);
}

int main(int argc, char **argv) {
    static const dtype types[] = {DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0,
                                  DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q4_K, DTYPE_Q6_K};
    const kernels *k;
    linnet_error err;
    if (kernels_select(argc > 1 ? argv[1] : NULL, &k, &err)) {
        fprintf(stderr, "kernels: %s\n", err.text);
        return 1;
    }
    size_t rows = argc > 3 ? (size_t)atoi(argv[2]) : 1536,
           cols = argc > 3 ? (size_t)atoi(argv[3]) : 576;
    printf("| %s | GB/s | G op/s: 1 column | 2 | 4 | 8 | 23 | 32 | 256 "
           "|\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
           k->name);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (cols % dtype_get(types[i])->block) continue;
        measure(k, types[i], rows, cols, false);
        if (!is_float_type(types[i]) || types[i] == DTYPE_BF16)
            measure(k, types[i], rows, cols, true);
    }
    return 0;
}
