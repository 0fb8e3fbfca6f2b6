/* Writes a model file with random weights, for timing: any shape, mixers and type.
 *
 *   build/bench/random_model SHAPE PATTERN TYPE OUT.gguf
 *
 * SHAPE    smol135, smol360 (SmolLM2), tiny1b (TinyLlama-1.1B), based360 (based-360m), delta1b (24
 *          layers of 2048, 16 heads of 128), llama8b (Llama 3), toy
 * PATTERN  the layers' mixers, repeated until there are enough: MIXER[:WINDOW][*COUNT],...
 *          MIXER: softmax, lolcats (window 64 unless said), hedgehog, based_taylor, short_conv,
 *          delta_net, gated_delta_net. Or one word:
 *          based    short convolutions, Taylor and windows as in the published based-360m
 *          qwen35   gated_delta_net*3,softmax as architecture qwen35
 * TYPE     of the matrices: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q4_K q6_K. Where rows are no multiple
 * of its block, q4_K becomes q5_0 and the others q8_0. The architecture is qwen35, or llama where
 * all layers are softmax without a window, both of which llama.cpp loads too, or linnet. There is
 * no vocabulary. Names and keys: docs/format.md. */
#include "../weights/gguf_write.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    uint32_t layers, embd, ff, heads, kv_heads, rows;
    bool tied;
} shape;

static const shape shapes[] = {{"smol135", 30, 576, 1536, 9, 3, 49152, true},
                               {"smol360", 32, 960, 2560, 15, 5, 49152, true},
                               {"tiny1b", 22, 2048, 5632, 32, 4, 32000, false},
                               {"based360", 27, 1024, 2048, 16, 16, 50264, true},
                               {"delta1b", 24, 2048, 5632, 16, 16, 32000, false},
                               {"llama8b", 32, 4096, 14336, 32, 8, 128256, false},
                               {"toy", 4, 128, 256, 4, 2, 512, true}};

static const struct {
    const char *name, *pattern;
} patterns[] = {
    {"based",
     "short_conv,based_taylor,softmax:65,short_conv*3,based_taylor,softmax:65,short_conv*3,"
     "based_taylor,softmax:65,short_conv*3,based_taylor,softmax:65,short_conv*3,"
     "based_taylor,softmax:65,short_conv*4"},
    {"qwen35", "gated_delta_net*3,softmax"},
};

static const char *const mixers[] = {"softmax",    "lolcats",   "hedgehog",       "based_taylor",
                                     "short_conv", "delta_net", "gated_delta_net"};
enum { N_MIXERS = sizeof mixers / sizeof *mixers, MAX_LAYERS = 64 };

typedef struct {
    const char *mixer; /* one of mixers[] */
    uint32_t window;   /* 0: none */
} layer;

typedef struct {
    char name[64];
    uint64_t dims[4];
    uint32_t n_dims;
    dtype type;
    float center, spread; /* uniform in center +- spread */
} tensor;

typedef struct {
    shape s;
    layer layers[MAX_LAYERS];
    const char *arch;
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

/* "ARCH.suffix" in a buffer that the next call overwrites. */
static const char *key(const model *m, const char *suffix) {
    static char buffer[96];
    snprintf(buffer, sizeof buffer, "%s.%s", m->arch, suffix);
    return buffer;
}

static void put_u32(model *m, const char *suffix, uint32_t v) {
    check(m, gguf_writer_u32(m->w, key(m, suffix), v, &m->err));
}

static void put_f32(model *m, const char *suffix, float v) {
    put_kv(m, key(m, suffix), GGUF_F32, GGUF_F32, 1, &v, 4);
}

/* Up to 56 bytes. */
static void put_str(model *m, const char *name, const char *v) {
    uint8_t data[64];
    uint64_t n = strlen(v);
    memcpy(data, &n, 8);
    memcpy(data + 8, v, n);
    put_kv(m, name, GGUF_STRING, GGUF_STRING, 1, data, 8 + n);
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
    dtype type = m->type;
    if (cols % dtype_get(type)->block) type = type == DTYPE_Q4_K ? DTYPE_Q5_0 : DTYPE_Q8_0;
    tensor *t = add(m, layer, name, type, 0, sqrtf(3.0f / (float)cols));
    t->dims[0] = cols, t->dims[1] = rows;
    t->n_dims = 2;
}

/* ---- mixers ------------------------------------------------------------------------------- */

static bool is(const char *a, const char *b) {
    return !strcmp(a, b);
}

static bool has_mixer(const model *m, const char *mixer) {
    for (uint32_t i = 0; i < m->s.layers; i++)
        if (is(m->layers[i].mixer, mixer)) return true;
    return false;
}

static void add_mixer(model *m, int i) {
    const char *mixer = m->layers[i].mixer;
    uint64_t d = m->s.embd, heads = m->s.heads, hd = d / heads, kv = m->s.kv_heads * hd;
    bool qwen = is(m->arch, "qwen35"), softmax = is(mixer, "softmax");
    bool features = is(mixer, "lolcats") || is(mixer, "hedgehog");
    if (softmax || features) {
        matrix(m, i, "attn_q.weight", d, qwen ? 2 * d : d);
        matrix(m, i, "attn_k.weight", d, kv);
        matrix(m, i, "attn_v.weight", d, kv);
        matrix(m, i, "attn_output.weight", d, d);
    }
    if (softmax && qwen) {
        vector(m, i, "attn_q_norm.weight", hd, 1, 0.1f);
        vector(m, i, "attn_k_norm.weight", hd, 1, 0.1f);
    }
    if (features) {
        floats(m, i, "attn_feature_q.weight", hd, hd, heads, 0.2f);
        floats(m, i, "attn_feature_k.weight", hd, hd, heads, 0.2f);
    }
    if (is(mixer, "lolcats")) vector(m, i, "attn_window_factor.weight", heads, 0.1f, 0);
    if (is(mixer, "based_taylor")) {
        matrix(m, i, "attn_q.weight", d, heads * 16);
        matrix(m, i, "attn_k.weight", d, heads * 16);
        matrix(m, i, "attn_v.weight", d, d);
        matrix(m, i, "attn_output.weight", d, d);
    }
    if (is(mixer, "short_conv")) {
        matrix(m, i, "shortconv.in_proj.weight", d, 4 * d);
        floats(m, i, "shortconv.conv.weight", 3, 2 * d, 1, 0.5f);
        matrix(m, i, "shortconv.out_proj.weight", 2 * d, d);
    }
    if (strstr(mixer, "delta_net")) {
        matrix(m, i, "attn_qkv.weight", d, 3 * d);
        floats(m, i, "ssm_conv1d.weight", 4, 3 * d, 1, 0.5f);
        matrix(m, i, "ssm_beta.weight", d, heads);
        vector(m, i, "ssm_norm.weight", hd, 1, 0.1f);
        matrix(m, i, "ssm_out.weight", d, d);
    }
    if (is(mixer, "gated_delta_net")) {
        matrix(m, i, "ssm_alpha.weight", d, heads);
        matrix(m, i, "attn_gate.weight", d, d);
        vector(m, i, "ssm_a", heads, -1, 0.5f);
        vector(m, i, "ssm_dt.bias", heads, 0, 1);
    }
}

/* ---- metadata ----------------------------------------------------------------------------- */

/* The keys that say which layer is what, of architecture linnet. */
static void put_layers(model *m) {
    uint32_t windows[MAX_LAYERS], n = m->s.layers, any = 0;
    uint8_t names[MAX_LAYERS * 32];
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t length = strlen(m->layers[i].mixer);
        memcpy(names + at, &length, 8);
        memcpy(names + at + 8, m->layers[i].mixer, length);
        at += 8 + length;
        any |= windows[i] = m->layers[i].window;
    }
    put_u32(m, "format_version", 1);
    put_kv(m, key(m, "mixers"), GGUF_ARRAY, GGUF_STRING, n, names, at);
    if (any) put_kv(m, key(m, "attention.window_layers"), GGUF_ARRAY, GGUF_U32, n, windows, 4 * n);
}

/* The keys of the mixers that there are. */
static void put_mixers(model *m) {
    uint32_t heads = m->s.heads, hd = m->s.embd / heads;
    if (has_mixer(m, "lolcats") || has_mixer(m, "hedgehog")) {
        put_str(m, key(m, "lolcats.feature_map"), "softmax_dim");
        put_u32(m, "lolcats.feature_dim", hd);
    }
    if (has_mixer(m, "based_taylor")) {
        put_u32(m, "based.head_count", heads);
        put_u32(m, "based.feature_length", 16);
        put_u32(m, "based.value_length", hd);
    }
    if (has_mixer(m, "short_conv")) {
        put_u32(m, "shortconv.l_cache", 3);
        put_u32(m, "shortconv.inner_length", 2 * m->s.embd);
    }
    if (has_mixer(m, "delta_net") || has_mixer(m, "gated_delta_net")) {
        put_u32(m, "delta.head_count", heads);
        put_u32(m, "delta.value_head_count", heads);
        put_u32(m, "delta.key_length", hd);
        put_u32(m, "delta.value_length", hd);
        put_u32(m, "delta.conv_kernel", 4);
    }
}

static void put_qwen35(model *m) {
    uint32_t heads = m->s.heads, hd = m->s.embd / heads, half = hd / 8;
    uint8_t recurrent[MAX_LAYERS];
    for (uint32_t i = 0; i < m->s.layers; i++)
        recurrent[i] = !is(m->layers[i].mixer, "softmax");
    const uint32_t sections[4] = {(half + 2) / 3, (half + 1) / 3, half / 3, 0};
    put_u32(m, "attention.key_length", hd);
    put_u32(m, "attention.value_length", hd);
    put_u32(m, "ssm.conv_kernel", 4);
    put_u32(m, "ssm.state_size", hd);
    put_u32(m, "ssm.group_count", heads);
    put_u32(m, "ssm.time_step_rank", heads);
    put_u32(m, "ssm.inner_size", m->s.embd);
    put_u32(m, "full_attention_interval", 4);
    put_kv(m, key(m, "attention.recurrent_layers"), GGUF_ARRAY, GGUF_BOOL, m->s.layers, recurrent,
           m->s.layers);
    put_u32(m, "rope.dimension_count", 2 * half); /* a quarter of the head */
    put_kv(m, key(m, "rope.dimension_sections"), GGUF_ARRAY, GGUF_I32, 4, sections, 16);
}

static void put_metadata(model *m) {
    put_str(m, "general.architecture", m->arch);
    put_str(m, "general.name", "random weights");
    put_u32(m, "block_count", m->s.layers);
    put_u32(m, "embedding_length", m->s.embd);
    put_u32(m, "feed_forward_length", m->s.ff);
    put_u32(m, "context_length", 1 << 16);
    put_u32(m, "attention.head_count", m->s.heads);
    put_u32(m, "attention.head_count_kv", m->s.kv_heads);
    put_f32(m, "attention.layer_norm_rms_epsilon", 1e-5f);
    if (is(m->arch, "linnet")) {
        put_layers(m);
        put_mixers(m);
        return;
    }
    put_f32(m, "rope.freq_base", 10000);
    if (is(m->arch, "qwen35")) put_qwen35(m);
    put_str(m, "tokenizer.ggml.model", "no_vocab"); /* llama.cpp asks for these two */
    put_u32(m, "vocab_size", m->s.rows);
}

static void add_tensors(model *m) {
    const shape *s = &m->s;
    matrix(m, -1, "token_embd.weight", s->embd, s->rows);
    if (!s->tied) matrix(m, -1, "output.weight", s->embd, s->rows);
    for (int i = 0; i < (int)s->layers; i++) {
        vector(m, i, "attn_norm.weight", s->embd, 1, 0.1f);
        add_mixer(m, i);
        vector(m, i, is(m->arch, "qwen35") ? "post_attention_norm.weight" : "ffn_norm.weight",
               s->embd, 1, 0.1f);
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

/* ---- the command line --------------------------------------------------------------------- */

/* One MIXER[:WINDOW][*COUNT] of n bytes; its count, 0 if it is none. */
static uint32_t parse_item(const char *item, size_t n, layer *out) {
    char text[64], *end;
    if (n >= sizeof text) return 0;
    memcpy(text, item, n);
    text[n] = '\0';
    unsigned long count = 1, window = 0;
    char *star = strchr(text, '*');
    if (star) {
        count = strtoul(star + 1, &end, 10);
        if (*end || end == star + 1 || count > MAX_LAYERS) return 0;
        *star = '\0';
    }
    char *colon = strchr(text, ':');
    if (colon) {
        window = strtoul(colon + 1, &end, 10);
        if (*end || end == colon + 1 || !window || window > 1 << 16) return 0;
        *colon = '\0';
    }
    out->mixer = NULL;
    for (int i = 0; i < N_MIXERS; i++)
        if (is(text, mixers[i])) out->mixer = mixers[i];
    if (!out->mixer) return 0;
    out->window = is(text, "lolcats") && !window ? 64 : (uint32_t)window;
    bool windowed = is(text, "lolcats") || is(text, "softmax");
    return window && !windowed ? 0 : (uint32_t)count;
}

/* Fills m->layers from a pattern, from its start again whenever it ends. */
static bool parse_pattern(model *m, const char *pattern) {
    uint32_t n = 0;
    while (n < m->s.layers)
        for (const char *p = pattern;; p++) {
            layer one;
            size_t length = strcspn(p, ",");
            uint32_t count = parse_item(p, length, &one);
            if (!count) return false;
            while (count-- && n < m->s.layers)
                m->layers[n++] = one;
            p += length;
            if (!*p) break;
        }
    return true;
}

static const char *choose_architecture(const model *m, const char *pattern) {
    if (is(pattern, "qwen35")) return pattern;
    for (uint32_t i = 0; i < m->s.layers; i++)
        if (!is(m->layers[i].mixer, "softmax") || m->layers[i].window) return "linnet";
    return "llama";
}

int main(int argc, char **argv) {
    model m = {0};
    if (argc != 5) die("expected SHAPE PATTERN TYPE OUT.gguf");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (is(argv[1], shapes[i].name)) m.s = shapes[i];
    if (!m.s.layers) die("SHAPE is one of smol135 smol360 tiny1b based360 delta1b toy");
    const char *pattern = argv[2];
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (is(argv[2], patterns[i].name)) pattern = patterns[i].pattern;
    if (!parse_pattern(&m, pattern))
        die("PATTERN is not one of those described at the top of bench/random_model.c");
    int type = dtype_by_name(argv[3]);
    if (type < 0) die("TYPE is not one of those listed at the top of bench/random_model.c");
    m.type = (dtype)type;
    m.arch = choose_architecture(&m, argv[2]);
    check(&m, gguf_writer_open(&m.w, argv[4], &m.err));
    put_metadata(&m);
    add_tensors(&m);
    for (tensor *t = m.tensors; t < m.tensors + m.n; t++)
        check(&m, gguf_writer_add_tensor(m.w, t->name, t->type, t->n_dims, t->dims, &m.err));
    write_data(&m);
    check(&m, gguf_writer_finish(m.w, &m.err));
    gguf_writer_free(m.w);
    free(m.tensors);
    return 0;
}
