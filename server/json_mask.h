/* JSON mode: which tokens may come next so that the text is one JSON object (RFC 8259).
 *
 * The grammar is a pushdown automaton over bytes; a token may come if all its bytes are accepted
 * one after the other, so tokens that end inside a word, an escape or a UTF-8 character need no
 * rule of their own. Narrower than the RFC where a model could go on without end, or a reader could
 * stumble:
 *
 *   - at the top stands an object, as OpenAI's json_object promises; nothing after it;
 *   - blanks: at most 32 in a row, two line ends among them;
 *   - JSON_DEPTH levels of nesting;
 *   - numbers: 18 digits before the point, 32 after it, exponents up to 199 (a double holds them);
 *   - no \u0000; surrogates only as pairs. */
#ifndef SERVER_JSON_MASK_H
#define SERVER_JSON_MASK_H

#include "../linnet.h"

enum { JSON_DEPTH = 64 };

/* Where in the grammar a text is. Plain data: copies are snapshots. */
typedef struct {
    uint64_t stack; /* bit d: what is open at depth d is an object */
    uint8_t depth, at, count, lines;
    uint8_t key;     /* the string is a name, not a value */
    uint8_t zero[3]; /* padding, always 0, so that states compare as bytes */
} json_state;

void json_begin(json_state *s);
/* Takes the bytes; false, and the state is of no use, when they are not the text's continuation. */
bool json_accept(json_state *s, const char *bytes, size_t n);
bool json_complete(const json_state *s);

typedef struct json_mask json_mask;
/* The vocabulary of a model, arranged. It points to nothing of the model's. */
linnet_status json_mask_new(json_mask **out, const linnet_model *model, linnet_error *err);
void json_mask_free(json_mask *m);
/* For linnet_sampling.allowed: the tokens that may come; those that end a text only, and then they
 * alone, when the object is complete. *any: there is one. One thread at a time; valid until the
 * next call. */
const uint32_t *json_mask_allowed(json_mask *m, const json_state *s, bool *any);
/* Takes a token that was allowed. */
bool json_mask_accept(const json_mask *m, json_state *s, int32_t token);

#endif
