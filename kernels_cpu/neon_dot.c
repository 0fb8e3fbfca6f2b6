/* NEON with ARMv8.2's dot product. The loops are in vector.h and products.h.
 *
 * sdot multiplies signed bytes, four columns of four rows at a time: weights without their offset,
 * activations in two planes, q = 256 high + low. Narrow blocks have no high plane. */
#include "neon.h"

#define TABLE kernels_neon_dot

#include "vector.h"

#include "products.h"

/* A block of activations: the low bytes of its 32 columns, then the high ones. */
INLINE void store_quantized(int16_t *q, int i, vi n) {
    vi low = (n << 24) >> 24, high = (n - low) >> 8;
    int16x8_t both = vcombine_s16(vmovn_s32((int32x4_t)low), vmovn_s32((int32x4_t)high));
    uint32x2_t bytes = vreinterpret_u32_s8(vmovn_s16(both));
    memcpy((int8_t *)q + i, &bytes, 4);
    memcpy((int8_t *)q + BLOCK + i, (const char *)&bytes + 4, 4);
}

/* 16 columns of weights times those of one plane of activations. */
INLINE int32x4_t dot_half(const int8x16_t *w, const int8_t *plane) {
    int8x16_t q = vld1q_s8(plane);
    int32x4_t even = vdotq_laneq_s32(vdupq_n_s32(0), w[0], q, 0);
    int32x4_t odd = vdotq_laneq_s32(vdupq_n_s32(0), w[1], q, 1);
    even = vdotq_laneq_s32(even, w[2], q, 2);
    odd = vdotq_laneq_s32(odd, w[3], q, 3);
    return vaddq_s32(even, odd);
}

INLINE void add_quantized(block_form form, int offset, const block *w, int strips,
                          const activations *x, size_t at, size_t n, bool few,
                          vf (*acc)[TILE * HALVES]) {
    (void)few, (void)strips; /* STRIPS is 1 */
    int8x16_t bytes[BLOCK / 4];
    const int8x16_t less = vdupq_n_s8((int8_t)(offset < 0 ? 0 : 1 << offset));
    UNROLL for (int g = 0; g < BLOCK / 4; g++) bytes[g] = vsubq_s8((int8x16_t)w->words[g], less);
    UNROLL for (size_t c = 0; c < n; c++) {
        const int8_t *q = (const int8_t *)(x->q + (at + c) * BLOCK);
        int32x4_t low = dot_half(bytes, q), high = dot_half(bytes + 4, q + 16);
        if (x->wide[at + c]) {
            low = vaddq_s32(low, vshlq_n_s32(dot_half(bytes, q + BLOCK), 8));
            high = vaddq_s32(high, vshlq_n_s32(dot_half(bytes + 4, q + BLOCK + 16), 8));
        }
        if (form != SCALE_PER_HALF) low = vaddq_s32(low, high);
        vf *to = acc[0] + c * HALVES;
        *to = add_sums(form, w, x, at + c, (vi)low, (vi)high, *to);
    }
}
