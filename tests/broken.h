/* Files of tests/data/models with a mistake in them, and what opening one says. */
#ifndef TESTS_BROKEN_H
#define TESTS_BROKEN_H

#include "support.h"

#include <unistd.h>

typedef struct {
    char *data;
    size_t n;
} bytes;

static inline bytes read_file(const char *name) {
    char path[128];
    bytes b = {malloc(1 << 20), 0};
    snprintf(path, sizeof path, "tests/data/models/%s.gguf", name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot be opened", path);
    b.n = fread(b.data, 1, 1 << 20, f);
    fclose(f);
    return b;
}

/* Where a whole string of the file begins: after its length. */
static inline char *find(bytes b, const char *text) {
    uint64_t n = strlen(text);
    for (char *at = b.data; (at = memmem(at, b.n - (size_t)(at - b.data), text, n)); at++)
        if (at - b.data >= 8 && !memcmp(at - 8, &n, 8)) return at;
    fail_msg("%s is not in the file", text);
    return NULL;
}

/* Frees b; `name` and `what` are for messages. LINNET_OK: it opens. */
static inline void check_opens_with(const char *name, const char *what, bytes b,
                                    linnet_status status, const char *says) {
    char path[] = "/tmp/linnet_broken_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b.data, b.n), b.n);
    close(fd);
    linnet_model *m = NULL;
    linnet_error err = {0};
    linnet_status s = linnet_model_open(&m, path, NULL, &err);
    unlink(path);
    free(b.data);
    linnet_model_close(m);
    if (s != status || !strstr(err.text, says))
        fail_msg("%s: %s: status %d, \"%s\"; expected %d, \"%s\"", name, what, (int)s, err.text,
                 (int)status, says);
}

/* A change: `text` is replaced by `other` of the same length, or (other NULL) the four bytes of the
 * number that follows the key `text` become `value`. */
typedef struct {
    const char *text, *other;
    uint32_t value;
    linnet_status status;
    const char *says;
} breakage;

/* `skip`: bytes between the key's type and the number. */
static inline void check_breakage(const char *name, const breakage *c, size_t skip) {
    bytes b = read_file(name);
    char *at = find(b, c->text);
    if (c->other)
        memcpy(at, c->other, strlen(c->other));
    else
        memcpy(at + strlen(c->text) + 4 + skip, &c->value, 4);
    check_opens_with(name, c->text, b, c->status, c->says);
}

static inline uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

#endif
