/* Every allocation of the tokenizers and chat templates fails in turn: each time an error with a
 * sentence, nothing leaked (AddressSanitizer's run sees that), the caller's list as it was. The
 * sources are compiled here once more, with an allocator that can fail. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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

#define malloc try_malloc
#define calloc try_calloc
#define realloc try_realloc
#include "../tokenizer/bpe.c"
#undef S
#include "../tokenizer/tokenizer.c"
#include "../tokenizer/chat.c"
#undef malloc
#undef calloc
#undef realloc

#include "build_gguf.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const linnet_message talk[] = {{"system", "Be brief."}, {"user", "Hello \xFF"}};

/* All that a program does with a file; *out is what the list held before plus the ids. */
static linnet_status use(const char *path, id_list *out, linnet_error *err) {
    gguf *g;
    tokenizer *t = NULL;
    if (gguf_open(&g, path, false, err)) return LINNET_OK;
    linnet_status status = tokenizer_new(&t, g, err);
    if (!status) status = tokenizer_encode(t, "<s>ab\xFF c<|im_end|>", 17, true, out, err);
    for (size_t i = 0; !status && chat_template_name(i); i++)
        status = chat_render(chat_template_by_name(chat_template_name(i)), g, t, talk, 2, true, out,
                             err);
    tokenizer_free(t);
    gguf_close(g);
    return status;
}

static void every_allocation(void **state) {
    (void)state;
    static const char *const paths[] = {
        "tests/data/tokenizer/bpe.gguf",
        "tests/data/tokenizer/sp.gguf",
        "tests/data/tokenizer/sp_raw.gguf",
    };
    for (size_t k = 0; k < 3; k++) {
        linnet_error err;
        id_list want = {0};
        fail_at = calls = 0;
        assert_int_equal(use(paths[k], &want, &err), LINNET_OK);
        long all = calls, refused = 0;
        assert_true(all > 20);
        for (long i = 1; i <= all; i++) {
            id_list ids = {0};
            fail_at = i;
            calls = 0;
            err.text[0] = 0;
            linnet_status status = use(paths[k], &ids, &err);
            if (status) {
                assert_int_equal(status, LINNET_ERR_MEMORY);
                assert_non_null(strstr(err.text, "no memory"));
                assert_true(ids.n < want.n);
                refused++;
            } else { /* shrinking a buffer may fail without harm */
                assert_int_equal(ids.n, want.n);
            }
            assert_true(!ids.n || !memcmp(ids.at, want.at, ids.n * sizeof *ids.at));
            ids_free(&ids);
        }
        assert_true(refused > all - 3);
        ids_free(&want);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation)};
    return cmocka_run_group_tests_name("tokenizer_memory", tests, NULL, NULL);
}
