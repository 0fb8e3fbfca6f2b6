/* What several tests need: golden files, and models opened with one line. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../linnet_tools.h"
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
        linnet_item item = {s, ids + at, some, LINNET_LOGITS_ALL, collect_rows, &rows, false};
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s", err.text);
        at += some;
    }
}

/* Feeds ids [from, to) of a long text of few ids, as tests/golden's scripts make it. */
static inline void feed_long(linnet_session *s, uint64_t from, uint64_t to, uint64_t chunk,
                             int vocab) {
    int32_t ids[512];
    linnet_error err;
    for (uint64_t t = from; t < to; t += chunk) {
        uint64_t n = to - t < chunk ? to - t : chunk;
        for (uint64_t i = t; i < t + n; i++)
            ids[i - t] = (int32_t)((i * i * 7 + i * 3 + i / 11) % (uint64_t)vocab);
        if (linnet_feed(s, ids, n, LINNET_LOGITS_LAST, &err))
            fail_msg("token %d: %s", (int)t, err.text);
    }
}

/* Within 1e-3 of the RMS of the float64 state. */
static inline void state_near(const char *name, int layer, const float *got, const float *want,
                              size_t n) {
    double error = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        error += pow((double)got[i] - want[i], 2);
        square += pow(want[i], 2);
    }
    assert_true(square > 0);
    if (!(sqrt(error / square) <= 1e-3))
        fail_msg("%s: layer %d: state error %g", name, layer, sqrt(error / square));
}

#endif
