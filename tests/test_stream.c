/* linnet_text against the whole text of random tokens, and LINNET_MIDDLE. What linnet_generate
 * shows, which stands on linnet_text, is in test_generate.c. */
#include "support.h"

#define MODEL "tests/data/models/text.gguf"
#define NO_VOCABULARY "tests/data/models/llama_f16.gguf"

enum { N_VOCAB = 300, IM_END = 299, MOST = 64, TEXT = 4096 };

static linnet_model *model;
static uint64_t random_state = 88172645463325252ull; /* xorshift64 */

static size_t random_below(size_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state >> 33) % n;
}

static size_t whole_text(const int32_t *ids, size_t n, unsigned flags, char *out) {
    size_t bytes;
    linnet_error err;
    if (linnet_detokenize(model, ids, n, flags, out, TEXT, &bytes, &err)) fail_msg("%s", err.text);
    assert_true(bytes <= TEXT);
    return bytes;
}

static linnet_text *new_text(const linnet_session *s, const char *const *stops, size_t n) {
    linnet_text *t;
    linnet_error err;
    if (linnet_text_new(&t, s, stops, n, &err)) fail_msg("%s", err.text);
    return t;
}

/* Pushes ids and the end. What was shown goes to `out`; held bytes are those that are missing. */
static const char *stream(linnet_text *t, const int32_t *ids, size_t n, char *out, size_t *n_out) {
    const char *stop = NULL;
    *n_out = 0;
    for (size_t i = 0; i <= n && !stop; i++) {
        size_t bytes, held;
        const char *text = linnet_text_push(t, i < n ? ids[i] : -1, &bytes, &held, &stop);
        memcpy(out + *n_out, text, bytes);
        *n_out += bytes;
        if (i == n || stop) assert_int_equal(held, 0);
    }
    return stop;
}

static void streams_what_detokenize_says(void **state) {
    (void)state;
    linnet_session *s = open_session(model, NULL);
    for (int round = 0; round < 500; round++) {
        int32_t ids[MOST];
        char all[TEXT], shown[TEXT];
        size_t n = random_below(MOST), n_shown;
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)random_below(N_VOCAB);
        size_t n_all = whole_text(ids, n, 0, all);
        linnet_text *t = new_text(s, NULL, 0);
        assert_null(stream(t, ids, n, shown, &n_shown));
        assert_int_equal(n_shown, n_all);
        assert_memory_equal(shown, all, n_all);
        linnet_text_free(t);
        /* A stop string from its middle: shown is what comes before its first place. */
        if (n_all < 8 || memchr(all, 0, n_all)) continue;
        char piece[8] = {0};
        size_t length = 1 + random_below(7), from = random_below(n_all - length + 1), at = 0;
        memcpy(piece, all + from, length);
        while (memcmp(all + at, piece, length))
            at++;
        while (at > 0 && ((unsigned char)all[at] & 0xC0) == 0x80) /* inside a character */
            at--;
        const char *stops[] = {"never \x01", piece};
        t = new_text(s, stops, 2);
        const char *stop = stream(t, ids, n, shown, &n_shown);
        assert_non_null(stop);
        assert_string_equal(stop, piece);
        assert_int_equal(n_shown, at);
        assert_memory_equal(shown, all, at);
        /* It is over. */
        size_t bytes, held;
        linnet_text_push(t, 'a', &bytes, &held, &stop);
        assert_int_equal(bytes, 0);
        assert_string_equal(stop, piece);
        linnet_text_free(t);
    }
    linnet_session_free(s);
}

static void holds_back_what_may_become_a_stop(void **state) {
    (void)state;
    char copy[] = "abac";
    const char *stops[] = {copy};
    linnet_session *s = open_session(model, NULL);
    linnet_text *t = new_text(s, stops, 1);
    memset(copy, 'x', 4); /* the strings were copied */
    static const struct {
        int32_t byte;
        const char *shown;
        size_t held;
    } steps[] = {{'a', "", 1},    {'b', "", 2},  {'a', "", 3},          {'b', "ab", 2},
                 {'x', "abx", 0}, {0xC3, "", 1}, {0xA9, "\xC3\xA9", 0}, {IM_END, "", 0},
                 {'a', "", 1},    {-1, "a", 0}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        size_t bytes, held;
        const char *stop, *text = linnet_text_push(t, steps[i].byte, &bytes, &held, &stop);
        assert_int_equal(bytes, strlen(steps[i].shown));
        assert_memory_equal(text, steps[i].shown, bytes);
        assert_int_equal(held, steps[i].held);
        assert_null(stop);
    }
    linnet_text_free(t);
    linnet_session_free(s);
}

static void outlives_the_model(void **state) {
    (void)state;
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL);
    linnet_text *t = new_text(s, NULL, 0);
    linnet_session_free(s);
    linnet_model_close(m);
    size_t bytes;
    assert_memory_equal(linnet_text_push(t, 'a', &bytes, NULL, NULL), "a", 1);
    assert_int_equal(bytes, 1);
    linnet_text_free(t);
}

static void refusals(void **state) {
    (void)state;
    linnet_error err;
    linnet_session *s = open_session(model, NULL);
    linnet_text *t = (linnet_text *)&err;
    const char *const empty[] = {"fine", ""};
    assert_int_equal(linnet_text_new(&t, s, empty, 2, &err), LINNET_ERR_ARGUMENT);
    assert_null(t);
    assert_non_null(strstr(err.text, "stop string 2 of 2 is empty"));
    assert_int_equal(linnet_text_new(&t, NULL, NULL, 0, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_text_new(&t, s, NULL, 1, &err), LINNET_ERR_ARGUMENT);
    linnet_session_free(s);
    linnet_model *m = open_model(NO_VOCABULARY, &(linnet_model_options){.threads = 1});
    s = open_session(m, NULL);
    assert_int_equal(linnet_text_new(&t, s, NULL, 0, &err), LINNET_ERR_TOKENIZER);
    assert_non_null(strstr(err.text, "no vocabulary"));
    linnet_session_free(s);
    linnet_model_close(m);
    linnet_text_free(NULL);
}

/* A text in two parts is the text, also in SentencePiece, which drops a text's first space. */
static void middle(void **state) {
    (void)state;
    static const char *const files[] = {"tests/data/tokenizer/sp.gguf",
                                        "tests/data/tokenizer/bpe.gguf"};
    for (int i = 0; i < 2; i++) {
        linnet_model *m = open_model(files[i], &(linnet_model_options){.metadata_only = true});
        const char *text = "one two  three";
        int32_t ids[MOST];
        char all[TEXT], parts[TEXT];
        size_t n, n_all, first, second;
        assert_int_equal(linnet_tokenize(m, text, strlen(text), 0, ids, MOST, &n, NULL), 0);
        assert_int_equal(linnet_detokenize(m, ids, n, 0, all, TEXT, &n_all, NULL), 0);
        assert_int_equal(n_all, strlen(text));
        for (size_t at = 1; at < n; at++) {
            assert_int_equal(linnet_detokenize(m, ids, at, 0, parts, TEXT, &first, NULL), 0);
            assert_int_equal(linnet_detokenize(m, ids + at, n - at, LINNET_MIDDLE, parts + first,
                                               TEXT - first, &second, NULL),
                             0);
            assert_int_equal(first + second, n_all);
            assert_memory_equal(parts, all, n_all);
        }
        linnet_model_close(m);
    }
}

static int setup(void **state) {
    (void)state;
    model = open_model(MODEL, &(linnet_model_options){.threads = 1});
    return 0;
}

static int teardown(void **state) {
    (void)state;
    linnet_model_close(model);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_what_detokenize_says),
        cmocka_unit_test(holds_back_what_may_become_a_stop),
        cmocka_unit_test(outlives_the_model),
        cmocka_unit_test(refusals),
        cmocka_unit_test(middle),
    };
    return cmocka_run_group_tests_name("stream", tests, setup, teardown);
}
