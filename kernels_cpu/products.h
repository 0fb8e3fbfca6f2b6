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
 * d (byte - 2^offset_of) + m. */
typedef struct {
    vi words[BLOCK / 4];
    vf d[2], m;
} block;

/* Six-bit scales and minima of the 8 blocks of a q4_K or q5_K unit, a byte for each row. */
typedef struct {
    uint8_t scale[8][PANEL], min[8][PANEL];
} k_scales;

/* Four rows of ggml's 12 bytes at a time: 0-3 have scales and the high bits of scales 4-7, 4-7 the
 * same of minima, 8-11 the low bits of both. */
INLINE void unpack_scales(const uint8_t *bytes, k_scales *out) {
    const vi low6 = V_SET1I(0x3f3f3f3f), low4 = V_SET1I(0x0f0f0f0f), low2 = V_SET1I(0x03030303);
    UNROLL for (size_t i = 0; i < 4 * PANEL / sizeof(vi); i++) {
        vi s = load_i(bytes + i * sizeof(vi)), m = load_i(bytes + 4 * PANEL + i * sizeof(vi));
        vi both = load_i(bytes + 8 * PANEL + i * sizeof(vi));
        vi scale[2] = {s & low6, (both & low4) | ((s >> 6) & low2) << 4};
        vi min[2] = {m & low6, ((both >> 4) & low4) | ((m >> 6) & low2) << 4};
        for (int h = 0; h < 2; h++) {
            memcpy(out->scale[4 * h] + i * sizeof(vi), &scale[h], sizeof(vi));
            memcpy(out->min[4 * h] + i * sizeof(vi), &min[h], sizeof(vi));
        }
    }
}

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

INLINE bool is_k_type(dtype type) {
    return type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q6_K;
}

/* Block j of a unit of a quantized type (j = 0 but for the K types); `type` is a constant. */
INLINE void unpack(dtype type, const uint8_t *u, const k_scales *k, int j, int half, block *o) {
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
        const uint8_t *body = u + 256 + j * (type == DTYPE_Q4_K ? 256 : 320);
        o->d[0] = o->d[0] * to_float(V_U8(k->scale[j] + half * LANES));
        o->m = -(scale_f16(u + 32, half) * to_float(V_U8(k->min[j] + half * LANES)));
        unpack_nibbles(body, half, o->words);
        if (type == DTYPE_Q5_K) add_high_bits(body + 256, half, o->words);
        break;
    }
    case DTYPE_Q6_K: {
        const uint8_t *s = u + 32 + 2 * j * PANEL + half * LANES, *body = u + 288 + j * 384;
        vf d = o->d[0];
        o->d[0] = d * to_float(V_I8(s));
        o->d[1] = d * to_float(V_I8(s + PANEL));
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

/* log2 of the offset of the bytes, -1: none. */
INLINE int offset_of(dtype type) {
    return type == DTYPE_Q8_0   ? 7
           : type == DTYPE_Q4_0 ? 3
           : type == DTYPE_Q5_0 ? 4
           : type == DTYPE_Q6_K ? 5
                                : -1;
}

/* What a block's exact sums are multiplied with. */
typedef enum { ONE_SCALE, SCALE_AND_MIN, SCALE_PER_HALF } block_form;

INLINE block_form form_of(dtype type) {
    return type == DTYPE_Q6_K ? SCALE_PER_HALF : offset_of(type) < 0 ? SCALE_AND_MIN : ONE_SCALE;
}

/* Column k of a block of a float type as float32. */
INLINE vf float_column(dtype type, const uint8_t *u, int half, int k) {
    size_t at = k * PANEL + half * LANES;
    if (type == DTYPE_F32) return load_f(u + 4 * at);
    if (type == DTYPE_F16) return V_F16((const uint16_t *)u + at);
    vi v = load_i(u + k / 2 * PANEL * 4 + half * sizeof(vi)); /* bf16: the even column is low */
    return (vf)(k % 2 ? v & V_SET1I((int32_t)0xffff0000) : v << 16);
}

/* A block of a quantized type as float32. */
INLINE void to_f32(dtype type, const block *w, float *f) {
    const vi offset = V_SET1I(offset_of(type) < 0 ? 0 : 1 << offset_of(type));
    for (int k = 0; k < BLOCK; k++) {
        vi q = ((w->words[k / 4] >> (8 * (k % 4))) & V_SET1I(255)) - offset;
        vf v = w->d[type == DTYPE_Q6_K ? k / 16 : 0] * to_float(q);
        store_f(f + k * PANEL, form_of(type) == SCALE_AND_MIN ? v + w->m : v);
    }
}

/* ---- Products ----------------------------------------------------------------------------------
 */

/* acc + this block of one column, given the exact sums of its halves (`high` only if they have
 * scales of their own). */
INLINE vf add_sums(block_form form, const block *w, const activations *x, size_t at, vi low,
                   vi high, vf acc) {
    vf scale = V_SET1F(x->scale[at]);
    if (form == SCALE_PER_HALF) {
        vf both = V_FMA(to_float(high), w->d[1], to_float(low) * w->d[0]);
        return V_FMA(both, scale, acc);
    }
    acc = V_FMA(to_float(low), w->d[0] * scale, acc);
    return form == SCALE_AND_MIN ? V_FMA(w->m, V_SET1F(x->scaled_sum[at]), acc) : acc;
}

/* A block of a float type, in the form it is packed in, and what it is multiplied with. */
typedef struct {
    const uint8_t *u;
    size_t next; /* bytes to the block of the next strip */
    int half;
    const float *x; /* floats, or pairs of bf16: of BLOCK columns each */
} float_block;

/* sum[p][s][c] += columns 16p + i, 16p + i + 1 of block s times those of column c of x, the odd
 * ones first; `pairs`: x is pairs of bf16. */
INLINE void add_pair(dtype type, bool pairs, const float_block *b, int strips, const float *x,
                     int n, int i, vf (*sum)[STRIPS][FLOAT_COLUMNS]) {
    const size_t row = pairs ? BLOCK / 2 : BLOCK;
    UNROLL for (int p = 0; p < 2; p++) UNROLL for (int odd = 1; odd >= (pairs ? 1 : 0); odd--) {
        int k = p * BLOCK / 2 + i;
        vf w[STRIPS];
        UNROLL for (int s = 0; s < strips; s++) w[s] =
            pairs ? load_f(b->u + s * b->next + k * PANEL * 2 + b->half * sizeof(vf))
                  : float_column(type, b->u + s * b->next, b->half, k + odd);
        UNROLL for (int c = 0; c < n; c++) {
            vf v = V_SET1F(x[c * row + (pairs ? k / 2 : k + odd)]);
            UNROLL for (int s = 0; s < strips; s++) sum[p][s][c] =
                pairs ? V_DOT_BF16(w[s], v, sum[p][s][c]) : V_FMA(w[s], v, sum[p][s][c]);
        }
    }
}

/* acc[s][c] += block s times column c of x, for `strips` blocks and `n` columns (constants): a sum
 * for each half of the block. */
INLINE void add_columns_f32(dtype type, bool pairs, const float_block *b, int strips, size_t c0,
                            int n, vf (*acc)[TILE * HALVES]) {
    const float *x = b->x + c0 * (pairs ? BLOCK / 2 : BLOCK);
    vf sum[2][STRIPS][FLOAT_COLUMNS];
    UNROLL for (int p = 0; p < 2; p++) UNROLL for (int s = 0; s < strips; s++)
        UNROLL for (int c = 0; c < n; c++) sum[p][s][c] = V_SET1F(0.0f);
    if (n == 1)
        UNROLL for (int i = 0; i < BLOCK / 2; i += 2)
            add_pair(type, pairs, b, strips, x, n, i, sum);
    else
        _Pragma("GCC unroll 4") for (int i = 0; i < BLOCK / 2; i += 2)
            add_pair(type, pairs, b, strips, x, n, i, sum);
    UNROLL for (int s = 0; s < strips; s++) UNROLL for (int c = 0; c < n; c++) {
        vf *to = acc[s] + (c0 + c) * HALVES;
        *to = (*to + sum[0][s][c]) + sum[1][s][c];
    }
}

INLINE void add_floats_of(dtype type, bool pairs, const float_block *b, int strips, size_t n,
                          vf (*acc)[TILE * HALVES]) {
    size_t c = 0;
    for (; c + FLOAT_COLUMNS <= n; c += FLOAT_COLUMNS)
        add_columns_f32(type, pairs, b, strips, c, FLOAT_COLUMNS, acc);
    for (; FLOAT_COLUMNS > 4 && c + 4 <= n; c += 4)
        add_columns_f32(type, pairs, b, strips, c, 4, acc);
    for (; c + 2 <= n; c += 2)
        add_columns_f32(type, pairs, b, strips, c, 2, acc);
    for (; c < n; c++)
        add_columns_f32(type, pairs, b, strips, c, 1, acc);
}

/* Many columns; not once for every matrix type that is unpacked to float32. */
static __attribute__((noinline)) void add_floats(dtype type, bool pairs, const float_block *b,
                                                 int strips, size_t n, vf (*acc)[TILE * HALVES]) {
#define ADD(T, PAIRS)                                                                              \
    do {                                                                                           \
        if (STRIPS == 1 || strips == 1)                                                            \
            add_floats_of(T, PAIRS, b, 1, n, acc);                                                 \
        else                                                                                       \
            add_floats_of(T, PAIRS, b, STRIPS, n, acc);                                            \
    } while (0)
    if (BF16_PAIRS && pairs)
        ADD(DTYPE_BF16, BF16_PAIRS);
    else if (type == DTYPE_BF16)
        ADD(DTYPE_BF16, false);
    else if (type == DTYPE_F16)
        ADD(DTYPE_F16, false);
    else
        ADD(DTYPE_F32, false);
#undef ADD
}

/* acc[s][c] += block s times column at + c of x, for `strips` (a constant) blocks and `n` columns,
 * less than FEW if `few`; `offset` as offset_of gives it. */
INLINE void add_quantized(block_form form, int offset, const block *w, int strips,
                          const activations *x, size_t at, size_t n, bool few,
                          vf (*acc)[TILE * HALVES]);

/* The same for many columns; not once for every type. */
#define ADD_MANY(NAME, FORM, N)                                                                    \
    static __attribute__((noinline)) void NAME(int offset, const block *w, const activations *x,   \
                                               size_t at, size_t n, vf(*acc)[TILE * HALVES]) {     \
        add_quantized(FORM, offset, w, N, x, at, n, false, acc);                                   \
    }
ADD_MANY(add_plain, ONE_SCALE, 1)
ADD_MANY(add_with_min, SCALE_AND_MIN, 1)
ADD_MANY(add_halves, SCALE_PER_HALF, 1)
#if STRIPS > 1
ADD_MANY(add_plain_strips, ONE_SCALE, STRIPS)
ADD_MANY(add_with_min_strips, SCALE_AND_MIN, STRIPS)
ADD_MANY(add_halves_strips, SCALE_PER_HALF, STRIPS)
#else
#define add_plain_strips add_plain
#define add_with_min_strips add_with_min
#define add_halves_strips add_halves
#endif

INLINE void add_many(dtype type, const block *w, int strips, const activations *x, size_t at,
                     size_t n, vf (*acc)[TILE * HALVES]) {
    int offset = offset_of(type);
    switch (form_of(type)) {
    case ONE_SCALE:
        (strips > 1 ? add_plain_strips : add_plain)(offset, w, x, at, n, acc);
        break;
    case SCALE_AND_MIN:
        (strips > 1 ? add_with_min_strips : add_with_min)(offset, w, x, at, n, acc);
        break;
    case SCALE_PER_HALF:
        (strips > 1 ? add_halves_strips : add_halves)(offset, w, x, at, n, acc);
        break;
    }
}

enum {
    FEW = 4, /* fewer columns wait for memory, more for arithmetic */
    /* bytes from a block to the one that is fetched meanwhile, as measured */
    AHEAD = 8192,
    AHEAD_FLOATS = 6144
};

INLINE void fetch(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(p + i);
}

/* acc = one tile of up to TILE columns of `strips` (a constant) panels from `panel` on; `few` (a
 * constant): of less than FEW, and then `tile` is a constant too and acc stays in registers. */
INLINE void gemm_tile(dtype type, bool exact, const matrix *w, const uint8_t *panel, int strips,
                      bool few, const activations *x, size_t c0, size_t tile,
                      vf (*acc)[TILE * HALVES]) {
    const bool pairs = BF16_PAIRS && type == DTYPE_BF16 && !exact;
    const float *f = floats_for(type, x);
    size_t unit = packed_block_bytes(type), blocks = (w->cols + BLOCK - 1) / BLOCK;
    /* with strips, the same block of the next ones */
    size_t ahead = strips > 1            ? STRIPS * w->panel_bytes
                   : is_float_type(type) ? AHEAD_FLOATS
                                         : AHEAD;
    k_scales scales[STRIPS];
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *u = panel + (is_k_type(type) ? b / 8 : b) * unit;
        int j = is_k_type(type) ? (int)(b % 8) : 0;
        size_t at = b * x->n + c0;
        if (!c0 && !j)
            UNROLL for (int s = 0; s < strips; s++) fetch(u + s * w->panel_bytes + ahead, unit);
        if ((type == DTYPE_Q4_K || type == DTYPE_Q5_K) && !j)
            UNROLL for (int s = 0; s < strips; s++)
                unpack_scales(u + s * w->panel_bytes + 64, &scales[s]);
        UNROLL for (int half = 0; half < HALVES; half++) {
            vf(*to)[TILE * HALVES] = (vf(*)[TILE * HALVES])(acc[0] + half);
            if (is_float_type(type)) {
                float_block block = {u, w->panel_bytes, half, f + at * BLOCK / (pairs ? 2 : 1)};
                if (few)
                    add_columns_f32(type, pairs, &block, 1, 0, (int)tile, to);
                else
                    add_floats(type, pairs, &block, strips, tile, to);
                continue;
            }
            block blocks_of[STRIPS];
            UNROLL for (int s = 0; s < strips; s++)
                unpack(type, u + s * w->panel_bytes, &scales[s], j, half, &blocks_of[s]);
            if (exact) {
                float unpacked[BLOCK * PANEL];
                to_f32(type, &blocks_of[0], unpacked);
                float_block block = {(const uint8_t *)unpacked, 0, 0, f + at * BLOCK};
                add_floats(DTYPE_F32, false, &block, 1, tile, to);
            } else if (few) {
                add_quantized(form_of(type), offset_of(type), blocks_of, 1, x, at, tile, true, to);
            } else {
                add_many(type, blocks_of, strips, x, at, tile, to);
            }
        }
    }
}

/* acc [n][HALVES] (+ bias) to rows [r0, r0 + PANEL) of n columns; a short last panel goes element
 * by element. */
static __attribute__((noinline)) void finish(const matrix *w, size_t r0, const vf *acc, size_t n,
                                             float *y, size_t ldy, gemm_mode mode) {
    size_t rows = min_size(PANEL, w->rows - r0);
    for (size_t c = 0; c < n; c++) {
        float *out = y + c * ldy + r0;
        for (int h = 0; h < HALVES; h++) {
            vf v = acc[c * HALVES + h];
            float lanes[LANES];
            size_t from = h * LANES;
            if (rows == PANEL) {
                if (w->bias) v += load_f(w->bias + r0 + from);
                store_f(out + from, mode == GEMM_ADD ? load_f(out + from) + v : v);
                continue;
            }
            memcpy(lanes, &v, sizeof v);
            for (size_t r = from; r < min_size(rows, from + LANES); r++) {
                float one = w->bias ? lanes[r - from] + w->bias[r0 + r] : lanes[r - from];
                out[r] = mode == GEMM_ADD ? out[r] + one : one;
            }
        }
    }
}

/* Panels [p0, p1) times `n` (a constant) columns. */
INLINE void gemm_few(dtype type, bool exact, const matrix *w, size_t p0, size_t p1, size_t n,
                     const activations *x, float *y, size_t ldy, gemm_mode mode) {
    for (size_t p = p0; p < p1; p++) {
        vf acc[1][TILE * HALVES], out[FEW * HALVES];
        UNROLL for (size_t i = 0; i < n * HALVES; i++) acc[0][i] = V_SET1F(0.0f);
        gemm_tile(type, exact, w, w->data + p * w->panel_bytes, 1, true, x, 0, n, acc);
        UNROLL for (size_t i = 0; i < n * HALVES; i++) out[i] = acc[0][i];
        finish(w, p * PANEL, out, n, y, ldy, mode);
    }
}

INLINE void gemm_panels(dtype type, bool exact, const matrix *w, size_t p, int strips,
                        const activations *x, float *y, size_t ldy, gemm_mode mode) {
    vf acc[STRIPS][TILE * HALVES];
    for (size_t c0 = 0; c0 < x->n; c0 += TILE) {
        size_t tile = min_size(TILE, x->n - c0);
        for (int s = 0; s < strips; s++)
            memset(acc[s], 0, tile * HALVES * sizeof(vf));
        gemm_tile(type, exact, w, w->data + p * w->panel_bytes, strips, false, x, c0, tile, acc);
        for (int s = 0; s < strips; s++)
            finish(w, (p + s) * PANEL, acc[s], tile, y + c0 * ldy, ldy, mode);
    }
}

INLINE void gemm_of(dtype type, bool exact, const matrix *w, size_t p0, size_t p1,
                    const activations *x, float *y, size_t ldy, gemm_mode mode) {
    size_t p = p0;
    switch (x->n) {
    case 1:
        gemm_few(type, exact, w, p0, p1, 1, x, y, ldy, mode);
        return;
    case 2:
        gemm_few(type, exact, w, p0, p1, 2, x, y, ldy, mode);
        return;
    case 3:
        gemm_few(type, exact, w, p0, p1, 3, x, y, ldy, mode);
        return;
    }
    if (STRIPS > 1 && (!exact || is_float_type(type)))
        for (; p + STRIPS <= p1; p += STRIPS)
            gemm_panels(type, exact, w, p, STRIPS, x, y, ldy, mode);
    for (; p < p1; p++)
        gemm_panels(type, exact, w, p, 1, x, y, ldy, mode);
}

static void gemm(const matrix *w, size_t p0, size_t p1, const activations *x, float *y, size_t ldy,
                 gemm_mode mode) {
#define CASE(T)                                                                                    \
    case T:                                                                                        \
        if (floats_for(T, x))                                                                      \
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
        if (BF16_PAIRS && x->rounded)
            gemm_of(DTYPE_BF16, !BF16_PAIRS, w, p0, p1, x, y, ldy, mode);
        else
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
    .softmax = softmax,
    .add_rows = add_rows,
    .add_outer = add_outer,
    .l2_norm = l2_norm,
    .sigmoid_mul = sigmoid_mul,
    .short_conv = short_conv,
    .delta_step = delta_step,
    .attend = attend,
};
