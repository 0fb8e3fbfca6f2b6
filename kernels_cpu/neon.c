/* NEON as every 64-bit ARM has it. The loops are in vector.h and products.h. Whole numbers are
 * multiplied as 16-bit ones, four rows of one column at a time (smlal); activations lie in the
 * order of their columns. */
#include "neon.h"

#define TABLE kernels_neon

#include "vector.h"

#include "products.h"

/* Columns 4g, 4g+1 of the four rows to columns[2g], 4g+2 and 4g+3 to columns[2g+1]. */
INLINE void split_columns(const vi *words, int16x8_t *columns) {
    UNROLL for (int g = 0; g < BLOCK / 4; g++) {
        int16x8_t even = (int16x8_t)(words[g] & V_SET1I(0x00ff00ff));
        int16x8_t odd = (int16x8_t)vshrq_n_u16((uint16x8_t)words[g], 8);
        columns[2 * g] = vuzp1q_s16(even, odd);
        columns[2 * g + 1] = vuzp2q_s16(even, odd);
    }
}

/* Columns [from, to), a multiple of 8, plus `start`. */
INLINE vi dot_columns(const int16x8_t *columns, const int16_t *q, int from, int to, int32_t start) {
    int32x4_t even = vdupq_n_s32(start), odd = vdupq_n_s32(0);
    UNROLL for (int k = from; k < to; k += 8) {
        const int16x8_t *w = columns + k / 2, x = vld1q_s16(q + k);
        even = vmlal_laneq_s16(even, vget_low_s16(w[0]), x, 0);
        odd = vmlal_high_laneq_s16(odd, w[0], x, 1);
        even = vmlal_laneq_s16(even, vget_low_s16(w[1]), x, 2);
        odd = vmlal_high_laneq_s16(odd, w[1], x, 3);
        even = vmlal_laneq_s16(even, vget_low_s16(w[2]), x, 4);
        odd = vmlal_high_laneq_s16(odd, w[2], x, 5);
        even = vmlal_laneq_s16(even, vget_low_s16(w[3]), x, 6);
        odd = vmlal_high_laneq_s16(odd, w[3], x, 7);
    }
    return (vi)vaddq_s32(even, odd);
}

INLINE void add_quantized(block_form form, int offset, const block *w, int strips,
                          const activations *x, size_t at, size_t n, bool few,
                          vf (*acc)[TILE * HALVES]) {
    (void)few, (void)strips; /* STRIPS is 1 */
    int16x8_t columns[BLOCK / 2];
    split_columns(w->words, columns);
    int32_t factor = offset < 0 ? 0 : 1 << offset;
    UNROLL for (size_t c = 0; c < n; c++) {
        const int16_t *q = x->q + (at + c) * BLOCK;
        const int32_t *sum = x->sum + 2 * (at + c);
        vi low, high = V_SET1I(0);
        if (form == SCALE_PER_HALF) {
            low = dot_columns(columns, q, 0, 16, -factor * sum[0]);
            high = dot_columns(columns, q, 16, 32, -factor * sum[1]);
        } else {
            low = dot_columns(columns, q, 0, 32, -factor * (sum[0] + sum[1]));
        }
        vf *to = acc[0] + c * HALVES;
        *to = add_sums(form, w, x, at + c, low, high, *to);
    }
}

INLINE void store_quantized(int16_t *q, int i, vi n) {
    vst1_s16(q + i, vmovn_s32((int32x4_t)n));
}
