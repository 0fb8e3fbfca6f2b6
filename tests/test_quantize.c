/* linnet_quantize and the GGUF writer. tests/data/quantize is made by tests/golden/make_quantize.py
 * with the `gguf` Python package. */
#include "../weights/gguf_write.h"
#include "build_gguf.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define IN "tests/data/quantize/in.gguf"

static char folder[512], in[600], out[600];

static uint8_t *slurp(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    uint8_t *p = malloc(1 << 22);
    *n = fread(p, 1, 1 << 22, f);
    fclose(f);
    return p;
}

/* The files in the folder, so that one left behind is seen. */
static int count_files(void) {
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void clean(void) {
    DIR *d = opendir(folder);
    char path[1200];
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (e->d_name[0] != '.' && unlink(path)) rmdir(path);
    }
    closedir(d);
}

typedef struct {
    char text[4000];
    size_t calls, last, cancel_at;
} seen;

static void note(void *user, const char *tensor, const char *dtype, const char *why) {
    seen *s = user;
    size_t n = strlen(s->text);
    snprintf(s->text + n, sizeof s->text - n, "%s %s: %s\n", tensor, dtype, why);
}

static bool progress(void *user, const char *what, size_t done, size_t total) {
    seen *s = user;
    assert_true(what && done > s->last && done <= total);
    s->last = done;
    return ++s->calls != s->cancel_at;
}

static gguf *quantized(const char *from, const char *type, bool pure, seen *s) {
    linnet_error err;
    gguf *g;
    if (s) memset(s, 0, sizeof *s);
    linnet_quantize_options options = {pure, s ? note : NULL, s ? progress : NULL, s};
    if (linnet_quantize(from, out, type, &options, &err)) fail_msg("%s: %s", type, err.text);
    if (gguf_open(&g, out, false, &err)) fail_msg("%s", err.text);
    return g;
}

static const char *type_of(const gguf *g, const char *name) {
    const gguf_tensor *t = gguf_find_tensor(g, name);
    return t ? dtype_any_name(t->type) : "missing";
}

/* The whole file is what the Python package writes. */
static void byte_equal(void **state) {
    (void)state;
    static const char *const types[] = {"q8_0", "q4_0", "q4_1"};
    for (int i = 0; i < 3; i++) {
        char path[64];
        size_t n, m;
        snprintf(path, sizeof path, "tests/data/quantize/%s.gguf", types[i]);
        gguf_close(quantized(IN, types[i], true, NULL));
        uint8_t *expected = slurp(path, &n), *got = slurp(out, &m);
        /* The key that quantize adds comes last in both. */
        assert_int_equal(n, m);
        assert_memory_equal(expected, got, n);
        free(expected);
        free(got);
        assert_int_equal(count_files(), 1);
    }
}

/* Every tensor is the chosen type's quantizer over the dequantized source; metadata is kept. */
static void every_type(void **state) {
    (void)state;
    static const struct {
        const char *type, *embd, *wide_rows, *rows, *odd, *vector, *maps;
        uint32_t file_type;
    } cases[] = {
        {"f32", "f32", "f32", "f32", "f32", "f32", "f32", 0},
        {"f16", "f16", "f16", "f16", "f16", "f32", "f32", 1},
        {"BF16", "bf16", "bf16", "bf16", "bf16", "f32", "f32", 32},
        {"q8_0", "q8_0", "q8_0", "q8_0", "f16", "f32", "f32", 7},
        {"q4_0", "q8_0", "q4_0", "q4_0", "f16", "f32", "f32", 2},
        {"Q4_1", "q8_0", "q4_1", "q4_1", "f16", "f32", "f32", 3},
        {"q4_k", "q8_0", "q4_K", "q5_0", "f16", "f32", "f32", 14},
        {"q4_K", "q8_0", "q4_K", "q5_0", "f16", "f32", "f32", 14},
        {"Q6_K", "q8_0", "q6_K", "q8_0", "f16", "f32", "f32", 18},
    };
    linnet_error err;
    gguf *source;
    assert_int_equal(gguf_open(&source, IN, false, &err), 0);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        gguf *g = quantized(IN, cases[c].type, false, NULL);
        assert_string_equal(type_of(g, "token_embd.weight"), cases[c].embd);
        assert_string_equal(type_of(g, "blk.0.ffn_down.weight"), cases[c].wide_rows);
        assert_string_equal(type_of(g, "blk.0.attn_q.weight"), cases[c].rows);
        assert_string_equal(type_of(g, "blk.0.ffn_up.weight"), cases[c].rows);
        assert_string_equal(type_of(g, "blk.0.odd.weight"), cases[c].odd);
        assert_string_equal(type_of(g, "blk.0.attn_norm.weight"), cases[c].vector);
        assert_string_equal(type_of(g, "blk.0.attn_q.bias"), cases[c].vector);
        assert_string_equal(type_of(g, "position_embd.weight"), cases[c].maps);
        assert_string_equal(type_of(g, "blk.0.ssm_conv1d.weight"), cases[c].maps);
        assert_string_equal(type_of(g, "blk.0.maps.weight"), cases[c].maps);
        assert_int_equal(gguf_n_tensors(g), gguf_n_tensors(source));
        for (size_t i = 0; i < gguf_n_tensors(g); i++) {
            const gguf_tensor *s = gguf_tensor_at(source, i), *t = gguf_tensor_at(g, i);
            const void *from, *to;
            assert_string_equal(s->name, t->name);
            assert_int_equal(s->n_dims, t->n_dims);
            assert_memory_equal(s->dims, t->dims, sizeof s->dims);
            assert_int_equal(gguf_read(source, s, 0, s->bytes, NULL, &from, &err), 0);
            assert_int_equal(gguf_read(g, t, 0, t->bytes, NULL, &to, &err), 0);
            if (s->type == t->type) {
                assert_memory_equal(from, to, s->bytes);
                continue;
            }
            float *x = malloc(4 * s->n_elements);
            uint8_t *made = malloc(t->bytes);
            dequantize_row((dtype)s->type, from, x, s->n_elements);
            quantize_row((dtype)t->type, x, made, s->n_elements);
            assert_memory_equal(made, to, t->bytes);
            free(x);
            free(made);
        }
        for (size_t i = 0; i < gguf_n_kv(source); i++) {
            const gguf_kv *a = gguf_kv_at(source, i), *b = gguf_find(g, a->key.p);
            if (!strcmp(a->key.p, "general.file_type")) continue;
            assert_non_null(b);
            assert_true(a->type == b->type && a->element == b->element && a->count == b->count);
            assert_int_equal(a->bytes, b->bytes);
            assert_memory_equal(a->data, b->data, a->bytes);
        }
        int64_t v = -1;
        assert_int_equal(gguf_n_kv(g), gguf_n_kv(source) + 1);
        assert_int_equal(gguf_get_int(g, "general.file_type", true, 0, 99, &v, &err), 0);
        assert_int_equal(v, cases[c].file_type);
        assert_int_equal(gguf_get_int(g, "general.quantization_version", true, 0, 99, &v, &err), 0);
        assert_int_equal(v, 2);
        assert_int_equal(gguf_alignment(g), 64);
        gguf_close(g);
        assert_int_equal(count_files(), 1);
    }
    gguf_close(source);
}

static void notes(void **state) {
    (void)state;
    seen s;
    gguf_close(quantized(IN, "q4_K", false, &s));
    static const char *const expected[] = {
        "token_embd.weight q8_0: the embedding is also the output matrix\n",
        "position_embd.weight f32: not the matrix of a product\n",
        "blk.0.attn_q.weight q5_0: its rows are not a multiple of 256\n",
        "blk.0.odd.weight f16: its rows are not a multiple of 32\n",
        "blk.0.ssm_conv1d.weight f32: not the matrix of a product\n",
        "blk.0.maps.weight f32: not the matrix of a product\n",
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(s.text, expected[i])) fail_msg("no note \"%s\" in:\n%s", expected[i], s.text);
    assert_null(strstr(s.text, "norm"));
    assert_null(strstr(s.text, "bias"));
    assert_null(strstr(s.text, "ffn_down"));
    assert_int_equal(s.calls, 13);

    gguf_close(quantized(IN, "q4_0", true, &s));
    assert_null(strstr(s.text, "token_embd"));
    gguf_close(quantized(IN, "f32", false, &s));
    assert_string_equal(s.text, "");
}

/* token_embd.weight and output.weight, 256 x 3, with q4_0's largest value for a test of limits. */
static buf build_model(bool output, uint32_t type, float value) {
    buf b = {0};
    size_t bytes = type == 0 ? 4 * 768 : 2 * 768;
    put_head(&b, output ? 2 : 1, 0);
    put_tensor_2d(&b, "token_embd.weight", 256, 3, type, 0);
    if (output) put_tensor_2d(&b, "output.weight", 256, 3, type, bytes);
    put_align(&b, 32);
    for (int i = 0; i < (output ? 2 : 1) * 768; i++) {
        float v = i == 700 ? value : (float)(i % 17) / 16;
        uint16_t h = type == 30 ? f32_to_bf16(v) : f32_to_f16(v);
        if (type == 0)
            put_f32(&b, v);
        else
            put(&b, &h, 2);
    }
    return b;
}

static void tied_or_not(void **state) {
    (void)state;
    for (int output = 0; output < 2; output++) {
        buf b = build_model(output, 0, 1);
        write_file(in, b.p, b.n);
        static const char *const types[] = {"q4_0", "q4_1", "q4_K", "q6_K"};
        for (int i = 0; i < 4; i++) {
            gguf *g = quantized(in, types[i], false, NULL);
            assert_string_equal(type_of(g, "token_embd.weight"), output ? types[i] : "q8_0");
            if (output) assert_string_equal(type_of(g, "output.weight"), types[i]);
            gguf_close(g);
            g = quantized(in, types[i], true, NULL);
            assert_string_equal(type_of(g, "token_embd.weight"), types[i]);
            /* Both keys are there though the input had none. */
            assert_int_equal(gguf_n_kv(g), 2);
            gguf_close(g);
        }
        free(b.p);
    }
    clean();
}

/* What has its type already is copied, not quantized again; vectors keep even a narrower type. */
static void kept_types(void **state) {
    (void)state;
    buf b = {0};
    uint8_t block[34] = {0, 0x3c, 1, 2, 3}; /* scale 1, largest element 3 instead of 127 */
    put_head(&b, 2, 0);
    put_tensor_2d(&b, "blk.0.a.weight", 32, 2, 8, 0);
    put_tensor_1d(&b, "blk.0.norm.weight", 4, 1, 96);
    put_align(&b, 32);
    put(&b, block, 34), put(&b, block, 34);
    put_align(&b, 32);
    put(&b, "\0\x3c\0\x40\0\x42\0\x44", 8); /* 1 2 3 4 */
    write_file(in, b.p, b.n);
    free(b.p);

    const void *data;
    gguf *g = quantized(in, "q8_0", false, NULL);
    const gguf_tensor *t = gguf_find_tensor(g, "blk.0.a.weight");
    assert_int_equal(gguf_read(g, t, 0, t->bytes, NULL, &data, NULL), 0);
    assert_int_equal(t->type, DTYPE_Q8_0);
    assert_memory_equal(data, block, 34);
    assert_string_equal(type_of(g, "blk.0.norm.weight"), "f16");
    gguf_close(g);

    g = quantized(in, "f32", false, NULL);
    const float expected[] = {1, 2, 3, 4};
    t = gguf_find_tensor(g, "blk.0.norm.weight");
    assert_int_equal(t->type, DTYPE_F32);
    assert_int_equal(gguf_read(g, t, 0, t->bytes, NULL, &data, NULL), 0);
    assert_memory_equal(data, expected, sizeof expected);
    gguf_close(g);
    clean();
}

/* More elements than one piece, and not a multiple of it: the cut must not show. */
static void pieces(void **state) {
    (void)state;
    enum { COLS = 256, ROWS = 4100 };
    buf b = {0};
    put_head(&b, 1, 0);
    put_tensor_2d(&b, "blk.0.w.weight", COLS, ROWS, 1, 0);
    put_align(&b, 32);
    size_t data = b.n;
    uint32_t r = 1;
    for (int i = 0; i < COLS * ROWS; i++) {
        r = r * 1664525 + 1013904223;
        uint16_t h = f32_to_f16((float)(int32_t)r * 0x1p-32f);
        put(&b, &h, 2);
    }
    write_file(in, b.p, b.n);
    seen s;
    gguf *g = quantized(in, "q4_1", false, &s);
    assert_true(s.calls > 1 && s.last == 2 * COLS * ROWS);
    float *x = malloc(4 * COLS * ROWS);
    uint8_t *made = malloc(COLS * ROWS);
    const gguf_tensor *t = gguf_tensor_at(g, 0);
    const void *got;
    dequantize_row(DTYPE_F16, b.p + data, x, COLS * ROWS);
    quantize_row(DTYPE_Q4_1, x, made, COLS * ROWS);
    assert_int_equal(gguf_read(g, t, 0, t->bytes, NULL, &got, NULL), 0);
    assert_memory_equal(made, got, t->bytes);
    gguf_close(g);
    free(x);
    free(made);
    free(b.p);
    clean();
}

static void refuse(const char *from, const char *to, const char *type, linnet_status code,
                   const char *text, int line) {
    linnet_error err = {0};
    int files = count_files();
    linnet_status status = linnet_quantize(from, to, type, NULL, &err);
    if (status != code || err.code != code || !strstr(err.text, text))
        fail_msg("line %d: got %d \"%s\", expected %d with \"%s\"", line, status, err.text, code,
                 text);
    if (count_files() != files) fail_msg("line %d: a file was left behind", line);
}
#define REFUSE(from, to, type, code, text) refuse(from, to, type, LINNET_ERR_##code, text, __LINE__)

static void refusals(void **state) {
    (void)state;
    clean();
    char path[700];
    REFUSE(IN, out, "q3_K", ARGUMENT,
           "unknown type \"q3_K\", expected one of f32 f16 bf16 q8_0 q4_0 q4_1 q4_K q6_K");
    REFUSE(IN, out, "q5_0", ARGUMENT, "unknown type \"q5_0\"");
    REFUSE(IN, out, "", ARGUMENT, "unknown type \"\"");
    REFUSE(IN, IN, "q8_0", ARGUMENT, "is the input and the output, expected two files");
    REFUSE(IN, "tests/../tests/data/quantize/in.gguf", "q8_0", ARGUMENT, "is the input and the");
    REFUSE(NULL, out, "q8_0", ARGUMENT, "is NULL");
    REFUSE(IN, NULL, "q8_0", ARGUMENT, "is NULL");
    REFUSE(IN, out, NULL, ARGUMENT, "is NULL");
    REFUSE("tests/data/missing.gguf", out, "q8_0", IO, "cannot open tests/data/missing.gguf");
    REFUSE("tests", out, "q8_0", IO, "tests is a folder, expected a GGUF file");
    REFUSE(IN, folder, "q8_0", IO, "it is a folder");
    REFUSE(IN, "/dev/null", "q8_0", IO, "cannot write /dev/null: it is not a regular file");
    snprintf(path, sizeof path, "%s/none/out.gguf", folder);
    REFUSE(IN, path, "q8_0", IO, "/none/out.gguf: No such file or directory");
    REFUSE(IN, "", "q8_0", IO, "cannot write ");
    /* An existing file and a link to the input: the one stays, the other is the input. */
    write_file(in, "something", 9);
    REFUSE(in, out, "q8_0", FORMAT, "is not a GGUF file");
    snprintf(path, sizeof path, "%s/in.gguf/out.gguf", folder);
    REFUSE(IN, path, "q8_0", IO, "Not a directory");
    clean();
    if (geteuid() != 0) { /* root may write anywhere */
        assert_int_equal(chmod(folder, 0500), 0);
        REFUSE(IN, out, "q8_0", IO, "Permission denied");
        assert_int_equal(chmod(folder, 0700), 0);
    }

    buf b = {0};
    put_head(&b, 1, 0);
    put_tensor_2d(&b, "blk.0.attn_q.weight", 256, 1, 17, 0);
    put_zeros(&b, 256);
    write_file(in, b.p, b.n);
    REFUSE(in, out, "q8_0", UNSUPPORTED,
           "tensor \"blk.0.attn_q.weight\" is of type IQ2_XS, supported are f32 f16");
    b.n = 0;
    put_head(&b, 0, 0);
    write_file(in, b.p, b.n);
    REFUSE(in, out, "q8_0", UNSUPPORTED, "has no tensors, there is nothing to quantize");
    b.n = 0;
    put_head(&b, 1, 1);
    put_key(&b, "split.count", 2), put(&b, "\3\0", 2);
    put_tensor_1d(&b, "a", 1, 0, 0);
    put_align(&b, 32);
    put_zeros(&b, 4);
    write_file(in, b.p, b.n);
    REFUSE(in, out, "q8_0", UNSUPPORTED, "is one of 3 parts of a split model");
    free(b.p);

    static const struct {
        float value;
        const char *type, *text;
    } values[] = {
        {NAN, "q8_0", "contains a NaN or infinity, expected finite weights"},
        {INFINITY, "f16", "tensor \"token_embd.weight\" contains a NaN or infinity"},
        {-INFINITY, "q4_K", "contains a NaN or infinity"},
        {1e5f, "f16", "tensor \"token_embd.weight\" contains a weight too large for f16"},
        {-65520, "q4_0", "contains a weight too large for q4_0"},
        {1e9f, "q6_K", "contains a weight too large for q6_K"},
        {3.4e38f, "bf16", "contains a weight too large for bf16"},
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        b = build_model(true, 0, values[i].value);
        write_file(in, b.p, b.n);
        REFUSE(in, out, values[i].type, NUMERIC, values[i].text);
        free(b.p);
    }
    b = build_model(true, 30, 1e5f); /* fits where it may */
    write_file(in, b.p, b.n);
    gguf_close(quantized(in, "f32", false, NULL));
    free(b.p);
    clean();
}

static void cancelled(void **state) {
    (void)state;
    clean();
    write_file(out, "precious", 8);
    for (size_t at = 1; at <= 13; at++) {
        seen s = {.cancel_at = at};
        linnet_quantize_options options = {false, NULL, progress, &s};
        linnet_error err;
        assert_int_equal(linnet_quantize(IN, out, "q8_0", &options, &err), LINNET_ERR_CANCELLED);
        assert_non_null(strstr(err.text, "was cancelled"));
        size_t n;
        uint8_t *p = slurp(out, &n);
        assert_true(n == 8 && !memcmp(p, "precious", 8));
        free(p);
        assert_int_equal(count_files(), 1);
    }
    clean();
}

static void disk_full(void **state) {
    (void)state;
    clean();
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 0; limit < 19000; limit += 1700) {
        small = before;
        small.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        linnet_error err = {0};
        linnet_status status = linnet_quantize(IN, out, "q8_0", NULL, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(status, LINNET_ERR_IO);
        assert_non_null(strstr(err.text, "cannot write "));
        assert_int_equal(count_files(), 0);
    }
    signal(SIGXFSZ, handler);
}

/* A link at the output is replaced, not followed; the mode honours the umask. */
static void output_link(void **state) {
    (void)state;
    clean();
    write_file(in, "target", 6);
    assert_int_equal(symlink(in, out), 0);
    mode_t mask = umask(027);
    gguf_close(quantized(IN, "q8_0", false, NULL));
    umask(mask);
    struct stat st;
    assert_int_equal(lstat(out, &st), 0);
    assert_true(S_ISREG(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0640);
    size_t n;
    uint8_t *p = slurp(in, &n);
    assert_true(n == 6 && !memcmp(p, "target", 6));
    free(p);
    clean();
}

static void writer_misuse(void **state) {
    (void)state;
    clean();
    gguf_writer *w;
    linnet_error err;
    const uint64_t dims[4] = {32, 2, 1, 1}, odd[4] = {33, 2, 1, 1};
    const uint64_t huge[4] = {(uint64_t)1 << 62, 4, 1, 1};
    uint8_t data[68] = {0};
    assert_int_equal(gguf_writer_open(&w, out, &err), 0);
    assert_int_equal(gguf_writer_u32(w, "k", 5, &err), 0);
    assert_int_equal(gguf_writer_add_tensor(w, "t", DTYPE_Q8_0, 2, dims, &err), 0);
    assert_int_equal(gguf_writer_add_tensor(w, "u", DTYPE_Q8_0, 2, odd, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_add_tensor(w, "u", DTYPE_F32, 2, huge, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_add_tensor(w, "u", (dtype)17, 2, dims, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_add_tensor(w, "u", DTYPE_F32, 0, dims, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_data(w, data, 67, &err), 0);
    assert_int_equal(gguf_writer_finish(w, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "data of 1 of 1 tensors is missing"));
    assert_int_equal(gguf_writer_data(w, data, 2, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "more data than was announced"));
    assert_int_equal(gguf_writer_data(w, data, 1, &err), 0);
    assert_int_equal(gguf_writer_data(w, data, 1, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_finish(w, &err), 0);
    gguf_writer_free(w);
    gguf *g;
    assert_int_equal(gguf_open(&g, out, true, &err), 0);
    assert_int_equal(gguf_find_tensor(g, "t")->bytes, 68);
    gguf_close(g);
    /* Two writers of the same path do not meet; an abandoned one leaves what was there. */
    gguf_writer *v;
    assert_int_equal(gguf_writer_open(&w, out, &err), 0);
    assert_int_equal(gguf_writer_open(&v, out, &err), 0);
    assert_int_equal(count_files(), 3);
    gguf_writer_free(w);
    gguf_writer_free(v);
    gguf_writer_free(NULL);
    assert_int_equal(count_files(), 1);
    clean();
}

static int setup(void **state) {
    (void)state;
    const char *made = make_folder();
    if (!made) return -1;
    snprintf(folder, sizeof folder, "%s", made);
    snprintf(in, sizeof in, "%s/in.gguf", folder);
    snprintf(out, sizeof out, "%s/out.gguf", folder);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    clean();
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_equal),  cmocka_unit_test(every_type),    cmocka_unit_test(notes),
        cmocka_unit_test(tied_or_not), cmocka_unit_test(kept_types),    cmocka_unit_test(pieces),
        cmocka_unit_test(refusals),    cmocka_unit_test(cancelled),     cmocka_unit_test(disk_full),
        cmocka_unit_test(output_link), cmocka_unit_test(writer_misuse),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
