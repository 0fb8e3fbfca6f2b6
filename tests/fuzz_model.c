/* libFuzzer target: any bytes as a model file. What opens must describe itself, compute and write;
 * cut into other pieces or after an error, its logits must be the same bits. Mutations begin with
 * tiny valid models made here and prefer the header; tests/data/models are good seeds too:
 *     make fuzz        or        build/fuzz/fuzz_model FOLDER tests/data/models */
#include "../linnet_tools.h"
#include "build_gguf.h"

#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static void must(bool holds) {
    if (!holds) abort();
}

/* An error has its code and a sentence; anything else is a fault. */
static bool worked(linnet_status status, const linnet_error *err) {
    if (status) must(err->code == status && err->text[0]);
    return !status;
}

static void describe(const linnet_model *m) {
    const linnet_model_info *info = linnet_model_get_info(m);
    linnet_error err;
    char value[40];
    uint64_t dims[4], bytes;
    const char *type;
    int window;
    must(info->architecture && info->name && info->tokenizer && info->chat_template);
    for (size_t i = 0; i < info->n_tensors; i++)
        must(linnet_model_tensor(m, i, &type, dims, &bytes) && type);
    for (size_t i = 0; i < info->n_metadata; i++)
        must(linnet_model_metadata(m, i, value, sizeof value));
    for (int i = 0; i < info->n_layers; i++)
        must(linnet_model_mixer(m, i, &window) && window >= 0);
    worked(linnet_model_check(m, &err), &err);
}

enum { N = 70 }; /* more than a page */

/* Feeds ids[0..n) in pieces of `chunk`; false on an error, after which nothing has changed. */
static bool feed(linnet_session *s, const int32_t *ids, size_t n, size_t chunk) {
    linnet_error err;
    for (size_t at = 0; at < n; at += chunk) {
        size_t some = n - at < chunk ? n - at : chunk, before, after;
        linnet_session_tokens(s, &before);
        if (!worked(linnet_feed(s, ids + at, some, LINNET_LOGITS_LAST, &err), &err)) {
            linnet_session_tokens(s, &after);
            must(after == before);
            return false;
        }
    }
    return true;
}

static void write_some(linnet_model *m, linnet_session *s) {
    linnet_error err;
    int32_t ids[64];
    char text[256];
    size_t n;
    linnet_generate_options o = LINNET_GENERATE_DEFAULT;
    o.max_tokens = 3;
    o.sampling.temperature = 1;
    if (worked(linnet_tokenize(m, "a <s>b\xff\n", 8, LINNET_ADD_BOS | LINNET_PARSE_SPECIAL, ids, 64,
                               &n, &err),
               &err) &&
        n <= 64) {
        worked(linnet_detokenize(m, ids, n, 0, text, sizeof text, &n, &err), &err);
        worked(linnet_generate(s, &o, NULL, NULL, NULL, &err), &err);
    }
    const linnet_message talk[] = {{"user", "a"}};
    worked(linnet_chat_tokenize(m, NULL, talk, 1, true, ids, 64, &n, &err), &err);
}

static void compute(linnet_model *m, linnet_kv_type kv) {
    const linnet_model_info *info = linnet_model_get_info(m);
    const linnet_session_options o = {.kv = kv, .ctx = info->ctx_is_limit ? 0 : N + 10};
    linnet_error err;
    linnet_session *a, *b;
    int32_t ids[N];
    if (linnet_model_activation_bytes(m) > 64 << 20 ||
        linnet_model_state_bytes(m, kv, 1) > 16 << 20)
        return; /* possible, but slow */
    for (size_t i = 0; i < N; i++)
        ids[i] = (int32_t)(i * 7 % (size_t)info->n_rows);
    size_t n = (size_t)info->n_ctx_train < N && info->ctx_is_limit ? (size_t)info->n_ctx_train : N;
    if (!worked(linnet_session_new(&a, m, &o, &err), &err)) return;
    must(linnet_session_new(&b, m, &o, &err) == LINNET_OK);
    bool whole = feed(a, ids, n, n), pieces = feed(b, ids, n, 9);
    if (whole) { /* with logits at every piece's end, other positions may overflow */
        size_t width = (size_t)info->n_rows;
        const float *x = linnet_session_logits(a);
        for (size_t i = 0; i < width; i++)
            must(isfinite(x[i]));
        if (pieces) must(!memcmp(x, linnet_session_logits(b), width * sizeof *x));
        must(linnet_session_state_bytes(a) == linnet_model_state_bytes(m, kv, n));
        write_some(m, a);
    }
    linnet_session_reset(b);
    feed(b, ids, 1, 1);
    linnet_session_free(a);
    linnet_session_free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    linnet_error err;
    linnet_model *m = NULL;
    if (fd < 0) {
        fd = memfd_create("model", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) return 0;
    linnet_model_options o = {.threads = 1,
                              .no_mmap = size & 1,
                              .metadata_only = size % 16 == 9,
                              .activations = (linnet_activations)(size % 3)};
    if (!worked(linnet_model_open(&m, path, &o, &err), &err)) {
        must(!m);
        return 0;
    }
    describe(m);
    if (!o.metadata_only) compute(m, (linnet_kv_type)(size / 3 % 3));
    linnet_model_close(m);
    return 0;
}

/* ---- Mutations ---------------------------------------------------------------------------------
 */

static uint64_t state;

static uint32_t draw(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

enum { WIDTH = 32, FF = 32, ROWS = 40 };

static void vector(buf *b, uint64_t *at, const char *name, uint64_t n) {
    put_tensor_1d(b, name, n, 0, *at);
    *at += (n * 4 + 31) / 32 * 32;
}

static void matrix_of(buf *b, uint64_t *at, const char *name, uint64_t cols, uint64_t rows,
                      uint32_t type) {
    static const uint64_t block_bytes[] = {[0] = 128, [1] = 64, [2] = 18, [8] = 34};
    put_tensor_2d(b, name, cols, rows, type, *at);
    *at += (cols * rows / 32 * block_bytes[type] + 31) / 32 * 32;
}

/* A llama, qwen2, qwen3 or linnet of one layer, with 40 tokens and windows now and then. */
static buf tiny_model(void) {
    static const char *const names[] = {"llama", "qwen2", "qwen3", "linnet"};
    static const uint32_t types[] = {0, 0, 1, 2, 8};
    static const struct {
        const char *suffix;
        uint32_t value;
    } numbers[] = {{"block_count", 1},
                   {"embedding_length", WIDTH},
                   {"context_length", 128},
                   {"feed_forward_length", FF},
                   {"attention.head_count", 4},
                   {"attention.head_count_kv", 2},
                   {"attention.sliding_window", 0},
                   {"rope.dimension_count", 8}};
    const char *arch = names[draw(4)];
    uint32_t type = types[draw(5)];
    char key[80];
    buf b = {0};
    uint64_t at = 0;
    put_head(&b, 11, 15);
    put_kv_str(&b, "general.architecture", arch);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, numbers[i].suffix);
        put_kv_u32(&b, key, i == 6 ? draw(2) * draw(80) : numbers[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    put_key(&b, key, 6);
    put_f32(&b, 1e-5f);
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    put_kv_str(&b, key, (const char *const[]){"none", "linear", "yarn"}[draw(3)]);
    snprintf(key, sizeof key, "%s.rope.scaling.factor", arch);
    put_key(&b, key, 6);
    put_f32(&b, 2);
    put_kv_str(&b, "tokenizer.ggml.model", "gpt2");
    put_kv_array(&b, "tokenizer.ggml.tokens", 8, ROWS);
    for (uint32_t i = 0; i < ROWS; i++)
        put_str(&b, (char[]){(char)('a' + i % 26), i < 26 ? 0 : 'a', 0});
    put_kv_array(&b, "tokenizer.ggml.merges", 8, 2);
    put_str(&b, "a a");
    put_str(&b, "b a");
    matrix_of(&b, &at, "token_embd.weight", WIDTH, ROWS, type);
    vector(&b, &at, "blk.0.attn_norm.weight", WIDTH);
    matrix_of(&b, &at, "blk.0.attn_q.weight", WIDTH, WIDTH, type);
    matrix_of(&b, &at, "blk.0.attn_k.weight", WIDTH, WIDTH / 2, type);
    matrix_of(&b, &at, "blk.0.attn_v.weight", WIDTH, WIDTH / 2, type);
    matrix_of(&b, &at, "blk.0.attn_output.weight", WIDTH, WIDTH, type);
    vector(&b, &at, "blk.0.ffn_norm.weight", WIDTH);
    matrix_of(&b, &at, "blk.0.ffn_gate.weight", WIDTH, FF, type);
    matrix_of(&b, &at, "blk.0.ffn_up.weight", WIDTH, FF, type);
    matrix_of(&b, &at, "blk.0.ffn_down.weight", FF, WIDTH, type);
    vector(&b, &at, "output_norm.weight", WIDTH);
    put_align(&b, 32);
    for (; at > 0; at -= 2) { /* as f32, f16 or scales: numbers from 0.01 to 1 of both signs */
        put_u8(&b, (uint8_t)draw(256));
        put_u8(&b, (uint8_t)(0x38 + draw(7) + 128 * draw(2)));
    }
    return b;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed) {
    static const uint64_t telling[] = {
        0,          1,          2,          3,          31,         32,         33,
        64,         127,        128,        255,        256,        512,        1024,
        0xFFFF,     0x10000,    0x20000,    0x1000000,  0x10000000, 0x7FFFFFFF, 0x80000000,
        0xFFFFFFFF, 0x7FC00000, 0x7F800000, 0x00000001, 0x3F800000, 0x4B000000, UINT64_MAX};
    state = seed * 2654435761u + 1;
    if (size < 64 || draw(50) == 0) {
        buf b = tiny_model();
        if (b.n <= max) memcpy(data, b.p, size = b.n);
        free(b.p);
        return size;
    }
    if (draw(5) == 0) return LLVMFuzzerMutate(data, size, max);
    size_t head = size < 3000 ? size : 3000;
    for (uint32_t i = draw(3) + 1; i > 0; i--) {
        size_t at = draw((uint32_t)head - 8);
        uint32_t kind = draw(4);
        uint64_t v = telling[draw(sizeof telling / sizeof *telling)];
        if (kind == 0) { /* a small change of a number */
            data[at] = (uint8_t)(data[at] + draw(9) - 4);
        } else if (kind < 3) {
            memcpy(data + at, &v, kind == 1 ? 4 : 8);
        } else { /* some bytes by libFuzzer, what follows stays in place */
            uint8_t some[64];
            size_t n = draw(56) + 8;
            if (at + n > size) n = size - at;
            memcpy(some, data + at, n);
            LLVMFuzzerMutate(some, n, n);
            memcpy(data + at, some, n);
        }
    }
    return size;
}
