/* Writes models by hand that recall perfectly, or not at all.
 *
 * write_copy_model: two layers without positions. The first, a short convolution, lays the last
 * HISTORY tokens beside each token; the second, softmax, looks for the place whose HISTORY tokens
 * before it are most like the last ones here (the nearest weigh most) and says what stood there: an
 * induction head that matches whole phrases. Token b is byte b; a token's code is its 12 bits as a
 * word of the extended Golay code, +-1: two codes differ in 8 places of 24 or more. */
#ifndef COPY_MODEL_H
#define COPY_MODEL_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../weights/gguf_write.h"

/* Blocks: this token, those before it, the answer, and a large constant: a norm divides by it
 * alone. */
enum { CODE = 24, HISTORY = 16, WIDTH = CODE * (HISTORY + 3), HEAD = CODE * HISTORY };
enum { ANSWER = CODE * (HISTORY + 1), CONSTANT = CODE * (HISTORY + 2) };
enum { COPY_TOKENS = 256 };

/* Bits 12 to 23 are the message; below them the remainder of x^12 m by the generator of the Golay
 * code, and a parity bit. */
static inline unsigned golay(unsigned m) {
    unsigned rest = m << 11;
    for (int i = 22; i >= 11; i--)
        if (rest >> i & 1) rest ^= 0xc75u << (i - 11);
    unsigned word = (m << 11 | rest) << 1;
    return word | (__builtin_popcount(word) & 1);
}

static inline float code(unsigned token, int bit) {
    return golay(token) >> bit & 1 ? 1 : -1;
}

typedef struct {
    char name[64];
    uint64_t dims[4];
    uint32_t n_dims;
    float *data;
} hand_tensor;

typedef struct {
    gguf_writer *w;
    const char *arch;
    hand_tensor t[40];
    size_t n;
    linnet_error err;
} hand_model;

static inline void hand_check(hand_model *m, linnet_status s) {
    if (!s) return;
    fprintf(stderr, "%s\n", m->err.text);
    exit(99);
}

static inline void hand_kv(hand_model *m, const char *key, gguf_type type, gguf_type element,
                           uint64_t count, const void *data, size_t n) {
    gguf_kv kv = {{key, strlen(key)}, type, element, count, data, n};
    hand_check(m, gguf_writer_copy_kv(m->w, &kv, &m->err));
}

static inline void hand_u32(hand_model *m, const char *suffix, uint32_t v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", m->arch, suffix);
    hand_kv(m, key, GGUF_U32, GGUF_U32, 1, &v, 4);
}

static inline size_t hand_text(uint8_t *to, const char *text) {
    uint64_t n = strlen(text);
    memcpy(to, &n, 8);
    memcpy(to + 8, text, n);
    return 8 + n;
}

static inline void hand_str(hand_model *m, const char *key, const char *text) {
    uint8_t data[128];
    hand_kv(m, key, GGUF_STRING, GGUF_STRING, 1, data, hand_text(data, text));
}

static inline void hand_list(hand_model *m, const char *key, const char *const *texts, size_t n) {
    uint8_t *data = malloc(32 * n + 1);
    size_t at = 0;
    for (size_t i = 0; i < n; i++)
        at += hand_text(data + at, texts[i]);
    hand_kv(m, key, GGUF_ARRAY, GGUF_STRING, n, data, at);
    free(data);
}

/* Zeros; the caller fills them in before hand_finish. b 0: a vector. */
static inline float *hand_tensor_add(hand_model *m, int layer, const char *name, uint64_t a,
                                     uint64_t b) {
    hand_tensor *t = &m->t[m->n++];
    *t = (hand_tensor){.dims = {a, b ? b : 1, 1, 1}, .n_dims = b ? 2 : 1};
    t->data = calloc(a * (b ? b : 1), sizeof(float));
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, name);
    return t->data;
}

/* The vocabulary of 256 bytes, each a token (GPT-2's stand-ins for bytes, no merges). */
static inline void hand_vocabulary(hand_model *m) {
    static char texts[256][3];
    const char *list[256];
    int extra = 256;
    for (int b = 0; b < 256; b++) {
        bool keep = (b >= 33 && b < 127) || (b >= 161 && b < 173) || b >= 174;
        int c = keep ? b : extra++;
        if (c < 128)
            texts[b][0] = (char)c;
        else
            texts[b][0] = (char)(0xc0 | c >> 6), texts[b][1] = (char)(0x80 | (c & 63));
        list[b] = texts[b];
    }
    hand_str(m, "tokenizer.ggml.model", "gpt2");
    hand_str(m, "tokenizer.ggml.pre", "gpt-2");
    hand_list(m, "tokenizer.ggml.tokens", list, 256);
    hand_list(m, "tokenizer.ggml.merges", NULL, 0);
}

static inline void hand_begin(hand_model *m, const char *path, uint32_t width, uint32_t layers,
                              const char *const *mixers) {
    *m = (hand_model){.arch = "linnet"};
    hand_check(m, gguf_writer_open(&m->w, path, &m->err));
    hand_str(m, "general.architecture", "linnet");
    hand_u32(m, "format_version", 1);
    hand_list(m, "linnet.mixers", mixers, layers);
    hand_str(m, "linnet.rope.pairing", "none");
    hand_u32(m, "block_count", layers);
    hand_u32(m, "embedding_length", width);
    hand_u32(m, "feed_forward_length", 2);
    hand_u32(m, "context_length", 2048);
    float eps = 1e-6f;
    hand_kv(m, "linnet.attention.layer_norm_rms_epsilon", GGUF_F32, GGUF_F32, 1, &eps, 4);
    hand_vocabulary(m);
}

/* Norms, with weight w, and a feed-forward that adds nothing. */
static inline void hand_layer(hand_model *m, int layer, uint64_t width, float weight) {
    static const char *const norms[] = {"attn_norm.weight", "ffn_norm.weight"};
    for (int k = 0; k < 2; k++) {
        float *w = hand_tensor_add(m, layer, norms[k], width, 0);
        for (uint64_t i = 0; i < width; i++)
            w[i] = weight;
    }
    hand_tensor_add(m, layer, "ffn_gate.weight", width, 2);
    hand_tensor_add(m, layer, "ffn_up.weight", width, 2);
    hand_tensor_add(m, layer, "ffn_down.weight", 2, width);
}

static inline void hand_finish(hand_model *m) {
    for (size_t i = 0; i < m->n; i++)
        hand_check(m, gguf_writer_add_tensor(m->w, m->t[i].name, DTYPE_F32, m->t[i].n_dims,
                                             m->t[i].dims, &m->err));
    for (size_t i = 0; i < m->n; i++) {
        const hand_tensor *t = &m->t[i];
        size_t n = (size_t)(t->dims[0] * t->dims[1]);
        hand_check(m, gguf_writer_data(m->w, t->data, n * sizeof(float), &m->err));
        free(t->data);
    }
    hand_check(m, gguf_writer_finish(m->w, &m->err));
    gguf_writer_free(m->w);
}

/* decay: how much less a token weighs than the one behind it. */
static inline void write_copy_model(const char *path, float decay) {
    static const char *const mixers[] = {"short_conv", "softmax"};
    hand_model m;
    hand_begin(&m, path, WIDTH, 2, mixers);
    hand_u32(&m, "shortconv.l_cache", HISTORY + 1);
    hand_u32(&m, "shortconv.inner_length", HEAD);
    hand_u32(&m, "attention.head_count", 1);
    hand_u32(&m, "attention.key_length", HEAD);
    hand_u32(&m, "attention.value_length", HEAD);

    const float large = 1e4f, weight = large / sqrtf(WIDTH); /* normalized, a bit is +-1 again */
    float *embd = hand_tensor_add(&m, -1, "token_embd.weight", WIDTH, COPY_TOKENS);
    float *out = hand_tensor_add(&m, -1, "output.weight", WIDTH, COPY_TOKENS);
    for (unsigned t = 0; t < COPY_TOKENS; t++)
        for (int i = 0; i < CODE; i++) {
            embd[t * WIDTH + (unsigned)i] = code(t, i);
            embd[t * WIDTH + CONSTANT] = large;
            out[t * WIDTH + (unsigned)(ANSWER + i)] = code(t, i);
        }
    float *norm = hand_tensor_add(&m, -1, "output_norm.weight", WIDTH, 0);
    for (int i = 0; i < WIDTH; i++)
        norm[i] = weight;

    /* Channel (h, i) is bit i of the token h + 1 back. silu(+-1) 2 = 0.4621 +- 1. */
    hand_layer(&m, 0, WIDTH, weight);
    float *in = hand_tensor_add(&m, 0, "shortconv.in_proj.weight", WIDTH, 2 * HEAD);
    float *in_bias = hand_tensor_add(&m, 0, "shortconv.in_proj.bias", 2 * HEAD, 0);
    float *conv = hand_tensor_add(&m, 0, "shortconv.conv.weight", HISTORY + 1, HEAD);
    float *to = hand_tensor_add(&m, 0, "shortconv.out_proj.weight", HEAD, WIDTH);
    float *to_bias = hand_tensor_add(&m, 0, "shortconv.out_proj.bias", WIDTH, 0);
    for (int h = 0; h < HISTORY; h++)
        for (int i = 0; i < CODE; i++) {
            int c = h * CODE + i, d = (h + 1) * CODE + i;
            in[c * WIDTH + i] = 1;
            in_bias[HEAD + c] = 2;
            conv[c * (HISTORY + 1) + HISTORY - (h + 1)] = 1;
            to[d * HEAD + c] = 1;
            to_bias[d] = -0.46211716f;
        }

    /* Query: this token and those before; key: those before. */
    hand_layer(&m, 1, WIDTH, weight);
    float *q = hand_tensor_add(&m, 1, "attn_q.weight", WIDTH, HEAD);
    float *k = hand_tensor_add(&m, 1, "attn_k.weight", WIDTH, HEAD);
    float *v = hand_tensor_add(&m, 1, "attn_v.weight", WIDTH, HEAD);
    float *o = hand_tensor_add(&m, 1, "attn_output.weight", HEAD, WIDTH);
    for (int h = 0; h < HISTORY; h++)
        for (int i = 0; i < CODE; i++) {
            int r = h * CODE + i;
            q[r * WIDTH + r] = 4e5f * powf(decay, (float)h);
            k[r * WIDTH + CODE + r] = 1;
        }
    for (int i = 0; i < CODE; i++) {
        v[i * WIDTH + i] = 1;
        o[(ANSWER + i) * HEAD + i] = 1;
    }
    hand_finish(&m);
}

/* Two recurrent layers and a softmax one, random: it says something, and never knows anything. */
static inline void write_random_model(const char *path) {
    enum { D = 32, H = 2, K = 8 };
    static const char *const mixers[] = {"delta_net", "softmax", "delta_net"};
    hand_model m;
    hand_begin(&m, path, D, 3, mixers);
    hand_u32(&m, "delta.head_count", H);
    hand_u32(&m, "delta.key_length", K);
    hand_u32(&m, "delta.value_length", K);
    hand_u32(&m, "attention.head_count", H);
    hand_u32(&m, "attention.key_length", D / H);
    hand_u32(&m, "attention.value_length", D / H);
    hand_tensor_add(&m, -1, "token_embd.weight", D, 256);
    hand_tensor_add(&m, -1, "output.weight", D, 256);
    hand_tensor_add(&m, -1, "output_norm.weight", D, 0);
    for (int i = 0; i < 3; i++) {
        hand_layer(&m, i, D, 1);
        if (i == 1) {
            static const char *const names[] = {"attn_q.weight", "attn_k.weight", "attn_v.weight",
                                                "attn_output.weight"};
            for (int k = 0; k < 4; k++)
                hand_tensor_add(&m, i, names[k], D, D);
        } else {
            hand_tensor_add(&m, i, "attn_qkv.weight", D, 3 * H * K);
            hand_tensor_add(&m, i, "ssm_conv1d.weight", 4, 3 * H * K);
            hand_tensor_add(&m, i, "ssm_beta.weight", D, H);
            hand_tensor_add(&m, i, "ssm_norm.weight", K, 0);
            hand_tensor_add(&m, i, "ssm_out.weight", H * K, D);
        }
    }
    uint32_t state = 1;
    for (size_t i = 0; i < m.n; i++) {
        size_t n = (size_t)(m.t[i].dims[0] * m.t[i].dims[1]);
        for (size_t j = 0; j < n; j++) {
            state = state * 1664525u + 1013904223u;
            float x = (float)(state >> 8) / (1 << 23) - 1;
            m.t[i].data[j] = m.t[i].n_dims == 1 ? 1 + x / 4 : x * 3 / sqrtf((float)m.t[i].dims[0]);
        }
    }
    hand_u32(&m, "delta.conv_kernel", 4);
    hand_finish(&m);
}

#endif
