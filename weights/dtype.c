/* Block formats of GGUF tensors.
 *
 * Sources for the layouts: ggml-common.h and gguf-py/gguf/quants.py of ggml. Every expression that
 * ends in a float32 keeps the order of operations of quants.py, so that results agree bit for bit
 * (the build sets -ffp-contract=off). */
#include "dtype.h"

#include <math.h>
#include <string.h>
#include <strings.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF data is used in place");

/* ---- Types ------------------------------------------------------------------------------- */

static const struct {
    uint32_t type;
    dtype_info info;
} known[] = {
    {DTYPE_F32, {"f32", 1, 4}},       {DTYPE_F16, {"f16", 1, 2}},
    {DTYPE_BF16, {"bf16", 1, 2}},     {DTYPE_Q8_0, {"q8_0", 32, 34}},
    {DTYPE_Q4_0, {"q4_0", 32, 18}},   {DTYPE_Q4_1, {"q4_1", 32, 20}},
    {DTYPE_Q5_0, {"q5_0", 32, 22}},   {DTYPE_Q5_1, {"q5_1", 32, 24}},
    {DTYPE_Q4_K, {"q4_K", 256, 144}}, {DTYPE_Q5_K, {"q5_K", 256, 176}},
    {DTYPE_Q6_K, {"q6_K", 256, 210}},
};
enum { N_KNOWN = sizeof known / sizeof *known };

const dtype_info *dtype_get(uint32_t type) {
    for (int i = 0; i < N_KNOWN; i++)
        if (known[i].type == type) return &known[i].info;
    return NULL;
}

const char *dtype_any_name(uint32_t type) {
    /* Type numbers of ggml.h that this build cannot compute with. */
    static const char *const others[] = {
        [9] = "Q8_1",    [10] = "Q2_K",    [11] = "Q3_K",  [15] = "Q8_K",   [16] = "IQ2_XXS",
        [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S",
        [22] = "IQ2_S",  [23] = "IQ4_XS",  [24] = "I8",    [25] = "I16",    [26] = "I32",
        [27] = "I64",    [28] = "F64",     [29] = "IQ1_M", [34] = "TQ1_0",  [35] = "TQ2_0",
        [39] = "MXFP4",  [40] = "NVFP4",   [41] = "Q1_0",
    };
    const dtype_info *info = dtype_get(type);
    if (info) return info->name;
    if (type < sizeof others / sizeof *others && others[type]) return others[type];
    static _Thread_local char unknown[32];
    snprintf(unknown, sizeof unknown, "type %u", type);
    return unknown;
}

int dtype_by_name(const char *name) {
    for (int i = 0; i < N_KNOWN; i++)
        if (!strcasecmp(known[i].info.name, name)) return (int)known[i].type;
    return -1;
}

const char *dtype_list(void) {
    return "f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q4_K q5_K q6_K";
}

size_t dtype_row_bytes(dtype type, size_t n) {
    const dtype_info *info = dtype_get(type);
    return n / info->block * info->block_bytes;
}

/* ---- 16-bit floats ----------------------------------------------------------------------- */

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    /* Subnormals count in units of 2^-24; a float32 holds each of them exactly. */
    if (magnitude < 0x400) return bits_float(sign | float_bits((float)magnitude * 0x1p-24f));
    return bits_float(sign | ((magnitude << 13) + (112u << 23)));
}

uint16_t f32_to_f16(float f) {
    uint32_t bits = float_bits(f), sign = bits >> 16 & 0x8000, a = bits & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
    /* Below 2^-14: adding 1/2 leaves a last place of 2^-24, so the addition itself rounds. */
    if (a < 0x38800000)
        return (uint16_t)(sign | (float_bits(bits_float(a) + 0.5f) - float_bits(0.5f)));
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - (112u << 23)) >> 13);
}

uint16_t f32_to_bf16(float f) {
    uint32_t u = float_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 64); /* a quiet NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float load_f16(const uint8_t *p) {
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

/* Stores `f` and returns what a reader will find. */
static float store_f16(uint8_t *p, float f) {
    uint16_t h = f32_to_f16(f);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
    return f16_to_f32(h);
}

/* ---- Blocks to float32 ------------------------------------------------------------------- */

/* q8_0: d f16, q int8[32];  x = q d */
static void dequantize_q8_0(const uint8_t *b, float *x) {
    float d = load_f16(b);
    for (int i = 0; i < 32; i++)
        x[i] = (float)(int8_t)b[2 + i] * d;
}

/* q4_0: d f16, q nibbles, elements 0..15 low and 16..31 high;  x = d (q - 8) */
static void dequantize_q4_0(const uint8_t *b, float *x) {
    float d = load_f16(b);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((b[2 + i] & 15) - 8);
        x[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

/* q4_1: d, m f16, q nibbles as q4_0;  x = d q + m */
static void dequantize_q4_1(const uint8_t *b, float *x) {
    float d = load_f16(b), m = load_f16(b + 2);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)(b[4 + i] & 15) + m;
        x[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

static uint32_t load_u32(const uint8_t *p) {
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}

/* q5_0: d f16, fifth bits u32 (bit i for element i), q nibbles as q4_0;  x = d (q - 16) */
static void dequantize_q5_0(const uint8_t *b, float *x) {
    float d = load_f16(b);
    uint32_t high = load_u32(b + 2);
    for (int i = 0; i < 16; i++) {
        int low = (int)((b[6 + i] & 15) | (high >> i & 1) << 4);
        int top = (int)((b[6 + i] >> 4) | (high >> (i + 16) & 1) << 4);
        x[i] = d * (float)(low - 16);
        x[i + 16] = d * (float)(top - 16);
    }
}

/* q5_1: d, m f16, fifth bits, q nibbles;  x = d q + m */
static void dequantize_q5_1(const uint8_t *b, float *x) {
    float d = load_f16(b), m = load_f16(b + 2);
    uint32_t high = load_u32(b + 4);
    for (int i = 0; i < 16; i++) {
        int low = (int)((b[8 + i] & 15) | (high >> i & 1) << 4);
        int top = (int)((b[8 + i] >> 4) | (high >> (i + 16) & 1) << 4);
        x[i] = d * (float)low + m;
        x[i + 16] = d * (float)top + m;
    }
}

/* The 8 six-bit scales and 8 six-bit minima of q4_K and q5_K in 12 bytes: bytes 0..3 and 4..7 hold
 * the low six bits of scales and minima 0..3 and, above them, bits 4..5 of scales and minima 4..7;
 * bytes 8..11 hold the low four bits of those. */
static void unpack_scales(const uint8_t p[12], uint8_t scale[8], uint8_t min[8]) {
    for (int j = 0; j < 4; j++) {
        scale[j] = p[j] & 63;
        min[j] = p[j + 4] & 63;
        scale[j + 4] = (uint8_t)((p[j + 8] & 15) | (p[j] >> 6) << 4);
        min[j + 4] = (uint8_t)(p[j + 8] >> 4 | (p[j + 4] >> 6) << 4);
    }
}

static void pack_scales(const uint8_t scale[8], const uint8_t min[8], uint8_t p[12]) {
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
        p[j + 4] = (uint8_t)(min[j] | min[j + 4] >> 4 << 6);
        p[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
}

/* q4_K: d, dmin f16, scales[12], q nibbles: groups 2k and 2k+1 share 32 bytes, low and high;
 * x = (d scale) q - (dmin min) per group of 32.
 * q5_K: the same with 32 bytes of fifth bits (bit g of byte i for element i of group g). */
static void dequantize_k(const uint8_t *b, float *x, bool five) {
    float d = load_f16(b), dmin = load_f16(b + 2);
    const uint8_t *high = b + 16, *low = b + (five ? 48 : 16);
    uint8_t scale[8], min[8];
    unpack_scales(b + 4, scale, min);
    for (int g = 0; g < 8; g++) {
        float ds = d * (float)scale[g], dm = dmin * (float)min[g];
        for (int i = 0; i < 32; i++) {
            int q = low[g / 2 * 32 + i] >> g % 2 * 4 & 15;
            if (five) q |= (high[i] >> g & 1) << 4;
            x[g * 32 + i] = ds * (float)q - dm;
        }
    }
}

/* q6_K: low nibbles[128], high pairs[64], scale int8[16], d f16. In each half of 128 elements,
 * element 32 k + i has its nibble in byte 32 (k % 2) + i (low for k < 2) and its pair at bit 2 k
 * of byte i;  x = (d scale) (q - 32) per group of 16. */
static void dequantize_q6_K(const uint8_t *b, float *x) {
    float d = load_f16(b + 208);
    for (int e = 0; e < 256; e++) {
        int half = e / 128, k = e / 32 % 4, i = e % 32;
        int low = b[half * 64 + k % 2 * 32 + i] >> k / 2 * 4 & 15;
        int high = b[128 + half * 32 + i] >> 2 * k & 3;
        x[e] = d * (float)(int8_t)b[192 + e / 16] * (float)((low | high << 4) - 32);
    }
}

void dequantize_row(dtype type, const void *src, float *dst, size_t n) {
    const dtype_info *info = dtype_get(type);
    const uint8_t *b = src;
    if (type == DTYPE_F32) {
        if (n) memcpy(dst, src, n * sizeof *dst);
        return;
    }
    for (size_t i = 0; i < n; i += info->block, b += info->block_bytes) {
        switch (type) {
        case DTYPE_F32:
            break;
        case DTYPE_F16:
            dst[i] = load_f16(b);
            break;
        case DTYPE_BF16:
            dst[i] = bf16_to_f32((uint16_t)(b[0] | b[1] << 8));
            break;
        case DTYPE_Q8_0:
            dequantize_q8_0(b, dst + i);
            break;
        case DTYPE_Q4_0:
            dequantize_q4_0(b, dst + i);
            break;
        case DTYPE_Q4_1:
            dequantize_q4_1(b, dst + i);
            break;
        case DTYPE_Q5_0:
            dequantize_q5_0(b, dst + i);
            break;
        case DTYPE_Q5_1:
            dequantize_q5_1(b, dst + i);
            break;
        case DTYPE_Q4_K:
            dequantize_k(b, dst + i, false);
            break;
        case DTYPE_Q5_K:
            dequantize_k(b, dst + i, true);
            break;
        case DTYPE_Q6_K:
            dequantize_q6_K(b, dst + i);
            break;
        }
    }
}

/* ---- Float32 to blocks of 32: as quants.py ------------------------------------------------ */

/* The element of largest magnitude, with its sign; the first one of equals. */
static float largest(const float *x, int n) {
    float best = x[0];
    for (int i = 1; i < n; i++)
        if (fabsf(x[i]) > fabsf(best)) best = x[i];
    return best;
}

static float inverse(float d) {
    return d == 0 ? 0 : 1 / d;
}

/* Truncation to an unsigned code. 1/d overflows where d is subnormal; what then leaves the range
 * becomes 0, as on x86 in numpy (d itself is stored as 0, so the codes do not matter). */
static uint8_t code(float v, int top) {
    int q = v >= 0 && v < 256 ? (int)v : 0;
    return (uint8_t)(q > top ? top : q);
}

static void quantize_q8_0(const float *x, uint8_t *b) {
    float d = fabsf(largest(x, 32)) / 127, id = inverse(d);
    store_f16(b, d);
    for (int i = 0; i < 32; i++) {
        float v = x[i] * id, a = fabsf(v); /* rounds half away from zero */
        int q = a < 256 ? (int)a : 0;
        if (a < 256 && a - (float)q >= 0.5f) q++;
        b[2 + i] = (uint8_t)(v < 0 ? -q : q);
    }
}

/* q4_0 and q5_0: the element of largest magnitude becomes code 0, that is -8 or -16. */
static void quantize_signed(const float *x, uint8_t *b, bool five) {
    int half = five ? 16 : 8;
    float d = largest(x, 32) / (float)-half, id = inverse(d);
    uint8_t *q = b + (five ? 6 : 2);
    uint32_t high = 0;
    store_f16(b, d);
    for (int i = 0; i < 16; i++) {
        int low = code(x[i] * id + ((float)half + 0.5f), 2 * half - 1);
        int top = code(x[i + 16] * id + ((float)half + 0.5f), 2 * half - 1);
        q[i] = (uint8_t)((low & 15) | (top & 15) << 4);
        high |= (uint32_t)(low >> 4) << i | (uint32_t)(top >> 4) << (i + 16);
    }
    if (five) memcpy(b + 2, &high, 4);
}

/* q4_1 and q5_1: minimum to 0, maximum to 15 or 31. */
static void quantize_offset(const float *x, uint8_t *b, bool five) {
    int top_code = five ? 31 : 15;
    float min = x[0], max = x[0];
    for (int i = 1; i < 32; i++) {
        if (x[i] <= min) min = x[i]; /* of -0 and 0 the last, as numpy mostly */
        if (x[i] > max) max = x[i];
    }
    float d = (max - min) / (float)top_code, id = inverse(d);
    uint8_t *q = b + (five ? 8 : 4);
    uint32_t high = 0;
    store_f16(b, d);
    store_f16(b + 2, min);
    for (int i = 0; i < 16; i++) {
        int low = code((x[i] - min) * id + 0.5f, top_code);
        int top = code((x[i + 16] - min) * id + 0.5f, top_code);
        q[i] = (uint8_t)((low & 15) | (top & 15) << 4);
        high |= (uint32_t)(low >> 4) << i | (uint32_t)(top >> 4) << (i + 16);
    }
    if (five) memcpy(b + 4, &high, 4);
}

/* ---- Float32 to blocks of 256 -------------------------------------------------------------
 *
 * Both searches minimise sum_i w_i (x_i - y_i)^2, where large elements weigh more because they
 * carry most of a dot product. For several grids around the naive one: round to the grid, then
 * solve the least-squares problem for the scale (and minimum) with these codes; keep the best. */

static int nearest(float v, int low, int high) {
    if (!(v > (float)low)) return low;
    if (!(v < (float)high)) return high;
    return (int)lrintf(v);
}

/* y_i = scale q_i - min with 0 <= q_i <= top and min >= 0, over a group of 32. */
static void fit_offset(const float x[32], int top, float *scale, float *min) {
    float w[32], low = 0, high = x[0], sum_x2 = 0, sum_w = 0, sum_wx = 0;
    for (int i = 0; i < 32; i++) {
        sum_x2 += x[i] * x[i];
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
    }
    float rms = sqrtf(sum_x2 / 32);
    for (int i = 0; i < 32; i++) {
        w[i] = rms + fabsf(x[i]);
        sum_w += w[i];
        sum_wx += w[i] * x[i];
    }
    *scale = 0;
    *min = -low;
    if (!(high - low > 1e-30f)) return; /* all equal (and not positive), or next to nothing */
    float best = INFINITY;
    for (int step = -10; step <= 10; step++) {
        float inv = ((float)top + 0.1f * (float)step) / (high - low);
        float q[32], sum_q = 0, sum_q2 = 0, sum_qx = 0;
        for (int i = 0; i < 32; i++) {
            q[i] = (float)nearest((x[i] - low) * inv, 0, top);
            sum_q += w[i] * q[i];
            sum_q2 += w[i] * q[i] * q[i];
            sum_qx += w[i] * q[i] * x[i];
        }
        /* Normal equations of (scale, -min); without a minimum if it came out negative. */
        float det = sum_w * sum_q2 - sum_q * sum_q, s = 0, m = -1;
        if (det > 0) {
            s = (sum_w * sum_qx - sum_wx * sum_q) / det;
            m = (sum_q * sum_qx - sum_q2 * sum_wx) / det;
        }
        if (m < 0) {
            m = 0;
            s = sum_q2 > 0 ? sum_qx / sum_q2 : 0;
        }
        if (!(s > 0)) continue;
        float error = 0;
        for (int i = 0; i < 32; i++) {
            float e = s * q[i] - m - x[i];
            error += w[i] * e * e;
        }
        if (error < best) {
            best = error;
            *scale = s;
            *min = m;
        }
    }
}

static void quantize_k(const float *x, uint8_t *b, bool five) {
    int top = five ? 31 : 15;
    float scale[8], min[8], max_scale = 0, max_min = 0;
    uint8_t s6[8], m6[8];
    for (int g = 0; g < 8; g++) {
        fit_offset(x + g * 32, top, &scale[g], &min[g]);
        if (scale[g] > max_scale) max_scale = scale[g];
        if (min[g] > max_min) max_min = min[g];
    }
    memset(b, 0, five ? 176 : 144);
    float d = store_f16(b, max_scale / 63), dmin = store_f16(b + 2, max_min / 63);
    float id = inverse(d), idmin = inverse(dmin);
    uint8_t *high = b + 16, *low = b + (five ? 48 : 16);
    for (int g = 0; g < 8; g++) {
        const float *xg = x + g * 32;
        /* The scale and minimum themselves are rounded to six bits: of the neighbouring pairs, take
         * the one that is best with its own codes. */
        int s0 = nearest(scale[g] * id, 0, 63), m0 = nearest(min[g] * idmin, 0, 63);
        uint8_t q[32] = {0};
        float best = INFINITY, rms = 0;
        for (int i = 0; i < 32; i++)
            rms += xg[i] * xg[i];
        rms = sqrtf(rms / 32);
        s6[g] = (uint8_t)s0;
        m6[g] = (uint8_t)m0;
        for (int s = max_size((size_t)s0, 1) - 1; s <= s0 + 1 && s < 64; s++) {
            for (int m = max_size((size_t)m0, 1) - 1; m <= m0 + 1 && m < 64; m++) {
                float ds = d * (float)s, dm = dmin * (float)m, inv = inverse(ds), error = 0;
                uint8_t trial[32];
                for (int i = 0; i < 32; i++) {
                    trial[i] = (uint8_t)nearest((xg[i] + dm) * inv, 0, top);
                    float e = ds * (float)trial[i] - dm - xg[i];
                    error += (rms + fabsf(xg[i])) * e * e;
                }
                if (error < best) {
                    best = error;
                    s6[g] = (uint8_t)s;
                    m6[g] = (uint8_t)m;
                    memcpy(q, trial, sizeof q);
                }
            }
        }
        for (int i = 0; i < 32; i++) {
            low[g / 2 * 32 + i] |= (uint8_t)((q[i] & 15) << g % 2 * 4);
            if (five) high[i] |= (uint8_t)(q[i] >> 4 << g);
        }
    }
    pack_scales(s6, m6, b + 4);
}

/* y_i = scale q_i with -32 <= q_i <= 31 over a group of 16. Writing A = sum w q x, B = sum w q^2,
 * the best scale is A/B and lowers the error by A^2/B, which is therefore what is compared. */
static float fit_signed(const float x[16]) {
    float peak = largest(x, 16), scale = 0, best = 0;
    if (!(fabsf(peak) > 1e-30f)) return 0;
    for (int step = -9; step <= 9; step++) {
        float inv = -(32 + 0.1f * (float)step) / peak, a = 0, b = 0;
        for (int i = 0; i < 16; i++) {
            float q = (float)nearest(x[i] * inv, -32, 31), w = x[i] * x[i];
            a += w * q * x[i];
            b += w * q * q;
        }
        if (b > 0 && a * a > best * b) {
            best = a * a / b;
            scale = a / b;
        }
    }
    return scale;
}

static void quantize_q6_K(const float *x, uint8_t *b) {
    float scale[16];
    for (int g = 0; g < 16; g++)
        scale[g] = fit_signed(x + g * 16);
    memset(b, 0, 210);
    float d = store_f16(b + 208, largest(scale, 16) / -128), id = inverse(d);
    if (d == 0) return;
    for (int g = 0; g < 16; g++) {
        int s = nearest(scale[g] * id, -128, 127);
        float inv = inverse(d * (float)s);
        b[192 + g] = (uint8_t)s;
        for (int j = 0; j < 16; j++) {
            int e = g * 16 + j, half = e / 128, k = e / 32 % 4, i = e % 32;
            int q = nearest(x[e] * inv, -32, 31) + 32;
            b[half * 64 + k % 2 * 32 + i] |= (uint8_t)((q & 15) << k / 2 * 4);
            b[128 + half * 32 + i] |= (uint8_t)(q >> 4 << 2 * k);
        }
    }
}

void quantize_row(dtype type, const float *src, void *dst, size_t n) {
    const dtype_info *info = dtype_get(type);
    uint8_t *b = dst;
    uint16_t h;
    if (type == DTYPE_F32) {
        if (n) memcpy(dst, src, n * sizeof *src);
        return;
    }
    for (size_t i = 0; i < n; i += info->block, b += info->block_bytes) {
        switch (type) {
        case DTYPE_F32:
            break;
        case DTYPE_F16:
            store_f16(b, src[i]);
            break;
        case DTYPE_BF16:
            h = f32_to_bf16(src[i]);
            memcpy(b, &h, 2);
            break;
        case DTYPE_Q8_0:
            quantize_q8_0(src + i, b);
            break;
        case DTYPE_Q4_0:
            quantize_signed(src + i, b, false);
            break;
        case DTYPE_Q4_1:
            quantize_offset(src + i, b, false);
            break;
        case DTYPE_Q5_0:
            quantize_signed(src + i, b, true);
            break;
        case DTYPE_Q5_1:
            quantize_offset(src + i, b, true);
            break;
        case DTYPE_Q4_K:
            quantize_k(src + i, b, false);
            break;
        case DTYPE_Q5_K:
            quantize_k(src + i, b, true);
            break;
        case DTYPE_Q6_K:
            quantize_q6_K(src + i, b);
            break;
        }
    }
}
