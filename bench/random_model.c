/* Writes a model file with random weights, for timing: any shape, mixer and type.
 *
 *   build/bench/random_model SHAPE MIXER TYPE OUT.gguf
 *
 * SHAPE  smol135 (SmolLM2-135M), tiny1b (TinyLlama-1.1B), toy
 * MIXER  of every layer: softmax, lolcats, hedgehog, based_taylor, short_conv, delta_net,
 *        gated_delta_net
 * TYPE   of the matrices: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q4_K q6_K
 * There is no vocabulary. Names and keys: docs/format.md. */
#include "../weights/gguf_write.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct shape {
    const char *name;
    uint32_t layers, embd, ff, heads, kv_heads, rows;
} shapes[] = {{"smol135", 30, 576, 1536, 9, 3, 49152},
              {"tiny1b", 22, 2048, 5632, 32, 4, 32000},
              {"toy", 2, 128, 256, 4, 2, 512}};

typedef struct {
    char name[64];
    uint64_t dims[4];
    uint32_t n_dims;
    dtype type;
    float center, spread; /* uniform in center +- spread */
} tensor;

typedef struct {
    gguf_writer *w;
    tensor *tensors;
    size_t n, cap;
    dtype type; /* of matrices */
    linnet_error err;
} model;

static void die(const char *sentence) {
    fprintf(stderr, "random_model: %s\n", sentence);
    exit(1);
}

static void check(model *m, linnet_status s) {
    if (!s) return;
    gguf_writer_free(m->w);
    die(m->err.text);
}

static void put_kv(model *m, const char *key, gguf_type type, gguf_type element, uint64_t count,
                   const void *data, uint64_t bytes) {
    const gguf_kv kv = {{key, strlen(key)}, type, element, count, data, bytes};
    check(m, gguf_writer_copy_kv(m->w, &kv, &m->err));
}

static void put_u32(model *m, const char *key, uint32_t v) {
    check(m, gguf_writer_u32(m->w, key, v, &m->err));
}

static void put_f32(model *m, const char *key, float v) {
    put_kv(m, key, GGUF_F32, GGUF_F32, 1, &v, 4);
}

/* A string, or `count` times the same one as an array. */
static void put_str(model *m, const char *key, const char *v, uint64_t count) {
    size_t n = strlen(v), one = 8 + n, copies = count ? count : 1;
    uint8_t *data = malloc(one * copies);
    if (!data) die("no memory");
    for (size_t i = 0; i < copies; i++) {
        uint64_t length = n;
        memcpy(data + i * one, &length, 8);
        memcpy(data + i * one + 8, v, n);
    }
    put_kv(m, key, count ? GGUF_ARRAY : GGUF_STRING, GGUF_STRING, copies, data, one * copies);
    free(data);
}

static tensor *add(model *m, int layer, const char *name, dtype type, float center, float spread) {
    if (m->n == m->cap) {
        m->cap = m->cap ? 2 * m->cap : 256;
        m->tensors = realloc(m->tensors, m->cap * sizeof *m->tensors);
        if (!m->tensors) die("no memory");
    }
    tensor *t = &m->tensors[m->n++];
    *t = (tensor){
        .dims = {1, 1, 1, 1}, .n_dims = 1, .type = type, .center = center, .spread = spread};
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, name);
    return t;
}

static void vector(model *m, int layer, const char *name, uint64_t n, float center, float spread) {
    add(m, layer, name, DTYPE_F32, center, spread)->dims[0] = n;
}

/* f32 of up to three dimensions. */
static void floats(model *m, int layer, const char *name, uint64_t a, uint64_t b, uint64_t c,
                   float spread) {
    tensor *t = add(m, layer, name, DTYPE_F32, 0, spread);
    t->dims[0] = a, t->dims[1] = b, t->dims[2] = c;
    t->n_dims = c > 1 ? 3 : 2;
}

/* [cols, rows] with outputs of about the inputs' size. */
static void matrix(model *m, int layer, const char *name, uint64_t cols, uint64_t rows) {
    dtype type = cols % dtype_get(m->type)->block ? DTYPE_Q8_0 : m->type;
    tensor *t = add(m, layer, name, type, 0, sqrtf(3.0f / (float)cols));
    t->dims[0] = cols, t->dims[1] = rows;
    t->n_dims = 2;
}

static void add_attention(model *m, int i, const struct shape *s, uint64_t q, uint64_t kv) {
    matrix(m, i, "attn_q.weight", s->embd, q);
    matrix(m, i, "attn_k.weight", s->embd, kv);
    matrix(m, i, "attn_v.weight", s->embd, kv);
    matrix(m, i, "attn_output.weight", q, s->embd);
}

static void add_mixer(model *m, const char *mixer, int i, const struct shape *s) {
    uint64_t d = s->embd, hd = d / s->heads;
    if (!strcmp(mixer, "softmax") || !strcmp(mixer, "lolcats") || !strcmp(mixer, "hedgehog"))
        add_attention(m, i, s, d, s->kv_heads * hd);
    if (!strcmp(mixer, "lolcats") || !strcmp(mixer, "hedgehog")) {
        floats(m, i, "attn_feature_q.weight", hd, hd, s->heads, 0.2f);
        floats(m, i, "attn_feature_k.weight", hd, hd, s->heads, 0.2f);
    }
    if (!strcmp(mixer, "lolcats")) vector(m, i, "attn_window_factor.weight", s->heads, 0.1f, 0);
    if (!strcmp(mixer, "based_taylor")) {
        matrix(m, i, "attn_q.weight", d, s->heads * 16);
        matrix(m, i, "attn_k.weight", d, s->heads * 16);
        matrix(m, i, "attn_v.weight", d, d);
        matrix(m, i, "attn_output.weight", d, d);
    }
    if (!strcmp(mixer, "short_conv")) {
        matrix(m, i, "shortconv.in_proj.weight", d, 4 * d);
        floats(m, i, "shortconv.conv.weight", 3, 2 * d, 1, 0.5f);
        matrix(m, i, "shortconv.out_proj.weight", 2 * d, d);
    }
    if (strstr(mixer, "delta_net")) {
        matrix(m, i, "attn_qkv.weight", d, 3 * d);
        floats(m, i, "ssm_conv1d.weight", 4, 3 * d, 1, 0.5f);
        matrix(m, i, "ssm_beta.weight", d, s->heads);
        vector(m, i, "ssm_norm.weight", hd, 1, 0.1f);
        matrix(m, i, "ssm_out.weight", d, d);
    }
    if (!strcmp(mixer, "gated_delta_net")) {
        matrix(m, i, "ssm_alpha.weight", d, s->heads);
        matrix(m, i, "attn_gate.weight", d, d);
        vector(m, i, "ssm_a", s->heads, -1, 0.5f);
        vector(m, i, "ssm_dt.bias", s->heads, 0, 1);
    }
}

static void put_metadata(model *m, const char *mixer, const struct shape *s) {
    uint32_t hd = s->embd / s->heads;
    put_str(m, "general.architecture", "linnet", 0);
    put_str(m, "general.name", "random weights", 0);
    put_u32(m, "linnet.format_version", 1);
    put_u32(m, "linnet.block_count", s->layers);
    put_u32(m, "linnet.embedding_length", s->embd);
    put_u32(m, "linnet.feed_forward_length", s->ff);
    put_u32(m, "linnet.context_length", 1 << 16);
    put_u32(m, "linnet.attention.head_count", s->heads);
    put_u32(m, "linnet.attention.head_count_kv", s->kv_heads);
    put_f32(m, "linnet.attention.layer_norm_rms_epsilon", 1e-5f);
    put_str(m, "linnet.mixers", mixer, s->layers);
    if (!strcmp(mixer, "lolcats")) put_u32(m, "linnet.attention.sliding_window", 64);
    if (!strcmp(mixer, "lolcats") || !strcmp(mixer, "hedgehog")) {
        const uint8_t yes = 1;
        put_str(m, "linnet.lolcats.feature_map", "softmax_dim", 0);
        put_u32(m, "linnet.lolcats.feature_dim", hd);
        put_kv(m, "linnet.lolcats.full_space", GGUF_BOOL, GGUF_BOOL, 1, &yes, 1);
    }
    if (!strcmp(mixer, "based_taylor")) {
        put_u32(m, "linnet.based.head_count", s->heads);
        put_u32(m, "linnet.based.feature_length", 16);
        put_u32(m, "linnet.based.value_length", hd);
    }
    if (!strcmp(mixer, "short_conv")) {
        put_u32(m, "linnet.shortconv.l_cache", 3);
        put_u32(m, "linnet.shortconv.inner_length", 2 * s->embd);
    }
    if (strstr(mixer, "delta_net")) {
        put_u32(m, "linnet.delta.head_count", s->heads);
        put_u32(m, "linnet.delta.value_head_count", s->heads);
        put_u32(m, "linnet.delta.key_length", hd);
        put_u32(m, "linnet.delta.value_length", hd);
        put_u32(m, "linnet.delta.conv_kernel", 4);
    }
}

static void add_tensors(model *m, const char *mixer, const struct shape *s) {
    matrix(m, -1, "token_embd.weight", s->embd, s->rows);
    for (int i = 0; i < (int)s->layers; i++) {
        vector(m, i, "attn_norm.weight", s->embd, 1, 0.1f);
        add_mixer(m, mixer, i, s);
        vector(m, i, "ffn_norm.weight", s->embd, 1, 0.1f);
        matrix(m, i, "ffn_gate.weight", s->embd, s->ff);
        matrix(m, i, "ffn_up.weight", s->embd, s->ff);
        matrix(m, i, "ffn_down.weight", s->ff, s->embd);
    }
    vector(m, -1, "output_norm.weight", s->embd, 1, 0.1f);
}

static void write_data(model *m) {
    uint64_t random = 1;
    for (tensor *t = m->tensors; t < m->tensors + m->n; t++) {
        size_t cols = t->dims[0], rows = t->dims[1] * t->dims[2];
        size_t bytes = dtype_row_bytes(t->type, cols);
        float *row = malloc(cols * sizeof *row);
        void *packed = malloc(bytes);
        if (!row || !packed) die("no memory");
        for (size_t r = 0; r < rows; r++) {
            for (size_t i = 0; i < cols; i++) {
                random = random * 6364136223846793005u + 1442695040888963407u;
                row[i] = t->center + t->spread * (float)((double)(random >> 11) * 0x1p-52 - 1);
            }
            quantize_row(t->type, row, packed, cols);
            check(m, gguf_writer_data(m->w, packed, bytes, &m->err));
        }
        free(row);
        free(packed);
    }
}

int main(int argc, char **argv) {
    static const char *const mixers[] = {"softmax",        "lolcats",    "hedgehog",
                                         "based_taylor",   "short_conv", "delta_net",
                                         "gated_delta_net"};
    const struct shape *shape = NULL;
    bool known = false;
    if (argc != 5) die("expected SHAPE MIXER TYPE OUT.gguf");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!strcmp(argv[1], shapes[i].name)) shape = &shapes[i];
    for (size_t i = 0; i < sizeof mixers / sizeof *mixers; i++)
        known = known || !strcmp(argv[2], mixers[i]);
    int type = dtype_by_name(argv[3]);
    if (!shape) die("SHAPE is one of smol135 tiny1b toy");
    if (!known) die("MIXER is not one of those listed at the top of bench/random_model.c");
    if (type < 0) die("TYPE is not one of those listed at the top of bench/random_model.c");
    model m = {.type = (dtype)type};
    check(&m, gguf_writer_open(&m.w, argv[4], &m.err));
    put_metadata(&m, argv[2], shape);
    add_tensors(&m, argv[2], shape);
    for (tensor *t = m.tensors; t < m.tensors + m.n; t++)
        check(&m, gguf_writer_add_tensor(m.w, t->name, t->type, t->n_dims, t->dims, &m.err));
    write_data(&m);
    check(&m, gguf_writer_finish(m.w, &m.err));
    gguf_writer_free(m.w);
    free(m.tensors);
    return 0;
}
