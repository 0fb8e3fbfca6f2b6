/* Every vector kernel against generic.c, bit for bit, on odd shapes; generic.c against float64. */
#include "../kernels_cpu/kernels.h"
#include "support.h"

#include <float.h>

static const dtype types[] = {DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0,
                              DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1,
                              DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
enum { N_TYPES = sizeof types / sizeof *types };

/* The tables that this CPU can run, NULL at the end; `tables`: those with vectors. */
static const kernels *all_tables[5] = {&kernels_generic}, **const tables = all_tables + 1;

static void find_tables(void) {
    static const char *const names[] = {"avx2", "avx512", "neon"};
    int n = 0;
    for (int i = 0; i < 3; i++)
        if (kernels_select(names[i], &tables[n], NULL) == LINNET_OK) n++;
#ifdef __aarch64__
    if (tables[0] != &kernels_neon) tables[n++] = &kernels_neon; /* runs wherever the better does */
#else
    if (n && tables[n - 1] == &kernels_avx512_bf16) tables[n++] = &kernels_avx512;
#endif
    tables[n] = NULL;
}

static uint64_t seed = 1;

/* Uniform in [-1, 1). */
static float noise(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 11) / (double)(1ull << 52) - 1.0);
}

static float *noises(size_t n, float scale) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = noise() * scale;
    return x;
}

typedef struct {
    matrix m;
    float *values; /* [rows, cols], as dequantized from the file's form */
    void *packed;
} weights;

/* Random rows in GGUF form: random bytes, with scales that are small numbers. */
static void random_rows(dtype type, uint8_t *raw, size_t bytes) {
    const dtype_info *info = dtype_get(type);
    for (size_t i = 0; i < bytes; i++)
        raw[i] = (uint8_t)(noise() * 128 + 128);
    for (size_t b = 0; b * info->block_bytes < bytes; b++) {
        uint8_t *block = raw + b * info->block_bytes;
        float f = noise();
        uint16_t d = f32_to_f16(f * 0.1f), m = f32_to_f16(noise());
        switch (type) {
        case DTYPE_F32:
            memcpy(block, &f, 4);
            break;
        case DTYPE_F16:
            d = f32_to_f16(f), memcpy(block, &d, 2);
            break;
        case DTYPE_BF16: /* some are below 2^-126 */
            d = b % 19 == 3 ? (uint16_t)(b % 256 << 8 | 0x55) & 0x807f : f32_to_bf16(f);
            memcpy(block, &d, 2);
            break;
        case DTYPE_Q6_K:
            memcpy(block + 208, &d, 2);
            break;
        default:
            memcpy(block, &d, 2);
            if (type != DTYPE_Q8_0 && type != DTYPE_Q4_0 && type != DTYPE_Q5_0)
                memcpy(block + 2, &m, 2);
        }
    }
}

static weights make_weights(dtype type, size_t rows, size_t cols) {
    size_t stride = dtype_row_bytes(type, cols), panels = (rows + PANEL - 1) / PANEL;
    uint8_t *raw = malloc(rows * stride);
    weights w = {.m = {.rows = rows, .cols = cols, .type = type}};
    w.m.panel_bytes = packed_panel_bytes(type, cols);
    w.packed = aligned_alloc(64, round_up(panels * w.m.panel_bytes, 64));
    w.m.data = w.packed;
    w.values = malloc(rows * cols * sizeof(float));
    random_rows(type, raw, rows * stride);
    for (size_t r = 0; r < rows; r++)
        dequantize_row(type, raw + r * stride, w.values + r * cols, cols);
    for (size_t i = 0; i < rows * cols && type == DTYPE_BF16; i++)
        if (fabsf(w.values[i]) < FLT_MIN) w.values[i] = 0;
    for (size_t p = 0; p < panels; p++)
        pack_panel(type, raw + p * PANEL * stride, stride, min_size(PANEL, rows - p * PANEL), cols,
                   (uint8_t *)w.packed + p * w.m.panel_bytes);
    free(raw);
    return w;
}

static void free_weights(weights *w) {
    free(w->values);
    free(w->packed);
}

typedef enum { ALL_WIDE, ALL_NARROW, MIXED, FLOATS, ROUNDED } precision;

static activations make_activations(size_t n, size_t cols, precision how) {
    bool quantized = how < FLOATS;
    size_t padded = round_up(cols, BLOCK);
    activations a = {.n = n, .cols = cols};
    a.f = malloc(n * padded * sizeof(float));
    if (how == ROUNDED) a.rounded = malloc(n * padded * sizeof(float));
    if (quantized) {
        a.q = malloc(n * padded * sizeof(int16_t));
        a.scale = malloc(n * padded / BLOCK * sizeof(float));
        a.scaled_sum = malloc(n * padded / BLOCK * sizeof(float));
        a.sum = malloc(n * padded / BLOCK * 2 * sizeof(int32_t));
        a.wide = malloc(n * padded / BLOCK);
    }
    return a;
}

static void free_activations(activations *a) {
    free(a->f);
    free(a->rounded);
    free(a->q);
    free(a->scale);
    free(a->scaled_sum);
    free(a->sum);
    free(a->wide);
}

static void fill(const kernels *k, activations *a, const float *x, precision how) {
    for (size_t c = 0; c < a->n; c++)
        for (size_t b = 0; b < round_up(a->cols, BLOCK) / BLOCK; b++)
            k->quantize(a, c, x + c * a->cols, b, b + 1,
                        how == ALL_NARROW || (how == MIXED && (b * 5 + c * 3) % 7 < 3));
}

static const size_t row_counts[] = {1, 15, 16, 17, 40}, column_counts[] = {32, 96, 256, 512};
static const size_t odd_columns[] = {1, 8, 33, 80}, batch[] = {1, 2, 3, 4, 5, 31, 32, 33, 70};

/* Unpacking gives the dequantized values back. */
static void packed_rows_are_the_dequantized_rows(void **state) {
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        size_t cols = 512;
        weights w = make_weights(types[t], 37, cols);
        float row[512];
        for (size_t r = 0; r < 37; r++) {
            packed_row(&w.m, r, row);
            for (size_t i = 0; i < cols; i++)
                if (row[i] != w.values[r * cols + i])
                    fail_msg("%s: row %zu column %zu: %g, expected %g", dtype_get(types[t])->name,
                             r, i, (double)row[i], (double)w.values[r * cols + i]);
        }
        free_weights(&w);
    }
}

/* The nearest number of 8 bits, or multiple of 2^-133, ties to even; zero below 2^-126. */
static double to_bf16(double x) {
    int exponent, step;
    frexp(x, &exponent);
    step = exponent > -125 ? exponent - 8 : -133;
    double r = ldexp(nearbyint(ldexp(x, -step)), step);
    return fabs(r) < FLT_MIN ? 0 : r;
}

/* y = W x (+ bias) (+ y) of `k`, into fresh memory. */
static float *times(const kernels *k, const weights *w, const activations *a, const float *start,
                    gemm_mode mode) {
    size_t n = a->n * w->m.rows;
    float *y = malloc(n * sizeof *y);
    memcpy(y, start, n * sizeof *y);
    k->gemm(&w->m, 0, (w->m.rows + PANEL - 1) / PANEL, a, y, w->m.rows, mode);
    return y;
}

static void check_product(dtype type, size_t rows, size_t cols, size_t n, precision how) {
    bool quantized = how < FLOATS;
    weights w = make_weights(type, rows, cols);
    float *x = noises(n * cols, 3), *start = noises(n * rows, 1), *bias = noises(rows, 1);
    for (size_t i = 5; i < n * cols; i += 23)
        x[i] *= 1e-39f; /* as good as zero */
    gemm_mode mode = n % 2 ? GEMM_ADD : GEMM_STORE;
    if (rows % 2) w.m.bias = bias;
    activations a = make_activations(n, cols, how);
    fill(&kernels_generic, &a, x, how);
    float *expected = times(&kernels_generic, &w, &a, start, mode);
    for (size_t c = 0; c < n; c++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < cols; i++) {
                double value = x[c * cols + i];
                double term = w.values[r * cols + i] * (how == ROUNDED ? to_bf16(value) : value);
                sum += term;
                size += fabs(term);
            }
            if (w.m.bias) sum += bias[r];
            if (mode == GEMM_ADD) sum += start[c * rows + r];
            /* quantization: 2^-16 (narrow: 2^-8) of the block's largest for each term; float32
             * sums: 2^-24 each */
            double step = how != ALL_WIDE ? 256 * 6e-5 : 6e-5;
            double bound = quantized ? step * (size + 3 * (double)cols * 0.05) : 3e-6 * size;
            double error = fabs(sum - expected[c * rows + r]);
            if (!(error <= bound + 1e-6))
                fail_msg("%s %zux%zu n %zu: error %g, bound %g", dtype_get(type)->name, rows, cols,
                         n, error, bound);
        }
    for (const kernels **k = tables; *k; k++) {
        fill(*k, &a, x, how);
        float *y = times(*k, &w, &a, start, mode);
        if (memcmp(y, expected, n * rows * sizeof *y))
            fail_msg("%s: %s %zux%zu n %zu precision %d differs from generic", (*k)->name,
                     dtype_get(type)->name, rows, cols, n, how);
        free(y);
    }
    free(expected);
    free_activations(&a);
    free(x);
    free(start);
    free(bias);
    free_weights(&w);
}

static void products_equal_generic_and_float64(void **state) {
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        size_t block = dtype_get(types[t])->block;
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
            for (size_t c = 0; c < 4; c++) {
                size_t cols = block == 1 ? odd_columns[c] : column_counts[c];
                if (cols % block) continue;
                for (size_t b = 0; b < sizeof batch / sizeof *batch; b += 1 + (r + c) % 2)
                    for (int how = is_float_type(types[t]) ? FLOATS : ALL_WIDE;
                         how <= (types[t] == DTYPE_BF16 ? ROUNDED : FLOATS); how++)
                        check_product(types[t], row_counts[r], cols, batch[b], (precision)how);
            }
    }
}

/* What activations are rounded to is what a matrix of ones on the diagonal gives back. */
static void rounding_to_bf16_is_nearest_even(void **state) {
    (void)state;
    enum { COLS = BLOCK, ROWS = 400 };
    static const uint32_t special[] = {0,          0x80000000, 0x3f808000, 0x3f818000, 0x3f807fff,
                                       0x3f808001, 0xbf818000, 0x00000001, 0x007f7fff, 0x007f8000,
                                       0x007fffff, 0x00800000, 0x807fffff, 0x80800000, 0x7f7f7fff,
                                       0xff7f7fff, 0x7f000000, 0x3f7fffff, 0x00807fff, 0x00808000};
    static float x[ROWS * COLS], y[ROWS * COLS];
    uint16_t one[PANEL * COLS] = {0}, packed[PANEL * COLS];
    for (size_t r = 0; r < PANEL; r++)
        one[r * COLS + 2 * r] = 0x3f80; /* even columns; the odd ones in a second matrix */
    for (size_t i = 0; i < ROWS * COLS; i++) {
        uint32_t bits = (uint32_t)(seed >> 32);
        noise();
        if (i % 3 == 0) bits = (bits & 0xffff0000) | 0x8000; /* a tie */
        if (bits << 1 >= 0xfeff0000u) bits = 0x40490fdb;     /* would be infinite */
        if (i < sizeof special / sizeof *special) bits = special[i];
        memcpy(&x[i], &bits, 4);
    }
    for (size_t odd = 0; odd < 2; odd++) {
        if (odd) memmove(one + 1, one, sizeof one - 2), one[0] = 0;
        pack_panel(DTYPE_BF16, one, COLS * 2, PANEL, COLS, packed);
        matrix m = {(const uint8_t *)packed, NULL, PANEL, COLS, sizeof packed, DTYPE_BF16};
        activations a = make_activations(ROWS, COLS, ROUNDED);
        for (const kernels **k = all_tables; *k; k++) {
            fill(*k, &a, x, ROUNDED);
            (*k)->gemm(&m, 0, 1, &a, y, PANEL, GEMM_STORE);
            for (size_t c = 0; c < ROWS; c++)
                for (size_t r = 0; r < PANEL; r++) {
                    double value = x[c * COLS + 2 * r + odd];
                    if (!(y[c * PANEL + r] == to_bf16(value)))
                        fail_msg("%s: %a became %a", (*k)->name, value, (double)y[c * PANEL + r]);
                }
        }
        free_activations(&a);
    }
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, 0x1.ffffp127f};
    for (size_t i = 0; i < 5; i++)
        for (const kernels **k = all_tables; *k; k++) {
            uint32_t worst = 0x7fffffff; /* the largest of all NaNs */
            weights w = make_weights(DTYPE_BF16, 16, 64);
            float in[64] = {0}, out[16];
            in[40] = bad[i];
            if (i == 1) memcpy(&in[40], &worst, 4);
            activations a = make_activations(1, 64, ROUNDED);
            fill(*k, &a, in, ROUNDED);
            (*k)->gemm(&w.m, 0, 1, &a, out, 16, GEMM_STORE);
            for (int r = 0; r < 16; r++)
                assert_false(isfinite(out[r]));
            free_activations(&a);
            free_weights(&w);
        }
}

static void panel_ranges_touch_only_their_rows(void **state) {
    (void)state;
    weights w = make_weights(DTYPE_Q4_1, 70, 64);
    float *x = noises(3 * 64, 1), *zeros = calloc(3 * 70, sizeof *zeros);
    activations a = make_activations(3, 64, ALL_WIDE);
    fill(&kernels_generic, &a, x, ALL_WIDE);
    float *whole = times(&kernels_generic, &w, &a, zeros, GEMM_STORE);
    for (const kernels **k = tables; *k; k++) {
        float *y = calloc(3 * 70, sizeof *y);
        fill(*k, &a, x, ALL_WIDE);
        (*k)->gemm(&w.m, 1, 3, &a, y, 70, GEMM_STORE);
        for (size_t i = 0; i < 3 * 70; i++) {
            size_t r = i % 70;
            assert_true(y[i] == (r >= 16 && r < 48 ? whole[i] : 0));
        }
        free(y);
    }
    free(whole);
    free(x);
    free(zeros);
    free_activations(&a);
    free_weights(&w);
}

/* Quantized activations: equal everywhere, within half a step of the input, NaN and infinity kept.
 */
static void quantization_is_close_and_keeps_nan(void **state) {
    (void)state;
    for (int how = ALL_WIDE; how <= MIXED; how++)
        for (size_t cols = 1; cols < 100; cols += 7) {
            float *x = noises(2 * cols, powf(10, (float)(cols % 9) - 4));
            activations a = make_activations(2, cols, (precision)how),
                        b = make_activations(2, cols, (precision)how);
            size_t padded = round_up(cols, BLOCK);
            fill(&kernels_generic, &a, x, (precision)how);
            for (size_t c = 0; c < 2; c++)
                for (size_t i = 0; i < padded; i++) {
                    size_t at = i / BLOCK * 2 + c;
                    float value = i < cols ? x[c * cols + i] : 0;
                    float got = a.scale[at] * a.q[at * BLOCK + i % BLOCK];
                    assert_true(fabsf(got - value) <= 0.502f * a.scale[at]);
                    assert_true(abs(a.q[at * BLOCK + i % BLOCK]) <= (a.wide[at] ? WIDE : NARROW));
                    assert_true(a.f[at * BLOCK + i % BLOCK] == value);
                }
            for (const kernels **k = tables; *k; k++) {
                fill(*k, &b, x, (precision)how);
                assert_memory_equal(a.wide, b.wide, 2 * padded / BLOCK);
                assert_memory_equal(a.sum, b.sum, 4 * padded / BLOCK * sizeof *a.sum);
                assert_memory_equal(a.scale, b.scale, 2 * padded / BLOCK * sizeof *a.scale);
                assert_memory_equal(a.scaled_sum, b.scaled_sum, 2 * padded / BLOCK * sizeof(float));
            }
            free_activations(&a);
            free_activations(&b);
            free(x);
        }
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float x[64] = {0};
        x[40] = bad[i];
        activations a = make_activations(1, 64, ALL_WIDE);
        fill(&kernels_generic, &a, x, ALL_WIDE);
        assert_true(a.scale[0] == 0 && isnan(a.scale[1]) && isnan(a.scaled_sum[1]));
        for (const kernels **k = tables; *k; k++) {
            fill(*k, &a, x, ALL_WIDE);
            assert_true(a.scale[0] == 0 && isnan(a.scale[1]) && isnan(a.scaled_sum[1]));
        }
        free_activations(&a);
    }
}

static void row_kernels_equal_generic_and_float64(void **state) {
    (void)state;
    for (size_t n = 1; n < 90; n += n < 40 ? 1 : 7) {
        float *x = noises(n, 20), *w = noises(n, 1), *b = noises(n, 1);
        float out[4][96], got[96];
        uint16_t half[96], half_got[96];
        double square = 0, mean = 0, variance = 0;
        for (size_t i = 0; i < n; i++)
            square += (double)x[i] * x[i], mean += x[i];
        mean /= (double)n;
        for (size_t i = 0; i < n; i++)
            variance += (x[i] - mean) * (x[i] - mean);
        kernels_generic.rms_norm(out[0], x, w, n, 1e-5f);
        kernels_generic.layer_norm(out[1], x, w, b, n, 1e-5f);
        memcpy(out[2], x, n * sizeof *x);
        kernels_generic.silu_mul(out[2], w, n);
        memcpy(out[3], x, n * sizeof *x);
        kernels_generic.gelu(out[3], n);
        kernels_generic.to_f16(half, x, n);
        for (size_t i = 0; i < n; i++) {
            double v = x[i], rms = v / sqrt(square / (double)n + 1e-5) * w[i];
            double layer = (v - mean) / sqrt(variance / (double)n + 1e-5) * w[i] + b[i];
            double silu = v / (1 + exp(-v)) * w[i];
            double gelu = 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
            assert_true(fabs(out[0][i] - rms) <= 1e-6 * (1 + fabs(rms)));
            assert_true(fabs(out[1][i] - layer) <= 4e-6 * (1 + fabs(layer)));
            assert_true(fabs(out[2][i] - silu) <= 1e-6 * (1 + fabs(silu)));
            assert_true(fabs(out[3][i] - gelu) <= 2e-6 * (1 + fabs(gelu)));
            assert_int_equal(half[i], f32_to_f16(x[i]));
        }
        for (const kernels **k = tables; *k; k++) {
            (*k)->rms_norm(got, x, w, n, 1e-5f);
            assert_memory_equal(got, out[0], n * sizeof *x);
            (*k)->layer_norm(got, x, w, b, n, 1e-5f);
            assert_memory_equal(got, out[1], n * sizeof *x);
            memcpy(got, x, n * sizeof *x);
            (*k)->silu_mul(got, w, n);
            assert_memory_equal(got, out[2], n * sizeof *x);
            memcpy(got, x, n * sizeof *x);
            (*k)->gelu(got, n);
            assert_memory_equal(got, out[3], n * sizeof *x);
            (*k)->to_f16(half_got, x, n);
            assert_memory_equal(half_got, half, n * sizeof *half);
        }
        free(x);
        free(w);
        free(b);
    }
}

static void activations_saturate_and_keep_nan(void **state) {
    (void)state;
    for (int t = 0; all_tables[t]; t++) {
        float x[32], up[32];
        for (int i = 0; i < 32; i++)
            x[i] = up[i] = 1;
        x[0] = 1e30f, x[1] = -1e30f, x[2] = -200, x[3] = NAN, x[4] = 200, x[17] = NAN;
        all_tables[t]->silu_mul(x, up, 32);
        assert_true(x[0] == 1e30f && fabsf(x[1]) < 1e-6f && fabsf(x[2]) < 1e-30f && x[4] == 200);
        assert_true(isnan(x[3]) && isnan(x[17]));
    }
}

/* One page, random queries: equal to generic in every tile size; generic equal to float64. */
static void check_attention(kv_kind kind, int head_dim, int n, int low, int high) {
    size_t padded = round_up(head_dim, 16), size = kind == KV_F32 ? 4 : kind == KV_F16 ? 2 : 1;
    float *keys = noises((size_t)head_dim * PAGE, 1), *values = noises(PAGE * padded, 1);
    float *q = noises((size_t)n * head_dim, 2);
    size_t blocks = (size_t)head_dim / BLOCK;
    uint8_t *k = malloc((size_t)head_dim * PAGE * size), *v = malloc(padded * PAGE * size);
    uint16_t kd[16 * PAGE], vd[16 * PAGE];
    for (size_t i = 0; i < blocks * PAGE && kind == KV_Q8_0; i++) {
        kd[i] = f32_to_f16(fabsf(noise()) * 0.01f);
        vd[i] = f32_to_f16(fabsf(noise()) * 0.01f);
    }
    for (size_t i = 0; i < (size_t)head_dim * PAGE; i++) {
        if (kind == KV_F32) memcpy(k + 4 * i, &keys[i], 4);
        if (kind == KV_F16) ((uint16_t *)k)[i] = f32_to_f16(keys[i]);
        if (kind == KV_Q8_0) ((int8_t *)k)[i] = (int8_t)(keys[i] * 127);
        if (kind == KV_F16) keys[i] = f16_to_f32(((uint16_t *)k)[i]);
        if (kind == KV_Q8_0)
            keys[i] = f16_to_f32(kd[i / PAGE / BLOCK * PAGE + i % PAGE]) * ((int8_t *)k)[i];
    }
    for (size_t i = 0; i < PAGE * padded; i++) {
        if (kind == KV_F32) memcpy(v + 4 * i, &values[i], 4);
        if (kind == KV_F16) ((uint16_t *)v)[i] = f32_to_f16(values[i]);
        if (kind == KV_Q8_0) ((int8_t *)v)[i] = (int8_t)(values[i] * 127);
        if (kind == KV_F16) values[i] = f16_to_f32(((uint16_t *)v)[i]);
        if (kind == KV_Q8_0)
            values[i] = f16_to_f32(vd[i / padded * blocks + i % padded / BLOCK]) * ((int8_t *)v)[i];
    }
    kv_view page = {k, v, kd, vd, n % 2 ? 64 : 0};
    attend_sum sums[16], expected_sums[16];
    float *out = malloc((size_t)n * padded * sizeof *out), *expected = NULL;
    for (int t = 0; all_tables[t]; t++) {
        attend_query queries[16];
        for (int i = 0; i < n; i++) {
            int to = high - i % 3 > low ? high - i % 3 : low + 1;
            sums[i] = (attend_sum){i % 2 ? 0.5f : -INFINITY, i % 2 ? 2.0f : 0.0f};
            for (size_t d = 0; d < padded; d++)
                out[i * padded + d] = i % 2 ? 0.25f : 0.0f;
            queries[i] = (attend_query){q + i * head_dim, out + i * padded, &sums[i], low, to};
        }
        all_tables[t]->attend(kind, &page, head_dim, queries, n);
        if (t) {
            if (memcmp(out, expected, (size_t)n * padded * sizeof *out) ||
                memcmp(sums, expected_sums, (size_t)n * sizeof *sums))
                fail_msg("%s: attention kind %d, head_dim %d, %d queries, [%d, %d) differs",
                         all_tables[t]->name, kind, head_dim, n, low, high);
            continue;
        }
        expected = malloc((size_t)n * padded * sizeof *out);
        memcpy(expected, out, (size_t)n * padded * sizeof *out);
        memcpy(expected_sums, sums, sizeof sums);
        for (int i = 0; i < n; i++) {
            double mass = i % 2 ? 2.0 * exp(0.5 - sums[i].max) : 0, sum = mass, o[512], size = 0;
            for (size_t d = 0; d < padded; d++)
                o[d] = i % 2 ? 0.25 * exp(0.5 - sums[i].max) : 0;
            for (int p = low; p < queries[i].to; p++) {
                double s = 0, terms = 0;
                for (int d = 0; d < head_dim; d++) {
                    double term = (double)q[i * head_dim + d] * keys[d * PAGE + p];
                    s += term;
                    terms += fabs(term);
                }
                size = fmax(size, terms);
                double weight = exp(s - sums[i].max);
                sum += weight;
                for (size_t d = 0; d < padded; d++)
                    o[d] += weight * values[p * padded + d];
            }
            /* of exp and the sums; and what the rounding of a score, 2^-24 of its terms each, does
             * to its exp */
            double bound = 2e-6 + 2.4e-7 * size;
            assert_true(fabs(sums[i].sum - sum) <= bound * sum);
            for (size_t d = 0; d < padded; d++)
                assert_true(fabs(out[i * padded + d] - o[d]) <= bound * (1 + sum));
        }
    }
    free(expected);
    free(out);
    free(k);
    free(v);
    free(keys);
    free(values);
    free(q);
}

static void attention_equals_generic_and_float64(void **state) {
    static const int dims[] = {2, 8, 16, 32, 48, 64, 80, 96, 128, 256};
    static const int ranges[][2] = {{0, 1},   {0, 64},  {0, 33}, {5, 40},
                                    {63, 64}, {31, 32}, {40, 64}};
    (void)state;
    for (int kind = KV_F16; kind <= KV_Q8_0; kind++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++)
                for (int n = 1; n <= 9; n += 1 + (int)(r % 2)) {
                    if (kind == KV_Q8_0 && dims[d] % BLOCK) continue;
                    check_attention((kv_kind)kind, dims[d], n, ranges[r][0], ranges[r][1]);
                }
}

/* Sums over the rows of a matrix, and outer products added to one, in odd shapes. */
static void state_kernels_equal_generic_and_float64(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{1, 1},   {3, 7},    {5, 16},   {16, 33},
                                       {64, 64}, {40, 129}, {128, 80}, {7, 200}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        size_t rows = shapes[s][0], cols = shapes[s][1], n = rows * cols;
        float *m = noises(n, 1), *x = noises(rows, 1), *y = noises(cols, 1);
        float *sum = malloc(cols * sizeof *sum), *other = malloc(cols * sizeof *other);
        float *outer = malloc(n * sizeof *outer), *second = malloc(n * sizeof *second);
        memcpy(sum, y, cols * sizeof *sum);
        memcpy(outer, m, n * sizeof *m);
        kernels_generic.add_rows(sum, x, m, rows, cols);
        kernels_generic.add_outer(outer, x, y, rows, cols);
        for (size_t c = 0; c < cols; c++) {
            double exact = y[c];
            for (size_t r = 0; r < rows; r++) {
                exact += (double)x[r] * m[r * cols + c];
                double product = (double)x[r] * y[c] + m[r * cols + c];
                assert_true(fabs(outer[r * cols + c] - product) <= 1e-7 * (fabs(product) + 1e-3));
            }
            assert_true(fabs(sum[c] - exact) <= 1e-7 * (double)(rows + 1) * 4);
        }
        for (int t = 0; tables[t]; t++) {
            memcpy(outer, m, n * sizeof *m);
            kernels_generic.add_outer(outer, x, y, rows, cols);
            memcpy(other, y, cols * sizeof *other);
            memcpy(second, m, n * sizeof *m);
            tables[t]->add_rows(other, x, m, rows, cols);
            tables[t]->add_outer(second, x, y, rows, cols);
            assert_memory_equal(other, sum, cols * sizeof *sum);
            assert_memory_equal(second, outer, n * sizeof *outer);
            for (int sign = -1; sign <= 1; sign += 2) {
                kernels_generic.exp_shifted(outer, m, (float)sign, 0.75f, n);
                tables[t]->exp_shifted(second, m, (float)sign, 0.75f, n);
                assert_memory_equal(second, outer, n * sizeof *outer);
                for (size_t i = 0; i < n; i++)
                    assert_true(fabs(outer[i] - exp(sign * m[i] - 0.75)) <= 4e-7);
                for (int normalize = 0; normalize < 2; normalize++) {
                    double max = -INFINITY, total = 0;
                    kernels_generic.softmax(outer, m, (float)sign, n, normalize);
                    tables[t]->softmax(second, m, (float)sign, n, normalize);
                    assert_memory_equal(second, outer, n * sizeof *outer);
                    for (size_t i = 0; i < n; i++)
                        max = fmax(max, sign * (double)m[i]);
                    for (size_t i = 0; i < n; i++)
                        total += exp(sign * m[i] - max);
                    for (size_t i = 0; i < n; i++) {
                        double e = exp(sign * m[i] - max) / (normalize ? total : 1);
                        assert_true(fabs(outer[i] - e) <= 2e-6 * e);
                    }
                }
            }
        }
        free(m), free(x), free(y), free(sum), free(other), free(outer), free(second);
    }
}

/* Norms and gates of the delta rule's layers, and the convolution with 1 to 5 taps or none. */
static void delta_row_kernels_equal_generic_and_float64(void **state) {
    (void)state;
    for (size_t n = 1; n < 90; n += n < 40 ? 1 : 7) {
        float *x = noises(6 * n, 3), *w = noises(5 * n, 1), out[2][96], got[96];
        const float *rows[] = {x, x + n, x + 2 * n, x + 3 * n, x + 4 * n};
        double square = 1e-6;
        for (size_t i = 0; i < n; i++)
            square += (double)x[i] * x[i];
        kernels_generic.l2_norm(out[0], x, n, 1e-6f, 0.25f);
        memcpy(out[1], x, n * sizeof *x);
        kernels_generic.sigmoid_mul(out[1], w, n);
        for (size_t i = 0; i < n; i++) {
            assert_true(fabs(out[0][i] - 0.25 * x[i] / sqrt(square)) <= 3e-7);
            assert_true(fabs(out[1][i] - w[i] / (1 + exp(-(double)x[i]))) <= 3e-7);
        }
        for (const kernels **k = tables; *k; k++) {
            (*k)->l2_norm(got, x, n, 1e-6f, 0.25f);
            assert_memory_equal(got, out[0], n * sizeof *x);
            memcpy(got, x, n * sizeof *x);
            (*k)->sigmoid_mul(got, w, n);
            assert_memory_equal(got, out[1], n * sizeof *x);
        }
        for (size_t taps = 0; taps <= 5; taps++)
            for (int option = 0; option < 4; option++) {
                const float *weights = taps ? w : NULL, *bias = option / 2 ? x + 5 * n : NULL;
                size_t from = n / 3;
                bool silu = option % 2;
                kernels_generic.short_conv(out[0], rows, weights, bias, n, taps, from, n, silu);
                for (size_t i = from; i < n; i++) {
                    double sum = !taps ? x[i] : bias ? bias[i] : 0;
                    for (size_t j = 0; j < taps; j++)
                        sum += (double)w[j * n + i] * rows[j][i];
                    double expected = silu ? sum / (1 + exp(-sum)) : sum;
                    assert_true(fabs(out[0][i] - expected) <= 3e-6);
                }
                for (const kernels **k = tables; *k; k++) {
                    (*k)->short_conv(got, rows, weights, bias, n, taps, from, n, silu);
                    assert_memory_equal(got + from, out[0] + from, (n - from) * sizeof *got);
                }
            }
        free(x), free(w);
    }
}

static void delta_step_equals_generic_and_float64(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{1, 1},   {2, 7},   {3, 16},  {5, 9},
                                       {16, 33}, {64, 64}, {31, 47}, {128, 80}};
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        size_t keys = shapes[shape][0], n = shapes[shape][1], ld = n + 3, size = keys * ld;
        float *s = noises(size, 1), *after = malloc(size * sizeof *s), *other;
        float *q = noises(keys, 1), *k = noises(keys, 1), *v = noises(n, 1), o[96], got[96];
        other = malloc(size * sizeof *s);
        memcpy(after, s, size * sizeof *s);
        kernels_generic.delta_step(after, ld, keys, n, q, k, v, 0.75f, 1.5f, o);
        for (size_t c = 0; c < ld; c++) {
            double d = 0, sum = 0;
            for (size_t i = 0; i < keys; i++)
                d += (double)k[i] * s[i * ld + c];
            d = 1.5 * (c < n ? v[c] - 0.75 * d : 0);
            for (size_t i = 0; i < keys; i++) {
                double expected = c < n ? 0.75 * s[i * ld + c] + k[i] * d : s[i * ld + c];
                assert_true(fabs(after[i * ld + c] - expected) <= 1e-5);
                sum += q[i] * expected;
            }
            if (c < n) assert_true(fabs(o[c] - sum) <= 5e-5);
        }
        for (const kernels **t = tables; *t; t++) {
            memcpy(other, s, size * sizeof *s);
            (*t)->delta_step(other, ld, keys, n, q, k, v, 0.75f, 1.5f, got);
            assert_memory_equal(other, after, size * sizeof *s);
            assert_memory_equal(got, o, n * sizeof *o);
        }
        free(s), free(after), free(other), free(q), free(k), free(v);
    }
}

static void names_select_kernels(void **state) {
    (void)state;
    const kernels *k;
    linnet_error err;
    assert_int_equal(kernels_select("generic", &k, &err), LINNET_OK);
    assert_ptr_equal(k, &kernels_generic);
    assert_int_equal(kernels_select(NULL, &k, &err), LINNET_OK);
    assert_int_equal(kernels_select("auto", &k, &err), LINNET_OK);
    assert_int_equal(kernels_select("sse9", &k, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "sse9"));
#ifdef __aarch64__
    static const char *const elsewhere[] = {"avx2", "avx512"};
    assert_int_equal(kernels_select("neon", &k, &err), LINNET_OK);
    assert_string_equal(k->name, "neon");
#else
    static const char *const elsewhere[] = {"neon"};
#endif
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++) {
        assert_int_equal(kernels_select(elsewhere[i], &k, &err), LINNET_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.text, elsewhere[i]));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_rows_are_the_dequantized_rows),
        cmocka_unit_test(products_equal_generic_and_float64),
        cmocka_unit_test(rounding_to_bf16_is_nearest_even),
        cmocka_unit_test(panel_ranges_touch_only_their_rows),
        cmocka_unit_test(quantization_is_close_and_keeps_nan),
        cmocka_unit_test(row_kernels_equal_generic_and_float64),
        cmocka_unit_test(activations_saturate_and_keep_nan),
        cmocka_unit_test(attention_equals_generic_and_float64),
        cmocka_unit_test(state_kernels_equal_generic_and_float64),
        cmocka_unit_test(delta_row_kernels_equal_generic_and_float64),
        cmocka_unit_test(delta_step_equals_generic_and_float64),
        cmocka_unit_test(names_select_kernels),
    };
    find_tables();
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
