/* AVX2 with FMA and F16C: 8 lanes. The loops are in vector.h and products.h. Products of bytes
 * (pmaddubsw) saturate, so whole numbers are multiplied as pairs of 16 bits. */
#include <immintrin.h>
#include <stdint.h>

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

#define LANES 8
#define QUERIES 2
#define STRIPS 1
#define FLOAT_COLUMNS 4
#define TABLE kernels_avx2
#define NAME "avx2"
#define V_SET1F(x) ((vf)_mm256_set1_ps(x))
#define V_SET1I(x) ((vi)_mm256_set1_epi32(x))
#define V_FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define V_MAX(a, b) ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define V_ABS(a) ((vf)_mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)(a)))
#define V_F16(p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define V_STORE_F16(p, v)                                                                          \
    _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph((__m256)(v), _MM_FROUND_TO_NEAREST_INT))
#define V_MAXI(a, b) ((vi)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#define V_TOP(a) top_of((__m256i)(a))
#define V_TOTAL(a) total_of((__m256i)(a))
#define V_U8(p) ((vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define V_I8(p) ((vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define V_ROUND(a) ((vi)_mm256_cvtps_epi32((__m256)(a)))

/* acc + a.even*b.even + a.odd*b.odd over int16 pairs, in int32 */
#define V_DOT(acc, a, b) ((acc) + (vi)_mm256_madd_epi16((__m256i)(a), (__m256i)(b)))
#define V_ORDER(a) ((vi)_mm256_shuffle_epi32((__m256i)(a), 0xd8)) /* 0, 2, 1, 3 of each four */

static inline int32_t top_of(__m256i a) {
    __m128i v = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

static inline int32_t total_of(__m256i a) {
    __m128i v = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

#include "vector.h"

#include "products.h"

#include "pairs.h"
