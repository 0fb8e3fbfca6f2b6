/* How likely tokens were, from logits as they are. */
#ifndef SERVER_LOGPROBS_H
#define SERVER_LOGPROBS_H

#include "scheduler.h"

/* The logarithm of softmax(logits [n_rows]) at `token`; top [n_top]: the most likely ids below
 * n_ids, most likely first, the lower id among equals, padded with token -1. */
void logprobs(const float *logits, size_t n_rows, size_t n_ids, int32_t token, token_logprob *out,
              token_logprob *top, size_t n_top);

#endif
