/* The tensors of each mixer, as its file loads them and every backend uses them. Pointers are into
 * the model's arena; dimensions in brackets, outermost first. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "../kernels_cpu/kernels.h"

enum {
    CONV_MAX_TAPS = 64,
    TAYLOR_MAX_FEATURES = 64,
    LOLCATS_MAX_FEATURES = 1024 /* learned ones of a head; also an adapter's inner width */
};

/* softmax.c */
typedef struct {
    matrix wq, wk, wv, wo;
    float *q_norm, *k_norm; /* [head_dim], or of all heads if `whole`, or NULL */
    bool q_whole, k_whole;
} softmax_weights;

/* short_conv.c */
typedef struct {
    matrix w_in, w_out;
    float *taps; /* [K][e] */
    float *bias; /* [e] or NULL */
    size_t kernel, inner;
} conv_weights;

/* taylor.c */
typedef struct {
    matrix wq, wk, wv, wo;
    size_t heads, features, moments, value_dim; /* f, F, V */
    float eps;
} taylor_weights;

/* delta.c */
typedef struct {
    matrix w_qkv, w_gate, w_beta, w_alpha, w_out; /* rows 0: the layer has none */
    bool joint;  /* w_beta has both: per q/k head the rows of beta, then of alpha (Qwen3-Next) */
    float *conv; /* [taps, channels] or NULL */
    float *conv_bias;           /* [channels] or NULL */
    float *log_decay, *dt_bias; /* [n_value_heads] -exp(A_log), or NULL */
    float *norm;                /* [value_dim] */
    size_t taps;                /* of the convolution, 1 without */
    bool has_conv, has_conv_bias;
} delta_weights;

/* lolcats.c */
typedef enum { SOFTMAX_DIM, EXP_DIM, POS_ELU, RELU, N_FEATURE_MAPS } feature_map;

/* Learned part of a map, u = f(x). Einsum: u = layer^T x + bias (+ x). Adapter:
 * u = x + up^T relu(down^T x + down_bias) + up_bias. */
typedef struct {
    float *layer, *bias;                    /* [heads][head_dim][width]; [heads] or NULL */
    float *down, *down_bias, *up, *up_bias; /* [heads][head_dim][rank], [heads][rank], and back */
} learned;

typedef struct {
    matrix wq, wk, wv, wo;
    learned q, k;
    float *gamma, *lambda; /* [heads]; no lambda: 1 */
    feature_map map;
    bool full_space, skip, tied;
    float eps;
    int width, rank; /* of u; of the adapter, 0: einsum */
    int features;
} lolcats_weights;

#endif
