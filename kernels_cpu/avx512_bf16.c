/* AVX-512 with BF16: vdpbf16ps adds a pair's odd product, then its even one, each rounded to
 * nearest even, and takes numbers below 2^-126 as zero. */
#define TABLE kernels_avx512_bf16
#define V_DOT_BF16(a, b, c) ((vf)_mm512_dpbf16_ps((__m512)(c), (__m512bh)(a), (__m512bh)(b)))

#include "avx512.h"
