/* What every room needs: errors as code + sentence, checked arithmetic, a growable id list.
 * Numbers that come from a file or a caller pass through mul_size/add_size before they are used. */
#ifndef COMMON_H
#define COMMON_H

#include "linnet_tools.h"

#include <stdarg.h>
#include <stdio.h>
#ifdef __cplusplus /* the same types, in C++'s words */
#include <atomic>
using std::atomic_bool;
using std::atomic_size_t;
using std::atomic_uint_fast64_t;
using std::atomic_uintptr_t;
#else
#include <stdatomic.h>
#endif

/* Fills *err (if not NULL) and returns `code`, so that `return fail(err, LINNET_ERR_IO, ...)` reads
 * as one thought. */
__attribute__((format(printf, 3, 4))) static inline linnet_status
fail(linnet_error *err, linnet_status code, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return code;
}

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
