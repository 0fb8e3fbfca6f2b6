/* The loops shared by the vector instruction sets. An including file defines
 *
 *   LANES              floats in a vector (4, 8 or 16); vf, vi: vectors of float, int32
 *   V_SET1F V_SET1I    one number in every lane
 *   V_FMA V_MAX        a*b+c with one rounding; max(a, b) that gives b if either is NaN
 *   V_F16(p)           LANES float16 to float;  V_STORE_F16(p, v) back, nearest even
 *   V_ROUND(v)         to int32, nearest even;  V_ABS as named
 *   V_U8(p) V_I8(p)    LANES bytes to int32
 *   V_MAXI V_TOP V_TOTAL   the same of int32; the largest and the sum of a vector's lanes
 *   STRIPS             panels whose products share the activations in registers
 *   FLOAT_COLUMNS      columns of a float32 product whose sums fit the registers
 *   V_DOT_BF16(a, b, c)   only where the CPU has it: c + a.odd*b.odd + a.even*b.even over pairs of
 *                      bf16, added in this order, one rounding each
 *   QUERIES            queries of one attention tile that fit the registers
 *   TABLE, NAME        the kernels this file provides
 *
 * and then has products.h.
 *
 * Each loop does, lane by lane, the steps that generic.c does for one number: read that first. */
#include "exp.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#ifdef V_DOT_BF16
enum { BF16_PAIRS = 1 };
#else
enum { BF16_PAIRS = 0 };
#define V_DOT_BF16(a, b, c) (c)
#endif
enum { HALVES = PANEL / LANES /* 1, 2, or quarters */, TILE = 48 };

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
    return to_float(V_I8(p));
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

/* ---- Row kernels -------------------------------------------------------------------------------
 */

/* Calls body with `i` over whole vectors of n floats; what remains is copied to a padded buffer. */
#define FOR_VECTORS(n, i) for (size_t i = 0; i + 16 <= (n); i += 16)

/* The last n % 16 floats of x, zero-padded to 16. */
INLINE void tail(const float *x, size_t n, float *out) {
    memset(out, 0, 16 * sizeof(float));
    memcpy(out, x + n / 16 * 16, n % 16 * sizeof(float));
}

INLINE void store_quantized(int16_t *q, int i, vi n);

/* To the nearest bf16, ties to even; NaN stays NaN, what is below 2^-126 becomes zero. */
INLINE vf round_bf16(vf v) {
    vi nan = v != v, bits = (vi)v;
    bits = (bits | (nan & V_SET1I(0x00400000))) & ~(nan & V_SET1I(0xffff));
    bits = (bits + V_SET1I(0x7fff) + ((bits >> 16) & V_SET1I(1))) & V_SET1I(~0xffff);
    return (vf)(bits & (((bits & V_SET1I(0x7f800000)) != 0) | V_SET1I(INT32_MIN)));
}

/* Such numbers to element i. */
INLINE void store_rounded(float *rounded, size_t i, vf v) {
    typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
    if (!BF16_PAIRS) {
        store_f(rounded + i, v);
        return;
    }
    vh high = __builtin_convertvector((vi)v >> 16, vh);
    memcpy((uint16_t *)rounded + i, &high, sizeof high);
}

static void quantize(const activations *a, size_t c, const float *x, size_t b0, size_t b1,
                     bool narrow) {
    enum { VECTORS = BLOCK / LANES, INFINITE = 0x7f800000 };
    const float limit = narrow ? NARROW : WIDE;
    const vf top = V_SET1F(limit);
    for (size_t b = b0; b < b1; b++) {
        size_t at = b * a->n + c;
        float padded[BLOCK] = {0};
        const float *src = x + b * BLOCK;
        if ((b + 1) * BLOCK > a->cols) {
            memcpy(padded, src, (a->cols - b * BLOCK) * sizeof(float));
            src = padded;
        }
        if (a->f) memcpy(a->f + at * BLOCK, src, BLOCK * sizeof(float));
        if (a->rounded)
            UNROLL for (int i = 0; i < VECTORS; i++) store_rounded(
                a->rounded, at * BLOCK + i * LANES, round_bf16(load_f(src + i * LANES)));
        if (!a->q) continue;
        vf v[VECTORS];
        vi most = V_SET1I(0); /* as bits: their order is that of the absolute values, NaN largest */
        UNROLL for (int i = 0; i < VECTORS; i++) {
            v[i] = load_f(src + i * LANES);
            most = V_MAXI((vi)V_ABS(v[i]), most);
        }
        int32_t bits = V_TOP(most);
        float max, bad = bits >= INFINITE ? NAN : 0.0f;
        memcpy(&max, &bits, sizeof max);
        bool zero = max < 1e-30f || bits >= INFINITE;
        vf inverse = V_SET1F(zero ? 0.0f : limit / max);
        vi sums[2] = {{0}};
        UNROLL for (int i = 0; i < VECTORS; i++) {
            vf r = v[i] * inverse;
            r = select_f(r > top, top, r);
            r = select_f(r < -top, -top, r);
            vi n = bits < INFINITE ? V_ROUND(r) : V_SET1I(0);
            sums[i * LANES / 16] += n;
            store_quantized(a->q + at * BLOCK, i * LANES, n);
        }
        int32_t *sum = a->sum + 2 * at;
        sum[0] = V_TOTAL(sums[0]), sum[1] = V_TOTAL(sums[1]);
        a->wide[at] = !narrow;
        a->scale[at] = (zero ? 0.0f : max / limit) + bad;
        a->scaled_sum[at] = a->scale[at] * (float)(sum[0] + sum[1]);
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

/* Pages lie far apart, so that the hardware does not see the next one coming: each load of 32
 * elements asks for the same ones of that page. */
INLINE void fetch_next(kv_kind kind, const void *p, size_t i, ptrdiff_t next) {
    size_t size = kind == KV_F16 ? 2 : kind == KV_F32 ? 4 : 1;
    for (size_t at = 0; at < BLOCK * size; at += 64)
        __builtin_prefetch((const char *)p + i * size + at + next);
}

/* Scores of n queries against positions [at, at + 32) of the page, to s [n][PAGE]. */
INLINE void scores(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                   int n, int at, ptrdiff_t next, float (*s)[PAGE]) {
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
            if (next) fetch_next(kind, page->k, (size_t)d * PAGE + at, next);
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
                   int n, int from, int to, int d, int width, const float *keep, ptrdiff_t next,
                   float (*p)[PAGE]) {
    enum { V = BLOCK / LANES };
    size_t padded = round_up(head_dim, 16);
    vf o[QUERIES][V];
    UNROLL for (int c = 0; c < n; c++) UNROLL for (int i = 0; i < width; i++) o[c][i] =
        load_f(queries[c].out + d + i * LANES) * V_SET1F(keep[c]);
    for (int pos = from; pos < to; pos++) {
        vf v[V];
        UNROLL for (int i = 0; i < width; i++) v[i] =
            load_kv(kind, page->v, pos * padded + d + i * LANES);
        if (next) fetch_next(kind, page->v, pos * padded + d, next);
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
                        const attend_query *queries, int n, ptrdiff_t next) {
    float p[QUERIES][PAGE], keep[QUERIES];
    int from = PAGE, to = 0;
    for (int c = 0; c < n; c++) {
        from = queries[c].from < from ? queries[c].from : from;
        to = queries[c].to > to ? queries[c].to : to;
    }
    for (int at = from / BLOCK * BLOCK; at < to; at += BLOCK)
        scores(kind, page, head_dim, queries, n, at, next, p);
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
        values(kind, page, head_dim, queries, n, from, to, d, BLOCK / LANES, keep, next, p);
    if (d < padded) values(kind, page, head_dim, queries, n, from, to, d, HALVES, keep, next, p);
}

INLINE void attend_of(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                      int n) {
    int c = 0;
    ptrdiff_t next = page->next; /* for the first tile to fetch */
    for (; c + QUERIES <= n; c += QUERIES, next = 0)
        attend_tile(kind, page, head_dim, queries + c, QUERIES, next);
#if QUERIES > 4
    for (; c + 4 <= n; c += 4, next = 0)
        attend_tile(kind, page, head_dim, queries + c, 4, next);
#endif
#if QUERIES > 3
    for (; c + 3 <= n; c += 3, next = 0)
        attend_tile(kind, page, head_dim, queries + c, 3, next);
#endif
    for (; c + 2 <= n; c += 2, next = 0)
        attend_tile(kind, page, head_dim, queries + c, 2, next);
    if (c < n) attend_tile(kind, page, head_dim, queries + c, 1, next);
}

static void exp_shifted(float *out, const float *x, float sign, float shift, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store_f(out + i, exp_v(load_f(x + i) * V_SET1F(sign) - V_SET1F(shift)));
    for (; i < n; i++)
        out[i] = exp_f32(sign * x[i] - shift);
}

static void softmax(float *out, const float *x, float sign, size_t n, bool normalize) {
    vf most = V_SET1F(-INFINITY), lanes[HALVES];
    float max = sign * x[0], each[LANES], rest[16];
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        most = V_MAX(load_f(x + i) * V_SET1F(sign), most);
    memcpy(each, &most, sizeof most);
    for (int l = 0; l < LANES; l++)
        max = each[l] > max ? each[l] : max;
    for (; i < n; i++)
        max = sign * x[i] > max ? sign * x[i] : max;
    exp_shifted(out, x, sign, max, n);
    if (!normalize) return;
    memset(lanes, 0, sizeof lanes);
    FOR_VECTORS(n, at) for (int h = 0; h < HALVES; h++) lanes[h] += load_f(out + at + h * LANES);
    tail(out, n, rest);
    for (int h = 0; h < HALVES; h++)
        lanes[h] += load_f(rest + h * LANES);
    float sum = fold(lanes);
    for (i = 0; i + LANES <= n; i += LANES)
        store_f(out + i, load_f(out + i) / V_SET1F(sum));
    for (; i < n; i++)
        out[i] /= sum;
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
