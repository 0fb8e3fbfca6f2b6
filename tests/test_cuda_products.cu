/* Matrix products and embeddings of the CUDA backend on the emulated GPU: every type, odd shapes,
 * few rows and many, in float32 and on tensor cores, against sums in double of what dequantize_row
 * says. */
#include "../kernels_cuda/products.h"
#include "gpu.h"

#include <cstdlib>
#include <vector>

using std::vector;

static const dtype types[] = {DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0,
                              DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1,
                              DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
/* Columns are rounded up to the type's blocks; of float types, 3 less. */
static const struct {
    size_t rows, cols;
} shapes[] = {{1, 32}, {5, 64}, {16, 96}, {17, 256}, {33, 512}, {2, 768}, {100, 160}, {47, 1024}};
static const size_t counts[] = {1, 2, 3, 8, 9, 17, 64};
enum { N_MOST = CUBLAS_FROM + 1 };

static uint64_t seed;
/* Uniform in [-1, 1). */
static float random_float(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

/* A matrix with what it means, on the GPU behind a pass. */
struct subject {
    linnet_model *m;
    cuda_pass p;
    matrix w;
    size_t rows, cols;
    vector<float> values; /* [rows, cols] as dequantize_row has them */
    vector<float> bias;
    uint8_t *arena, *arena_gpu;
    void *packed;
};

static subject make(dtype type, size_t rows, size_t cols, linnet_activations act) {
    subject s = {};
    const dtype_info *info = dtype_get(type);
    s.rows = rows;
    s.cols = cols = info->block == 1 ? cols - 3 : round_up(cols, info->block);
    s.m = (linnet_model *)calloc(1, sizeof *s.m);
    s.m->act = act;
    s.m->widest = cols;
    s.m->cfg.n_ff = (int)rows;
    s.m->cfg.n_embd = (int)cols;
    seed = type * 1000 + rows + cols;
    size_t row_bytes = dtype_row_bytes(type, cols), panels = (rows + PANEL - 1) / PANEL;
    vector<uint8_t> file(rows * row_bytes);
    vector<float> line(cols);
    s.values.resize(rows * cols);
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < cols; k++)
            line[k] = random_float() + (k % 64 < 16 ? 0.5f : 0);
        quantize_row(type, line.data(), &file[r * row_bytes], cols);
        dequantize_row(type, &file[r * row_bytes], &s.values[r * cols], cols);
        s.bias.push_back(random_float());
    }
    size_t panel = cuda_panel_bytes(type, cols), at_bias = panels * panel;
    size_t bytes = at_bias + rows * sizeof(float);
    s.arena = (uint8_t *)aligned_alloc(64, round_up(bytes, 64));
    for (size_t i = 0; i < panels; i++)
        cuda_pack_panel(type, &file[i * PANEL * row_bytes], row_bytes,
                        min_size(PANEL, rows - i * PANEL), cols, s.arena + i * panel);
    memcpy(s.arena + at_bias, s.bias.data(), rows * sizeof(float));
    s.arena_gpu = upload(vector<uint8_t>(s.arena, s.arena + bytes));
    s.w = {s.arena, (float *)(void *)(s.arena + at_bias), rows, cols, panel, type};
    s.p.m = s.m;
    s.p.stream = stream;
    s.p.sm_count = 1 + rows % 2;
    s.p.exact = act == LINNET_ACT_EXACT;
    s.p.weights = (ptrdiff_t)((uintptr_t)s.arena_gpu - (uintptr_t)s.arena);
    return s;
}

static void unmake(subject *s) {
    device_free(gpu, s->arena_gpu);
    free(s->arena);
    free(s->m);
}

/* y = W x (added to ones if `add`), n rows, in the order of threads that is set. */
static vector<float> product_of(subject *s, const vector<float> &x, size_t n, bool bias, bool add) {
    linnet_error err;
    cuda_pass *p = &s->p;
    matrix w = s->w;
    if (!bias) w.bias = NULL;
    float *src = upload(x), *y = upload(vector<float>(n * s->rows, 1));
    p->n = n;
    p->packed_bytes = cuda_packed_bytes(s->m, n);
    if (device_alloc(gpu, p->packed_bytes, &p->packed, &err)) fail_msg("%s", err.text);
    product one = {&w, y, s->rows, add ? GEMM_ADD : GEMM_STORE};
    cuda_products(p, src, s->cols, &one, 1);
    vector<float> out = download(y, n * s->rows);
    device_free(gpu, src);
    device_free(gpu, y);
    device_free(gpu, p->packed);
    return out;
}

static vector<float> random_rows(size_t n, size_t cols) {
    vector<float> x(n * cols);
    for (float &v : x)
        v = random_float();
    return x;
}

/* Float32: its rounding over the sum of magnitudes. Tensor cores: two roundings to 11 bits of each
 * term, which add up like random numbers. */
static void check(const subject *s, const vector<float> &x, const vector<float> &y, size_t n,
                  bool bias, bool add) {
    bool many = n > CUDA_FEW && !s->p.exact;
    for (size_t c = 0; c < n; c++)
        for (size_t r = 0; r < s->rows; r++) {
            double want = (bias ? s->bias[r] : 0) + (add ? 1 : 0), all = fabs(want), squares = 0;
            for (size_t k = 0; k < s->cols; k++) {
                double t = (double)s->values[r * s->cols + k] * x[c * s->cols + k];
                want += t;
                all += fabs(t);
                squares += t * t;
            }
            double bound = 2e-6 * all + (many ? 4 * 0x1p-10 * sqrt(squares) : 0);
            double error = fabs(y[c * s->rows + r] - want);
            if (!(error <= bound))
                fail_msg("%s [%zu, %zu], %zu rows, activations %d: row %zu, number %zu is %g, not "
                         "%g: off by %g, allowed %g",
                         dtype_get(s->w.type)->name, s->rows, s->cols, n, s->m->act, c, r,
                         y[c * s->rows + r], want, error, bound);
        }
}

static bool same(const vector<float> &a, const vector<float> &b, size_t n) {
    return !memcmp(a.data(), b.data(), n * sizeof(float));
}

/* Every type, shape and number of rows; threads in other orders give the same bits, as do rows that
 * are computed beside others. */
static void products(dtype type) {
    unsigned turn = 0;
    for (int exact = 0; exact < 2; exact++)
        for (const auto &shape : shapes) {
            subject s =
                make(type, shape.rows, shape.cols, exact ? LINNET_ACT_EXACT : LINNET_ACT_AUTO);
            vector<float> x = random_rows(64, s.cols), alone;
            for (size_t n : counts) {
                vector<float> some(x.begin(), x.begin() + (ptrdiff_t)(n * s.cols));
                bool bias = turn % 2, add = turn / 2 % 2;
                if (exact && n <= CUDA_FEW) continue; /* the same kernels */
                simt_set_order(SIMT_FORWARD, 0);
                vector<float> y = product_of(&s, some, n, bias, add);
                check(&s, some, y, n, bias, add);
                if (turn++ % 4 == 0) {
                    simt_set_order(turn % 8 ? SIMT_SHUFFLED : SIMT_REVERSE, turn);
                    assert_true(same(y, product_of(&s, some, n, bias, add), y.size()));
                }
                if (n == 3 || n == 17) { /* whatever its neighbours are */
                    for (size_t k = s.cols; k < n * s.cols; k++)
                        some[k] = NAN;
                    assert_true(same(y, product_of(&s, some, n, bias, add), s.rows));
                }
            }
            unmake(&s);
        }
}

static void test_products(void **state) {
    products(*(const dtype *)*state);
}

/* So many rows that NVIDIA's library would multiply: here a loop, but the unpacking is ours. */
static void test_library(void **state) {
    (void)state;
    simt_set_order(SIMT_FORWARD, 0);
    for (dtype type : types) {
        subject s = make(type, 19, 96, LINNET_ACT_AUTO);
        for (size_t n : {(size_t)CUBLAS_FROM, (size_t)CUBLAS_FROM + 1}) { /* the latter refused */
            vector<float> x = random_rows(n, s.cols);
            check(&s, x, product_of(&s, x, n, false, true), n, false, true);
        }
        unmake(&s);
    }
}

/* Few rows give the same bits one by one and together. */
static void test_few(void **state) {
    (void)state;
    simt_set_order(SIMT_FORWARD, 0);
    for (dtype type : types) {
        subject s = make(type, 47, 1024, LINNET_ACT_AUTO);
        vector<float> x = random_rows(CUDA_FEW, s.cols);
        vector<float> all = product_of(&s, x, CUDA_FEW, true, false);
        for (size_t n : {1, 2, 3, 5})
            assert_true(
                same(all,
                     product_of(&s, vector<float>(x.begin(), x.begin() + (ptrdiff_t)(n * s.cols)),
                                n, true, false),
                     n * s.rows));
        unmake(&s);
    }
}

/* Embeddings are dequantize_row's numbers to the bit. */
static void test_embed(void **state) {
    (void)state;
    simt_set_order(SIMT_FORWARD, 0);
    for (dtype type : types)
        for (const auto &shape : shapes) {
            subject s = make(type, shape.rows, shape.cols, LINNET_ACT_AUTO);
            vector<cuda_row> rows(s.rows);
            for (size_t r = 0; r < s.rows; r++)
                rows[r].token = (int)(s.rows - 1 - r);
            cuda_row *rows_gpu = upload(rows);
            float *x = upload(vector<float>(s.rows * s.cols));
            s.m->cfg.tied = true;
            s.m->output = s.w;
            s.p.n = s.rows;
            s.p.rows = rows_gpu;
            s.p.x = x;
            cuda_embed(&s.p);
            vector<float> got = download(x, s.rows * s.cols);
            for (size_t r = 0; r < s.rows; r++)
                for (size_t k = 0; k < s.cols; k++) {
                    float want = s.values[(s.rows - 1 - r) * s.cols + k];
                    if (got[r * s.cols + k] != want)
                        fail_msg("%s: row %zu, column %zu is %.9g, not %.9g", dtype_get(type)->name,
                                 r, k, got[r * s.cols + k], want);
                }
            device_free(gpu, rows_gpu);
            device_free(gpu, x);
            unmake(&s);
        }
}

int main(void) {
    struct CMUnitTest tests[16];
    size_t n = 0;
    for (const dtype &type : types)
        tests[n++] = {dtype_get(type)->name, test_products, open_gpu, close_gpu, (void *)&type};
    tests[n++] = {"library", test_library, open_gpu, close_gpu, NULL};
    tests[n++] = {"few", test_few, open_gpu, close_gpu, NULL};
    tests[n++] = {"embed", test_embed, open_gpu, close_gpu, NULL};
    return _cmocka_run_group_tests("products", tests, n, NULL, NULL);
}
