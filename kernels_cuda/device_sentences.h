/* What device.cu and its emulation say, once. */
#ifndef DEVICE_SENTENCES_H
#define DEVICE_SENTENCES_H

#include "../common.h"

static inline linnet_status no_gpu(linnet_error *err) {
    return fail(err, LINNET_ERR_DEVICE,
                "no NVIDIA GPU was found (nvidia-smi lists those that the driver knows)");
}

/* Versions as CUDA counts them: 12040 = 12.4. driver 0: there is none. */
static inline linnet_status old_driver(int driver, int runtime, linnet_error *err) {
    if (!driver) return fail(err, LINNET_ERR_DEVICE, "the NVIDIA driver is not installed");
    return fail(err, LINNET_ERR_DEVICE,
                "the NVIDIA driver is too old: it supports CUDA %d.%d, and this program was built "
                "with %d.%d",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

static inline linnet_status no_such_gpu(int index, int count, linnet_error *err) {
    return fail(err, LINNET_ERR_ARGUMENT,
                "GPU %d was asked for, and there %s %d (they count from 0)", index,
                count == 1 ? "is" : "are", count);
}

/* `built` as nvcc lists them: "800, 900". */
static inline linnet_status no_code_for_gpu(int index, const char *name, int capability,
                                            const char *built, linnet_error *err) {
    return fail(err, LINNET_ERR_UNSUPPORTED,
                "GPU %d (%s) has compute capability %d.%d, and this program has no code for it "
                "(built for %s)",
                index, name, capability / 10, capability % 10, built);
}

static inline linnet_status no_gpu_memory(int index, const char *name, size_t wanted, size_t left,
                                          size_t total, linnet_error *err) {
    return fail(err, LINNET_ERR_MEMORY,
                "GPU %d (%s) has not enough memory: %zu bytes wanted, %zu of %zu free", index, name,
                wanted, left, total);
}

static inline linnet_status no_pinned_memory(size_t wanted, linnet_error *err) {
    return fail(err, LINNET_ERR_MEMORY, "%zu bytes of pinned host memory cannot be had", wanted);
}

/* The name in "kernel<4>, x, n", the text that a launch was written with. */
static inline int kernel_name_length(const char *text) {
    int depth = 0, n = 0;
    for (; text[n] && (text[n] != ',' || depth); n++)
        depth += (text[n] == '<' || text[n] == '(') - (text[n] == '>' || text[n] == ')');
    return n;
}

#endif
