/* AVX-512 (F, BW, VL, DQ, VNNI): 16 lanes. The loops are in vector.h and products.h.
 *
 * vpdpbusd multiplies unsigned bytes by signed ones, four columns of 16 rows at a time, without
 * saturation: weights as they are packed, activations in two planes, q = 256 high + low. Narrow
 * blocks have no high plane, and 8-bit activations are done with half the instructions. */
#include <immintrin.h>
#include <stdint.h>

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

#define LANES 16
#define QUERIES 4
#define TABLE kernels_avx512
#define NAME "avx512"
#define V_SET1F(x) ((vf)_mm512_set1_ps(x))
#define V_SET1I(x) ((vi)_mm512_set1_epi32(x))
#define V_FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define V_MAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define V_ABS(a) ((vf)_mm512_abs_ps((__m512)(a)))
#define V_F16(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define V_STORE_F16(p, v)                                                                          \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT))
#define V_I8(p) ((vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define V_U8(p) ((vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define V_U16(p) ((vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))))
#define V_ROUND(a) ((vi)_mm512_cvtps_epi32((__m512)(a)))

#include "vector.h"

#include "products.h"

/* A block of activations: the low bytes of its 32 columns, then the high ones. */
INLINE void store_quantized(int16_t *q, int i, vi n) {
    vi low = (n << 24) >> 24, high = (n - low) >> 8;
    _mm_storeu_si128((__m128i *)((int8_t *)q + i), _mm512_cvtepi32_epi8((__m512i)low));
    _mm_storeu_si128((__m128i *)((int8_t *)q + BLOCK + i), _mm512_cvtepi32_epi8((__m512i)high));
}

/* acc + sum over columns 4 from .. 4 to - 1 of weights times one plane of activations. */
#define DOT(acc, words, plane, g)                                                                  \
    ((vi)_mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(words)[g],                                  \
                             _mm512_set1_epi32(four(plane, g))))

INLINE int32_t four(const int8_t *plane, int g) {
    int32_t v;
    memcpy(&v, plane + 4 * g, sizeof v);
    return v;
}

/* Groups [from, to) of four columns of `n` (a constant) columns of x, plus -2^offset sum: exact. */
INLINE void dot_planes(const block *w, const activations *x, size_t at, int n, int from, int to,
                       int offset, int half, bool wide, vi *out) {
    vi low[4], high[4];
    const int8_t *q = (const int8_t *)(x->q + at * BLOCK);
    UNROLL for (int c = 0; c < n; c++) {
        const int32_t *sum = x->sum + 2 * (at + c);
        int32_t s = half < 0 ? sum[0] + sum[1] : sum[half];
        low[c] = offset < 0 ? V_SET1I(0) : V_SET1I(-(s * (1 << offset)));
        high[c] = V_SET1I(0);
    }
    UNROLL for (int g = from; g < to; g++) UNROLL for (int c = 0; c < n; c++) low[c] =
        DOT(low[c], w->words, q + c * 2 * BLOCK, g);
    if (wide)
        UNROLL for (int g = from; g < to; g++) UNROLL for (int c = 0; c < n; c++) high[c] =
            DOT(high[c], w->words, q + c * 2 * BLOCK + BLOCK, g);
    UNROLL for (int c = 0; c < n; c++) out[c] = wide ? low[c] + (high[c] << 8) : low[c];
}

INLINE void add_columns(dtype type, const block *w, const activations *x, size_t at, int n,
                        bool wide, vf *acc) {
    vi low[4], high[4];
    int offset = offset_of(type);
    if (type == DTYPE_Q6_K) {
        dot_planes(w, x, at, n, 0, 4, offset, 0, wide, low);
        dot_planes(w, x, at, n, 4, 8, offset, 1, wide, high);
    } else {
        dot_planes(w, x, at, n, 0, 8, offset, -1, wide, low);
    }
    UNROLL for (int c = 0; c < n; c++) acc[c * HALVES] =
        add_sums(type, w, x, at + c, low[c], high[c], acc[c * HALVES]);
}

INLINE void add_quantized(dtype type, const block *w, const activations *x, size_t at, size_t n,
                          vf *acc) {
    size_t c = 0;
    for (; c + 4 <= n; c += 4) {
        uint32_t wide;
        memcpy(&wide, x->wide + at + c, sizeof wide);
        if (wide)
            add_columns(type, w, x, at + c, 4, true, acc + c);
        else
            add_columns(type, w, x, at + c, 4, false, acc + c);
    }
    for (; c < n; c++)
        if (x->wide[at + c])
            add_columns(type, w, x, at + c, 1, true, acc + c);
        else
            add_columns(type, w, x, at + c, 1, false, acc + c);
}
