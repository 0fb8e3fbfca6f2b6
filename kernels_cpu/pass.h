/* One piece of the CPU's forward pass, and the steps that mixers build from. Every function that
 * takes a thread is called by all threads of the team with the same arguments and consists of
 * phases (team.h).
 *
 * Phases of a softmax layer: input and products of q, k, v (2), placing (1), attention (1, or 2
 * when the sequence is split), input and product of o (2), of gate and up (2), of down (2): 10, so
 * 300 a token for 30 layers. A phase costs 43 ns between two threads that are awake (team_run of
 * empty ones, best of 2,000; Zen 5), so all of them are 1 % of the 1.6 ms that a token of a 135M
 * model in q4_0 takes. Every one is there because the next reads what all threads wrote. Norms and
 * quantization are phases of their own rather than done by every thread for itself: at a width of
 * 576 that would save 1.5 % of a token, and cost it at 2048. */
enum { PHASES_PER_LAYER = 16 /* the most a layer may use */ };

#ifndef PASS_H
#define PASS_H

#include "../model.h"

enum {
    ATTEND_SEGMENT = 16 * PAGE, /* positions whose partial attention is one sum */
    ATTEND_ROWS = 8,            /* rows of a session that share a pass over the keys */
    ATTEND_TILE = ATTEND_GROUP  /* most queries of a tile: rows x heads of a group */
};

struct pass {
    linnet_model *m;
    struct team *team;
    const kernels *k;
    const row *rows;
    size_t n;
    float *x; /* [n, n_embd] residual stream */
    float *q, *key,
        *value;       /* of the layer: [n, n_heads*head_dim], [n, n_kv_heads*head_dim] twice */
    float *mixed;     /* [n, n_heads*head_dim] what the mixer hands to its output matrix */
    float *gate, *up; /* [n, n_ff] */
    float *branch;    /* [n, n_embd] a layer's output before its post-norm */
    float *work;      /* [n, work_floats] the mixer's own */
    float *norm_row;  /* [team size, n_embd] one normalized row per thread */
    float *cos, *sin; /* [n, n_angles] */
    float *back; /* [n, 4, n_angles], where config.trained_length is given: cos and sin by which
                  * feature maps turn the row's query back, then the key that enters the linear
                  * part with the row */
    float *attend_out; /* partial results of attention: per thread, or per segment if split */
    attend_sum *attend_sums;
    const size_t *runs; /* [n_runs + 1] first rows of each session's tokens */
    size_t n_runs;
    const size_t *blocks; /* [n_blocks + 1] first rows of blocks that share a session */
    size_t n_blocks;
    bool split_attention; /* so few rows that the sequence is split over the team */
    activations input;    /* of the matrix product at hand; both precisions have buffers */
    const size_t *wanted; /* rows of x whose logits are computed, [n_wanted] */
    size_t n_wanted;
    float *logits; /* [n_wanted, n_rows] */
    /* Where the residual stream first had a number that is not finite, or ALL_FINITE: place_error
     * in session/pieces.h reads it. */
    atomic_uint_fast64_t not_finite;
};

/* How a mixer begins: y = W x (+ y) for each product, x [n, n_embd] the layer's input, normalized
 * where the layer says so; panels are shared out over the team. */
void pass_mix_in(pass *p, int thread, int layer, const product *products, size_t n_products);
/* How it ends: x += W src, or x += norm(W src) where the layer normalizes its outputs. */
void pass_mix_out(pass *p, int thread, int layer, const float *src, size_t cols, const matrix *w);

/* Rotates one head [head_dim] of row r by its position, as the model pairs dimensions, if at all.
 */
void pass_rotate(const pass *p, int layer, size_t r, float *head);

/* The layer's fixed-size state of the session that row r belongs to. */
static inline void *row_state(const pass *p, size_t r, int layer) {
    return p->rows[r].session->state + p->m->layers[layer].state_at;
}

#endif
