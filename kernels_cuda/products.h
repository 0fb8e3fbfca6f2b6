/* Between the steps (products.cu) and the matrix products: gemv.cu for few rows, gemm.cu for many,
 * gemm_exact.cu for many in float32, cublas.cu for very many where NVIDIA's library is there. */
#ifndef CUDA_PRODUCTS_H
#define CUDA_PRODUCTS_H

#include "pass.h"
#include "weights.h"

enum {
    MOST_PRODUCTS = 8,
    NO_ACTIVATION = -1, /* else an ffn_kind */
    PACKED_STEP = 64    /* columns of packed activations are padded to a multiple of it */
};

/* y [n, ldy] = W x + bias, or y += */
typedef struct {
    const uint8_t *data;
    const float *bias; /* or NULL */
    float *y;
    size_t ldy;
    unsigned rows;
    unsigned first; /* group of rows of the launch where its own begin */
    bool add;
} gpu_product;

/* Products of one input, all of one type, as kernels take them. With a gated activation: W^gate and
 * W^up, whose results become one y = activation(gate, up), that of the first. */
typedef struct {
    gpu_product of[MOST_PRODUCTS];
    unsigned n;
    unsigned cols, units; /* of a row */
    size_t panel_bytes;
    int activation;
} gpu_products;

/* What a product of few rows reads: n rows of src (or those that `rows` names), normalized where w
 * is there. `place` (stage << 32) + row is left in not_finite where a number is not finite. */
typedef struct {
    const float *src;
    const int *rows; /* NULL: 0, 1, ... */
    unsigned n;
    bool layer_norm;
    const float *w, *b; /* NULL: none */
    float eps;
    unsigned long long place, *not_finite; /* NULL: not asked for */
} gpu_input;

static inline bool is_gated(int activation) {
    return activation != NO_ACTIVATION && activation != FFN_GELU;
}

/* At most CUDA_FEW rows. */
void few_products(const cuda_pass *p, dtype type, const gpu_products *m, const gpu_input *in);
/* Any number of rows of src [n, cols], in float32. No activation. */
void exact_products(const cuda_pass *p, dtype type, const gpu_products *m, const float *src,
                    size_t n);
/* Rows of activations for tensor cores: [n, ld] f16, the number times 1/scale, columns from `cols`
 * to ld, a multiple of PACKED_STEP, zero. f16 keeps 8 times as much as bf16 of numbers that a
 * layer's input has; the scale is for those that no norm has bounded, which then may reach 2^20. */
typedef struct {
    uint16_t *at; /* NULL: none */
    size_t ld;
    float scale; /* a power of two */
} packed_rows;

/* Any number of rows. With an activation the result goes to `y` instead of the product's. */
void tensor_products(const cuda_pass *p, dtype type, const gpu_products *m, const packed_rows *x,
                     size_t n, const packed_rows *y);

/* The same by cuBLASLt, for products without bias and activation. False: the library is not to be
 * had, and nothing was done. `workspace` has CUBLAS_WORKSPACE bytes. */
enum {
    CUBLAS_FROM = 256, /* rows: for fewer, unpacking the matrix is too much of the work */
    CUBLAS_OWN = 32 << 20,
    CUBLAS_UNPACKED = 32 << 20,
    CUBLAS_WORKSPACE = CUBLAS_OWN + CUBLAS_UNPACKED
};
bool cublas_products(const cuda_pass *p, dtype type, const gpu_products *m, const packed_rows *x,
                     size_t n, void *workspace);

/* The feed-forward's activation of the gate (or, ungated, of the one matrix); formulas as in
 * kernels_cpu/forward.c. */
DEVICE float activated(int kind, float gate, float up) {
    switch (kind) {
    case FFN_SILU_GATED:
        return gate / (1 + expf(-gate)) * up;
    case FFN_GELU_GATED: /* 1 + erf(z) = erfc(-z) */
        return 0.5f * gate * erfcf(gate * -0.70710678118654752440f) * up;
    case FFN_SIGMOID_GATED:
        return up / (1 + expf(-gate));
    case FFN_POWLU_GATED:
        return (gate <= 0 ? gate : powf(gate, 3 / (sqrtf(gate) + 1))) / (1 + expf(-gate)) * up;
    default: { /* 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)) */
        float u = gate * fmaf(gate * gate, 0.0713548163f, 1.59576912f);
        return gate / (1 + expf(-u));
    }
    }
}

#endif
