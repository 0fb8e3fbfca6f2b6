/* Tensor types against the `gguf` Python package (tests/golden/make_dtype.py), bit for bit, and the
 * quantizers it lacks against the simple ones they must beat. */
#include "../weights/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t splitmix64(uint64_t seed, uint64_t i) {
    uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t hash64(const void *data, size_t n) {
    const uint8_t *p = data;
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (p[i] + (uint64_t)1) * (i * 0x9e3779b97f4a7c15u | 1);
    return sum;
}

/* As `blocks` and `floats` of make_dtype.py. */
static void random_blocks(uint64_t seed, dtype type, uint8_t *data, size_t n_blocks) {
    size_t size = dtype_get(type)->block_bytes;
    for (size_t i = 0; i < n_blocks * size; i++)
        data[i] = (uint8_t)(splitmix64(seed, i / 8) >> i % 8 * 8);
    for (size_t b = 0; b < n_blocks; b++) {
        if (type == DTYPE_Q6_K) {
            data[b * size + 209] &= 0xbf;
            continue;
        }
        data[b * size + 1] &= 0xbf;
        if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K)
            data[b * size + 3] &= 0xbf;
    }
}

static void random_floats(uint64_t seed, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        int mantissa = (int)(splitmix64(seed, i) >> 40) - (1 << 23);
        int exponent = (int)(splitmix64(seed, i / 64 * 64) & 31) - 44;
        x[i] = (float)ldexp(mantissa, exponent);
    }
}

static void same_floats(dtype type, const float *got, const float *expected, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &expected[i], 4))
            fail_msg("%s: element %zu is %a, expected %a", dtype_any_name(type), i, (double)got[i],
                     (double)expected[i]);
}

static void golden(void **state) {
    (void)state;
    FILE *f = fopen("tests/data/dtype_golden.bin", "rb");
    if (!f) fail_msg("tests/data/dtype_golden.bin is missing");
    struct {
        uint32_t kind, type;
        uint64_t n;
    } head;
    int seen[4] = {0};
    while (fread(&head, sizeof head, 1, f) == 1) {
        assert_true(head.kind < 4 && dtype_get(head.type));
        const dtype type = (dtype)head.type;
        const dtype_info *info = dtype_get(type);
        const size_t n = (size_t)head.n, bytes = dtype_row_bytes(type, n);
        uint8_t *blocks = malloc(bytes), *made = malloc(bytes);
        float *x = malloc(4 * n), *y = malloc(4 * n);
        assert_true(blocks && made && x && y);
        uint64_t bulk[2];
        seen[head.kind]++;
        switch (head.kind) {
        case 0:
            assert_int_equal(fread(blocks, 1, bytes, f), bytes);
            assert_int_equal(fread(x, 4, n, f), n);
            dequantize_row(type, blocks, y, n);
            same_floats(type, y, x, n);
            break;
        case 1:
            assert_int_equal(fread(x, 4, n, f), n);
            assert_int_equal(fread(blocks, 1, bytes, f), bytes);
            quantize_row(type, x, made, n);
            for (size_t i = 0; i < bytes; i++)
                if (made[i] != blocks[i])
                    fail_msg("%s: byte %zu of block %zu is %02x, expected %02x", info->name,
                             i % info->block_bytes, i / info->block_bytes, made[i], blocks[i]);
            break;
        case 2:
            assert_int_equal(fread(bulk, 8, 2, f), 2);
            random_blocks(bulk[0], type, blocks, n / info->block);
            dequantize_row(type, blocks, y, n);
            if (hash64(y, 4 * n) != bulk[1]) fail_msg("dequantize %s in bulk differs", info->name);
            break;
        default:
            assert_int_equal(fread(bulk, 8, 2, f), 2);
            random_floats(bulk[0], x, n);
            quantize_row(type, x, made, n);
            if (hash64(made, bytes) != bulk[1]) fail_msg("quantize %s in bulk differs", info->name);
        }
        free(blocks);
        free(made);
        free(x);
        free(y);
    }
    fclose(f);
    assert_true(seen[0] == 10 && seen[1] == 7 && seen[2] == 10 && seen[3] == 7);
}

/* Every half: sign * 2^(e - 25) * (1024 + m), or sign * 2^-24 * m. */
static void every_f16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        int e = h >> 10 & 31, m = h & 0x3ff;
        double v = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        float f = f16_to_f32((uint16_t)h);
        assert_int_equal(signbit(f) != 0, h >> 15);
        if (e == 31) {
            assert_true(m ? isnan(f) : isinf(f));
            if (m)
                assert_true(isnan(f16_to_f32(f32_to_f16(f))));
            else
                assert_int_equal(f32_to_f16(f), h);
            continue;
        }
        assert_true((double)fabsf(f) == v);
        assert_int_equal(f32_to_f16(f), h);
        if ((h & 0x7fff) == 0x7bff) continue;
        /* Half way to the next: to even. A little off: to the nearer one. */
        float next = f16_to_f32((uint16_t)(h + 1)), middle = f + (next - f) / 2;
        assert_int_equal(f32_to_f16(middle), h + (h & 1));
        assert_int_equal(f32_to_f16(nextafterf(middle, f)), h);
        assert_int_equal(f32_to_f16(nextafterf(middle, next)), h + 1);
    }
    assert_int_equal(f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(f32_to_f16(0x1p-25f), 0);
    assert_int_equal(f32_to_f16(0x1.000002p-25f), 1);
    assert_int_equal(f32_to_f16(1e-45f), 0);
    assert_int_equal(f32_to_f16(-0.0f), 0x8000);
}

static void bf16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = bf16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(bf16_to_f32(f32_to_bf16(f))));
        else
            assert_int_equal(f32_to_bf16(f), h);
    }
    assert_int_equal(f32_to_bf16(0x1.01p0f), 0x3f80);       /* half way: even */
    assert_int_equal(f32_to_bf16(0x1.03p0f), 0x3f82);       /* half way: even, upwards */
    assert_int_equal(f32_to_bf16(0x1.010002p0f), 0x3f81);   /* above */
    assert_int_equal(f32_to_bf16(0x1.fffffep127f), 0x7f80); /* overflows */
    uint32_t low_nan = 0x7f800001;                          /* its payload is lost by truncation */
    float nan_value;
    memcpy(&nan_value, &low_nan, 4);
    assert_true(isnan(bf16_to_f32(f32_to_bf16(nan_value))));
}

static void names(void **state) {
    (void)state;
    static const uint32_t types[] = {0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30};
    char list[200] = " ";
    strcat(strcat(list, dtype_list()), " ");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const dtype_info *info = dtype_get(types[i]);
        char word[16];
        snprintf(word, sizeof word, " %s ", info->name);
        assert_non_null(strstr(list, word));
        assert_int_equal(dtype_by_name(info->name), types[i]);
        assert_string_equal(dtype_any_name(types[i]), info->name);
        assert_int_equal(dtype_row_bytes((dtype)types[i], 512),
                         512 / info->block * info->block_bytes);
    }
    assert_int_equal(dtype_by_name("q4_k"), DTYPE_Q4_K);
    assert_int_equal(dtype_by_name("Q6_K"), DTYPE_Q6_K);
    assert_int_equal(dtype_by_name("F32"), DTYPE_F32);
    assert_int_equal(dtype_by_name("q4_2"), -1);
    assert_int_equal(dtype_by_name(""), -1);
    assert_null(dtype_get(4));
    assert_null(dtype_get(17));
    assert_null(dtype_get(UINT32_MAX));
    assert_string_equal(dtype_any_name(17), "IQ2_XS");
    assert_string_equal(dtype_any_name(24), "I8");
    assert_string_equal(dtype_any_name(77), "type 77");
    assert_string_equal(dtype_any_name(4), "type 4");
    assert_string_equal(dtype_any_name(UINT32_MAX), "type 4294967295");
}

/* ---- Quantizers of 256 --------------------------------------------------------------------- */

static double square_error(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sum;
}

static float clampf(float v, float low, float high) {
    return v < low ? low : v > high ? high : v;
}

/* What q4_K or q5_K (top = 15 or 31) would be with plain minima and maxima per group. */
static void naive_offset(const float *x, float *y, int top) {
    float scale[8], min[8], max_scale = 0, max_min = 0;
    for (int g = 0; g < 8; g++) {
        float low = 0, high = x[g * 32];
        for (int i = 0; i < 32; i++) {
            low = fminf(low, x[g * 32 + i]);
            high = fmaxf(high, x[g * 32 + i]);
        }
        scale[g] = (high - low) / (float)top;
        min[g] = -low;
        max_scale = fmaxf(max_scale, scale[g]);
        max_min = fmaxf(max_min, min[g]);
    }
    float d = f16_to_f32(f32_to_f16(max_scale / 63)), dmin = f16_to_f32(f32_to_f16(max_min / 63));
    for (int e = 0; e < 256; e++) {
        float s = d > 0 ? d * clampf(roundf(scale[e / 32] / d), 0, 63) : 0;
        float m = dmin > 0 ? dmin * clampf(roundf(min[e / 32] / dmin), 0, 63) : 0;
        y[e] = s * (s > 0 ? clampf(roundf((x[e] + m) / s), 0, (float)top) : 0) - m;
    }
}

static void naive_q6_K(const float *x, float *y) {
    float scale[16], largest = 0;
    for (int g = 0; g < 16; g++) {
        scale[g] = 0;
        for (int i = 0; i < 16; i++)
            scale[g] = fmaxf(scale[g], fabsf(x[g * 16 + i]) / 31);
        largest = fmaxf(largest, scale[g]);
    }
    float d = f16_to_f32(f32_to_f16(largest / 127));
    for (int e = 0; e < 256; e++) {
        float s = d > 0 ? d * clampf(roundf(scale[e / 16] / d), -128, 127) : 0;
        y[e] = s > 0 ? s * clampf(roundf(x[e] / s), -32, 31) : 0;
    }
}

/* Uniform, Gaussian, heavy-tailed or offset numbers, with groups of different size. */
static void sample(int kind, uint64_t seed, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double u = ((double)(splitmix64(seed, 2 * i) >> 11) + 0.5) * 0x1p-53;
        double v = ((double)(splitmix64(seed, 2 * i + 1) >> 11) + 0.5) * 0x1p-53;
        double gauss = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
        double group = exp2((double)(splitmix64(~seed, i / 32) & 3));
        x[i] = (float)(kind == 0   ? u - 0.5
                       : kind == 1 ? gauss
                       : kind == 2 ? gauss * group * (v > 0.98 ? 8 : 1)
                                   : u * group + 3) *
               0.05f;
    }
}

static void better_than_naive(void **state) {
    (void)state;
    enum { N = 256 * 400 };
    static float x[N], y[N], z[N];
    static uint8_t blocks[N];
    static const dtype types[] = {DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
    for (int t = 0; t < 3; t++) {
        for (int kind = 0; kind < 4; kind++) {
            sample(kind, 1000 + (uint64_t)kind, x, N);
            quantize_row(types[t], x, blocks, N);
            dequantize_row(types[t], blocks, y, N);
            for (size_t i = 0; i < N; i += 256) {
                if (types[t] == DTYPE_Q6_K)
                    naive_q6_K(x + i, z + i);
                else
                    naive_offset(x + i, z + i, types[t] == DTYPE_Q4_K ? 15 : 31);
            }
            double power = 0;
            for (size_t i = 0; i < N; i++)
                power += (double)x[i] * x[i];
            double ours = sqrt(square_error(x, y, N) / power);
            double naive = sqrt(square_error(x, z, N) / power);
            if (!(ours <= naive))
                fail_msg("%s, kind %d: relative RMS error %g, naive %g", dtype_any_name(types[t]),
                         kind, ours, naive);
            if (kind == 1) {
                /* Gaussian weights: ggml's own quantizers reach 0.0714, 0.0361 and 0.0177. */
                static const double most[] = {0.0715, 0.0355, 0.0180};
                if (!(ours < most[t])) fail_msg("%s: %g", dtype_any_name(types[t]), ours);
            }
        }
    }
}

/* Blocks that divide by zero if one is careless, and blocks that are exactly representable. */
static void degenerate(void **state) {
    (void)state;
    static const dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0,
                                  DTYPE_Q5_1, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int kind = 0; kind < 9; kind++) {
            float x[256], y[256], largest = 0;
            uint8_t blocks[512];
            for (int i = 0; i < 256; i++) {
                static const float plain[] = {0, -0.0f, 2.5f, -2.5f, 1e-42f, 65000, -65000};
                x[i] = kind < 7    ? plain[kind]
                       : kind == 7 ? (i == 77 ? -4.0f : 0)
                                   : (i & 1 ? 3e-8f : -1e-8f);
                largest = fmaxf(largest, fabsf(x[i]));
            }
            quantize_row(types[t], x, blocks, 256);
            dequantize_row(types[t], blocks, y, 256);
            for (int i = 0; i < 256; i++)
                if (!(fabsf(y[i] - x[i]) <= 0.14f * largest + 6e-8f))
                    fail_msg("%s, kind %d: %g became %g", dtype_any_name(types[t]), kind,
                             (double)x[i], (double)y[i]);
        }
    }
    /* Values on a grid of the type come back. */
    float x[256], y[256];
    uint8_t blocks[512];
    for (int i = 0; i < 256; i++)
        x[i] = (float)(i * 7 % 16) * 0.25f - 1.0f;
    quantize_row(DTYPE_Q4_K, x, blocks, 256);
    dequantize_row(DTYPE_Q4_K, blocks, y, 256);
    assert_true(sqrt(square_error(x, y, 256) / 256) < 0.002);
    for (int i = 0; i < 256; i++)
        x[i] = (float)(i * 7 % 64 - 32) * 0.5f;
    quantize_row(DTYPE_Q6_K, x, blocks, 256);
    dequantize_row(DTYPE_Q6_K, blocks, y, 256);
    assert_true(sqrt(square_error(x, y, 256) / 256) < 0.15);
}

/* Nothing is read or written outside the row, whatever its alignment. */
static void unaligned(void **state) {
    (void)state;
    static const uint32_t types[] = {0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        dtype type = (dtype)types[t];
        size_t bytes = dtype_row_bytes(type, 256);
        uint8_t *raw = malloc(bytes + 1), *aligned = malloc(bytes);
        float x[256], y[256], z[256];
        random_floats(9, x, 256);
        quantize_row(type, x, raw + 1, 256);
        memcpy(aligned, raw + 1, bytes);
        dequantize_row(type, raw + 1, y, 256);
        dequantize_row(type, aligned, z, 256);
        assert_memory_equal(y, z, sizeof y);
        dequantize_row(type, raw + 1, y, 0);
        quantize_row(type, x, raw, 0);
        free(raw);
        free(aligned);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),     cmocka_unit_test(every_f16),
        cmocka_unit_test(bf16),       cmocka_unit_test(names),
        cmocka_unit_test(degenerate), cmocka_unit_test(better_than_naive),
        cmocka_unit_test(unaligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
