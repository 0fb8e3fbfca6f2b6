/* Reading GGUF v3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
 *
 * The parser checks structure only: counts, lengths, offsets, uniqueness, that tensors lie inside
 * the file, aligned and without overlap. What the values mean is the caller's concern (model.c).
 * All strings point into the header bytes and are not NUL-terminated (keys are).
 *
 * A mapped file that another program shortens while it is open ends this process with SIGBUS when
 * a lost page is touched; no_mmap reports it as an error instead. Replacing a file by rename, as
 * gguf_write.h does, is safe. */
#ifndef GGUF_H
#define GGUF_H

#include "dtype.h"

typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_N_TYPES
} gguf_type;

typedef struct {
    const char *p;
    size_t n;
} gguf_str;

typedef struct {
    gguf_str key;      /* not empty, no control characters, NUL-terminated */
    gguf_type type;    /* GGUF_ARRAY: `element` and `count` describe it */
    gguf_type element; /* never GGUF_ARRAY: nested arrays are refused */
    uint64_t count;    /* 1 for scalars */
    const uint8_t
        *data;      /* the first value, unaligned, little-endian; a string's u64 length first */
    uint64_t bytes; /* of all values */
} gguf_kv;

typedef struct {
    char name[65]; /* NUL-terminated; longer names are refused */
    uint32_t type; /* a dtype, or one that dtype_get does not know (then bytes = 0) */
    uint32_t n_dims;
    uint64_t dims[4]; /* dims[0] is contiguous; unused dims are 1 */
    uint64_t n_elements;
    uint64_t offset; /* from the start of the file */
    uint64_t bytes;
} gguf_tensor;

typedef struct gguf gguf;

/* Sanity limits: more than any real model has, little enough to bound memory. */
enum { GGUF_MAX_KEYS = 65536, GGUF_MAX_TENSORS = 65536, GGUF_MAX_KEY_BYTES = 65535 };

/* Maps (or, with no_mmap, opens) and parses the file. The header stays in memory until close. */
linnet_status gguf_open(gguf **out, const char *path, bool no_mmap, linnet_error *err);
void gguf_close(gguf *g);
/* The same from memory that outlives *out; `path` is for messages. Fuzzers and tests use it. */
linnet_status gguf_open_memory(gguf **out, const void *data, size_t bytes, const char *path,
                               linnet_error *err);

/* The file's path, for messages. */
const char *gguf_path(const gguf *g);
/* The end of a path, short enough to leave room for the rest of a message; gguf_path is such. */
const char *gguf_short_path(const char *path);
uint32_t gguf_alignment(const gguf *g);
uint64_t gguf_file_bytes(const gguf *g);
size_t gguf_n_kv(const gguf *g);
const gguf_kv *gguf_kv_at(const gguf *g, size_t i);
size_t gguf_n_tensors(const gguf *g);
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i);

const gguf_kv *gguf_find(const gguf *g, const char *key);             /* NULL if absent */
const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name); /* NULL if absent */

/* Typed access. An absent key leaves *out alone and succeeds unless `required`; a present key of
 * another type is an error that names both. Integers accept every GGUF integer type and are
 * checked against [lo, hi]; floats accept F32 and F64 and must be finite. */
linnet_status gguf_get_int(const gguf *g, const char *key, bool required, int64_t lo, int64_t hi,
                           int64_t *out, linnet_error *err);
linnet_status gguf_get_float(const gguf *g, const char *key, bool required, double *out,
                             linnet_error *err);
linnet_status gguf_get_bool(const gguf *g, const char *key, bool required, bool *out,
                            linnet_error *err);
linnet_status gguf_get_str(const gguf *g, const char *key, bool required, gguf_str *out,
                           linnet_error *err);
/* NULL in *out if absent; an error if it is not an array of `element`. */
linnet_status gguf_get_array(const gguf *g, const char *key, gguf_type element, bool required,
                             const gguf_kv **out, linnet_error *err);
/* The next string of a string array (or scalar), walking from *cursor (start with 0), which it
 * advances; {NULL, 0} past the last. */
gguf_str gguf_next_str(const gguf_kv *array, size_t *cursor);
/* Value i < count of an integer or float array (or scalar, i = 0) of any numeric type or bool.
 * Integers beyond int64 and floats are cut to its range; 0 for strings. */
int64_t gguf_int_at(const gguf_kv *kv, uint64_t i);
double gguf_float_at(const gguf_kv *kv, uint64_t i);
/* The value as one line of valid UTF-8 for people ("[49152 x string: <|endoftext|>, ...]"), cut to
 * `size`; control characters and invalid bytes appear as \\n, \\xNN. */
void gguf_kv_text(const gguf_kv *kv, char *out, size_t size);

/* `bytes` bytes at `offset` inside tensor t: a pointer into the map, or `scratch` after reading
 * into it. Thread-safe. `scratch` must hold `bytes` when the file is not mapped. */
linnet_status gguf_read(const gguf *g, const gguf_tensor *t, uint64_t offset, size_t bytes,
                        void *scratch, const void **out, linnet_error *err);
bool gguf_is_mapped(const gguf *g);
/* Tells the kernel that mapped pages inside these bytes of tensor t are no longer needed (no-op
 * where the file is not mapped). Reading them again works: they come back from the file. */
void gguf_release(const gguf *g, const gguf_tensor *t, uint64_t offset, uint64_t bytes);

#endif
