/* What backend.cu puts together: an open GPU, and a model on it (forward.cu). */
#ifndef CUDA_FORWARD_H
#define CUDA_FORWARD_H

#include "pass.h"

#include <mutex>
#include <sys/mman.h>

typedef struct {
    backend base; /* first: it is what the library sees */
    struct device *device;
    device_info info; /* as it was opened */
    uint64_t peak;    /* bytes */
    std::mutex mutex; /* who gives work to the stream, or waits for it */
} cuda_backend;

typedef struct cuda_model cuda_model;

linnet_status cuda_fits(backend *b, const linnet_model *m, uint64_t weight_bytes,
                        linnet_error *err);
linnet_status cuda_prepare(backend *b, linnet_model *m, linnet_error *err);
void cuda_forget(backend *b, linnet_model *m);
linnet_status cuda_forward(linnet_model *m, linnet_item *items, size_t n_items,
                           linnet_progress_fn progress, void *user, linnet_error *err);
/* device_alloc, and looks how much is taken since the device was opened. */
linnet_status cuda_alloc(cuda_backend *b, size_t bytes, void **out, linnet_error *err);
uint64_t cuda_activation_bytes(const linnet_model *m, size_t rows);

#endif
