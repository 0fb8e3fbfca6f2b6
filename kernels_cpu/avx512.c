/* AVX-512 (F, BW, VL, DQ, VNNI): 16 lanes. The loops are in vector.h. */
#include <immintrin.h>
#include <stdint.h>

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef int16_t vs __attribute__((vector_size(64)));

#define LANES 16
#define QUERIES 4
#define TABLE kernels_avx512
#define NAME "avx512"
#define V_SET1F(x) ((vf)_mm512_set1_ps(x))
#define V_SET1I(x) ((vi)_mm512_set1_epi32(x))
#define V_FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define V_MAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define V_ABS(a) ((vf)_mm512_abs_ps((__m512)(a)))
#define V_DOT(acc, a, b) ((vi)_mm512_dpwssd_epi32((__m512i)(acc), (__m512i)(a), (__m512i)(b)))
#define V_F16(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define V_STORE_F16(p, v)                                                                          \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT))
#define V_ROUND(a) ((vi)_mm512_cvtps_epi32((__m512)(a)))

#include "vector.h"
