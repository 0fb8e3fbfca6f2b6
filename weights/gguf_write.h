/* Writing GGUF v3: into PATH.tmp, renamed when complete, removed when abandoned. */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H

#include "gguf.h"

typedef struct gguf_writer gguf_writer;

/* Starts a file whose tensors and metadata are all announced before any data is written. */
linnet_status gguf_writer_open(gguf_writer **out, const char *path, linnet_error *err);
linnet_status gguf_writer_copy_kv(gguf_writer *w, const gguf_kv *kv, linnet_error *err);
linnet_status gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value, linnet_error *err);
linnet_status gguf_writer_add_tensor(gguf_writer *w, const char *name, dtype type, uint32_t n_dims,
                                     const uint64_t dims[4], linnet_error *err);
/* After the last announcement: data of the tensors in their order, in pieces of any size. */
linnet_status gguf_writer_data(gguf_writer *w, const void *data, size_t bytes, linnet_error *err);
/* fsync + rename; an error if data is missing. */
linnet_status gguf_writer_finish(gguf_writer *w, linnet_error *err);
void gguf_writer_free(gguf_writer *w); /* removes the unfinished file; NULL is allowed */

#endif
