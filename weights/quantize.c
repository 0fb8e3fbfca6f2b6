/* linnet_quantize: a model file with its matrices in another type, tensor by tensor and piece by
 * piece, so that a model of any size passes through a few megabytes. */
#include "gguf_write.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    PIECE = 1 << 20, /* elements held at once */
    GRAIN = 1 << 12, /* elements of a thread's share of them; a multiple of every block */
    QUANTIZATION_VERSION = 2
};

#define TRY(call)                                                                                  \
    do {                                                                                           \
        linnet_status status_ = (call);                                                            \
        if (status_) return status_;                                                               \
    } while (0)

/* What may be asked for, and its general.file_type (enum llama_ftype of llama.h). */
static const struct {
    dtype type;
    uint32_t file_type;
} targets[] = {
    {DTYPE_F32, 0},  {DTYPE_F16, 1},  {DTYPE_BF16, 32}, {DTYPE_Q8_0, 7},
    {DTYPE_Q4_0, 2}, {DTYPE_Q4_1, 3}, {DTYPE_Q4_K, 14}, {DTYPE_Q6_K, 18},
};
enum { N_TARGETS = sizeof targets / sizeof *targets };

/* Two-dimensional tensors that are not factors of a matrix product, or too small and sensitive to
 * shrink. */
static const char *const kept_parts[] = {"norm",          "conv1d",      "shortconv.conv",
                                         "position_embd", "token_types", "rel_pos",
                                         "attn_rel_b",    "ffn_gate_inp"};

typedef struct {
    const gguf *in;
    gguf_writer *w;
    dtype target;
    bool tied;
    const linnet_quantize_options *options;
    dtype *types; /* of the tensors in the output */
    uint8_t *raw; /* a piece as it is written */
    uint8_t *scratch;
    float *x;
    size_t done, total; /* bytes of the input, for the progress */
} job;

static double bits_per_weight(dtype type) {
    const dtype_info *info = dtype_get(type);
    return 8.0 * info->block_bytes / info->block;
}

static bool is_matrix(const gguf_tensor *t) {
    return t->dims[0] > 1 && t->dims[1] > 1 && t->dims[2] == 1 && t->dims[3] == 1;
}

static bool is_kept(const gguf_tensor *t) {
    if (!is_matrix(t)) return true;
    size_t n = strlen(t->name);
    if (n < 7 || strcmp(t->name + n - 7, ".weight")) return true;
    for (size_t i = 0; i < sizeof kept_parts / sizeof *kept_parts; i++)
        if (strstr(t->name, kept_parts[i])) return true;
    return false;
}

/* The type of a tensor in the output; *why says what keeps it from being the target, or NULL. */
static dtype choose(const job *j, const gguf_tensor *t, const char **why) {
    dtype source = (dtype)t->type, type = j->target;
    *why = NULL;
    if (j->target == DTYPE_F32) return DTYPE_F32;
    if (is_kept(t)) {
        /* Vectors go without saying. */
        if (t->dims[1] * t->dims[2] * t->dims[3] > 1) *why = "not the matrix of a product";
        return source;
    }
    if (j->tied && !strcmp(t->name, "token_embd.weight") &&
        bits_per_weight(type) < bits_per_weight(DTYPE_Q8_0)) {
        *why = "the embedding is also the output matrix";
        type = DTYPE_Q8_0;
    }
    if (t->dims[0] % dtype_get(type)->block && dtype_get(type)->block == 256) {
        *why = "its rows are not a multiple of 256";
        type = type == DTYPE_Q4_K ? DTYPE_Q5_0 : DTYPE_Q8_0;
    }
    if (t->dims[0] % dtype_get(type)->block) {
        *why = "its rows are not a multiple of 32";
        type = DTYPE_F16;
    }
    return type;
}

/* The smallest magnitude that `type` cannot hold; a block's scale is f16, and no larger than its
 * largest element. */
static float limit(dtype type) {
    if (type == DTYPE_F32) return INFINITY;
    if (type == DTYPE_BF16) return 0x1.ffp127f;
    return 65520.0f;
}

/* One tensor. The rows of both types are whole blocks, so pieces may cut through rows. */
static linnet_status convert(job *j, const gguf_tensor *t, dtype to, linnet_error *err) {
    const dtype from = (dtype)t->type;
    const char *path = gguf_path(j->in);
    const float too_large = limit(to);
    for (uint64_t at = 0; at < t->n_elements; at += PIECE) {
        size_t n = min_size((size_t)(t->n_elements - at), PIECE);
        const size_t bytes = dtype_row_bytes(from, n), out_bytes = dtype_row_bytes(to, n);
        const size_t grains = (n + GRAIN - 1) / GRAIN;
        const void *src;
        TRY(gguf_read(j->in, t, dtype_row_bytes(from, (size_t)at), bytes, j->scratch, &src, err));
        if (from == to) {
            TRY(gguf_writer_data(j->w, src, bytes, err)); /* as it is: nothing is lost */
        } else {
            bool nan = false, large = false;
#pragma omp parallel for reduction(|| : nan, large)
            for (size_t g = 0; g < grains; g++) {
                size_t first = g * GRAIN, count = min_size(n - first, GRAIN);
                float *x = j->x + first;
                dequantize_row(from, (const uint8_t *)src + dtype_row_bytes(from, first), x, count);
                bool fits = true;
                for (size_t i = 0; i < count; i++) {
                    if (!isfinite(x[i])) nan = true;
                    fits = fits && fabsf(x[i]) < too_large;
                }
                if (fits)
                    quantize_row(to, x, j->raw + dtype_row_bytes(to, first), count);
                else
                    large = true;
            }
            if (nan)
                return fail(err, LINNET_ERR_NUMERIC,
                            "%s: tensor \"%s\" contains a NaN or infinity, expected finite weights",
                            path, t->name);
            if (large)
                return fail(err, LINNET_ERR_NUMERIC,
                            "%s: tensor \"%s\" contains a weight too large for %s", path, t->name,
                            dtype_any_name(to));
            TRY(gguf_writer_data(j->w, j->raw, out_bytes, err));
        }
        j->done += bytes;
        if (j->options->progress &&
            !j->options->progress(j->options->user, t->name, j->done, j->total))
            return fail(err, LINNET_ERR_CANCELLED, "the conversion of %s was cancelled", path);
    }
    gguf_release(j->in, t, 0, t->bytes);
    return LINNET_OK;
}

/* Decides and announces everything. */
static linnet_status announce(job *j, uint32_t file_type, linnet_error *err) {
    bool have_type = false, have_version = false;
    for (size_t i = 0; i < gguf_n_kv(j->in); i++) {
        const gguf_kv *kv = gguf_kv_at(j->in, i);
        if (!strcmp(kv->key.p, "general.file_type")) {
            TRY(gguf_writer_u32(j->w, kv->key.p, file_type, err));
            have_type = true;
        } else if (!strcmp(kv->key.p, "general.quantization_version")) {
            TRY(gguf_writer_u32(j->w, kv->key.p, QUANTIZATION_VERSION, err));
            have_version = true;
        } else
            TRY(gguf_writer_copy_kv(j->w, kv, err));
    }
    if (!have_type) TRY(gguf_writer_u32(j->w, "general.file_type", file_type, err));
    if (!have_version)
        TRY(gguf_writer_u32(j->w, "general.quantization_version", QUANTIZATION_VERSION, err));
    for (size_t i = 0; i < gguf_n_tensors(j->in); i++) {
        const gguf_tensor *t = gguf_tensor_at(j->in, i);
        const char *why;
        j->types[i] = choose(j, t, &why);
        TRY(gguf_writer_add_tensor(j->w, t->name, j->types[i], t->n_dims, t->dims, err));
        if (why && j->options->note && bits_per_weight(j->types[i]) > bits_per_weight(j->target))
            j->options->note(j->options->user, t->name, dtype_any_name(j->types[i]), why);
    }
    return LINNET_OK;
}

static bool same_file(const char *a, const char *b) {
    struct stat s, t;
    return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

static linnet_status check_input(job *j, linnet_error *err) {
    const char *path = gguf_path(j->in);
    int64_t parts = 1;
    if (gguf_n_tensors(j->in) == 0)
        return fail(err, LINNET_ERR_UNSUPPORTED, "%s has no tensors, there is nothing to quantize",
                    path);
    TRY(gguf_get_int(j->in, "split.count", false, 0, UINT16_MAX, &parts, err));
    if (parts > 1)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s is one of %d parts of a split model: merge them first", path, (int)parts);
    for (size_t i = 0; i < gguf_n_tensors(j->in); i++) {
        const gguf_tensor *t = gguf_tensor_at(j->in, i);
        if (!dtype_get(t->type))
            return fail(err, LINNET_ERR_UNSUPPORTED,
                        "%s: tensor \"%s\" is of type %s, supported are %s", path, t->name,
                        dtype_any_name(t->type), dtype_list());
        j->total += (size_t)t->bytes;
    }
    return LINNET_OK;
}

static linnet_status run(job *j, const char *out_path, uint32_t file_type, linnet_error *err) {
    TRY(check_input(j, err));
    j->tied = !j->options->pure && !gguf_find_tensor(j->in, "output.weight");
    j->types = malloc(gguf_n_tensors(j->in) * sizeof *j->types);
    j->x = malloc(PIECE * sizeof *j->x);
    j->raw = malloc(PIECE * sizeof *j->x); /* no type is wider than f32 */
    j->scratch = gguf_is_mapped(j->in) ? NULL : malloc(PIECE * sizeof *j->x);
    if (!j->types || !j->x || !j->raw || (!gguf_is_mapped(j->in) && !j->scratch))
        return fail(err, LINNET_ERR_MEMORY, "no memory to convert %s", gguf_path(j->in));
    TRY(gguf_writer_open(&j->w, out_path, err));
    TRY(announce(j, file_type, err));
    for (size_t i = 0; i < gguf_n_tensors(j->in); i++)
        TRY(convert(j, gguf_tensor_at(j->in, i), j->types[i], err));
    return gguf_writer_finish(j->w, err);
}

linnet_status linnet_quantize(const char *in_path, const char *out_path, const char *type,
                              const linnet_quantize_options *options, linnet_error *err) {
    static const linnet_quantize_options defaults;
    if (!in_path || !out_path || !type)
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_quantize: a path or the type is NULL");
    int target = dtype_by_name(type), i = 0;
    while (i < N_TARGETS && (int)targets[i].type != target)
        i++;
    if (i == N_TARGETS)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "unknown type \"%.40s\", expected one of f32 f16 bf16 q8_0 q4_0 q4_1 q4_K q6_K",
                    type);
    if (same_file(in_path, out_path))
        return fail(err, LINNET_ERR_ARGUMENT, "%s is the input and the output, expected two files",
                    gguf_short_path(out_path));
    gguf *in;
    TRY(gguf_open(&in, in_path, false, err));
    job j = {.in = in, .target = (dtype)target, .options = options ? options : &defaults};
    linnet_status status = run(&j, out_path, targets[i].file_type, err);
    gguf_writer_free(j.w);
    free(j.types);
    free(j.x);
    free(j.raw);
    free(j.scratch);
    gguf_close(in);
    return status;
}
