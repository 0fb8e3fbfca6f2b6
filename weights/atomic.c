#include "atomic.h"

#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

linnet_status atomic_open(atomic_file *f, const char *path, unsigned mode, linnet_error *err) {
    *f = (atomic_file){.fd = -1};
    const char *name = gguf_short_path(path);
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return fail(err, LINNET_ERR_IO, "cannot write %s: it is %s", name,
                    S_ISDIR(st.st_mode) ? "a folder" : "not a regular file");
    size_t size = strlen(path) + 48;
    f->path = strdup(path);
    f->temporary = malloc(size);
    if (!f->path || !f->temporary)
        return fail(err, LINNET_ERR_MEMORY, "%s: no memory to write it", name);
    /* A name that is not there yet. */
    for (int i = 0; f->fd < 0 && i < 1000; i++) {
        snprintf(f->temporary, size, "%s.tmp-%ld-%d", path, (long)getpid(), i);
        f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
        if (f->fd < 0 && errno != EEXIST && errno != EINTR) break;
    }
    if (f->fd < 0) return fail(err, LINNET_ERR_IO, "cannot write %s: %s", name, strerror(errno));
    f->exists = true;
    return LINNET_OK;
}

linnet_status atomic_write(atomic_file *f, const void *data, size_t n, linnet_error *err) {
    const uint8_t *from = data;
    while (n > 0) {
        ssize_t written = write(f->fd, from, min_size(n, (size_t)1 << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0)
            return fail(err, LINNET_ERR_IO, "cannot write %s: %s", gguf_short_path(f->path),
                        strerror(written < 0 ? errno : ENOSPC));
        from += written;
        n -= (size_t)written;
    }
    return LINNET_OK;
}

linnet_status atomic_finish(atomic_file *f, linnet_error *err) {
    const char *name = gguf_short_path(f->path);
    if (fsync(f->fd)) return fail(err, LINNET_ERR_IO, "cannot write %s: %s", name, strerror(errno));
    int closed = close(f->fd);
    f->fd = -1;
    if (closed || rename(f->temporary, f->path))
        return fail(err, LINNET_ERR_IO, "cannot write %s: %s", name, strerror(errno));
    f->exists = false;
    /* The rename itself reaches the disk with the folder; some file systems cannot do that, and
     * the file is complete either way. */
    int folder = open(dirname(f->temporary), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        (void)!fsync(folder);
        close(folder);
    }
    return LINNET_OK;
}

void atomic_free(atomic_file *f) {
    if (f->fd >= 0) close(f->fd);
    if (f->exists) unlink(f->temporary);
    free(f->path);
    free(f->temporary);
    *f = (atomic_file){.fd = -1};
}
