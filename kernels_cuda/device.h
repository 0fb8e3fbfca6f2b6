/* The ground under the CUDA backend: what kernels are written against, and the GPU as plain calls.
 * A .cu file includes this (and ptx.h for tensor cores) and nothing of CUDA itself, so that it
 * compiles twice: by nvcc, and as plain C++ against tests/emulation, where each thread of a block
 * is a fiber. What differs between the two hides behind the names below.
 *     __global__ void add_one(float *x, int n) {
 *         SHARED(float, tile, [256]);
 *         ...
 *     }
 *     launch(stream, dim3(n_blocks), dim3(256), 0, add_one, x, n);
 */
#ifndef DEVICE_H
#define DEVICE_H

#include "../common.h"

/* One GPU with its stream: work that is given to the stream runs in order, behind the caller. */
typedef struct device device;
typedef struct device *device_stream;
typedef struct device_graph device_graph;

/* How a kernel starts; made by the launch macros. */
typedef struct {
    const char *text; /* the kernel's name and arguments as written */
    unsigned grid[3], block[3];
    size_t shared_bytes;
    bool overlapped;
} launch_shape;

#ifdef __CUDACC__
#include "device_cuda.h"
#else
#include "../tests/emulation/simt.h"
#endif

/* Each device or kernel file has, from one of the two:
 *   DEVICE                     in front of a function that kernels call
 *   SHARED(type, name, [n][m]) an array of the block, 16-byte aligned, not initialised
 *   DYNAMIC_SHARED(type, name) type *name: the launch's shared_bytes, 16-byte aligned
 *   UNROLL, UNROLL_BY_4        in front of a loop over arrays that are to be registers
 *   f16_pair(low, high)        two numbers as f16 in one word
 *   load16(p)                  16 bytes, 16-byte aligned, as a uint4
 *   f16_to_float, float_to_f16, bf16_to_float, float_to_bf16
 *                              rounding to nearest even; a NaN becomes 0x7fff (float: 0x7fffffff
 *                              from f16; bf16 keeps its bits)
 *   wait_for_previous(), let_next_start()
 *                              for launch_overlapped: before the first touch of anything that the
 *                              kernel in front writes or reads; and to let the next one start
 * Launches: launch(stream, grid, block, shared_bytes, kernel, args...) and, of the same form,
 *   launch_overlapped          the kernel may start before the one in front has ended (sm_90 on);
 *                              at least one thread of each block calls wait_for_previous(), and
 *                              threads that touch its results do, or meet one that did at a barrier
 * They return nothing: the first error is kept with the kernel's name until device_finish. */
#define launch(stream, grid, block, shared_bytes, ...)                                             \
    launch_kernel(stream, launch_as(#__VA_ARGS__, grid, block, shared_bytes, false), __VA_ARGS__)
#define launch_overlapped(stream, grid, block, shared_bytes, ...)                                  \
    launch_kernel(stream, launch_as(#__VA_ARGS__, grid, block, shared_bytes, true), __VA_ARGS__)

static inline launch_shape launch_as(const char *text, dim3 grid, dim3 block, size_t shared_bytes,
                                     bool overlapped) {
    launch_shape shape = {
        text, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes, overlapped};
    return shape;
}

/* ---- Sums and maxima, in one fixed order ------------------------------------------------- */
/* Over the 32 lanes: lane i adds lane i^16, then i^8, ... ; every lane has the same bits. */
template <class Op> DEVICE float warp_reduce(float x, Op op) {
    for (int step = 16; step; step /= 2)
        x = op(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

struct add_floats {
    DEVICE float operator()(float a, float b) const { return a + b; }
};
struct max_floats {
    DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

DEVICE float warp_sum(float x) {
    return warp_reduce(x, add_floats());
}
DEVICE float warp_max(float x) {
    return warp_reduce(x, max_floats());
}

/* Over a one-dimensional block of whole warps: warp_sum of each, then warp 0, 1, ... in order.
 * All threads call it and all get the result; it starts and ends with a barrier in between. */
DEVICE float block_sum(float x) {
    SHARED(float, of_warp, [32]);
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++)
        x += of_warp[w];
    __syncthreads(); /* of_warp may be written again */
    return x;
}

/* ---- The GPU, for the host --------------------------------------------------------------- */
/* GPU `index` (from 0). Refused with a sentence: no GPU, a driver that is too old, an index past
 * the last, a GPU that the library has no code for. */
linnet_status device_open(int index, device **out, linnet_error *err);
void device_close(device *d); /* NULL is allowed; frees neither its memory nor its graphs */

typedef struct {
    char name[256];
    int compute_capability; /* 90 = 9.0 */
    int sm_count;
    int clock_mhz; /* of the SMs */
    size_t total_bytes, free_bytes;
    size_t l2_bytes;
    size_t shared_bytes; /* the most that one block can have */
    double bandwidth;    /* bytes per second of its memory on paper; 0 = not known */
    int driver, runtime; /* 13000 = 13.0 */
} device_info;
linnet_status device_get_info(device *d, device_info *info, linnet_error *err);

device_stream device_get_stream(device *d);

/* Memory of the GPU, 256-byte aligned, not initialised; the sentence names bytes wanted and free.
 */
linnet_status device_alloc(device *d, size_t bytes, void **out, linnet_error *err);
void device_free(device *d, void *p); /* NULL is allowed; waits for the stream */
/* Memory of the host that the asynchronous copies may use. */
linnet_status device_pinned_alloc(device *d, size_t bytes, void **out, linnet_error *err);
void device_pinned_free(device *d, void *p);

/* In the stream's order; these return when the bytes are there. */
linnet_status device_upload(device *d, void *to, const void *from, size_t bytes, linnet_error *err);
linnet_status device_download(device *d, void *to, const void *from, size_t bytes,
                              linnet_error *err);
/* These return at once: pinned memory alone, left alone until device_finish. */
void device_upload_async(device_stream s, void *to, const void *from, size_t bytes);
void device_download_async(device_stream s, void *to, const void *from, size_t bytes);
void device_zero(device_stream s, void *p, size_t bytes);
void device_copy(device_stream s, void *to, const void *from, size_t bytes); /* GPU to GPU */

/* Waits for the stream. The sentence tells what has failed since the last wait and names the kernel
 * where it is known. A fault of the GPU stays: every later call fails with the same sentence. */
linnet_status device_finish(device *d, linnet_error *err);

/* What is given to the stream between begin and end is recorded, not run; each launch of the graph
 * runs it. Only launches, device_zero, device_copy and the asynchronous copies may lie between.
 * All pointers and numbers are those of the recording. */
linnet_status device_graph_begin(device_stream s, linnet_error *err);
linnet_status device_graph_end(device_stream s, device_graph **out, linnet_error *err);
void device_graph_launch(device_stream s, device_graph *g);
void device_graph_free(device_graph *g); /* NULL is allowed */

#endif
