/* Errors as a code and one sentence: for the library, and for what stands on linnet.h alone. */
#ifndef ERROR_H
#define ERROR_H

#include "linnet.h"

#include <stdarg.h>
#include <stdio.h>

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

#endif
