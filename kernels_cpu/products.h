/* Matrix products of the vector instruction sets, the same for all but for the inner product of
 * whole numbers: an including file has vector.h before this, and after it
 *
 *   add_quantized      acc += one block of quantized weights times columns of activations
 *   store_quantized    LANES quantized activations into a block, in its own order
 *
 * pairs.h has them for instruction sets that multiply pairs of 16-bit numbers. */

/* ---- Weights -----------------------------------------------------------------------------------
 */

/* One block of 32 columns of LANES rows: byte i of words[g] is column 4g + i, unsigned; a weight is
 * d (byte - offset_of) + m. */
typedef struct {
    vi words[BLOCK / 4];
    vf d[2], m;
} block;

INLINE void unpack_nibbles(const uint8_t *nibbles, int half, vi *words) {
    const vi mask = V_SET1I(0x0f0f0f0f);
    UNROLL for (int j = 0; j < 4; j++) {
        vi v = load_i(nibbles + j * PANEL * 4 + half * sizeof(vi));
        words[2 * j] = v & mask;
        words[2 * j + 1] = (v >> 4) & mask;
    }
}

INLINE void add_high_bits(const uint8_t *high, int half, vi *words) {
    vi v = load_i(high + half * sizeof(vi));
    const vi mask = V_SET1I(0x10101010);
    UNROLL for (int g = 0; g < BLOCK / 4; g++) words[g] |=
        (g < 4 ? v << (4 - g) : v >> (g - 4)) & mask;
}

INLINE vf scale_f16(const uint8_t *p, int half) {
    return V_F16((const uint16_t *)p + half * LANES);
}

/* Block j of a unit of a quantized type (j = 0 but for the K types); `type` is a constant. */
INLINE void unpack(dtype type, const uint8_t *u, int j, int half, block *o) {
    o->d[0] = scale_f16(u, half);
    switch (type) {
    case DTYPE_Q8_0:
        UNROLL for (int g = 0; g < BLOCK / 4; g++) o->words[g] =
            load_i(u + 32 + g * PANEL * 4 + half * sizeof(vi));
        break;
    case DTYPE_Q4_0:
        unpack_nibbles(u + 32, half, o->words);
        break;
    case DTYPE_Q4_1:
        o->m = scale_f16(u + 32, half);
        unpack_nibbles(u + 64, half, o->words);
        break;
    case DTYPE_Q5_0:
        unpack_nibbles(u + 32, half, o->words);
        add_high_bits(u + 288, half, o->words);
        break;
    case DTYPE_Q5_1:
        o->m = scale_f16(u + 32, half);
        unpack_nibbles(u + 64, half, o->words);
        add_high_bits(u + 320, half, o->words);
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        const uint8_t *s = u + 64 + half * LANES;
        const uint8_t *body = u + 256 + j * (type == DTYPE_Q4_K ? 256 : 320);
        vi scale, min;
        if (j < 4) {
            scale = V_U8(s + j * PANEL) & 63;
            min = V_U8(s + (j + 4) * PANEL) & 63;
        } else {
            scale = (V_U8(s + (j + 4) * PANEL) & 15) | (V_U8(s + (j - 4) * PANEL) >> 6) << 4;
            min = V_U8(s + (j + 4) * PANEL) >> 4 | (V_U8(s + j * PANEL) >> 6) << 4;
        }
        o->d[0] = o->d[0] * to_float(scale);
        o->m = -(scale_f16(u + 32, half) * to_float(min));
        unpack_nibbles(body, half, o->words);
        if (type == DTYPE_Q5_K) add_high_bits(body + 256, half, o->words);
        break;
    }
    case DTYPE_Q6_K: {
        const int8_t *s = (const int8_t *)u + 32 + 2 * j * PANEL + half * LANES;
        const uint8_t *body = u + 288 + j * 384;
        vf d = o->d[0];
        o->d[0] = d * bytes_to_float(s);
        o->d[1] = d * bytes_to_float(s + PANEL);
        unpack_nibbles(body, half, o->words);
        UNROLL for (int g = 0; g < BLOCK / 4; g++) {
            vi v = load_i(body + 256 + g / 4 * PANEL * 4 + half * sizeof(vi));
            int i = g % 4; /* bits 2i, 2i+1 go to bits 4, 5 */
            o->words[g] |= (i < 2 ? v << (4 - 2 * i) : v >> (2 * i - 4)) & V_SET1I(0x30303030);
        }
        break;
    }
    default:
        break;
    }
}

INLINE bool has_min(dtype type) {
    return type == DTYPE_Q4_1 || type == DTYPE_Q5_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K;
}

/* log2 of the offset of the bytes, -1: none. */
INLINE int offset_of(dtype type) {
    return type == DTYPE_Q8_0   ? 7
           : type == DTYPE_Q4_0 ? 3
           : type == DTYPE_Q5_0 ? 4
           : type == DTYPE_Q6_K ? 5
                                : -1;
}

/* The block's weights as float32, column by column. */
INLINE void to_f32(dtype type, const block *w, vf *f) {
    const vi offset = V_SET1I(offset_of(type) < 0 ? 0 : 1 << offset_of(type));
    UNROLL for (int k = 0; k < BLOCK; k++) {
        vi q = ((w->words[k / 4] >> (8 * (k % 4))) & V_SET1I(255)) - offset;
        vf v = w->d[type == DTYPE_Q6_K ? k / 16 : 0] * to_float(q);
        f[k] = has_min(type) ? v + w->m : v;
    }
}

INLINE void float_block(dtype type, const uint8_t *u, int half, vf *f) {
    UNROLL for (int k = 0; k < BLOCK; k++) {
        size_t at = k * PANEL + half * LANES;
        f[k] = type == DTYPE_F32   ? load_f(u + 4 * at)
               : type == DTYPE_F16 ? V_F16((const uint16_t *)u + at)
                                   : bf16_to_float(u + 2 * at);
    }
}

/* ---- Products ----------------------------------------------------------------------------------
 */

/* acc + this block of one column, given the exact sums of its halves (`high` only of q6_K). */
INLINE vf add_sums(dtype type, const block *w, const activations *x, size_t at, vi low, vi high,
                   vf acc) {
    vf scale = V_SET1F(x->scale[at]);
    if (type == DTYPE_Q6_K) {
        vf both = V_FMA(to_float(high), w->d[1], to_float(low) * w->d[0]);
        return V_FMA(both, scale, acc);
    }
    acc = V_FMA(to_float(low), w->d[0] * scale, acc);
    return has_min(type) ? V_FMA(w->m, V_SET1F(x->scaled_sum[at]), acc) : acc;
}

/* acc += sum over the block's columns, for `n` (a constant) columns of x at x0, x0+32, ... */
INLINE void add_f32(const vf *f, const float *x0, int n, vf *acc) {
    vf t[4];
    UNROLL for (int c = 0; c < n; c++) t[c] = V_SET1F(0.0f);
    UNROLL for (int k = 0; k < BLOCK; k++) UNROLL for (int c = 0; c < n; c++) t[c] =
        V_FMA(f[k], V_SET1F(x0[c * BLOCK + k]), t[c]);
    UNROLL for (int c = 0; c < n; c++) acc[c * HALVES] += t[c];
}

INLINE void add_quantized(dtype type, const block *w, const activations *x, size_t at, size_t n,
                          vf *acc);

/* One tile of up to 32 columns of one panel; acc [tile][HALVES]. */
INLINE void gemm_tile(dtype type, bool exact, const uint8_t *panel, size_t blocks,
                      const activations *x, size_t c0, size_t tile, vf *acc) {
    bool k_type = type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q6_K;
    size_t unit = packed_block_bytes(type);
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *u = panel + (k_type ? b / 8 : b) * unit;
        size_t at = b * x->n + c0;
        for (int half = 0; half < HALVES; half++) {
            block w;
            if (!is_float_type(type)) unpack(type, u, k_type ? (int)(b % 8) : 0, half, &w);
            if (!exact) {
                add_quantized(type, &w, x, at, tile, acc + half);
                continue;
            }
            vf f[BLOCK];
            if (is_float_type(type))
                float_block(type, u, half, f);
            else
                to_f32(type, &w, f);
            const float *columns = x->f + at * BLOCK;
            size_t c = 0;
            for (; c + 4 <= tile; c += 4)
                add_f32(f, columns + c * BLOCK, 4, acc + c * HALVES + half);
            for (; c < tile; c++)
                add_f32(f, columns + c * BLOCK, 1, acc + c * HALVES + half);
        }
    }
}

/* acc (+ bias) to rows [r0, r0 + PANEL) of column c; a short last panel goes element by element. */
INLINE void finish(const matrix *w, size_t r0, const vf *acc, float *y, gemm_mode mode) {
    if (r0 + PANEL <= w->rows) {
        for (int h = 0; h < HALVES; h++) {
            vf v = acc[h];
            if (w->bias) v += load_f(w->bias + r0 + h * LANES);
            float *out = y + r0 + h * LANES;
            store_f(out, mode == GEMM_ADD ? load_f(out) + v : v);
        }
        return;
    }
    float lanes[PANEL];
    memcpy(lanes, acc, sizeof lanes);
    for (size_t r = r0; r < w->rows; r++) {
        float v = w->bias ? lanes[r - r0] + w->bias[r] : lanes[r - r0];
        y[r] = mode == GEMM_ADD ? y[r] + v : v;
    }
}

INLINE void gemm_of(dtype type, bool exact, const matrix *w, size_t p0, size_t p1,
                    const activations *x, float *y, size_t ldy, gemm_mode mode) {
    size_t blocks = (w->cols + BLOCK - 1) / BLOCK;
    for (size_t p = p0; p < p1; p++) {
        const uint8_t *panel = w->data + p * w->panel_bytes;
        for (size_t c0 = 0; c0 < x->n; c0 += TILE) {
            size_t tile = min_size(TILE, x->n - c0);
            vf acc[TILE * HALVES];
            memset(acc, 0, tile * HALVES * sizeof(vf));
            gemm_tile(type, exact, panel, blocks, x, c0, tile, acc);
            for (size_t c = 0; c < tile; c++)
                finish(w, p * PANEL, acc + c * HALVES, y + (c0 + c) * ldy, mode);
        }
    }
}

static void gemm(const matrix *w, size_t p0, size_t p1, const activations *x, float *y, size_t ldy,
                 gemm_mode mode) {
#define CASE(T)                                                                                    \
    case T:                                                                                        \
        if (reads_f32(T, x))                                                                       \
            gemm_of(T, true, w, p0, p1, x, y, ldy, mode);                                          \
        else                                                                                       \
            gemm_of(T, false, w, p0, p1, x, y, ldy, mode);                                         \
        break
    switch (w->type) {
    case DTYPE_F32:
        gemm_of(DTYPE_F32, true, w, p0, p1, x, y, ldy, mode);
        break;
    case DTYPE_F16:
        gemm_of(DTYPE_F16, true, w, p0, p1, x, y, ldy, mode);
        break;
    case DTYPE_BF16:
        gemm_of(DTYPE_BF16, true, w, p0, p1, x, y, ldy, mode);
        break;
        CASE(DTYPE_Q8_0);
        CASE(DTYPE_Q4_0);
        CASE(DTYPE_Q4_1);
        CASE(DTYPE_Q5_0);
        CASE(DTYPE_Q5_1);
        CASE(DTYPE_Q4_K);
        CASE(DTYPE_Q5_K);
        CASE(DTYPE_Q6_K);
    }
#undef CASE
}

const kernels TABLE = {
    .name = NAME,
    .gemm = gemm,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .silu_mul = silu_mul,
    .gelu = gelu,
    .to_f16 = to_f16,
    .exp_shifted = exp_shifted,
    .add_rows = add_rows,
    .add_outer = add_outer,
    .l2_norm = l2_norm,
    .sigmoid_mul = sigmoid_mul,
    .short_conv = short_conv,
    .delta_step = delta_step,
    .attend = attend,
};
