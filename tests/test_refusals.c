/* Every refusal of config.c and model.c: a tiny valid llama, one field broken at a time, with the
 * code and the sentence expected. Mapped and read must say the same. */
#include "build_gguf.h"
#include "support.h"

#include <unistd.h>

/* One metadata entry: kind 'u' u32, 'f' f32, 's' string, 'A' array of u32, 'S' array of strings. */
typedef struct {
    const char *key;
    char kind;
    double number;
    const char *text; /* of 's'; for arrays the values, space separated */
} entry;

typedef struct {
    const char *name;
    uint64_t cols, rows; /* rows 0: a vector */
    uint32_t type;
} tensor;

enum { MAX_ENTRIES = 32, MAX_TENSORS = 32, WIDTH = 32, FF = 64, ROWS = 20 };
typedef struct {
    entry entries[MAX_ENTRIES];
    size_t n_entries;
    tensor tensors[MAX_TENSORS];
    size_t n_tensors;
} recipe;

static recipe tiny(void) {
    return (recipe){.entries = {{"general.architecture", 's', 0, "llama"},
                                {"llama.block_count", 'u', 1, NULL},
                                {"llama.embedding_length", 'u', WIDTH, NULL},
                                {"llama.feed_forward_length", 'u', FF, NULL},
                                {"llama.context_length", 'u', 64, NULL},
                                {"llama.attention.head_count", 'u', 4, NULL},
                                {"llama.attention.head_count_kv", 'u', 2, NULL},
                                {"llama.attention.layer_norm_rms_epsilon", 'f', 1e-5, NULL}},
                    .n_entries = 8,
                    .tensors = {{"token_embd.weight", WIDTH, ROWS, 0},
                                {"blk.0.attn_norm.weight", WIDTH, 0, 0},
                                {"blk.0.attn_q.weight", WIDTH, WIDTH, 0},
                                {"blk.0.attn_k.weight", WIDTH, 16, 0},
                                {"blk.0.attn_v.weight", WIDTH, 16, 0},
                                {"blk.0.attn_output.weight", WIDTH, WIDTH, 0},
                                {"blk.0.ffn_norm.weight", WIDTH, 0, 0},
                                {"blk.0.ffn_gate.weight", WIDTH, FF, 0},
                                {"blk.0.ffn_up.weight", WIDTH, FF, 0},
                                {"blk.0.ffn_down.weight", FF, WIDTH, 0},
                                {"output_norm.weight", WIDTH, 0, 0}},
                    .n_tensors = 11};
}

static void put_entry(buf *b, const entry *e) {
    char text[256], *save = NULL;
    if (e->kind == 'u') put_kv_u32(b, e->key, (uint32_t)e->number);
    if (e->kind == 's') put_kv_str(b, e->key, e->text);
    if (e->kind == 'f') {
        put_key(b, e->key, 6);
        put_f32(b, (float)e->number);
    }
    if (e->kind != 'A' && e->kind != 'S') return;
    put_kv_array(b, e->key, e->kind == 'A' ? 4 : 8, (uint64_t)e->number);
    snprintf(text, sizeof text, "%s", e->text);
    for (char *t = strtok_r(text, " ", &save); t; t = strtok_r(NULL, " ", &save)) {
        if (e->kind == 'A')
            put_u32(b, (uint32_t)strtoul(t, NULL, 10));
        else
            put_str(b, t);
    }
}

static size_t bytes_of(const tensor *t) {
    static const size_t block_bytes[] = {[0] = 4, [1] = 2, [2] = 18, [8] = 34, [16] = 66};
    size_t n = (size_t)(t->cols * (t->rows ? t->rows : 1));
    return t->type < 2 ? n * block_bytes[t->type] : n / 32 * block_bytes[t->type];
}

/* The file's bytes; `fill` is every byte of the data section (0x3c: small positive numbers). */
static buf build(const recipe *r, uint8_t fill) {
    buf b = {0};
    size_t offset = 0;
    put_head(&b, r->n_tensors, r->n_entries);
    for (size_t i = 0; i < r->n_entries; i++)
        put_entry(&b, &r->entries[i]);
    for (size_t i = 0; i < r->n_tensors; i++) {
        const tensor *t = &r->tensors[i];
        put_tensor(&b, t->name, t->rows ? 2 : 1, (uint64_t[]){t->cols, t->rows}, t->type, offset);
        offset += (bytes_of(t) + 31) / 32 * 32;
    }
    put_align(&b, 32);
    for (size_t i = 0; i < offset; i++)
        put_u8(&b, fill);
    return b;
}

static char path[600];

static linnet_status open_recipe(const recipe *r, uint8_t fill, linnet_model_options o,
                                 linnet_model **m, linnet_error *err) {
    buf b = build(r, fill);
    write_file(path, b.p, b.n);
    free(b.p);
    return linnet_model_open(m, path, &o, err);
}

static void refused(const recipe *r, linnet_status code, const char *sentence) {
    linnet_model *m = (linnet_model *)1;
    linnet_error err = {0};
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        linnet_model_options o = {.no_mmap = no_mmap, .threads = 1};
        linnet_status got = open_recipe(r, 0x3c, o, &m, &err);
        if (got != code || err.code != code || !strstr(err.text, sentence) || m)
            fail_msg("expected code %d and '%s', found %d and '%s'", code, sentence, got,
                     got ? err.text : "success");
        assert_non_null(strstr(err.text, "model.gguf")); /* names the file */
    }
}

static entry *find_entry(recipe *r, const char *key) {
    for (size_t i = 0; i < r->n_entries; i++)
        if (!strcmp(r->entries[i].key, key)) return &r->entries[i];
    r->entries[r->n_entries] = (entry){key, 'u', 0, NULL};
    return &r->entries[r->n_entries++];
}

static void config_numbers(void **state) {
    (void)state;
    static const struct {
        entry set; /* kind 0: drop the key */
        linnet_status code;
        const char *sentence;
    } cases[] = {
        {{"general.architecture", 0, 0, NULL}, LINNET_ERR_FORMAT, "general.architecture"},
        {{"general.architecture", 'u', 1, NULL}, LINNET_ERR_FORMAT, "general.architecture"},
        {{"general.architecture", 's', 0, "mamba"},
         LINNET_ERR_UNSUPPORTED,
         "architecture 'mamba' is not supported; this version runs llama, qwen2"},
        {{"general.architecture", 's', 0, ""}, LINNET_ERR_UNSUPPORTED, "architecture ''"},
        {{"llama.block_count", 0, 0, NULL}, LINNET_ERR_FORMAT, "llama.block_count"},
        {{"llama.block_count", 's', 0, "one"}, LINNET_ERR_FORMAT, "llama.block_count"},
        {{"llama.block_count", 'u', 0, NULL}, LINNET_ERR_FORMAT, "llama.block_count\" is 0"},
        {{"llama.block_count", 'u', 4294967295.0, NULL}, LINNET_ERR_FORMAT, "4294967295"},
        {{"llama.block_count", 'u', 2, NULL},
         LINNET_ERR_FORMAT,
         "blk.1.attn_norm.weight is missing"},
        {{"llama.embedding_length", 0, 0, NULL}, LINNET_ERR_FORMAT, "llama.embedding_length"},
        {{"llama.embedding_length", 'u', 0, NULL},
         LINNET_ERR_FORMAT,
         "llama.embedding_length\" is 0"},
        {{"llama.embedding_length", 'u', 1e9, NULL}, LINNET_ERR_FORMAT, "1000000000"},
        {{"llama.embedding_length", 'u', 48, NULL},
         LINNET_ERR_FORMAT,
         "token_embd.weight: expected shape [48, 20], found [32, 20]"},
        {{"llama.embedding_length", 'u', 33, NULL},
         LINNET_ERR_FORMAT,
         "33 is not a multiple of head_count 4"},
        {{"llama.feed_forward_length", 0, 0, NULL}, LINNET_ERR_FORMAT, "llama.feed_forward_length"},
        {{"llama.feed_forward_length", 'u', 0, NULL},
         LINNET_ERR_FORMAT,
         "feed_forward_length\" is 0"},
        {{"llama.feed_forward_length", 'A', 2, "64 32"},
         LINNET_ERR_UNSUPPORTED,
         "differs between layers"},
        {{"llama.feed_forward_length", 'A', 0, ""}, LINNET_ERR_FORMAT, "feed_forward_length"},
        {{"llama.feed_forward_length", 'S', 1, "x"}, LINNET_ERR_FORMAT, "array of integers"},
        {{"llama.context_length", 0, 0, NULL}, LINNET_ERR_FORMAT, "llama.context_length"},
        {{"llama.context_length", 'u', 0, NULL}, LINNET_ERR_FORMAT, "llama.context_length\" is 0"},
        {{"llama.context_length", 'u', 4e9, NULL},
         LINNET_ERR_FORMAT,
         "llama.context_length\" is 4000000000"},
        {{"llama.attention.head_count", 0, 0, NULL}, LINNET_ERR_FORMAT, "head_count"},
        {{"llama.attention.head_count", 'u', 0, NULL}, LINNET_ERR_FORMAT, "head_count\" is 0"},
        {{"llama.attention.head_count", 'u', 32, NULL},
         LINNET_ERR_UNSUPPORTED,
         "heads of 1 dimensions"},
        {{"llama.attention.head_count_kv", 'u', 0, NULL},
         LINNET_ERR_FORMAT,
         "head_count_kv\" is 0"},
        {{"llama.attention.head_count_kv", 'u', 8, NULL},
         LINNET_ERR_FORMAT,
         "head_count_kv\" is 8"},
        {{"llama.attention.head_count_kv", 'u', 3, NULL},
         LINNET_ERR_FORMAT,
         "4 heads over 3 KV heads"},
        {{"llama.attention.key_length", 'u', 7, NULL},
         LINNET_ERR_UNSUPPORTED,
         "heads of 7 dimensions"},
        {{"llama.attention.key_length", 'u', 1024, NULL},
         LINNET_ERR_FORMAT,
         "key_length\" is 1024"},
        {{"llama.attention.value_length", 'u', 16, NULL},
         LINNET_ERR_UNSUPPORTED,
         "keys of 8 and values of 16"},
        {{"llama.attention.sliding_window", 's', 0, "8"}, LINNET_ERR_FORMAT, "sliding_window"},
        {{"llama.attention.layer_norm_rms_epsilon", 0, 0, NULL},
         LINNET_ERR_FORMAT,
         "layer_norm_rms_epsilon is missing"},
        {{"llama.attention.layer_norm_rms_epsilon", 'f', -1, NULL},
         LINNET_ERR_FORMAT,
         "epsilon is -1"},
        {{"llama.attention.layer_norm_rms_epsilon", 'f', NAN, NULL}, LINNET_ERR_FORMAT, "epsilon"},
        {{"llama.expert_count", 'u', 8, NULL}, LINNET_ERR_UNSUPPORTED, "mixtures of experts"},
        {{"llama.rope.freq_base", 'f', 0, NULL}, LINNET_ERR_FORMAT, "rope.freq_base is 0"},
        {{"llama.rope.freq_base", 'f', INFINITY, NULL}, LINNET_ERR_FORMAT, "rope.freq_base"},
        {{"llama.rope.dimension_count", 'u', 3, NULL}, LINNET_ERR_FORMAT, "dimension_count is 3"},
        {{"llama.rope.dimension_count", 'u', 10, NULL},
         LINNET_ERR_FORMAT,
         "dimension_count\" is 10"},
        {{"llama.rope.scaling.type", 's', 0, "longrope"},
         LINNET_ERR_UNSUPPORTED,
         "'longrope', expected none, linear or yarn"},
        {{"llama.rope.scaling.factor", 'f', 0, NULL}, LINNET_ERR_FORMAT, "scaling.factor is 0"},
        {{"linnet.attention.window_layers", 'A', 2, "4 4"},
         LINNET_ERR_FORMAT,
         "has 2 entries for 1 layers"},
        {{"linnet.attention.window_layers", 'A', 1, "4000000000"},
         LINNET_ERR_FORMAT,
         "window of 4000000000"},
        {{"linnet.attention.window_layers", 'u', 4, NULL}, LINNET_ERR_FORMAT, "window_layers"},
        {{"linnet.mixers", 'S', 1, "magic"},
         LINNET_ERR_UNSUPPORTED,
         "names 'magic', which this version does not know; it knows softmax"},
        {{"linnet.mixers", 'S', 2, "softmax softmax"},
         LINNET_ERR_FORMAT,
         "linnet.mixers has 2 entries"},
        {{"linnet.mixers", 'A', 1, "1"}, LINNET_ERR_FORMAT, "linnet.mixers"},
        {{"linnet.rope.pairing", 's', 0, "thirds"},
         LINNET_ERR_UNSUPPORTED,
         "linnet.rope.pairing is 'thirds'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        recipe r = tiny();
        entry *e = find_entry(&r, cases[i].set.key);
        if (cases[i].set.kind)
            *e = cases[i].set;
        else
            *e = r.entries[--r.n_entries];
        refused(&r, cases[i].code, cases[i].sentence);
    }
}

static void tensors_missing_and_misshapen(void **state) {
    (void)state;
    const recipe good = tiny();
    for (size_t i = 0; i < good.n_tensors; i++) {
        char sentence[200];
        recipe r = good;
        r.tensors[i] = r.tensors[--r.n_tensors];
        snprintf(sentence, sizeof sentence, "tensor %s is missing", good.tensors[i].name);
        refused(&r, LINNET_ERR_FORMAT, sentence);
        r = good;
        r.tensors[i].cols += 32;
        if (i == 0) continue; /* every other shape would be measured against the wider embedding */
        unsigned long long cols = good.tensors[i].cols, rows = good.tensors[i].rows;
        if (rows)
            snprintf(sentence, sizeof sentence,
                     "tensor %s: expected shape [%llu, %llu], found [%llu, %llu]",
                     good.tensors[i].name, cols, rows, cols + 32, rows);
        else
            snprintf(sentence, sizeof sentence, "tensor %s: expected shape [%llu], found [%llu]",
                     good.tensors[i].name, cols, cols + 32);
        refused(&r, LINNET_ERR_FORMAT, sentence);
        r = good;
        r.tensors[i].type = 16; /* IQ2_XXS: 66 bytes for 256 values */
        r.tensors[i].cols = 256;
        snprintf(sentence, sizeof sentence, "tensor %s has type ", good.tensors[i].name);
        refused(&r, LINNET_ERR_UNSUPPORTED, sentence);
        refused(&r, LINNET_ERR_UNSUPPORTED, "it reads f32 f16");
    }
    recipe r = good;
    r.tensors[1].type = 8;
    refused(&r, LINNET_ERR_UNSUPPORTED,
            "attn_norm.weight has type q8_0, expected f32, f16 or bf16");
    r = good;
    r.tensors[r.n_tensors++] = (tensor){"blk.0.ffn_gate_inp.weight", WIDTH, 4, 0};
    refused(&r, LINNET_ERR_UNSUPPORTED,
            "tensor blk.0.ffn_gate_inp.weight is not part of the architecture");
    r = good;
    r.tensors[r.n_tensors++] = (tensor){"output.weight", WIDTH, ROWS + 1, 0};
    refused(&r, LINNET_ERR_FORMAT, "output.weight has 21 rows, token_embd.weight has 20");
    r = good;
    r.tensors[r.n_tensors++] = (tensor){"rope_freqs.weight", 5, 0, 0};
    refused(&r, LINNET_ERR_FORMAT, "rope_freqs.weight: expected 4 f32 values, found 5");
    r = good;
    r.tensors[r.n_tensors++] = (tensor){"blk.0.attn_q.bias", 31, 0, 0};
    refused(&r, LINNET_ERR_FORMAT, "attn_q.bias: expected shape [32], found [31]");
}

static void a_file_without_tensors_is_a_vocabulary(void **state) {
    (void)state;
    recipe r = tiny();
    linnet_model *m;
    linnet_session *s;
    linnet_error err;
    r.n_tensors = 0;
    refused(&r, LINNET_ERR_FORMAT, "a vocabulary without weights");
    assert_int_equal(open_recipe(&r, 0, (linnet_model_options){.metadata_only = true}, &m, &err),
                     0);
    assert_string_equal(linnet_model_get_info(m)->architecture, "llama");
    assert_int_equal(linnet_session_new(&s, m, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "metadata only"));
    size_t n;
    assert_int_equal(linnet_tokenize(m, "a", 1, 0, NULL, 0, &n, &err), LINNET_ERR_TOKENIZER);
    linnet_model_close(m);
}

static void options_out_of_range(void **state) {
    (void)state;
    const recipe r = tiny();
    static const struct {
        linnet_model_options o;
        linnet_status code;
        const char *sentence;
    } cases[] = {
        {{.threads = -1}, LINNET_ERR_ARGUMENT, "threads is -1"},
        {{.threads = 1025}, LINNET_ERR_ARGUMENT, "threads is 1025"},
        {{.isa = "sse"}, LINNET_ERR_ARGUMENT, "isa 'sse'"},
#ifdef __aarch64__
        {{.isa = "avx2"}, LINNET_ERR_UNSUPPORTED, "isa avx2"},
#else
        {{.isa = "neon"}, LINNET_ERR_UNSUPPORTED, "isa neon"},
#endif
        {{.backend = "cuda:0"}, LINNET_ERR_UNSUPPORTED, "no CUDA backend"},
        {{.backend = "tpu"}, LINNET_ERR_ARGUMENT, "backend 'tpu'"},
        {{.activations = (linnet_activations)9}, LINNET_ERR_ARGUMENT, "activations is 9"},
    };
    linnet_model *m;
    linnet_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(open_recipe(&r, 0, cases[i].o, &m, &err), cases[i].code);
        if (!strstr(err.text, cases[i].sentence)) fail_msg("'%s'", err.text);
        assert_null(m);
    }
    assert_int_equal(linnet_model_open(NULL, path, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_model_open(&m, NULL, NULL, &err), LINNET_ERR_ARGUMENT);
    linnet_model_close(NULL);
}

/* Misuse of a session: an error, and the session goes on as if nothing had happened. */
static void misuse_leaves_sessions_alone(void **state) {
    (void)state;
    const recipe r = tiny();
    linnet_model *m, *other;
    linnet_error err;
    assert_int_equal(open_recipe(&r, 0x3c, (linnet_model_options){.threads = 2}, &m, &err), 0);
    assert_int_equal(linnet_model_open(&other, path, NULL, &err), 0);
    linnet_session *s = open_session(m, NULL), *twin = open_session(m, NULL);
    linnet_session *foreign = open_session(other, NULL), *none;
    const int32_t ids[70] = {1, 2, 3}, low[] = {1, -1}, high[] = {1, ROWS};
    int32_t token;
    assert_int_equal(linnet_session_new(&none, m, &(linnet_session_options){.ctx = -1}, &err),
                     LINNET_ERR_ARGUMENT);
    assert_null(none);
    assert_int_equal(linnet_session_new(&none, NULL, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(
        linnet_session_new(&none, m, &(linnet_session_options){.kv = LINNET_KV_Q8_0}, &err),
        LINNET_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "multiple of 32"));
    assert_int_equal(linnet_sample(s, &(linnet_sampling)LINNET_SAMPLING_DEFAULT, &token, &err),
                     LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "no logits"));
    assert_int_equal(linnet_feed(s, ids, 3, LINNET_LOGITS_LAST, &err), 0);
    assert_int_equal(linnet_feed(twin, ids, 3, LINNET_LOGITS_LAST, &err), 0);
    assert_int_equal(linnet_feed(s, ids, 0, LINNET_LOGITS_LAST, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_feed(s, NULL, 1, LINNET_LOGITS_LAST, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_feed(NULL, ids, 1, LINNET_LOGITS_LAST, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_feed(s, ids, 1, (linnet_want)7, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_feed(s, low, 2, LINNET_LOGITS_LAST, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "token 1 is -1, expected 0 to 19"));
    assert_int_equal(linnet_feed(s, high, 2, LINNET_LOGITS_LAST, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_feed(s, ids, 62, LINNET_LOGITS_LAST, &err), LINNET_ERR_CONTEXT);
    assert_non_null(strstr(err.text, "context of 64 tokens has room for 61"));
    linnet_item twice[] = {{s, ids, 1, LINNET_LOGITS_LAST, NULL, NULL, false},
                           {s, ids, 1, LINNET_LOGITS_LAST, NULL, NULL, false}};
    assert_int_equal(linnet_forward(twice, 2, NULL, NULL, &err), LINNET_ERR_ARGUMENT);
    twice[1].session = foreign;
    assert_int_equal(linnet_forward(twice, 2, NULL, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "another model"));
    assert_int_equal(linnet_forward(NULL, 1, NULL, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_forward(twice, 0, NULL, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_feed(s, ids, 3, LINNET_LOGITS_LAST, NULL), 0); /* err may be NULL */
    assert_int_equal(linnet_feed(twin, ids, 3, LINNET_LOGITS_LAST, &err), 0);
    assert_memory_equal(linnet_session_logits(s), linnet_session_logits(twin),
                        ROWS * sizeof(float));
    size_t n;
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 6);
    linnet_session_free(foreign);
    linnet_session_free(twin);
    linnet_session_free(s);
    linnet_session_free(NULL);
    linnet_model_close(other);
    linnet_model_close(m);
}

static bool stop_second(void *user, const char *what, size_t done, size_t total) {
    (void)what, (void)done, (void)total;
    return ++*(int *)user < 2;
}

static bool stop_rows(void *user, size_t first, size_t n, const float *logits) {
    (void)user, (void)n, (void)logits;
    return first < 300;
}

/* A prompt of several pieces, stopped in the middle: the session is where it was. */
static void cancelling_leaves_sessions_alone(void **state) {
    (void)state;
    const recipe r = tiny();
    linnet_model *m;
    linnet_error err;
    enum { N = 700 };
    int32_t ids[N];
    int calls = 0;
    for (int i = 0; i < N; i++)
        ids[i] = i * 7 % ROWS;
    assert_int_equal(open_recipe(&r, 0x3c, (linnet_model_options){0}, &m, &err), 0);
    const linnet_session_options wide = {.ctx = 2000};
    linnet_session *s = open_session(m, &wide), *twin = open_session(m, &wide);
    assert_int_equal(linnet_feed(s, ids, 5, LINNET_LOGITS_LAST, &err), 0);
    assert_int_equal(linnet_feed(twin, ids, 5, LINNET_LOGITS_LAST, &err), 0);
    uint64_t bytes = linnet_session_state_bytes(s);
    linnet_item item = {s, ids, N, LINNET_LOGITS_LAST, NULL, NULL, false};
    assert_int_equal(linnet_forward(&item, 1, stop_second, &calls, &err), LINNET_ERR_CANCELLED);
    assert_int_equal(calls, 2);
    item.want = LINNET_LOGITS_ALL;
    item.rows = stop_rows;
    assert_int_equal(linnet_forward(&item, 1, NULL, NULL, &err), LINNET_ERR_CANCELLED);
    size_t n;
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 5);
    assert_int_equal(linnet_session_state_bytes(s), bytes);
    assert_memory_equal(linnet_session_logits(s), linnet_session_logits(twin),
                        ROWS * sizeof(float));
    assert_int_equal(linnet_feed(s, ids, N, LINNET_LOGITS_LAST, &err), 0);
    assert_int_equal(linnet_feed(twin, ids, N, LINNET_LOGITS_LAST, &err), 0);
    assert_memory_equal(linnet_session_logits(s), linnet_session_logits(twin),
                        ROWS * sizeof(float));
    linnet_session_reset(s);
    assert_null(linnet_session_logits(s));
    assert_int_equal(linnet_session_state_bytes(s), 0);
    linnet_session_free(s);
    linnet_session_free(twin);
    linnet_model_close(m);
}

static bool stop_loading(void *user, const char *what, size_t done, size_t total) {
    (void)user, (void)what, (void)done, (void)total;
    return false;
}

/* All bytes 0xff: every f32 is NaN. */
static void nan_weights_are_found(void **state) {
    (void)state;
    const recipe r = tiny();
    linnet_model *m;
    linnet_error err;
    assert_int_equal(open_recipe(&r, 0xff, (linnet_model_options){0}, &m, &err), 0);
    assert_int_equal(linnet_model_check(m, &err), LINNET_ERR_NUMERIC);
    assert_non_null(strstr(err.text, "token_embd.weight has NaN at element 0"));
    linnet_session *s = open_session(m, NULL);
    assert_int_equal(linnet_feed(s, (int32_t[]){1, 2}, 2, LINNET_LOGITS_LAST, &err),
                     LINNET_ERR_NUMERIC);
    assert_non_null(strstr(err.text, "position 0: the embedding of token 1 has NaN"));
    assert_null(linnet_session_logits(s));
    linnet_session_free(s);
    linnet_model_close(m);
    assert_int_equal(open_recipe(&r, 0x3c, (linnet_model_options){0}, &m, &err), 0);
    assert_int_equal(linnet_model_check(m, &err), 0);
    linnet_model_close(m);
    assert_int_equal(open_recipe(&r, 0, (linnet_model_options){.progress = stop_loading}, &m, &err),
                     LINNET_ERR_CANCELLED);
}

static void info_tells_what_is_there(void **state) {
    (void)state;
    const recipe r = tiny();
    linnet_model *m;
    linnet_error err;
    assert_int_equal(open_recipe(&r, 0x3c, (linnet_model_options){.threads = 3}, &m, &err), 0);
    const linnet_model_info *i = linnet_model_get_info(m);
    assert_int_equal(i->n_layers, 1);
    assert_int_equal(i->n_embd, WIDTH);
    assert_int_equal(i->n_ff, FF);
    assert_int_equal(i->n_heads, 4);
    assert_int_equal(i->n_kv_heads, 2);
    assert_int_equal(i->head_dim, 8);
    assert_int_equal(i->n_rows, ROWS);
    assert_int_equal(i->n_vocab, 0);
    assert_int_equal(i->threads, 3);
    assert_int_equal(i->n_tensors, 11);
    assert_int_equal(i->n_metadata, 8);
    assert_int_equal(i->n_params, 20 * 32 + 3 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64);
    int window = -1;
    assert_string_equal(linnet_model_mixer(m, 0, &window), "softmax");
    assert_int_equal(window, 0);
    assert_null(linnet_model_mixer(m, 1, NULL));
    assert_null(linnet_model_mixer(m, -1, NULL));
    assert_null(linnet_model_tensor(m, 11, NULL, NULL, NULL));
    assert_null(linnet_model_metadata(m, 8, NULL, 0));
    const char *type;
    uint64_t dims[4], bytes;
    assert_string_equal(linnet_model_tensor(m, 0, &type, dims, &bytes), "token_embd.weight");
    assert_string_equal(type, "f32");
    assert_int_equal(dims[0] * dims[1] * 4, bytes);
    char value[32];
    assert_string_equal(linnet_model_metadata(m, 0, value, sizeof value), "general.architecture");
    assert_string_equal(value, "llama");
    const linnet_session_options wide = {.ctx = 300};
    linnet_session *s = open_session(m, &wide);
    for (size_t n = 0; n < 200; n++) {
        assert_int_equal(linnet_session_state_bytes(s),
                         linnet_model_state_bytes(m, LINNET_KV_F16, n));
        assert_int_equal(
            linnet_feed(s, (int32_t[]){(int32_t)n % ROWS}, 1, LINNET_LOGITS_NONE, &err), 0);
    }
    linnet_session_free(s);
    linnet_model_close(m);
}

static int make_path(void **state) {
    (void)state;
    const char *folder = make_folder();
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    return 0;
}

static int remove_path(void **state) {
    (void)state;
    unlink(path);
    *strrchr(path, '/') = 0;
    return rmdir(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config_numbers),
        cmocka_unit_test(tensors_missing_and_misshapen),
        cmocka_unit_test(a_file_without_tensors_is_a_vocabulary),
        cmocka_unit_test(options_out_of_range),
        cmocka_unit_test(misuse_leaves_sessions_alone),
        cmocka_unit_test(cancelling_leaves_sessions_alone),
        cmocka_unit_test(nan_weights_are_found),
        cmocka_unit_test(info_tells_what_is_there),
    };
    return cmocka_run_group_tests_name("refusals", tests, make_path, remove_path);
}
