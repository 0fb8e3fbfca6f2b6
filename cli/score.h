/* How an answer is judged, and how sure one may be of the share of good ones. */
#ifndef CLI_SCORE_H
#define CLI_SCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ln of the probability of `id`: a log-softmax in float64 over all rows. */
double log_likelihood(const float *logits, size_t n, int32_t id);
/* The id with the largest logit, the first one at a tie. */
int32_t best_id(const float *logits, size_t n);

/* Where `what` first occurs in `text`, NULL if it does not. ASCII and Latin-1 letters (in UTF-8)
 * are equal to their capitals; every other byte is itself. Nothing occurs everywhere, at the start.
 */
const char *find_folded(const char *text, size_t n, const char *what, size_t n_what);
/* How often, overlaps counted, at most `most`. */
size_t count_folded(const char *text, size_t n, const char *what, size_t n_what, size_t most);
/* The first line of `text`, spaces around it left out, is `what`. */
bool first_line_is(const char *text, size_t n, const char *what, size_t n_what);

/* The 95 % interval of a share, hits of n (Wilson, JASA 22, 1927); 0 to 1 where n is 0. */
void wilson(size_t hits, size_t n, double *low, double *high);

#endif
