/* Sessions of every golden model: after each misuse, error or cancellation a session continues bit
 * for bit as an untouched twin; threads, resets, full contexts, memory that stays bounded. */
#include "../weights/gguf.h"
#include "build_gguf.h"
#include "support.h"

#include <glob.h>
#include <pthread.h>
#include <unistd.h>

enum { MAX_MODELS = 128, LONG = 700 };
static char paths[MAX_MODELS][160];
static int n_models;
static char folder[512];

static void find_models(void) {
    glob_t found;
    assert_int_equal(glob("tests/data/models/*.logits.npy", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc && n_models < MAX_MODELS; i++)
        snprintf(paths[n_models++], sizeof *paths, "%.*s.gguf",
                 (int)(strlen(found.gl_pathv[i]) - strlen(".logits.npy")), found.gl_pathv[i]);
    globfree(&found);
}

/* A session and a twin of it, and tokens for both. */
typedef struct {
    linnet_model *m;
    linnet_session *s, *twin;
    int32_t ids[LONG + 8];
    size_t n, width; /* how many tokens fit */
} pair;

static pair open_pair(linnet_model *m) {
    const linnet_model_info *info = linnet_model_get_info(m);
    pair p = {.m = m, .width = (size_t)info->n_rows};
    const linnet_session_options o = {.ctx = info->ctx_is_limit ? 0 : LONG};
    p.s = open_session(m, &o);
    p.twin = open_session(m, &o);
    p.n = (size_t)linnet_session_ctx(p.s);
    uint64_t x = 12345;
    for (size_t i = 0; i < p.n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        p.ids[i] = (int32_t)((x >> 33) % p.width);
    }
    return p;
}

static void close_pair(pair *p) {
    linnet_session_free(p->s);
    linnet_session_free(p->twin);
}

static void feed(linnet_session *s, const int32_t *ids, size_t n) {
    linnet_error err;
    if (linnet_feed(s, ids, n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
}

static void expect_equal(const pair *p, const char *after) {
    size_t n, m;
    const int32_t *a = linnet_session_tokens(p->s, &n), *b = linnet_session_tokens(p->twin, &m);
    if (n != m || (n && memcmp(a, b, n * sizeof *a)))
        fail_msg("after %s: %zu tokens, %zu expected", after, n, m);
    if (linnet_session_state_bytes(p->s) != linnet_session_state_bytes(p->twin))
        fail_msg("after %s: %llu bytes of state, %llu expected", after,
                 (unsigned long long)linnet_session_state_bytes(p->s),
                 (unsigned long long)linnet_session_state_bytes(p->twin));
    const float *x = linnet_session_logits(p->s), *y = linnet_session_logits(p->twin);
    if (!x != !y || (x && memcmp(x, y, p->width * sizeof *x)))
        fail_msg("after %s: other logits", after);
}

/* Both take the next tokens: what the session remembers is the same too. */
static void continue_equal(pair *p, const char *after) {
    size_t n;
    expect_equal(p, after);
    linnet_session_tokens(p->twin, &n);
    size_t some = p->n - n < 3 ? p->n - n : 3;
    if (!some) return;
    feed(p->s, p->ids + n, some);
    feed(p->twin, p->ids + n, some);
    expect_equal(p, after);
}

static void refused(linnet_status found, linnet_status code, const linnet_error *err,
                    const char *sentence) {
    if (found != code || err->code != code || !strstr(err->text, sentence))
        fail_msg("expected %d '%s', found %d '%s'", code, sentence, found, err->text);
}

/* ---- Misuse ------------------------------------------------------------------------------------
 */

static void misuse(void **state) {
    linnet_error err;
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 2});
    linnet_model *other = open_model(*state, &(linnet_model_options){.threads = 1});
    pair p = open_pair(m);
    linnet_session *foreign = open_session(other, NULL), *third = open_session(m, NULL);
    const int32_t ok = 1, low[] = {1, 1, -1}, high[] = {1, (int32_t)p.width}, all = INT32_MIN;
    const linnet_want last = LINNET_LOGITS_LAST;
    feed(p.s, p.ids, 5);
    feed(p.twin, p.ids, 5);
#define REFUSED(call, code, sentence)                                                              \
    do {                                                                                           \
        refused(call, code, &err, sentence);                                                       \
        continue_equal(&p, #call);                                                                 \
    } while (0)
    REFUSED(linnet_feed(NULL, &ok, 1, last, &err), LINNET_ERR_ARGUMENT, "expected a session");
    REFUSED(linnet_feed(p.s, NULL, 1, last, &err), LINNET_ERR_ARGUMENT, "at least one token");
    REFUSED(linnet_feed(p.s, &ok, 0, last, &err), LINNET_ERR_ARGUMENT, "at least one token");
    REFUSED(linnet_feed(p.s, low, 3, last, &err), LINNET_ERR_ARGUMENT, "token 2 is -1");
    REFUSED(linnet_feed(p.s, high, 2, last, &err), LINNET_ERR_ARGUMENT, "token 1 is");
    REFUSED(linnet_feed(p.s, &all, 1, last, &err), LINNET_ERR_ARGUMENT, "token 0 is -2147483648");
    REFUSED(linnet_feed(p.s, &ok, 1, (linnet_want)-1, &err), LINNET_ERR_ARGUMENT, "want is -1");
    REFUSED(linnet_feed(p.s, &ok, 1, (linnet_want)3, &err), LINNET_ERR_ARGUMENT, "want is 3");
    REFUSED(linnet_feed(p.s, p.ids, LONG + 1, last, &err), LINNET_ERR_CONTEXT, "do not fit");
    REFUSED(linnet_feed(p.s, p.ids, SIZE_MAX, last, &err), LINNET_ERR_CONTEXT, "do not fit");
    REFUSED(linnet_forward(NULL, 1, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "at least one item");
    linnet_item items[] = {{p.s, &ok, 1, last, NULL, NULL, false},
                           {p.s, &ok, 1, last, NULL, NULL, false}};
    REFUSED(linnet_forward(items, 0, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "at least one item");
    REFUSED(linnet_forward(items, 2, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "same session");
    items[1].session = foreign;
    REFUSED(linnet_forward(items, 2, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "another model");
    items[1].session = NULL;
    REFUSED(linnet_forward(items, 2, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "item 1");
    /* a good item beside a bad one: neither advances */
    items[1] = (linnet_item){third, low, 3, last, NULL, NULL, false};
    REFUSED(linnet_forward(items, 2, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "token 2");
    size_t n;
    linnet_session_tokens(third, &n);
    assert_int_equal(n, 0);
    assert_null(linnet_session_logits(third));
    /* sampling and writing */
    linnet_sampling sampling = LINNET_SAMPLING_DEFAULT;
    int32_t token = -7;
    REFUSED(linnet_sample(NULL, &sampling, &token, &err), LINNET_ERR_ARGUMENT, "NULL");
    REFUSED(linnet_sample(p.s, NULL, &token, &err), LINNET_ERR_ARGUMENT, "NULL");
    REFUSED(linnet_sample(p.s, &sampling, NULL, &err), LINNET_ERR_ARGUMENT, "NULL");
    REFUSED(linnet_sample(third, &sampling, &token, &err), LINNET_ERR_ARGUMENT, "no logits");
    sampling.temperature = -1;
    REFUSED(linnet_sample(p.s, &sampling, &token, &err), LINNET_ERR_ARGUMENT, "temperature");
    sampling.temperature = NAN;
    REFUSED(linnet_sample(p.s, &sampling, &token, &err), LINNET_ERR_ARGUMENT, "temperature");
    assert_int_equal(token, -7);
    REFUSED(linnet_generate(p.s, NULL, NULL, NULL, NULL, &err), LINNET_ERR_TOKENIZER, "vocabulary");
    REFUSED(linnet_generate(NULL, NULL, NULL, NULL, NULL, &err), LINNET_ERR_ARGUMENT, "NULL");
    /* the error is optional */
    assert_int_equal(linnet_feed(p.s, low, 3, last, NULL), LINNET_ERR_ARGUMENT);
    continue_equal(&p, "an error that nobody wanted to know");
    linnet_session_free(foreign);
    linnet_session_free(third);
    close_pair(&p);
    linnet_model_close(other);
    linnet_model_close(m);
}

static void creating(void **state) {
    (void)state;
    linnet_error err;
    linnet_model *m = open_model("tests/data/models/text.gguf", NULL);
    linnet_model *gpt2 = open_model("tests/data/models/gpt2.gguf", NULL);
    linnet_model *vocabulary =
        open_model("tests/data/models/text.gguf", &(linnet_model_options){.metadata_only = true});
    linnet_session *s = (void *)1;
    const linnet_session_options negative = {.ctx = -1}, huge = {.ctx = (1 << 28) + 1},
                                 beyond = {.ctx = 161}, blocks = {.kv = LINNET_KV_Q8_0},
                                 odd = {.kv = (linnet_kv_type)9};
    refused(linnet_session_new(NULL, m, NULL, &err), LINNET_ERR_ARGUMENT, &err, "NULL");
    refused(linnet_session_new(&s, NULL, NULL, &err), LINNET_ERR_ARGUMENT, &err, "NULL");
    refused(linnet_session_new(&s, m, &negative, &err), LINNET_ERR_ARGUMENT, &err, "ctx is -1");
    assert_null(s);
    refused(linnet_session_new(&s, m, &huge, &err), LINNET_ERR_ARGUMENT, &err, "ctx is 268435457");
    refused(linnet_session_new(&s, gpt2, &beyond, &err), LINNET_ERR_ARGUMENT, &err,
            "learned positions for 160 tokens");
    refused(linnet_session_new(&s, vocabulary, NULL, &err), LINNET_ERR_ARGUMENT, &err,
            "metadata only");
    refused(linnet_session_new(&s, m, &blocks, &err), LINNET_ERR_UNSUPPORTED, &err,
            "multiple of 32 dimensions, this model's have 16");
    refused(linnet_session_new(&s, m, &odd, &err), LINNET_ERR_ARGUMENT, &err, "kv");
    assert_null(s);
    s = open_session(gpt2, NULL);
    assert_int_equal(linnet_session_ctx(s), 160);
    linnet_session_free(s);
    linnet_session_free(NULL);
    linnet_model_close(vocabulary);
    linnet_model_close(gpt2);
    linnet_model_close(m);
}

/* Texts: NULLs, ids out of range, the buffer rule. */
static void texts(void **state) {
    (void)state;
    linnet_error err;
    linnet_model *m = open_model("tests/data/models/text.gguf", NULL);
    const linnet_message talk[] = {{"user", "hi"}}, mute[] = {{"user", "a"}, {NULL, "hi"}},
                         still[] = {{"user", NULL}}, odd[] = {{"cat", ""}};
    int32_t ids[64], few[2] = {-9, -9};
    char text[64];
    size_t n = 99, bytes, all;
    refused(linnet_tokenize(NULL, "a", 1, 0, ids, 64, &n, &err), LINNET_ERR_ARGUMENT, &err, "NULL");
    refused(linnet_tokenize(m, NULL, 1, 0, ids, 64, &n, &err), LINNET_ERR_ARGUMENT, &err, "NULL");
    refused(linnet_tokenize(m, "a", 1, 0, NULL, 64, &n, &err), LINNET_ERR_ARGUMENT, &err, "NULL");
    refused(linnet_tokenize(m, "a", 1, 0, ids, 64, NULL, &err), LINNET_ERR_ARGUMENT, &err, "NULL");
    assert_int_equal(n, 99);
    assert_int_equal(linnet_tokenize(m, NULL, 0, 0, NULL, 0, &n, &err), 0);
    assert_int_equal(n, 0);
    assert_int_equal(linnet_tokenize(m, "the sea and", 11, 0, ids, 64, &all, &err), 0);
    assert_true(all > 2);
    assert_int_equal(linnet_tokenize(m, "the sea and", 11, 0, few, 1, &n, &err), 0);
    assert_true(n == all && few[0] == ids[0] && few[1] == -9);
    refused(linnet_detokenize(NULL, ids, all, 0, text, 64, &bytes, &err), LINNET_ERR_ARGUMENT, &err,
            "NULL");
    refused(linnet_detokenize(m, NULL, 1, 0, text, 64, &bytes, &err), LINNET_ERR_ARGUMENT, &err,
            "NULL");
    refused(linnet_detokenize(m, (int32_t[]){0, 300}, 2, 0, text, 64, &bytes, &err),
            LINNET_ERR_ARGUMENT, &err, "token 1 is 300, expected 0 to 299");
    refused(linnet_detokenize(m, (int32_t[]){-1}, 1, 0, text, 64, &bytes, &err),
            LINNET_ERR_ARGUMENT, &err, "token 0 is -1");
    memset(text, '#', sizeof text);
    assert_int_equal(linnet_detokenize(m, ids, all, 0, text, 5, &bytes, &err), 0);
    assert_int_equal(bytes, 11);
    assert_memory_equal(text, "the s#", 6);
    refused(linnet_chat_tokenize(m, "nonsense", talk, 1, true, ids, 64, &n, &err),
            LINNET_ERR_ARGUMENT, &err, "'nonsense' is not known; there are");
    refused(linnet_chat_tokenize(m, "chatml", NULL, 1, true, ids, 64, &n, &err),
            LINNET_ERR_ARGUMENT, &err, "NULL");
    refused(linnet_chat_tokenize(m, "chatml", mute, 2, true, ids, 64, &n, &err),
            LINNET_ERR_ARGUMENT, &err, "message 2: its role or content is NULL");
    refused(linnet_chat_tokenize(m, "chatml", still, 1, true, ids, 64, &n, &err),
            LINNET_ERR_ARGUMENT, &err, "message 1: its role or content is NULL");
    refused(linnet_chat_tokenize(m, "llama2", odd, 1, true, ids, 64, &n, &err), LINNET_ERR_ARGUMENT,
            &err, "cat");
    assert_false(linnet_is_end(m, -1));
    assert_false(linnet_is_end(m, 100000));
    assert_null(linnet_chat_template_name(1000));
    linnet_model_close(m);
}

/* ---- Cancelling --------------------------------------------------------------------------------
 */

typedef struct {
    size_t calls, last; /* stop at call `last` */
} countdown;

static bool stop_progress(void *user, const char *what, size_t done, size_t total) {
    countdown *c = user;
    assert_non_null(what);
    assert_true(done <= total);
    return ++c->calls < c->last;
}

static bool stop_rows(void *user, size_t first, size_t n, const float *logits) {
    countdown *c = user;
    (void)first;
    assert_true(n >= 1 && isfinite(logits[0]));
    return ++c->calls < c->last;
}

/* A prompt of several pieces (one with learned positions), stopped at every piece and in some rows,
 * also beside another session; and single steps. */
static void cancelling(void **state) {
    linnet_error err;
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 2});
    pair p = open_pair(m);
    linnet_session *third =
        open_session(m, &(linnet_session_options){.ctx = linnet_session_ctx(p.s)});
    feed(p.s, p.ids, 40);
    feed(p.twin, p.ids, 40);
    size_t rest = p.n - 40 - 24;
    for (size_t at = 1; at <= 3 && at <= (rest + 255) / 256; at++) {
        countdown c = {0, at};
        linnet_item item = {p.s, p.ids + 40, rest, LINNET_LOGITS_LAST, NULL, NULL, false};
        refused(linnet_forward(&item, 1, stop_progress, &c, &err), LINNET_ERR_CANCELLED, &err,
                "cancelled");
        assert_int_equal(c.calls, at);
        expect_equal(&p, "a cancelled piece");
    }
    continue_equal(&p, "cancelled pieces");
    const size_t rows[] = {1, 2, 33, rest};
    for (size_t i = 0; i < 4; i++) {
        countdown c = {0, rows[i]}, none = {0, SIZE_MAX};
        linnet_item items[] = {
            {third, p.ids, 30, LINNET_LOGITS_ALL, stop_rows, &none, false},
            {p.s, p.ids + 40, rest, LINNET_LOGITS_ALL, stop_rows, &c, false},
        };
        refused(linnet_forward(items, 2, NULL, NULL, &err), LINNET_ERR_CANCELLED, &err,
                "cancelled");
        assert_int_equal(c.calls, rows[i]);
        expect_equal(&p, "a cancelled row");
        size_t n;
        linnet_session_tokens(third, &n);
        assert_int_equal(n, 0);
    }
    continue_equal(&p, "cancelled rows");
    for (int i = 0; i < 2; i++) { /* single steps */
        countdown c = {0, 1};
        linnet_item step = {p.s, p.ids, 1, LINNET_LOGITS_ALL, i ? stop_rows : NULL, &c, false};
        refused(linnet_forward(&step, 1, i ? NULL : stop_progress, &c, &err), LINNET_ERR_CANCELLED,
                &err, "cancelled");
        continue_equal(&p, "a cancelled step");
    }
    /* the other session of the batch is as good as new */
    linnet_session *fresh =
        open_session(m, &(linnet_session_options){.ctx = linnet_session_ctx(p.s)});
    feed(third, p.ids, 50);
    feed(fresh, p.ids, 50);
    assert_memory_equal(linnet_session_logits(third), linnet_session_logits(fresh),
                        p.width * sizeof(float));
    linnet_session_free(fresh);
    linnet_session_free(third);
    close_pair(&p);
    linnet_model_close(m);
}

/* ---- NaN in the middle -------------------------------------------------------------------------
 */

/* A copy of the model whose embedding of token 7 is NaN. False where the output is tied. */
static bool poisoned_copy(const char *path, char *out, size_t size) {
    linnet_error err;
    gguf *g;
    if (gguf_open(&g, path, true, &err)) fail_msg("%s", err.text);
    const gguf_tensor *t = gguf_find_tensor(g, "token_embd.weight");
    bool fits = gguf_find_tensor(g, "output.weight") && t->type == DTYPE_F32;
    if (fits) {
        size_t n = (size_t)gguf_file_bytes(g), row = (size_t)t->dims[0] * 4;
        uint8_t *bytes = malloc(n);
        FILE *f = fopen(path, "rb");
        assert_int_equal(fread(bytes, 1, n, f), n);
        fclose(f);
        memset(bytes + t->offset + 7 * row, 0xff, row);
        snprintf(out, size, "%s/poisoned.gguf", folder);
        write_file(out, bytes, n);
        free(bytes);
    }
    gguf_close(g);
    return fits;
}

static void numeric_errors(void **state) {
    linnet_error err;
    char path[600];
    if (!poisoned_copy(*state, path, sizeof path)) return;
    linnet_model *m = open_model(path, &(linnet_model_options){.threads = 2});
    refused(linnet_model_check(m, &err), LINNET_ERR_NUMERIC, &err,
            "tensor token_embd.weight has NaN");
    pair p = open_pair(m);
    for (size_t i = 0; i < p.n; i++)
        p.ids[i] = p.ids[i] == 7 ? 8 : p.ids[i];
    int32_t bad[80];
    memcpy(bad, p.ids, sizeof bad);
    bad[79] = 7;
    feed(p.s, p.ids, 30);
    feed(p.twin, p.ids, 30);
    refused(linnet_feed(p.s, bad, 80, LINNET_LOGITS_LAST, &err), LINNET_ERR_NUMERIC, &err,
            "position 109: the embedding of token 7 has NaN or infinite values");
    continue_equal(&p, "a prompt with NaN");
    /* in the KV page that goes on being filled */
    refused(linnet_feed(p.s, bad + 70, 10, LINNET_LOGITS_NONE, &err), LINNET_ERR_NUMERIC, &err,
            "position 42: the embedding of token 7");
    continue_equal(&p, "NaN without logits");
    linnet_session *third = open_session(m, NULL);
    linnet_item items[] = {{p.s, p.ids, 20, LINNET_LOGITS_LAST, NULL, NULL, false},
                           {third, bad, 80, LINNET_LOGITS_LAST, NULL, NULL, false}};
    refused(linnet_forward(items, 2, NULL, NULL, &err), LINNET_ERR_NUMERIC, &err, "position 79");
    continue_equal(&p, "a neighbour with NaN");
    /* a single step may lose a recurrent state, and says so from then on */
    if (linnet_feed(p.s, bad + 79, 1, LINNET_LOGITS_LAST, &err) != LINNET_ERR_NUMERIC)
        fail_msg("a step with NaN: '%s'", err.text);
    expect_equal(&p, "a step with NaN");
    if (linnet_feed(p.s, p.ids, 1, LINNET_LOGITS_LAST, &err)) {
        assert_int_equal(err.code, LINNET_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, "lost to an earlier error: reset it"));
        linnet_session_reset(p.s);
        linnet_session_reset(p.twin);
        feed(p.s, p.ids, 33);
        feed(p.twin, p.ids, 33);
    } else {
        feed(p.twin, p.ids, 1);
    }
    continue_equal(&p, "a step with NaN");
    linnet_session_free(third);
    close_pair(&p);
    linnet_model_close(m);
    unlink(path);
}

/* Makes the first numbers of a tensor infinite; false for types that this does not know. */
static bool break_tensor(uint8_t *bytes, const gguf_tensor *t) {
    static const float infinite = INFINITY;
    static const uint16_t bf16 = 0x7f80, f16 = 0x7c00; /* also the scale of a block */
    if (t->type == DTYPE_F32) memcpy(bytes + t->offset, &infinite, 4);
    if (t->type == DTYPE_BF16) memcpy(bytes + t->offset, &bf16, 2);
    bool block = t->type == DTYPE_Q8_0 || t->type == DTYPE_Q4_0 || t->type == DTYPE_Q4_1;
    if (t->type == DTYPE_F16 || block) memcpy(bytes + t->offset, &f16, 2);
    return block || t->type == DTYPE_F32 || t->type == DTYPE_BF16 || t->type == DTYPE_F16;
}

/* An infinite weight is an error that names its layer and the position, in a prompt and in a step,
 * whether or not logits are wanted (but the last feed-forward is part of nothing else). */
static void broken_layers(void **state) {
    static const char *const tensors[] = {"attn_v.weight",
                                          "attn_output.weight",
                                          "ssm_out.weight",
                                          "shortconv.in_proj.weight",
                                          "shortconv.out_proj.weight",
                                          "ffn_up.weight",
                                          "ffn_down.weight"};
    enum { TENSORS = 7, MIXING = 5 };
    linnet_error err;
    char path[600], name[80], expected[120];
    gguf *g;
    if (gguf_open(&g, *state, true, &err)) fail_msg("%s", err.text);
    size_t n = (size_t)gguf_file_bytes(g);
    uint8_t *whole = malloc(n), *bytes = malloc(n);
    FILE *f = fopen(*state, "rb");
    assert_int_equal(fread(whole, 1, n, f), n);
    fclose(f);
    snprintf(path, sizeof path, "%s/broken.gguf", folder);
    int found = 0, unknown = 0;
    for (int layer = 0; layer < 5; layer++)
        for (int i = 0; i < TENSORS; i++) {
            snprintf(name, sizeof name, "blk.%d.%s", layer, tensors[i]);
            const gguf_tensor *t = gguf_find_tensor(g, name);
            memcpy(bytes, whole, n);
            if (!t) continue;
            if (!break_tensor(bytes, t)) {
                unknown++;
                continue;
            }
            write_file(path, bytes, n);
            linnet_model *m = open_model(path, &(linnet_model_options){.threads = 2});
            int n_layers = linnet_model_get_info(m)->n_layers;
            if (layer >= n_layers) { /* a block that predicts */
                linnet_model_close(m);
                continue;
            }
            linnet_session *s = open_session(m, NULL);
            snprintf(expected, sizeof expected,
                     "position 0: the %s of layer %d gives NaN or infinite values",
                     i < MIXING ? linnet_model_mixer(m, layer, NULL) : "feed-forward", layer);
            const int32_t ids[] = {1, 2, 3};
            refused(linnet_feed(s, ids, 1, LINNET_LOGITS_LAST, &err), LINNET_ERR_NUMERIC, &err,
                    expected);
            for (size_t some = 1; some <= 3; some += 2) {
                if (i >= MIXING && layer + 1 == n_layers) continue;
                linnet_session_reset(s);
                refused(linnet_feed(s, ids, some, LINNET_LOGITS_NONE, &err), LINNET_ERR_NUMERIC,
                        &err, expected);
            }
            linnet_session_free(s);
            linnet_model_close(m);
            found++;
        }
    assert_true(found + unknown >= 3);
    unlink(path);
    free(bytes);
    free(whole);
    gguf_close(g);
}

/* An output matrix that breaks is none of the layers. */
static void broken_output(void **state) {
    (void)state;
    linnet_error err;
    char path[600];
    gguf *g;
    if (gguf_open(&g, "tests/data/models/mistral_window.gguf", true, &err))
        fail_msg("%s", err.text);
    size_t n = (size_t)gguf_file_bytes(g);
    uint8_t *bytes = malloc(n);
    FILE *f = fopen("tests/data/models/mistral_window.gguf", "rb");
    assert_int_equal(fread(bytes, 1, n, f), n);
    fclose(f);
    assert_true(break_tensor(bytes, gguf_find_tensor(g, "output.weight")));
    snprintf(path, sizeof path, "%s/broken.gguf", folder);
    write_file(path, bytes, n);
    linnet_model *m = open_model(path, &(linnet_model_options){.threads = 2});
    linnet_session *s = open_session(m, NULL);
    int32_t ids[40] = {0};
    assert_int_equal(linnet_feed(s, ids, 40, LINNET_LOGITS_NONE, &err), LINNET_OK);
    refused(linnet_feed(s, ids, 5, LINNET_LOGITS_LAST, &err), LINNET_ERR_NUMERIC, &err,
            "position 44: after finite layers, the logits have NaN or infinite values");
    linnet_session_free(s);
    linnet_model_close(m);
    unlink(path);
    free(bytes);
    gguf_close(g);
}

/* ---- Resets, full contexts ---------------------------------------------------------------------
 */

static void resets_and_full_contexts(void **state) {
    linnet_error err;
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 2});
    linnet_session *s = open_session(m, &(linnet_session_options){.ctx = 150}), *fresh;
    size_t width = (size_t)linnet_model_get_info(m)->n_rows, n;
    int32_t ids[151];
    for (size_t i = 0; i < 151; i++)
        ids[i] = (int32_t)((i * i + 3) % width);
    uint64_t empty = linnet_session_state_bytes(s);
    assert_int_equal(empty, linnet_model_state_bytes(m, LINNET_KV_F16, 0));
    feed(s, ids + 1, 140);
    assert_int_equal(linnet_feed(s, ids, 11, LINNET_LOGITS_LAST, &err), LINNET_ERR_CONTEXT);
    assert_non_null(strstr(err.text, "context of 150 tokens has room for 10"));
    feed(s, ids, 10);
    assert_int_equal(linnet_feed(s, ids, 1, LINNET_LOGITS_LAST, &err), LINNET_ERR_CONTEXT);
    assert_int_equal(linnet_feed(s, ids, 1, LINNET_LOGITS_NONE, &err), LINNET_ERR_CONTEXT);
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 150);
    linnet_session_reset(s);
    assert_null(linnet_session_logits(s));
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 0);
    assert_int_equal(linnet_session_state_bytes(s), empty);
    fresh = open_session(m, NULL);
    for (size_t at = 0; at < 100; at += 20) { /* without logits, then with: the same state */
        assert_int_equal(linnet_feed(s, ids + at, 20, LINNET_LOGITS_NONE, &err), 0);
        assert_null(linnet_session_logits(s));
    }
    feed(s, ids + 100, 1);
    feed(fresh, ids, 101);
    assert_memory_equal(linnet_session_logits(s), linnet_session_logits(fresh),
                        width * sizeof(float));
    linnet_session_free(fresh);
    linnet_session_free(s);
    linnet_model_close(m);
}

/* State held equals the state promised at every depth, for every kind of KV. */
static void state_as_promised(void **state) {
    linnet_error err;
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 1});
    const linnet_model_info *info = linnet_model_get_info(m);
    for (int kv = LINNET_KV_F16; kv <= LINNET_KV_Q8_0; kv++) {
        linnet_session *s;
        const linnet_session_options o = {.ctx = info->ctx_is_limit ? 0 : 400,
                                          .kv = (linnet_kv_type)kv};
        if (linnet_session_new(&s, m, &o, &err)) {
            assert_int_equal(kv, LINNET_KV_Q8_0);
            assert_int_equal(err.code, LINNET_ERR_UNSUPPORTED);
            continue;
        }
        size_t n = 0, some = 1;
        for (;; n += some, some = some % 7 + 1 + (n > 200 ? 30 : 0)) {
            assert_int_equal(linnet_session_state_bytes(s),
                             linnet_model_state_bytes(m, (linnet_kv_type)kv, n));
            if (n + some > (size_t)linnet_session_ctx(s)) break;
            int32_t ids[64];
            for (size_t i = 0; i < some; i++)
                ids[i] = (int32_t)((n + i) % (size_t)info->n_rows);
            assert_int_equal(linnet_feed(s, ids, some, LINNET_LOGITS_NONE, &err), 0);
        }
        linnet_session_free(s);
    }
    linnet_model_close(m);
}

/* ---- Threads -----------------------------------------------------------------------------------
 */

typedef struct {
    linnet_model *m;
    float *rows;
    size_t width, from;
    int failed;
} worker;

enum { STEPS = 60 };

static void *live(void *arg) {
    worker *w = arg;
    linnet_session *s;
    if (linnet_session_new(&s, w->m, NULL, NULL)) {
        w->failed = 1;
        return NULL;
    }
    for (size_t i = 0, at = 0; at < STEPS; i++) { /* steps and small prompts */
        int32_t ids[5];
        size_t some = i % 3 == 2 ? 5 : 1;
        for (size_t k = 0; k < some; k++)
            ids[k] = (int32_t)((w->from + (at + k) * 13) % w->width);
        if (linnet_feed(s, ids, some, LINNET_LOGITS_LAST, NULL)) w->failed = 1;
        at += some;
        if (at <= STEPS)
            memcpy(w->rows + (at - 1) * w->width, linnet_session_logits(s),
                   w->width * sizeof(float));
    }
    linnet_session_free(s);
    return NULL;
}

static void sessions_on_threads(void **state) {
    enum { THREADS = 3 };
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 2});
    size_t width = (size_t)linnet_model_get_info(m)->n_rows;
    worker alone[THREADS], together[THREADS];
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        alone[i] = (worker){m, calloc(STEPS * width, sizeof(float)), width, i * 5, 0};
        together[i] = (worker){m, calloc(STEPS * width, sizeof(float)), width, i * 5, 0};
        live(&alone[i]);
    }
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, live, &together[i]), 0);
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(alone[i].failed + together[i].failed, 0);
        assert_memory_equal(alone[i].rows, together[i].rows, STEPS * width * sizeof(float));
    }
    assert_memory_not_equal(alone[0].rows, alone[1].rows, STEPS * width * sizeof(float));
    for (size_t i = 0; i < THREADS; i++) {
        free(alone[i].rows);
        free(together[i].rows);
    }
    linnet_model_close(m);
}

/* ---- KV of 8 bits, windows, memory ------------------------------------------------------------
 */

static void q8_keys_and_values_are_near(void **state) {
    (void)state;
    enum { N = 200 };
    linnet_model *m = open_model("tests/data/models/llama_kquants.gguf", NULL);
    size_t width = (size_t)linnet_model_get_info(m)->n_rows;
    float *rows[3];
    int32_t ids[N];
    for (size_t i = 0; i < N; i++)
        ids[i] = (int32_t)(i * 17 % width);
    for (int kv = 0; kv < 3; kv++) {
        linnet_session *s = open_session(m, &(linnet_session_options){.kv = (linnet_kv_type)kv});
        rows[kv] = malloc(N * width * sizeof(float));
        feed_all(s, ids, N, 0, width, rows[kv]);
        linnet_session_free(s);
    }
    double square = 0, q8 = 0, f16 = 0;
    for (size_t i = 0; i < N * width; i++) {
        double x = rows[LINNET_KV_F32][i];
        square += x * x;
        q8 = fmax(q8, fabs(rows[LINNET_KV_Q8_0][i] - x));
        f16 = fmax(f16, fabs(rows[LINNET_KV_F16][i] - x));
    }
    double rms = sqrt(square / (double)(N * width));
    if (!(q8 <= 0.1 * rms && q8 > 0 && f16 <= 0.005 * rms && f16 > 0))
        fail_msg("of the logits' RMS: q8_0 %g, f16 %g", q8 / rms, f16 / rms);
    for (int kv = 0; kv < 3; kv++)
        free(rows[kv]);
    linnet_model_close(m);
}

static void windows_bound_the_state(void **state) {
    (void)state;
    enum { N = 2000 };
    linnet_error err;
    linnet_model *m = open_model("tests/data/models/mistral_window.gguf", NULL);
    const linnet_session_options o = {.ctx = N + 100};
    linnet_session *s = open_session(m, &o), *at_once = open_session(m, &o);
    size_t width = (size_t)linnet_model_get_info(m)->n_rows;
    uint64_t two_pages = 2 * linnet_model_state_bytes(m, LINNET_KV_F16, 1);
    int32_t ids[N];
    for (size_t i = 0; i < N; i++) {
        ids[i] = (int32_t)(i * i % width);
        assert_int_equal(linnet_feed(s, &ids[i], 1, LINNET_LOGITS_LAST, &err), 0);
        uint64_t bytes = linnet_session_state_bytes(s);
        assert_int_equal(bytes, linnet_model_state_bytes(m, LINNET_KV_F16, i + 1));
        assert_true(bytes > 0 && bytes <= two_pages);
    }
    feed(at_once, ids, N);
    assert_memory_equal(linnet_session_logits(s), linnet_session_logits(at_once),
                        width * sizeof(float));
    assert_int_equal(linnet_session_state_bytes(s), linnet_session_state_bytes(at_once));
    /* after an error deep in, dropped pages are not missed */
    countdown c = {0, 1};
    linnet_item item = {s, ids, 100, LINNET_LOGITS_ALL, stop_rows, &c, false};
    assert_int_equal(linnet_forward(&item, 1, NULL, NULL, &err), LINNET_ERR_CANCELLED);
    feed(s, ids, 100);
    feed(at_once, ids, 100);
    assert_memory_equal(linnet_session_logits(s), linnet_session_logits(at_once),
                        width * sizeof(float));
    linnet_session_free(at_once);
    linnet_session_free(s);
    linnet_model_close(m);
}

static long resident_pages(void) {
    long all, resident = -1;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &all, &resident) != 2) resident = -1;
    if (f) fclose(f);
    return resident;
}

static void life_cycle(int n) {
    for (int i = 0; i < n; i++) {
        linnet_model_options o = {.threads = 1 + i % 3, .no_mmap = i % 2};
        linnet_model *m = open_model("tests/data/models/text.gguf", &o), *none;
        for (int k = 0; k < 5; k++) {
            linnet_session *s = open_session(m, NULL);
            int32_t ids[100] = {1, 2, 3};
            feed(s, ids, 100);
            linnet_session_reset(s);
            feed(s, ids, 70);
            linnet_session_free(s);
        }
        linnet_model_close(m);
        assert_int_not_equal(linnet_model_open(&none, "tests/support.h", &o, NULL), 0);
    }
}

/* 4 MB more after 300 lives would be 14 KB each; a leaked model holds 100 KB and more. */
static void memory_stays_flat(void **state) {
    (void)state;
    if (getenv("EMULATOR")) skip(); /* it would be the emulator's memory */
    life_cycle(40);
    long before = resident_pages();
    life_cycle(300);
    long grown = (resident_pages() - before) * (sysconf(_SC_PAGESIZE) / 1024);
    assert_true(before > 0);
#ifndef __SANITIZE_ADDRESS__ /* keeps freed memory in quarantine */
    if (grown > 4096) fail_msg("%ld KB more after 300 models and 1500 sessions", grown);
#else
    (void)grown;
#endif
}

/* ---- All of it ---------------------------------------------------------------------------------
 */

static struct CMUnitTest tests[8 * MAX_MODELS];
static size_t n_tests;

static void add(const char *what, CMUnitTestFunction f, char *path) {
    static char names[8 * MAX_MODELS][96];
    if (path)
        snprintf(names[n_tests], sizeof *names, "%.60s_%s", strrchr(path, '/') + 1, what);
    else
        snprintf(names[n_tests], sizeof *names, "%s", what);
    if (path) *strchr(names[n_tests], '.') = '_';
    tests[n_tests] = (struct CMUnitTest){names[n_tests], f, NULL, NULL, path};
    n_tests++;
}

int main(void) {
    static const struct {
        const char *name;
        CMUnitTestFunction f;
    } each[] = {{"misuse", misuse},
                {"cancelling", cancelling},
                {"numeric_errors", numeric_errors},
                {"broken_layers", broken_layers},
                {"resets", resets_and_full_contexts},
                {"state", state_as_promised},
                {"threads", sessions_on_threads}},
      once[] = {{"creating", creating},
                {"texts", texts},
                {"broken_output", broken_output},
                {"q8_kv", q8_keys_and_values_are_near},
                {"windows", windows_bound_the_state},
                {"memory", memory_stays_flat}};
    const char *made = make_folder();
    if (!made) return 1;
    snprintf(folder, sizeof folder, "%s", made);
    find_models();
    for (int i = 0; i < n_models; i++)
        for (size_t k = 0; k < sizeof each / sizeof *each; k++)
            add(each[k].name, each[k].f, paths[i]);
    for (size_t k = 0; k < sizeof once / sizeof *once; k++)
        add(once[k].name, once[k].f, NULL);
    int failed = _cmocka_run_group_tests("session", tests, n_tests, NULL, NULL);
    return rmdir(folder) ? 1 : failed;
}
