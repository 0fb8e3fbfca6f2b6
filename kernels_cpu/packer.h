/* Packs all matrices of a model at once, shared out over the team, each tensor's file pages
 * released as soon as it is done: the weights are never held twice. */
#ifndef PACKER_H
#define PACKER_H

#include "../backend.h"
#include "../weights/gguf.h"
#include "kernels.h"
#include "team.h"

typedef struct packer packer;

/* For a backend's panels. NULL: no memory. */
packer *packer_new(const gguf *g, const backend_ops *ops, team *t);
/* Rows [row0, row0 + m->rows) of t are to be packed to `out`, as m describes. */
linnet_status packer_add(packer *p, const gguf_tensor *t, const matrix *m, uint8_t *out,
                         size_t row0, linnet_error *err);
/* Packs what was added; `progress` is called on this thread and may cancel. */
linnet_status packer_run(packer *p, linnet_progress_fn progress, void *user, linnet_error *err);
void packer_free(packer *p);

#endif
