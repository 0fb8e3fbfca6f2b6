/* Text <-> token ids, exactly as the model's own tokenizer: SentencePiece through
 * libsentencepiece (sentencepiece_shim.h), byte-level BPE in bpe.c. Immutable after tokenizer_new,
 * usable from many threads. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "../weights/gguf.h"

typedef struct tokenizer tokenizer;

/* A growable list of ids; start with {0}, free with ids_free. */
typedef struct {
    int32_t *at;
    size_t n, cap;
} id_list;

linnet_status ids_push(id_list *list, int32_t id, linnet_error *err);
void ids_free(id_list *list);

/* A file without a vocabulary gives *out = NULL and LINNET_OK. */
linnet_status tokenizer_new(tokenizer **out, const gguf *g, linnet_error *err);
void tokenizer_free(tokenizer *t);

const char *tokenizer_name(const tokenizer *t); /* "bpe/smollm", "sentencepiece" */
int32_t tokenizer_n_vocab(const tokenizer *t);
int32_t tokenizer_bos(const tokenizer *t);      /* -1: none */
int32_t tokenizer_eos(const tokenizer *t);
bool tokenizer_add_bos(const tokenizer *t);
bool tokenizer_is_end(const tokenizer *t, int32_t id);     /* EOS, EOT, <|im_end|>, ... */
bool tokenizer_is_special(const tokenizer *t, int32_t id); /* control, unknown, unused */
/* The id whose text is exactly this special token, -1 if there is none. */
int32_t tokenizer_special(const tokenizer *t, const char *text);

/* Appends the ids of `text`; no BOS. With parse_special, spellings of special tokens become those
 * tokens; without, they are plain text. */
linnet_status tokenizer_encode(const tokenizer *t, const char *text, size_t n, bool parse_special,
                               id_list *out, linnet_error *err);

/* The bytes one token adds to a text ("" for specials unless `special`). `first`: nothing came
 * before (SentencePiece drops one leading space there). Points into the tokenizer. */
const char *tokenizer_piece(const tokenizer *t, int32_t id, bool first, bool special, size_t *n);

/* Streaming decoder: holds back the bytes of an unfinished UTF-8 character. */
typedef struct {
    const tokenizer *t;
    bool special;     /* special tokens become their text */
    bool started;
    size_t n_held;
    char held[4];
} decoder;

/* Whole characters that `id` completes; at most 8 + its piece's bytes go to *out, a buffer that the
 * caller sizes with tokenizer_max_piece. A byte that can never start or continue a character
 * becomes U+FFFD. */
size_t decoder_push(decoder *d, int32_t id, char *out);
size_t decoder_flush(decoder *d, char *out); /* U+FFFD for a character that never ended */
size_t tokenizer_max_piece(const tokenizer *t); /* enough for decoder_push and decoder_flush */

#endif
