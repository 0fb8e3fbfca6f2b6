#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "talk.h"

/* ---- growable buffers --------------------------------------------------------------------- */

/* Room for `need` elements of `size` bytes; capacity at least doubles. */
static bool grow(void **at, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return true;
    size_t more = *cap < SIZE_MAX / 2 ? *cap * 2 : SIZE_MAX, bytes;
    if (more < need) more = need;
    if (more < 64) more = 64;
    void *grown = __builtin_mul_overflow(more, size, &bytes) ? NULL : realloc(*at, bytes);
    if (!grown) {
        complain("out of memory: %zu elements of %zu bytes", need, size);
        return false;
    }
    *at = grown;
    *cap = more;
    return true;
}

bool text_append(text_buffer *t, const char *bytes, size_t n) {
    void *at = t->at;
    if (n >= SIZE_MAX - t->n || !grow(&at, &t->cap, t->n + n + 1, 1)) return false;
    t->at = at;
    if (n) memcpy(t->at + t->n, bytes, n);
    t->n += n;
    t->at[t->n] = '\0';
    return true;
}

bool text_printf(text_buffer *t, const char *format, ...) {
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&text, format, args);
    va_end(args);
    if (n < 0) {
        complain("out of memory for a text");
        return false;
    }
    bool good = text_append(t, text, (size_t)n);
    free(text);
    return good;
}

bool ids_reserve(id_buffer *ids, size_t cap) {
    void *at = ids->at;
    if (!grow(&at, &ids->cap, cap, sizeof *ids->at)) return false;
    ids->at = at;
    return true;
}

bool ids_append(id_buffer *ids, const int32_t *more, size_t n) {
    if (n > SIZE_MAX - ids->n || !ids_reserve(ids, ids->n + n)) return false;
    if (n) memcpy(ids->at + ids->n, more, n * sizeof *more);
    ids->n += n;
    return true;
}

/* ---- UTF-8 -------------------------------------------------------------------------------- */

/* Bytes of the valid character at p (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF),
 * 0 if there is none. */
static size_t character(const unsigned char *p, size_t n) {
    if (p[0] < 0x80) return 1;
    size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < length) return 0;
    unsigned char low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return length;
}

bool check_utf8(const char *text, size_t n, const char *what) {
    const unsigned char *p = (const unsigned char *)text;
    for (size_t i = 0; i < n;) {
        size_t length = character(p + i, n - i);
        if (!length) {
            complain("%s is not valid UTF-8: byte 0x%02x at offset %zu", what, p[i], i);
            return false;
        }
        i += length;
    }
    return true;
}

size_t utf8_prefix(const char *text, size_t n, size_t n_points) {
    size_t i = 0;
    while (i < n && n_points--) {
        size_t length = character((const unsigned char *)text + i, n - i);
        i += length ? length : 1;
    }
    return i;
}

/* ---- reading ------------------------------------------------------------------------------ */

static const char *name_of(const char *path) {
    return !path || !strcmp(path, "-") ? "standard input" : path;
}

static FILE *open_to_read(const char *path) {
    if (!path || !strcmp(path, "-")) return stdin;
    FILE *file = fopen(path, "rb");
    if (!file) complain("cannot open %s: %s", path, strerror(errno));
    return file;
}

static void close_read(FILE *file) {
    if (file != stdin) fclose(file);
}

/* What is left of the file. */
static bool read_rest(text_buffer *out, FILE *file, const char *name) {
    char piece[1 << 16];
    bool good = text_append(out, "", 0);
    while (good && !feof(file)) {
        errno = 0;
        size_t n = fread(piece, 1, sizeof piece, file);
        if (ferror(file)) {
            good = false;
            if (!interrupted()) complain("cannot read %s: %s", name, strerror(errno));
        } else {
            good = text_append(out, piece, n);
        }
    }
    return good;
}

static bool read_bytes(text_buffer *out, const char *path) {
    FILE *file = open_to_read(path);
    if (!file) return false;
    bool good = read_rest(out, file, name_of(path));
    close_read(file);
    return good;
}

bool read_text(text_buffer *out, const char *path) {
    return read_bytes(out, path) && check_utf8(out->at, out->n, name_of(path));
}

bool parse_ids(id_buffer *out, const char *text, size_t n, const char *path, size_t line,
               int n_ids) {
    static const char spaces[] = " \t\r\n\v\f";
    for (size_t i = 0; i < n;) {
        if (text[i] && strchr(spaces, text[i])) {
            line += text[i++] == '\n';
            continue;
        }
        size_t start = i;
        int64_t id = 0;
        bool number = true;
        for (; i < n && !(text[i] && strchr(spaces, text[i])); i++) {
            number = number && text[i] >= '0' && text[i] <= '9' && id <= INT32_MAX;
            if (number) id = id * 10 + (text[i] - '0');
        }
        if (!number || id >= n_ids) {
            int shown = i - start < 40 ? (int)(i - start) : 40;
            complain("%s, line %zu: expected a token id from 0 to %d, found '%.*s'", name_of(path),
                     line, n_ids - 1, shown, text + start);
            return false;
        }
        if (!ids_append(out, &(int32_t){(int32_t)id}, 1)) return false;
    }
    return true;
}

bool read_ids(id_buffer *out, const char *path, int n_ids) {
    text_buffer text = {0};
    bool good = read_bytes(&text, path) && parse_ids(out, text.at, text.n, path, 1, n_ids);
    free(text.at);
    if (good && !out->n) {
        complain("%s holds no token ids", name_of(path));
        return false;
    }
    return good;
}

bool lines_open(line_reader *r, const char *path) {
    *r = (line_reader){.path = name_of(path), .file = open_to_read(path)};
    return r->file != NULL;
}

int lines_next(line_reader *r) {
    errno = 0;
    ssize_t n = getline(&r->line, &r->cap, r->file);
    if (n < 0) {
        if (feof(r->file) && !ferror(r->file)) return 0;
        if (!interrupted()) complain("cannot read %s: %s", r->path, strerror(errno));
        return -1;
    }
    r->n = (size_t)n;
    if (r->n && r->line[r->n - 1] == '\n') r->line[--r->n] = '\0';
    r->number++;
    return 1;
}

int lines_next_json(line_reader *r, json_t **out) {
    for (;;) {
        int got = lines_next(r);
        if (got != 1) return got;
        if (strspn(r->line, " \t\r") < r->n) break;
    }
    json_error_t error;
    *out = json_loadb(r->line, r->n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &error);
    if (!*out) {
        complain("%s, line %zu: not JSON: %s", r->path, r->number, error.text);
        return -1;
    }
    if (!json_is_object(*out)) {
        complain("%s, line %zu: expected a JSON object", r->path, r->number);
        json_decref(*out);
        return -1;
    }
    return 1;
}

int lines_peek(line_reader *r) {
    int c;
    while ((c = fgetc(r->file)) == ' ' || c == '\t' || c == '\n' || c == '\r')
        r->number += c == '\n';
    if (c != EOF) ungetc(c, r->file);
    clearerr(r->file); /* who reads on meets the error again, and says so */
    return c;
}

bool lines_rest(line_reader *r, text_buffer *out) {
    return read_rest(out, r->file, r->path) && check_utf8(out->at, out->n, r->path);
}

void lines_close(line_reader *r) {
    if (r->file) close_read(r->file);
    free(r->line);
    *r = (line_reader){0};
}

json_t *json_text(const char *text) {
    json_t *value = json_string(text);
    if (value) return value;
    text_buffer latin = {0};
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        char utf8[2] = {(char)(*p < 0x80 ? *p : 0xc0 | *p >> 6), (char)(0x80 | (*p & 0x3f))};
        if (!text_append(&latin, utf8, *p < 0x80 ? 1 : 2)) break;
    }
    value = json_string(latin.at ? latin.at : "");
    free(latin.at);
    return value;
}

void json_set_int(json_t *object, const char *key, uint64_t value) {
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* ---- writing ------------------------------------------------------------------------------ */

bool output_open(output_file *o, const char *path) {
    *o = (output_file){0};
    struct stat st;
    bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) {
        complain("cannot write %s: it is a folder", path);
        return false;
    }
    o->path = exists ? realpath(path, NULL) : strdup(path); /* a link's target is replaced */
    if (exists && !S_ISREG(st.st_mode)) {
        free(o->path);
        o->path = strdup(path);
        o->file = o->path ? fopen(path, "wb") : NULL;
    } else if (o->path) {
        if (asprintf(&o->temporary, "%s.XXXXXX", o->path) < 0) o->temporary = NULL;
        int fd = o->temporary ? mkostemp(o->temporary, O_CLOEXEC) : -1;
        if (fd < 0) {
            free(o->temporary);
            o->temporary = NULL;
        } else {
            remove_on_crash(o->temporary);
            mode_t mask = umask(0);
            umask(mask);
            o->file = fchmod(fd, 0666 & ~mask) ? NULL : fdopen(fd, "wb");
            if (!o->file) close(fd);
        }
    }
    if (o->file) return true;
    complain("cannot write %s: %s", path, strerror(errno));
    output_abandon(o);
    return false;
}

static bool cannot_write(output_file *o) {
    complain("cannot write %s: %s", o->path, strerror(errno));
    output_abandon(o);
    return false;
}

bool output_write(output_file *o, const void *bytes, size_t n) {
    return fwrite(bytes, 1, n, o->file) == n || cannot_write(o);
}

bool output_finish(output_file *o) {
    if (fflush(o->file)) return cannot_write(o);
    if (o->temporary) {
        if (fsync(fileno(o->file)) || rename(o->temporary, o->path)) return cannot_write(o);
        keep_on_crash(o->temporary);
        free(o->temporary);
        o->temporary = NULL;
    }
    output_abandon(o);
    return true;
}

void output_abandon(output_file *o) {
    if (o->file) fclose(o->file);
    if (o->temporary) {
        unlink(o->temporary);
        keep_on_crash(o->temporary);
    }
    free(o->temporary);
    free(o->path);
    *o = (output_file){0};
}
