/* The GGUF reader against files built by hand. Every bad file is opened three ways (from memory,
 * mapped, read) and must fail with the same code and sentence. */
#include "../weights/gguf.h"
#include "build_gguf.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[512], file[600];
static int n_bad;

static void check_bad(const buf *b, linnet_status code, const char *text, int line) {
    gguf *g = (gguf *)1;
    linnet_error err = {0};
    /* An exact copy, so that AddressSanitizer sees every byte read beyond it. */
    uint8_t *exact = malloc(b->n ? b->n : 1);
    if (b->n) memcpy(exact, b->p, b->n);
    linnet_status status = gguf_open_memory(&g, exact, b->n, file, &err);
    if (status != code || !strstr(err.text, text) || !strstr(err.text, file) || g)
        fail_msg("line %d: got %d \"%s\", expected %d with \"%s\"", line, status, err.text, code,
                 text);
    assert_int_equal(err.code, code);
    assert_int_equal(gguf_open_memory(&g, exact, b->n, file, NULL), code);
    free(exact);

    write_file(file, b->p, b->n);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        linnet_error again = {0};
        assert_int_equal(gguf_open(&g, file, no_mmap, &again), code);
        assert_null(g);
        assert_string_equal(again.text, err.text);
    }
    n_bad++;
}

#define BAD(code, text, ...)                                                                       \
    do {                                                                                           \
        buf b = {0};                                                                               \
        __VA_ARGS__;                                                                               \
        check_bad(&b, LINNET_ERR_##code, text, __LINE__);                                          \
        free(b.p);                                                                                 \
    } while (0)

static void bad_starts(void **state) {
    (void)state;
    BAD(FORMAT, "is empty");
    BAD(FORMAT, "is truncated: the magic number needs 4 bytes at offset 0, 1 are left",
        put(&b, "G", 1));
    BAD(FORMAT, "is truncated: the magic number", put(&b, "GGU", 3));
    BAD(FORMAT, "begins with 47 58", put(&b, "GX", 2));
    BAD(FORMAT, "is truncated: the version number", put(&b, "GGUF", 4));
    BAD(FORMAT, "is truncated: the version number", put(&b, "GGUF\3\0\0", 7));
    BAD(FORMAT, "is truncated: the number of tensors", put(&b, "GGUF\3\0\0\0", 8));
    BAD(FORMAT, "is truncated: the number of metadata keys", put(&b, "GGUF\3\0\0\0", 8);
        put_u64(&b, 0));
    BAD(FORMAT, "is not a GGUF file: it begins with 47 47 55 47 (hexadecimal), expected \"GGUF\"",
        put(&b, "GGUG\3\0\0\0", 8));
    BAD(FORMAT, "is not a GGUF file", put_zeros(&b, 100));
    BAD(FORMAT, "is not a GGUF file", put(&b, "hello", 5));
    BAD(FORMAT, "is not a GGUF file", put(&b, "FUGG\3\0\0\0", 8));
    BAD(FORMAT, "is an HTML page, not a model", put(&b, "<!DOCTYPE html><html>", 21));
    BAD(FORMAT, "is an HTML page, not a model", put(&b, "<!doctype HTML>", 15));
    BAD(FORMAT, "is an HTML page, not a model", put(&b, "\r\n \t<html lang=\"en\">", 20));
    BAD(FORMAT, "is an HTML page, not a model", put(&b, "\xef\xbb\xbf<HTML>", 9));
    BAD(FORMAT, "is an HTML page, not a model", put(&b, "<?xml version=\"1.0\"?>", 21));
    BAD(FORMAT, "is a Git-LFS pointer, not the model itself",
        put(&b, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", 63));
    BAD(FORMAT, "is a safetensors file", put_u64(&b, 2); put(&b, "{}", 2));
    BAD(FORMAT, "ZIP archive or PyTorch", put(&b, "PK\3\4\0\0\0\0", 8));
    BAD(FORMAT, "old GGML format", put(&b, "tjgg\3\0\0\0", 8));
    for (uint32_t version = 1; version <= 2; version++)
        BAD(UNSUPPORTED, version == 1 ? "is GGUF version 1, expected 3" : "is GGUF version 2,",
            put(&b, "GGUF", 4);
            put_u32(&b, version); put_zeros(&b, 16));
    BAD(UNSUPPORTED, "is GGUF version 0, expected 3", put(&b, "GGUF", 4); put_zeros(&b, 20));
    BAD(UNSUPPORTED, "is GGUF version 4, expected 3", put(&b, "GGUF\4\0\0\0", 8);
        put_zeros(&b, 16));
    BAD(UNSUPPORTED, "is a big-endian GGUF file", put(&b, "GGUF\0\0\0\3", 8); put_zeros(&b, 16));
    BAD(UNSUPPORTED, "is a big-endian GGUF file", put(&b, "GGUF\0\0\0\2", 8); put_zeros(&b, 16));
}

static void bad_counts(void **state) {
    (void)state;
    BAD(FORMAT, "announces 65537 tensors, at most 65536", put_head(&b, 65537, 0));
    BAD(FORMAT, "announces 18446744073709551615 tensors", put_head(&b, UINT64_MAX, 0));
    BAD(FORMAT, "announces 9223372036854775808 metadata keys", put_head(&b, 0, (uint64_t)1 << 63));
    BAD(FORMAT, "announces 65537 metadata keys, at most 65536", put_head(&b, 0, 65537));
    BAD(FORMAT, "is truncated: 1 metadata keys and 0 tensors need at least 14 bytes, 0 are left",
        put_head(&b, 0, 1));
    BAD(FORMAT, "is truncated: 0 metadata keys and 1 tensors need at least 33 bytes, 32 are left",
        put_head(&b, 1, 0);
        put_zeros(&b, 32));
    BAD(FORMAT, "is truncated: 65536 metadata keys and 65536 tensors", put_head(&b, 65536, 65536);
        put_zeros(&b, 10000));
}

static void bad_keys(void **state) {
    (void)state;
    BAD(FORMAT, "metadata key 0 is empty", put_head(&b, 0, 1); put_kv_u32(&b, "", 1));
    BAD(FORMAT, "metadata key 1 is empty", put_head(&b, 0, 2); put_kv_u32(&b, "a", 1);
        put_kv_u32(&b, "", 1));
    BAD(FORMAT, "metadata key 0 is 65536 bytes long, at most 65535", put_head(&b, 0, 1);
        put_u64(&b, 65536); put_zeros(&b, 70000));
    BAD(FORMAT, "metadata key 0 is 18446744073709551615 bytes long", put_head(&b, 0, 1);
        put_u64(&b, UINT64_MAX); put_zeros(&b, 100));
    BAD(FORMAT, "is truncated: metadata key 0 needs 100 bytes at offset 32, 50 are left",
        put_head(&b, 0, 1);
        put_u64(&b, 100); put_zeros(&b, 50));
    BAD(FORMAT, "metadata key 0 (\"a\\nb\") contains a control character", put_head(&b, 0, 1);
        put_kv_u32(&b, "a\nb", 1));
    BAD(FORMAT, "metadata key 0 (\"x\\x00y\") contains a control character", put_head(&b, 0, 1);
        put_u64(&b, 3); put(&b, "x\0y", 3); put_u32(&b, 4); put_u32(&b, 1));
    BAD(FORMAT, "metadata key 0 (\"\\x1B[2J\") contains a control", put_head(&b, 0, 1);
        put_kv_u32(&b, "\x1b[2J", 1));
    BAD(FORMAT, "metadata key \"a\" appears twice", put_head(&b, 0, 2); put_kv_u32(&b, "a", 1);
        put_kv_u32(&b, "a", 1));
    BAD(FORMAT, "metadata key \"b.c\" appears twice", put_head(&b, 0, 4); put_kv_u32(&b, "b.c", 1);
        put_kv_u32(&b, "a", 1); put_kv_u32(&b, "b", 1); put_kv_str(&b, "b.c", "x"));
}

static void bad_values(void **state) {
    (void)state;
    BAD(FORMAT, "key \"k\" has the unknown value type 13, expected 0 to 12", put_head(&b, 0, 1);
        put_key(&b, "k", 13); put_zeros(&b, 8));
    BAD(FORMAT, "key \"k\" has the unknown value type 4294967295", put_head(&b, 0, 1);
        put_key(&b, "k", UINT32_MAX); put_zeros(&b, 8));
    BAD(FORMAT, "key \"k\" has the unknown element type 13", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 13, 1); put_zeros(&b, 8));
    BAD(FORMAT, "key \"k\" has the unknown element type 4294967295", put_head(&b, 0, 1);
        put_kv_array(&b, "k", UINT32_MAX, 0));
    BAD(FORMAT, "key \"k\" is an array of arrays", put_head(&b, 0, 1); put_kv_array(&b, "k", 9, 1);
        put_zeros(&b, 30));
    BAD(FORMAT, "key \"k\" is an array of arrays", put_head(&b, 0, 1); put_kv_array(&b, "k", 9, 0));
    BAD(FORMAT, "is truncated: the value of key \"long\" needs 4 bytes", put_head(&b, 0, 1);
        put_str(&b, "long"); put(&b, "\4\0", 2));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 4 bytes at offset 37, 3 are left",
        put_head(&b, 0, 1);
        put_key(&b, "k", 4); put(&b, "abc", 3));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 8 bytes", put_head(&b, 0, 1);
        put_key(&b, "k", 10); put_zeros(&b, 7));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 8 bytes", put_head(&b, 0, 1);
        put_key(&b, "k", 12); put_zeros(&b, 4));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 2 bytes", put_head(&b, 0, 1);
        put_key(&b, "k", 3); put_u8(&b, 0));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 8 bytes", put_head(&b, 0, 1);
        put_key(&b, "k", 8); put_u32(&b, 1));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 10 bytes at offset 45, 3 are left",
        put_head(&b, 0, 1);
        put_key(&b, "k", 8); put_u64(&b, 10); put(&b, "abc", 3));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 18446744073709551615 bytes",
        put_head(&b, 0, 1);
        put_key(&b, "k", 8); put_u64(&b, UINT64_MAX); put_zeros(&b, 64));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 4 bytes", put_head(&b, 0, 1);
        put_key(&b, "k", 9); put_u8(&b, 4));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 8 bytes", put_head(&b, 0, 1);
        put_key(&b, "k", 9); put_u32(&b, 4); put_u32(&b, 4));
    BAD(FORMAT, "key \"k\" announces 3 values of type u32, but only 8 bytes are left",
        put_head(&b, 0, 1);
        put_kv_array(&b, "k", 4, 3); put_u64(&b, 0));
    BAD(FORMAT, "key \"k\" announces 4611686018427387905 values of type u32", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 4, ((uint64_t)1 << 62) + 1); put_u32(&b, 0));
    BAD(FORMAT, "key \"k\" announces 18446744073709551615 values of type u8", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 0, UINT64_MAX); put_zeros(&b, 64));
    BAD(FORMAT, "key \"k\" announces 2305843009213693953 values of type f64", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 12, ((uint64_t)1 << 61) + 1); put_zeros(&b, 64));
    BAD(FORMAT, "key \"k\" announces 9 values of type string, but only 64 bytes are left",
        put_head(&b, 0, 1);
        put_kv_array(&b, "k", 8, 9); put_zeros(&b, 64));
    BAD(FORMAT, "key \"k\" announces 2305843009213693952 values of type string", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 8, (uint64_t)1 << 61); put_zeros(&b, 64));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 5 bytes", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 8, 2); put_str(&b, "one"); put_u64(&b, 5); put(&b, "two", 3));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 8 bytes", put_head(&b, 0, 1);
        put_kv_array(&b, "k", 8, 2); put_str(&b, "onetwo"); put_u32(&b, 5));
    BAD(FORMAT, "is truncated: the value of key \"k\" needs 18446744073709551608 bytes",
        put_head(&b, 0, 1);
        put_kv_array(&b, "k", 8, 2); put_u64(&b, (uint64_t)-8); put_zeros(&b, 64));
    BAD(FORMAT, "key \"k\" has the bool value 2, expected 0 or 1", put_head(&b, 0, 1);
        put_key(&b, "k", 7); put_u8(&b, 2));
    BAD(FORMAT, "key \"k\" has the bool value 255", put_head(&b, 0, 1); put_kv_array(&b, "k", 7, 3);
        put(&b, "\1\0\xff", 3));
    BAD(FORMAT, "is truncated: metadata key 1 needs 8 bytes", put_head(&b, 0, 2);
        put_kv_str(&b, "k", "a string that is long"); put_u32(&b, 0));
}

static void bad_alignment(void **state) {
    (void)state;
    const char *key = "general.alignment";
    BAD(FORMAT, "\"general.alignment\" is 0, expected a power of two from 8 to 1048576",
        put_head(&b, 0, 1);
        put_kv_u32(&b, key, 0));
    BAD(FORMAT, "\"general.alignment\" is 4,", put_head(&b, 0, 1); put_kv_u32(&b, key, 4));
    BAD(FORMAT, "\"general.alignment\" is 48,", put_head(&b, 0, 1); put_kv_u32(&b, key, 48));
    BAD(FORMAT, "\"general.alignment\" is 2097152,", put_head(&b, 0, 1);
        put_kv_u32(&b, key, 1 << 21));
    BAD(FORMAT, "\"general.alignment\" is 4294967295,", put_head(&b, 0, 1);
        put_kv_u32(&b, key, UINT32_MAX));
    BAD(FORMAT, "\"general.alignment\" is of type string, expected u32", put_head(&b, 0, 1);
        put_kv_str(&b, key, "32"));
    BAD(FORMAT, "\"general.alignment\" is of type u64, expected u32", put_head(&b, 0, 1);
        put_key(&b, key, 10); put_u64(&b, 32));
    BAD(FORMAT, "\"general.alignment\" is of type array, expected u32", put_head(&b, 0, 1);
        put_kv_array(&b, key, 4, 1); put_u32(&b, 32));
    BAD(FORMAT, "tensor \"t\" has offset 32, not a multiple of the alignment 64",
        put_head(&b, 1, 1);
        put_kv_u32(&b, key, 64); put_tensor_1d(&b, "t", 4, 0, 32); put_zeros(&b, 256));
}

/* One tensor and enough bytes after it. */
#define BAD_TENSOR(text, ...)                                                                      \
    BAD(FORMAT, text, put_head(&b, 1, 0); put_tensor(&b, __VA_ARGS__); put_zeros(&b, 2048))
#define DIMS(...)                                                                                  \
    (uint64_t[]) {                                                                                 \
        __VA_ARGS__                                                                                \
    }

static void bad_tensors(void **state) {
    (void)state;
    const uint64_t big = (uint64_t)1 << 32;
    BAD_TENSOR("the name of tensor 0 is empty", "", 1, DIMS(4), 0, 0);
    BAD_TENSOR("the name of tensor 0 is 65 bytes long, at most 64 are allowed",
               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1, DIMS(4), 0,
               0);
    BAD_TENSOR("the name of tensor 0 (\"a\\tb\") contains a control character", "a\tb", 1, DIMS(4),
               0, 0);
    BAD_TENSOR("tensor \"t\" has 0 dimensions, expected 1 to 4", "t", 0, DIMS(4), 0, 0);
    BAD_TENSOR("tensor \"t\" has 5 dimensions, expected 1 to 4", "t", 5, DIMS(1, 1, 1, 1, 1), 0, 0);
    BAD(FORMAT, "tensor \"t\" has 4294967295 dimensions", put_head(&b, 1, 0); put_str(&b, "t");
        put_u32(&b, UINT32_MAX); put_zeros(&b, 100));
    BAD_TENSOR("dimension 0 of tensor \"t\" is 0", "t", 1, DIMS(0), 0, 0);
    BAD_TENSOR("dimension 2 of tensor \"t\" is 0", "t", 4, DIMS(1, 2, 0, 3), 0, 0);
    BAD_TENSOR("the dimensions of tensor \"t\" overflow", "t", 2, DIMS(big, big), 0, 0);
    BAD_TENSOR("the dimensions of tensor \"t\" overflow", "t", 1, DIMS(UINT64_MAX), 0, 0);
    BAD_TENSOR("the dimensions of tensor \"t\" overflow", "t", 1, DIMS((uint64_t)1 << 63), 0, 0);
    BAD_TENSOR("the dimensions of tensor \"t\" overflow", "t", 4,
               DIMS(1 << 16, 1 << 16, 1 << 16, 1 << 16), 0, 0);
    BAD_TENSOR("the dimensions of tensor \"t\" overflow", "t", 3, DIMS(big, big / 2, 1), 0, 0);
    BAD_TENSOR("the size of tensor \"t\" overflows", "t", 1, DIMS((uint64_t)1 << 62), 0, 0);
    BAD_TENSOR("the size of tensor \"t\" overflows", "t", 2, DIMS(big, (uint64_t)1 << 29), 0, 0);
    BAD_TENSOR("the size of tensor \"t\" overflows", "t", 1, DIMS(((uint64_t)1 << 63) - 32), 8, 0);
    BAD_TENSOR("rows of tensor \"t\" have 33 elements, not a multiple of the block of 32 of type "
               "q8_0",
               "t", 2, DIMS(33, 32), 8, 0);
    BAD_TENSOR("rows of tensor \"t\" have 16 elements", "t", 2, DIMS(16, 2), 2, 0);
    BAD_TENSOR("rows of tensor \"t\" have 128 elements, not a multiple of the block of 256", "t", 2,
               DIMS(128, 2), 12, 0);
    BAD_TENSOR("rows of tensor \"t\" have 1 elements", "t", 1, DIMS(1), 14, 0);
    BAD_TENSOR("tensor \"t\" has offset 1, not a multiple of the alignment 32", "t", 1, DIMS(4), 0,
               1);
    BAD_TENSOR("tensor \"t\" has offset 16, not a multiple", "t", 1, DIMS(4), 0, 16);
    BAD_TENSOR("tensor \"q\" has offset 7, not a multiple", "q", 1, DIMS(4), 99, 7);
    BAD_TENSOR("the offset of tensor \"t\" overflows", "t", 1, DIMS(4), 0, (uint64_t)-32);
    BAD_TENSOR("is truncated: tensor \"t\" needs 16 bytes to offset 9223372036854775888", "t", 1,
               DIMS(4), 0, (uint64_t)1 << 63);
    BAD_TENSOR(
        "is truncated: tensor \"t\" needs 4194304 bytes to offset 4194368, the file has 2105", "t",
        1, DIMS(1 << 20), 0, 0);
    BAD_TENSOR("is truncated: tensor \"t\" needs 16 bytes to offset 4176, the file has 2105", "t",
               1, DIMS(4), 0, 4096);
    BAD_TENSOR("is truncated: tensor \"u\" needs 0 bytes to offset 4160", "u", 1, DIMS(4), 99,
               4096);
    BAD(FORMAT, "is truncated: tensor \"t\" needs 64 bytes to offset 128, the file has 127",
        put_head(&b, 1, 0);
        put_tensor_1d(&b, "t", 16, 0, 0); put_align(&b, 32); put_zeros(&b, 63));
    BAD(FORMAT, "is truncated: tensor \"t\"", put_head(&b, 1, 0); put_tensor_1d(&b, "t", 1, 0, 0));
    BAD(FORMAT, "is truncated: the name of tensor 1 needs 8 bytes", put_head(&b, 2, 0);
        put_tensor_2d(&b, "a tensor with a rather long name", 1, 1, 0, 0); put_u32(&b, 1));
    BAD(FORMAT, "is truncated: the description of tensor \"two\" needs 8 bytes", put_head(&b, 2, 0);
        put_tensor_2d(&b, "a tensor with a rather long name", 1, 1, 0, 0); put_str(&b, "two");
        put_u32(&b, 4); put_zeros(&b, 1); b.p[b.n - 1] = 9; put_zeros(&b, 3));
    BAD(FORMAT, "tensor \"t\" appears twice", put_head(&b, 2, 0); put_tensor_1d(&b, "t", 4, 0, 0);
        put_tensor_1d(&b, "t", 4, 0, 32); put_align(&b, 32); put_zeros(&b, 64));
    BAD(FORMAT, "tensors \"t\" and \"u\" overlap at offset 128", put_head(&b, 2, 0);
        put_tensor_1d(&b, "t", 9, 0, 0); put_tensor_1d(&b, "u", 4, 0, 32); put_align(&b, 32);
        put_zeros(&b, 64));
    BAD(FORMAT, "overlap at offset 96", put_head(&b, 2, 0); put_tensor_1d(&b, "t", 8, 0, 0);
        put_tensor_1d(&b, "u", 8, 0, 0); put_align(&b, 32); put_zeros(&b, 64));
    BAD(FORMAT, "tensors \"b\" and \"c\" overlap", put_head(&b, 3, 0);
        put_tensor_1d(&b, "c", 8, 0, 64); put_tensor_1d(&b, "b", 16, 0, 32);
        put_tensor_1d(&b, "a", 8, 0, 0); put_align(&b, 32); put_zeros(&b, 128));
    if (n_bad < 100) fail_msg("only %d bad files were tried", n_bad);
}

static void bad_paths(void **state) {
    (void)state;
    gguf *g;
    linnet_error err;
    char path[700];
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        assert_int_equal(gguf_open(&g, folder, no_mmap, &err), LINNET_ERR_IO);
        assert_non_null(strstr(err.text, "is a folder, expected a GGUF file"));
        snprintf(path, sizeof path, "%s/missing.gguf", folder);
        assert_int_equal(gguf_open(&g, path, no_mmap, &err), LINNET_ERR_IO);
        assert_non_null(strstr(err.text, "cannot open "));
        assert_non_null(strstr(err.text, "missing.gguf: No such file or directory"));
        snprintf(path, sizeof path, "%s/fifo", folder);
        if (!no_mmap) assert_int_equal(mkfifo(path, 0600), 0);
        assert_int_equal(gguf_open(&g, path, no_mmap, &err), LINNET_ERR_IO); /* and does not wait */
        assert_non_null(strstr(err.text, "is not a regular file"));
        assert_int_equal(gguf_open(&g, "/dev/null", no_mmap, &err), LINNET_ERR_IO);
        assert_non_null(strstr(err.text, "is not a regular file"));
    }
    /* However long the path is, the message has its end and the reason. */
    char *deep = malloc(3001);
    memset(deep, 'd', 3000);
    deep[3000] = 0;
    memcpy(deep + 2995, "/tail", 5);
    assert_int_equal(gguf_open(&g, deep, false, &err), LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "ddd/tail: "));
    free(deep);
    snprintf(path, sizeof path, "%s/fifo", folder);
    unlink(path);
}

/* ---- Good files --------------------------------------------------------------------------- */

/* Every value type, odd alignment, a hole, an unknown tensor type and trailing bytes. */
static buf build_good(void) {
    buf b = {0};
    put_head(&b, 3, 17);
    put_kv_str(&b, "general.architecture", "llama");
    put_kv_u32(&b, "general.alignment", 64);
    put_key(&b, "u8", 0), put_u8(&b, 200);
    put_key(&b, "i8", 1), put_u8(&b, 0x80);
    put_key(&b, "u16", 2), put(&b, "\xff\xff", 2);
    put_key(&b, "i16", 3), put(&b, "\xfe\xff", 2);
    put_key(&b, "i32", 5), put_u32(&b, (uint32_t)-3);
    put_key(&b, "f32", 6), put_f32(&b, 0.1f);
    put_key(&b, "bool", 7), put_u8(&b, 1);
    put_key(&b, "u64", 10), put_u64(&b, UINT64_MAX);
    put_key(&b, "i64", 11), put_u64(&b, (uint64_t)INT64_MIN);
    double d = 1e300, nan_value = NAN;
    put_key(&b, "f64", 12), put(&b, &d, 8);
    put_key(&b, "nan", 12), put(&b, &nan_value, 8);
    put_kv_array(&b, "strings", 8, 3), put_str(&b, "a\nb"), put_str(&b, ""),
        put_str(&b, "\xc3\xa9");
    put_kv_array(&b, "none", 5, 0);
    put_kv_array(&b, "ints", 1, 10), put(&b, "\0\1\2\3\4\5\6\7\x08\xf7", 10);
    put_kv_str(&b, "bytes", "\xff\x1b[0m\xc2\x85\xf0\x9f\x98\x80");
    put_tensor_2d(&b, "b.weight", 32, 2, 8, 192);
    put_tensor_1d(&b, "a", 3, 0, 0);
    put_tensor(&b, "odd", 4, DIMS(5, 1, 2, 1), 17, 64);
    put_align(&b, 64);
    size_t data = b.n;
    put_f32(&b, 1), put_f32(&b, 2), put_f32(&b, 3);
    while (b.n < data + 192 + 2 * 34)
        put_u8(&b, (uint8_t)b.n);
    put(&b, "trailing", 8);
    return b;
}

static void check_good(const gguf *g) {
    linnet_error err;
    int64_t i = 77;
    double f = 7;
    bool yes = false;
    gguf_str s = {NULL, 0};
    const gguf_kv *kv;
    char text[200];

    assert_int_equal(gguf_n_kv(g), 17);
    assert_int_equal(gguf_n_tensors(g), 3);
    assert_int_equal(gguf_alignment(g), 64);
    assert_string_equal(gguf_kv_at(g, 2)->key.p, "u8");
    assert_null(gguf_find(g, "u"));
    assert_null(gguf_find(g, ""));
    assert_null(gguf_find(g, "zzz"));
    assert_ptr_equal(gguf_find(g, "i64"), gguf_kv_at(g, 10));

    /* absent: untouched, or an error where required */
    assert_int_equal(gguf_get_int(g, "absent", false, 0, 1, &i, &err), 0);
    assert_int_equal(i, 77);
    assert_int_equal(gguf_get_int(g, "absent", true, 0, 1, &i, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "metadata key \"absent\" is missing"));
    assert_int_equal(gguf_get_float(g, "absent", true, &f, &err), LINNET_ERR_FORMAT);
    assert_int_equal(gguf_get_bool(g, "absent", true, &yes, &err), LINNET_ERR_FORMAT);
    assert_int_equal(gguf_get_str(g, "absent", true, &s, &err), LINNET_ERR_FORMAT);
    assert_int_equal(gguf_get_array(g, "absent", GGUF_U8, true, &kv, &err), LINNET_ERR_FORMAT);
    assert_int_equal(gguf_get_array(g, "absent", GGUF_U8, false, &kv, &err), 0);
    assert_null(kv);

    static const struct {
        const char *key;
        int64_t value;
    } ints[] = {{"u8", 200}, {"i8", -128},       {"u16", 65535},           {"i16", -2},
                {"i32", -3}, {"i64", INT64_MIN}, {"general.alignment", 64}};
    for (size_t k = 0; k < sizeof ints / sizeof *ints; k++) {
        assert_int_equal(gguf_get_int(g, ints[k].key, true, INT64_MIN, INT64_MAX, &i, &err), 0);
        assert_true(i == ints[k].value);
    }
    assert_int_equal(gguf_get_int(g, "u8", true, 0, 199, &i, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "metadata key \"u8\" is 200, expected 0 to 199"));
    assert_int_equal(gguf_get_int(g, "i8", true, -127, 0, &i, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "is -128, expected -127 to 0"));
    assert_int_equal(gguf_get_int(g, "u64", true, 0, INT64_MAX, &i, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"u64\" is 18446744073709551615, expected 0 to"));
    assert_int_equal(gguf_get_int(g, "f32", true, 0, 1, &i, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"f32\" is of type f32, expected an integer"));
    assert_int_equal(gguf_get_int(g, "bool", true, 0, 1, &i, &err), LINNET_ERR_FORMAT);
    assert_int_equal(gguf_get_int(g, "ints", true, 0, 1, &i, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"ints\" is an array of i8, expected an integer"));

    assert_int_equal(gguf_get_float(g, "f32", true, &f, &err), 0);
    assert_true(f == (double)0.1f);
    assert_int_equal(gguf_get_float(g, "f64", true, &f, &err), 0);
    assert_true(f == 1e300);
    assert_int_equal(gguf_get_float(g, "nan", true, &f, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"nan\" is NaN, expected a finite number"));
    assert_int_equal(gguf_get_float(g, "u8", true, &f, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"u8\" is of type u8, expected f32 or f64"));

    assert_int_equal(gguf_get_bool(g, "bool", true, &yes, &err), 0);
    assert_true(yes);
    assert_int_equal(gguf_get_bool(g, "u8", true, &yes, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "expected bool"));
    assert_int_equal(gguf_get_str(g, "general.architecture", true, &s, &err), 0);
    assert_true(s.n == 5 && !memcmp(s.p, "llama", 5));
    assert_int_equal(gguf_get_str(g, "strings", true, &s, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "\"strings\" is an array of string, expected string"));

    assert_int_equal(gguf_get_array(g, "ints", GGUF_I8, true, &kv, &err), 0);
    assert_int_equal(kv->count, 10);
    assert_int_equal(gguf_int_at(kv, 9), -9);
    assert_true(gguf_float_at(kv, 8) == 8.0);
    assert_int_equal(gguf_get_array(g, "ints", GGUF_U8, true, &kv, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "is an array of i8, expected an array of u8"));
    assert_int_equal(gguf_get_array(g, "u8", GGUF_U8, false, &kv, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "is of type u8, expected an array of u8"));
    assert_int_equal(gguf_get_array(g, "strings", GGUF_STRING, true, &kv, &err), 0);
    size_t cursor = 0;
    s = gguf_next_str(kv, &cursor);
    assert_true(s.n == 3 && !memcmp(s.p, "a\nb", 3));
    s = gguf_next_str(kv, &cursor);
    assert_true(s.n == 0 && s.p);
    s = gguf_next_str(kv, &cursor);
    assert_true(s.n == 2);
    s = gguf_next_str(kv, &cursor);
    assert_null(s.p);
    assert_true(gguf_int_at(gguf_find(g, "u64"), 0) == INT64_MAX);
    assert_true(gguf_int_at(gguf_find(g, "f64"), 0) == INT64_MAX);
    assert_true(gguf_int_at(gguf_find(g, "nan"), 0) == 0);
    assert_true(gguf_int_at(gguf_find(g, "bool"), 0) == 1);
    assert_true(gguf_int_at(gguf_find(g, "strings"), 2) == 0);
    assert_true(gguf_float_at(gguf_find(g, "u64"), 0) == 0x1p64);

    static const char *const texts[][2] = {
        {"u64", "18446744073709551615"},
        {"i64", "-9223372036854775808"},
        {"f32", "0.1"},
        {"f64", "1e+300"},
        {"bool", "true"},
        {"general.architecture", "llama"},
        {"strings", "[3 x string: a\\nb, , \xc3\xa9]"},
        {"none", "[0 x i32]"},
        {"ints", "[10 x i8: 0, 1, 2, 3, 4, 5, 6, 7, ...]"},
        {"bytes", "\\xFF\\x1B[0m\\xC2\\x85\xf0\x9f\x98\x80"},
    };
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        gguf_kv_text(gguf_find(g, texts[k][0]), text, sizeof text);
        assert_string_equal(text, texts[k][1]);
        /* Cut anywhere, it is a prefix; never a part of a character. */
        for (size_t size = 1; size <= strlen(texts[k][1]); size++) {
            gguf_kv_text(gguf_find(g, texts[k][0]), text, size);
            assert_true(strlen(text) < size);
            assert_memory_equal(text, texts[k][1], strlen(text));
            if (strlen(text) < strlen(texts[k][1]))
                assert_true((texts[k][1][strlen(text)] & 0xc0) != 0x80);
        }
        gguf_kv_text(gguf_find(g, texts[k][0]), NULL, 0);
    }

    const gguf_tensor *t = gguf_find_tensor(g, "b.weight");
    assert_ptr_equal(t, gguf_tensor_at(g, 0));
    assert_int_equal(t->bytes, 68);
    assert_int_equal(t->n_elements, 64);
    assert_true(t->n_dims == 2 && t->dims[0] == 32 && t->dims[1] == 2 && t->dims[2] == 1);
    assert_int_equal(t->offset % 64, 0);
    t = gguf_find_tensor(g, "odd");
    assert_true(t->bytes == 0 && t->type == 17 && t->n_elements == 10);
    assert_null(gguf_find_tensor(g, "nothing"));
    t = gguf_find_tensor(g, "a");
    float scratch[3], *x;
    const void *data;
    assert_int_equal(gguf_read(g, t, 0, 12, scratch, &data, &err), 0);
    memcpy(scratch, data, 12);
    x = scratch;
    assert_true(x[0] == 1 && x[1] == 2 && x[2] == 3);
    assert_int_equal(gguf_read(g, t, 8, 4, scratch, &data, &err), 0);
    memcpy(scratch, data, 4);
    assert_true(scratch[0] == 3);
    assert_int_equal(gguf_read(g, t, 12, 0, scratch, &data, &err), 0);
    assert_int_equal(gguf_read(g, t, 8, 5, scratch, &data, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "are not inside tensor \"a\" of 12 bytes"));
    assert_int_equal(gguf_read(g, t, 13, 0, scratch, &data, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(gguf_read(g, t, UINT64_MAX, 2, scratch, &data, &err), LINNET_ERR_ARGUMENT);
    for (size_t k = 0; k < gguf_n_tensors(g); k++)
        gguf_release(g, gguf_tensor_at(g, k), 0, gguf_tensor_at(g, k)->bytes);
    assert_int_equal(gguf_read(g, t, 0, 12, scratch, &data, &err), 0);
    memcpy(scratch, data, 12);
    assert_true(scratch[1] == 2);
}

static void good_file(void **state) {
    (void)state;
    buf b = build_good();
    gguf *g;
    linnet_error err;
    assert_int_equal(gguf_open_memory(&g, b.p, b.n, "memory", &err), 0);
    assert_string_equal(gguf_path(g), "memory");
    check_good(g);
    gguf_close(g);
    write_file(file, b.p, b.n);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        if (gguf_open(&g, file, no_mmap, &err)) fail_msg("%s", err.text);
        assert_int_equal(gguf_is_mapped(g), !no_mmap);
        assert_int_equal(gguf_file_bytes(g), b.n);
        check_good(g);
        gguf_close(g);
    }
    gguf_close(NULL);
    free(b.p);
}

static void vocabulary_only(void **state) {
    (void)state;
    gguf *g;
    linnet_error err;
    buf b = {0};
    put_head(&b, 0, 0);
    assert_int_equal(gguf_open_memory(&g, b.p, b.n, "nothing at all", &err), 0);
    assert_null(gguf_find(g, "x"));
    assert_null(gguf_find_tensor(g, "x"));
    gguf_close(g);
    b.n = 0;
    /* A header of several times the first read, so that reading must grow and parse again. */
    put_head(&b, 0, 2);
    put_kv_str(&b, "general.architecture", "llama");
    put_kv_array(&b, "tokenizer.ggml.tokens", 8, 100000);
    for (int i = 0; i < 100000; i++) {
        char s[24];
        snprintf(s, sizeof s, "token%d", i);
        put_str(&b, s);
    }
    write_file(file, b.p, b.n);
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        if (gguf_open(&g, file, no_mmap, &err)) fail_msg("%s", err.text);
        const gguf_kv *kv;
        assert_int_equal(gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, true, &kv, &err),
                         0);
        size_t cursor = 0;
        gguf_str s = {NULL, 0};
        for (uint64_t i = 0; i < kv->count; i++)
            s = gguf_next_str(kv, &cursor);
        assert_true(s.n == 10 && !memcmp(s.p, "token99999", 10));
        gguf_close(g);
    }
    /* The same cut short, far behind the first read. */
    b.n -= 3;
    check_bad(&b, LINNET_ERR_FORMAT, "is truncated: the value of key \"tokenizer.ggml.tokens\"",
              __LINE__);
    free(b.p);
}

/* Full tables must not take quadratic time: 65536 keys and tensors, in an order bad for sorting,
 * with long common prefixes. */
static void many(void **state) {
    (void)state;
    buf b = {0};
    char name[65];
    put_head(&b, GGUF_MAX_TENSORS, GGUF_MAX_KEYS);
    for (int i = 0; i < GGUF_MAX_KEYS; i++) {
        snprintf(name, sizeof name, "a.common.prefix.of.some.length.that.repeats.%08d",
                 i % 2 ? i : GGUF_MAX_KEYS - i);
        put_kv_u32(&b, name, (uint32_t)i);
    }
    for (int i = 0; i < GGUF_MAX_TENSORS; i++) {
        snprintf(name, sizeof name, "tensor.%08d", GGUF_MAX_TENSORS - i);
        put_tensor_1d(&b, name, 8, 0, 32 * (uint64_t)(i % 2 ? i : GGUF_MAX_TENSORS - i - 2));
    }
    put_align(&b, 32);
    put_zeros(&b, 32 * (size_t)GGUF_MAX_TENSORS);
    gguf *g;
    linnet_error err;
    if (gguf_open_memory(&g, b.p, b.n, "many", &err)) fail_msg("%s", err.text);
    int64_t v = -1;
    for (int i = 1; i < GGUF_MAX_KEYS; i += 2) {
        snprintf(name, sizeof name, "a.common.prefix.of.some.length.that.repeats.%08d", i);
        assert_int_equal(gguf_get_int(g, name, true, 0, GGUF_MAX_KEYS, &v, &err), 0);
        assert_int_equal(v, i);
        snprintf(name, sizeof name, "tensor.%08d", i);
        assert_non_null(gguf_find_tensor(g, name));
    }
    gguf_close(g);
    free(b.p);
}

/* ---- Damage -------------------------------------------------------------------------------- */

static volatile unsigned sink;

/* Reads whatever can be read, so that a bad length shows under AddressSanitizer. */
static void touch(const gguf *g) {
    char text[64];
    for (size_t i = 0; i < gguf_n_kv(g); i++) {
        const gguf_kv *kv = gguf_kv_at(g, i);
        gguf_kv_text(kv, text, sizeof text);
        for (uint64_t k = 0; k < kv->bytes; k++)
            sink += kv->data[k];
    }
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        const void *data;
        assert_int_equal(gguf_read(g, t, 0, (size_t)t->bytes, NULL, &data, NULL), 0);
        for (uint64_t k = 0; k < t->bytes; k++)
            sink += ((const uint8_t *)data)[k];
    }
}

static void truncated_anywhere(void **state) {
    (void)state;
    buf b = build_good();
    size_t complete = b.n - 8; /* without the trailing bytes */
    for (size_t n = 0; n < complete; n++) {
        gguf *g = NULL;
        linnet_error err = {0};
        uint8_t *cut = malloc(n ? n : 1);
        memcpy(cut, b.p, n);
        if (gguf_open_memory(&g, cut, n, "cut", &err) != LINNET_ERR_FORMAT || g)
            fail_msg("accepted %zu of %zu bytes", n, complete);
        if (n && !strstr(err.text, "cut is truncated: "))
            fail_msg("%zu of %zu bytes: %s", n, complete, err.text);
        free(cut);
    }
    for (size_t n = complete; n <= b.n; n++) {
        gguf *g;
        assert_int_equal(gguf_open_memory(&g, b.p, n, "whole", NULL), 0);
        gguf_close(g);
    }
    free(b.p);
}

static void flipped_bits(void **state) {
    (void)state;
    buf b = build_good();
    int opened = 0, refused = 0;
    for (size_t bit = 0; bit < 8 * b.n; bit++) {
        gguf *g;
        linnet_error err = {0};
        b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
        linnet_status status = gguf_open_memory(&g, b.p, b.n, "flipped", &err);
        if (status == LINNET_OK) {
            opened++;
            touch(g);
            gguf_close(g);
        } else {
            refused++;
            assert_true(status == LINNET_ERR_FORMAT || status == LINNET_ERR_UNSUPPORTED);
            assert_true(err.code == status && strlen(err.text) > 10);
        }
        b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    /* Letters and numbers may change into others; counts, lengths and types may not. */
    assert_true(opened > 1000 && refused > 1000);
    free(b.p);
}

static void shrunk_while_open(void **state) {
    (void)state;
    buf b = build_good();
    gguf *g;
    linnet_error err;
    float scratch[3];
    const void *data;
    write_file(file, b.p, b.n);
    assert_int_equal(gguf_open(&g, file, true, &err), 0);
    assert_int_equal(truncate(file, 40), 0);
    assert_int_equal(gguf_read(g, gguf_find_tensor(g, "a"), 0, 12, scratch, &data, &err),
                     LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "became shorter while it was read"));
    gguf_close(g);
    free(b.p);
}

static int setup(void **state) {
    (void)state;
    const char *made = make_folder();
    if (!made) return -1;
    snprintf(folder, sizeof folder, "%s", made);
    snprintf(file, sizeof file, "%s/x.gguf", folder);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    unlink(file);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_starts),         cmocka_unit_test(bad_counts),
        cmocka_unit_test(bad_keys),           cmocka_unit_test(bad_values),
        cmocka_unit_test(bad_alignment),      cmocka_unit_test(bad_tensors),
        cmocka_unit_test(bad_paths),          cmocka_unit_test(good_file),
        cmocka_unit_test(vocabulary_only),    cmocka_unit_test(many),
        cmocka_unit_test(truncated_anywhere), cmocka_unit_test(flipped_bits),
        cmocka_unit_test(shrunk_while_open),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
