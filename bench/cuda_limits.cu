/* What this GPU can do at most, for the tables of bench/cuda.py: the bandwidth of its memory, by a
 * kernel that copies, and its tensor cores on paper.
 *
 *   build/bench/cuda_limits [GPU [MB]]     default 0 1024
 *
 * A JSON object; bytes are those read and those written. */
#include "../kernels_cuda/device.h"

#include <stdlib.h>
#include <time.h>

__global__ void copy(uint4 *to, const uint4 *from, size_t n) {
    size_t step = (size_t)gridDim.x * blockDim.x, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) { /* four loads under way at once */
        uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
        to[i] = a, to[i + step] = b, to[i + 2 * step] = c, to[i + 3 * step] = d;
    }
    for (; i < n; i += step)
        to[i] = from[i];
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Dense bf16 multiplications and additions per clock and SM, by NVIDIA's papers on each
 * architecture. */
static double bf16_per_clock(int capability) {
    return capability >= 100 ? 8192 : capability >= 90 ? 4096 : capability == 80 ? 2048 : 512;
}

static linnet_status measure(device *d, size_t bytes, double *best, linnet_error *err) {
    device_info info;
    void *from = NULL, *to = NULL;
    linnet_status s = device_get_info(d, &info, err);
    if (!s) s = device_alloc(d, bytes, &from, err);
    if (!s) s = device_alloc(d, bytes, &to, err);
    *best = 0;
    for (int round = 0; round < 12 && !s; round++) { /* the first ones warm up */
        enum { COPIES = 5 };
        double start = seconds_now();
        for (int i = 0; i < COPIES; i++)
            launch(device_get_stream(d), dim3((unsigned)info.sm_count * 8), dim3(256), 0, copy,
                   (uint4 *)to, (const uint4 *)from, bytes / sizeof(uint4));
        s = device_finish(d, err);
        double rate = 2.0 * COPIES * (double)bytes / (seconds_now() - start);
        if (round >= 2 && rate > *best) *best = rate;
    }
    device_free(d, from);
    device_free(d, to);
    return s;
}

int main(int argc, char **argv) {
    int index = argc > 1 ? atoi(argv[1]) : 0;
    size_t bytes = (size_t)(argc > 2 ? atoi(argv[2]) : 1024) << 20;
    linnet_error err;
    device *d = NULL;
    device_info info;
    double rate = 0;
    if (device_open(index, &d, &err) || device_get_info(d, &info, &err) ||
        measure(d, bytes, &rate, &err)) {
        fprintf(stderr, "cuda_limits: %s\n", err.text);
        device_close(d);
        return 1;
    }
    printf("{\"gpu\":\"%s\",\"compute_capability\":%d,\"sm_count\":%d,\"clock_mhz\":%d,"
           "\"driver\":%d,\"runtime\":%d,\"total_bytes\":%zu,\"copy_bytes_per_s\":%.4g,"
           "\"paper_bytes_per_s\":%.4g,\"paper_bf16_flops\":%.4g}\n",
           info.name, info.compute_capability, info.sm_count, info.clock_mhz, info.driver,
           info.runtime, info.total_bytes, rate, info.bandwidth,
           bf16_per_clock(info.compute_capability) * info.sm_count * info.clock_mhz * 1e6);
    device_close(d);
    return 0;
}
