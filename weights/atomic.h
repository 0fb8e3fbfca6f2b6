/* A file that appears at its place only when it is complete: written beside it (PATH.tmp-PID-N),
 * fsynced and renamed at the end, removed when abandoned. Never an existing file, never through a
 * link: a link at PATH is replaced. */
#ifndef ATOMIC_H
#define ATOMIC_H

#include "../common.h"

typedef struct {
    char *path, *temporary;
    int fd;
    bool exists; /* the temporary file is there and ours to remove */
} atomic_file;

/* `mode` as for open(); PATH must be absent or a regular file. */
linnet_status atomic_open(atomic_file *f, const char *path, unsigned mode, linnet_error *err);
linnet_status atomic_write(atomic_file *f, const void *data, size_t n, linnet_error *err);
linnet_status atomic_finish(atomic_file *f, linnet_error *err);
/* Frees all; also after atomic_finish, and after a failed atomic_open. */
void atomic_free(atomic_file *f);

#endif
