/* What every room needs: errors as code + sentence, checked arithmetic, a growable id list.
 * Numbers that come from a file or a caller pass through mul_size/add_size before they are used. */
#ifndef COMMON_H
#define COMMON_H

#include "error.h"
#include "linnet_tools.h"

#ifdef __cplusplus /* the same types, in C++'s words */
#include <atomic>
using std::atomic_bool;
using std::atomic_size_t;
using std::atomic_uint_fast64_t;
using std::atomic_uintptr_t;
#else
#include <stdatomic.h>
#endif

/* *out = a * b; false when it does not fit. */
static inline bool mul_size(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool add_size(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* *out = n rounded up to a multiple of `align` (a power of two). */
static inline bool align_size(size_t n, size_t align, size_t *out) {
    if (!add_size(n, align - 1, out)) return false;
    *out &= ~(align - 1);
    return true;
}

static inline size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}
static inline size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}
static inline size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

#endif
