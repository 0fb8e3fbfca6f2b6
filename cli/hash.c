#include "hash.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "talk.h"

uint64_t fnv1a(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * 1099511628211u;
    return hash;
}

void hash_text(char out[HASH_TEXT], uint64_t hash) {
    snprintf(out, HASH_TEXT, "%016llx", (unsigned long long)hash);
}

/* A step of splitmix64 for each 8 bytes (little-endian, the last ones filled with zeros), then the
 * number of bytes: files of many GB take about as long as reading them. */
bool hash_file(const char *path, char out[HASH_TEXT]) {
    enum { PIECE = 1 << 20 };
    FILE *file = fopen(path, "rb");
    unsigned char *piece = malloc(PIECE);
    uint64_t hash = 0, total = 0;
    size_t n = PIECE;
    errno = piece ? errno : ENOMEM;
    while (file && piece && n == PIECE && !interrupted()) {
        n = fread(piece, 1, PIECE, file);
        if (n < PIECE) memset(piece + n, 0, PIECE - n);
        for (size_t i = 0; i < n; i += 8) {
            uint64_t word = 0;
            for (int k = 7; k >= 0; k--)
                word = word << 8 | piece[i + (size_t)k];
            hash = random_step(hash ^ word);
        }
        total += n;
    }
    bool good = file && piece && !ferror(file) && !interrupted();
    if (!good && !interrupted()) complain("cannot read %s: %s", path, strerror(errno));
    if (file) fclose(file);
    free(piece);
    hash_text(out, random_step(hash ^ total));
    return good;
}
