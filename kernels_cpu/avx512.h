/* AVX-512 (F, BW, VL, DQ, VNNI): 16 lanes. The loops are in vector.h and products.h; avx512.c and
 * avx512_bf16.c, which include this, differ in how they multiply bf16.
 *
 * vpdpbusd multiplies unsigned bytes by signed ones, four columns of 16 rows at a time, without
 * saturation: weights as they are packed, activations in two planes, q = 256 high + low. Narrow
 * blocks have no high plane, and 8-bit activations are done with half the instructions. */
#include <immintrin.h>
#include <stdint.h>

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

#define LANES 16
#define QUERIES 8
#define STRIPS 2
#define FLOAT_COLUMNS 6
#define NAME "avx512"
#define V_SET1F(x) ((vf)_mm512_set1_ps(x))
#define V_SET1I(x) ((vi)_mm512_set1_epi32(x))
#define V_FMA(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define V_MAX(a, b) ((vf)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define V_ABS(a) ((vf)_mm512_abs_ps((__m512)(a)))
#define V_F16(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define V_STORE_F16(p, v)                                                                          \
    _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT))
#define V_MAXI(a, b) ((vi)_mm512_max_epi32((__m512i)(a), (__m512i)(b)))
#define V_TOP(a) _mm512_reduce_max_epi32((__m512i)(a))
#define V_TOTAL(a) _mm512_reduce_add_epi32((__m512i)(a))
#define V_U8(p) ((vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define V_I8(p) ((vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define V_ROUND(a) ((vi)_mm512_cvtps_epi32((__m512)(a)))

#include "vector.h"

#include "products.h"

/* A block of activations: the low bytes of its 32 columns, then the high ones. */
INLINE void store_quantized(int16_t *q, int i, vi n) {
    vi low = (n << 24) >> 24, high = (n - low) >> 8;
    _mm_storeu_si128((__m128i *)((int8_t *)q + i), _mm512_cvtepi32_epi8((__m512i)low));
    _mm_storeu_si128((__m128i *)((int8_t *)q + BLOCK + i), _mm512_cvtepi32_epi8((__m512i)high));
}

/* Columns whose sums, of two panels, fill the registers that the weights leave. */
enum { GROUP = 6 };

/* Four columns of a plane, in every lane. */
INLINE __m512i four(const int8_t *plane, int g) {
    int32_t v;
    memcpy(&v, plane + 4 * g, sizeof v);
    return _mm512_set1_epi32(v);
}

/* out[s][c] += groups [from, to) of four columns of block s times one plane of column c. */
INLINE void add_plane(const block *w, int strips, const int8_t *plane, int n, int from, int to,
                      vi (*out)[GROUP]) {
    UNROLL for (int g = from; g < to; g++) UNROLL for (int c = 0; c < n; c++) {
        __m512i x = four(plane + c * 2 * BLOCK, g);
        UNROLL for (int s = 0; s < strips; s++) out[s][c] =
            (vi)_mm512_dpbusd_epi32((__m512i)out[s][c], (__m512i)w[s].words[g], x);
    }
}

/* The exact sums over half `half` of the block or (-1) all of it, of `n` columns: 256 high + low -
 * 2^offset sum. The planes of a single column are summed side by side. */
INLINE void dot_planes(int offset, const block *w, int strips, const activations *x, size_t at,
                       int n, int half, bool wide, vi (*out)[GROUP]) {
    const int8_t *q = (const int8_t *)(x->q + at * BLOCK);
    int from = half == 1 ? 4 : 0, to = half == 0 ? 4 : 8;
    vi high[STRIPS][GROUP];
    UNROLL for (int s = 0; s < strips; s++) UNROLL for (int c = 0; c < n; c++) high[s][c] =
        V_SET1I(0);
    if (wide) add_plane(w, strips, q + BLOCK, n, from, to, high);
    UNROLL for (int c = 0; c < n; c++) {
        const int32_t *sum = x->sum + 2 * (at + c);
        int32_t all = half < 0 ? sum[0] + sum[1] : sum[half];
        vi less = V_SET1I(offset < 0 ? 0 : all * (1 << offset));
        UNROLL for (int s = 0; s < strips; s++) out[s][c] =
            n > 1 ? (high[s][c] << 8) - less : -less;
    }
    add_plane(w, strips, q, n, from, to, out);
    if (n == 1 && wide) UNROLL for (int s = 0; s < strips; s++) out[s][0] += high[s][0] << 8;
}

INLINE void add_columns(block_form form, int offset, const block *w, int strips,
                        const activations *x, size_t at, int n, bool wide, size_t c,
                        vf (*acc)[TILE * HALVES]) {
    vi low[STRIPS][GROUP], high[STRIPS][GROUP];
    dot_planes(offset, w, strips, x, at, n, form == SCALE_PER_HALF ? 0 : -1, wide, low);
    if (form == SCALE_PER_HALF) dot_planes(offset, w, strips, x, at, n, 1, wide, high);
    UNROLL for (int s = 0; s < strips; s++) UNROLL for (int i = 0; i < n; i++) acc[s][c + i] =
        add_sums(form, &w[s], x, at + i, low[s][i], high[s][i], acc[s][c + i]);
}

INLINE bool any_wide(const activations *x, size_t at, int n) {
    bool wide = false;
    UNROLL for (int c = 0; c < n; c++) wide |= x->wide[at + c];
    return wide;
}

INLINE void add_quantized(block_form form, int offset, const block *w, int strips,
                          const activations *x, size_t at, size_t n, bool few,
                          vf (*acc)[TILE * HALVES]) {
    size_t c = 0;
#define GROUPS_OF(N)                                                                               \
    for (; !few && c + N <= n; c += N)                                                             \
    add_columns(form, offset, w, strips, x, at + c, N, any_wide(x, at + c, N), c, acc)
    GROUPS_OF(GROUP);
    GROUPS_OF(4);
    GROUPS_OF(2);
#undef GROUPS_OF
    UNROLL for (; c < n; c++)
        add_columns(form, offset, w, strips, x, at + c, 1, x->wide[at + c], c, acc);
}
