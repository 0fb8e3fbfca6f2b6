/* What several tests need: golden files, and models opened with one line. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../linnet.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The float32 data of a two-dimensional .npy file; the caller frees it. */
static inline float *read_npy(const char *path, size_t *rows, size_t *cols) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot be opened", path);
    uint8_t head[10];
    char text[512] = {0};
    assert_int_equal(fread(head, 1, 10, f), 10);
    size_t n = head[8] | (size_t)head[9] << 8;
    assert_true(n < sizeof text);
    assert_int_equal(fread(text, 1, n, f), n);
    assert_non_null(strstr(text, "<f4"));
    assert_int_equal(sscanf(strstr(text, "'shape': (") + 10, "%zu, %zu", rows, cols), 2);
    float *data = malloc(*rows * *cols * sizeof(float));
    assert_int_equal(fread(data, sizeof(float), *rows * *cols, f), *rows * *cols);
    fclose(f);
    return data;
}

static inline size_t read_ids(const char *path, int32_t *ids, size_t cap) {
    FILE *f = fopen(path, "r");
    size_t n = 0;
    if (!f) fail_msg("%s: cannot be opened", path);
    while (n < cap && fscanf(f, "%d", &ids[n]) == 1)
        n++;
    fclose(f);
    return n;
}

static inline linnet_model *open_model(const char *path, const linnet_model_options *o) {
    linnet_error err;
    linnet_model *m;
    if (linnet_model_open(&m, path, o, &err)) fail_msg("%s", err.text);
    return m;
}

static inline linnet_session *open_session(linnet_model *m, const linnet_session_options *o) {
    linnet_error err;
    linnet_session *s;
    if (linnet_session_new(&s, m, o, &err)) fail_msg("%s", err.text);
    return s;
}

/* Collects rows of logits: user = a rows_at whose `at` has room. */
typedef struct {
    float *at;
    size_t width;
} rows_at;

static inline bool collect_rows(void *user, size_t first, size_t n, const float *logits) {
    rows_at *r = user;
    memcpy(r->at + first * r->width, logits, n * r->width * sizeof(float));
    return true;
}

/* All logits of ids fed in pieces of `chunk` (0: at once); [n, width] to `out`. */
static inline void feed_all(linnet_session *s, const int32_t *ids, size_t n, size_t chunk,
                            size_t width, float *out) {
    linnet_error err;
    rows_at rows = {out, width};
    for (size_t at = 0; at < n;) {
        size_t some = !chunk || n - at < chunk ? n - at : chunk;
        linnet_item item = {s, ids + at, some, LINNET_LOGITS_ALL, collect_rows, &rows};
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s", err.text);
        at += some;
    }
}

#endif
