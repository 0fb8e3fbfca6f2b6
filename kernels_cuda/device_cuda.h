/* device.h where nvcc compiles it. */
#ifndef DEVICE_CUDA_H
#define DEVICE_CUDA_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_4 _Pragma("unroll 4")
#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ uint4 dynamic_shared_memory[];                                               \
    type *const name = reinterpret_cast<type *>(dynamic_shared_memory)

DEVICE uint4 load16(const void *p) {
    return *static_cast<const uint4 *>(p);
}

DEVICE float f16_to_float(uint16_t h) {
    return __half2float(__ushort_as_half(h));
}
DEVICE uint16_t float_to_f16(float f) {
    return __half_as_ushort(__float2half_rn(f));
}
DEVICE uint32_t f16_pair(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return *(uint32_t *)&pair;
}
DEVICE float bf16_to_float(uint16_t h) {
    return __uint_as_float((uint32_t)h << 16);
}
DEVICE uint16_t float_to_bf16(float f) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}

DEVICE void wait_for_previous() {
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}
DEVICE void let_next_start() {
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/* Fills the config (and the attribute it may have) and returns true when the stream takes work;
 * device_launched keeps the first error. */
bool device_prepare(device_stream s, const launch_shape &shape, const void *kernel,
                    cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute);
void device_launched(device_stream s, const launch_shape &shape, cudaError_t error);

template <class... P, class... A>
void launch_kernel(device_stream s, const launch_shape &shape, void (*kernel)(P...), A... args) {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attribute;
    if (device_prepare(s, shape, (const void *)kernel, &config, &attribute))
        device_launched(s, shape, cudaLaunchKernelEx(&config, kernel, args...));
}

#endif
