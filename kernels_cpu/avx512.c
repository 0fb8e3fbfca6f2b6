/* AVX-512 without BF16: its products are those of float32. */
#define TABLE kernels_avx512

#include "avx512.h"
