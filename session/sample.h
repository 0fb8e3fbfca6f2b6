/* Picking the next token from a row of logits: a pure function of (settings, logits, history).
 *
 * The steps, in this order, which is the order of transformers' generate()
 * (generation/utils.py, _get_logits_processor):
 *
 *   1. logit bias       added to the logits of the tokens named; repeated entries add up; tokens
 *                       that the mask `allowed` leaves out get -infinity the same way
 *   2. repetition penalty  Keskar et al. 2019 (CTRL), section 4.1, with the sign rule of
 *                       transformers: l > 0 ? l / penalty : l * penalty, once for every distinct
 *                       token among the last `repeat_last` of the history
 *   3. temperature      0: the largest logit, lowest id among equals, and the end; otherwise
 *                       p = softmax(l / temperature)
 *   4. top-k            Fan et al. 2018: the k largest; among equals the lower id is the larger
 *                       (so top_k = 1 is greedy; transformers keeps every token equal to the k-th)
 *   5. top-p            Holtzman et al. 2020 (nucleus): the smallest set of largest tokens whose
 *                       mass, after top-k, is >= top_p: the token that crosses it is kept
 *   6. min-p            Nguyen et al. 2024: tokens with p >= min_p * max p
 *   7. the draw         inverse of the cumulative distribution of what is left, in order of ids,
 *                       at u = sample_uniform(seed, position)
 *
 * position = number of tokens in the history, so a token depends on nothing but its arguments:
 * saving, forking and batching cannot change it. Weights and sums are double; the exponential is
 * our own, because libm's differs between machines in the last bit. */
#ifndef SAMPLE_H
#define SAMPLE_H

#include "../common.h"

enum { SAMPLE_MAX_TEMPERATURE = 10000 };

/* LINNET_ERR_ARGUMENT with a sentence if a setting is out of range; n_ids = ids that exist. */
linnet_status sample_check(const linnet_sampling *s, size_t n_ids, linnet_error *err);

/* Picks a token from logits[n_rows]. Rows from n_vocab on have no token: they are neither picked
 * nor looked at; n_vocab = 0 (no vocabulary) allows all rows. history[n_history] are the tokens
 * before. LINNET_ERR_NUMERIC names the row of a NaN or +infinity, or says that no token is left
 * because every logit is -infinity. */
linnet_status sample_token(const linnet_sampling *s, const float *logits, size_t n_rows,
                           size_t n_vocab, const int32_t *history, size_t n_history, int32_t *token,
                           linnet_error *err);

/* The distribution that sample_token draws from: p[n_rows], 0 for every token that is out. With
 * temperature 0 the greedy token has probability 1. */
linnet_status sample_distribution(const linnet_sampling *s, const float *logits, size_t n_rows,
                                  size_t n_vocab, const int32_t *history, size_t n_history,
                                  double *p, linnet_error *err);

/* Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". */
void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* A double in [0, 1) with 53 random bits: Philox with the seed as key and the position as counter
 * (low words first); the upper 53 bits of out[0]:out[1]. */
double sample_uniform(uint64_t seed, uint64_t position);

#endif
