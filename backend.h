/* What computes: the whole forward pass, the layout of packed weights, and the memory that sessions
 * keep their state in. The CPU is one (kernels_cpu/backend.c), CUDA another (kernels_cuda/, opened
 * at run time by backend.c). Both compilers see this header, and both sides share the mixers'
 * tensors (attention/weights.h), the layouts of states and KV pages, and the tests.
 *
 * Memory comes from alloc, zeroed and aligned to 64 bytes, and is only touched through the other
 * functions unless `host_memory`. All functions may be called from any thread; forward and prepare
 * by one at a time, who holds the model's team. */
#ifndef BACKEND_H
#define BACKEND_H

#include "weights/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct backend_ops backend_ops;

/* An open device; each backend puts its own things behind it. */
typedef struct backend {
    const backend_ops *ops;
    char name[160]; /* "cpu", "cuda:0 (NVIDIA H200)" */
} backend;

struct backend_ops {
    bool host_memory; /* what alloc gives is ordinary memory */

    /* Weights are packed by panels of 16 rows into one arena (model.c), whose addresses in the
     * model are those of the host's copy. */
    size_t (*panel_bytes)(dtype type, size_t cols);
    /* `rows` (1..16) consecutive rows in GGUF layout, `stride` bytes apart, to one panel. */
    void (*pack_panel)(dtype type, const void *src, size_t stride, size_t rows, size_t cols,
                       void *panel);
    /* Whether a model of `weight_bytes`, and activations for it, fits; a sentence if not. */
    linnet_status (*fits)(backend *b, const linnet_model *m, uint64_t weight_bytes,
                          linnet_error *err);
    /* Once the arena is filled. May take the arena's memory back if the host needs it no more. */
    linnet_status (*prepare)(backend *b, linnet_model *m, linnet_error *err);
    void (*forget)(backend *b, linnet_model *m); /* undoes prepare */

    linnet_status (*alloc)(backend *b, size_t bytes, void **out, linnet_error *err);
    void (*free)(backend *b, void *memory, size_t bytes); /* NULL is allowed */
    linnet_status (*zero)(backend *b, void *memory, size_t bytes, linnet_error *err);
    linnet_status (*read)(backend *b, void *host, const void *memory, size_t bytes,
                          linnet_error *err);
    linnet_status (*write)(backend *b, void *memory, const void *host, size_t bytes,
                           linnet_error *err);
    linnet_status (*copy)(backend *b, void *to, const void *from, size_t bytes, linnet_error *err);
    /* Memory of the host that forward may write to from the device: a session's logits. NULL: there
     * is none. */
    void *(*host_alloc)(backend *b, size_t bytes);
    void (*host_free)(backend *b, void *memory); /* NULL is allowed */

    /* Computes all items; on success every session holds its new tokens. */
    linnet_status (*forward)(linnet_model *m, linnet_item *items, size_t n_items,
                             linnet_progress_fn progress, void *user, linnet_error *err);
    uint64_t (*activation_bytes)(const linnet_model *m, size_t rows);
    uint64_t (*peak_bytes)(backend *b); /* the most of the device's memory held; 0: the host's */
    void (*close)(backend *b);
};

extern backend backend_cpu;

/* liblinnet_cuda.so's one function, linnet_cuda_open_1, which a program may have linked in instead:
 * opens GPU `index`. Its number changes with anything that the two sides share. */
typedef linnet_status (*backend_open_fn)(int index, backend **out, linnet_error *err);

/* Whether there is a CUDA backend to try: linked in, or a library that loads. */
bool backend_has_cuda(void);
/* "cpu", "cuda" or "cuda:N". */
linnet_status backend_open(const char *name, backend **out, linnet_error *err);

#ifdef __cplusplus
}
#endif
#endif
