/* JSON mode: the automaton against jansson, masks against the automaton, and what is sampled under
 * a mask against jansson again. */
#include "../server/json_mask.h"
#include "support.h"

#include <jansson.h>

/* ---- The automaton ------------------------------------------------------------------------- */

static const char *const good[] = {
    "{}",
    "{ }",
    "{\"a\":1}",
    " {\"a\" : [ ] }",
    "\n{\n  \"name\": \"Ada\",\n  \"born\": 1815,\n  \"tags\": [\n    \"x\",\n    \"y\"\n  ]\n}",
    "{\r\n\t\"a\":\ttrue\r\n}",
    "{\"\":\"\"}",
    "{\"a\":{\"b\":{\"c\":[[[{}]]]}}}",
    "{\"n\":[0,-0,1,-1,10,123456789012345678,0.5,-0.25,1e5,1E+5,1e-5,2.5e10,1e199,1e099,0e0]}",
    "{\"w\":[true,false,null]}",
    "{\"e\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}",
    "{\"u\":\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\\uDBFF\\uDFFF\\ud7ff\\ue000\\u0001\\u1000\"}",
    "{\"é\":\"€😀 \xf0\x90\x80\x80 \xf4\x8f\xbf\xbf \xed\x9f\xbf \xee\x80\x80 \xc2\x80 "
    "\xe0\xa0\x80\"}",
    "{\"a\":1,\"a\":2}",
    "{\"del\":\"\x7f\"}",
};

static const char *const bad[] = {
    "[]",
    "1",
    "\"a\"",
    "null",
    "}",
    "{,}",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{\"a\":1 \"b\":2}",
    "{\"a\":1}}",
    "{} ",
    "{}{}",
    "{a:1}",
    "{'a':1}",
    "{1:1}",
    "{\"a\":[1,]}",
    "{\"a\":[1}",
    "{\"a\":[,1]}",
    "{\"a\":01}",
    "{\"a\":-}",
    "{\"a\":+1}",
    "{\"a\":.5}",
    "{\"a\":1.}",
    "{\"a\":1.e5}",
    "{\"a\":1e}",
    "{\"a\":1e+}",
    "{\"a\":1e200}",
    "{\"a\":1e1000}",
    "{\"a\":1234567890123456789}",
    "{\"a\":0x1}",
    "{\"a\":- 1}",
    "{\"a\":tru}",
    "{\"a\":truE}",
    "{\"a\":true1}",
    "{\"a\":nul l}",
    "{\"a\":NaN}",
    "{\"a\":Infinity}",
    "{\"a\":\"\n\"}",
    "{\"a\":\"\t\"}",
    "{\"a\":\"\\x\"}",
    "{\"a\":\"\\'\"}",
    "{\"a\":\"\\u12\"}",
    "{\"a\":\"\\u00g0\"}",
    "{\"a\":\"\\u0000\"}",
    "{\"a\":\"\\ud83d\"}",
    "{\"a\":\"\\ud83dx\"}",
    "{\"a\":\"\\ud83d\\n\"}",
    "{\"a\":\"\\ud83d\\u0041\"}",
    "{\"a\":\"\\ud83d\\ud83d\"}",
    "{\"a\":\"\\ude00\"}",
    "{\"a\":\"\x80\"}",
    "{\"a\":\"\xc0\x80\"}",
    "{\"a\":\"\xc1\xbf\"}",
    "{\"a\":\"\xe0\x9f\xbf\"}",
    "{\"a\":\"\xed\xa0\x80\"}",
    "{\"a\":\"\xf0\x8f\xbf\xbf\"}",
    "{\"a\":\"\xf4\x90\x80\x80\"}",
    "{\"a\":\"\xf5\x80\x80\x80\"}",
    "{\"a\":\"\xe2\x82\"}",
    "{\"a\":\"\xff\"}",
    "{\"a\":\v1}",
    "{/**/}",
    "{\n\n\n}",
};

static bool whole(const char *text, size_t n) {
    json_state s;
    json_begin(&s);
    return json_accept(&s, text, n) && json_complete(&s);
}

static void test_documents(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        json_error_t e;
        json_t *j = json_loads(good[i], 0, &e);
        if (!j) fail_msg("jansson refuses %s: %s", good[i], e.text);
        json_decref(j);
        if (!whole(good[i], strlen(good[i]))) fail_msg("refused: %s", good[i]);
        for (size_t n = 0; n < strlen(good[i]); n++) /* no beginning is complete */
            if (whole(good[i], n)) fail_msg("complete after %zu bytes: %s", n, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (whole(bad[i], strlen(bad[i]))) fail_msg("accepted: %s", bad[i]);
    char text[400] = "{\"a\":", *at = text + 5;
    for (int i = 0; i < JSON_DEPTH; i++)
        *at++ = '[';
    json_state s;
    json_begin(&s);
    assert_true(json_accept(&s, text, 5 + JSON_DEPTH - 1));
    assert_false(json_accept(&s, "[", 1));
    json_begin(&s);
    memset(text, ' ', sizeof text);
    assert_true(json_accept(&s, text, 32));
    assert_false(json_accept(&s, " ", 1));
}

static uint64_t random_state = 1;
static uint32_t draw(uint32_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static json_t *random_value(int depth) {
    static const char *const strings[] = {"",      "a", "é€😀", "\"\\/\b\f\n\r\t", "\x01\x1f\x7f",
                                          "{[]},:"};
    json_t *v;
    switch (draw(depth < 5 ? 7 : 5)) {
    case 0:
        return json_null();
    case 1:
        return json_boolean(draw(2));
    case 2:
        return json_integer((json_int_t)draw(1u << 30) * (draw(2) ? 1 : -100000000));
    case 3:
        return json_real(((double)draw(1u << 30) - (1 << 29)) / (double)(1 + draw(1000)) *
                         (draw(2) ? 1 : 1e-30));
    case 4:
        return json_string(strings[draw(sizeof strings / sizeof *strings)]);
    case 5:
        v = json_array();
        for (uint32_t n = draw(5); n--;)
            json_array_append_new(v, random_value(depth + 1));
        return v;
    default:
        v = json_object();
        for (uint32_t n = draw(5); n--;)
            json_object_set_new(v, strings[draw(sizeof strings / sizeof *strings)],
                                random_value(depth + 1));
        return v;
    }
}

/* What jansson writes is accepted; what is accepted, after bytes were changed, jansson reads. */
static void test_against_jansson(void **state) {
    static const size_t flags[] = {JSON_COMPACT, 0, JSON_INDENT(4),
                                   JSON_ENSURE_ASCII | JSON_INDENT(1)};
    size_t changed = 0;
    (void)state;
    for (int i = 0; i < 4000; i++) {
        json_t *v = json_object();
        json_object_set_new(v, "k", random_value(0));
        json_object_set_new(v, "l", random_value(0));
        char *text = json_dumps(v, flags[draw(4)] | JSON_REAL_PRECISION(17));
        size_t n = strlen(text);
        if (!whole(text, n)) fail_msg("refused: %s", text);
        for (int k = 0; k < 20; k++) {
            char *other = strdup(text);
            for (uint32_t m = 1 + draw(2); m--;)
                other[draw((uint32_t)n)] =
                    draw(2) ? text[draw((uint32_t)n)] : (char)(1 + draw(255));
            if (whole(other, n)) {
                json_error_t e;
                json_t *parsed = json_loadb(other, n, 0, &e);
                if (!parsed) fail_msg("jansson: %s: %s", e.text, other);
                assert_true(json_is_object(parsed));
                json_decref(parsed);
                changed++;
            }
            free(other);
        }
        free(text);
        json_decref(v);
    }
    assert_true(changed > 1000);
}

/* ---- Masks --------------------------------------------------------------------------------- */

static const char *const vocabularies[] = {
    "tests/data/models/text.gguf", "tests/data/tokenizer/bpe.gguf", "tests/data/tokenizer/sp.gguf",
    "tests/data/tokenizer/sp_raw.gguf", "tests/data/tokenizer/sp_v3.gguf"};
enum { VOCABULARIES = sizeof vocabularies / sizeof *vocabularies };

static linnet_model *open_vocabulary(const char *path) {
    return open_model(path, &(linnet_model_options){.metadata_only = true});
}

static json_mask *mask_of(linnet_model *m) {
    linnet_error err;
    json_mask *mask;
    if (json_mask_new(&mask, m, &err)) fail_msg("%s", err.text);
    return mask;
}

static bool in(const uint32_t *mask, int32_t token) {
    return mask[token / 32] >> (token % 32) & 1;
}

/* Every bit is what the automaton says of the token's bytes. */
static void check_mask(linnet_model *m, json_mask *mask, const json_state *s, const char *after) {
    bool any, found = false;
    const uint32_t *allowed = json_mask_allowed(mask, s, &any);
    for (int32_t t = 0; t < linnet_model_get_info(m)->n_vocab; t++) {
        char text[512];
        size_t n;
        json_state copy = *s;
        linnet_detokenize(m, &t, 1, LINNET_MIDDLE | LINNET_BYTES, text, sizeof text, &n, NULL);
        bool end = linnet_is_end(m, t);
        bool want = end ? json_complete(s) : n && !json_complete(s) && json_accept(&copy, text, n);
        if (want != in(allowed, t))
            fail_msg("after %s: token %d is %s", after, t, want ? "missing" : "allowed");
        found = found || want;
        copy = *s;
        if (want && !end) assert_true(json_mask_accept(mask, &copy, t));
    }
    assert_int_equal(any, found);
}

static void test_masks(void **state) {
    (void)state;
    for (int v = 0; v < VOCABULARIES; v++) {
        linnet_model *m = open_vocabulary(vocabularies[v]);
        json_mask *mask = mask_of(m);
        for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
            json_state s;
            json_begin(&s);
            for (size_t n = 0; n <= strlen(good[i]); n++) {
                char after[256];
                snprintf(after, sizeof after, "%.*s", (int)n, good[i]);
                check_mask(m, mask, &s, after);
                if (good[i][n]) assert_true(json_accept(&s, &good[i][n], 1));
            }
        }
        json_mask_free(mask);
        linnet_model_close(m);
    }
}

/* A model that wants to say a document can: its tokens are allowed one after the other, then the
 * end, and nothing else. */
static void test_documents_can_be_said(void **state) {
    (void)state;
    for (int v = 0; v < VOCABULARIES; v++) {
        linnet_model *m = open_vocabulary(vocabularies[v]);
        json_mask *mask = mask_of(m);
        for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
            int32_t ids[512];
            size_t n;
            json_state s;
            bool any;
            json_begin(&s);
            assert_int_equal(linnet_tokenize(m, good[i], strlen(good[i]), 0, ids, 512, &n, NULL),
                             0);
            for (size_t k = 0; k < n; k++) {
                if (!in(json_mask_allowed(mask, &s, &any), ids[k]))
                    fail_msg("%s: token %zu of %s is not allowed", vocabularies[v], k, good[i]);
                assert_true(json_mask_accept(mask, &s, ids[k]));
            }
            /* A vocabulary that lacks a character says something else in its place. */
            assert_true(json_complete(&s));
            const uint32_t *allowed = json_mask_allowed(mask, &s, &any);
            for (int32_t t = 0; t < linnet_model_get_info(m)->n_vocab; t++)
                assert_int_equal(in(allowed, t), linnet_is_end(m, t));
        }
        json_mask_free(mask);
        linnet_model_close(m);
    }
}

/* ---- Sampling ------------------------------------------------------------------------------ */

typedef struct {
    char *text;
    size_t n, cap;
} text_so_far;

/* Whole texts are JSON; unfinished ones its beginning. Returns whether it was whole. */
static bool check_said(const text_so_far *t, bool ended) {
    json_state s;
    json_begin(&s);
    assert_true(json_accept(&s, t->text, t->n));
    assert_int_equal(json_complete(&s), ended);
    if (!ended) return false;
    json_error_t e;
    json_t *parsed = json_loadb(t->text, t->n, 0, &e);
    if (!parsed) fail_msg("%s: %.*s", e.text, (int)t->n, t->text);
    assert_true(json_is_object(parsed));
    json_decref(parsed);
    return true;
}

static void say(linnet_model *m, text_so_far *t, int32_t token) {
    size_t n;
    linnet_detokenize(m, &token, 1, LINNET_MIDDLE | LINNET_BYTES, t->text + t->n, t->cap - t->n, &n,
                      NULL);
    t->n += n;
    assert_true(t->n < t->cap);
}

/* Random logits: any token of the mask, now and then one that ends something. */
static void test_random_tokens(void **state) {
    (void)state;
    for (int v = 0; v < VOCABULARIES; v++) {
        linnet_model *m = open_vocabulary(vocabularies[v]);
        json_mask *mask = mask_of(m);
        int32_t n_vocab = linnet_model_get_info(m)->n_vocab, *ids = malloc((size_t)n_vocab * 4);
        text_so_far t = {malloc(1 << 16), 0, 1 << 16};
        int finished = 0;
        for (int i = 0; i < 300; i++) {
            json_state s;
            bool ended = false, any;
            json_begin(&s);
            t.n = 0;
            for (int k = 0; k < 300 && !ended; k++) {
                const uint32_t *allowed = json_mask_allowed(mask, &s, &any);
                int32_t n = 0, closers = 0;
                for (int32_t id = 0; id < n_vocab; id++)
                    if (in(allowed, id)) ids[n++] = id;
                if (!n && json_complete(&s)) break; /* a vocabulary without an end */
                assert_true(n > 0);
                for (int32_t c = 0; c < n; c++) {
                    char text[512];
                    size_t bytes = 0;
                    linnet_detokenize(m, &ids[c], 1, LINNET_MIDDLE | LINNET_BYTES, text,
                                      sizeof text, &bytes, NULL);
                    if (bytes == 1 && strchr("\"}]", text[0])) ids[closers++] = ids[c];
                }
                int32_t token = ids[draw((uint32_t)(closers && draw(2) ? closers : n))];
                ended = linnet_is_end(m, token);
                if (ended) break;
                say(m, &t, token);
                assert_true(json_mask_accept(mask, &s, token));
            }
            finished += check_said(&t, json_complete(&s));
        }
        assert_true(finished > 20);
        free(t.text);
        free(ids);
        json_mask_free(mask);
        linnet_model_close(m);
    }
}

/* The real sampler at temperature 2 on models that speak nonsense. */
static void test_sampled(void **state) {
    static const char *const models[] = {"tests/data/models/text.gguf", "tests/data/cli/chat.gguf"};
    (void)state;
    for (int k = 0; k < 2; k++) {
        linnet_model *m = open_model(models[k], &(linnet_model_options){.threads = 1});
        json_mask *mask = mask_of(m);
        text_so_far t = {malloc(1 << 16), 0, 1 << 16};
        linnet_logit_bias bias[4];
        linnet_error err;
        size_t n_bias = 0, n;
        int finished = 0;
        for (const char *c = "}\"]{"; *c; c++)
            if (!linnet_tokenize(m, c, 1, 0, &bias[n_bias].token, 1, &n, NULL) && n == 1)
                bias[n_bias++].bias = 6;
        for (uint64_t seed = 0; seed < 60; seed++) {
            linnet_session *s = open_session(m, NULL);
            linnet_sampling p = LINNET_SAMPLING_DEFAULT;
            int32_t token = 1;
            json_state j;
            bool any;
            p.seed = seed;
            p.temperature = 2;
            p.bias = bias;
            p.n_bias = seed % 2 ? n_bias : 0;
            json_begin(&j);
            t.n = 0;
            for (int i = 0; i < 200; i++) {
                if (linnet_feed(s, &token, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
                p.allowed = json_mask_allowed(mask, &j, &any);
                if (linnet_sample(s, &p, &token, &err)) fail_msg("%s", err.text);
                assert_true(in(p.allowed, token));
                if (linnet_is_end(m, token)) break;
                say(m, &t, token);
                assert_true(json_mask_accept(mask, &j, token));
            }
            finished += check_said(&t, json_complete(&j));
            linnet_session_free(s);
        }
        assert_true(finished > 5);
        free(t.text);
        json_mask_free(mask);
        linnet_model_close(m);
    }
}

static void test_no_vocabulary(void **state) {
    linnet_model *m = open_vocabulary("tests/data/models/llama_f16.gguf");
    linnet_error err;
    json_mask *mask;
    (void)state;
    assert_int_equal(json_mask_new(&mask, m, &err), LINNET_ERR_TOKENIZER);
    assert_non_null(strstr(err.text, "has no vocabulary"));
    linnet_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),     cmocka_unit_test(test_against_jansson),
        cmocka_unit_test(test_masks),         cmocka_unit_test(test_documents_can_be_said),
        cmocka_unit_test(test_random_tokens), cmocka_unit_test(test_sampled),
        cmocka_unit_test(test_no_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
