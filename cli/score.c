#include "score.h"

#include <math.h>
#include <string.h>

double log_likelihood(const float *logits, size_t n, int32_t id) {
    float largest = logits[best_id(logits, n)];
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - (double)largest);
    return (double)logits[id] - (double)largest - log(sum);
}

int32_t best_id(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* ---- text --------------------------------------------------------------------------------- */

/* The byte, small if it is part of a capital letter; `before` is the byte in front of it. U+00C0 to
 * U+00DE are c3 80 to c3 9e, and their small letters 0x20 further; U+00D7 is a multiplication sign.
 */
static unsigned char fold(unsigned char before, unsigned char c) {
    if (c >= 'A' && c <= 'Z') return c | 0x20;
    if (before == 0xc3 && c >= 0x80 && c <= 0x9e && c != 0x97) return c | 0x20;
    return c;
}

static bool same_folded(const unsigned char *a, const unsigned char *b, size_t n) {
    unsigned char x = 0, y = 0;
    for (size_t i = 0; i < n; x = a[i], y = b[i], i++)
        if (fold(x, a[i]) != fold(y, b[i])) return false;
    return true;
}

const char *find_folded(const char *text, size_t n, const char *what, size_t n_what) {
    for (size_t i = 0; i + n_what <= n; i++)
        if (same_folded((const unsigned char *)text + i, (const unsigned char *)what, n_what))
            return text + i;
    return NULL;
}

size_t count_folded(const char *text, size_t n, const char *what, size_t n_what, size_t most) {
    size_t count = 0;
    const char *end = text + n;
    while (count < most && (text = find_folded(text, (size_t)(end - text), what, n_what))) {
        count++;
        if (text++ == end) break;
    }
    return count;
}

bool first_line_is(const char *text, size_t n, const char *what, size_t n_what) {
    const char *newline = n ? memchr(text, '\n', n) : NULL;
    if (newline) n = (size_t)(newline - text);
    while (n && (text[0] == ' ' || text[0] == '\t'))
        text++, n--;
    while (n && (text[n - 1] == ' ' || text[n - 1] == '\t' || text[n - 1] == '\r'))
        n--;
    return n == n_what && !memcmp(text, what, n);
}

/* ---- intervals ---------------------------------------------------------------------------- */

void wilson(size_t hits, size_t n, double *low, double *high) {
    static const double z = 1.959963984540054; /* of the normal distribution, 0.975 */
    *low = 0;
    *high = 1;
    if (!n) return;
    double m = (double)n, p = (double)hits / m;
    double middle = p + z * z / (2 * m);
    double half = z * sqrt(p * (1 - p) / m + z * z / (4 * m * m));
    if (hits) *low = (middle - half) / (1 + z * z / m);
    if (hits < n) *high = (middle + half) / (1 + z * z / m);
}
