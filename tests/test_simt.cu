/* The emulated GPU: what kernels rely on works, and what a GPU would not forgive is caught. */
#include "../kernels_cuda/ptx.h"
#include "emulation/control.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include <cstdlib>
#include <vector>

static device *gpu;
static device_stream stream;

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
    device_close(gpu);
    return 0;
}

/* n elements on the GPU, from `from` or NaN. */
template <class T> static T *on_gpu(size_t n, const T *from = nullptr) {
    linnet_error err;
    void *p;
    if (device_alloc(gpu, n * sizeof(T), &p, &err)) fail_msg("%s", err.text);
    if (from && device_upload(gpu, p, from, n * sizeof(T), &err)) fail_msg("%s", err.text);
    return static_cast<T *>(p);
}

/* Back, and frees what was there. */
template <class T> static std::vector<T> back(T *p, size_t n) {
    linnet_error err;
    std::vector<T> v(n);
    if (device_download(gpu, v.data(), p, n * sizeof(T), &err)) fail_msg("%s", err.text);
    device_free(gpu, p);
    return v;
}

/* ---- Blocks ------------------------------------------------------------------------------ */
__global__ void reverse_rows(const int *in, int *out) {
    SHARED(int, row, [96]);
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    row[threadIdx.x] = in[i];
    __syncthreads();
    out[i] = row[blockDim.x - 1 - threadIdx.x];
}

static void test_barrier(void **state) {
    (void)state;
    std::vector<int> in(5 * 96);
    for (size_t i = 0; i < in.size(); i++)
        in[i] = (int)(i * 7);
    for (int order = SIMT_FORWARD; order <= SIMT_SHUFFLED; order++) {
        simt_set_order((simt_order)order, 1);
        int *a = on_gpu(in.size(), in.data()), *b = on_gpu<int>(in.size());
        launch(stream, dim3(5), dim3(96), 0, reverse_rows, a, b);
        std::vector<int> out = back(b, in.size());
        for (size_t i = 0; i < in.size(); i++)
            assert_int_equal(out[i], in[i / 96 * 96 + 95 - i % 96]);
        device_free(gpu, a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_barrier, open_gpu, close_gpu),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
