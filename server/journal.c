#include "journal.h"
#include "../error.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUM_BYTES = 16 };
typedef struct {
    char magic[8];
    uint64_t n; /* ids behind this head; then SUM_BYTES of BLAKE2b over head and ids */
    uint8_t key[SHELF_KEY];
} record_head;
_Static_assert(sizeof(record_head) == 48, "no padding");
static const char magic[8] = {'L', 'I', 'N', 'N', 'E', 'T', 'I', 'D'};

struct journal {
    char *path;
    int fd;
    uint64_t bytes;
    shelf *shelf;
};

static void checksum(const void *record, size_t n, uint8_t *sum) {
    crypto_generichash(sum, SUM_BYTES, record, n, NULL, 0);
}

/* Room for the record of e, filled; NULL: no memory. */
static uint8_t *record_of(const shelf_entry *e, size_t *bytes) {
    size_t ids = e->n * sizeof *e->ids, n = sizeof(record_head) + ids;
    uint8_t *record = malloc(n + SUM_BYTES);
    if (!record) return NULL;
    record_head head = {.n = e->n};
    memcpy(head.magic, magic, sizeof magic);
    memcpy(head.key, e->key, SHELF_KEY);
    memcpy(record, &head, sizeof head);
    memcpy(record + sizeof head, e->ids, ids);
    checksum(record, n, record + n);
    *bytes = n + SUM_BYTES;
    return record;
}

static linnet_status write_record(journal *j, int fd, const shelf_entry *e, uint64_t *total,
                                  linnet_error *err) {
    size_t bytes;
    uint8_t *record = record_of(e, &bytes);
    if (!record) return fail(err, LINNET_ERR_IO, "%s: out of memory", j->path);
    ssize_t n = write(fd, record, bytes);
    free(record);
    if (n != (ssize_t)bytes)
        return fail(err, LINNET_ERR_IO, "cannot write %s: %s", j->path,
                    n < 0 ? strerror(errno) : "no space left");
    *total += bytes;
    return LINNET_OK;
}

/* Bytes of the record that begins here, 0 where none does. */
static size_t record_at(const uint8_t *at, size_t left) {
    record_head head;
    uint8_t sum[SUM_BYTES];
    if (left < sizeof head + SUM_BYTES) return 0;
    memcpy(&head, at, sizeof head);
    if (memcmp(head.magic, magic, sizeof magic) ||
        head.n > (left - sizeof head - SUM_BYTES) / sizeof(int32_t))
        return 0;
    size_t n = sizeof head + head.n * sizeof(int32_t);
    checksum(at, n, sum);
    return memcmp(at + n, sum, SUM_BYTES) ? 0 : n + SUM_BYTES;
}

static linnet_status read_all(journal *j, linnet_error *err) {
    struct stat st;
    if (fstat(j->fd, &st) || !S_ISREG(st.st_mode))
        return fail(err, LINNET_ERR_IO, "%s: expected a regular file", j->path);
    size_t size = (size_t)st.st_size, got = 0, at = 0;
    uint8_t *all = malloc(size + 1);
    if (!all) return fail(err, LINNET_ERR_MEMORY, "%s: no memory for %zu bytes", j->path, size);
    for (ssize_t n; got < size && (n = pread(j->fd, all + got, size - got, (off_t)got)) > 0;)
        got += (size_t)n;
    while (at < got) {
        size_t n = record_at(all + at, got - at);
        if (!n) { /* damaged: on at the next one */
            const uint8_t *next = memmem(all + at + 1, got - at - 1, magic, sizeof magic);
            at = next ? (size_t)(next - all) : got;
            continue;
        }
        record_head head;
        memcpy(&head, all + at, sizeof head);
        int32_t *ids = malloc(head.n ? head.n * sizeof *ids : 1);
        if (!ids) break;
        memcpy(ids, all + at + sizeof head, head.n * sizeof *ids);
        shelf_put(j->shelf, head.key, ids, head.n, NULL, UINT64_MAX);
        at += n;
    }
    free(all);
    j->bytes = size;
    return LINNET_OK;
}

static int open_file(const char *path, int flags) {
    return open(path, O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC | flags, 0600);
}

/* Everything on the shelf, oldest first, into a new file in the place of the old. Another process
 * that shares the folder goes on writing to the old one: what it adds is not read again, and costs
 * that a text is tokenized instead of remembered. */
static linnet_status write_anew(journal *j, linnet_error *err) {
    char *path;
    if (asprintf(&path, "%s.%ld.new", j->path, (long)getpid()) < 0)
        return fail(err, LINNET_ERR_IO, "%s: out of memory", j->path);
    unlink(path);
    int fd = open_file(path, O_EXCL);
    uint64_t total = 0;
    linnet_status status =
        fd < 0 ? fail(err, LINNET_ERR_IO, "cannot create %s: %s", path, strerror(errno))
               : LINNET_OK;
    for (const shelf_entry *e = j->shelf->oldest; e && !status; e = e->newer)
        if (e->ids) status = write_record(j, fd, e, &total, err);
    if (!status && rename(path, j->path))
        status = fail(err, LINNET_ERR_IO, "cannot replace %s: %s", j->path, strerror(errno));
    if (status) {
        if (fd >= 0) close(fd), unlink(path);
    } else {
        close(j->fd);
        j->fd = fd;
        j->bytes = total;
    }
    free(path);
    return status;
}

linnet_status journal_add(journal *j, const shelf_entry *e, linnet_error *err) {
    if (j->bytes > 2 * j->shelf->budget) return write_anew(j, err);
    return write_record(j, j->fd, e, &j->bytes, err);
}

linnet_status journal_open(journal **out, const char *path, shelf *s, linnet_error *err) {
    journal *j = calloc(1, sizeof *j);
    if (j) j->path = strdup(path);
    if (!j || !j->path) {
        free(j);
        return fail(err, LINNET_ERR_MEMORY, "out of memory");
    }
    j->shelf = s;
    j->fd = open_file(path, 0);
    linnet_status status =
        j->fd < 0 ? fail(err, LINNET_ERR_IO, "cannot open %s: %s", path, strerror(errno))
                  : read_all(j, err);
    if (status) {
        journal_close(j);
        return status;
    }
    *out = j;
    return LINNET_OK;
}

void journal_close(journal *j) {
    if (!j) return;
    if (j->fd >= 0) close(j->fd);
    free(j->path);
    free(j);
}
