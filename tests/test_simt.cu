/* What CUDA kernels stand on: the words of device.h and ptx.h do what they say, on the emulated GPU
 * and (built by nvcc: `make build/cuda/test_simt`) on a real one; and what a GPU would not forgive
 * is caught by the emulation. References are plain loops. */
#include "../kernels_cuda/ptx.h"
#include "gpu.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static void finish() {
    linnet_error err;
    if (device_finish(gpu, &err)) fail_msg("%s", err.text);
}

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static uint32_t random_at(uint64_t i) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

/* ---- Blocks ------------------------------------------------------------------------------ */
__global__ void reverse_rows(const int *in, int *out) {
    SHARED(int, row, [96]);
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int again = 0; again < 3; again++) {
        row[threadIdx.x] = in[i] + again;
        __syncthreads();
        out[i] = row[blockDim.x - 1 - threadIdx.x];
        __syncthreads();
    }
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
        std::vector<int> out = take_back(b, in.size());
        for (size_t i = 0; i < in.size(); i++)
            assert_int_equal(out[i], in[i / 96 * 96 + 95 - i % 96] + 2);
        device_free(gpu, a);
    }
}

__global__ void where_am_i(uint4 *out) {
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
        make_uint4(threadIdx.y, threadIdx.z, blockIdx.y, blockIdx.z);
}

static void test_places(void **state) {
    (void)state;
    dim3 grid(3, 2, 2), block(5, 4, 2);
    size_t n = 12 * 40;
    uint4 *p = on_gpu<uint4>(n);
    launch(stream, grid, block, 0, where_am_i, p);
    std::vector<uint4> out = take_back(p, n);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(out[i].x, i % 40 / 5 % 4);
        assert_int_equal(out[i].y, i % 40 / 20);
        assert_int_equal(out[i].z, i / 40 / 3 % 2);
        assert_int_equal(out[i].w, i / 40 / 6);
    }
}

__global__ void block_votes(int *out) {
    int some = __syncthreads_or(threadIdx.x == 77), none = __syncthreads_or(0);
    int all = __syncthreads_and(1), not_all = __syncthreads_and(threadIdx.x != 5);
    int count = __syncthreads_count(threadIdx.x % 3 == 0);
    int *mine = out + threadIdx.x * 5;
    mine[0] = some != 0;
    mine[1] = none != 0;
    mine[2] = all != 0;
    mine[3] = not_all != 0;
    mine[4] = count;
}

static void test_block_votes(void **state) {
    (void)state;
    int *p = on_gpu<int>(100 * 5);
    launch(stream, dim3(1), dim3(100), 0, block_votes, p);
    std::vector<int> out = take_back(p, 500);
    for (int i = 0; i < 100; i++) {
        const int want[5] = {1, 0, 1, 0, 34};
        assert_memory_equal(&out[(size_t)i * 5], want, sizeof want);
    }
}

template <int N> __global__ void sized(float *out) {
    SHARED(float, row, [N]);
    SHARED(int, single, );
    row[threadIdx.x % N] = 1;
    if (threadIdx.x == 0) single = N;
    __syncthreads();
    out[threadIdx.x] = row[N - 1] + (float)single;
}

__global__ void sums(const float *in, float *sum) {
    float x = in[blockIdx.x * blockDim.x + threadIdx.x];
    float s = block_sum(x), again = block_sum(x);
    sum[blockIdx.x * blockDim.x + threadIdx.x] = s == again ? s : -1;
}

static void test_shared_in_templates(void **state) {
    (void)state;
    float *p = on_gpu<float>(64), *q = on_gpu<float>(64);
    launch(stream, dim3(1), dim3(64), 0, sized<64>, p);
    launch(stream, dim3(1), dim3(64), 0, sized<7>, q);
    assert_true(take_back(p, 64)[63] == 65 && take_back(q, 64)[0] == 8);
}

/* The order of the sums, to the bit. */
static void test_sums(void **state) {
    (void)state;
    std::vector<float> in(3 * 160);
    for (size_t i = 0; i < in.size(); i++)
        in[i] = (float)(int)random_at(i) * 0x1p-20f;
    for (int order = SIMT_FORWARD; order <= SIMT_SHUFFLED; order++) {
        simt_set_order((simt_order)order, 2);
        float *p = on_gpu(in.size(), in.data());
        float *sum = on_gpu<float>(in.size());
        launch(stream, dim3(3), dim3(160), 0, sums, p, sum);
        std::vector<float> s = take_back(sum, in.size());
        for (size_t b = 0; b < 3; b++) {
            float want = 0;
            for (size_t w = 0; w < 5; w++) {
                float x[32];
                memcpy(x, &in[b * 160 + w * 32], sizeof x);
                for (int step = 16; step; step /= 2)
                    for (int i = 0; i < step; i++)
                        x[i] = x[i] + x[i + step];
                want = w ? want + x[0] : x[0];
            }
            for (size_t i = b * 160; i < (b + 1) * 160; i++)
                assert_int_equal(bits_of(s[i]), bits_of(want));
        }
        device_free(gpu, p);
    }
}

/* ---- Warps ------------------------------------------------------------------------------- */
template <class T> __global__ void shuffles(T *out) {
    T x = (T)(threadIdx.x * 3 + 1);
    T *mine = out + threadIdx.x * 8;
    int lane = threadIdx.x % 32;
    mine[0] = __shfl_sync(~0u, x, 31 - lane);
    mine[1] = __shfl_sync(~0u, x, 3, 8);
    mine[2] = __shfl_xor_sync(~0u, x, 5);
    mine[3] = __shfl_xor_sync(~0u, x, 4, 8);
    mine[4] = __shfl_down_sync(~0u, x, 3);
    mine[5] = __shfl_down_sync(~0u, x, 3, 16);
    mine[6] = __shfl_up_sync(~0u, x, 2);
    mine[7] = __shfl_up_sync(~0u, x, 2, 4);
}

template <class T> static void check_shuffles() {
    T *p = on_gpu<T>(64 * 8);
    launch(stream, dim3(1), dim3(64), 0, shuffles<T>, p);
    std::vector<T> out = take_back(p, 64 * 8);
    for (int i = 0; i < 64; i++) {
        int warp = i / 32 * 32, l = i % 32;
        int from[8] = {31 - l,
                       l / 8 * 8 + 3,
                       l ^ 5,
                       l ^ 4,
                       l + 3 < 32 ? l + 3 : l,
                       l % 16 + 3 < 16 ? l + 3 : l,
                       l >= 2 ? l - 2 : l,
                       l % 4 >= 2 ? l - 2 : l};
        for (int j = 0; j < 8; j++)
            assert_true(out[(size_t)(i * 8 + j)] == (T)((warp + from[j]) * 3 + 1));
    }
}

static void test_shuffles(void **state) {
    (void)state;
    check_shuffles<float>();
    check_shuffles<int>();
    check_shuffles<unsigned>();
    check_shuffles<unsigned long long>();
    simt_set_order(SIMT_SHUFFLED, 9);
    check_shuffles<int>();
}

/* Halves of a warp on their own ways, and votes. */
__global__ void votes(unsigned *out) {
    unsigned lane = threadIdx.x % 32, *mine = out + threadIdx.x * 6;
    mine[0] = __ballot_sync(~0u, lane % 3 == 0);
    mine[1] = (unsigned)__any_sync(~0u, lane == 40) * 2 + (__any_sync(~0u, lane == 7) != 0);
    mine[2] = (unsigned)__all_sync(~0u, lane < 31) * 2 + (__all_sync(~0u, lane < 32) != 0);
    if (lane < 16) {
        unsigned x = lane;
        for (int step = 8; step; step /= 2)
            x += __shfl_xor_sync(0x0000ffffu, x, step);
        mine[3] = x;
    } else {
        mine[3] = __ballot_sync(0xffff0000u, lane % 2);
    }
    __syncwarp();
    mine[4] = __ballot_sync(~0u, 1);
    mine[5] = (unsigned)(__popc(mine[0]) + __clz((int)lane) + __ffs((int)lane));
}

static void test_votes(void **state) {
    (void)state;
    for (int order = SIMT_FORWARD; order <= SIMT_SHUFFLED; order++) {
        simt_set_order((simt_order)order, 3);
        unsigned *p = on_gpu<unsigned>(64 * 6);
        launch(stream, dim3(1), dim3(64), 0, votes, p);
        std::vector<unsigned> out = take_back(p, 64 * 6);
        for (unsigned i = 0; i < 64; i++) {
            unsigned lane = i % 32, clz = lane ? (unsigned)__builtin_clz(lane) : 32;
            unsigned want[6] = {
                0x49249249, 1,
                1,          lane < 16 ? 120u : 0xaaaa0000u,
                ~0u,        11 + clz + (lane ? (unsigned)__builtin_ctz(lane) + 1 : 0)};
            assert_memory_equal(&out[i * 6], want, sizeof want);
        }
    }
}

__global__ void atomics(int *ints, unsigned *counts, float *sum, unsigned long long *wide) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&ints[0], i);
    atomicMax(&ints[1], i);
    atomicMin(&ints[2], -i);
    if (atomicCAS(&ints[3], 0, 1) == 0) ints[4] = 1;
    if (atomicExch(&ints[5], 1) == 0) atomicAdd(&ints[6], 1);
    atomicInc(&counts[0], 99);
    atomicOr(&counts[1], 1u << i % 8);
    atomicAnd(&counts[2], ~(1u << i % 4));
    atomicAdd(&counts[3], 2u);
    atomicAdd(sum, 0.5f);
    atomicAdd(wide, 1ull << 33);
    __threadfence();
}

static void test_atomics(void **state) {
    (void)state;
    int ints[7] = {0, -1, 1, 0, 0, 0, 0};
    unsigned counts[4] = {0, 0, 0xff, 0};
    float zero = 0;
    unsigned long long none = 0;
    int *a = on_gpu(7, ints);
    unsigned *b = on_gpu(4, counts);
    float *c = on_gpu(1, &zero);
    unsigned long long *d = on_gpu(1, &none);
    launch(stream, dim3(4), dim3(64), 0, atomics, a, b, c, d);
    const int ints_after[7] = {255 * 128, 255, -255, 1, 1, 1, 1};
    const unsigned counts_after[4] = {56, 0xff, 0xf0, 512};
    assert_memory_equal(take_back(a, 7).data(), ints_after, sizeof ints);
    assert_memory_equal(take_back(b, 4).data(), counts_after, sizeof counts);
    assert_true(take_back(c, 1)[0] == 128);
    assert_true(take_back(d, 1)[0] == 256ull << 33);
}

/* ---- Memory ------------------------------------------------------------------------------ */
__global__ void through_dynamic(const float *in, float *out, unsigned n) {
    DYNAMIC_SHARED(float, tile);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        tile[i] = in[i];
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        out[i] = tile[n - 1 - i];
}

static void test_dynamic_shared(void **state) {
    (void)state;
    const size_t sizes[] = {1, 100, 20000}; /* floats; the last is above 48 KiB */
    for (size_t n : sizes) {
        std::vector<float> in(n);
        for (size_t i = 0; i < n; i++)
            in[i] = (float)i;
        float *p = on_gpu(n, in.data()), *q = on_gpu<float>(n);
        launch(stream, dim3(1), dim3(64), n * sizeof(float), through_dynamic, p, q, (unsigned)n);
        std::vector<float> out = take_back(q, n);
        for (size_t i = 0; i < n; i++)
            assert_true(out[i] == (float)(n - 1 - i));
        device_free(gpu, p);
    }
}

__global__ void add(int *x, int n, int by) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i] += by;
}

static void test_copies(void **state) {
    (void)state;
    linnet_error err;
    void *p;
    assert_int_equal(device_pinned_alloc(gpu, 400, &p, &err), 0);
    int *host = static_cast<int *>(p), *a = on_gpu<int>(100), *b = on_gpu<int>(100);
    for (int i = 0; i < 100; i++)
        host[i] = i;
    device_upload_async(stream, a, host, 400);
    launch(stream, dim3(1), dim3(128), 0, add, a, 100, 5);
    device_copy(stream, b, a, 400);
    device_zero(stream, a, 200);
    launch(stream, dim3(1), dim3(128), 0, add, b, 100, 1);
    device_download_async(stream, host, b, 400);
    finish();
    for (int i = 0; i < 100; i++)
        assert_int_equal(host[i], i + 6);
    std::vector<int> out = take_back(a, 100);
    for (int i = 0; i < 100; i++)
        assert_int_equal(out[(size_t)i], i < 50 ? 0 : i + 5);
    device_free(gpu, b);
    device_free(gpu, nullptr);
    device_pinned_free(gpu, p);
    device_info info;
    assert_int_equal(device_get_info(gpu, &info, &err), 0);
    assert_true(*info.name && info.sm_count >= 2 && info.compute_capability >= 80 &&
                info.l2_bytes && info.shared_bytes >= 99 << 10 && info.bandwidth >= 0);
}

static void test_graph(void **state) {
    (void)state;
    linnet_error err;
    device_graph *g;
    int *a = on_gpu<int>(64), *b = on_gpu<int>(64);
    device_zero(stream, a, 256);
    device_zero(stream, b, 256);
    assert_int_equal(device_graph_begin(stream, &err), 0);
    launch(stream, dim3(2), dim3(32), 0, add, a, 64, 2);
    device_copy(stream, b, a, 256);
    launch(stream, dim3(2), dim3(32), 0, add, b, 64, 10);
    assert_int_equal(device_graph_end(stream, &g, &err), 0);
    assert_int_equal(download(a, 64)[0], 0); /* recorded, not run */
    for (int i = 1; i <= 3; i++) {
        device_graph_launch(stream, g);
        launch(stream, dim3(2), dim3(32), 0, add, a, 64, 1);
        assert_int_equal(download(a, 64)[63], 3 * i);
        assert_int_equal(download(b, 64)[63], 3 * i + 9);
    }
    device_graph_free(g);
    device_graph_free(nullptr);
    /* A kernel that cannot start spoils the recording, and that alone. */
    assert_int_equal(device_graph_begin(stream, &err), 0);
    launch(stream, dim3(1), dim3(2000), 0, add, a, 64, 2);
    assert_int_equal(device_graph_end(stream, &g, &err), LINNET_ERR_DEVICE);
    assert_non_null(strstr(err.text, "kernel add was not launched"));
    assert_int_equal(download(a, 64)[63], 9);
    device_free(gpu, a);
    device_free(gpu, b);
}

__global__ void fill_slowly(int *x, int value) {
    wait_for_previous();
    let_next_start();
    x[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

__global__ void add_overlapped(const int *x, int *y) {
    SHARED(int, early, );
    if (threadIdx.x == 0) early = 1;
    __syncthreads();
    let_next_start();
    wait_for_previous();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i] + early;
}

static void test_overlapped(void **state) {
    (void)state;
    int *x = on_gpu<int>(128), *y = on_gpu<int>(128), *z = on_gpu<int>(128);
    for (int i = 0; i < 3; i++) {
        launch(stream, dim3(4), dim3(32), 0, fill_slowly, x, 5 + i);
        launch_overlapped(stream, dim3(2), dim3(64), 0, add_overlapped, x, y);
        launch_overlapped(stream, dim3(4), dim3(32), 0, add_overlapped, y, z);
        launch_overlapped(stream, dim3(4), dim3(32), 0, add_overlapped, z, x);
        launch_overlapped(stream, dim3(4), dim3(32), 0, add_overlapped, x, y);
        std::vector<int> out = download(y, 128);
        for (int v : out)
            assert_int_equal(v, 9 + i);
    }
    device_free(gpu, x);
    device_free(gpu, y);
    device_free(gpu, z);
}

/* ---- Conversions ------------------------------------------------------------------------- */
__global__ void widen(float *f16, float *bf16) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    f16[i] = f16_to_float((uint16_t)i);
    bf16[i] = bf16_to_float((uint16_t)i);
}

__global__ void narrow(const float *in, uint16_t *f16, uint16_t *bf16, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    f16[i] = float_to_f16(in[i]);
    bf16[i] = float_to_bf16(in[i]);
}

/* The value of sign, exponent, fraction, from the definition. */
static double value_of(unsigned h, int exponent_bits, int fraction_bits) {
    int bias = (1 << (exponent_bits - 1)) - 1;
    int e = (int)(h >> fraction_bits) & ((1 << exponent_bits) - 1);
    int f = (int)h & ((1 << fraction_bits) - 1);
    double v = e ? ldexp(f + (1 << fraction_bits), e - bias - fraction_bits)
                 : ldexp(f, 1 - bias - fraction_bits);
    return h >> 15 ? -v : v;
}

static void test_widening(void **state) {
    (void)state;
    float *a = on_gpu<float>(65536), *b = on_gpu<float>(65536);
    launch(stream, dim3(256), dim3(256), 0, widen, a, b);
    std::vector<float> f16 = take_back(a, 65536), bf16 = take_back(b, 65536);
    for (unsigned h = 0; h < 65536; h++) {
        assert_int_equal(bits_of(bf16[h]), h << 16);
        if ((h & 0x7fff) > 0x7c00)
            assert_int_equal(bits_of(f16[h]), 0x7fffffff);
        else if ((h & 0x7fff) == 0x7c00)
            assert_int_equal(bits_of(f16[h]), h == 0x7c00 ? 0x7f800000 : 0xff800000);
        else
            assert_int_equal(bits_of(f16[h]), bits_of((float)value_of(h, 5, 10)));
    }
}

/* For each pair of neighbours: the lower itself, just below, at, and just above the middle. */
static void test_narrowing(void **state) {
    (void)state;
    for (int type = 0; type < 2; type++) {
        unsigned infinity = type ? 0x7f80 : 0x7c00;
        std::vector<float> in;
        std::vector<unsigned> want;
        for (unsigned h = 0; h < infinity; h++) {
            double low = type ? value_of(h, 8, 7) : value_of(h, 5, 10);
            /* The neighbour of the largest would be infinity: one more step of the same size. */
            double below = h ? type ? value_of(h - 1, 8, 7) : value_of(h - 1, 5, 10) : 0;
            double high = h + 1 < infinity ? type ? value_of(h + 1, 8, 7) : value_of(h + 1, 5, 10)
                                           : low + (low - below);
            float middle = (float)((low + high) / 2);
            assert_true((double)middle == (low + high) / 2);
            const float points[4] = {(float)low, float_of(bits_of(middle) - 1), middle,
                                     float_of(bits_of(middle) + 1)};
            const unsigned results[4] = {h, h, h + (h & 1), h + 1};
            for (int i = 0; i < 4; i++)
                for (unsigned sign = 0; sign < 2; sign++) {
                    in.push_back(sign ? -points[i] : points[i]);
                    want.push_back(results[i] | sign << 15);
                }
        }
        for (unsigned sign = 0; sign < 2; sign++) {
            in.push_back(float_of(0x7f800000 | sign << 31));
            want.push_back(infinity | sign << 15);
            for (uint32_t nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0x7fa5a5a5u}) {
                in.push_back(float_of(nan | sign << 31));
                want.push_back(0x7fff);
            }
        }
        unsigned n = (unsigned)in.size();
        float *p = on_gpu(n, in.data());
        uint16_t *a = on_gpu<uint16_t>(n), *b = on_gpu<uint16_t>(n);
        launch(stream, dim3((n + 255) / 256), dim3(256), 0, narrow, p, a, b, n);
        std::vector<uint16_t> out = download(type ? b : a, n);
        for (unsigned i = 0; i < n; i++)
            if (out[i] != want[i])
                fail_msg("%s of %a: %04x, expected %04x", type ? "bf16" : "f16", in[i], out[i],
                         want[i]);
        device_free(gpu, p);
        device_free(gpu, a);
        device_free(gpu, b);
    }
}

__global__ void small_ones(const float *in, int *out, unsigned n) {
    unsigned i = threadIdx.x;
    if (i >= n) return;
    out[i * 4] = __float2int_rn(in[i]);
    out[i * 4 + 1] = (int)__float2uint_rn(in[i]);
    out[i * 4 + 2] = __dp4a(0x01ff7f80, 0x02fe7f80, (int)i);
    out[i * 4 + 3] = (int)__byte_perm(0x33221100, 0x77665544, 0x7531);
}

static void test_small_ones(void **state) {
    (void)state;
    const float in[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 3e9f, -3e9f, 5e9f, NAN};
    const int rn[] = {0, 2, 2, 0, -2, INT32_MAX, INT32_MIN, INT32_MAX, 0};
    const unsigned un[] = {0, 2, 2, 0, 0, 3000000000u, 0, UINT32_MAX, 0};
    const unsigned n = 9;
    float *p = on_gpu(n, in);
    int *q = on_gpu<int>(n * 4);
    launch(stream, dim3(1), dim3(32), 0, small_ones, p, q, n);
    std::vector<int> out = take_back(q, n * 4);
    device_free(gpu, p);
    for (unsigned i = 0; i < n; i++) {
        if (in[i] == in[i]) { /* NaN: GPUs differ from what CUDA's manual says */
            assert_int_equal(out[i * 4], rn[i]);
            assert_int_equal((unsigned)out[i * 4 + 1], un[i]);
        }
        assert_int_equal(out[i * 4 + 2], 1 * 2 + 1 * 2 + 127 * 127 + 128 * 128 + (int)i);
        assert_int_equal(out[i * 4 + 3], 0x77553311);
    }
}

/* ---- Tensor cores ------------------------------------------------------------------------ */
enum { AS_BF16, AS_F16 };

/* d[16][8] += a[16][16] b[16][8] by registers that are filled as ptx.h says. */
__global__ void one_mma16(int type, const uint16_t *a, const uint16_t *b, float *d) {
    unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32_t ra[4], rb[2];
    float rd[4];
    for (unsigned i = 0; i < 4; i++) {
        const uint16_t *pair = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
        ra[i] = pair[0] | (uint32_t)pair[1] << 16;
        rd[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    }
    for (unsigned i = 0; i < 2; i++)
        rb[i] = b[(2 * t + 8 * i) * 8 + g] | (uint32_t)b[(2 * t + 8 * i + 1) * 8 + g] << 16;
    if (type == AS_BF16)
        mma_bf16(rd, ra, rb);
    else
        mma_f16(rd, ra, rb);
    for (unsigned i = 0; i < 4; i++)
        d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = rd[i];
}

/* The same through shared memory: tiles whose rows are 8 values apart from a power of two, loaded
 * by ldmatrix the three ways that ptx.h names; b_rows: b as b[k][n], else as b[n][k]. */
__global__ void tiled_mma16(int b_rows, const uint16_t *a, const uint16_t *b, float *d) {
    SHARED(uint16_t, ta, [16][24]);
    SHARED(uint16_t, tb, [16][24]);
    unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (unsigned i = lane; i < 256; i += 32)
        ta[i / 16][i % 16] = a[i];
    for (unsigned i = lane; i < 128; i += 32)
        if (b_rows)
            tb[i / 8][i % 8] = b[i];
        else
            tb[i % 8][i / 8] = b[i];
    __syncwarp();
    uint32_t ra[4], rb[2];
    float rd[4];
    unsigned m = lane / 8, r = lane % 8;
    ldmatrix_x4(ra, &ta[8 * (m % 2) + r][8 * (m / 2)]);
    if (b_rows)
        ldmatrix_x2_trans(rb, &tb[8 * (m % 2) + r][0]);
    else
        ldmatrix_x2(rb, &tb[r][8 * (m % 2)]);
    for (unsigned i = 0; i < 4; i++)
        rd[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    mma_bf16(rd, ra, rb);
    for (unsigned i = 0; i < 4; i++)
        d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = rd[i];
}

__global__ void one_mma8(const float *a, const float *b, float *d, int rounded) {
    unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    uint32_t ra[4], rb[2];
    float rd[4];
    for (unsigned i = 0; i < 4; i++) {
        float x = a[(g + 8 * (i % 2)) * 8 + t + 4 * (i / 2)];
        ra[i] = rounded ? to_tf32(x) : __float_as_uint(x);
        rd[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    }
    for (unsigned i = 0; i < 2; i++) {
        float x = b[(t + 4 * i) * 8 + g];
        rb[i] = rounded ? to_tf32(x) : __float_as_uint(x);
    }
    mma_tf32(rd, ra, rb);
    for (unsigned i = 0; i < 4; i++)
        d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = rd[i];
}

/* Whole numbers, so that every order of adding gives the same bits; `spread` of them small. */
static void matrices(unsigned k, uint64_t seed, std::vector<float> &a, std::vector<float> &b,
                     std::vector<float> &d, std::vector<float> &want) {
    a.resize(16 * k);
    b.resize(k * 8);
    d.resize(128);
    for (size_t i = 0; i < a.size(); i++)
        a[i] = (float)((int)(random_at(seed + i) % 33) - 16);
    for (size_t i = 0; i < b.size(); i++)
        b[i] = (float)((int)(random_at(seed + 1000 + i) % 33) - 16);
    for (size_t i = 0; i < d.size(); i++)
        d[i] = (float)((int)(random_at(seed + 2000 + i) % 33) - 16);
    want = d;
    for (unsigned y = 0; y < 16; y++)
        for (unsigned x = 0; x < 8; x++)
            for (unsigned i = 0; i < k; i++)
                want[y * 8 + x] += a[y * k + i] * b[i * 8 + x];
}

/* Small whole numbers as bf16 or f16. */
static std::vector<uint16_t> halves(int type, const std::vector<float> &v) {
    std::vector<uint16_t> h(v.size());
    for (size_t i = 0; i < v.size(); i++) {
        uint32_t u = bits_of(v[i]), sign = u >> 16 & 0x8000;
        h[i] = (uint16_t)(type == AS_BF16 ? u >> 16
                          : v[i] == 0     ? sign
                                          : sign | ((u & 0x7fffffff) - (112u << 23)) >> 13);
    }
    return h;
}

static void test_mma16(void **state) {
    (void)state;
    for (int way = 0; way < 4; way++) { /* registers of bf16, of f16; tiles with b[k][n], b[n][k] */
        std::vector<float> a, b, d, want;
        matrices(16, 5000 * (uint64_t)way, a, b, d, want);
        std::vector<uint16_t> ha = halves(way == 1 ? AS_F16 : AS_BF16, a);
        std::vector<uint16_t> hb = halves(way == 1 ? AS_F16 : AS_BF16, b);
        uint16_t *pa = on_gpu(ha.size(), ha.data()), *pb = on_gpu(hb.size(), hb.data());
        float *pd = on_gpu(d.size(), d.data());
        if (way < 2)
            launch(stream, dim3(1), dim3(32), 0, one_mma16, way ? AS_F16 : AS_BF16, pa, pb, pd);
        else
            launch(stream, dim3(1), dim3(32), 0, tiled_mma16, way == 2, pa, pb, pd);
        std::vector<float> got = take_back(pd, 128);
        for (size_t i = 0; i < 128; i++)
            if (got[i] != want[i])
                fail_msg("way %d, element %zu: %g, expected %g", way, i, got[i], want[i]);
        device_free(gpu, pa);
        device_free(gpu, pb);
    }
}

static void test_mma_tf32(void **state) {
    (void)state;
    for (int rounded = 0; rounded < 2; rounded++) {
        std::vector<float> a, b, d, want;
        matrices(8, 77, a, b, d, want);
        float *pa = on_gpu(a.size(), a.data()), *pb = on_gpu(b.size(), b.data());
        float *pd = on_gpu(d.size(), d.data());
        launch(stream, dim3(1), dim3(32), 0, one_mma8, pa, pb, pd, rounded);
        assert_memory_equal(take_back(pd, 128).data(), want.data(), 128 * 4);
        device_free(gpu, pa);
        device_free(gpu, pb);
    }
    /* 1 + 2^-11 + 2^-20 times 1: to_tf32 gives 1 + 2^-10, bits as they are lose what does not fit.
     */
    std::vector<float> a(128, 0), b(64, 0), d(128, 0);
    a[0] = 1 + 0x1p-11f + 0x1p-20f;
    a[8] = 1 + 0x1p-11f; /* a tie: away from zero */
    b[0] = -1;
    for (int rounded = 0; rounded < 2; rounded++) {
        float *pa = on_gpu(a.size(), a.data()), *pb = on_gpu(b.size(), b.data());
        float *pd = on_gpu(d.size(), d.data());
        launch(stream, dim3(1), dim3(32), 0, one_mma8, pa, pb, pd, rounded);
        std::vector<float> got = take_back(pd, 128);
        assert_true(got[0] == (rounded ? -1 - 0x1p-10f : -1));
        assert_true(got[8] == (rounded ? -1 - 0x1p-10f : -1));
        device_free(gpu, pa);
        device_free(gpu, pb);
    }
}

template <int N> __global__ void load_matrices(const uint16_t *in, uint32_t *out) {
    SHARED(uint16_t, tile, [N * 8][8]);
    unsigned lane = threadIdx.x;
    for (unsigned i = lane; i < N * 64; i += 32)
        tile[i / 8][i % 8] = in[i];
    __syncwarp();
    uint32_t plain[N], turned[N];
    const uint16_t *row = tile[lane % (8 * N)];
    if constexpr (N == 1) {
        ldmatrix_x1(plain, row);
        ldmatrix_x1_trans(turned, row);
    } else if constexpr (N == 2) {
        ldmatrix_x2(plain, row);
        ldmatrix_x2_trans(turned, row);
    } else {
        ldmatrix_x4(plain, row);
        ldmatrix_x4_trans(turned, row);
    }
    for (int i = 0; i < N; i++) {
        out[(lane * N + (unsigned)i) * 2] = plain[i];
        out[(lane * N + (unsigned)i) * 2 + 1] = turned[i];
    }
}

template <int N> static void check_ldmatrix() {
    std::vector<uint16_t> in(N * 64);
    for (size_t i = 0; i < in.size(); i++)
        in[i] = (uint16_t)(i * 251);
    uint16_t *p = on_gpu(in.size(), in.data());
    uint32_t *q = on_gpu<uint32_t>(64 * N);
    launch(stream, dim3(1), dim3(32), 0, load_matrices<N>, p, q);
    std::vector<uint32_t> out = take_back(q, 64 * N);
    device_free(gpu, p);
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < N; i++) {
            const uint16_t *m = &in[i * 64];
            unsigned g = lane / 4, t = lane % 4;
            assert_int_equal(out[(lane * N + i) * 2],
                             m[g * 8 + 2 * t] | (uint32_t)m[g * 8 + 2 * t + 1] << 16);
            assert_int_equal(out[(lane * N + i) * 2 + 1],
                             m[2 * t * 8 + g] | (uint32_t)m[(2 * t + 1) * 8 + g] << 16);
        }
}

static void test_ldmatrix(void **state) {
    (void)state;
    check_ldmatrix<1>();
    check_ldmatrix<2>();
    check_ldmatrix<4>();
}

/* Sums of rows of 32 x 16 bytes, through three stages; `early`: waits for one group less. */
template <bool early> __global__ void staged(const uint32_t *in, uint32_t *out, unsigned n_rows) {
    SHARED(uint32_t, stage, [3][128]);
    unsigned lane = threadIdx.x, sum = 0;
    for (unsigned r = 0; r < 2; r++) {
        if (r < n_rows) cp_async16(&stage[r][lane * 4], in + r * 128 + lane * 4);
        cp_async_commit();
    }
    for (unsigned r = 0; r < n_rows; r++) {
        cp_async_wait<early ? 2 : 1>();
        __syncthreads();
        if (r + 2 < n_rows)
            cp_async16(&stage[(r + 2) % 3][lane * 4], in + (r + 2) * 128 + lane * 4);
        cp_async_commit();
        for (unsigned i = 0; i < 4; i++)
            sum += stage[r % 3][(lane * 4 + i + 4) % 128]; /* another thread's copy */
    }
    cp_async_wait<0>();
    out[lane] = sum;
}

__global__ void cut_copies(const uint32_t *in, uint32_t *out) {
    SHARED(uint32_t, row, [17][4]);
    if (threadIdx.x < 17) cp_async16(row[threadIdx.x], in, (int)threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    if (threadIdx.x < 17)
        for (unsigned i = 0; i < 4; i++)
            out[threadIdx.x * 4 + i] = row[threadIdx.x][i];
}

static void test_cp_async(void **state) {
    (void)state;
    std::vector<uint32_t> in(7 * 128);
    for (size_t i = 0; i < in.size(); i++)
        in[i] = random_at(i);
    uint32_t *p = on_gpu(in.size(), in.data()), *q = on_gpu<uint32_t>(68);
    for (int order = SIMT_FORWARD; order <= SIMT_SHUFFLED; order++) {
        simt_set_order((simt_order)order, 6);
        launch(stream, dim3(1), dim3(32), 0, staged<false>, p, q, 7u);
        std::vector<uint32_t> out = download(q, 32);
        for (unsigned lane = 0; lane < 32; lane++) {
            uint32_t want = 0;
            for (unsigned r = 0; r < 7; r++)
                for (unsigned i = 0; i < 4; i++)
                    want += in[r * 128 + (lane * 4 + i + 4) % 128];
            assert_int_equal(out[lane], want);
        }
    }
    launch(stream, dim3(1), dim3(32), 0, cut_copies, p, q);
    std::vector<uint32_t> out = take_back(q, 68);
    for (size_t bytes = 0; bytes <= 16; bytes++) {
        uint32_t want[4] = {0, 0, 0, 0};
        memcpy(want, in.data(), bytes);
        assert_memory_equal(&out[bytes * 4], want, 16);
    }
    device_free(gpu, p);
}

/* ---- What a launch can get wrong, on any GPU --------------------------------------------- */
static void refused(linnet_status status, linnet_status expected, const linnet_error *err,
                    const char *part) {
    assert_int_equal(status, expected);
    if (!strstr(err->text, part)) fail_msg("\"%s\" lacks \"%s\"", err->text, part);
}

static void test_bad_launches(void **state) {
    (void)state;
    linnet_error err;
    int *p = on_gpu<int>(64);
    device_zero(stream, p, 256);
    launch(stream, dim3(1), dim3(64), 0, add, p, 64, 1);
    launch(stream, dim3(1), dim3(1025), 0, add, p, 64, 1);
    launch(stream, dim3(1), dim3(64), 1 << 20, through_dynamic, (float *)p, (float *)p, 1u);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, "kernel add was not launched");
    assert_int_equal(download(p, 64)[0], 1); /* nothing broke */
    launch(stream, dim3(1), dim3(64), 1 << 20, sized<7>, (float *)p);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, "kernel sized<7> was not launched");
    launch(stream, dim3(0), dim3(64), 0, add, p, 64, 1);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, "kernel add was not launched");
    assert_int_equal(take_back(p, 64)[0], 1);
    void *most;
    refused(device_alloc(gpu, (size_t)1 << 60, &most, &err), LINNET_ERR_MEMORY, &err,
            "1152921504606846976 bytes wanted, ");
    device *d;
    refused(device_open(99, &d, &err), LINNET_ERR_ARGUMENT, &err,
            "GPU 99 was asked for, and there");
    refused(device_open(-1, &d, &err), LINNET_ERR_ARGUMENT, &err,
            "GPU -1 was asked for, and there");
}

#ifndef __CUDACC__
/* ---- What the emulation catches ---------------------------------------------------------- */
static void test_machines(void **state) {
    (void)state;
    linnet_error err;
    device *d;
    simt_set_machine(SIMT_NO_GPU);
    refused(device_open(0, &d, &err), LINNET_ERR_DEVICE, &err, "no NVIDIA GPU was found");
    simt_set_machine(SIMT_OLD_DRIVER);
    refused(device_open(0, &d, &err), LINNET_ERR_DEVICE, &err,
            "the NVIDIA driver is too old: it supports CUDA 11.8, and this program was built with "
            "13.0");
    simt_set_machine(SIMT_OTHER_ARCHITECTURE);
    refused(device_open(0, &d, &err), LINNET_ERR_UNSUPPORTED, &err,
            "GPU 0 (emulated) has compute capability 7.5, and this program has no code for it");
    simt_set_machine(SIMT_GPU);
    refused(device_open(1, &d, &err), LINNET_ERR_ARGUMENT, &err,
            "GPU 1 was asked for, and there is 1");
}

static void test_out_of_memory(void **state) {
    (void)state;
    linnet_error err;
    void *a, *b;
    device_info info;
    simt_set_memory(1000);
    assert_int_equal(device_alloc(gpu, 600, &a, &err), 0);
    refused(device_alloc(gpu, 500, &b, &err), LINNET_ERR_MEMORY, &err,
            "GPU 0 (emulated) has not enough memory: 500 bytes wanted, 400 of 1000 free");
    assert_int_equal(device_get_info(gpu, &info, &err), 0);
    assert_int_equal(info.free_bytes, 400);
    assert_int_equal(device_alloc(gpu, 400, &b, &err), 0);
    device_free(gpu, a);
    assert_int_equal(device_alloc(gpu, 500, &a, &err), 0);
    device_free(gpu, a);
    device_free(gpu, b);
    simt_set_memory((size_t)16 << 30);
}

static void test_sticky_fault(void **state) {
    (void)state;
    linnet_error err;
    const char *fault = "GPU 0 (emulated): kernel add: an illegal memory access was encountered";
    int *p = on_gpu<int>(64);
    void *q;
    int host[64];
    device_info info;
    device_zero(stream, p, 256);
    finish();
    uint64_t launches = simt_launches();
    simt_set_fault(2);
    for (int i = 0; i < 3; i++)
        launch(stream, dim3(1), dim3(64), 0, add, p, 64, 1);
    assert_int_equal(p[0], 0); /* queued */
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, fault);
    assert_int_equal(simt_launches() - launches, 2);
    launch(stream, dim3(1), dim3(64), 0, add, p, 64, 1);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, fault);
    refused(device_download(gpu, host, p, 256, &err), LINNET_ERR_DEVICE, &err, fault);
    refused(device_upload(gpu, p, host, 256, &err), LINNET_ERR_DEVICE, &err, fault);
    refused(device_alloc(gpu, 1, &q, &err), LINNET_ERR_DEVICE, &err, fault);
    refused(device_pinned_alloc(gpu, 1, &q, &err), LINNET_ERR_DEVICE, &err, fault);
    refused(device_get_info(gpu, &info, &err), LINNET_ERR_DEVICE, &err, fault);
    refused(device_graph_begin(stream, &err), LINNET_ERR_DEVICE, &err, fault);
    device_free(gpu, p);
    device_close(gpu);
    open_gpu(nullptr); /* another life, as in a new process */
    p = on_gpu<int>(64);
    device_free(gpu, p);
}

static void test_wrong_copies(void **state) {
    (void)state;
    linnet_error err;
    int host[4] = {0};
    int *p = on_gpu<int>(4);
    device_download_async(stream, host, p, 16);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, "not pinned");
    refused(device_download(gpu, host, p, 20, &err), LINNET_ERR_DEVICE, &err,
            "a copy of bytes that device_alloc has not given");
    device_free(gpu, p);
    close_gpu(nullptr);
    open_gpu(nullptr);
    device_graph *g;
    assert_int_equal(device_graph_begin(stream, &err), 0);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err, "a wait while a graph is recorded");
    assert_int_equal(device_graph_end(stream, &g, &err), 0);
    device_graph_free(g);
}

/* Each kernel does wrong if *wrong is what its case says, so that no compiler knows. */
enum {
    RETURN_EARLY,
    OTHER_BARRIER,
    BARRIER_OR_SHUFFLE,
    RETURN_LATER,
    LANE_MISSING,
    LANE_RETURNED,
    LANE_UNNAMED,
    FROM_OUTSIDE,
    OTHER_SHUFFLE,
    MISALIGNED,
    NEVER_WAITS,
    TOO_MUCH_SHARED,
    HALF_WARP,
    N_WRONGS
};

__global__ void wrong(int which, int *out, const float *in) {
    unsigned i = threadIdx.x, lane = i % 32;
    SHARED(float, tile, [32]);
    int x = (int)i;
    switch (which) {
    case RETURN_EARLY:
        if (i == 40) return;
        __syncthreads();
        break;
    case OTHER_BARRIER:
        if (i < 32)
            __syncthreads();
        else
            __syncthreads();
        break;
    case BARRIER_OR_SHUFFLE:
        if (lane == 3)
            __syncthreads();
        else
            x = __shfl_sync(~0u, x, 0);
        break;
    case RETURN_LATER:
        if (i < 63) __syncthreads();
        break;
    case LANE_MISSING:
        if (lane < 16) x = __shfl_xor_sync(~0u, x, 1);
        __syncwarp();
        break;
    case LANE_RETURNED:
        if (lane == 5) return;
        x = __shfl_xor_sync(~0u, x, 1);
        break;
    case LANE_UNNAMED:
        x = __shfl_xor_sync(0xffffu, x, 1);
        break;
    case FROM_OUTSIDE:
        if (lane < 16) x = __shfl_sync(0xffffu, x, 20);
        break;
    case OTHER_SHUFFLE:
        if (lane < 16)
            x = __shfl_xor_sync(~0u, x, 1);
        else
            x = (int)__ballot_sync(~0u, 1);
        break;
    case MISALIGNED:
        x = (int)load16(in + 1).x;
        break;
    case NEVER_WAITS:
        if (i < 8) cp_async16(&tile[i * 4], in + i * 4);
        break;
    case TOO_MUCH_SHARED: {
        SHARED(float, huge, [12500]);
        huge[i] = 1;
        break;
    }
    case HALF_WARP: /* of the last warp, which has 16 lanes */
        if (i >= 64) x = __shfl_xor_sync(~0u, x, 1);
        break;
    }
    out[i] = x + (tile[lane] == 0);
}

static void test_caught(void **state) {
    (void)state;
    /* What is said in every order; who comes first and who fails depends on it. */
    static const char *const sentences[N_WRONGS] = {
        "return",
        "it waits in __syncthreads (tests/test_simt.cu:",
        "the threads wait for each other: thread ",
        "waits in __syncthreads (tests/test_simt.cu:",
        " while others of its mask are in __",
        "waits in __shfl_xor_sync with mask ffffffff",
        "calls __shfl_xor_sync with mask 0000ffff, which does not name it",
        "asks lane 20, which is not in the mask 0000ffff",
        " while others of its mask are in __",
        "load16 at 0x",
        "it returns before it has waited for its cp.async",
        "its arrays up to huge take 50128 bytes of shared memory, and 49152 can be declared",
        "__shfl_xor_sync with mask ffffffff, but of its lanes only 0000ffff are there",
    };
    linnet_error err;
    for (int which = 0; which < N_WRONGS; which++)
        for (int order = SIMT_FORWARD; order <= SIMT_SHUFFLED; order++) {
            int *out = on_gpu<int>(80);
            float *in = on_gpu<float>(80);
            simt_set_order((simt_order)order, 8);
            launch(stream, dim3(2), dim3(which == HALF_WARP ? 80 : 64), 0, wrong, which, out, in);
            linnet_status status = device_finish(gpu, &err);
            if (!status) fail_msg("case %d, order %d was not caught", which, order);
            refused(status, LINNET_ERR_DEVICE, &err, sentences[which]);
            assert_non_null(strstr(err.text, "GPU 0 (emulated): kernel wrong, block ("));
            device_free(gpu, out);
            device_free(gpu, in);
            close_gpu(nullptr);
            open_gpu(nullptr);
        }
}

__global__ void forgets_to_wait(const int *x, int *y) {
    y[threadIdx.x] = x[threadIdx.x];
}

__global__ void reads_too_early(const int *x, int *y) {
    int value = x[threadIdx.x];
    wait_for_previous();
    y[threadIdx.x] = value;
}

static void test_overlap_caught(void **state) {
    (void)state;
    linnet_error err;
    int *x = on_gpu<int>(32), *y = on_gpu<int>(32);
    device_zero(stream, x, 128);
    launch(stream, dim3(1), dim3(32), 0, add, x, 32, 5);
    launch_overlapped(stream, dim3(1), dim3(32), 0, reads_too_early, x, y);
    assert_int_equal(download(y, 32)[0], 0); /* what was there before */
    assert_int_equal(download(x, 32)[0], 5);
    launch(stream, dim3(1), dim3(32), 0, add, x, 32, 5);
    launch_overlapped(stream, dim3(1), dim3(32), 0, forgets_to_wait, x, y);
    refused(device_finish(gpu, &err), LINNET_ERR_DEVICE, &err,
            "no thread of the block calls wait_for_previous");
    device_free(gpu, x);
    device_free(gpu, y);
}

/* Nothing that was not written reads as a number. */
__global__ void unwritten(float *out, float *from_gpu) {
    SHARED(float, tile, [64]);
    DYNAMIC_SHARED(float, more);
    out[threadIdx.x] = tile[threadIdx.x] + more[threadIdx.x];
    tile[threadIdx.x] = more[threadIdx.x] = 1; /* gone in the next block */
    out[64 + threadIdx.x] = from_gpu[threadIdx.x];
}

static void test_unwritten_is_nan(void **state) {
    (void)state;
    float *p = on_gpu<float>(128), *q = on_gpu<float>(64);
    launch(stream, dim3(3), dim3(64), 256, unwritten, p, q);
    for (float f : take_back(p, 128))
        assert_true(f != f);
    device_free(gpu, q);
}

/* Three races: between warps, within a warp, between blocks; `right` mends the first two. */
__global__ void race_of_warps(float *out, int right) {
    SHARED(float, tile, [128]);
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x] = (float)threadIdx.x;
    if (right) __syncthreads();
    out[threadIdx.x] = tile[(threadIdx.x + 32) % 128];
}

__global__ void race_of_lanes(float *out, int right) {
    SHARED(float, tile, [128]);
    tile[threadIdx.x] = 0;
    __syncwarp();
    tile[threadIdx.x] = (float)threadIdx.x;
    if (right) __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

__global__ void race_of_blocks(float *out, int right) {
    unsigned i = threadIdx.x;
    if (right)
        out[blockIdx.x * 8 + i] = (float)blockIdx.x;
    else
        out[i] = (float)blockIdx.x;
}

static void test_races(void **state) {
    (void)state;
    typedef void (*kernel)(float *, int);
    const kernel kernels[] = {race_of_warps, race_of_lanes, race_of_blocks};
    for (kernel k : kernels)
        for (int right = 0; right < 2; right++) {
            std::vector<float> first;
            int differ = 0;
            for (int run = 0; run < 5; run++) {
                simt_set_order(run < 2 ? (simt_order)run : SIMT_SHUFFLED, (uint64_t)run);
                float *p = on_gpu<float>(128);
                device_zero(stream, p, 512);
                bool blocks = k == race_of_blocks;
                launch(stream, dim3(blocks ? 16 : 1), dim3(blocks ? 8 : 128), 0, k, p, right);
                std::vector<float> out = take_back(p, 128);
                if (!run) first = out;
                differ += memcmp(out.data(), first.data(), 512) != 0;
            }
            assert_int_equal(differ != 0, !right);
        }
}

/* A copy that is used before its wait, and one that overwrites what is still read. */
static void test_cp_async_caught(void **state) {
    (void)state;
    std::vector<uint32_t> in(7 * 128, 1);
    uint32_t *p = on_gpu(in.size(), in.data()), *q = on_gpu<uint32_t>(32);
    launch(stream, dim3(1), dim3(32), 0, staged<true>, p, q, 7u);
    assert_int_not_equal(download(q, 32)[0], 28);
    launch(stream, dim3(1), dim3(32), 0, staged<false>, p, q, 7u);
    assert_int_equal(take_back(q, 32)[0], 28);
    device_free(gpu, p);
}

__global__ void one_past(int which, int at, float *out) {
    SHARED(float, tile, [10]);
    SHARED(float, other, [10]);
    DYNAMIC_SHARED(float, more);
    float local[10];
    float *const arrays[] = {tile, other, more, local, out};
    for (int i = 0; i < 10; i++)
        tile[i] = other[i] = local[i] = 1;
    out[0] = arrays[which][at];
}

/* AddressSanitizer ends the process: in a child, whose report must name the kernel. */
static void test_one_past(void **state) {
    (void)state;
#if defined __SANITIZE_ADDRESS__
    for (int which = 0; which < 5; which++) {
        float *p = on_gpu<float>(10);
        launch(stream, dim3(1), dim3(1), 40, one_past, which, 9, p);
        finish();
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        fflush(nullptr);
        pid_t child = fork();
        if (!child) {
            dup2(ends[1], 2);
            launch(stream, dim3(1), dim3(1), 40, one_past, which, 10, p);
            device_finish(gpu, nullptr);
            _exit(0);
        }
        close(ends[1]);
        std::string report;
        char piece[4096];
        for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;)
            report.append(piece, (size_t)n);
        close(ends[0]);
        waitpid(child, &status, 0);
        assert_true(status != 0);
        if (report.find("AddressSanitizer") == std::string::npos ||
            report.find("one_past") == std::string::npos)
            fail_msg("array %d: %s", which, report.c_str());
        device_free(gpu, p);
    }
#else
    float *p = on_gpu<float>(10);
    launch(stream, dim3(1), dim3(1), 40, one_past, 0, 9, p);
    assert_true(take_back(p, 10)[0] == 1);
#endif
}
#endif

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_gpu, close_gpu)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_barrier),
        TEST(test_places),
        TEST(test_block_votes),
        TEST(test_shared_in_templates),
        TEST(test_sums),
        TEST(test_shuffles),
        TEST(test_votes),
        TEST(test_atomics),
        TEST(test_dynamic_shared),
        TEST(test_copies),
        TEST(test_graph),
        TEST(test_overlapped),
        TEST(test_widening),
        TEST(test_narrowing),
        TEST(test_small_ones),
        TEST(test_mma16),
        TEST(test_mma_tf32),
        TEST(test_ldmatrix),
        TEST(test_cp_async),
        TEST(test_bad_launches),
#ifndef __CUDACC__
        TEST(test_machines),
        TEST(test_out_of_memory),
        TEST(test_sticky_fault),
        TEST(test_wrong_copies),
        TEST(test_caught),
        TEST(test_overlap_caught),
        TEST(test_unwritten_is_nan),
        TEST(test_races),
        TEST(test_cp_async_caught),
        TEST(test_one_past),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
