/* Builds GGUF bytes by hand, valid or not: each call appends exactly what it says. */
#ifndef BUILD_GGUF_H
#define BUILD_GGUF_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t *p;
    size_t n, cap;
} buf;

static inline void put(buf *b, const void *data, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n) + 256;
        b->p = realloc(b->p, b->cap);
        if (!b->p) exit(99);
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}

static inline void put_u8(buf *b, uint8_t v) {
    put(b, &v, 1);
}
static inline void put_u32(buf *b, uint32_t v) {
    put(b, &v, 4);
}
static inline void put_u64(buf *b, uint64_t v) {
    put(b, &v, 8);
}
static inline void put_f32(buf *b, float v) {
    put(b, &v, 4);
}
static inline void put_str(buf *b, const char *s) {
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

/* Magic, version 3 and the counts. */
static inline void put_head(buf *b, uint64_t n_tensors, uint64_t n_kv) {
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_kv);
}

static inline void put_key(buf *b, const char *key, uint32_t type) {
    put_str(b, key);
    put_u32(b, type);
}

static inline void put_kv_u32(buf *b, const char *key, uint32_t v) {
    put_key(b, key, 4);
    put_u32(b, v);
}

static inline void put_kv_str(buf *b, const char *key, const char *v) {
    put_key(b, key, 8);
    put_str(b, v);
}

/* An array's head; its values follow. */
static inline void put_kv_array(buf *b, const char *key, uint32_t element, uint64_t count) {
    put_key(b, key, 9);
    put_u32(b, element);
    put_u64(b, count);
}

static inline void put_tensor(buf *b, const char *name, uint32_t n_dims, const uint64_t *dims,
                              uint32_t type, uint64_t offset) {
    put_str(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(b, dims[i]);
    put_u32(b, type);
    put_u64(b, offset);
}

static inline void put_tensor_1d(buf *b, const char *name, uint64_t n, uint32_t type,
                                 uint64_t offset) {
    put_tensor(b, name, 1, &n, type, offset);
}

static inline void put_tensor_2d(buf *b, const char *name, uint64_t cols, uint64_t rows,
                                 uint32_t type, uint64_t offset) {
    put_tensor(b, name, 2, (uint64_t[]){cols, rows}, type, offset);
}

static inline void put_zeros(buf *b, size_t n) {
    while (n-- > 0)
        put_u8(b, 0);
}

static inline void put_align(buf *b, size_t align) {
    while (b->n % align)
        put_u8(b, 0);
}

/* A folder for the test's files; the caller removes it. */
static inline char *make_folder(void) {
    const char *base = getenv("TMPDIR");
    static char path[512];
    snprintf(path, sizeof path, "%s/linnet-test-XXXXXX", base && *base ? base : P_tmpdir);
    return mkdtemp(path);
}

static inline void write_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || (n && fwrite(data, 1, n, f) != n) || fclose(f)) exit(99);
}

#endif
