/* The GGUF writer. Metadata and tensor descriptions collect in two buffers until the first data
 * arrives; data goes straight to the file. */
#include "gguf_write.h"

#include "atomic.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t *p;
    size_t n, cap;
} bytes;

struct gguf_writer {
    atomic_file file;
    bytes kv, tensors;
    uint64_t n_kv, n_tensors;
    uint32_t alignment;
    uint64_t *sizes; /* of the tensors' data */
    size_t cap_sizes;
    uint64_t data_bytes; /* announced so far, with padding */
    bool started;        /* the header is written */
    uint64_t current;    /* the tensor whose data comes next, and how much of it is there */
    uint64_t done;
};

#define TRY(call)                                                                                  \
    do {                                                                                           \
        linnet_status status_ = (call);                                                            \
        if (status_) return status_;                                                               \
    } while (0)

static linnet_status append(gguf_writer *w, bytes *b, const void *data, size_t n,
                            linnet_error *err) {
    size_t end;
    if (!add_size(b->n, n, &end) || end > SIZE_MAX / 2) goto no_memory;
    if (end > b->cap) {
        size_t cap = max_size(end, max_size(4096, 2 * b->cap));
        uint8_t *grown = realloc(b->p, cap);
        if (!grown) goto no_memory;
        b->p = grown;
        b->cap = cap;
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n = end;
    return LINNET_OK;
no_memory:
    return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the header",
                gguf_short_path(w->file.path));
}

static linnet_status append_str(gguf_writer *w, bytes *b, const char *s, size_t n,
                                linnet_error *err) {
    uint64_t length = n;
    TRY(append(w, b, &length, 8, err));
    return append(w, b, s, n, err);
}

linnet_status gguf_writer_open(gguf_writer **out, const char *path, linnet_error *err) {
    *out = NULL;
    gguf_writer *w = calloc(1, sizeof *w);
    if (!w) return fail(err, LINNET_ERR_MEMORY, "%s: no memory to write it", gguf_short_path(path));
    w->alignment = 32;
    linnet_status status = atomic_open(&w->file, path, 0666, err);
    if (status) {
        gguf_writer_free(w);
        return status;
    }
    *out = w;
    return LINNET_OK;
}

void gguf_writer_free(gguf_writer *w) {
    if (!w) return;
    atomic_free(&w->file);
    free(w->kv.p);
    free(w->tensors.p);
    free(w->sizes);
    free(w);
}

linnet_status gguf_writer_copy_kv(gguf_writer *w, const gguf_kv *kv, linnet_error *err) {
    uint32_t type = kv->type, element = kv->element;
    TRY(append_str(w, &w->kv, kv->key.p, kv->key.n, err));
    TRY(append(w, &w->kv, &type, 4, err));
    if (kv->type == GGUF_ARRAY) {
        TRY(append(w, &w->kv, &element, 4, err));
        TRY(append(w, &w->kv, &kv->count, 8, err));
    }
    TRY(append(w, &w->kv, kv->data, (size_t)kv->bytes, err));
    if (kv->type == GGUF_U32 && !strcmp(kv->key.p, "general.alignment"))
        memcpy(&w->alignment, kv->data, 4); /* a power of two: gguf_open has checked it */
    w->n_kv++;
    return LINNET_OK;
}

linnet_status gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value, linnet_error *err) {
    gguf_kv kv = {.key = {key, strlen(key)},
                  .type = GGUF_U32,
                  .element = GGUF_U32,
                  .count = 1,
                  .data = (const uint8_t *)&value,
                  .bytes = 4};
    return gguf_writer_copy_kv(w, &kv, err);
}

linnet_status gguf_writer_add_tensor(gguf_writer *w, const char *name, dtype type, uint32_t n_dims,
                                     const uint64_t dims[4], linnet_error *err) {
    const dtype_info *info = dtype_get(type);
    uint64_t elements = 1, size, next;
    bool fits = info && n_dims >= 1 && n_dims <= 4 && dims[0] % info->block == 0;
    for (uint32_t i = 0; fits && i < n_dims; i++)
        fits = !__builtin_mul_overflow(elements, dims[i], &elements);
    if (!fits || __builtin_mul_overflow(elements / info->block, info->block_bytes, &size) ||
        __builtin_add_overflow(w->data_bytes, size, &next) ||
        next > (uint64_t)INT64_MAX - w->alignment)
        return fail(err, LINNET_ERR_ARGUMENT, "%s: tensor \"%s\" cannot have this shape as %s",
                    gguf_short_path(w->file.path), name, dtype_any_name(type));
    if (w->n_tensors == w->cap_sizes) {
        size_t cap = 2 * w->cap_sizes + 64;
        uint64_t *grown = realloc(w->sizes, cap * sizeof *grown);
        if (!grown)
            return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the list of tensors",
                        gguf_short_path(w->file.path));
        w->sizes = grown;
        w->cap_sizes = cap;
    }
    uint32_t t = type;
    TRY(append_str(w, &w->tensors, name, strlen(name), err));
    TRY(append(w, &w->tensors, &n_dims, 4, err));
    TRY(append(w, &w->tensors, dims, 8 * (size_t)n_dims, err));
    TRY(append(w, &w->tensors, &t, 4, err));
    TRY(append(w, &w->tensors, &w->data_bytes, 8, err));
    w->sizes[w->n_tensors++] = size;
    w->data_bytes = round_up(next, w->alignment);
    return LINNET_OK;
}

static linnet_status put(gguf_writer *w, const void *data, size_t n, linnet_error *err) {
    return atomic_write(&w->file, data, n, err);
}

/* Zeros up to the alignment, after `n` bytes. */
static linnet_status pad(gguf_writer *w, uint64_t n, linnet_error *err) {
    static const uint8_t zeros[512];
    for (uint64_t left = round_up(n, w->alignment) - n; left > 0;) {
        size_t piece = min_size(left, sizeof zeros);
        TRY(put(w, zeros, piece, err));
        left -= piece;
    }
    return LINNET_OK;
}

static linnet_status start(gguf_writer *w, linnet_error *err) {
    if (w->started) return LINNET_OK;
    w->started = true;
    uint8_t head[24] = {'G', 'G', 'U', 'F', 3};
    memcpy(head + 8, &w->n_tensors, 8);
    memcpy(head + 16, &w->n_kv, 8);
    TRY(put(w, head, sizeof head, err));
    TRY(put(w, w->kv.p, w->kv.n, err));
    TRY(put(w, w->tensors.p, w->tensors.n, err));
    return pad(w, sizeof head + w->kv.n + w->tensors.n, err);
}

linnet_status gguf_writer_data(gguf_writer *w, const void *data, size_t n, linnet_error *err) {
    TRY(start(w, err));
    if (w->current >= w->n_tensors || n > w->sizes[w->current] - w->done)
        return fail(err, LINNET_ERR_ARGUMENT, "%s: more data than was announced",
                    gguf_short_path(w->file.path));
    TRY(put(w, data, n, err));
    w->done += n;
    if (w->done < w->sizes[w->current]) return LINNET_OK;
    w->done = 0;
    return pad(w, w->sizes[w->current++], err);
}

linnet_status gguf_writer_finish(gguf_writer *w, linnet_error *err) {
    TRY(start(w, err));
    const char *name = gguf_short_path(w->file.path);
    if (w->current < w->n_tensors)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "%s: data of %" PRIu64 " of %" PRIu64 " tensors is missing", name,
                    w->n_tensors - w->current, w->n_tensors);
    return atomic_finish(&w->file, err);
}
