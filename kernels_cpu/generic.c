/* The kernels in plain C, one number at a time: the oracle for the vector files, and what runs on a
 * CPU without them. Contracts and layouts: kernels.h. */
#include "exp.h"
#include "kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Sum of 16 partial sums in the order every instruction set uses: halves folded. */
static float fold(const float *lanes) {
    float s[16];
    memcpy(s, lanes, sizeof s);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
}

/* acc + the block: a sum for each half of it, of each pair of columns the odd term first, as
 * instructions that multiply pairs of bf16 do. */
static float dot_f32(const lane_block *w, const float *x, float acc) {
    for (int half = 0; half < BLOCK; half += BLOCK / 2) {
        float sum = 0;
        for (int k = half; k < half + BLOCK / 2; k += 2) {
            sum = fmaf(w->f[k + 1], x[k + 1], sum);
            sum = fmaf(w->f[k], x[k], sum);
        }
        acc += sum;
    }
    return acc;
}

static int32_t dot_i16(const int16_t *w, const int16_t *x, int n) {
    int32_t sum = 0;
    for (int k = 0; k < n; k++)
        sum += (int32_t)w[k] * x[k];
    return sum;
}

/* acc + one block of columns, in the precision of the activations. */
static float add_block(const matrix *w, const activations *x, const lane_block *lane, size_t b,
                       size_t c, float acc) {
    size_t at = b * x->n + c;
    const float *f = floats_for(w->type, x);
    if (f) return dot_f32(lane, f + at * BLOCK, acc);
    const int16_t *q = x->q + at * BLOCK;
    if (w->type == DTYPE_Q6_K) {
        float low = (float)dot_i16(lane->q, q, 16) * lane->d[0];
        float both = fmaf((float)dot_i16(lane->q + 16, q + 16, 16), lane->d[1], low);
        return fmaf(both, x->scale[at], acc);
    }
    acc = fmaf((float)dot_i16(lane->q, q, BLOCK), lane->d[0] * x->scale[at], acc);
    return fmaf(lane->m, x->scaled_sum[at], acc);
}

static void gemm(const matrix *w, size_t p0, size_t p1, const activations *x, float *y, size_t ldy,
                 gemm_mode mode) {
    enum { TILE = 32 };
    size_t blocks = round_up(w->cols, BLOCK) / BLOCK;
    for (size_t r = p0 * PANEL; r < min_size(p1 * PANEL, w->rows); r++) {
        const uint8_t *panel = w->data + r / PANEL * w->panel_bytes;
        for (size_t c0 = 0; c0 < x->n; c0 += TILE) {
            size_t tile = min_size(TILE, x->n - c0);
            float acc[TILE] = {0};
            for (size_t b = 0; b < blocks; b++) {
                lane_block lane;
                packed_lane(w->type, panel, b, r % PANEL, &lane);
                if (floats_for(w->type, x)) lane_to_f32(w->type, &lane);
                for (size_t c = 0; c < tile; c++)
                    acc[c] = add_block(w, x, &lane, b, c0 + c, acc[c]);
            }
            for (size_t c = 0; c < tile; c++) {
                float *out = y + (c0 + c) * ldy + r;
                float v = w->bias ? acc[c] + w->bias[r] : acc[c];
                *out = mode == GEMM_ADD ? *out + v : v;
            }
        }
    }
}

static float round_bf16(float x) {
    float r = bf16_to_f32(f32_to_bf16(x));
    return fabsf(r) < FLT_MIN ? copysignf(0, x) : r;
}

static void quantize(const activations *a, size_t c, const float *x, size_t b0, size_t b1,
                     bool narrow) {
    const float limit = narrow ? NARROW : WIDE;
    for (size_t b = b0; b < b1; b++) {
        size_t at = b * a->n + c;
        float v[BLOCK] = {0};
        memcpy(v, x + b * BLOCK, min_size(BLOCK, a->cols - b * BLOCK) * sizeof(float));
        if (a->f) memcpy(a->f + at * BLOCK, v, sizeof v);
        if (a->rounded)
            for (int k = 0; k < BLOCK; k++)
                a->rounded[at * BLOCK + k] = round_bf16(v[k]);
        if (!a->q) continue;
        float max = 0, poison = 0; /* poison: NaN if any value is NaN or infinite, else 0 */
        for (int k = 0; k < BLOCK; k++) {
            float m = fabsf(v[k]);
            max = m > max ? m : max;
            poison = fmaf(v[k], 0.0f, poison);
        }
        bool zero = max < 1e-30f || poison != 0;
        float scale = zero ? 0.0f : max / limit, inverse = zero ? 0.0f : limit / max;
        int32_t *sum = a->sum + 2 * at;
        sum[0] = sum[1] = 0;
        for (int k = 0; k < BLOCK; k++) {
            float q = v[k] * inverse;
            q = q > limit ? limit : q;
            q = q < -limit ? -limit : q;
            int16_t i = poison == 0 ? (int16_t)rintf(q) : 0;
            a->q[at * BLOCK + k] = i;
            sum[k / 16] += i;
        }
        a->wide[at] = !narrow;
        a->scale[at] = scale + poison;
        a->scaled_sum[at] = a->scale[at] * (float)(sum[0] + sum[1]);
    }
}

static void rms_norm(float *out, const float *x, const float *w, size_t n, float eps) {
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] = fmaf(x[i], x[i], lanes[i % 16]);
    float scale = 1.0f / sqrtf(fold(lanes) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale * w[i];
}

static void layer_norm(float *out, const float *x, const float *w, const float *b, size_t n,
                       float eps) {
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] += x[i];
    float mean = fold(lanes) / (float)n;
    memset(lanes, 0, sizeof lanes);
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] = fmaf(x[i] - mean, x[i] - mean, lanes[i % 16]);
    float scale = 1.0f / sqrtf(fold(lanes) / (float)n + eps);
    for (size_t i = 0; i < n; i++) {
        float v = (x[i] - mean) * scale * w[i];
        out[i] = b ? v + b[i] : v;
    }
}

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks & Gimpel).
 */
static void gelu(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float u = x[i] * fmaf(x[i] * x[i], 0.0713548163f, 1.59576912f);
        x[i] = x[i] / (1.0f + exp_f32(-u));
    }
}

static void to_f16(uint16_t *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = f32_to_f16(x[i]);
}

static float kv_value(kv_kind kind, const void *p, size_t i) {
    switch (kind) {
    case KV_F16:
        return f16_to_f32(((const uint16_t *)p)[i]);
    case KV_F32:
        return ((const float *)p)[i];
    default:
        return (float)((const int8_t *)p)[i];
    }
}

static float score(kv_kind kind, const kv_view *page, int head_dim, const float *q, int pos) {
    float s = 0;
    if (kind != KV_Q8_0) {
        for (int d = 0; d < head_dim; d++)
            s = fmaf(q[d], kv_value(kind, page->k, (size_t)d * PAGE + pos), s);
        return s;
    }
    for (int d0 = 0; d0 < head_dim; d0 += BLOCK) {
        float t = 0;
        for (int d = d0; d < d0 + BLOCK; d++)
            t = fmaf(q[d], kv_value(kind, page->k, (size_t)d * PAGE + pos), t);
        s = fmaf(t, f16_to_f32(page->kd[d0 / BLOCK * PAGE + pos]), s);
    }
    return s;
}

static void exp_shifted(float *out, const float *x, float sign, float shift, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = exp_f32(sign * x[i] - shift);
}

static void softmax(float *out, const float *x, float sign, size_t n, bool normalize) {
    float max = sign * x[0], lanes[16] = {0};
    for (size_t i = 1; i < n; i++)
        max = sign * x[i] > max ? sign * x[i] : max;
    exp_shifted(out, x, sign, max, n);
    if (!normalize) return;
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] += out[i];
    float sum = fold(lanes);
    for (size_t i = 0; i < n; i++)
        out[i] /= sum;
}

static void add_rows(float *out, const float *x, const float *m, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++, m += cols)
        for (size_t c = 0; c < cols; c++)
            out[c] = fmaf(x[r], m[c], out[c]);
}

static void add_outer(float *m, const float *x, const float *y, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++, m += cols)
        for (size_t c = 0; c < cols; c++)
            m[c] = fmaf(x[r], y[c], m[c]);
}

static void l2_norm(float *out, const float *x, size_t n, float eps, float scale) {
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] = fmaf(x[i], x[i], lanes[i % 16]);
    float factor = scale / sqrtf(fold(lanes) + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * factor;
}

static void sigmoid_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++)
        gate[i] = up[i] / (1.0f + exp_f32(-gate[i]));
}

static void short_conv(float *out, const float *const *x, const float *w, const float *bias,
                       size_t ldw, size_t taps, size_t c0, size_t c1, bool silu) {
    for (size_t c = c0; c < c1; c++) {
        float sum = !w ? x[0][c] : bias ? bias[c] : 0.0f;
        for (size_t j = 0; w && j < taps; j++)
            sum = fmaf(w[j * ldw + c], x[j][c], sum);
        out[c] = silu ? sum / (1.0f + exp_f32(-sum)) : sum;
    }
}

static void delta_step(float *s, size_t ld, size_t n_keys, size_t n, const float *q, const float *k,
                       const float *v, float decay, float beta, float *o) {
    for (size_t c = 0; c < n; c++) {
        float t[4] = {0};
        for (size_t i = 0; i < n_keys; i++)
            t[i % 4] = fmaf(k[i], s[i * ld + c], t[i % 4]);
        float d = beta * (v[c] - decay * ((t[0] + t[1]) + (t[2] + t[3])));
        memset(t, 0, sizeof t);
        for (size_t i = 0; i < n_keys; i++) {
            float *at = s + i * ld + c;
            *at = fmaf(k[i], d, decay * *at);
            t[i % 4] = fmaf(q[i], *at, t[i % 4]);
        }
        o[c] = (t[0] + t[1]) + (t[2] + t[3]);
    }
}

static void attend(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                   int n_queries) {
    size_t padded = round_up(head_dim, 16);
    for (const attend_query *a = queries; a < queries + n_queries; a++) {
        float p[PAGE], lanes[16] = {0};
        float max = a->sum->max;
        for (int i = a->from; i < a->to; i++) {
            p[i] = score(kind, page, head_dim, a->q, i);
            max = p[i] > max ? p[i] : max;
        }
        float keep = exp_f32(a->sum->max - max);
        for (int i = a->from; i < a->to; i++) {
            p[i] = exp_f32(p[i] - max);
            lanes[i % 16] += p[i];
        }
        a->sum->sum = fmaf(a->sum->sum, keep, fold(lanes));
        a->sum->max = max;
        for (size_t d = 0; d < padded; d++) {
            float o = a->out[d] * keep;
            for (int i = a->from; i < a->to; i++) {
                float weight = p[i];
                if (kind == KV_Q8_0)
                    weight *= f16_to_f32(page->vd[(size_t)i * (head_dim / BLOCK) + d / BLOCK]);
                o = fmaf(weight, kv_value(kind, page->v, i * padded + d), o);
            }
            a->out[d] = o;
        }
    }
}

const kernels kernels_generic = {
    .name = "generic",
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
