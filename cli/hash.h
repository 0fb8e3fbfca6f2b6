/* Hashes that name things, not secrets. */
#ifndef CLI_HASH_H
#define CLI_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FNV_START 14695981039346656037u
/* FNV-1a, 64 bits: `hash` with more bytes. */
uint64_t fnv1a(uint64_t hash, const void *bytes, size_t n);

enum { HASH_TEXT = 17 }; /* 16 hexadecimal digits and the end */
void hash_text(char out[HASH_TEXT], uint64_t hash);

/* What the bytes of a model file are, by which rows of different runs are joined: the same file has
 * the same hash wherever it lies. False after a sentence. */
bool hash_file(const char *path, char out[HASH_TEXT]);

#endif
