/* Text generation on tests/data/models/text.gguf (tests/golden/make_text_model.py): 300 tokens,
 * random weights, so each seed gives its own nonsense. What a run must show is computed here from
 * the whole text of a run without stop strings. */
#include "../linnet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define MODEL "tests/data/models/text.gguf"
#define NO_VOCABULARY "tests/data/models/llama_f16.gguf"

enum { N_VOCAB = 300, END_OF_TEXT = 297, IM_START = 298, IM_END = 299, MAX_TEXT = 8192 };

static const char *const PROMPT = "the and";
static linnet_model *model;

/* ---- Helpers ----------------------------------------------------------------------------- */

static linnet_model *open_model(const char *path, int threads) {
    linnet_model_options options = {.threads = threads};
    linnet_model *m;
    linnet_error err;
    if (linnet_model_open(&m, path, &options, &err)) fail_msg("%s", err.text);
    return m;
}

static linnet_session *new_session(linnet_model *m, int ctx) {
    linnet_session_options options = {.ctx = ctx};
    linnet_session *s;
    linnet_error err;
    if (linnet_session_new(&s, m, &options, &err)) fail_msg("%s", err.text);
    return s;
}

static size_t feed_text(linnet_session *s, const char *text) {
    int32_t ids[64];
    size_t n;
    linnet_error err;
    if (linnet_tokenize(model, text, strlen(text), 0, ids, 64, &n, &err)) fail_msg("%s", err.text);
    assert_in_range(n, 1, 64);
    if (linnet_feed(s, ids, n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    return n;
}

/* Length of the UTF-8 character at s, 0 if there is no whole, valid one. */
static size_t character(const unsigned char *s, size_t n) {
    size_t length = s[0] < 0x80                   ? 1
                    : s[0] >= 0xC2 && s[0] < 0xE0 ? 2
                    : (s[0] & 0xF0) == 0xE0       ? 3
                    : s[0] >= 0xF0 && s[0] < 0xF5 ? 4
                                                  : 0;
    if (length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    return length;
}

/* What the callback saw. */
typedef struct {
    char text[MAX_TEXT];
    size_t n;
    int calls, cancel_at; /* 0: never */
    const linnet_session *session;
    size_t prompt, longest_stop;
} sink;

static bool collect(void *user, const char *text, size_t bytes) {
    sink *k = user;
    k->calls++;
    assert_true(bytes > 0 && bytes < MAX_TEXT - k->n);
    for (size_t i = 0; i < bytes;) { /* whole characters only */
        size_t length = character((const unsigned char *)text + i, bytes - i);
        assert_true(length > 0);
        i += length;
    }
    memcpy(k->text + k->n, text, bytes);
    k->n += bytes;
    k->text[k->n] = '\0';
    if (k->session) {
        /* What is shown is in the timeline, and no more is held back than the longest stop string
         * and the characters it and the end of the text cut. */
        char all[MAX_TEXT];
        size_t n_tokens, n_all;
        const int32_t *tokens = linnet_session_tokens(k->session, &n_tokens);
        assert_true(n_tokens > k->prompt);
        assert_int_equal(linnet_detokenize(model, tokens + k->prompt, n_tokens - k->prompt, 0, all,
                                           sizeof all, &n_all, NULL),
                         0);
        assert_true(n_all <= sizeof all && k->n <= n_all);
        assert_memory_equal(all, k->text, k->n);
        assert_true(k->n + k->longest_stop + 3 + 3 >= n_all);
    }
    return k->calls != k->cancel_at;
}

/* One generation from PROMPT. */
typedef struct {
    sink shown;
    linnet_generated result;
    int32_t tokens[256]; /* after the prompt */
    size_t n_tokens;
} outcome;

/* Tokens that may be drawn, by kind of text. */
enum { ANY, ASCII, CHARACTERS, ABC, KINDS };

static size_t forbid(int kind, linnet_logit_bias *bias) {
    static const char *const keep[KINDS] = {NULL, NULL, "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 a",
                                            "abcdxy"};
    size_t n = 0;
    for (int32_t id = 0; id < N_VOCAB; id++) {
        bool ok;
        char piece[64];
        size_t bytes;
        assert_int_equal(linnet_detokenize(model, &id, 1, 0, piece, 64, &bytes, NULL), 0);
        if (id >= 256) { /* detokenize alone would turn a part of a character into U+FFFD */
            ok = kind == ANY || (kind == CHARACTERS && id >= 282 && id <= 287) ||
                 (kind == ABC && id >= 291) || (kind == ASCII && !((unsigned char)piece[0] & 0x80));
        } else {
            ok = kind == ANY || (kind == ASCII && id >= ' ' && id < 127) ||
                 (keep[kind] && id && strchr(keep[kind], id));
        }
        if (linnet_is_end(model, id) || id == IM_START) ok = kind == ANY && id == IM_START;
        if (!ok) bias[n++] = (linnet_logit_bias){id, -__builtin_inff()};
    }
    assert_true(n < N_VOCAB);
    return n;
}

static void generate(linnet_session *s, int kind, uint64_t seed, size_t max_tokens,
                     const char *const *stops, size_t n_stops, outcome *o) {
    linnet_logit_bias bias[N_VOCAB];
    linnet_generate_options options = LINNET_GENERATE_DEFAULT;
    options.sampling.seed = seed;
    options.sampling.temperature = 1;
    options.sampling.bias = bias;
    options.sampling.n_bias = forbid(kind, bias);
    options.max_tokens = max_tokens;
    options.stops = stops;
    options.n_stops = n_stops;
    size_t before, after;
    linnet_session_tokens(s, &before);
    o->shown.session = s;
    o->shown.prompt = before;
    for (size_t i = 0; i < n_stops; i++)
        if (strlen(stops[i]) > o->shown.longest_stop) o->shown.longest_stop = strlen(stops[i]);
    linnet_error err;
    if (linnet_generate(s, &options, collect, &o->shown, &o->result, &err))
        fail_msg("%s", err.text);
    const int32_t *tokens = linnet_session_tokens(s, &after);
    o->n_tokens = after - before;
    assert_true(o->n_tokens <= 256);
    memcpy(o->tokens, tokens + before, o->n_tokens * sizeof *tokens);
    assert_non_null(linnet_session_logits(s)); /* ready to go on */
}

static void run(int kind, uint64_t seed, size_t max_tokens, const char *const *stops,
                size_t n_stops, outcome *o) {
    memset(o, 0, sizeof *o);
    linnet_session *s = new_session(model, 128);
    feed_text(s, PROMPT);
    generate(s, kind, seed, max_tokens, stops, n_stops, o);
    linnet_session_free(s);
}

static uint64_t random_state = 88172645463325252ull; /* xorshift64 */
static size_t random_below(size_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (size_t)(random_state >> 33) % n;
}

/* ---- Text -------------------------------------------------------------------------------- */

static void shows_what_was_sampled(void **state) {
    (void)state;
    static outcome o, again;
    int replaced = 0, multibyte = 0;
    for (uint64_t seed = 0; seed < 24; seed++) {
        for (int kind = 0; kind < KINDS; kind++) {
            char all[MAX_TEXT];
            size_t n;
            run(kind, seed, 50, NULL, 0, &o);
            assert_int_equal(o.result.end, LINNET_END_LENGTH);
            assert_int_equal(o.result.n_tokens, 50);
            assert_int_equal(o.n_tokens, 50);
            assert_null(o.result.stop);
            assert_int_equal(
                linnet_detokenize(model, o.tokens, o.n_tokens, 0, all, sizeof all, &n, NULL), 0);
            assert_int_equal(n, o.shown.n);
            assert_memory_equal(all, o.shown.text, n);
            replaced += strstr(o.shown.text, "\xEF\xBF\xBD") != NULL;
            multibyte += strstr(o.shown.text, "\xE2\x82\xAC") != NULL;
            if (kind == ASCII) assert_true(o.shown.calls == 50); /* nothing is held back */
            run(kind, seed, 50, NULL, 0, &again);
            assert_memory_equal(o.tokens, again.tokens, sizeof o.tokens);
            assert_string_equal(o.shown.text, again.shown.text);
        }
    }
    assert_true(replaced > 20 && multibyte > 5); /* the texts are as hard as they should be */
}

static void seeds_and_threads(void **state) {
    (void)state;
    static outcome a, b;
    int different = 0;
    linnet_model *two = open_model(MODEL, 2);
    for (uint64_t seed = 0; seed < 10; seed++) {
        run(ANY, seed, 30, NULL, 0, &a);
        run(ANY, seed + 1, 30, NULL, 0, &b);
        different += memcmp(a.tokens, b.tokens, 30 * sizeof *a.tokens) != 0;
        memset(&b, 0, sizeof b);
        linnet_session *s = new_session(two, 128);
        feed_text(s, PROMPT);
        generate(s, ANY, seed, 30, NULL, 0, &b);
        linnet_session_free(s);
        assert_memory_equal(a.tokens, b.tokens, 30 * sizeof *a.tokens);
        assert_string_equal(a.shown.text, b.shown.text);
    }
    linnet_model_close(two);
    assert_int_equal(different, 10);
}

/* ---- Stop strings ------------------------------------------------------------------------ */

/* Where the text must end: the first byte at which a stop string is complete, the longest of those
 * complete there. Returns the bytes shown, `n` without a match. */
static size_t cut(const char *text, size_t n, const char *const *stops, size_t n_stops,
                  const char **stop, size_t *complete) {
    *stop = NULL;
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n_stops; i++) {
            size_t length = strlen(stops[i]);
            if (length <= end && length > longest && !memcmp(text + end - length, stops[i], length))
                longest = length, *stop = stops[i];
        }
        if (!longest) continue;
        *complete = end;
        size_t shown = end - longest;
        while (shown > 0 && ((unsigned char)text[shown] & 0xC0) == 0x80)
            shown--;
        return shown;
    }
    return n;
}

/* Tokens needed until `bytes` of the text are decoded, whole characters counted. */
static size_t tokens_until(const outcome *full, size_t bytes) {
    for (size_t n = 1; n <= full->n_tokens; n++) {
        char all[MAX_TEXT];
        size_t got;
        assert_int_equal(linnet_detokenize(model, full->tokens, n, 0, all, sizeof all, &got, NULL),
                         0);
        /* The last character may be unfinished, shown as U+FFFD: then it does not count yet. */
        while (got > 0 && (got > full->shown.n || memcmp(all, full->shown.text, got)))
            got--;
        if (got >= bytes) return n;
    }
    return full->n_tokens;
}

static void check_stops(const outcome *full, int kind, uint64_t seed, const char *const *stops,
                        size_t n_stops) {
    static outcome o;
    const char *stop;
    size_t complete = 0,
           shown = cut(full->shown.text, full->shown.n, stops, n_stops, &stop, &complete);
    run(kind, seed, full->n_tokens, stops, n_stops, &o);
    if (o.shown.n != shown || memcmp(o.shown.text, full->shown.text, shown))
        fail_msg("kind %d, seed %d: '%s' should be %zu bytes of '%s'", kind, (int)seed,
                 o.shown.text, shown, full->shown.text);
    assert_int_equal(o.result.end, stop ? LINNET_END_STOP : LINNET_END_LENGTH);
    assert_ptr_equal(o.result.stop, stop);
    /* The timeline holds the tokens as they were drawn, the one that completed the stop included.
     */
    assert_int_equal(o.n_tokens, o.result.n_tokens);
    assert_memory_equal(o.tokens, full->tokens, o.n_tokens * sizeof *o.tokens);
    if (stop && complete < full->shown.n && kind == ASCII)
        assert_int_equal(o.n_tokens, tokens_until(full, complete));
    if (!stop) assert_int_equal(o.n_tokens, full->n_tokens);
}

static void stops_anywhere(void **state) {
    (void)state;
    static outcome full;
    int matched = 0;
    for (uint64_t seed = 0; seed < 12; seed++) {
        for (int kind = 0; kind < KINDS; kind++) {
            run(kind, seed, 40, NULL, 0, &full);
            if (full.shown.n < 8 || memchr(full.shown.text, 0, full.shown.n)) continue;
            /* The end of the text, which may be an unfinished character. */
            const char *last = full.shown.text + full.shown.n - 7;
            check_stops(&full, kind, seed, &last, 1);
            for (int round = 0; round < 12; round++) {
                /* Pieces of the text, cut at any byte, one of them spoiled at its end. */
                char pieces[4][16];
                const char *stops[4];
                size_t n_stops = 1 + random_below(4);
                for (size_t i = 0; i < n_stops; i++) {
                    size_t length = 1 + random_below(full.shown.n < 15 ? full.shown.n : 15);
                    size_t from = random_below(full.shown.n - length + 1);
                    memcpy(pieces[i], full.shown.text + from, length);
                    pieces[i][length] = '\0';
                    if (round % 3 == 0) pieces[i][length - 1] = '\x01';
                    stops[i] = pieces[i];
                }
                const char *stop;
                size_t complete;
                cut(full.shown.text, full.shown.n, stops, n_stops, &stop, &complete);
                matched += stop != NULL;
                check_stops(&full, kind, seed, stops, n_stops);
            }
        }
    }
    assert_true(matched > 200);
}

/* Texts over six letters repeat themselves: partial matches that fail and restart. */
static void stops_that_overlap(void **state) {
    (void)state;
    static outcome full;
    const char *const sets[][3] = {{"abab", "abcd", NULL},  {"abcdab", "cdx", NULL},
                                   {"xyxyx", "yxyx", NULL}, {"aab", "aaab", "b"},
                                   {"dcba", "xyxx", NULL},  {"abcabcd", "bcabc", "abc"}};
    for (uint64_t seed = 100; seed < 112; seed++) {
        run(ABC, seed, 60, NULL, 0, &full);
        for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
            check_stops(&full, ABC, seed, sets[i], sets[i][2] ? 3 : 2);
    }
}

static void stop_that_never_comes_is_shown_in_the_end(void **state) {
    (void)state;
    static outcome full, o;
    run(ASCII, 5, 20, NULL, 0, &full);
    char almost[MAX_TEXT + 2];
    memcpy(almost, full.shown.text, full.shown.n);
    strcpy(almost + full.shown.n, "\x01");
    const char *stops[] = {almost};
    run(ASCII, 5, 20, stops, 1, &o);
    assert_string_equal(o.shown.text, full.shown.text);
    assert_int_equal(o.shown.calls, 1); /* all of it was held back until the last token */
    assert_int_equal(o.result.end, LINNET_END_LENGTH);
    assert_null(o.result.stop);
}

/* ---- Ends -------------------------------------------------------------------------------- */

static void max_tokens_and_going_on(void **state) {
    (void)state;
    static outcome whole, part;
    run(ASCII, 9, 23, NULL, 0, &whole);
    linnet_session *s = new_session(model, 128);
    feed_text(s, PROMPT);
    memset(&part, 0, sizeof part);
    const size_t steps[] = {1, 2, 7, 13};
    size_t done = 0;
    for (int i = 0; i < 4; i++) {
        generate(s, ASCII, 9, steps[i], NULL, 0, &part);
        part.shown.session = NULL; /* one sink for all parts */
        assert_int_equal(part.result.end, LINNET_END_LENGTH);
        assert_int_equal(part.result.n_tokens, steps[i]);
        assert_memory_equal(part.tokens, whole.tokens + done, steps[i] * sizeof *part.tokens);
        done += steps[i];
        sink kept = part.shown;
        kept.longest_stop = 0;
        assert_memory_equal(kept.text, whole.shown.text, kept.n);
        memset(&part, 0, sizeof part);
        whole.shown.n -= kept.n;
        memmove(whole.shown.text, whole.shown.text + kept.n, whole.shown.n + 1);
    }
    assert_int_equal(whole.shown.n, 0);
    linnet_session_free(s);
}

static void full_context(void **state) {
    (void)state;
    static outcome o;
    memset(&o, 0, sizeof o);
    linnet_session *s = new_session(model, 20);
    size_t prompt = feed_text(s, PROMPT), n;
    generate(s, ANY, 1, 0, NULL, 0, &o);
    assert_int_equal(o.result.end, LINNET_END_CONTEXT);
    assert_int_equal(o.result.n_tokens, 20 - prompt);
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 20);
    memset(&o, 0, sizeof o);
    generate(s, ANY, 1, 5, NULL, 0, &o); /* and nothing more fits */
    assert_int_equal(o.result.end, LINNET_END_CONTEXT);
    assert_int_equal(o.result.n_tokens, 0);
    assert_int_equal(o.shown.calls, 0);
    linnet_session_free(s);
}

static void cancelled_by_the_callback(void **state) {
    (void)state;
    static outcome whole, o, rest;
    run(ASCII, 3, 30, NULL, 0, &whole);
    for (int at = 1; at < 30; at += 4) {
        linnet_session *s = new_session(model, 128);
        feed_text(s, PROMPT);
        memset(&o, 0, sizeof o);
        o.shown.cancel_at = at;
        generate(s, ASCII, 3, 30, NULL, 0, &o);
        assert_int_equal(o.result.end, LINNET_END_CANCELLED);
        assert_int_equal(o.shown.calls, at); /* not called again */
        assert_memory_equal(o.shown.text, whole.shown.text, o.shown.n);
        /* What was shown is in the timeline: going on gives the same text. */
        memset(&rest, 0, sizeof rest);
        generate(s, ASCII, 3, 30 - o.n_tokens, NULL, 0, &rest);
        assert_memory_equal(rest.tokens, whole.tokens + o.n_tokens,
                            rest.n_tokens * sizeof *rest.tokens);
        assert_string_equal(rest.shown.text, whole.shown.text + o.shown.n);
        linnet_session_free(s);
    }
}

static void end_tokens(void **state) {
    (void)state;
    static const int32_t ends[] = {END_OF_TEXT, IM_END};
    for (int i = 0; i < 2; i++) {
        for (int feed = 0; feed < 2; feed++) {
            linnet_session *s = new_session(model, 128);
            size_t prompt = feed_text(s, PROMPT), n;
            linnet_logit_bias bias = {ends[i], 1000};
            linnet_generate_options options = LINNET_GENERATE_DEFAULT;
            options.sampling.bias = &bias;
            options.sampling.n_bias = 1;
            options.feed_end = feed;
            sink shown = {.n = 0};
            linnet_generated r;
            assert_int_equal(linnet_generate(s, &options, collect, &shown, &r, NULL), 0);
            assert_int_equal(r.end, LINNET_END_TOKEN);
            assert_int_equal(r.n_tokens, 0);
            assert_int_equal(shown.calls, 0);
            const int32_t *tokens = linnet_session_tokens(s, &n);
            assert_int_equal(n, prompt + (size_t)feed);
            if (feed) assert_int_equal(tokens[prompt], ends[i]);
            assert_non_null(linnet_session_logits(s));
            linnet_session_free(s);
        }
    }
    /* In the middle of a text, for several seeds: shown is what came before. */
    int ended = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        linnet_session *s = new_session(model, 128);
        size_t prompt = feed_text(s, PROMPT), n, bytes;
        linnet_logit_bias bias = {END_OF_TEXT, 4};
        linnet_generate_options options = LINNET_GENERATE_DEFAULT;
        options.sampling.seed = seed;
        options.sampling.temperature = 1;
        options.sampling.bias = &bias;
        options.sampling.n_bias = 1;
        options.max_tokens = 40;
        options.feed_end = true;
        static sink shown;
        memset(&shown, 0, sizeof shown);
        linnet_generated r;
        assert_int_equal(linnet_generate(s, &options, collect, &shown, &r, NULL), 0);
        const int32_t *tokens = linnet_session_tokens(s, &n);
        bool end = r.end == LINNET_END_TOKEN;
        assert_int_equal(n, prompt + r.n_tokens + end);
        if (end) assert_true(linnet_is_end(model, tokens[n - 1]));
        for (size_t i = prompt; i < prompt + r.n_tokens; i++)
            assert_false(linnet_is_end(model, tokens[i]));
        char all[MAX_TEXT];
        assert_int_equal(
            linnet_detokenize(model, tokens + prompt, r.n_tokens, 0, all, sizeof all, &bytes, NULL),
            0);
        assert_int_equal(bytes, shown.n);
        assert_memory_equal(all, shown.text, bytes);
        ended += end && r.n_tokens > 0;
        linnet_session_free(s);
    }
    assert_true(ended >= 5);
}

static void special_tokens_have_no_text(void **state) {
    (void)state;
    linnet_session *s = new_session(model, 128);
    feed_text(s, PROMPT);
    linnet_logit_bias bias = {IM_START, 1000};
    linnet_generate_options options = LINNET_GENERATE_DEFAULT;
    options.sampling.bias = &bias;
    options.sampling.n_bias = 1;
    options.max_tokens = 3;
    sink shown = {.n = 0};
    linnet_generated r;
    assert_int_equal(linnet_generate(s, &options, collect, &shown, &r, NULL), 0);
    assert_int_equal(r.end, LINNET_END_LENGTH);
    assert_int_equal(r.n_tokens, 3);
    assert_int_equal(shown.calls, 0);
    linnet_session_free(s);
}

/* ---- Refusals ---------------------------------------------------------------------------- */

static void refused(linnet_session *s, const linnet_generate_options *options, linnet_status code,
                    const char *says) {
    sink shown = {.n = 0};
    linnet_generated r = {.end = LINNET_END_STOP, .n_tokens = 99};
    linnet_error err = {0, ""};
    size_t before = 0, after = 0;
    if (s) linnet_session_tokens(s, &before);
    assert_int_equal(linnet_generate(s, options, collect, &shown, &r, &err), code);
    assert_int_equal(err.code, code);
    if (!strstr(err.text, says)) fail_msg("'%s' does not say '%s'", err.text, says);
    assert_int_equal(shown.calls, 0);
    assert_int_equal(r.n_tokens, 0);
    if (s) linnet_session_tokens(s, &after);
    assert_int_equal(before, after);
}

static void refusals(void **state) {
    (void)state;
    linnet_session *s = new_session(model, 128);
    linnet_generate_options good = LINNET_GENERATE_DEFAULT, bad = good;
    good.max_tokens = 2;
    refused(NULL, &good, LINNET_ERR_ARGUMENT, "session");
    refused(s, &good, LINNET_ERR_ARGUMENT, "logits"); /* nothing was fed */
    feed_text(s, PROMPT);

    const char *const empty[] = {"fine", ""}, *const null[] = {NULL};
    bad = good;
    bad.stops = empty;
    bad.n_stops = 2;
    refused(s, &bad, LINNET_ERR_ARGUMENT, "stop string 2 of 2 is empty");
    bad.stops = null;
    bad.n_stops = 1;
    refused(s, &bad, LINNET_ERR_ARGUMENT, "stop string 1 of 1 is NULL");
    bad.stops = NULL;
    refused(s, &bad, LINNET_ERR_ARGUMENT, "the list is NULL");
    bad = good;
    bad.sampling.top_p = 0;
    refused(s, &bad, LINNET_ERR_ARGUMENT, "top_p");
    bad = good;
    linnet_logit_bias bias = {N_VOCAB, 0};
    bad.sampling.bias = &bias;
    bad.sampling.n_bias = 1;
    refused(s, &bad, LINNET_ERR_ARGUMENT, "token 300");

    /* After all that the session works, without options, callback or result. */
    assert_int_equal(linnet_generate(s, &good, NULL, NULL, NULL, NULL), 0);
    linnet_generated r;
    assert_int_equal(linnet_generate(s, NULL, NULL, NULL, &r, NULL), 0);
    assert_true(r.end == LINNET_END_TOKEN || r.end == LINNET_END_CONTEXT);
    linnet_session_free(s);
}

static void no_vocabulary(void **state) {
    (void)state;
    linnet_model *m = open_model(NO_VOCABULARY, 1);
    linnet_session *s = new_session(m, 16);
    const int32_t ids[] = {1, 2, 3};
    assert_int_equal(linnet_feed(s, ids, 3, LINNET_LOGITS_LAST, NULL), 0);
    linnet_generate_options options = LINNET_GENERATE_DEFAULT;
    refused(s, &options, LINNET_ERR_TOKENIZER, "no vocabulary");
    linnet_session_free(s);
    linnet_model_close(m);
}

static int setup(void **state) {
    (void)state;
    model = open_model(MODEL, 1);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    linnet_model_close(model);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shows_what_was_sampled),
        cmocka_unit_test(seeds_and_threads),
        cmocka_unit_test(stops_anywhere),
        cmocka_unit_test(stops_that_overlap),
        cmocka_unit_test(stop_that_never_comes_is_shown_in_the_end),
        cmocka_unit_test(max_tokens_and_going_on),
        cmocka_unit_test(full_context),
        cmocka_unit_test(cancelled_by_the_callback),
        cmocka_unit_test(end_tokens),
        cmocka_unit_test(special_tokens_have_no_text),
        cmocka_unit_test(refusals),
        cmocka_unit_test(no_vocabulary),
    };
    return cmocka_run_group_tests_name("generate", tests, setup, teardown);
}
