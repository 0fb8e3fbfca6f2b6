/* libsentencepiece behind a C interface: no exception, no C++ type leaves it.
 *
 * A model is either built from a `llama` vocabulary of a GGUF file or a raw model file in memory.
 * Long texts are handed to the library in overlapping windows, which gives the same ids (see
 * encode_windows) faster and with bounded memory. */
#ifndef SENTENCEPIECE_SHIM_H
#define SENTENCEPIECE_SHIM_H

#include "vocab.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sp_model sp_model;

typedef struct {
    const char *text; /* UTF-8 with U+2581 for a space; not NUL-terminated */
    size_t n;
    float score;
    uint8_t type; /* TOKEN_NORMAL ... TOKEN_BYTE */
} sp_piece;

/* A BPE model of these pieces with the identity normalizer. One piece is the unknown one. Control,
 * unknown and repeated pieces can never come out of a text; of repeated ones the last counts. All
 * 256 byte pieces or none. `dummy_prefix`: texts start with a space that is not theirs. */
linnet_status sp_new(sp_model **out, const sp_piece *pieces, size_t n, bool dummy_prefix,
                     const char *path, linnet_error *err);
/* A serialized ModelProto, used as it is. */
linnet_status sp_new_raw(sp_model **out, const void *data, size_t n, const char *path,
                         linnet_error *err);
void sp_free(sp_model *m);

/* Of a raw model; a built one keeps no copy of its pieces' texts. */
size_t sp_size(const sp_model *m);
sp_piece sp_get(const sp_model *m, size_t i);
int32_t sp_bos(const sp_model *m); /* -1: none */
int32_t sp_eos(const sp_model *m);

bool sp_dummy_prefix(const sp_model *m);

/* Appends the ids of any bytes (a bad byte counts as U+FFFD). The dummy prefix is left out when
 * `continues` (the text follows another one directly); models with a normalizer of their own
 * cannot do that and ignore it. */
linnet_status sp_encode(const sp_model *m, const char *text, size_t n, bool continues, id_list *out,
                        linnet_error *err);

#ifdef __cplusplus
}
#endif
#endif
