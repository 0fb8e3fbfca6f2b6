/* The cache's folder: one saved state a file, named MODEL-TOKENS.state after two hashes. Several
 * processes may share it: files appear when they are complete and are only ever replaced by others
 * of the same timeline, and one that has gone is a miss. Only files with such names are read or
 * removed. */
#include "../weights/hash.h"
#include "cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    HEX = 16,
    NAME = HEX + 1 + HEX + 6,
    ABANDONED = 600 /* seconds after which nobody writes a temporary file any more */
};

/* ---- Names ----------------------------------------------------------------------------------- */

/* Other activations and another kind of backend compute other bits. */
static linnet_status model_key(linnet_model *m, uint64_t *out, linnet_error *err) {
    uint64_t key[4] = {0};
    linnet_status s = model_identity(m, key, err);
    key[2] = (uint64_t)m->act;
    key[3] = m->backend->ops->host_memory;
    *out = hash64_of(key, sizeof key);
    return s;
}

static char *path_of(const linnet_cache *c, const char *name) {
    size_t size = strlen(c->dir) + strlen(name) + 2;
    char *path = malloc(size);
    if (path) snprintf(path, size, "%s/%s", c->dir, name);
    return path;
}

static void name_of(const linnet_cache *c, int kind, const int32_t *tokens, size_t n,
                    char name[NAME + 1]) {
    uint64_t of_model[] = {c->model_key, (uint64_t)kind};
    snprintf(name, NAME + 1, "%016llx-%016llx.state",
             (unsigned long long)hash64_of(of_model, sizeof of_model),
             (unsigned long long)hash64_of(tokens, n * sizeof *tokens));
}

static char *entry_path(const linnet_cache *c, const cache_entry *e) {
    char name[NAME + 1];
    name_of(c, e->kind, e->tokens, e->n, name);
    return path_of(c, name);
}

/* A name as above, alone or with what weights/atomic.c puts behind it. */
static bool is_ours(const char *name, bool *temporary) {
    for (int i = 0; i < 2 * HEX + 1; i++)
        if (i == HEX ? name[i] != '-' : !name[i] || !strchr("0123456789abcdef", name[i]))
            return false;
    if (strncmp(name + 2 * HEX + 1, ".state", 6)) return false;
    *temporary = !strncmp(name + NAME, ".tmp-", 5);
    return *temporary || !name[NAME];
}

static int64_t nanoseconds(struct timespec t) {
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- Reading --------------------------------------------------------------------------------- */

typedef struct {
    char name[NAME + 1];
    uint64_t bytes;
    int64_t changed;
} found_file;

typedef struct {
    found_file *at;
    size_t n;
} file_list;

static int by_age(const void *a, const void *b) {
    const found_file *x = a, *y = b;
    if (x->changed != y->changed) return x->changed < y->changed ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const found_file *)a)->name, ((const found_file *)b)->name);
}

/* All of our files, of any model, by name; removes what was left half written. */
static linnet_status list_files(linnet_cache *c, file_list *list, linnet_error *err) {
    DIR *d = opendir(c->dir);
    struct stat st;
    *list = (file_list){0};
    if (!d)
        return fail(err, LINNET_ERR_IO, "cannot read the folder %s: %s", c->dir, strerror(errno));
    if (!fstat(dirfd(d), &st)) c->dir_changed = nanoseconds(st.st_mtim);
    linnet_status s = LINNET_OK;
    for (struct dirent *entry; !s && (entry = readdir(d));) {
        bool temporary;
        if (!is_ours(entry->d_name, &temporary) ||
            fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue;
        if (temporary) {
            if (time(NULL) - st.st_mtime > ABANDONED) unlinkat(dirfd(d), entry->d_name, 0);
            continue;
        }
        if (!(list->n & (list->n - 1))) { /* grows at powers of two */
            found_file *more = realloc(list->at, (list->n ? list->n * 2 : 1) * sizeof *more);
            if (!more) {
                s = fail(err, LINNET_ERR_MEMORY, "no memory to list %s", c->dir);
                break;
            }
            list->at = more;
        }
        found_file *f = &list->at[list->n++];
        memcpy(f->name, entry->d_name, NAME + 1);
        f->bytes = (uint64_t)st.st_size;
        f->changed = nanoseconds(st.st_mtim);
    }
    closedir(d);
    if (s)
        free(list->at);
    else if (list->n)
        qsort(list->at, list->n, sizeof *list->at, by_name);
    return s;
}

void folder_forget(linnet_cache *c, cache_entry *e) {
    if (!e->file_bytes) return;
    c->stats.files--;
    c->stats.file_bytes -= e->file_bytes;
    e->file_bytes = 0;
    if (!e->state && !e->removed) cache_take_out(c, e);
}

static void note_file(linnet_cache *c, cache_entry *e, uint64_t bytes) {
    c->stats.files += !e->file_bytes;
    c->stats.file_bytes += bytes - e->file_bytes;
    e->file_bytes = bytes;
}

/* A file that the index has not. Files that are no state of this model are left alone. */
static void add_file(linnet_cache *c, const char *name) {
    state_summary summary;
    char expected[NAME + 1], *path = path_of(c, name);
    linnet_status s = path ? state_peek(c->model, path, &summary, NULL) : LINNET_ERR_MEMORY;
    free(path);
    if (s) return;
    int kind = (c->model->kv_layers ? (int)summary.kind : 0) * 3 + (int)summary.mode;
    name_of(c, kind, summary.tokens, summary.n_tokens, expected);
    cache_entry *e = NULL;
    pthread_mutex_lock(&c->lock);
    if (summary.act == c->model->act && !strcmp(expected, name)) {
        e = cache_find(c, kind, summary.tokens, summary.n_tokens);
        if (!e && (e = calloc(1, sizeof *e))) {
            *e = (cache_entry){.kind = kind,
                               .tokens = summary.tokens,
                               .n = summary.n_tokens,
                               .has_logits = summary.has_logits,
                               .can_cut = summary.mode == LINNET_SLIDING && model_can_cut(c->model),
                               .uses = 1,
                               .last = c->now};
            if (cache_insert(c, e, NULL)) {
                free(e);
                e = NULL;
            }
        }
        if (e) note_file(c, e, summary.bytes);
    }
    bool taken = e && e->tokens == summary.tokens;
    pthread_mutex_unlock(&c->lock);
    if (!taken) free(summary.tokens);
}

/* Makes the index agree with the folder. The folder's lock is held. */
static void read_folder(linnet_cache *c, const file_list *list) {
    found_file wanted;
    char *known = calloc(list->n + 1, 1);
    if (!known) return;
    pthread_mutex_lock(&c->lock);
    for (size_t i = c->n; i-- > 0;) { /* backwards: forgetting may take an entry out */
        cache_entry *e = c->entries[i];
        if (!e->file_bytes) continue;
        name_of(c, e->kind, e->tokens, e->n, wanted.name);
        const found_file *f =
            list->n ? bsearch(&wanted, list->at, list->n, sizeof *list->at, by_name) : NULL;
        if (f)
            known[f - list->at] = 1;
        else
            folder_forget(c, e);
    }
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < list->n; i++)
        if (!known[i]) add_file(c, list->at[i].name);
    free(known);
}

linnet_status folder_open(linnet_cache *c, const char *dir, linnet_error *err) {
    struct stat st;
    file_list list;
    if (!(c->dir = strdup(dir))) return fail(err, LINNET_ERR_MEMORY, "no memory for a path");
    if (mkdir(dir, 0700) && errno != EEXIST)
        return fail(err, LINNET_ERR_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    if (stat(dir, &st) || !S_ISDIR(st.st_mode))
        return fail(err, LINNET_ERR_IO, "%s is not a folder", dir);
    linnet_status s = model_key(c->model, &c->model_key, err);
    if (!s && !(s = list_files(c, &list, err))) {
        read_folder(c, &list);
        free(list.at);
    }
    return s;
}

void folder_refresh(linnet_cache *c) {
    struct stat st;
    file_list list;
    if (!c->dir || pthread_mutex_trylock(&c->folder_lock)) return;
    if (!stat(c->dir, &st) && nanoseconds(st.st_mtim) != c->dir_changed &&
        !list_files(c, &list, NULL)) {
        read_folder(c, &list);
        free(list.at);
    }
    pthread_mutex_unlock(&c->folder_lock);
}

linnet_session *folder_load(linnet_cache *c, const cache_entry *e, linnet_error *err) {
    linnet_session *s = NULL;
    linnet_session_options o = {.ctx = (int)e->n,
                                .kv = (linnet_kv_type)(e->kind / 3),
                                .window_mode = (linnet_window_mode)(e->kind % 3)};
    char *path = entry_path(c, e);
    linnet_status status = path ? linnet_session_new(&s, c->model, &o, err)
                                : fail(err, LINNET_ERR_MEMORY, "no memory for a path");
    if (!status && !(status = linnet_session_load_file(s, path, err))) {
        if (s->n_tokens != e->n || memcmp(s->tokens, e->tokens, e->n * sizeof *e->tokens))
            status = fail(err, LINNET_ERR_ARGUMENT, "%s: of another timeline", path);
        utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW); /* used now */
    }
    free(path);
    if (status) {
        linnet_session_free(s);
        return NULL;
    }
    s->n_ruled = s->n_tokens; /* nothing else is kept */
    backend *b = c->model->backend;
    b->ops->host_free(b, s->pending); /* a snapshot is not fed */
    s->pending = NULL;
    return s;
}

void folder_remove(linnet_cache *c, cache_entry *e) {
    char *path = entry_path(c, e);
    if (path) unlink(path);
    free(path);
    folder_forget(c, e);
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* Files of timelines that e's file, cut, serves for. The lock is held. */
static void remove_redundant(linnet_cache *c, const cache_entry *e) {
    for (size_t i = cache_place(c, e->kind, e->tokens, e->n) - 1; i-- > 0;) {
        cache_entry *p = c->entries[i];
        if (p->kind != e->kind || common_tokens(p->tokens, p->n, e->tokens, e->n) < p->n) break;
        if (p->file_bytes && cache_can_cut(e, p->n)) folder_remove(c, p);
    }
}

/* The next entry that the folder lacks, pinned. */
static cache_entry *next_dirty(linnet_cache *c) {
    pthread_mutex_lock(&c->lock);
    cache_entry *e = NULL;
    for (size_t i = 0; i < c->n && !e; i++)
        if (c->entries[i]->dirty && c->entries[i]->state) e = c->entries[i];
    if (e) {
        e->pins++;
        e->dirty = false;
    }
    pthread_mutex_unlock(&c->lock);
    return e;
}

static linnet_status write_entry(linnet_cache *c, cache_entry *e, linnet_error *err) {
    char *path = entry_path(c, e);
    struct stat st;
    if (!path) return fail(err, LINNET_ERR_MEMORY, "no memory for a path");
    linnet_status s = linnet_session_save_file(e->state, path, err);
    if (!s && stat(path, &st))
        s = fail(err, LINNET_ERR_IO, "cannot read %s: %s", path, strerror(errno));
    pthread_mutex_lock(&c->lock);
    if (!s && !e->removed) {
        note_file(c, e, (uint64_t)st.st_size);
        remove_redundant(c, e);
    }
    e->dirty = s != LINNET_OK;
    cache_unpin(c, e);
    pthread_mutex_unlock(&c->lock);
    free(path);
    return s;
}

/* Files whose entries served from memory are as good as new. */
static void touch_used(linnet_cache *c) {
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->n; i++) {
        const cache_entry *e = c->entries[i];
        char *path = e->file_bytes && e->last > c->flushed ? entry_path(c, e) : NULL;
        if (path) utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW);
        free(path);
    }
    c->flushed = c->now;
    pthread_mutex_unlock(&c->lock);
}

/* Removes the oldest files until the budget is kept. */
static linnet_status trim(linnet_cache *c, linnet_error *err) {
    file_list list;
    linnet_status s = list_files(c, &list, err);
    if (s) return s;
    uint64_t total = 0;
    for (size_t i = 0; i < list.n; i++)
        total += list.at[i].bytes;
    if (list.n) qsort(list.at, list.n, sizeof *list.at, by_age);
    size_t gone = 0;
    for (; gone < list.n && total > c->dir_max; gone++) {
        char *path = path_of(c, list.at[gone].name);
        if (path && (!unlink(path) || errno == ENOENT)) total -= list.at[gone].bytes;
        free(path);
    }
    file_list left = {list.at + gone, list.n - gone};
    if (left.n) qsort(left.at, left.n, sizeof *left.at, by_name);
    read_folder(c, &left);
    free(list.at);
    return s;
}

linnet_status folder_flush(linnet_cache *c, linnet_error *err) {
    linnet_status s = LINNET_OK;
    pthread_mutex_lock(&c->folder_lock);
    for (cache_entry *e; !s && (e = next_dirty(c));)
        s = write_entry(c, e, err);
    touch_used(c);
    linnet_status trimmed = trim(c, s ? NULL : err);
    pthread_mutex_unlock(&c->folder_lock);
    return s ? s : trimmed;
}
