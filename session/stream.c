/* linnet_text: the text of tokens as they come, in whole characters, up to a stop string.
 *
 * Stop strings are found in the decoded text, wherever tokens begin and end, as if it came byte by
 * byte: the first match to be complete ends the text, and of those complete at the same byte the
 * longest. Text that may become part of a match is held back, never more than the longest stop
 * string. */
#include "../model.h"

#include <stdlib.h>
#include <string.h>

/* One stop string as an automaton: Knuth, Morris, Pratt 1977. */
typedef struct {
    char *text;
    size_t n;
    size_t matched; /* bytes of it that the text so far ends with */
    size_t *border; /* border[i]: longest proper prefix of text[0..i] that is also its end */
} stop;

struct linnet_text {
    linnet_model *model; /* of which this is an owner */
    decoder d;
    stop *stops;
    size_t n_stops;
    char *held; /* decoded: first what the last push returned, then what waits */
    size_t n_shown, n_held;
    const stop *hit;
};

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

static linnet_status add_stops(linnet_text *t, const char *const *stops, size_t n, size_t *longest,
                               linnet_error *err) {
    if (n && !stops)
        return fail(err, LINNET_ERR_ARGUMENT, "stop strings: %zu announced, but the list is NULL",
                    n);
    if (n && !(t->stops = calloc(n, sizeof *t->stops)))
        return fail(err, LINNET_ERR_MEMORY, "no memory for %zu stop strings", n);
    for (size_t i = 0; i < n; i++) {
        stop *s = &t->stops[i];
        if (!stops[i] || !stops[i][0])
            return fail(err, LINNET_ERR_ARGUMENT,
                        "stop string %zu of %zu is %s: it would end every text before its start",
                        i + 1, n, stops[i] ? "empty" : "NULL");
        t->n_stops = i + 1;
        s->n = strlen(stops[i]);
        s->text = strdup(stops[i]);
        s->border = calloc(s->n, sizeof *s->border);
        if (!s->text || !s->border)
            return fail(err, LINNET_ERR_MEMORY, "no memory for a stop string of %zu bytes", s->n);
        stop_start(s);
        *longest = max_size(*longest, s->n);
    }
    return LINNET_OK;
}

/* SentencePiece drops the space in front of the first word of a text. */
static bool text_started(const tokenizer *t, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!tokenizer_is_special(t, tokens[i])) return true;
    return false;
}

linnet_status linnet_text_new(linnet_text **out, const linnet_session *after,
                              const char *const *stops, size_t n_stops, linnet_error *err) {
    if (!out || !after) return fail(err, LINNET_ERR_ARGUMENT, "linnet_text_new: NULL argument");
    *out = NULL;
    linnet_model *m = after->model;
    if (atomic_load(&m->closed))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_text_new: the session's model was closed");
    if (!m->tok)
        return fail(err, LINNET_ERR_TOKENIZER,
                    "the model file has no vocabulary, so its tokens have no text");
    linnet_text *t = calloc(1, sizeof *t);
    if (!t) return fail(err, LINNET_ERR_MEMORY, "no memory for a text");
    t->model = m;
    atomic_fetch_add(&m->owners, 1);
    t->d = (decoder){.t = m->tok, .started = text_started(m->tok, after->tokens, after->n_tokens)};
    size_t cap = 0;
    linnet_status s = add_stops(t, stops, n_stops, &cap, err);
    /* What waits after a push is shorter than the longest stop plus a character's bytes. */
    if (!s && (!add_size(cap, 8, &cap) || !add_size(cap, tokenizer_max_piece(m->tok), &cap) ||
               !(t->held = malloc(cap))))
        s = fail(err, LINNET_ERR_MEMORY, "no memory to hold %zu bytes of text", cap);
    if (s)
        linnet_text_free(t);
    else
        *out = t;
    return s;
}

void linnet_text_free(linnet_text *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n_stops; i++) {
        free(t->stops[i].text);
        free(t->stops[i].border);
    }
    free(t->stops);
    free(t->held);
    model_release(t->model);
    free(t);
}

/* The bytes of `held` before `n` that are whole characters: a stop string may begin inside one. */
static size_t whole(const linnet_text *t, size_t n) {
    while (n > 0 && n < t->n_held && ((unsigned char)t->held[n] & 0xC0) == 0x80)
        n--;
    return n;
}

/* Takes `n` bytes that were written behind `held`; returns how many no stop string can claim. Sets
 * t->hit when one matched. */
static size_t advance(linnet_text *t, size_t n) {
    for (size_t end = t->n_held + n; t->n_held < end; t->n_held++) {
        for (size_t i = 0; i < t->n_stops; i++) {
            stop *s = &t->stops[i];
            if (stop_advance(s, t->held[t->n_held]) && (!t->hit || s->n > t->hit->n)) t->hit = s;
        }
        if (t->hit) {
            t->n_held++;
            return whole(t, t->n_held - t->hit->n);
        }
    }
    size_t claimed = 0;
    for (size_t i = 0; i < t->n_stops; i++)
        claimed = max_size(claimed, t->stops[i].matched);
    return whole(t, t->n_held - claimed);
}

const char *linnet_text_push(linnet_text *t, int32_t token, size_t *bytes, size_t *held,
                             const char **stop) {
    t->n_held -= t->n_shown;
    memmove(t->held, t->held + t->n_shown, t->n_held);
    t->n_shown = 0;
    if (!t->hit) {
        char *behind = t->held + t->n_held;
        t->n_shown = advance(t, token < 0 ? decoder_flush(&t->d, behind)
                                          : decoder_push(&t->d, token, behind));
        if (t->hit)
            t->n_held = t->n_shown; /* the stop string and what follows it is never shown */
        else if (token < 0)
            t->n_shown = t->n_held; /* the stop string did not come */
    }
    *bytes = t->n_shown;
    if (held) *held = t->hit ? 0 : t->n_held - t->n_shown + t->d.n_held;
    if (stop) *stop = t->hit ? t->hit->text : NULL;
    return t->held;
}
