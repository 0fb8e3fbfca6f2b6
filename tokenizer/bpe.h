/* Byte-level BPE (tokenizer.ggml.model = gpt2): pre-tokenizers and merges.
 *
 * A text is cut by the regular expressions of its pre-tokenizer, every pass inside the pieces of
 * the one before. A piece starts as its bytes' tokens (a byte without a token vanishes, as in
 * HF tokenizers); then the adjacent pair with the lowest merge rank, leftmost first, is joined
 * until none is left. */
#ifndef BPE_H
#define BPE_H

#include "vocab.h"

typedef struct bpe bpe;

/* One of the pre-tokenizers, static data; NULL for a name that is not supported. */
typedef struct pre_tokenizer pre_tokenizer;
const pre_tokenizer *pre_tokenizer_find(const char *name, size_t n);
const char *pre_tokenizer_list(void); /* "default gpt-2 ...", for messages */
/* Does a file of this kind want BOS when it does not say? (llama.cpp's rule) */
bool pre_tokenizer_adds_bos(const pre_tokenizer *p);

/* The byte alphabet of GPT-2: writes what a token's spelling stands for to `out` (room for n bytes)
 * and returns its length; a spelling with a character outside the alphabet gives `false` in
 * *in_alphabet and stands for itself. */
size_t bpe_unspell(const char *spelling, size_t n, char *out, bool *in_alphabet);

/* `v` must outlive *out. `merges` is the string array "left right" in order of rank. Merges that
 * need a token which is not in the vocabulary, or is special, are ignored; of equal merges the
 * first counts, of equal tokens the last. `path` is for messages. */
linnet_status bpe_new(bpe **out, const vocab *v, const uint8_t *in_alphabet,
                      const pre_tokenizer *pre, const gguf_kv *merges, const char *path,
                      linnet_error *err);
void bpe_free(bpe *b);

/* Scratch memory of one thread's encoding, started with {0}. */
typedef struct {
    void *match, *context; /* PCRE2's */
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t cap;
} bpe_work;

void bpe_work_free(bpe_work *w);

/* Appends the ids of `text`, which must be valid UTF-8 and shorter than 2^31 bytes. */
linnet_status bpe_encode(const bpe *b, bpe_work *w, const char *text, size_t n, id_list *out,
                         linnet_error *err);

#endif
