/* XXH64, a fast 64-bit hash, after its specification (Collet,
 * github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). Not for secrets: it finds damage and
 * tells files apart. */
#ifndef HASH_H
#define HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t lanes[4];
    uint64_t total;
    uint8_t held[32]; /* the last total % 32 bytes */
} hash64;

void hash64_begin(hash64 *h); /* seed 0 */
void hash64_add(hash64 *h, const void *data, size_t n);
uint64_t hash64_end(const hash64 *h); /* of all bytes so far; more may be added */
uint64_t hash64_of(const void *data, size_t n);

#endif
