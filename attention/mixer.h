/* What a layer uses to move information between positions, as data: one mixer_ops per kind, one
 * line in the table of mixers.c, one file here. The forward pass knows no mixer by name. */
#ifndef MIXER_H
#define MIXER_H

#include "../common.h"

typedef struct pass pass;     /* kernels_cpu/pass.h: one piece of the forward pass */
typedef struct loader loader; /* model.h */

typedef enum {
    MIXER_SOFTMAX,
    MIXER_LOLCATS,
    MIXER_HEDGEHOG,
    MIXER_SHORT_CONV,
    MIXER_BASED_TAYLOR,
    MIXER_DELTA_NET,
    MIXER_GATED_DELTA_NET,
    MIXER_KINDS
} mixer_kind;

typedef struct {
    mixer_kind kind; /* what other backends go by */
    const char *name;
    /* Checks or reads the layer's tensors (see loader) into *weights, which the first call
     * allocates and the model frees with free(). */
    linnet_status (*load)(loader *l, int layer, void **weights, linnet_error *err);
    /* Whether the layer keeps keys and values in the session's KV pages. */
    bool uses_kv;
    /* Bytes of fixed-size state per session (linear states, taps, normalisers), by the loaded
     * weights' shapes; all zero means that nothing was seen. NULL: none. */
    size_t (*state_bytes)(const linnet_model *m, const void *weights);
    /* Whether positions inside a loaded state are such that forward can follow them, where KV pages
     * are there from position `first` on. NULL: the state holds none. */
    bool (*state_fits)(const linnet_model *m, int layer, const void *state, size_t first,
                       size_t n_tokens);
    /* Floats of scratch per row of a piece, in p->work. NULL: none. */
    size_t (*work_floats)(const linnet_model *m, const void *weights);
    /* Runs on every thread of the team, a series of phases (pass.h): takes the residual stream
     * p->x, one row per token, through pass_mix_in, and adds its output to it by pass_mix_out.
     * Tokens of a session are consecutive rows (p->runs), its state is row_state(). */
    void (*forward)(pass *p, int layer, int thread);
} mixer_ops;

extern const mixer_ops *const mixers[]; /* ends with NULL */
extern const mixer_ops mixer_softmax, mixer_delta_net, mixer_gated_delta_net;
extern const mixer_ops mixer_lolcats, mixer_hedgehog, mixer_short_conv, mixer_based_taylor;

#endif
