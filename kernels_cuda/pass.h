/* One piece of the forward pass on a GPU: rows of activations, and the steps that mixers build from
 * (kernels_cpu/pass.h has the CPU's). Host functions give work to the stream and return at once; an
 * error shows when the piece is finished. Pointers of activations are the GPU's; those in the
 * model (matrices, norms, what attention/weights.h lists) are places in the arena, which on_gpu
 * translates.
 *
 * Few rows (decoding) and many (prefill) may take different kernels, which may sum in different
 * orders; but no row's result depends on the other rows of its piece, except through the number of
 * rows. */
#ifndef CUDA_PASS_H
#define CUDA_PASS_H

#include "../attention/weights.h"
#include "../model.h"
#include "device.h"

enum {
    CUDA_PIECE = 1024, /* most rows of a piece */
    CUDA_FEW = 8       /* up to so many rows are multiplied as in decoding: no tensor cores */
};

/* A token of a piece, as kernels see it. Rows of one session are consecutive, in order. */
typedef struct {
    uint8_t *state;                   /* of its session, all layers; NULL: the model has none */
    uint8_t *const *pages[KV_TABLES]; /* page i of its KV pages; NULL: dropped */
    float *logits; /* pinned memory of the host that gets its logits; NULL: nobody wants them */
    int32_t token;
    int position;
    int run;  /* whose rows it is among */
    int mode; /* linnet_window_mode: the session's, */
    int rule; /* and that of this forward */
    int whole;
} cuda_row;

typedef struct {
    int first, last; /* rows [first, last) are of one session */
} cuda_run;

typedef struct {
    linnet_model *m;
    device_stream stream;
    int sm_count;
    bool exact;           /* float32 everywhere: no tensor cores but 3xTF32 or none */
    ptrdiff_t weights;    /* from the arena on the host to its copy on the GPU */
    size_t n;             /* rows */
    const row *host_rows; /* [n] */
    const cuda_row *rows; /* [n] on the GPU, as all that follows */
    const cuda_run *runs; /* [n_runs] */
    size_t n_runs;
    /* Upper bounds on what the rows of a piece need, fit for a graph that is recorded once and
     * launched again with other rows: */
    size_t longest_run; /* rows of a session */
    size_t depth;       /* positions: every row's position is below it */
    float *x;           /* [n, n_embd] residual stream */
    float *h;           /* [n, n_embd] normalized */
    float *q, *key,
        *value;       /* of the layer: [n, n_heads*head_dim], [n, n_kv_heads*head_dim] twice */
    float *mixed;     /* [n, n_heads*head_dim] what the mixer hands to its output matrix */
    float *gate, *up; /* [n, n_ff] */
    float *branch;    /* [n, n_embd] a layer's output before its post-norm */
    float *work;      /* [n, work_floats] the mixer's own */
    float *cos, *sin; /* [n, n_angles] */
    const float *rope_freq; /* [n_angles] */
    float *partial;         /* [partial_floats] results of parts of one sum, to be merged */
    size_t partial_floats;
    void *packed; /* [packed_bytes] activations or weights as tensor cores take them */
    size_t packed_bytes;
    unsigned *counters; /* [CUDA_COUNTERS] zero between kernels: the last block to finish */
    float *logits;      /* [n_wanted, n_rows] */
    const int *wanted;  /* [n_wanted] rows whose logits are computed */
    size_t n_wanted;
    unsigned long long
        *not_finite; /* where numbers stopped being finite first, as the CPU's pass */
} cuda_pass;

enum { CUDA_COUNTERS = 1 << 16 };

template <class T> static inline T *on_gpu(const cuda_pass *p, T *in_arena) {
    return in_arena ? (T *)((uintptr_t)in_arena + (uintptr_t)p->weights) : NULL;
}

/* ---- Steps (products.cu) -------------------------------------------------------------------- */

/* y = W src (+ y) for each product, src [n, cols]. */
void cuda_products(const cuda_pass *p, const float *src, size_t cols, const product *products,
                   size_t n_products);
/* How a mixer begins: the same with src = the layer's input, normalized where the layer says so. */
void cuda_mix_in(const cuda_pass *p, int layer, const product *products, size_t n_products);
/* How it ends: x += W src, or x += norm(W src) where the layer normalizes its outputs. */
void cuda_mix_out(const cuda_pass *p, int layer, const float *src, size_t cols, const matrix *w);
void cuda_feed_forward(const cuda_pass *p, int layer);
/* x of the tokens from the packed embedding (tied models), cos and sin of the positions. */
void cuda_embed(const cuda_pass *p);
void cuda_rope_table(const cuda_pass *p);
/* Logits of the rows p->wanted. */
void cuda_output(const cuda_pass *p);
/* Panels of 16 rows, as backend_ops wants them. */
size_t cuda_panel_bytes(dtype type, size_t cols);
void cuda_pack_panel(dtype type, const void *src, size_t stride, size_t rows, size_t cols,
                     void *panel);
/* Bytes that cuda_pass.packed must have for pieces of n rows. */
size_t cuda_packed_bytes(const linnet_model *m, size_t n);

/* ---- Queries, keys and values (place.cu) ------------------------------------------------------
 */

/* Takes queries to p->q (with gated attention from p->work [n, heads, 2, head_dim]), normalizes
 * queries and keys where `norms` has weights (NULL: none), rotates both in place by their
 * positions, and keeps keys and values in the session's pages where the layer has a kv_slot. */
void cuda_place(const cuda_pass *p, int layer, const softmax_weights *norms);

/* ---- Mixers: one file each, by mixer_kind -----------------------------------------------------
 */

typedef struct {
    mixer_kind kind;
    /* Takes p->x through mix_in and adds the mixer's output by mix_out. */
    void (*forward)(const cuda_pass *p, int layer);
    /* Floats of p->partial that it needs for a piece of n rows at `depth`; NULL: none. */
    size_t (*partial_floats)(const linnet_model *m, int layer, size_t n, size_t depth,
                             int sm_count);
    /* Floats of p->work per row where it wants more than the CPU's mixer; NULL: the same. */
    size_t (*work_floats)(const linnet_model *m, int layer);
} cuda_mixer;

extern const cuda_mixer cuda_softmax, cuda_lolcats, cuda_hedgehog, cuda_short_conv,
    cuda_based_taylor, cuda_delta_net, cuda_gated_delta_net;

#endif
