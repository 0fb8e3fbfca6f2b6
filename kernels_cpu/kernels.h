/* The CPU's hot loops behind one table per instruction set.
 *
 * generic.c is the oracle: plain C, one number at a time. avx2.c, avx512.h, neon.c and neon_dot.c
 * state a few vector primitives and share the loops of vector.h and products.h. All of them do the
 * same operations on each number in the same order (a vector's lanes are rows of a matrix,
 * positions or head dimensions, never terms of one sum), so every instruction set gives the same
 * bits, and so does every way to cut a prompt into pieces, batches or threads.
 * tests/test_kernels.c holds them to that.
 *
 * ## Packed matrices
 * Weights are repacked at load (pack.c): 16 rows make a panel, a panel's columns are cut into
 * blocks of 32, and a block holds its 16 rows interleaved, so that one load brings the same columns
 * of 16 rows. The size is the file's (rows padded to 16; columns of float types to 32). With
 * "lane r" the part that belongs to row r of the panel, a block of 32 columns is
 *
 *   f32          [32 columns][16 lanes] float
 *   f16          [32][16] uint16
 *   bf16         [16][16][2] uint16: two neighbouring columns of a row; zero for what is below
 * 2^-126 q8_0         d [16] f16; [8][16] uint32: bytes of a word are columns 4j..4j+3, plus 128
 *   q4_0         d [16] f16; nibbles
 *   q4_1         d [16] f16; m [16] f16; nibbles
 *   q5_0, q5_1   as q4_0, q4_1, then high bits
 *   nibbles      [4][16] uint32: low nibbles of a word's bytes are columns 8j..8j+3, high ones
 *                8j+4..8j+7
 *   high bits    [16] uint32: bit g of byte i is column 4g+i
 * and the K types have a head per 256 columns before their eight blocks of 32:
 *   q4_K, q5_K   d [16] f16; dmin [16] f16; scales [12][16] uint8 (ggml's 6-bit packing by byte);
 *                then per block nibbles (q5_K: and high bits)
 *   q6_K         d [16] f16; scales [16][16] int8, one per 16 columns; then per block nibbles and
 *                [2][16] uint32: bits 2g,2g+1 of byte i of word h are column 16h+4g+i
 *
 * ## Activations
 * A matrix product reads its input block-major, so that one block of many columns is contiguous
 * (here n = rows of activations = columns of the product). Matrices of float types take f [K/32]
 * [n][32], float32, but bf16 ones take `rounded` where it is there: the same rounded to bf16 (zero
 * below 2^-126), as float32 or, for kernels with a dot product of bf16, as [K/32][n][16][2] uint16.
 * A block adds two sums, of its columns 0..15 and 16..31, each an fma per column from zero on, of
 * every pair of columns the odd one first: what that dot product does, so all kernels give its
 * bits. It takes numbers below 2^-126 as zero, so a product with `rounded` whose sums are that
 * small, but not zero, is excluded from "the same bits".
 *
 * Quantized matrices take q, or f where there is no q: q [K/32][n][32], whole numbers in 16 bits in
 * the kernels' own order, x ~ scale q. A block is narrow, |q| <= 127, or wide, |q| <= 32639 (two
 * signed bytes hold it): per block wide, scale, sum [2] of each half's q, scaled_sum = scale
 * (sum[0] + sum[1]). Products are summed exactly in int32 (|w| <= 255, 32 terms), so there is one
 * rounding per block.
 */
#ifndef KERNELS_H
#define KERNELS_H

#include "../weights/dtype.h"

enum {
    PANEL = 16,         /* rows of a packed panel */
    BLOCK = 32,         /* columns of a block */
    PAGE = 64,          /* positions in a KV page */
    ATTEND_GROUP = 512, /* most query heads of one KV head */
    NARROW = 127,       /* largest |q| of a narrow block of activations */
    WIDE = 32639        /* 127 * 256 + 127, of a wide one */
};

/* A packed matrix: y = W x (+ bias), W [rows, cols]. */
typedef struct {
    const uint8_t *data; /* [rows/16 panels], each panel_bytes long */
    float *bias;         /* [rows] or NULL */
    size_t rows, cols;
    size_t panel_bytes;
    dtype type;
} matrix;

/* Input of a matrix product, see above; what no matrix takes is NULL, with `q` all that follows. */
typedef struct {
    size_t n, cols;
    float *f, *rounded;
    int16_t *q;
    float *scale, *scaled_sum;
    int32_t *sum;
    uint8_t *wide;
} activations;

typedef enum { GEMM_STORE, GEMM_ADD } gemm_mode;

/* One of the products of an input that is shared: y = W x, or y += W x. */
typedef struct {
    const matrix *w;
    float *y; /* [n, ldy] */
    size_t ldy;
    gemm_mode mode;
} product;

/* Partial softmax attention of one query over a range of positions: the largest score, the sum of
 * exp(score - max), and the weighted sum of values, [head_dim] floats elsewhere. */
typedef struct {
    float max, sum;
} attend_sum;

typedef enum { KV_F16, KV_F32, KV_Q8_0 } kv_kind;
enum { KV_KINDS = KV_Q8_0 + 1 };

/* One KV head of a page: K transposed [head_dim][64], V [64][head_dim_padded]; with KV_Q8_0 int8
 * and f16 scales kd [head_dim/32][64], vd [64][head_dim/32]. */
typedef struct {
    const void *k, *v;
    const uint16_t *kd, *vd;
    ptrdiff_t next; /* bytes from here to the same head in the page that comes next, 0: unknown */
} kv_view;

/* A query of a tile: positions [from, to) of the page are visible. */
typedef struct {
    const float *q; /* [head_dim], already scaled by 1/sqrt(head_dim) */
    float *out;     /* [head_dim_padded] running weighted sum of values */
    attend_sum *sum;
    int from, to;
} attend_query;

typedef struct kernels {
    const char *name;
    /* y[c * ldy + r] = (ADD: y +) sum_k W[r,k] x[c,k] + bias[r] for rows of panels [p0, p1). */
    void (*gemm)(const matrix *w, size_t p0, size_t p1, const activations *x, float *y, size_t ldy,
                 gemm_mode mode);
    /* Row c of `a` from x [cols], blocks [b0, b1), to f, rounded and q as far as they are there.
     * Columns past a->cols are zero. */
    void (*quantize)(const activations *a, size_t c, const float *x, size_t b0, size_t b1,
                     bool narrow);
    /* out = x / sqrt(mean(x^2) + eps) * w; sums in double, 16 interleaved partial sums. */
    void (*rms_norm)(float *out, const float *x, const float *w, size_t n, float eps);
    /* out = (x - mean) / sqrt(var + eps) * w + b (b may be NULL). */
    void (*layer_norm)(float *out, const float *x, const float *w, const float *b, size_t n,
                       float eps);
    void (*silu_mul)(float *gate, const float *up, size_t n); /* gate = silu(gate) * up */
    void (*gelu)(float *x, size_t n);                         /* tanh form, GPT-2's gelu_new */
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
    void (*exp_shifted)(float *out, const float *x, float sign, float shift,
                        size_t n); /* exp(sign x - shift), sign 1 or -1 */
    /* out = exp(sign x - max(sign x)), divided by its sum (as in rms_norm) if `normalize`. */
    void (*softmax)(float *out, const float *x, float sign, size_t n, bool normalize);
    /* out[c] += sum_r x[r] m[r][c], m [rows, cols]; terms in order of r, one rounding each. */
    void (*add_rows)(float *out, const float *x, const float *m, size_t rows, size_t cols);
    /* m[r][c] += x[r] y[c], one rounding. */
    void (*add_outer)(float *m, const float *x, const float *y, size_t rows, size_t cols);
    /* out = x scale / sqrt(sum x^2 + eps); sums as in rms_norm. */
    void (*l2_norm)(float *out, const float *x, size_t n, float eps, float scale);
    void (*sigmoid_mul)(float *gate, const float *up, size_t n); /* gate = sigmoid(gate) * up */
    /* Channels [c0, c1) of out[c] = bias[c] + sum_j w[j][c] x[j][c], terms in this order, w [taps,
     * ldw]; with `silu` its silu. bias may be NULL; no w: the one tap as it is. */
    void (*short_conv)(float *out, const float *const *x, const float *w, const float *bias,
                       size_t ldw, size_t taps, size_t c0, size_t c1, bool silu);
    /* One token of the gated delta rule on `n` columns (value dimensions) of a state of n_keys rows
     * that are `ld` apart, column by column:
     *   d = beta (v - decay sum_i k_i s_i);  s_i = decay s_i + k_i d;  o = sum_i q_i s_i
     * Sums have 4 interleaved parts, (0 + 1) + (2 + 3). */
    void (*delta_step)(float *s, size_t ld, size_t n_keys, size_t n, const float *q, const float *k,
                       const float *v, float decay, float beta, float *o);
    /* Advances each query over one page (online softmax, Milakov & Gimelshein 2018). */
    void (*attend)(kv_kind kind, const kv_view *page, int head_dim, const attend_query *queries,
                   int n_queries);
} kernels;

/* "auto" or NULL picks the best this CPU has; otherwise the one named, an error if it is not known
 * or not here. */
linnet_status kernels_select(const char *isa, const kernels **out, linnet_error *err);
extern const kernels kernels_generic;
#ifdef __x86_64__
extern const kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16; /* both named avx512 */
#elif defined(__aarch64__)
extern const kernels kernels_neon, kernels_neon_dot; /* both are named neon */
#endif

/* pack.c */
size_t packed_block_bytes(dtype type);              /* of one panel: per 32 columns (256 for K) */
size_t packed_panel_bytes(dtype type, size_t cols); /* of one panel */
/* `rows` (1..16) consecutive rows in GGUF layout, `stride` bytes apart, to one panel. */
void pack_panel(dtype type, const void *src, size_t stride, size_t rows, size_t cols, void *panel);
/* One row's 32 columns of a panel: w[k] = d[k/16] * q[k] + m, or f[k] for float types. */
typedef struct {
    int16_t q[BLOCK];
    float d[2], m;
    float f[BLOCK];
} lane_block;
static inline bool is_float_type(dtype t) {
    return t == DTYPE_F32 || t == DTYPE_F16 || t == DTYPE_BF16;
}
/* What a matrix of type t is multiplied with, NULL: q. */
static inline const float *floats_for(dtype t, const activations *x) {
    if (t == DTYPE_BF16 && x->rounded) return x->rounded;
    return is_float_type(t) || !x->q ? x->f : NULL;
}
void packed_lane(dtype type, const uint8_t *panel, size_t block, size_t lane, lane_block *out);
void lane_to_f32(dtype type, lane_block *lane); /* fills f from d, q, m */
/* Row r of a packed matrix as float32, for embeddings of tied models. */
void packed_row(const matrix *w, size_t r, float *out);

#endif
