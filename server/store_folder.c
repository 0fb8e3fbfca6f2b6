/* Named states as files of a folder that belongs to the server. */
#include "../error.h"
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct {
    store base;
    char *dir;
} folder;

/* NULL: no memory. Names hold no slash and begin with no dot, so this stays in the folder. */
static char *path_of(const folder *f, store_key key) {
    char *path;
    return asprintf(&path, "%s/%s.state", f->dir, key.text) < 0 ? NULL : path;
}

static linnet_status folder_put(store *s, store_key key, const linnet_session *session,
                                linnet_error *err) {
    char *path = path_of((folder *)s, key);
    if (!path) return fail(err, LINNET_ERR_IO, "folder: out of memory");
    linnet_status status = linnet_session_save_file(session, path, err);
    free(path);
    return status;
}

static linnet_status folder_get(store *s, const store_key *keys, size_t n, linnet_session *into,
                                size_t *which, linnet_error *err) {
    linnet_status status = LINNET_OK;
    for (*which = 0; *which < n; ++*which) {
        char *path = path_of((folder *)s, keys[*which]);
        struct stat st;
        if (!path) return fail(err, LINNET_ERR_IO, "folder: out of memory");
        bool there = !lstat(path, &st);
        if (!there && errno != ENOENT)
            status = fail(err, LINNET_ERR_IO, "%s: %s", path, strerror(errno));
        else if (there && !S_ISREG(st.st_mode))
            status = fail(err, LINNET_ERR_FORMAT, "%s: not a regular file", path);
        else if (there)
            status = linnet_session_load_file(into, path, err);
        free(path);
        if (status || there) break;
    }
    return status;
}

static void folder_free(store *s) {
    free(((folder *)s)->dir);
    free(s);
}

linnet_status store_folder_new(store **out, const char *dir, linnet_error *err) {
    struct stat st;
    if (stat(dir, &st) || !S_ISDIR(st.st_mode))
        return fail(err, LINNET_ERR_IO, "%s: expected a folder for states", dir);
    folder *f = calloc(1, sizeof *f);
    if (!f || !(f->dir = strdup(dir))) {
        free(f);
        return fail(err, LINNET_ERR_MEMORY, "out of memory");
    }
    f->base = (store){.name = "folder", .put = folder_put, .get = folder_get, .free = folder_free};
    *out = &f->base;
    return LINNET_OK;
}
