/* A GPU in plain C++, for tests: the words of CUDA that the kernels use, over fibers (simt.cc).
 * Each thread of a block is a fiber that runs until it must wait; blocks run one after another.
 * What would be undefined on a GPU is a failure with a sentence: a barrier that some threads miss,
 * a shuffle whose lane never comes, a vector load off its alignment. Shared memory is one
 * allocation per array, so AddressSanitizer sees its ends, and starts as NaN, as does the GPU's
 * memory. Launches are queued and run when the host waits, so what the host may not touch yet is
 * not there yet. control.h has what only tests call. */
#ifndef SIMT_H
#define SIMT_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

extern "C" {
#include "../../weights/dtype.h"
}

/* ---- Words in front of functions and variables ------------------------------------------- */
#define __global__ __attribute__((unused))
#define __device__ __attribute__((unused))
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define DEVICE __device__ __forceinline__
#define UNROLL
#define UNROLL_BY_4

/* ---- Vectors ----------------------------------------------------------------------------- */
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define SIMT_VECTOR(type, name)                                                                    \
    struct alignas(2 * sizeof(type)) name##2 {                                                     \
        type x, y;                                                                                 \
    };                                                                                             \
    struct alignas(4 * sizeof(type)) name##4 {                                                     \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name##2 make_##name##2(type x, type y) {                                         \
        return {x, y};                                                                             \
    }                                                                                              \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                         \
        return {x, y, z, w};                                                                       \
    }
SIMT_VECTOR(float, float)
SIMT_VECTOR(unsigned, uint)

/* ---- The thread that runs ---------------------------------------------------------------- */
struct simt_place {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern simt_place *simt_here;
#define threadIdx (simt_here->thread)
#define blockIdx (simt_here->block)
#define blockDim (simt_here->block_size)
#define gridDim (simt_here->grid_size)

/* Ends the kernel with a sentence, which device_finish reports. */
[[noreturn]] void simt_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Where a kernel waits, for messages; two places are not the same barrier. */
struct simt_site {
    const char *what, *file;
    int line;
};
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_HERE(what)                                                                            \
    simt_site {                                                                                    \
        what, file, line                                                                           \
    }

struct simt_votes {
    int any, all, count;
};
simt_votes simt_barrier(simt_site site, bool vote);

/* All lanes of `mask` hand in `bytes` (at most 32) and meet; returns what lane i handed in, at
 * [i * 32]. Valid until the thread's next exchange. */
const unsigned char *simt_exchange(simt_site site, unsigned mask, const void *mine, size_t bytes);
unsigned simt_lane();
unsigned simt_live_lanes(); /* of the warp: those that have not returned */

static inline void __syncthreads(SIMT_SITE) {
    simt_barrier(SIMT_HERE("__syncthreads"), false);
}
static inline int __syncthreads_or(int vote, SIMT_SITE) {
    return simt_barrier(SIMT_HERE("__syncthreads_or"), vote != 0).any;
}
static inline int __syncthreads_and(int vote, SIMT_SITE) {
    return simt_barrier(SIMT_HERE("__syncthreads_and"), vote != 0).all;
}
static inline int __syncthreads_count(int vote, SIMT_SITE) {
    return simt_barrier(SIMT_HERE("__syncthreads_count"), vote != 0).count;
}
void wait_for_previous();
static inline void let_next_start() {}
static inline void __threadfence() {}

/* ---- Within a warp ----------------------------------------------------------------------- */
static inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) {
    simt_exchange(SIMT_HERE("__syncwarp"), mask, nullptr, 0);
}

/* From lane `from` of the group of `width`; a lane outside the mask has nothing to give. */
template <class T> T simt_shuffle(simt_site site, unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    const unsigned char *all = simt_exchange(site, mask, &value, sizeof value);
    if (!(mask >> from & 1))
        simt_fail("lane %u asks lane %u, which is not in the mask %08x (%s:%d)", simt_lane(), from,
                  mask, site.file, site.line);
    memcpy(&value, all + from * 32, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, SIMT_SITE) {
    unsigned lane = simt_lane(), w = (unsigned)width;
    return simt_shuffle(SIMT_HERE("__shfl_sync"), mask, value, lane / w * w + (unsigned)from % w);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_SITE) {
    unsigned lane = simt_lane(), w = (unsigned)width, from = lane ^ (unsigned)bits;
    return simt_shuffle(SIMT_HERE("__shfl_xor_sync"), mask, value,
                        from >= (lane / w + 1) * w ? lane : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, SIMT_SITE) {
    unsigned lane = simt_lane(), w = (unsigned)width, from = lane + by;
    return simt_shuffle(SIMT_HERE("__shfl_down_sync"), mask, value,
                        from >= (lane / w + 1) * w ? lane : from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, SIMT_SITE) {
    unsigned lane = simt_lane(), w = (unsigned)width;
    return simt_shuffle(SIMT_HERE("__shfl_up_sync"), mask, value, lane % w < by ? lane : lane - by);
}
unsigned simt_ballot(simt_site site, unsigned mask, bool vote);
static inline unsigned __ballot_sync(unsigned mask, int vote, SIMT_SITE) {
    return simt_ballot(SIMT_HERE("__ballot_sync"), mask, vote != 0);
}
static inline int __any_sync(unsigned mask, int vote, SIMT_SITE) {
    return simt_ballot(SIMT_HERE("__any_sync"), mask, vote != 0) != 0;
}
static inline int __all_sync(unsigned mask, int vote, SIMT_SITE) {
    return simt_ballot(SIMT_HERE("__all_sync"), mask, vote != 0) == mask;
}

/* ---- Memory ------------------------------------------------------------------------------ */
void *simt_shared(const void *site, const char *name, size_t bytes);
void *simt_dynamic_shared();
#define SHARED(type, name, ...)                                                                    \
    typedef type name##_simt_type __VA_ARGS__;                                                     \
    static const char name##_simt_site = 0;                                                        \
    name##_simt_type &name = *static_cast<name##_simt_type *>(                                     \
        simt_shared(&name##_simt_site, #name, sizeof(name##_simt_type)))
#define DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(simt_dynamic_shared())

DEVICE void simt_aligned(const void *p, size_t to, const char *what) {
    if ((uintptr_t)p % to) simt_fail("%s at %p, which is not a multiple of %zu", what, p, to);
}
DEVICE uint4 load16(const void *p) {
    simt_aligned(p, 16, "load16");
    return *static_cast<const uint4 *>(p);
}

/* One thread runs at a time, and changes places only where it waits. */
template <class T> struct simt_same {
    typedef T type; /* is not deduced: atomicAdd(&an_unsigned, 1) */
};
#define SIMT_ATOMIC(name, after)                                                                   \
    template <class T> DEVICE T name(T *p, typename simt_same<T>::type x) {                        \
        T old = *p;                                                                                \
        *p = after;                                                                                \
        return old;                                                                                \
    }
SIMT_ATOMIC(atomicAdd, old + x)
SIMT_ATOMIC(atomicMax, old < x ? x : old)
SIMT_ATOMIC(atomicMin, x < old ? x : old)
SIMT_ATOMIC(atomicExch, x)
SIMT_ATOMIC(atomicOr, old | x)
SIMT_ATOMIC(atomicAnd, old &x)
template <class T>
DEVICE T atomicCAS(T *p, typename simt_same<T>::type expected, typename simt_same<T>::type x) {
    T old = *p;
    if (old == expected) *p = x;
    return old;
}
DEVICE unsigned atomicInc(unsigned *p, unsigned last) {
    unsigned old = *p;
    *p = old >= last ? 0 : old + 1;
    return old;
}

/* ---- Numbers ----------------------------------------------------------------------------- */
DEVICE float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
DEVICE unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
DEVICE float f16_to_float(uint16_t h) {
    return (h & 0x7fff) > 0x7c00 ? __uint_as_float(0x7fffffff) : f16_to_f32(h);
}
DEVICE uint16_t float_to_f16(float f) {
    return f != f ? 0x7fff : f32_to_f16(f);
}
DEVICE uint32_t f16_pair(float low, float high) {
    return float_to_f16(low) | (uint32_t)float_to_f16(high) << 16;
}
DEVICE float bf16_to_float(uint16_t h) {
    return bf16_to_f32(h);
}
DEVICE uint16_t float_to_bf16(float f) {
    return f != f ? 0x7fff : f32_to_bf16(f);
}

/* To the nearest, ties to even; what does not fit becomes the nearest that does, NaN 0. */
DEVICE int __float2int_rn(float f) {
    return f != f ? 0 : f >= 0x1p31f ? INT32_MAX : f < -0x1p31f ? INT32_MIN : (int)nearbyintf(f);
}
DEVICE unsigned __float2uint_rn(float f) {
    return !(f > 0) ? 0 : f >= 0x1p32f ? UINT32_MAX : (unsigned)nearbyintf(f);
}
DEVICE float __int2float_rn(int i) {
    return (float)i;
}
DEVICE float __uint2float_rn(unsigned u) {
    return (float)u;
}
DEVICE float __expf(float x) {
    return expf(x);
}
DEVICE int __popc(unsigned u) {
    return __builtin_popcount(u);
}
DEVICE int __clz(int i) {
    return i ? __builtin_clz((unsigned)i) : 32;
}
DEVICE int __ffs(int i) {
    return __builtin_ffs(i);
}
/* c plus the four products of signed bytes. */
DEVICE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8)
        c += (int8_t)((unsigned)a >> i) * (int8_t)((unsigned)b >> i);
    return c;
}
/* Byte i of the result is byte (selector >> 4 i & 7) of the eight in (b, a); no sign spreading. */
DEVICE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return r;
}
#define SIMT_MIN_MAX(type)                                                                         \
    DEVICE type min(type a, type b) {                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    DEVICE type max(type a, type b) {                                                              \
        return a < b ? b : a;                                                                      \
    }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
DEVICE float min(float a, float b) {
    return fminf(a, b);
}
DEVICE float max(float a, float b) {
    return fmaxf(a, b);
}

/* ---- cp.async of ptx.h ------------------------------------------------------------------- */
/* The copy is made at the wait; until then its target is NaN. */
void simt_copy_async(void *shared, const void *global, size_t bytes, simt_site site);
void simt_copy_commit();
void simt_copy_wait(size_t groups_left);

/* ---- Launches ---------------------------------------------------------------------------- */
/* Queues the launch; `body` is what each thread runs. */
void simt_launch(device_stream s, const launch_shape &shape, std::function<void()> body);

template <class... P, class... A>
void launch_kernel(device_stream s, const launch_shape &shape, void (*kernel)(P...), A... args) {
    std::tuple<P...> values(args...);
    simt_launch(s, shape, [=] { std::apply(kernel, values); });
}

#endif
