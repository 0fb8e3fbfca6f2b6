/* How fast this machine's memory is read: the limit of decoding, which reads all weights per token.
 *
 *   build/bench/bandwidth [THREADS [MB [SECONDS]]]     default 1 512 0.5
 *
 * Threads that are not bound to processors each read a part of one buffer on huge pages, again and
 * again; a JSON object with the best pass and the median. A buffer several times larger than the
 * caches measures the memory, a small one the caches. */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { MAX_PASSES = 10000, STEP = 512, HUGE_PAGE = 2 << 20 };

typedef uint64_t vec __attribute__((vector_size(64)));

/* n is a multiple of STEP. Eight sums, so that none waits for another. */
#define DEFINE_READ(NAME, TARGET)                                                                  \
    TARGET static uint64_t NAME(const char *p, size_t n) {                                         \
        vec a = {0}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;                              \
        for (const vec *v = (const vec *)p, *end = (const vec *)(p + n); v < end; v += 8) {        \
            a += v[0], b += v[1], c += v[2], d += v[3];                                            \
            e += v[4], f += v[5], g += v[6], h += v[7];                                            \
        }                                                                                          \
        a = ((a + b) + (c + d)) + ((e + f) + (g + h));                                             \
        uint64_t sum = 0;                                                                          \
        for (int i = 0; i < 8; i++)                                                                \
            sum += a[i];                                                                           \
        return sum;                                                                                \
    }

typedef uint64_t read_function(const char *p, size_t n);

DEFINE_READ(read_plain, )
#ifdef __x86_64__
DEFINE_READ(read_avx2, __attribute__((target("avx2"))))
DEFINE_READ(read_avx512, __attribute__((target("avx512f"))))
#endif

static read_function *widest(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
    if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
    return read_plain;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static char *room(size_t bytes) {
    char *p =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    p += (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    madvise(p, bytes, MADV_HUGEPAGE); /* without huge pages it is only slower */
    return p;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1, mb = argc > 2 ? atoi(argv[2]) : 512;
    double seconds = argc > 3 ? atof(argv[3]) : 0.5;
    if (argc > 4 || threads < 1 || threads > 1024 || mb < 1 || mb > 1 << 20 || !(seconds > 0)) {
        fprintf(stderr, "usage: bandwidth [THREADS [MB [SECONDS]]]\n");
        return 2;
    }
    size_t part = (size_t)mb * 1000000 / (size_t)threads / STEP * STEP,
           bytes = part * (size_t)threads;
    char *buffer = room(bytes);
    if (!buffer) {
        fprintf(stderr, "bandwidth: no memory for %d MB\n", mb);
        return 1;
    }
    read_function *reads = widest();
    static double passes[MAX_PASSES];
    int n = 0;
    omp_set_dynamic(0);
#pragma omp parallel num_threads(threads)
    memset(buffer + part * (size_t)omp_get_thread_num(), 1, part);
    for (double start = now(); n < MAX_PASSES && (n < 5 || now() - start < seconds); n++) {
        uint64_t sum = 0;
        double t = now();
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += reads(buffer + part * (size_t)omp_get_thread_num(), part);
        passes[n] = (double)bytes / (now() - t) * 1e-9;
        if (sum != bytes / sizeof sum * UINT64_C(0x0101010101010101)) {
            fprintf(stderr, "bandwidth: read something else than was written\n");
            return 1;
        }
    }
    qsort(passes, (size_t)n, sizeof *passes, by_value);
    printf("{\"threads\": %d, \"mb\": %d, \"passes\": %d, \"gb_per_s\": %.2f, \"median\": %.2f}\n",
           threads, mb, n, passes[n - 1], passes[n / 2]);
    return 0;
}
