/* Opening models: what tests/test_refusals.c leaves out. Vocabularies and matrices that do not fit,
 * damaged numbers deep inside tensors of every type, GPT-2's own tensors, and what a model says of
 * itself against the file it came from. */
#include "../weights/gguf.h"
#include "build_gguf.h"
#include "support.h"

#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT "tests/data/models/text.gguf"
#define GPT2 "tests/data/models/gpt2.gguf"
static char folder[512], path[600];

/* ---- Edited copies of golden models ------------------------------------------------------------
 */

typedef struct {
    uint8_t *p;
    size_t n;
    gguf *g;
} file;

static file load(const char *from) {
    linnet_error err;
    file f = {0};
    if (gguf_open(&f.g, from, true, &err)) fail_msg("%s", err.text);
    f.n = (size_t)gguf_file_bytes(f.g);
    f.p = malloc(f.n);
    FILE *in = fopen(from, "rb");
    assert_int_equal(fread(f.p, 1, f.n, in), f.n);
    fclose(in);
    return f;
}

static void unload(file *f) {
    gguf_close(f->g);
    free(f->p);
}

static uint8_t *data_of(const file *f, const char *tensor) {
    const gguf_tensor *t = gguf_find_tensor(f->g, tensor);
    if (!t) fail_msg("no tensor %s", tensor);
    return f->p + t->offset;
}

/* The only place where `text` is, as a string with its length before it. */
static uint8_t *place_of(const file *f, const char *text) {
    size_t n = strlen(text);
    for (size_t i = 0; i + 8 + n <= f->n; i++) {
        uint64_t length;
        memcpy(&length, f->p + i, 8);
        if (length == n && !memcmp(f->p + i + 8, text, n)) return f->p + i + 8;
    }
    fail_msg("no string %s", text);
    return NULL;
}

/* Mapped and read, the copy is refused with this code and sentence, which names the file. */
static void refused(const file *f, linnet_status code, const char *sentence) {
    write_file(path, f->p, f->n);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        linnet_model *m = (void *)1;
        linnet_error err = {0};
        linnet_status found = linnet_model_open(
            &m, path, &(linnet_model_options){.threads = 2, .no_mmap = no_mmap}, &err);
        if (found != code || err.code != code || m || !strstr(err.text, sentence) ||
            !strstr(err.text, "model.gguf"))
            fail_msg("expected %d '%s', found %d '%s'", code, sentence, found,
                     found ? err.text : "success");
        assert_int_equal(linnet_model_open(&m, path, NULL, NULL), code); /* no one to tell */
    }
}

/* Renames a key or tensor to another of the same length. */
static void renamed(const char *from, const char *old, const char *new, linnet_status code,
                    const char *sentence) {
    assert_int_equal(strlen(old), strlen(new));
    file f = load(from);
    memcpy(place_of(&f, old), new, strlen(new));
    refused(&f, code, sentence);
    unload(&f);
}

/* Changes a u32 value of a key. */
static void changed(const char *from, const char *key, uint32_t value, linnet_status code,
                    const char *sentence) {
    file f = load(from);
    memcpy(place_of(&f, key) + strlen(key) + 4, &value, 4);
    refused(&f, code, sentence);
    unload(&f);
}

static void keys_and_tensors_of_gpt2(void **state) {
    (void)state;
    renamed(GPT2, "position_embd.weight", "position_embd.heavie", LINNET_ERR_FORMAT,
            "tensor position_embd.weight is missing");
    renamed(GPT2, "blk.1.attn_qkv.weight", "blk.1.attn_qkw.weight", LINNET_ERR_FORMAT,
            "tensor blk.1.attn_q.weight is missing");
    renamed(GPT2, "blk.0.ffn_up.weight", "blk.0.ffn_op.weight", LINNET_ERR_FORMAT,
            "tensor blk.0.ffn_up.weight is missing");
    renamed(GPT2, "blk.0.ffn_up.bias", "blk.0.ffn_op.bias", LINNET_ERR_UNSUPPORTED,
            "tensor blk.0.ffn_op.bias is not part of the architecture");
    renamed(GPT2, "gpt2.attention.layer_norm_epsilon", "gpt2.attention.layer_norm_epsil0n",
            LINNET_ERR_FORMAT, "gpt2.attention.layer_norm_epsilon is missing");
    changed(GPT2, "gpt2.context_length", 161, LINNET_ERR_FORMAT,
            "position_embd.weight: expected shape [48, 161], found [48, 160]");
    changed(GPT2, "gpt2.attention.head_count", 7, LINNET_ERR_FORMAT,
            "48 is not a multiple of head_count 7");
    changed(GPT2, "gpt2.block_count", 3, LINNET_ERR_FORMAT, "blk.2.attn_norm.weight is missing");
    changed(GPT2, "gpt2.block_count", 1, LINNET_ERR_UNSUPPORTED, "is not part of the architecture");
    changed(GPT2, "gpt2.feed_forward_length", 99, LINNET_ERR_FORMAT,
            "blk.0.ffn_up.weight: expected shape [48, 99], found [48, 100]");
}

static void more_tokens_than_rows(void **state) {
    (void)state;
    /* the 144 rows of another model's matrix under a vocabulary of 300 */
    file f = load(TEXT);
    for (size_t i = 0; i < gguf_n_tensors(f.g); i++) {
        const gguf_tensor *t = gguf_tensor_at(f.g, i);
        uint64_t rows = 288;
        if (strcmp(t->name, "token_embd.weight") && strcmp(t->name, "output.weight")) continue;
        /* its dims follow the name and their number */
        memcpy(place_of(&f, t->name) + strlen(t->name) + 4 + 8, &rows, 8);
    }
    refused(&f, LINNET_ERR_FORMAT, "300 tokens in the vocabulary, but only 288 rows");
    unload(&f);
}

/* The divisors of the rope frequencies. */
static void rope_divisors(void **state) {
    (void)state;
    static const struct {
        float value;
        const char *sentence;
    } cases[] = {{NAN, "rope_freqs.weight[2] is nan, expected a positive number"},
                 {-NAN, "rope_freqs.weight[2] is -nan"},
                 {0, "rope_freqs.weight[2] is 0"},
                 {-1, "rope_freqs.weight[2] is -1"},
                 {INFINITY, "rope_freqs.weight[2] is inf"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        file f = load("tests/data/models/llama_gqa_tied_llama3.gguf");
        memcpy(data_of(&f, "rope_freqs.weight") + 8, &cases[i].value, 4);
        refused(&f, LINNET_ERR_FORMAT, cases[i].sentence);
        unload(&f);
    }
}

/* ---- Damaged weights ---------------------------------------------------------------------------
 */

/* linnet_model_check finds `bytes` at `at` of a tensor; feeding fails and changes nothing. */
static void damaged(const char *from, const char *tensor, size_t at, const void *bytes, size_t n,
                    const char *found, bool feeds_fail) {
    file f = load(from);
    memcpy(data_of(&f, tensor) + at, bytes, n);
    write_file(path, f.p, f.n);
    unload(&f);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        linnet_error err = {0};
        linnet_model *m =
            open_model(path, &(linnet_model_options){.threads = 2, .no_mmap = no_mmap});
        char sentence[200];
        snprintf(sentence, sizeof sentence, "tensor %s has %s", tensor, found);
        assert_int_equal(linnet_model_check(m, &err), LINNET_ERR_NUMERIC);
        if (!strstr(err.text, sentence)) fail_msg("expected '%s', found '%s'", sentence, err.text);
        linnet_session *s = open_session(m, NULL);
        linnet_status status = linnet_feed(s, (int32_t[]){3, 1, 2}, 3, LINNET_LOGITS_LAST, &err);
        size_t fed;
        linnet_session_tokens(s, &fed);
        if (feeds_fail) {
            assert_int_equal(status, LINNET_ERR_NUMERIC);
            assert_int_equal(fed, 0);
            assert_null(linnet_session_logits(s));
            assert_int_equal(linnet_session_state_bytes(s), 0);
        }
        linnet_session_free(s);
        linnet_model_close(m);
    }
}

static void damage_is_found(void **state) {
    (void)state;
    const float nan = NAN, infinite = -INFINITY;
    const uint16_t nan16 = 0x7e00, infinite16 = 0x7c00, nan_bf16 = 0x7fc0;
    damaged(TEXT, "output_norm.weight", 31 * 4, &nan, 4, "NaN at element 31", true);
    damaged(TEXT, "token_embd.weight", 299 * 32 * 4 + 4, &infinite, 4, "infinity at element 9569",
            false);
    damaged(TEXT, "blk.1.ffn_down.weight", 0, &nan, 4, "NaN at element 0", true);
    damaged("tests/data/models/llama_f16.gguf", "blk.0.attn_v.weight", 2, &infinite16, 2,
            "infinity at element 1", true);
    damaged("tests/data/models/llama_bf16.gguf", "blk.0.ffn_up.weight", 200, &nan_bf16, 2,
            "NaN at element 100", true);
    damaged("tests/data/models/llama_q8_0.gguf", "blk.1.attn_output.weight", 34, &nan16, 2,
            "NaN at element 32", true);
    damaged("tests/data/models/llama_q4_0.gguf", "blk.1.ffn_down.weight", 18 * 5, &infinite16, 2,
            "infinity at element 160", true);
    /* of K blocks the scales stand first (q4_K) or last (q6_K); the second piece of 65,536 */
    damaged("tests/data/models/llama_kquants.gguf", "blk.0.ffn_up.weight", 176 * 255, &nan16, 2,
            "NaN at element 65280", true);
    damaged("tests/data/models/llama_kquants.gguf", "blk.0.ffn_down.weight", 210 - 2, &nan16, 2,
            "NaN at element 0", true);
}

/* Finite weights whose products overflow are an error of the feed, not of the file. */
static void overflow(void **state) {
    (void)state;
    linnet_error err;
    file f = load(TEXT);
    const float huge = 3e38f;
    uint8_t *w = data_of(&f, "output_norm.weight");
    for (size_t i = 0; i < 32; i++)
        memcpy(w + 4 * i, &huge, 4);
    write_file(path, f.p, f.n);
    unload(&f);
    linnet_model *m = open_model(path, NULL);
    assert_int_equal(linnet_model_check(m, &err), 0);
    linnet_session *s = open_session(m, NULL);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(linnet_feed(s, (int32_t[]){1, 2}, 2, LINNET_LOGITS_LAST, &err),
                         LINNET_ERR_NUMERIC);
        assert_non_null(strstr(err.text, "position 1"));
    }
    linnet_session_free(s);
    linnet_model_close(m);
}

/* ---- What a model says of itself ---------------------------------------------------------------
 */

static void what_is_known_of_text(void **state) {
    (void)state;
    linnet_model *m = open_model(TEXT, &(linnet_model_options){.threads = 2, .isa = "generic"});
    const linnet_model_info *i = linnet_model_get_info(m);
    assert_string_equal(i->architecture, "llama");
    assert_string_equal(i->name, "text");
    assert_string_equal(i->tokenizer, "bpe/gpt-2");
    assert_string_equal(i->isa, "generic");
    assert_int_equal(i->threads, 2);
    assert_int_equal(i->n_layers, 2);
    assert_int_equal(i->n_embd, 32);
    assert_int_equal(i->n_heads, 2);
    assert_int_equal(i->n_kv_heads, 1);
    assert_int_equal(i->head_dim, 16);
    assert_int_equal(i->n_ff, 48);
    assert_int_equal(i->n_vocab, 300);
    assert_int_equal(i->n_rows, 300);
    assert_int_equal(i->n_ctx_train, 256);
    assert_false(i->ctx_is_limit);
    assert_true(linnet_is_end(m, i->eos));
    linnet_model_close(m);
    m = open_model(GPT2, NULL);
    i = linnet_model_get_info(m);
    assert_true(i->ctx_is_limit);
    assert_int_equal(i->n_ctx_train, 160);
    assert_int_equal(i->n_vocab, 0);
    assert_int_equal(i->bos, -1);
    assert_string_equal(i->tokenizer, "none");
    assert_string_equal(i->chat_template, "none");
    linnet_model_close(m);
}

/* Sums against the file, the same with and without weights, and bounds of the memory held. */
static void every_model_tells_the_truth(void **state) {
    (void)state;
    glob_t found;
    assert_int_equal(glob("tests/data/models/*.gguf", 0, NULL, &found), 0);
    assert_true(found.gl_pathc > 10);
    for (size_t k = 0; k < found.gl_pathc; k++) {
        struct stat st;
        linnet_error err;
        assert_int_equal(stat(found.gl_pathv[k], &st), 0);
        linnet_model *m = open_model(found.gl_pathv[k], &(linnet_model_options){.threads = 2});
        linnet_model *light =
            open_model(found.gl_pathv[k], &(linnet_model_options){.metadata_only = true});
        const linnet_model_info *i = linnet_model_get_info(m), *j = linnet_model_get_info(light);
        assert_int_equal(i->file_bytes, st.st_size);
        uint64_t params = 0, all = 0, bytes, dims[4];
        const char *type;
        for (size_t t = 0; t < i->n_tensors; t++) {
            assert_non_null(linnet_model_tensor(m, t, &type, dims, &bytes));
            params += dims[0] * dims[1] * dims[2] * dims[3];
            all += bytes;
        }
        assert_int_equal(i->n_params, params);
        assert_true(all < i->file_bytes);
        /* rows are padded to 16 and columns to 32; an embedding that is not tied stays outside */
        assert_true(i->weight_bytes > 0 && i->weight_bytes < 3 * all);
        assert_string_equal(i->architecture, j->architecture);
        assert_string_equal(i->tokenizer, j->tokenizer);
        assert_string_equal(j->isa, "none");
        assert_true(i->n_params == j->n_params && i->n_layers == j->n_layers &&
                    i->n_embd == j->n_embd && i->n_ff == j->n_ff && i->n_rows == j->n_rows &&
                    i->n_vocab == j->n_vocab && i->n_metadata == j->n_metadata);
        for (int l = 0; l < i->n_layers; l++) {
            int a = -1, b = -2;
            assert_string_equal(linnet_model_mixer(m, l, &a), linnet_model_mixer(light, l, &b));
            assert_int_equal(a, b);
        }
        for (int kv = 0; kv < 3; kv++)
            for (uint64_t n = 0; n < 3000; n += 59) {
                bytes = linnet_model_state_bytes(m, (linnet_kv_type)kv, n);
                assert_int_equal(bytes, linnet_model_state_bytes(light, (linnet_kv_type)kv, n));
                assert_true(n == 0 || bytes > 0);
            }
        assert_int_equal(linnet_model_state_bytes(m, LINNET_KV_F16, UINT64_MAX), 0);
        assert_true(linnet_model_activation_bytes(m) > 0);
        assert_null(linnet_model_tensor(m, i->n_tensors, NULL, NULL, NULL));
        assert_null(linnet_model_tensor(m, SIZE_MAX, NULL, NULL, NULL));
        assert_null(linnet_model_metadata(m, i->n_metadata, NULL, 0));
        for (size_t e = 0; e < i->n_metadata; e++) {
            char value[24];
            memset(value, '#', sizeof value);
            assert_non_null(linnet_model_metadata(m, e, value, 16));
            assert_non_null(memchr(value, 0, 16));
            assert_true(value[16] == '#');
        }
        assert_int_equal(linnet_model_check(m, &err), 0);
        assert_int_equal(linnet_model_check(light, &err), 0);
        linnet_model_close(light);
        linnet_model_close(m);
    }
    globfree(&found);
}

/* ---- Loading -----------------------------------------------------------------------------------
 */

typedef struct {
    size_t calls, done, stop;
} watch;

static bool watching(void *user, const char *what, size_t done, size_t total) {
    watch *w = user;
    assert_string_equal(what, "load");
    assert_true(done <= total && done >= w->done);
    w->done = done;
    return ++w->calls != w->stop;
}

static void loading_can_be_watched_and_stopped(void **state) {
    (void)state;
    linnet_error err;
    linnet_model *m;
    watch all = {0, 0, SIZE_MAX};
    linnet_model_options o = {.threads = 1, .progress = watching, .user = &all};
    assert_int_equal(linnet_model_open(&m, TEXT, &o, &err), 0);
    linnet_model_close(m);
    assert_true(all.calls >= 2);
    for (size_t stop = 1; stop <= all.calls; stop++) {
        watch w = {0, 0, stop};
        o.user = &w;
        o.no_mmap = stop % 2;
        m = (void *)1;
        assert_int_equal(linnet_model_open(&m, TEXT, &o, &err), LINNET_ERR_CANCELLED);
        assert_null(m);
        assert_int_equal(w.calls, stop);
        assert_non_null(strstr(err.text, "loading was cancelled"));
    }
}

static void files_that_are_none(void **state) {
    (void)state;
    static const struct {
        const char *path;
        linnet_status code;
    } cases[] = {{"tests/data/models", LINNET_ERR_IO},
                 {"tests/data/models/none.gguf", LINNET_ERR_IO},
                 {"", LINNET_ERR_IO},
                 {"/dev/null", LINNET_ERR_IO},
                 {"tests/support.h", LINNET_ERR_FORMAT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
            linnet_model *m = (void *)1;
            linnet_error err = {0};
            linnet_status found = linnet_model_open(
                &m, cases[i].path, &(linnet_model_options){.no_mmap = no_mmap}, &err);
            if (found != cases[i].code || m || !err.text[0])
                fail_msg("'%s': code %d, '%s'", cases[i].path, found, err.text);
        }
}

/* Cut anywhere, a file is refused or (inside the padding at its end) still whole. */
static void truncated_files(void **state) {
    (void)state;
    file f = load(TEXT);
    size_t whole = f.n;
    for (size_t n = 0; n < whole; n += n < 400 ? 7 : 997) {
        linnet_model *m;
        linnet_error err = {0};
        write_file(path, f.p, n);
        linnet_status found = linnet_model_open(&m, path, NULL, &err);
        if (found != LINNET_ERR_FORMAT || !strstr(err.text, "model.gguf"))
            fail_msg("%zu of %zu bytes: code %d, '%s'", n, whole, found, err.text);
    }
    unload(&f);
}

int main(void) {
    const char *made = make_folder();
    if (!made) return 1;
    snprintf(folder, sizeof folder, "%s", made);
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_and_tensors_of_gpt2),
        cmocka_unit_test(more_tokens_than_rows),
        cmocka_unit_test(rope_divisors),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(overflow),
        cmocka_unit_test(what_is_known_of_text),
        cmocka_unit_test(every_model_tells_the_truth),
        cmocka_unit_test(loading_can_be_watched_and_stopped),
        cmocka_unit_test(files_that_are_none),
        cmocka_unit_test(truncated_files),
    };
    int failed = cmocka_run_group_tests_name("model", tests, NULL, NULL);
    unlink(path);
    return rmdir(folder) ? 1 : failed;
}
