/* GGUF tensor types: sizes, and the one conversion to and from float32 of each.
 * Formulas: the block layouts of ggml (ggml-common.h, gguf-py/gguf/quants.py); results are equal to
 * the `gguf` Python package bit for bit. */
#ifndef DTYPE_H
#define DTYPE_H

#include "../common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    DTYPE_F32 = 0,
    DTYPE_F16 = 1,
    DTYPE_Q4_0 = 2,
    DTYPE_Q4_1 = 3,
    DTYPE_Q5_0 = 6,
    DTYPE_Q5_1 = 7,
    DTYPE_Q8_0 = 8,
    DTYPE_Q4_K = 12,
    DTYPE_Q5_K = 13,
    DTYPE_Q6_K = 14,
    DTYPE_BF16 = 30,
} dtype;

typedef struct {
    const char *name;     /* "q4_1" */
    uint32_t block;       /* elements per block (1, 32 or 256) */
    uint32_t block_bytes; /* bytes per block */
} dtype_info;

/* NULL for a type this build does not know. */
const dtype_info *dtype_get(uint32_t type);
/* The GGUF name of any type number, known or not ("IQ2_XS", "type 77"), for messages. */
const char *dtype_any_name(uint32_t type);
/* -1 when no known dtype has this name. */
int dtype_by_name(const char *name);
/* "f32 f16 bf16 ..." of all known types, for messages. */
const char *dtype_list(void);
/* Bytes of a row of `n` elements; n must be a multiple of the block. */
size_t dtype_row_bytes(dtype type, size_t n);

/* n elements (a multiple of the block) from `src` to float32. */
void dequantize_row(dtype type, const void *src, float *dst, size_t n);
/* n float32 (a multiple of the block), all finite, to `type`. */
void quantize_row(dtype type, const float *src, void *dst, size_t n);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f); /* round to nearest even, as numpy's astype(float16) */
static inline float bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}
uint16_t f32_to_bf16(float f); /* round to nearest even; NaN stays NaN */

#ifdef __cplusplus
}
#endif

#endif
