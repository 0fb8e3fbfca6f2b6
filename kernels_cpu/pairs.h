/* Products of whole numbers as sums over pairs of 16-bit ones, for instruction sets that have such
 * a multiplication (pmaddwd and its kind): what products.h asks for.
 *
 * Activations lie in the order of the bytes' pairs: of each four columns 0, 2, 1, 3. */

/* Columns 4g, 4g+2 and 4g+1, 4g+3 of a block as 16-bit pairs. */
INLINE void split_pairs(const vi *words, vi *pairs) {
    const vi mask = V_SET1I(0x00ff00ff);
    UNROLL for (int g = 0; g < BLOCK / 4; g++) {
        pairs[2 * g] = words[g] & mask;
        pairs[2 * g + 1] = (words[g] >> 8) & mask;
    }
}

/* A 32-bit pattern from memory in every lane: two neighbouring activations. */
INLINE vi pair(const int16_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return V_SET1I(v);
}

/* Pairs [from, to), a multiple of two, plus `start`. */
INLINE vi dot_pairs(const vi *pairs, const int16_t *q, int from, int to, int32_t start) {
    vi even = V_SET1I(start), odd = V_SET1I(0);
    UNROLL for (int p = from; p < to; p += 2) {
        even = V_DOT(even, pairs[p], pair(q + 2 * p));
        odd = V_DOT(odd, pairs[p + 1], pair(q + 2 * p + 2));
    }
    return even + odd;
}

INLINE void add_quantized(block_form form, int offset, const block *w, int strips,
                          const activations *x, size_t at, size_t n, bool few,
                          vf (*acc)[TILE * HALVES]) {
    (void)few;
    int32_t factor = offset < 0 ? 0 : 1 << offset;
    UNROLL for (int s = 0; s < strips; s++) {
        vi pairs[BLOCK / 2];
        split_pairs(w[s].words, pairs);
        UNROLL for (size_t c = 0; c < n; c++) {
            const int16_t *q = x->q + (at + c) * BLOCK;
            const int32_t *sum = x->sum + 2 * (at + c);
            vi low, high = V_SET1I(0);
            if (form == SCALE_PER_HALF) {
                low = dot_pairs(pairs, q, 0, 8, -factor * sum[0]);
                high = dot_pairs(pairs, q, 8, 16, -factor * sum[1]);
            } else {
                low = dot_pairs(pairs, q, 0, 16, -factor * (sum[0] + sum[1]));
            }
            vf *to = acc[s] + c * HALVES;
            *to = add_sums(form, &w[s], x, at + c, low, high, *to);
        }
    }
}

/* Columns [i, i + LANES) of a block. */
INLINE void store_quantized(int16_t *q, int i, vi n) {
    typedef int16_t vh __attribute__((vector_size(2 * LANES)));
    vh h = __builtin_convertvector(V_ORDER(n), vh);
    memcpy(q + i, &h, sizeof h);
}
