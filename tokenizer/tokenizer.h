/* Text <-> token ids, exactly as the model's own tokenizer: SentencePiece through
 * libsentencepiece (sentencepiece_shim.h), byte-level BPE in bpe.c. Immutable after tokenizer_new,
 * usable from many threads. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "../weights/gguf.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tokenizer tokenizer;

/* A growable list of ids; start with {0}, free with ids_free. */
typedef struct {
    int32_t *at;
    size_t n, cap;
} id_list;

linnet_status ids_push(id_list *list, int32_t id, linnet_error *err);
void ids_free(id_list *list);

/* A file without a vocabulary gives *out = NULL and LINNET_OK. `g` is needed during this call only.
 * Tokenizers other than `llama` (SentencePiece) and `gpt2` (byte-level BPE) and pre-tokenizers not
 * built in are refused by name. Of tokens spelled alike the last is the one that texts get. */
linnet_status tokenizer_new(tokenizer **out, const gguf *g, linnet_error *err);
void tokenizer_free(tokenizer *t); /* NULL is allowed */

const char *tokenizer_name(const tokenizer *t); /* "bpe/smollm", "sentencepiece" */
int32_t tokenizer_n_vocab(const tokenizer *t);
/* The same without the unused tokens at the end, with which exporters fill the vocabulary up to the
 * rows of the output matrix: none of those is ever sampled. */
int32_t tokenizer_n_used(const tokenizer *t);
int32_t tokenizer_bos(const tokenizer *t); /* -1: none */
int32_t tokenizer_eos(const tokenizer *t);
bool tokenizer_add_bos(const tokenizer *t);
bool tokenizer_add_eos(const tokenizer *t);
/* EOS, EOT, EOM as the file names them, and control tokens spelled like one (<|im_end|>, ...). */
bool tokenizer_is_end(const tokenizer *t, int32_t id);
bool tokenizer_is_special(const tokenizer *t, int32_t id); /* control, unknown, unused */
/* The id whose text is exactly this control, unknown or user-defined token, -1 if there is none. */
int32_t tokenizer_special(const tokenizer *t, const char *text);
/* The first of those tokens in text[0..n), the longest where several start: its place in *at, its
 * length in *length; -1 if there is none. */
int32_t tokenizer_next_special(const tokenizer *t, const char *text, size_t n, size_t *at,
                               size_t *length);

/* Appends the ids of `text`; no BOS, no EOS; on an error `out` is as before.
 *
 * With parse_special, spellings of control and unknown tokens become those tokens (leftmost, then
 * longest) and each text between them is encoded alone, nothing trimmed, in SentencePiece with its
 * own dummy prefix (as the `legacy` LlamaTokenizer of transformers and llama.cpp do). Without,
 * they are plain text: no input gives a control token. User-defined tokens are always found.
 * A byte that is not UTF-8: SentencePiece sees one U+FFFD per bad byte, BPE one per maximal part of
 * a character, as Python's errors="replace". Bytes that BPE has no token for vanish. */
linnet_status tokenizer_encode(const tokenizer *t, const char *text, size_t n, bool parse_special,
                               id_list *out, linnet_error *err);
/* The same without special tokens; `continues`: SentencePiece adds no dummy prefix. */
linnet_status tokenizer_encode_plain(const tokenizer *t, const char *text, size_t n, bool continues,
                                     id_list *out, linnet_error *err);

/* The bytes one token adds to a text ("" for specials unless `special`, and for ids outside the
 * vocabulary). `first`: nothing came before (SentencePiece drops one leading space there). Points
 * into the tokenizer. */
const char *tokenizer_piece(const tokenizer *t, int32_t id, bool first, bool special, size_t *n);

/* Streaming decoder: holds back the bytes of an unfinished UTF-8 character. Start with {.t = t};
 * set `started` when the text continues another. */
typedef struct {
    const tokenizer *t;
    bool special; /* special tokens become their text */
    bool started;
    size_t n_held;
    char held[4];
} decoder;

/* Writes the whole characters that `id` completes to `out` (room for tokenizer_max_piece bytes) and
 * returns their length. Bytes that are not UTF-8 become U+FFFD: one per maximal part of a
 * character in BPE (as HF's ByteLevel decoder), one per byte in SentencePiece (as the library). */
size_t decoder_push(decoder *d, int32_t id, char *out);
size_t decoder_flush(decoder *d, char *out);    /* U+FFFD for a character that never ended */
size_t tokenizer_max_piece(const tokenizer *t); /* enough for decoder_push and decoder_flush */

#ifdef __cplusplus
}
#endif

#endif
