/* A GPU for tests of kernels, emulated or (test_simt) real, and what goes to it and comes back. */
#ifndef TESTS_GPU_H
#define TESTS_GPU_H

#include "../kernels_cuda/device.h"
#include "emulation/control.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include <vector>

#ifdef __CUDACC__
void simt_set_order(simt_order, uint64_t) {}
#endif

static device *gpu;
static device_stream stream;

/* Set-up and tear-down of a test or a group. */
static int open_gpu(void **state) {
    (void)state;
    linnet_error err;
    simt_set_order(SIMT_FORWARD, 0);
    if (device_open(0, &gpu, &err)) fail_msg("%s", err.text);
    stream = device_get_stream(gpu);
    return 0;
}

static int close_gpu(void **state) {
    (void)state;
    simt_set_order(SIMT_FORWARD, 0);
    device_close(gpu);
    return 0;
}

/* n elements on the GPU, from `from` or unknown. */
template <class T> static T *on_gpu(size_t n, const T *from = nullptr) {
    linnet_error err;
    void *p;
    if (device_alloc(gpu, (n ? n : 1) * sizeof(T), &p, &err)) fail_msg("%s", err.text);
    if (n && from && device_upload(gpu, p, from, n * sizeof(T), &err)) fail_msg("%s", err.text);
    return static_cast<T *>(p);
}

template <class T> static T *upload(const std::vector<T> &v) {
    return on_gpu(v.size(), v.data());
}

template <class T> static std::vector<T> download(const T *p, size_t n) {
    linnet_error err;
    std::vector<T> v(n);
    if (device_download(gpu, v.data(), p, n * sizeof(T), &err)) fail_msg("%s", err.text);
    return v;
}

/* Back, and frees what was there. */
template <class T> static std::vector<T> take_back(T *p, size_t n) {
    std::vector<T> v = download(p, n);
    device_free(gpu, p);
    return v;
}

#endif
