/* Every allocation of the reader, the writer and quantize fails in turn: each time an error with a
 * sentence, nothing leaked (AddressSanitizer's run sees that), no file left behind. The sources are
 * compiled here once more, with an allocator that can fail. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static long fail_at, calls; /* the number of the call that fails; 0 = none */

static bool may_allocate(void) {
    return ++calls != fail_at;
}
static void *try_malloc(size_t n) {
    return may_allocate() ? malloc(n) : NULL;
}
static void *try_calloc(size_t n, size_t m) {
    return may_allocate() ? calloc(n, m) : NULL;
}
static void *try_realloc(void *p, size_t n) {
    return may_allocate() ? realloc(p, n) : NULL;
}
static char *try_strdup(const char *s) {
    return may_allocate() ? strdup(s) : NULL;
}

#define malloc try_malloc
#define calloc try_calloc
#define realloc try_realloc
#undef strdup
#define strdup try_strdup
#include "../weights/gguf.c"
#undef TRY
#include "../weights/atomic.c"
#define put write_bytes /* build_gguf.h has another */
#include "../weights/gguf_write.c"
#undef put
#undef TRY
#include "../weights/quantize.c"
#undef malloc
#undef calloc
#undef realloc
#undef strdup

#include "build_gguf.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define IN "tests/data/quantize/in.gguf"

static char folder[512], out[600];

static linnet_status from_memory(linnet_error *err) {
    static uint8_t data[1 << 17];
    static size_t n;
    if (!n) {
        FILE *f = fopen(IN, "rb");
        n = fread(data, 1, sizeof data, f);
        fclose(f);
    }
    gguf *g;
    linnet_status status = gguf_open_memory(&g, data, n, "memory", err);
    gguf_close(g);
    return status;
}

static linnet_status mapped(linnet_error *err) {
    gguf *g;
    linnet_status status = gguf_open(&g, IN, false, err);
    gguf_close(g);
    return status;
}

static linnet_status read_in(linnet_error *err) {
    gguf *g;
    linnet_status status = gguf_open(&g, IN, true, err);
    gguf_close(g);
    return status;
}

static linnet_status quantize(linnet_error *err) {
    return linnet_quantize(IN, out, "q4_0", NULL, err);
}

static void each_allocation(void **state) {
    (void)state;
    linnet_status (*const jobs[])(linnet_error *) = {from_memory, mapped, read_in, quantize};
    for (int j = 0; j < 4; j++) {
        linnet_error err;
        fail_at = calls = 0;
        if (jobs[j](&err)) fail_msg("%s", err.text);
        long total = calls;
        assert_true(total >= 5);
        unlink(out);
        for (fail_at = 1; fail_at <= total; fail_at++) {
            calls = 0;
            err = (linnet_error){0};
            if (jobs[j](&err) != LINNET_ERR_MEMORY)
                fail_msg("job %d: allocation %ld failed unseen", j, fail_at);
            assert_int_equal(err.code, LINNET_ERR_MEMORY);
            assert_non_null(strstr(err.text, "no memory"));
            assert_int_not_equal(access(out, F_OK), 0);
        }
    }
}

int main(void) {
    const char *made = make_folder();
    if (!made) return 1;
    snprintf(folder, sizeof folder, "%s", made);
    snprintf(out, sizeof out, "%s/out.gguf", folder);
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_allocation)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (rmdir(folder)) failed++; /* an unfinished file was left in it */
    return failed;
}
