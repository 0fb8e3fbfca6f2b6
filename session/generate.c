/* linnet_generate: sample, feed, show, until something ends it.
 *
 * A token is fed before its text is shown, so that whatever was shown is in the session's timeline
 * together with the logits after it: the session can be saved, forked or continued at any end. The
 * price is one forward for the last token. When a stop string ends inside a token, the whole token
 * is in the timeline although only its first characters were shown.
 *
 * Stop strings are found in the decoded text, wherever tokens begin and end, as if it came byte by
 * byte: the first match to be complete ends the text, and of those complete at the same byte the
 * longest. Text that may become part of a match is held back, never more than the longest stop
 * string. */
#include "../model.h"
#include "../tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* One stop string as an automaton: Knuth, Morris, Pratt 1977. */
typedef struct {
    const char *text;
    size_t n;
    size_t matched; /* bytes of it that the text so far ends with */
    size_t *border; /* border[i]: longest proper prefix of text[0..i] that is also its end */
} stop;

typedef struct {
    linnet_text_fn show;
    void *user;
    stop *stops;
    size_t n_stops;
    char *held; /* decoded, not shown yet */
    size_t n_held, cap;
    const stop *hit;
} output;

static void stop_start(stop *s) {
    s->border[0] = 0;
    for (size_t i = 1, k = 0; i < s->n; i++) {
        while (k > 0 && s->text[i] != s->text[k])
            k = s->border[k - 1];
        if (s->text[i] == s->text[k]) k++;
        s->border[i] = k;
    }
}

/* True when `byte` completes the stop string. */
static bool stop_advance(stop *s, char byte) {
    while (s->matched > 0 && s->text[s->matched] != byte)
        s->matched = s->border[s->matched - 1];
    if (s->text[s->matched] == byte) s->matched++;
    return s->matched == s->n;
}

static linnet_status output_start(output *o, const linnet_generate_options *options,
                                  size_t max_piece, linnet_error *err) {
    size_t longest = 0;
    if (options->n_stops && !options->stops)
        return fail(err, LINNET_ERR_ARGUMENT, "stop strings: %zu announced, but the list is NULL",
                    options->n_stops);
    if (options->n_stops) {
        o->stops = calloc(options->n_stops, sizeof *o->stops);
        if (!o->stops)
            return fail(err, LINNET_ERR_MEMORY, "no memory for %zu stop strings", options->n_stops);
    }
    for (size_t i = 0; i < options->n_stops; i++) {
        stop *s = &o->stops[i];
        s->text = options->stops[i];
        if (!s->text || !s->text[0])
            return fail(err, LINNET_ERR_ARGUMENT,
                        "stop string %zu of %zu is %s: it would end every text before its start",
                        i + 1, options->n_stops, s->text ? "empty" : "NULL");
        s->n = strlen(s->text);
        s->border = calloc(s->n, sizeof *s->border);
        if (!s->border)
            return fail(err, LINNET_ERR_MEMORY, "no memory for a stop string of %zu bytes", s->n);
        o->n_stops = i + 1;
        stop_start(s);
        longest = max_size(longest, s->n);
    }
    /* What is held back after a push is shorter than the longest stop plus a character's bytes. */
    if (!add_size(longest, 8, &o->cap) || !add_size(o->cap, max_piece, &o->cap) ||
        !(o->held = malloc(o->cap)))
        return fail(err, LINNET_ERR_MEMORY, "no memory to hold %zu bytes of text", o->cap);
    return LINNET_OK;
}

static void output_free(output *o) {
    for (size_t i = 0; i < o->n_stops; i++)
        free(o->stops[i].border);
    free(o->stops);
    free(o->held);
}

/* Shows held[0..n); false when the callback wants no more. */
static bool output_show(output *o, size_t n) {
    bool more = n == 0 || !o->show || o->show(o->user, o->held, n);
    o->n_held -= n;
    memmove(o->held, o->held + n, o->n_held);
    return more;
}

/* The bytes of `held` before `n` that are whole characters: a stop string may begin inside one. */
static size_t whole(const output *o, size_t n) {
    while (n > 0 && n < o->n_held && ((unsigned char)o->held[n] & 0xC0) == 0x80)
        n--;
    return n;
}

/* Takes `n` bytes that were written behind `held`, and shows what no stop string can claim. Sets
 * o->hit when one matched. False when the callback wants no more. */
static bool output_push(output *o, size_t n) {
    size_t end = o->n_held + n;
    for (; o->n_held < end; o->n_held++) {
        for (size_t i = 0; i < o->n_stops; i++) {
            stop *s = &o->stops[i];
            if (stop_advance(s, o->held[o->n_held]) && (!o->hit || s->n > o->hit->n)) o->hit = s;
        }
        if (o->hit) {
            o->n_held++;
            bool more = output_show(o, whole(o, o->n_held - o->hit->n));
            o->n_held = 0;
            return more;
        }
    }
    size_t claimed = 0;
    for (size_t i = 0; i < o->n_stops; i++)
        claimed = max_size(claimed, o->stops[i].matched);
    return output_show(o, whole(o, o->n_held - claimed));
}

/* SentencePiece drops the space in front of the first word of a text. */
static bool text_started(const tokenizer *t, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!tokenizer_is_special(t, tokens[i])) return true;
    return false;
}

linnet_status linnet_generate(linnet_session *session, const linnet_generate_options *options,
                              linnet_text_fn text, void *user, linnet_generated *result,
                              linnet_error *err) {
    static const linnet_generate_options defaults = LINNET_GENERATE_DEFAULT;
    linnet_generated r = {LINNET_END_CANCELLED, 0, NULL};
    if (result) *result = r;
    if (!session) return fail(err, LINNET_ERR_ARGUMENT, "generate: the session is NULL");
    if (!options) options = &defaults;

    const linnet_model *model = session_model(session);
    const tokenizer *t = model_tokenizer(model);
    if (!t)
        return fail(err, LINNET_ERR_TOKENIZER,
                    "generate: the model file has no vocabulary, so its tokens have no text");

    output o = {.show = text, .user = user};
    size_t n_session;
    const int32_t *tokens = linnet_session_tokens(session, &n_session);
    decoder d = {.t = t, .started = text_started(t, tokens, n_session)};
    linnet_status status = output_start(&o, options, tokenizer_max_piece(t), err);
    if (status) goto done;

    for (;;) {
        if (options->max_tokens && r.n_tokens == options->max_tokens) {
            r.end = LINNET_END_LENGTH;
            break;
        }
        int ctx = linnet_session_ctx(session);
        linnet_session_tokens(session, &n_session);
        if (ctx > 0 && n_session >= (size_t)ctx) {
            r.end = LINNET_END_CONTEXT;
            break;
        }
        int32_t token = 0;
        status = linnet_sample(session, &options->sampling, &token, err);
        if (status) goto done;
        bool end = linnet_is_end(model, token);
        if (!end || options->feed_end) {
            session->sampled = true;
            status = linnet_feed(session, &token, 1, LINNET_LOGITS_LAST, err);
            session->sampled = false;
            if (status) goto done;
        }
        if (end) {
            r.end = LINNET_END_TOKEN;
            break;
        }
        r.n_tokens++;
        if (!output_push(&o, decoder_push(&d, token, o.held + o.n_held))) {
            r.end = LINNET_END_CANCELLED;
            goto done;
        }
        if (o.hit) {
            r.end = LINNET_END_STOP;
            break;
        }
    }
    /* The text is over: an unfinished character becomes U+FFFD, and what was held back for a stop
     * string that did not come is shown. */
    if (!o.hit && (!output_push(&o, decoder_flush(&d, o.held + o.n_held)) ||
                   (!o.hit && !output_show(&o, o.n_held))))
        r.end = LINNET_END_CANCELLED;
    else if (o.hit)
        r.end = LINNET_END_STOP;
done:
    if (r.end == LINNET_END_STOP) r.stop = o.hit->text;
    if (result) *result = r;
    output_free(&o);
    return status;
}
