/* What the rooms' two tokenizers share: the vocabulary as bytes, and UTF-8. */
#ifndef VOCAB_H
#define VOCAB_H

#include "tokenizer.h"

#include <string.h>

/* tokenizer.ggml.token_type */
enum {
    TOKEN_UNDEFINED = 0, /* treated as normal */
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
};

enum { VOCAB_MAX_TOKENS = 1 << 24 };

/* Token i stands for the bytes at bytes[at[i]] up to bytes[at[i + 1]]; special ones (control,
 * unknown, unused) for their spelling. */
typedef struct {
    int32_t n;
    uint8_t *type; /* [n] */
    uint32_t *at;  /* [n + 1] */
    char *bytes;
    size_t longest;
} vocab;

static inline const char *vocab_piece(const vocab *v, int32_t id, size_t *n) {
    *n = v->at[id + 1] - v->at[id];
    return v->bytes + v->at[id];
}

/* Looks at the first character of p[0..n), n > 0. Returns 1 when it is a whole UTF-8 character, 0
 * when it never can become one, -1 when the text ends inside it; *length is the length of the
 * character or of its maximal valid part (at least 1), as Unicode 15, section 3.9, table 3-7. */
static inline int utf8_step(const char *text, size_t n, size_t *length) {
    const unsigned char *p = (const unsigned char *)text;
    unsigned low = 0x80, high = 0xBF, want;
    *length = 1;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4) return 0;
    want = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (p[0] == 0xE0) low = 0xA0;
    if (p[0] == 0xED) high = 0x9F;
    if (p[0] == 0xF0) low = 0x90;
    if (p[0] == 0xF4) high = 0x8F;
    for (; *length < want; ++*length) {
        if (*length == n) return -1;
        if (p[*length] < low || p[*length] > high) return 0;
        low = 0x80;
        high = 0xBF;
    }
    return 1;
}

/* The code point of a whole UTF-8 character of this length. */
static inline uint32_t utf8_value(const char *text, size_t length) {
    const unsigned char *p = (const unsigned char *)text;
    if (length == 1) return p[0];
    uint32_t c = p[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++)
        c = c << 6 | (p[i] & 0x3F);
    return c;
}

#endif
