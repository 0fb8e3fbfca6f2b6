/* The GGUF reader. One pass over the header with a cursor that never leaves the bytes at hand;
 * counts are compared with what the file could hold before anything is allocated for them. */
#include "gguf.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    DEFAULT_ALIGNMENT = 32,
    MIN_ALIGNMENT = 8,
    MAX_ALIGNMENT = 1 << 20,
    MIN_KV_BYTES = 8 + 1 + 4 + 1,             /* a one-letter key with a u8 */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* a one-letter name with one dimension */
    FIRST_READ = 1 << 18
};

struct gguf {
    char *path;
    const uint8_t *data; /* the file, or as much of it as was read */
    size_t available;
    uint64_t file_bytes;
    void *map;       /* of file_bytes, or NULL */
    uint8_t *buffer; /* the header that was read, or NULL */
    int fd;          /* open where tensors are read, else -1 */
    uint32_t alignment;
    gguf_kv *kv;
    const gguf_kv **kv_index; /* sorted by key */
    char *keys;               /* NUL-terminated copies */
    size_t n_kv;
    gguf_tensor *tensors;
    const gguf_tensor **tensor_index; /* sorted by name */
    size_t n_tensors;
};

static const struct {
    const char *name;
    uint32_t bytes;
} types[GGUF_N_TYPES] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

static const char *type_name(gguf_type type) {
    return (unsigned)type < GGUF_N_TYPES ? types[type].name : "unknown";
}

const char *gguf_short_path(const char *path) {
    enum { SHOWN = 400 };
    size_t n = strlen(path);
    if (n <= SHOWN) return path;
    path += n - SHOWN;
    while ((*path & 0xc0) == 0x80)
        path++; /* not into the middle of a character */
    return path;
}

/* ---- Text that is safe to print ----------------------------------------------------------- */

/* Bytes of the UTF-8 character at p, 0 if it is not one. */
static size_t utf8_length(const uint8_t *p, size_t n) {
    if (n == 0) return 0;
    if (p[0] < 0x80) return 1;
    size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0; /* overlong */
    if (p[0] == 0xed && p[1] > 0x9f) return 0; /* surrogates */
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0; /* above U+10FFFF */
    return length;
}

/* A line that is built in a buffer and stays valid UTF-8 when it is cut. */
typedef struct {
    char *p;
    size_t size, n;
    bool full;
} line;

static void line_add(line *l, const char *s, size_t n) {
    if (l->full || n >= l->size - l->n) {
        l->full = true;
        return;
    }
    memcpy(l->p + l->n, s, n);
    l->n += n;
    l->p[l->n] = 0;
}

static void line_bytes(line *l, const char *s, size_t n) {
    for (size_t i = 0; i < n && !l->full;) {
        const uint8_t *c = (const uint8_t *)s + i;
        size_t length = utf8_length(c, n - i);
        char escape[8];
        if (length == 0 || *c < 0x20 || *c == 0x7f || (*c == 0xc2 && c[1] < 0xa0)) {
            if (length == 0) length = 1;
            for (size_t k = 0; k < length; k++) {
                if (c[k] == '\n')
                    snprintf(escape, sizeof escape, "\\n");
                else if (c[k] == '\t')
                    snprintf(escape, sizeof escape, "\\t");
                else if (c[k] == '\r')
                    snprintf(escape, sizeof escape, "\\r");
                else
                    snprintf(escape, sizeof escape, "\\x%02X", c[k]);
                line_add(l, escape, strlen(escape));
            }
        } else
            line_add(l, s + i, length);
        i += length;
    }
}

/* A key or name as it may appear in a message. */
typedef struct {
    char s[100];
} shown;

static shown show(gguf_str s) {
    shown out = {{0}};
    line l = {out.s, sizeof out.s - 3, 0, false};
    line_bytes(&l, s.p, s.n);
    if (l.full) memcpy(out.s + l.n, "...", 4);
    return out;
}

/* ---- The cursor --------------------------------------------------------------------------- */

typedef struct {
    gguf *g;
    linnet_error *err;
    size_t at;
    bool starved; /* the file goes on, but was not read far enough: */
    size_t want;  /* at least so many bytes are needed */
} parser;

#define TRY(call)                                                                                  \
    do {                                                                                           \
        linnet_status status_ = (call);                                                            \
        if (status_) return status_;                                                               \
    } while (0)

#define BAD(p, ...) fail((p)->err, LINNET_ERR_FORMAT, __VA_ARGS__)
#define NAME(p) gguf_short_path((p)->g->path)

/* Makes n bytes at the cursor safe to look at. */
static linnet_status need(parser *p, uint64_t n, const char *what) {
    uint64_t left = p->g->file_bytes - p->at;
    if (n > left)
        return BAD(
            p, "%s is truncated: %s needs %" PRIu64 " bytes at offset %zu, %" PRIu64 " are left",
            NAME(p), what, n, p->at, left);
    if (n > p->g->available - p->at) {
        p->starved = true;
        p->want = p->at + (size_t)n;
        return LINNET_ERR_IO;
    }
    return LINNET_OK;
}

static uint64_t load(const uint8_t *p, uint32_t bytes) {
    uint64_t v = 0;
    memcpy(&v, p, bytes);
    return v;
}

static linnet_status take(parser *p, uint32_t bytes, const char *what, uint64_t *v) {
    TRY(need(p, bytes, what));
    *v = load(p->g->data + p->at, bytes);
    p->at += bytes;
    return LINNET_OK;
}

/* A key or tensor name. */
static linnet_status take_name(parser *p, const char *what, size_t index, uint64_t longest,
                               gguf_str *s) {
    char place[48];
    uint64_t n;
    snprintf(place, sizeof place, "%s %zu", what, index);
    TRY(take(p, 8, place, &n));
    if (n == 0) return BAD(p, "%s: %s is empty", NAME(p), place);
    if (n > longest)
        return BAD(p, "%s: %s is %" PRIu64 " bytes long, at most %" PRIu64 " are allowed", NAME(p),
                   place, n, longest);
    TRY(need(p, n, place));
    *s = (gguf_str){(const char *)p->g->data + p->at, (size_t)n};
    p->at += (size_t)n;
    for (size_t i = 0; i < s->n; i++)
        if ((uint8_t)s->p[i] < 0x20 || s->p[i] == 0x7f)
            return BAD(p, "%s: %s (\"%s\") contains a control character", NAME(p), place,
                       show(*s).s);
    return LINNET_OK;
}

/* ---- Metadata ----------------------------------------------------------------------------- */

static linnet_status parse_kv(parser *p, size_t index, gguf_kv *kv) {
    uint64_t v;
    TRY(take_name(p, "metadata key", index, GGUF_MAX_KEY_BYTES, &kv->key));
    shown key = show(kv->key);
    char what[sizeof key.s + 32];
    snprintf(what, sizeof what, "the value of key \"%s\"", key.s);

    TRY(take(p, 4, what, &v));
    if (v >= GGUF_N_TYPES)
        return BAD(p, "%s: key \"%s\" has the unknown value type %" PRIu64 ", expected 0 to %d",
                   NAME(p), key.s, v, GGUF_N_TYPES - 1);
    kv->type = kv->element = (gguf_type)v;
    kv->count = 1;
    if (kv->type == GGUF_ARRAY) {
        TRY(take(p, 4, what, &v));
        if (v == GGUF_ARRAY)
            return BAD(p, "%s: key \"%s\" is an array of arrays, which is not supported", NAME(p),
                       key.s);
        if (v >= GGUF_N_TYPES)
            return BAD(p,
                       "%s: key \"%s\" has the unknown element type %" PRIu64 ", expected 0 to %d",
                       NAME(p), key.s, v, GGUF_N_TYPES - 1);
        kv->element = (gguf_type)v;
        TRY(take(p, 8, what, &kv->count));
        /* Not only whether the product overflows: what could not be in the file is refused before
         * any of it is looked at. A string takes at least its length field. */
        uint32_t least = kv->element == GGUF_STRING ? 8 : types[kv->element].bytes;
        uint64_t left = p->g->file_bytes - p->at;
        if (kv->count > left / least)
            return BAD(p,
                       "%s is truncated: key \"%s\" announces %" PRIu64
                       " values of type %s, but only %" PRIu64 " bytes are left",
                       NAME(p), key.s, kv->count, types[kv->element].name, left);
    }
    size_t start = p->at;
    if (kv->element == GGUF_STRING) {
        for (uint64_t i = 0; i < kv->count; i++) {
            TRY(take(p, 8, what, &v));
            TRY(need(p, v, what));
            p->at += (size_t)v;
        }
    } else {
        uint64_t bytes = kv->count * types[kv->element].bytes;
        TRY(need(p, bytes, what));
        p->at += (size_t)bytes;
    }
    kv->data = p->g->data + start;
    kv->bytes = p->at - start;
    if (kv->element == GGUF_BOOL)
        for (uint64_t i = 0; i < kv->count; i++)
            if (kv->data[i] > 1)
                return BAD(p, "%s: key \"%s\" has the bool value %u, expected 0 or 1", NAME(p),
                           key.s, kv->data[i]);
    return LINNET_OK;
}

static int compare_str(gguf_str a, gguf_str b) {
    int order = memcmp(a.p, b.p, min_size(a.n, b.n));
    if (order) return order;
    return a.n < b.n ? -1 : a.n > b.n;
}

static int by_key(const void *a, const void *b) {
    return compare_str((*(const gguf_kv *const *)a)->key, (*(const gguf_kv *const *)b)->key);
}

static linnet_status index_keys(parser *p) {
    gguf *g = p->g;
    size_t bytes = 1;
    for (size_t i = 0; i < g->n_kv; i++)
        bytes += g->kv[i].key.n + 1;
    g->keys = malloc(bytes);
    g->kv_index = malloc(g->n_kv * sizeof *g->kv_index + 1);
    if (!g->keys || !g->kv_index)
        return fail(p->err, LINNET_ERR_MEMORY, "%s: no memory for %zu metadata keys", NAME(p),
                    g->n_kv);
    char *key = g->keys;
    for (size_t i = 0; i < g->n_kv; i++) {
        gguf_str *s = &g->kv[i].key;
        memcpy(key, s->p, s->n);
        key[s->n] = 0;
        s->p = key;
        key += s->n + 1;
        g->kv_index[i] = &g->kv[i];
    }
    qsort(g->kv_index, g->n_kv, sizeof *g->kv_index, by_key);
    for (size_t i = 1; i < g->n_kv; i++)
        if (by_key(&g->kv_index[i - 1], &g->kv_index[i]) == 0)
            return BAD(p, "%s: metadata key \"%s\" appears twice", NAME(p),
                       show(g->kv_index[i]->key).s);
    return LINNET_OK;
}

/* ---- Tensors ------------------------------------------------------------------------------ */

static linnet_status parse_tensor(parser *p, size_t index, gguf_tensor *t) {
    gguf_str name;
    uint64_t v;
    TRY(take_name(p, "the name of tensor", index, sizeof t->name - 1, &name));
    memcpy(t->name, name.p, name.n);
    t->name[name.n] = 0;
    shown label = show(name);
    char what[sizeof label.s + 32];
    snprintf(what, sizeof what, "the description of tensor \"%s\"", label.s);

    TRY(take(p, 4, what, &v));
    if (v < 1 || v > 4)
        return BAD(p, "%s: tensor \"%s\" has %" PRIu64 " dimensions, expected 1 to 4", NAME(p),
                   label.s, v);
    t->n_dims = (uint32_t)v;
    t->n_elements = 1;
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = 1;
        if (i >= t->n_dims) continue;
        TRY(take(p, 8, what, &t->dims[i]));
        if (t->dims[i] == 0)
            return BAD(p, "%s: dimension %u of tensor \"%s\" is 0", NAME(p), i, label.s);
        if (__builtin_mul_overflow(t->n_elements, t->dims[i], &t->n_elements) ||
            t->n_elements > INT64_MAX)
            return BAD(p, "%s: the dimensions of tensor \"%s\" overflow", NAME(p), label.s);
    }
    TRY(take(p, 4, what, &v));
    t->type = (uint32_t)v;
    const dtype_info *info = dtype_get(t->type);
    t->bytes = 0;
    if (info) {
        if (t->dims[0] % info->block)
            return BAD(p,
                       "%s: rows of tensor \"%s\" have %" PRIu64
                       " elements, not a multiple of the block of %u of "
                       "type %s",
                       NAME(p), label.s, t->dims[0], info->block, info->name);
        if (__builtin_mul_overflow(t->n_elements / info->block, info->block_bytes, &t->bytes) ||
            t->bytes > INT64_MAX)
            return BAD(p, "%s: the size of tensor \"%s\" overflows", NAME(p), label.s);
    }
    return take(p, 8, what, &t->offset); /* from the start of the data until place_tensors */
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const gguf_tensor *const *)a)->name, (*(const gguf_tensor *const *)b)->name);
}

static int by_offset(const void *a, const void *b) {
    const gguf_tensor *s = *(const gguf_tensor *const *)a, *t = *(const gguf_tensor *const *)b;
    if (s->offset != t->offset) return s->offset < t->offset ? -1 : 1;
    return s->bytes < t->bytes ? -1 : s->bytes > t->bytes;
}

/* Turns offsets into file offsets and checks that tensors lie in the file, apart from each other.
 * Holes and trailing bytes are allowed: writers pad. */
static linnet_status place_tensors(parser *p) {
    gguf *g = p->g;
    g->tensor_index = malloc(g->n_tensors * sizeof *g->tensor_index + 1);
    if (!g->tensor_index)
        return fail(p->err, LINNET_ERR_MEMORY, "%s: no memory for %zu tensors", NAME(p),
                    g->n_tensors);
    size_t base;
    if (!align_size(p->at, g->alignment, &base)) return BAD(p, "%s: header too long", NAME(p));
    for (size_t i = 0; i < g->n_tensors; i++) {
        gguf_tensor *t = &g->tensors[i];
        uint64_t end;
        g->tensor_index[i] = t;
        const char *name = t->name;
        if (t->offset % g->alignment)
            return BAD(
                p, "%s: tensor \"%s\" has offset %" PRIu64 ", not a multiple of the alignment %u",
                NAME(p), name, t->offset, g->alignment);
        if (__builtin_add_overflow(t->offset, (uint64_t)base, &t->offset) ||
            __builtin_add_overflow(t->offset, t->bytes, &end))
            return BAD(p, "%s: the offset of tensor \"%s\" overflows", NAME(p), name);
        if (end > g->file_bytes)
            return BAD(p,
                       "%s is truncated: tensor \"%s\" needs %" PRIu64 " bytes to offset %" PRIu64
                       ", the file has %" PRIu64,
                       NAME(p), name, t->bytes, end, g->file_bytes);
    }
    qsort(g->tensor_index, g->n_tensors, sizeof *g->tensor_index, by_offset);
    const gguf_tensor *before = NULL;
    for (size_t i = 0; i < g->n_tensors; i++) {
        const gguf_tensor *t = g->tensor_index[i];
        if (t->bytes == 0) continue; /* unknown type: its size is not known either */
        if (before && before->offset + before->bytes > t->offset)
            return BAD(p, "%s: tensors \"%s\" and \"%s\" overlap at offset %" PRIu64, NAME(p),
                       before->name, t->name, t->offset);
        before = t;
    }
    qsort(g->tensor_index, g->n_tensors, sizeof *g->tensor_index, by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (by_name(&g->tensor_index[i - 1], &g->tensor_index[i]) == 0)
            return BAD(p, "%s: tensor \"%s\" appears twice", NAME(p), g->tensor_index[i]->name);
    return LINNET_OK;
}

/* ---- The file ----------------------------------------------------------------------------- */

static bool starts(const uint8_t *data, size_t n, const char *with) {
    size_t length = strlen(with);
    return n >= length && !strncasecmp((const char *)data, with, length);
}

/* A sentence for the files that people have instead of a model. */
static linnet_status not_gguf(parser *p) {
    const uint8_t *d = p->g->data;
    size_t n = min_size(p->g->available, 512), text = 0;
    if (starts(d, n, "version https://git-lfs"))
        return BAD(p, "%s is a Git-LFS pointer, not the model itself: fetch it with `git lfs pull`",
                   NAME(p));
    if (starts(d, n, "\xef\xbb\xbf")) text = 3;
    while (text < n && isspace(d[text]))
        text++;
    if (starts(d + text, n - text, "<!doctype html") || starts(d + text, n - text, "<html") ||
        starts(d + text, n - text, "<head") || starts(d + text, n - text, "<?xml"))
        return BAD(p, "%s is an HTML page, not a model: the download got a web page instead",
                   NAME(p));
    if (n >= 9 && d[8] == '{' && load(d, 8) < p->g->file_bytes)
        return BAD(p, "%s is a safetensors file, not GGUF: convert it with `python3 -m export`",
                   NAME(p));
    if (starts(d, n, "PK\x03\x04"))
        return BAD(p, "%s is a ZIP archive or PyTorch checkpoint, not GGUF", NAME(p));
    if (n >= 4 && (!memcmp(d, "tjgg", 4) || !memcmp(d, "lmgg", 4) || !memcmp(d, "fmgg", 4)))
        return BAD(p, "%s is in the old GGML format, not GGUF", NAME(p));
    char magic[24] = "";
    for (size_t i = 0; i < 4 && i < n; i++)
        snprintf(magic + 3 * i, sizeof magic - 3 * i, "%02x ", d[i]);
    return BAD(p, "%s is not a GGUF file: it begins with %s(hexadecimal), expected \"GGUF\"",
               NAME(p), magic);
}

static linnet_status parse_all(parser *p) {
    gguf *g = p->g;
    uint64_t magic, version, n_tensors, n_kv;
    if (g->file_bytes == 0) return BAD(p, "%s is empty", NAME(p));
    if (memcmp(g->data, "GGUF", min_size(g->available, 4))) return not_gguf(p);
    TRY(take(p, 4, "the magic number", &magic));
    TRY(take(p, 4, "the version number", &version));
    if (version == 1 || version == 2)
        return fail(p->err, LINNET_ERR_UNSUPPORTED,
                    "%s is GGUF version %d, expected 3: convert the model again", NAME(p),
                    (int)version);
    if (version != 3 && version != 0 && (version & 0xffff) == 0)
        return fail(p->err, LINNET_ERR_UNSUPPORTED,
                    "%s is a big-endian GGUF file, expected little-endian", NAME(p));
    if (version != 3)
        return fail(p->err, LINNET_ERR_UNSUPPORTED, "%s is GGUF version %" PRIu64 ", expected 3",
                    NAME(p), version);
    TRY(take(p, 8, "the number of tensors", &n_tensors));
    TRY(take(p, 8, "the number of metadata keys", &n_kv));
    if (n_tensors > GGUF_MAX_TENSORS)
        return BAD(p, "%s announces %" PRIu64 " tensors, at most %d are allowed", NAME(p),
                   n_tensors, GGUF_MAX_TENSORS);
    if (n_kv > GGUF_MAX_KEYS)
        return BAD(p, "%s announces %" PRIu64 " metadata keys, at most %d are allowed", NAME(p),
                   n_kv, GGUF_MAX_KEYS);
    uint64_t least = n_kv * MIN_KV_BYTES + n_tensors * MIN_TENSOR_BYTES;
    if (least > g->file_bytes - p->at)
        return BAD(p,
                   "%s is truncated: %" PRIu64 " metadata keys and %" PRIu64
                   " tensors need at least %" PRIu64 " bytes, %" PRIu64 " are left",
                   NAME(p), n_kv, n_tensors, least, g->file_bytes - p->at);
    g->n_kv = (size_t)n_kv;
    g->n_tensors = (size_t)n_tensors;
    g->kv = calloc(g->n_kv + 1, sizeof *g->kv);
    g->tensors = calloc(g->n_tensors + 1, sizeof *g->tensors);
    if (!g->kv || !g->tensors)
        return fail(p->err, LINNET_ERR_MEMORY, "%s: no memory for the tables of the header",
                    NAME(p));
    for (size_t i = 0; i < g->n_kv; i++)
        TRY(parse_kv(p, i, &g->kv[i]));
    for (size_t i = 0; i < g->n_tensors; i++)
        TRY(parse_tensor(p, i, &g->tensors[i]));
    TRY(index_keys(p));

    g->alignment = DEFAULT_ALIGNMENT;
    const gguf_kv *kv = gguf_find(g, "general.alignment");
    if (kv) {
        uint64_t a = kv->type == GGUF_U32 ? load(kv->data, 4) : 0;
        if (kv->type != GGUF_U32)
            return BAD(p, "%s: key \"general.alignment\" is of type %s, expected u32", NAME(p),
                       types[kv->type].name);
        if (a < MIN_ALIGNMENT || a > MAX_ALIGNMENT || (a & (a - 1)))
            return BAD(p,
                       "%s: key \"general.alignment\" is %" PRIu64
                       ", expected a power of two from %d to %d",
                       NAME(p), a, MIN_ALIGNMENT, MAX_ALIGNMENT);
        g->alignment = (uint32_t)a;
    }
    return place_tensors(p);
}

static void drop_tables(gguf *g) {
    free(g->kv);
    free(g->kv_index);
    free(g->keys);
    free(g->tensors);
    free(g->tensor_index);
    g->kv = NULL;
    g->kv_index = NULL;
    g->keys = NULL;
    g->tensors = NULL;
    g->tensor_index = NULL;
    g->n_kv = g->n_tensors = 0;
}

void gguf_close(gguf *g) {
    if (!g) return;
    drop_tables(g);
    if (g->map) munmap(g->map, (size_t)g->file_bytes);
    if (g->fd >= 0) close(g->fd);
    free(g->buffer);
    free(g->path);
    free(g);
}

static gguf *new_gguf(const char *path, linnet_error *err) {
    gguf *g = calloc(1, sizeof *g);
    if (g) {
        g->fd = -1;
        g->path = strdup(path);
    }
    if (!g || !g->path) {
        free(g);
        fail(err, LINNET_ERR_MEMORY, "%s: no memory to open it", gguf_short_path(path));
        return NULL;
    }
    return g;
}

/* pread until done; what was asked for is known to be in the file. */
static linnet_status read_at(const gguf *g, void *into, uint64_t offset, size_t bytes,
                             linnet_error *err) {
    uint8_t *to = into;
    while (bytes > 0) {
        ssize_t n = pread(g->fd, to, min_size(bytes, (size_t)1 << 30), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fail(err, LINNET_ERR_IO, "cannot read %s at offset %" PRIu64 ": %s",
                        gguf_short_path(g->path), offset, strerror(errno));
        if (n == 0)
            return fail(err, LINNET_ERR_IO,
                        "%s became shorter while it was read: no data at offset %" PRIu64,
                        gguf_short_path(g->path), offset);
        to += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return LINNET_OK;
}

/* Reads the header in growing pieces until it parses or is known to be wrong. */
static linnet_status parse_from_file(gguf *g, linnet_error *err) {
    size_t want = FIRST_READ, size = (size_t)g->file_bytes;
    for (;;) {
        want = min_size(want, size);
        uint8_t *grown = realloc(g->buffer, want + 1);
        if (!grown)
            return fail(err, LINNET_ERR_MEMORY, "%s: no memory for a header of %zu bytes",
                        gguf_short_path(g->path), want);
        g->buffer = grown;
        g->data = grown;
        TRY(read_at(g, grown + g->available, g->available, want - g->available, err));
        g->available = want;
        parser p = {.g = g, .err = err};
        linnet_status status = parse_all(&p);
        if (!p.starved) return status;
        drop_tables(g);
        want = max_size(want * 2, p.want); /* <= file size: need() has seen to it */
    }
}

linnet_status gguf_open(gguf **out, const char *path, bool no_mmap, linnet_error *err) {
    *out = NULL;
    gguf *g = new_gguf(path, err);
    if (!g) return LINNET_ERR_MEMORY;
    const char *name = gguf_short_path(path);
    linnet_status status = LINNET_ERR_IO;
    struct stat st;
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    do
        g->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (g->fd < 0 && errno == EINTR);
    if (g->fd < 0)
        fail(err, status, "cannot open %s: %s", name, strerror(errno));
    else if (fstat(g->fd, &st))
        fail(err, status, "cannot examine %s: %s", name, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        fail(err, status, "%s is a folder, expected a GGUF file", name);
    else if (!S_ISREG(st.st_mode))
        fail(err, status, "%s is not a regular file", name);
    else if (st.st_size < 0 || (uint64_t)st.st_size > SIZE_MAX / 4)
        fail(err, status, "%s is too large to address", name);
    else
        status = LINNET_OK;
    if (status) goto failed;

    g->file_bytes = (uint64_t)st.st_size;
    if (no_mmap && g->file_bytes) {
        status = parse_from_file(g, err);
    } else {
        if (g->file_bytes) {
            void *map = mmap(NULL, (size_t)g->file_bytes, PROT_READ, MAP_PRIVATE, g->fd, 0);
            if (map == MAP_FAILED) {
                status = fail(err, LINNET_ERR_IO, "cannot map %s (%" PRIu64 " bytes): %s", name,
                              g->file_bytes, strerror(errno));
                goto failed;
            }
            g->map = map;
        }
        close(g->fd);
        g->fd = -1;
        g->data = g->map;
        g->available = (size_t)g->file_bytes;
        parser p = {.g = g, .err = err};
        status = parse_all(&p);
    }
    if (status == LINNET_OK) {
        *out = g;
        return LINNET_OK;
    }
failed:
    gguf_close(g);
    return status;
}

linnet_status gguf_open_memory(gguf **out, const void *data, size_t bytes, const char *path,
                               linnet_error *err) {
    *out = NULL;
    gguf *g = new_gguf(path, err);
    if (!g) return LINNET_ERR_MEMORY;
    g->data = data;
    g->available = bytes;
    g->file_bytes = bytes;
    parser p = {.g = g, .err = err};
    linnet_status status = parse_all(&p);
    if (status)
        gguf_close(g);
    else
        *out = g;
    return status;
}

/* ---- Access ------------------------------------------------------------------------------- */

const char *gguf_path(const gguf *g) {
    return gguf_short_path(g->path);
}
uint64_t gguf_file_bytes(const gguf *g) {
    return g->file_bytes;
}
uint32_t gguf_alignment(const gguf *g) {
    return g->alignment;
}
size_t gguf_n_kv(const gguf *g) {
    return g->n_kv;
}
const gguf_kv *gguf_kv_at(const gguf *g, size_t i) {
    return &g->kv[i];
}
size_t gguf_n_tensors(const gguf *g) {
    return g->n_tensors;
}
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i) {
    return &g->tensors[i];
}
bool gguf_is_mapped(const gguf *g) {
    return g->fd < 0;
}

const gguf_kv *gguf_find(const gguf *g, const char *key) {
    size_t low = 0, high = g->n_kv;
    gguf_str wanted = {key, strlen(key)};
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_str(wanted, g->kv_index[middle]->key);
        if (order == 0) return g->kv_index[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name) {
    size_t low = 0, high = g->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, g->tensor_index[middle]->name);
        if (order == 0) return g->tensor_index[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static bool is_integer(gguf_type type) {
    return type <= GGUF_I32 || type == GGUF_U64 || type == GGUF_I64;
}

/* Finds `key`; *kv is NULL where it is absent and need not be there. */
static linnet_status lookup(const gguf *g, const char *key, bool required, const gguf_kv **kv,
                            linnet_error *err) {
    *kv = gguf_find(g, key);
    if (!*kv && required)
        return fail(err, LINNET_ERR_FORMAT, "%s: metadata key \"%s\" is missing",
                    gguf_short_path(g->path), key);
    return LINNET_OK;
}

static linnet_status mistyped(const gguf *g, const gguf_kv *kv, const char *expected,
                              linnet_error *err) {
    bool array = kv->type == GGUF_ARRAY;
    return fail(err, LINNET_ERR_FORMAT, "%s: metadata key \"%s\" is %s%s, expected %s",
                gguf_short_path(g->path), show(kv->key).s, array ? "an array of " : "of type ",
                types[kv->element].name, expected);
}

linnet_status gguf_get_int(const gguf *g, const char *key, bool required, int64_t lo, int64_t hi,
                           int64_t *out, linnet_error *err) {
    const gguf_kv *kv;
    TRY(lookup(g, key, required, &kv, err));
    if (!kv) return LINNET_OK;
    if (!is_integer(kv->type)) return mistyped(g, kv, "an integer", err);
    int64_t v = gguf_int_at(kv, 0);
    if (v < lo || v > hi || (kv->type == GGUF_U64 && load(kv->data, 8) > INT64_MAX)) {
        char found[32];
        gguf_kv_text(kv, found, sizeof found);
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: metadata key \"%s\" is %s, expected %" PRId64 " to %" PRId64,
                    gguf_short_path(g->path), key, found, lo, hi);
    }
    *out = v;
    return LINNET_OK;
}

linnet_status gguf_get_float(const gguf *g, const char *key, bool required, double *out,
                             linnet_error *err) {
    const gguf_kv *kv;
    TRY(lookup(g, key, required, &kv, err));
    if (!kv) return LINNET_OK;
    if (kv->type != GGUF_F32 && kv->type != GGUF_F64) return mistyped(g, kv, "f32 or f64", err);
    double v = gguf_float_at(kv, 0);
    if (!isfinite(v))
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: metadata key \"%s\" is %s, expected a finite number",
                    gguf_short_path(g->path), key, isnan(v) ? "NaN" : "infinite");
    *out = v;
    return LINNET_OK;
}

linnet_status gguf_get_bool(const gguf *g, const char *key, bool required, bool *out,
                            linnet_error *err) {
    const gguf_kv *kv;
    TRY(lookup(g, key, required, &kv, err));
    if (!kv) return LINNET_OK;
    if (kv->type != GGUF_BOOL) return mistyped(g, kv, "bool", err);
    *out = kv->data[0] != 0;
    return LINNET_OK;
}

linnet_status gguf_get_str(const gguf *g, const char *key, bool required, gguf_str *out,
                           linnet_error *err) {
    const gguf_kv *kv;
    TRY(lookup(g, key, required, &kv, err));
    if (!kv) return LINNET_OK;
    if (kv->type != GGUF_STRING) return mistyped(g, kv, "string", err);
    size_t cursor = 0;
    *out = gguf_next_str(kv, &cursor);
    return LINNET_OK;
}

linnet_status gguf_get_array(const gguf *g, const char *key, gguf_type element, bool required,
                             const gguf_kv **out, linnet_error *err) {
    *out = NULL;
    const gguf_kv *kv;
    TRY(lookup(g, key, required, &kv, err));
    if (!kv) return LINNET_OK;
    if (kv->type != GGUF_ARRAY || kv->element != element) {
        char expected[40];
        snprintf(expected, sizeof expected, "an array of %s", type_name(element));
        return mistyped(g, kv, expected, err);
    }
    *out = kv;
    return LINNET_OK;
}

gguf_str gguf_next_str(const gguf_kv *array, size_t *cursor) {
    if (array->element != GGUF_STRING || *cursor >= array->bytes) return (gguf_str){NULL, 0};
    size_t n = (size_t)load(array->data + *cursor, 8); /* checked by parse_kv */
    gguf_str s = {(const char *)array->data + *cursor + 8, n};
    *cursor += 8 + n;
    return s;
}

double gguf_float_at(const gguf_kv *kv, uint64_t i) {
    const uint8_t *p = kv->data + i * types[kv->element].bytes;
    float f;
    double d;
    switch (kv->element) {
    case GGUF_F32:
        memcpy(&f, p, 4);
        return (double)f;
    case GGUF_F64:
        memcpy(&d, p, 8);
        return d;
    case GGUF_U64:
        return (double)load(p, 8);
    default:
        return (double)gguf_int_at(kv, i);
    }
}

int64_t gguf_int_at(const gguf_kv *kv, uint64_t i) {
    const uint8_t *p = kv->data + i * types[kv->element].bytes;
    uint64_t v = kv->element == GGUF_STRING ? 0 : load(p, types[kv->element].bytes);
    double d;
    switch (kv->element) {
    case GGUF_I8:
        return (int8_t)v;
    case GGUF_I16:
        return (int16_t)v;
    case GGUF_I32:
        return (int32_t)v;
    case GGUF_I64:
        return (int64_t)v;
    case GGUF_U64:
        return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    case GGUF_F32:
    case GGUF_F64:
        d = gguf_float_at(kv, i);
        if (d >= 0x1p63) return INT64_MAX;
        if (d < -0x1p63) return INT64_MIN;
        return isnan(d) ? 0 : (int64_t)d;
    default:
        return (int64_t)v;
    }
}

static void line_value(line *l, const gguf_kv *kv, uint64_t i) {
    char text[48];
    switch (kv->element) {
    case GGUF_F32:
        snprintf(text, sizeof text, "%.7g", gguf_float_at(kv, i));
        break;
    case GGUF_F64:
        snprintf(text, sizeof text, "%.15g", gguf_float_at(kv, i));
        break;
    case GGUF_BOOL:
        snprintf(text, sizeof text, "%s", kv->data[i] ? "true" : "false");
        break;
    case GGUF_U64:
        snprintf(text, sizeof text, "%" PRIu64, load(kv->data + 8 * i, 8));
        break;
    default:
        snprintf(text, sizeof text, "%" PRId64, gguf_int_at(kv, i));
    }
    line_add(l, text, strlen(text));
}

void gguf_kv_text(const gguf_kv *kv, char *out, size_t size) {
    enum { SHOWN = 8 };
    if (size == 0) return;
    *out = 0;
    line l = {out, size, 0, false};
    bool array = kv->type == GGUF_ARRAY;
    if (array) {
        char head[64];
        snprintf(head, sizeof head, "[%" PRIu64 " x %s%s", kv->count, types[kv->element].name,
                 kv->count ? ": " : "");
        line_add(&l, head, strlen(head));
    }
    size_t cursor = 0;
    for (uint64_t i = 0; i < kv->count && i < SHOWN; i++) {
        if (i) line_add(&l, ", ", 2);
        if (kv->element == GGUF_STRING) {
            gguf_str s = gguf_next_str(kv, &cursor);
            line_bytes(&l, s.p, s.n);
        } else
            line_value(&l, kv, i);
    }
    if (array) line_add(&l, kv->count > SHOWN ? ", ...]" : "]", kv->count > SHOWN ? 6 : 1);
}

linnet_status gguf_read(const gguf *g, const gguf_tensor *t, uint64_t offset, size_t bytes,
                        void *scratch, const void **out, linnet_error *err) {
    if (offset > t->bytes || bytes > t->bytes - offset)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "%s: %zu bytes at %" PRIu64 " are not inside tensor \"%s\" of %" PRIu64
                    " bytes",
                    gguf_short_path(g->path), bytes, offset, t->name, t->bytes);
    if (g->fd < 0) {
        *out = g->data + t->offset + offset;
        return LINNET_OK;
    }
    *out = scratch;
    return read_at(g, scratch, t->offset + offset, bytes, err);
}

void gguf_release(const gguf *g, const gguf_tensor *t, uint64_t offset, uint64_t bytes) {
    if (!g->map) return;
    /* Whole pages inside the range; its neighbours' stay. Only a hint, so errors do not matter. */
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t from = round_up((size_t)(t->offset + offset), page);
    size_t to = (size_t)(t->offset + offset + bytes) / page * page;
    if (from < to) madvise((char *)g->map + from, to - from, MADV_DONTNEED);
}
