#include "logprobs.h"

#include <math.h>
#include <string.h>

/* log sum exp(x) = max + log sum exp(x - max), in double. */
static double log_sum_exp(const float *x, size_t n) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    if (max == -INFINITY) return max;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

void logprobs(const float *logits, size_t n_rows, size_t n_ids, int32_t token, token_logprob *out,
              token_logprob *top, size_t n_top) {
    double all = log_sum_exp(logits, n_rows);
    *out = (token_logprob){token, (float)((double)logits[token] - all)};
    for (size_t k = 0; k < n_top; k++)
        top[k] = (token_logprob){-1, -INFINITY};
    if (!n_top) return;
    /* Few places, kept in order by insertion; logits until the end. */
    for (size_t i = 0; i < n_ids; i++) {
        size_t k = n_top;
        while (k > 0 && (top[k - 1].token < 0 || logits[i] > top[k - 1].logprob))
            k--;
        if (k == n_top) continue;
        memmove(top + k + 1, top + k, (n_top - 1 - k) * sizeof *top);
        top[k] = (token_logprob){(int32_t)i, logits[i]};
    }
    for (size_t k = 0; k < n_top && top[k].token >= 0; k++)
        top[k].logprob = (float)((double)top[k].logprob - all);
}
