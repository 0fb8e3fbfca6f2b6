/* How queries and keys are made ready, head by head: their norms, their rotation by positions, and
 * the keys' and values' place in a page. For place.cu, and for the kernels that do it by the way.
 */
#ifndef CUDA_ROPE_H
#define CUDA_ROPE_H

#include "kv.h"

typedef struct {
    head_layout heads;
    rope_kind rope;
    size_t n_angles;
    float eps;
    const float *q_norm, *k_norm; /* [head_dim], or of all heads; NULL: none */
    bool q_whole, k_whole;
    const float *q; /* as the products leave it: [n, n_heads * q_step] */
    size_t q_step;  /* floats from one head to the next */
    const float *key, *value, *cos, *sin;
} placing;

static inline placing placing_of(const cuda_pass *p, int layer, const softmax_weights *norms) {
    const config *c = &p->m->cfg;
    placing l = {};
    l.heads = p->m->layers[layer].heads;
    l.rope = c->rope;
    l.n_angles = c->n_angles;
    l.eps = c->norm_eps;
    if (norms) {
        l.q_norm = on_gpu(p, norms->q_norm);
        l.k_norm = on_gpu(p, norms->k_norm);
        l.q_whole = norms->q_whole;
        l.k_whole = norms->k_whole;
    }
    bool gated = norms && c->gated_attention;
    l.q = gated ? p->work : p->q;
    l.q_step = (gated ? 2 : 1) * (size_t)l.heads.head_dim;
    l.key = p->key;
    l.value = p->value;
    l.cos = p->cos;
    l.sin = p->sin;
    return l;
}

/* The scale of the root mean square norm of a row's heads as one vector; the whole block's. */
DEVICE float scale_of_row(const float *x, size_t step, int n_heads, int d, float eps) {
    float sum = 0;
    for (int i = threadIdx.x; i < n_heads * d; i += blockDim.x) {
        float y = x[i / d * step + i % d];
        sum = fmaf(y, y, sum);
    }
    return 1.0f / sqrtf(block_sum(sum) / (n_heads * d) + eps);
}

/* One warp: x [d] to shared memory, normalized where there are weights; by `scale`, or (0) by x's
 * own. */
DEVICE void normalize_head(const float *x, const float *w, float scale, int d, float eps,
                           float *to) {
    int lane = threadIdx.x % 32;
    if (w && scale == 0) {
        float sum = 0;
        for (int i = lane; i < d; i += 32)
            sum = fmaf(x[i], x[i], sum);
        scale = 1.0f / sqrtf(warp_sum(sum) / d + eps);
    }
    __syncwarp(); /* nobody reads what was in `to` any more */
    for (int i = lane; i < d; i += 32)
        to[i] = w ? x[i] * scale * w[i] : x[i];
    __syncwarp();
}

/* Query head h of row r to `to`; `scale` of the row where its norm is of all heads. */
DEVICE void normalize_query(const placing &l, size_t r, int h, float scale, float *to) {
    int d = l.heads.head_dim;
    normalize_head(l.q + (r * l.heads.n_heads + h) * l.q_step,
                   l.q_norm && l.q_whole ? l.q_norm + (size_t)h * d : l.q_norm,
                   l.q_whole ? scale : 0, d, l.eps, to);
}

DEVICE void normalize_key(const placing &l, size_t r, int h, float scale, float *to) {
    int d = l.heads.head_dim;
    normalize_head(l.key + (r * l.heads.n_kv_heads + h) * d,
                   l.k_norm && l.k_whole ? l.k_norm + (size_t)h * d : l.k_norm,
                   l.k_whole ? scale : 0, d, l.eps, to);
}

DEVICE float scale_of_queries(const placing &l, size_t r) {
    return scale_of_row(l.q + r * l.heads.n_heads * l.q_step, l.q_step, l.heads.n_heads,
                        l.heads.head_dim, l.eps);
}

DEVICE float scale_of_keys(const placing &l, size_t r) {
    int d = l.heads.head_dim, n = l.heads.n_kv_heads;
    return scale_of_row(l.key + r * n * d, d, n, d, l.eps);
}

/* Number i of row r's head as RoPE turns it: pairs (2i, 2i+1), or (i, i + rope_dim/2). */
DEVICE float rotated(const placing &l, size_t r, const float *head, int i) {
    int half = l.heads.rope_dim / 2;
    if (l.rope == ROPE_NONE || i >= half * 2) return head[i];
    const float *cos = l.cos + r * l.n_angles + l.heads.angles;
    const float *sin = l.sin + r * l.n_angles + l.heads.angles;
    if (l.rope == ROPE_PAIRS) {
        float x = head[i & ~1], y = head[i | 1], c = cos[i / 2], s = sin[i / 2];
        return i & 1 ? x * s + y * c : x * c - y * s;
    }
    int at = i < half ? i : i - half;
    float x = head[at], y = head[at + half], c = cos[at], s = sin[at];
    return i < half ? x * c - y * s : x * s + y * c;
}

/* 32 lanes hold a block of 32 values: its scale (as q8_0) and the lane's whole number. */
DEVICE int quantize_lane(float x, uint16_t *scale) {
    float d = warp_max(fabsf(x)) / 127.0f, inverse = d > 0 ? 1.0f / d : 0.0f;
    *scale = float_to_f16(d);
    return __float2int_rn(x * inverse);
}

/* Number d of the key and of the value at place `at` of a head's page. */
DEVICE void keep(const kv_place_of_layer &k, uint8_t *head, int at, int d, float key, float value) {
    size_t in_k = (size_t)d * PAGE + at, in_v = (size_t)at * k.padded + d;
    uint8_t *v = head + k.v_at;
    if (k.kind == KV_F32) {
        ((float *)head)[in_k] = key;
        ((float *)v)[in_v] = value;
    } else if (k.kind == KV_F16) {
        ((uint16_t *)head)[in_k] = float_to_f16(key);
        ((uint16_t *)v)[in_v] = float_to_f16(value);
    } else { /* head_dim is a multiple of 32: whole warps come here */
        uint16_t scale;
        ((int8_t *)head)[in_k] = (int8_t)quantize_lane(key, &scale);
        if (d % BLOCK == 0) ((uint16_t *)(head + k.kd_at))[d / BLOCK * PAGE + at] = scale;
        ((int8_t *)v)[in_v] = (int8_t)quantize_lane(value, &scale);
        if (d % BLOCK == 0)
            ((uint16_t *)(head + k.vd_at))[at * (k.head_dim / BLOCK) + d / BLOCK] = scale;
    }
}

#endif
