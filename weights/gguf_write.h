/* Writing GGUF v3: into a new file beside PATH (PATH.tmp-PID-N), renamed when complete and removed
 * when abandoned, so that PATH is never half a model. */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H

#include "gguf.h"

typedef struct gguf_writer gguf_writer;

/* Starts a file whose tensors and metadata are all announced before any data is written. An
 * existing PATH is replaced at the end; it must be a regular file. */
linnet_status gguf_writer_open(gguf_writer **out, const char *path, linnet_error *err);
/* The caller sees to it that no key or tensor is announced twice. */
linnet_status gguf_writer_copy_kv(gguf_writer *w, const gguf_kv *kv, linnet_error *err);
linnet_status gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value, linnet_error *err);
/* dims[0] must be a multiple of the type's block, as of any tensor that gguf_open accepts. */
linnet_status gguf_writer_add_tensor(gguf_writer *w, const char *name, dtype type, uint32_t n_dims,
                                     const uint64_t dims[4], linnet_error *err);
/* After the last announcement: data of the tensors in their order, in pieces of any size that do
 * not cross the end of a tensor. */
linnet_status gguf_writer_data(gguf_writer *w, const void *data, size_t bytes, linnet_error *err);
/* fsync + rename; an error if data is missing. */
linnet_status gguf_writer_finish(gguf_writer *w, linnet_error *err);
void gguf_writer_free(gguf_writer *w); /* removes the unfinished file; NULL is allowed */

#endif
