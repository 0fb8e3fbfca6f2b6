/* What a layer uses to move information between positions, as data: one mixer_ops per kind, one
 * line in the table of mixers.c, one file here. The forward pass knows no mixer by name. */
#ifndef MIXER_H
#define MIXER_H

#include "../common.h"

typedef struct pass pass;     /* kernels_cpu/pass.h: one piece of the forward pass */
typedef struct loader loader; /* model.h */

typedef struct {
    const char *name;
    /* Checks or reads the layer's tensors (see loader) into *weights, which the first call
     * allocates and the model frees with free(). */
    linnet_status (*load)(loader *l, int layer, void **weights, linnet_error *err);
    /* Whether the layer keeps keys and values in the session's KV pages. */
    bool uses_kv;
    /* Runs on every thread of the team: reads p->h (normalized input, one row per token), adds its
     * output to the residual stream p->x. Begins and ends in step with the team. */
    void (*forward)(pass *p, int layer, int thread);
} mixer_ops;

extern const mixer_ops *const mixers[]; /* ends with NULL */
extern const mixer_ops mixer_softmax;

#endif
