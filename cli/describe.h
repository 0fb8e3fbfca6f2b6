/* What a model is, in the words of `info`, `bench` and their tables. */
#ifndef CLI_DESCRIBE_H
#define CLI_DESCRIBE_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "../linnet.h"

typedef struct {
    const char *name;
    uint64_t tensors, bytes;
} dtype_count;

enum { MAX_DTYPES = 64 };

/* Tensors by dtype, in order of first appearance. Returns how many dtypes there are. */
size_t count_dtypes(const linnet_model *model, dtype_count counts[MAX_DTYPES]);

const char *kv_name(linnet_kv_type kv);

/* The mixer of every layer by name. */
json_t *mixers_json(const linnet_model *model);
/* The window of every layer in tokens, 0: all of the context. */
json_t *windows_json(const linnet_model *model);

/* Keys of a row about the model: model_filename, model_hash (of hash.h), model_type, model_size,
 * model_n_params. */
void set_model_keys(json_t *row, const linnet_model *model, const char *path, const char *hash);
/* And about what is computed: dtype_state, kv, activations, architecture, mixers, windows. */
void set_precision_keys(json_t *row, const linnet_model *model, linnet_kv_type kv,
                        const char *activations);
/* "2026-11-25T21:00:00Z" */
enum { TIME_TEXT = 32 };
void time_now(char out[TIME_TEXT]);

/* Bytes of state after `n_tokens` as papers count them (zoology's state_size, with our dtypes):
 * keys and values of the tokens that a layer sees, linear states with the features that differ,
 * taps of BASED's convolutions; no taps of delta-rule layers, no pages, no padding. What the engine
 * allocates: linnet_model_state_bytes. */
uint64_t state_bytes_by_formula(const linnet_model *model, linnet_kv_type kv, uint64_t n_tokens);

#endif
