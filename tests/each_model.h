/* A program whose tests run once for every NAME of tests/data/models. */
#ifndef TESTS_EACH_MODEL_H
#define TESTS_EACH_MODEL_H

#include "support.h"

#include <glob.h>

enum { MAX_NAMES = 128 };
static char names[MAX_NAMES][64];
static int n_names;
static struct CMUnitTest tests[2 * MAX_NAMES + 16];
static size_t n_tests;

/* Every tests/data/models/NAME with this suffix. */
static inline void find_names(const char *suffix) {
    static const char in[] = "tests/data/models/";
    char pattern[64];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s*%s", in, suffix);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc && n_names < MAX_NAMES; i++)
        snprintf(names[n_names++], sizeof *names, "%.*s",
                 (int)(strlen(found.gl_pathv[i]) - strlen(in) - strlen(suffix)),
                 found.gl_pathv[i] + strlen(in));
    globfree(&found);
}

/* A test of each name, which is its state. */
static inline void add(const char *what, CMUnitTestFunction f) {
    static char test_names[2 * MAX_NAMES][96];
    for (int i = 0; i < n_names; i++) {
        char *name = test_names[n_tests];
        snprintf(name, sizeof *test_names, "%.60s_%.30s", names[i], what);
        tests[n_tests++] = (struct CMUnitTest){name, f, NULL, NULL, names[i]};
    }
}

#endif
