/* Which of the sampled tokens a reader has seen whole.
 *
 * Text that may become a stop string is held back, so tokens are fed whose text is not shown yet.
 * When the stop string comes they must not be in the conversation: `back` is a fork from before the
 * first of them. A token counts as whole when its text was shown and ends with a character. */
#ifndef SERVER_SHOWN_H
#define SERVER_SHOWN_H

#include "../linnet.h"

typedef struct {
    size_t *ends; /* bytes of the text up to the end of each token */
    size_t n, cap;
    size_t whole; /* tokens shown whole */
    size_t bytes; /* shown */
    char *tail;   /* the shown bytes from `tail_at` on */
    size_t tail_at, tail_cap;
    linnet_session *back; /* holds the prompt and `back_at` sampled tokens, at most `whole` */
    size_t back_at;
} shown;

void shown_free(shown *x);
/* A token was sampled, the session holds `fed` of those before it, and `text` was shown; `held`
 * bytes are held back (SIZE_MAX: a stop string cut the token). `session`: to fork where a stop
 * string may follow, or NULL where none can. */
linnet_status shown_token(shown *x, const char *text, size_t bytes, size_t held, size_t fed,
                          const linnet_session *session, linnet_error *err);
/* The text is over: the rest of it, and all tokens were shown. */
linnet_status shown_rest(shown *x, const char *text, size_t bytes, linnet_error *err);
/* The shown text behind the first `n` tokens, from a whole character on; valid until the next call.
 */
const char *shown_after(const shown *x, size_t n, size_t *bytes);

#endif
