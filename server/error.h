/* An error as a code and one sentence, as the library's own. */
#ifndef SERVER_ERROR_H
#define SERVER_ERROR_H

#include "../linnet.h"

#include <stdarg.h>
#include <stdio.h>

/* Fills *err (if not NULL) and returns `code`. */
__attribute__((format(printf, 3, 4))) static inline linnet_status
refuse(linnet_error *err, linnet_status code, const char *format, ...) {
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
