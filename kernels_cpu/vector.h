/* The loops shared by the vector instruction sets. An including file defines
 *
 *   LANES              floats in a vector (8 or 16); vf, vi, vs: vectors of float, int32, int16
 *   V_SET1F V_SET1I    one number in every lane
 *   V_FMA V_MAX        a*b+c with one rounding; max(a, b) that gives b if either is NaN
 *   V_DOT(acc, a, b)   acc + a.even*b.even + a.odd*b.odd over int16 pairs, in int32
 *   V_F16(p)           LANES float16 to float;  V_STORE_F16(p, v) back, nearest even
 *   V_ROUND(v)         to int32, nearest even;  V_ABS V_SQRT as named
 *   QUERIES            queries of one attention tile that fit the registers
 *   TABLE, NAME        the kernels this file provides
 *
 * Each loop does, lane by lane, the steps that generic.c does for one number: read that first. */
#include "exp.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
enum { HALVES = PANEL / LANES, TILE = 32 };

INLINE vf load_f(const void *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE vi load_i(const void *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store_f(float *p, vf v) {
    memcpy(p, &v, sizeof v);
}

INLINE vf to_float(vi v) {
    return __builtin_convertvector(v, vf);
}

INLINE vf select_f(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

INLINE vf bytes_to_float(const int8_t *p) {
    typedef int8_t vb __attribute__((vector_size(LANES)));
    vb v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vf);
}

INLINE vf bf16_to_float(const void *p) {
    typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
    vh v;
    memcpy(&v, p, sizeof v);
    return (vf)(__builtin_convertvector(v, vi) << 16);
}

/* A 32-bit pattern from memory in every lane: two neighbouring int16 activations. */
INLINE vi pair(const int16_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return V_SET1I(v);
}

INLINE vf exp_v(vf x) {
    const vf magic = V_SET1F(12582912.0f);
    vi low = x < V_SET1F(-87.0f);
    vf clamped = select_f(low, V_SET1F(-87.0f), x);
    clamped = select_f(clamped > V_SET1F(88.0f), V_SET1F(88.0f), clamped);
    vf shifted = V_FMA(clamped, V_SET1F(1.44269504f), magic);
    vf n = shifted - magic;
    vf r = V_FMA(n, V_SET1F(-0.693145752f), clamped);
    r = V_FMA(n, V_SET1F(-1.42860677e-6f), r);
    vf p = V_SET1F(1.0f / 5040);
    p = V_FMA(p, r, V_SET1F(1.0f / 720));
    p = V_FMA(p, r, V_SET1F(1.0f / 120));
    p = V_FMA(p, r, V_SET1F(1.0f / 24));
    p = V_FMA(p, r, V_SET1F(1.0f / 6));
    p = V_FMA(p, r, V_SET1F(0.5f));
    p = V_FMA(p, r, V_SET1F(1.0f));
    p = V_FMA(p, r, V_SET1F(1.0f));
    p = (vf)((vi)p + ((vi)shifted << 23));
    return select_f(low, V_SET1F(0.0f), p);
}

INLINE float fold(const vf lanes[HALVES]) {
    float s[16];
    memcpy(s, lanes, sizeof s);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
}

/* ---- Matrix products ---------------------------------------------------------------------------
 */

/* One block of 32 columns of LANES rows: int16 pairs, and w = d*q + m. */
typedef struct {
    vi pairs[BLOCK / 2];
    vf d[2], m;
} block;

INLINE void unpack_nibbles(const uint8_t *nibbles, int half, vi *pairs) {
    const vi mask = V_SET1I(0x000f000f);
    UNROLL for (int j = 0; j < 4; j++) {
        vi v = load_i(nibbles + j * PANEL * 4 + half * sizeof(vi));
        pairs[4 * j] = v & mask;
        pairs[4 * j + 1] = (v >> 4) & mask;
        pairs[4 * j + 2] = (v >> 8) & mask;
        pairs[4 * j + 3] = (v >> 12) & mask;
    }
}

INLINE void subtract(vi *pairs, int16_t offset) {
    const vi both = V_SET1I((int32_t)((uint32_t)(uint16_t)offset << 16 | (uint16_t)offset));
    UNROLL for (int p = 0; p < BLOCK / 2; p++) pairs[p] = (vi)((vs)pairs[p] - (vs)both);
}

INLINE void add_high_bits(const uint8_t *high, int half, vi *pairs) {
    vi v = load_i(high + half * sizeof(vi));
    const vi mask = V_SET1I(0x00100010);
    UNROLL for (int p = 0; p < BLOCK / 2; p++) pairs[p] |=
        (p < 4 ? v << (4 - p) : v >> (p - 4)) & mask;
}

INLINE vf scale_f16(const uint8_t *p, int half) {
    return V_F16((const uint16_t *)p + half * LANES);
}

/* LANES bytes at p as int32. */
INLINE vi widen(const uint8_t *p) {
    typedef uint8_t vb __attribute__((vector_size(LANES)));
    vb v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vi);
}

/* Block j of a unit of a quantized type (j = 0 but for the K types); `type` is a constant. */
INLINE void unpack(dtype type, const uint8_t *u, int j, int half, block *o) {
    o->d[0] = scale_f16(u, half);
    switch (type) {
    case DTYPE_Q8_0:
        UNROLL for (int w = 0; w < 8; w++) {
            vs v = (vs)load_i(u + 32 + w * PANEL * 4 + half * sizeof(vi));
            o->pairs[2 * w] = (vi)((v << 8) >> 8);
            o->pairs[2 * w + 1] = (vi)(v >> 8);
        }
        break;
    case DTYPE_Q4_0:
        unpack_nibbles(u + 32, half, o->pairs);
        subtract(o->pairs, 8);
        break;
    case DTYPE_Q4_1:
        o->m = scale_f16(u + 32, half);
        unpack_nibbles(u + 64, half, o->pairs);
        break;
    case DTYPE_Q5_0:
        unpack_nibbles(u + 32, half, o->pairs);
        add_high_bits(u + 288, half, o->pairs);
        subtract(o->pairs, 16);
        break;
    case DTYPE_Q5_1:
        o->m = scale_f16(u + 32, half);
        unpack_nibbles(u + 64, half, o->pairs);
        add_high_bits(u + 320, half, o->pairs);
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        const uint8_t *s = u + 64 + half * LANES;
        const uint8_t *body = u + 256 + j * (type == DTYPE_Q4_K ? 256 : 320);
        vi scale, min;
        if (j < 4) {
            scale = widen(s + j * PANEL) & 63;
            min = widen(s + (j + 4) * PANEL) & 63;
        } else {
            scale = (widen(s + (j + 4) * PANEL) & 15) | (widen(s + (j - 4) * PANEL) >> 6) << 4;
            min = widen(s + (j + 4) * PANEL) >> 4 | (widen(s + j * PANEL) >> 6) << 4;
        }
        o->d[0] = o->d[0] * to_float(scale);
        o->m = -(scale_f16(u + 32, half) * to_float(min));
        unpack_nibbles(body, half, o->pairs);
        if (type == DTYPE_Q5_K) add_high_bits(body + 256, half, o->pairs);
        break;
    }
    case DTYPE_Q6_K: {
        const int8_t *s = (const int8_t *)u + 32 + 2 * j * PANEL + half * LANES;
        const uint8_t *body = u + 288 + j * 384;
        vf d = o->d[0];
        o->d[0] = d * bytes_to_float(s);
        o->d[1] = d * bytes_to_float(s + PANEL);
        unpack_nibbles(body, half, o->pairs);
        UNROLL for (int p = 0; p < BLOCK / 2; p++) {
            vi v = load_i(body + 256 + p / 8 * PANEL * 4 + half * sizeof(vi));
            int i = p % 8; /* bits 2i, 2i+1 go to bits 4, 5 */
            o->pairs[p] |= (i < 2 ? v << (4 - 2 * i) : v >> (2 * i - 4)) & V_SET1I(0x00300030);
        }
        subtract(o->pairs, 32);
        break;
    }
    default:
        break;
    }
}

INLINE bool has_min(dtype type) {
    return type == DTYPE_Q4_1 || type == DTYPE_Q5_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K;
}

INLINE vi dot_pairs(const vi *pairs, const int16_t *q, int from, int to) {
    vi even = {0}, odd = {0};
    UNROLL for (int p = from; p < to; p += 2) {
        even = V_DOT(even, pairs[p], pair(q + 2 * p));
        odd = V_DOT(odd, pairs[p + 1], pair(q + 2 * p + 2));
    }
    return even + odd;
}

/* One column: acc + this block, 16-bit activations. */
INLINE vf add_i16(dtype type, const block *w, const activations *x, size_t at, vf acc) {
    const int16_t *q = x->q + at * BLOCK;
    vf scale = V_SET1F(x->scale[at]);
    if (type == DTYPE_Q6_K) {
        vf low = to_float(dot_pairs(w->pairs, q, 0, 8)) * w->d[0];
        vf both = V_FMA(to_float(dot_pairs(w->pairs, q, 8, 16)), w->d[1], low);
        return V_FMA(both, scale, acc);
    }
    acc = V_FMA(to_float(dot_pairs(w->pairs, q, 0, 16)), w->d[0] * scale, acc);
    return has_min(type) ? V_FMA(w->m, V_SET1F(x->scaled_sum[at]), acc) : acc;
}

/* The block's weights as float32, column by column. */
INLINE void to_f32(dtype type, const block *w, vf *f) {
    UNROLL for (int p = 0; p < BLOCK / 2; p++) {
        vf d = w->d[type == DTYPE_Q6_K ? p / 8 : 0];
        vf even = d * to_float((w->pairs[p] << 16) >> 16), odd = d * to_float(w->pairs[p] >> 16);
        f[2 * p] = has_min(type) ? even + w->m : even;
        f[2 * p + 1] = has_min(type) ? odd + w->m : odd;
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

/* acc[c] += sum over the block's columns, for `n` (a constant) columns of x at x0, x0+32, ... */
INLINE void add_f32(const vf *f, const float *x0, int n, vf *acc) {
    vf t[4];
    UNROLL for (int c = 0; c < n; c++) t[c] = V_SET1F(0.0f);
    UNROLL for (int k = 0; k < BLOCK; k++) UNROLL for (int c = 0; c < n; c++) t[c] =
        V_FMA(f[k], V_SET1F(x0[c * BLOCK + k]), t[c]);
    UNROLL for (int c = 0; c < n; c++) acc[c * HALVES] += t[c];
}

/* One tile of up to 32 columns of one panel; acc [tile][HALVES]. */
INLINE void gemm_tile(dtype type, bool exact, const uint8_t *panel, size_t blocks,
                      const activations *x, size_t c0, size_t tile, vf *acc) {
    bool k_type = type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q6_K;
    size_t unit = packed_block_bytes(type);
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *u = panel + (k_type ? b / 8 : b) * unit;
        for (int half = 0; half < HALVES; half++) {
            block w;
            if (!is_float_type(type)) unpack(type, u, k_type ? (int)(b % 8) : 0, half, &w);
            if (!exact) {
                for (size_t c = 0; c < tile; c++)
                    acc[c * HALVES + half] =
                        add_i16(type, &w, x, b * x->n + c0 + c, acc[c * HALVES + half]);
                continue;
            }
            vf f[BLOCK];
            if (is_float_type(type))
                float_block(type, u, half, f);
            else
                to_f32(type, &w, f);
            const float *columns = x->f + (b * x->n + c0) * BLOCK;
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

/* ---- Row kernels -------------------------------------------------------------------------------
 */

/* Calls body with `i` over whole vectors of n floats; what remains is copied to a padded buffer. */
#define FOR_VECTORS(n, i) for (size_t i = 0; i + 16 <= (n); i += 16)

/* The last n % 16 floats of x, zero-padded to 16. */
INLINE void tail(const float *x, size_t n, float *out) {
    memset(out, 0, 16 * sizeof(float));
    memcpy(out, x + n / 16 * 16, n % 16 * sizeof(float));
}

static void quantize(const activations *a, size_t c, const float *x, size_t b0, size_t b1,
                     float limit) {
    for (size_t b = b0; b < b1; b++) {
        size_t at = b * a->n + c;
        float padded[BLOCK] = {0};
        const float *src = x + b * BLOCK;
        if ((b + 1) * BLOCK > a->cols) {
            memcpy(padded, src, (a->cols - b * BLOCK) * sizeof(float));
            src = padded;
        }
        if (a->f) memcpy(a->f + at * BLOCK, src, BLOCK * sizeof(float));
        if (!a->q) continue;
        vf v[BLOCK / LANES], most = V_SET1F(0.0f), poison = most;
        UNROLL for (int i = 0; i < BLOCK / LANES; i++) {
            v[i] = load_f(src + i * LANES);
            most = V_MAX(V_ABS(v[i]), most);
            poison = V_FMA(v[i], V_SET1F(0.0f), poison);
        }
        float lane_max[LANES], lane_poison[LANES], max = 0, bad = 0;
        memcpy(lane_max, &most, sizeof most);
        memcpy(lane_poison, &poison, sizeof poison);
        for (int i = 0; i < LANES; i++) {
            max = lane_max[i] > max ? lane_max[i] : max;
            bad += lane_poison[i];
        }
        bool zero = max < 1e-30f || bad != 0;
        float scale = max < 1e-30f ? 0.0f : max / limit;
        vf inverse = V_SET1F(zero ? 0.0f : limit / max), top = V_SET1F(limit);
        vi sums = {0};
        int16_t *q = a->q + at * BLOCK;
        UNROLL for (int i = 0; i < BLOCK / LANES; i++) {
            vf r = v[i] * inverse;
            r = select_f(r > top, top, r);
            r = select_f(r < -top, -top, r);
            vi n = bad == 0 ? V_ROUND(r) : V_SET1I(0);
            sums += n;
            typedef int16_t vh __attribute__((vector_size(2 * LANES)));
            vh h = __builtin_convertvector(n, vh);
            memcpy(q + i * LANES, &h, sizeof h);
        }
        int32_t sum = 0;
        for (int i = 0; i < LANES; i++)
            sum += sums[i];
        a->scale[at] = scale + bad;
        a->scaled_sum[at] = a->scale[at] * (float)sum;
    }
}

INLINE float sum_squares(const float *x, size_t n) {
    vf lanes[HALVES];
    float rest[16];
    memset(lanes, 0, sizeof lanes);
    FOR_VECTORS(n, i) for (int h = 0; h < HALVES; h++) {
        vf v = load_f(x + i + h * LANES);
        lanes[h] = V_FMA(v, v, lanes[h]);
    }
    tail(x, n, rest);
    for (int h = 0; h < HALVES; h++) {
        vf v = load_f(rest + h * LANES);
        lanes[h] = V_FMA(v, v, lanes[h]);
    }
    return fold(lanes);
}

static void rms_norm(float *out, const float *x, const float *w, size_t n, float eps) {
    float scale = 1.0f / sqrtf(sum_squares(x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale * w[i];
}

static void l2_norm(float *out, const float *x, size_t n, float eps, float scale) {
    float factor = scale / sqrtf(sum_squares(x, n) + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * factor;
}

static void layer_norm(float *out, const float *x, const float *w, const float *b, size_t n,
                       float eps) {
    kernels_generic.layer_norm(out, x, w, b, n, eps);
}

static void silu_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    const vf one = V_SET1F(1.0f);
    for (; i + LANES <= n; i += LANES) {
        vf g = load_f(gate + i);
        store_f(gate + i, g / (one + exp_v(-g)) * load_f(up + i));
    }
    kernels_generic.silu_mul(gate + i, up + i, n - i);
}

static void sigmoid_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    const vf one = V_SET1F(1.0f);
    for (; i + LANES <= n; i += LANES)
        store_f(gate + i, load_f(up + i) / (one + exp_v(-load_f(gate + i))));
    kernels_generic.sigmoid_mul(gate + i, up + i, n - i);
}

static void gelu(float *x, size_t n) {
    size_t i = 0;
    const vf one = V_SET1F(1.0f);
    for (; i + LANES <= n; i += LANES) {
        vf v = load_f(x + i);
        vf u = v * V_FMA(v * v, V_SET1F(0.0713548163f), V_SET1F(1.59576912f));
        store_f(x + i, v / (one + exp_v(-u)));
    }
    kernels_generic.gelu(x + i, n - i);
}

static void to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        V_STORE_F16(out + i, load_f(x + i));
    kernels_generic.to_f16(out + i, x + i, n - i);
}

/* ---- Attention over one page -------------------------------------------------------------------
 */

INLINE vf load_kv(kv_kind kind, const void *p, size_t i) {
    return kind == KV_F16   ? V_F16((const uint16_t *)p + i)
           : kind == KV_F32 ? load_f((const float *)p + i)
                            : bytes_to_float((const int8_t *)p + i);
}

/* Scores of n queries against positions [at, at + 32) of the page, to s [n][PAGE]. */
INLINE void scores(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                   int n, int at, float (*s)[PAGE]) {
    enum { V = BLOCK / LANES };
    vf sum[QUERIES][V], t[QUERIES][V];
    UNROLL for (int c = 0; c < n; c++) UNROLL for (int i = 0; i < V; i++) sum[c][i] = t[c][i] =
        V_SET1F(0.0f);
    for (int d0 = 0; d0 < head_dim; d0 += BLOCK) {
        int end = d0 + BLOCK < head_dim ? d0 + BLOCK : head_dim;
        for (int d = d0; d < end; d++) {
            vf k[V];
            UNROLL for (int i = 0; i < V; i++) k[i] =
                load_kv(kind, page->k, (size_t)d * PAGE + at + i * LANES);
            UNROLL for (int c = 0; c < n; c++) {
                vf q = V_SET1F(queries[c].q[d]);
                UNROLL for (int i = 0; i < V; i++) t[c][i] = V_FMA(q, k[i], t[c][i]);
            }
        }
        if (kind != KV_Q8_0) continue;
        UNROLL for (int i = 0; i < V; i++) {
            vf scale = V_F16(page->kd + d0 / BLOCK * PAGE + at + i * LANES);
            UNROLL for (int c = 0; c < n; c++) {
                sum[c][i] = V_FMA(t[c][i], scale, sum[c][i]);
                t[c][i] = V_SET1F(0.0f);
            }
        }
    }
    UNROLL for (int c = 0; c < n; c++) UNROLL for (int i = 0; i < V; i++)
        store_f(s[c] + at + i * LANES, kind == KV_Q8_0 ? sum[c][i] : t[c][i]);
}

/* out += weights x V for `width` vectors of dimensions from d on. */
INLINE void values(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                   int n, int from, int to, int d, int width, const float *keep, float (*p)[PAGE]) {
    enum { V = BLOCK / LANES };
    size_t padded = round_up(head_dim, 16);
    vf o[QUERIES][V];
    UNROLL for (int c = 0; c < n; c++) UNROLL for (int i = 0; i < width; i++) o[c][i] =
        load_f(queries[c].out + d + i * LANES) * V_SET1F(keep[c]);
    for (int pos = from; pos < to; pos++) {
        vf v[V];
        UNROLL for (int i = 0; i < width; i++) v[i] =
            load_kv(kind, page->v, pos * padded + d + i * LANES);
        float scale = 1;
        if (kind == KV_Q8_0)
            scale = f16_to_f32(page->vd[(size_t)pos * (head_dim / BLOCK) + d / BLOCK]);
        UNROLL for (int c = 0; c < n; c++) {
            vf weight = V_SET1F(kind == KV_Q8_0 ? p[c][pos] * scale : p[c][pos]);
            UNROLL for (int i = 0; i < width; i++) o[c][i] = V_FMA(weight, v[i], o[c][i]);
        }
    }
    UNROLL for (int c = 0; c < n; c++) UNROLL for (int i = 0; i < width; i++)
        store_f(queries[c].out + d + i * LANES, o[c][i]);
}

INLINE void attend_tile(kv_kind kind, const kv_view *page, int head_dim,
                        const attend_query *queries, int n) {
    float p[QUERIES][PAGE], keep[QUERIES];
    int from = PAGE, to = 0;
    for (int c = 0; c < n; c++) {
        from = queries[c].from < from ? queries[c].from : from;
        to = queries[c].to > to ? queries[c].to : to;
    }
    for (int at = from / BLOCK * BLOCK; at < to; at += BLOCK)
        scores(kind, page, head_dim, queries, n, at, p);
    for (int c = 0; c < n; c++) {
        const attend_query *a = queries + c;
        float max = a->sum->max;
        for (int i = a->from; i < a->to; i++)
            max = p[c][i] > max ? p[c][i] : max;
        keep[c] = exp_v(V_SET1F(a->sum->max - max))[0];
        vf lanes[HALVES];
        memset(lanes, 0, sizeof lanes);
        for (int i = 0; i < a->from; i++)
            p[c][i] = -INFINITY;
        for (int i = a->to; i < PAGE; i++)
            p[c][i] = -INFINITY;
        for (int i = 0; i < PAGE; i += LANES) {
            vf e = exp_v(load_f(p[c] + i) - V_SET1F(max));
            lanes[i / LANES % HALVES] += e;
            store_f(p[c] + i, e);
        }
        a->sum->sum = fmaf(a->sum->sum, keep[c], fold(lanes));
        a->sum->max = max;
    }
    int d = 0, padded = (int)round_up(head_dim, 16);
    for (; d + BLOCK <= padded; d += BLOCK)
        values(kind, page, head_dim, queries, n, from, to, d, BLOCK / LANES, keep, p);
    if (d < padded) values(kind, page, head_dim, queries, n, from, to, d, HALVES, keep, p);
}

INLINE void attend_of(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                      int n) {
    int c = 0;
    for (; c + QUERIES <= n; c += QUERIES)
        attend_tile(kind, page, head_dim, queries + c, QUERIES);
    switch (n - c) {
#if QUERIES > 3
    case 3:
        attend_tile(kind, page, head_dim, queries + c, 3);
        break;
#endif
#if QUERIES > 2
    case 2:
        attend_tile(kind, page, head_dim, queries + c, 2);
        break;
#endif
    case 1:
        attend_tile(kind, page, head_dim, queries + c, 1);
        break;
    }
}

static void exp_shifted(float *out, const float *x, float sign, float shift, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store_f(out + i, exp_v(load_f(x + i) * V_SET1F(sign) - V_SET1F(shift)));
    for (; i < n; i++)
        out[i] = exp_f32(sign * x[i] - shift);
}

/* `width` vectors of columns at a time stay in registers while the rows pass. */
INLINE size_t add_rows_of(size_t width, size_t c, float *out, const float *x, const float *m,
                          size_t rows, size_t cols) {
    for (; c + width * LANES <= cols; c += width * LANES) {
        vf sum[8];
        UNROLL for (size_t i = 0; i < width; i++) sum[i] = load_f(out + c + i * LANES);
        for (size_t r = 0; r < rows; r++) {
            vf weight = V_SET1F(x[r]);
            UNROLL for (size_t i = 0; i < width; i++) sum[i] =
                V_FMA(weight, load_f(m + r * cols + c + i * LANES), sum[i]);
        }
        UNROLL for (size_t i = 0; i < width; i++) store_f(out + c + i * LANES, sum[i]);
    }
    return c;
}

static void add_rows(float *out, const float *x, const float *m, size_t rows, size_t cols) {
    size_t c = add_rows_of(8, 0, out, x, m, rows, cols);
    c = add_rows_of(4, c, out, x, m, rows, cols);
    c = add_rows_of(1, c, out, x, m, rows, cols);
    for (; c < cols; c++)
        for (size_t r = 0; r < rows; r++)
            out[c] = fmaf(x[r], m[r * cols + c], out[c]);
}

static void add_outer(float *m, const float *x, const float *y, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++, m += cols) {
        vf weight = V_SET1F(x[r]);
        size_t c = 0;
        for (; c + LANES <= cols; c += LANES)
            store_f(m + c, V_FMA(weight, load_f(y + c), load_f(m + c)));
        for (; c < cols; c++)
            m[c] = fmaf(x[r], y[c], m[c]);
    }
}

static void short_conv(float *out, const float *const *x, const float *w, const float *bias,
                       size_t ldw, size_t taps, size_t c0, size_t c1, bool silu) {
    const vf one = V_SET1F(1.0f);
    size_t c = c0;
    for (; c + LANES <= c1; c += LANES) {
        vf sum = !w ? load_f(x[0] + c) : bias ? load_f(bias + c) : V_SET1F(0.0f);
        for (size_t j = 0; w && j < taps; j++)
            sum = V_FMA(load_f(w + j * ldw + c), load_f(x[j] + c), sum);
        store_f(out + c, silu ? sum / (one + exp_v(-sum)) : sum);
    }
    kernels_generic.short_conv(out, x, w, bias, ldw, taps, c, c1, silu);
}

/* Keys [i, i + n) of delta_step's first sum, `width` vectors of columns; part p goes to t[p]. */
INLINE void delta_dot(const float *s, size_t ld, size_t i, size_t n, size_t width, const float *k,
                      vf t[][2]) {
    UNROLL for (size_t part = 0; part < n; part++) {
        vf weight = V_SET1F(k[i + part]);
        UNROLL for (size_t x = 0; x < width; x++) t[part][x] =
            V_FMA(weight, load_f(s + (i + part) * ld + x * LANES), t[part][x]);
    }
}

/* The same of the update and the second sum. */
INLINE void delta_write(float *s, size_t ld, size_t i, size_t n, size_t width, const float *q,
                        const float *k, vf decay, const vf *d, vf t[][2]) {
    UNROLL for (size_t part = 0; part < n; part++) {
        vf key = V_SET1F(k[i + part]), query = V_SET1F(q[i + part]);
        UNROLL for (size_t x = 0; x < width; x++) {
            float *at = s + (i + part) * ld + x * LANES;
            vf fresh = V_FMA(key, d[x], decay * load_f(at));
            store_f(at, fresh);
            t[part][x] = V_FMA(query, fresh, t[part][x]);
        }
    }
}

INLINE void delta_columns(float *s, size_t ld, size_t n_keys, size_t width, const float *q,
                          const float *k, const float *v, vf decay, vf beta, float *o) {
    vf t[4][2], d[2];
    size_t i = 0;
    memset(t, 0, sizeof t);
    for (; i + 4 <= n_keys; i += 4)
        delta_dot(s, ld, i, 4, width, k, t);
    UNROLL for (size_t p = 0; p < 3; p++) if (i + p < n_keys)
        delta_dot(s, ld, i + p, 1, width, k, t + p);
    UNROLL for (size_t x = 0; x < width; x++) {
        vf sum = (t[0][x] + t[1][x]) + (t[2][x] + t[3][x]);
        d[x] = beta * (load_f(v + x * LANES) - decay * sum);
    }
    memset(t, 0, sizeof t);
    for (i = 0; i + 4 <= n_keys; i += 4)
        delta_write(s, ld, i, 4, width, q, k, decay, d, t);
    UNROLL for (size_t p = 0; p < 3; p++) if (i + p < n_keys)
        delta_write(s, ld, i + p, 1, width, q, k, decay, d, t + p);
    UNROLL for (size_t x = 0; x < width; x++)
        store_f(o + x * LANES, (t[0][x] + t[1][x]) + (t[2][x] + t[3][x]));
}

static void delta_step(float *s, size_t ld, size_t n_keys, size_t n, const float *q, const float *k,
                       const float *v, float decay, float beta, float *o) {
    size_t c = 0;
    const vf all_decay = V_SET1F(decay), all_beta = V_SET1F(beta);
    for (; c + 2 * LANES <= n; c += 2 * LANES)
        delta_columns(s + c, ld, n_keys, 2, q, k, v + c, all_decay, all_beta, o + c);
    for (; c + LANES <= n; c += LANES)
        delta_columns(s + c, ld, n_keys, 1, q, k, v + c, all_decay, all_beta, o + c);
    kernels_generic.delta_step(s + c, ld, n_keys, n - c, q, k, v + c, decay, beta, o + c);
}

static void attend(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                   int n_queries) {
    switch (kind) {
    case KV_F16:
        attend_of(KV_F16, page, head_dim, queries, n_queries);
        break;
    case KV_F32:
        attend_of(KV_F32, page, head_dim, queries, n_queries);
        break;
    case KV_Q8_0:
        attend_of(KV_Q8_0, page, head_dim, queries, n_queries);
        break;
    }
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
