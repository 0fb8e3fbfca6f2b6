/* linnet's tools: what is in a model file, what memory it takes, quantization. linnet.h is the
 * manual; its rules of ownership, errors and threads hold here too. */
#ifndef LINNET_TOOLS_H
#define LINNET_TOOLS_H
#include "linnet.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

uint64_t linnet_model_gpu_bytes(const linnet_model *m); /* the most of a GPU's held so far, or 0 */
/* Bytes of activations that a prefill piece of the largest size needs. */
uint64_t linnet_model_activation_bytes(const linnet_model *m);
/* Tensor i < n_tensors: returns its name; dims[4] are in GGUF order (dims[0] contiguous). */
const char *linnet_model_tensor(const linnet_model *m, size_t i, const char **dtype,
                                uint64_t dims[4], uint64_t *bytes);
/* Metadata entry i < n_metadata: its key, and its value as text cut to `size` bytes. */
const char *linnet_model_metadata(const linnet_model *m, size_t i, char *value, size_t size);
const char *linnet_chat_template_name(size_t i); /* known names; NULL past the last */
/* Reads every weight from the file; an error names the first tensor with a NaN or infinity. */
linnet_status linnet_model_check(const linnet_model *m, linnet_error *err);

typedef struct {
    bool pure; /* also quantize a tied embedding to the type */
    void (*note)(void *user, const char *tensor, const char *dtype, const char *why);
    linnet_progress_fn progress;
    void *user; /* for both callbacks */
} linnet_quantize_options;
/* Rewrites a GGUF with its matrices as `type` ("f32", ..., "q6_K"); keeps metadata. Atomic. */
linnet_status linnet_quantize(const char *in_path, const char *out_path, const char *type,
                              const linnet_quantize_options *options, linnet_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
