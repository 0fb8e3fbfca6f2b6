#include "shown.h"
#include "../error.h"

#include <stdlib.h>
#include <string.h>

/* A fork that lags behind by more tokens than this is renewed as soon as the session stands where
 * one is needed. */
enum { LAG = 16 };

void shown_free(shown *x) {
    free(x->ends);
    free(x->tail);
    linnet_session_free(x->back);
    *x = (shown){0};
}

static bool continues(char c) {
    return ((unsigned char)c & 0xC0) == 0x80;
}

static linnet_status add_text(shown *x, const char *text, size_t bytes, linnet_error *err) {
    size_t n = x->bytes - x->tail_at;
    if (n + bytes > x->tail_cap) {
        size_t cap = 2 * (n + bytes) + 64;
        char *more = realloc(x->tail, cap);
        if (!more) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes of text", cap);
        x->tail = more;
        x->tail_cap = cap;
    }
    if (bytes) memcpy(x->tail + n, text, bytes);
    x->bytes += bytes;
    return LINNET_OK;
}

/* True when the shown text has a whole character's end at `at`. */
static bool ends_character(const shown *x, size_t at) {
    return at == x->bytes || (at < x->bytes && !continues(x->tail[at - x->tail_at]));
}

static void find_whole(shown *x) {
    for (size_t i = x->whole; i < x->n && x->ends[i] <= x->bytes; i++)
        if (ends_character(x, x->ends[i])) x->whole = i + 1;
}

static void drop_tail(shown *x, size_t tokens) {
    size_t to = tokens ? x->ends[tokens - 1] : 0;
    if (to <= x->tail_at || to > x->bytes) return;
    memmove(x->tail, x->tail + (to - x->tail_at), x->bytes - to);
    x->tail_at = to;
}

static linnet_status keep_back(shown *x, size_t held, size_t fed, const linnet_session *session,
                               linnet_error *err) {
    if (!session || held == SIZE_MAX) return LINNET_OK;
    if (!held) {
        linnet_session_free(x->back);
        x->back = NULL;
        return LINNET_OK;
    }
    if (x->whole != fed || (x->back && fed - x->back_at < LAG)) return LINNET_OK;
    linnet_session *fork;
    linnet_status s = linnet_session_fork(session, &fork, err);
    if (s) return s;
    linnet_session_free(x->back);
    x->back = fork;
    x->back_at = fed;
    return LINNET_OK;
}

linnet_status shown_token(shown *x, const char *text, size_t bytes, size_t held, size_t fed,
                          const linnet_session *session, linnet_error *err) {
    if (x->n == x->cap) {
        size_t cap = 2 * x->cap + 64;
        size_t *more = realloc(x->ends, cap * sizeof *more);
        if (!more) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu tokens", cap);
        x->ends = more;
        x->cap = cap;
    }
    linnet_status s = add_text(x, text, bytes, err);
    if (s) return s;
    x->ends[x->n++] = held == SIZE_MAX ? SIZE_MAX : x->bytes + held;
    find_whole(x);
    s = keep_back(x, held, fed, session, err);
    drop_tail(x, x->whole < fed ? x->whole : fed);
    return s;
}

linnet_status shown_rest(shown *x, const char *text, size_t bytes, linnet_error *err) {
    linnet_status s = add_text(x, text, bytes, err);
    x->whole = x->n;
    return s;
}

const char *shown_after(const shown *x, size_t n, size_t *bytes) {
    size_t count = n < x->n ? n : x->n, from = count ? x->ends[count - 1] : 0;
    if (from > x->bytes) from = x->bytes;
    if (from < x->tail_at) from = x->tail_at;
    while (from < x->bytes && continues(x->tail[from - x->tail_at]))
        from++;
    *bytes = x->bytes - from;
    return x->tail ? x->tail + (from - x->tail_at) : "";
}
