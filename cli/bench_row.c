#include "bench_row.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "describe.h"
#include "machine.h"

/* ---- a row -------------------------------------------------------------------------------- */

json_t *describe_row(const engine *e, const linnet_model *model, const char *path, const char *hash,
                     const bench_test *t, int threads) {
    const linnet_model_info *info = linnet_model_get_info(model);
    uint64_t n = (uint64_t)t->n_seqs,
             tokens = (uint64_t)t->n_depth + (uint64_t)t->n_prompt + (uint64_t)t->n_gen;
    linnet_kv_type kv = engine_kv(e);
    machine m;
    char now[TIME_TEXT];
    time_now(now);
    machine_read(&m);
    json_t *row = json_object();
    json_object_set_new(row, "build_commit", json_string(build_commit));
    json_set_int(row, "build_number", (uint64_t)build_number);
    json_object_set_new(row, "cpu_info", json_text(m.cpu));
    json_object_set_new(row, "gpu_info", json_string(""));
    json_object_set_new(row, "backends", json_string("CPU"));
    set_model_keys(row, model, path, hash);
    json_set_int(row, "n_batch", n * (uint64_t)(t->n_prompt ? t->n_prompt : 1));
    json_object_set_new(row, "n_threads", threads ? json_integer(threads) : json_null());
    json_set_int(row, "n_prompt", (uint64_t)t->n_prompt);
    json_set_int(row, "n_gen", (uint64_t)t->n_gen);
    json_set_int(row, "n_depth", (uint64_t)t->n_depth);
    json_set_int(row, "n_seqs", n);
    json_object_set_new(row, "test_time", json_string(now));
    static const char *const measured[] = {"avg_ns",     "stddev_ns", "median_ns", "avg_ts",
                                           "stddev_ts",  "median_ts", "seq_ts",    "samples_ns",
                                           "samples_ts", "ttft_ns"};
    for (size_t i = 0; i < sizeof measured / sizeof *measured; i++)
        json_object_set_new(row, measured[i], json_null());
    json_set_int(row, "state_bytes_model", state_bytes_by_formula(model, kv, tokens));
    json_set_int(row, "state_bytes_alloc", linnet_model_state_bytes(model, kv, tokens));
    json_set_int(row, "weight_bytes_read_per_token", info->weight_bytes);
    json_object_set_new(row, "bytes_per_step", json_null());
    if (t->n_gen) { /* half way through the steps */
        uint64_t half = tokens - (uint64_t)t->n_gen / 2;
        json_set_int(row, "bytes_per_step",
                     info->weight_bytes + n * linnet_model_state_bytes(model, kv, half));
    }
    json_object_set_new(row, "gb_per_s", json_null());
    json_object_set_new(row, "peak_rss_bytes", json_null());
    json_set_int(row, "peak_vram_bytes", 0);
    set_precision_keys(row, model, kv, e->activations);
    json_object_set_new(row, "isa", json_null());
    json_set_int(row, "n_processors", (uint64_t)m.processors);
    json_object_set_new(row, "cpu_flags", json_text(m.flags));
    json_object_set_new(row, "governor", m.governor[0] ? json_text(m.governor) : json_null());
    json_object_set_new(row, "pinned", json_false());
    json_object_set_new(row, "oom", json_false());
    json_object_set_new(row, "error", json_null());
    return row;
}

typedef struct {
    double mean, sd, median;
} summary;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts v. */
static summary summarize(double *v, size_t n) {
    summary s = {0};
    if (!n) return s;
    double squares = 0;
    for (size_t i = 0; i < n; i++)
        s.mean += v[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (v[i] - s.mean) * (v[i] - s.mean);
    s.sd = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
    qsort(v, n, sizeof *v, ascending);
    s.median = (v[(n - 1) / 2] + v[n / 2]) / 2;
    return s;
}

static void set_real(json_t *row, const char *key, double value) {
    json_object_set_new(row, key, json_real(value));
}

bool complete_row(json_t *row, const json_t *found, const bench_test *t) {
    static const char *const kept[] = {"n_threads",      "isa",    "backends", "gpu_info",
                                       "peak_rss_bytes", "pinned", "oom",      "error",
                                       "peak_vram_bytes"};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (json_object_get(found, kept[i]))
            json_object_set(row, kept[i], json_object_get(found, kept[i]));
    json_t *ns = json_object_get(found, "samples_ns"), *ts = json_array();
    json_t *first = json_object_get(found, "ttft_samples_ns");
    if (json_is_true(json_object_get(row, "oom"))) ns = first = NULL;
    json_object_set(row, "samples_ns", ns ? ns : ts);
    json_object_set_new(row, "samples_ts", ts);
    size_t n = json_array_size(ns);
    double *v = malloc((n + 1) * sizeof *v);
    if (!v) return false;
    double tokens = (double)t->n_seqs * ((double)t->n_prompt + (double)t->n_gen);
    for (size_t i = 0; i < n; i++)
        v[i] = fmax(1, (double)json_integer_value(json_array_get(ns, i)));
    for (size_t i = 0; i < n; i++)
        json_array_append_new(ts, json_real(tokens * 1e9 / v[i]));
    summary s = summarize(v, n);
    if (n) {
        json_set_int(row, "avg_ns", (uint64_t)llround(s.mean));
        json_set_int(row, "stddev_ns", (uint64_t)llround(s.sd));
        json_set_int(row, "median_ns", (uint64_t)llround(s.median));
        if (t->n_gen && !t->n_prompt)
            set_real(row, "gb_per_s",
                     json_number_value(json_object_get(row, "bytes_per_step")) * t->n_gen /
                         s.median);
        for (size_t i = 0; i < n; i++)
            v[i] = json_real_value(json_array_get(ts, i));
        s = summarize(v, n);
        set_real(row, "avg_ts", s.mean);
        set_real(row, "stddev_ts", s.sd);
        set_real(row, "median_ts", s.median);
        set_real(row, "seq_ts", s.median / t->n_seqs);
    }
    for (size_t i = 0; i < json_array_size(first); i++)
        v[i] = (double)json_integer_value(json_array_get(first, i));
    if (json_array_size(first))
        json_set_int(row, "ttft_ns",
                     (uint64_t)llround(summarize(v, json_array_size(first)).median));
    free(v);
    return true;
}

/* ---- Markdown ----------------------------------------------------------------------------- */

static void show_backend(const json_t *row, char *out, size_t size) {
    const char *isa = json_string_value(json_object_get(row, "isa"));
    snprintf(out, size, "%s%s%s", row_text(row, "backends"), isa ? " " : "", isa ? isa : "");
}

static void show_threads(const json_t *row, char *out, size_t size) {
    double n = row_number(row, "n_threads");
    snprintf(out, size, n > 0 ? "%.0f" : "-", n);
}

static void show_batch(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.0f", row_number(row, "n_seqs"));
}

static void show_test(const json_t *row, char *out, size_t size) {
    double p = row_number(row, "n_prompt"), n = row_number(row, "n_gen");
    if (p > 0 && n > 0)
        snprintf(out, size, "pg%.0f,%.0f", p, n);
    else
        snprintf(out, size, "%s%.0f", p > 0 ? "pp" : "tg", p > 0 ? p : n);
}

static void show_depth(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.0f", row_number(row, "n_depth"));
}

static void show_speed(const json_t *row, char *out, size_t size) {
    if (json_is_true(json_object_get(row, "oom")))
        snprintf(out, size, "OOM");
    else
        snprintf(out, size, "%.1f (%.1f ± %.1f)", row_number(row, "median_ts"),
                 row_number(row, "avg_ts"), row_number(row, "stddev_ts"));
}

static void show_first(const json_t *row, char *out, size_t size) {
    double ns = row_number(row, "ttft_ns");
    snprintf(out, size, ns > 0 ? "%.*f" : "-", ns < 1e7 ? 3 : 1, ns / 1e6);
}

static void show_rss(const json_t *row, char *out, size_t size) {
    if (row_number(row, "peak_rss_bytes") > 0)
        row_bytes(row, "peak_rss_bytes", out, size);
    else
        snprintf(out, size, "-");
}

static void show_vram(const json_t *row, char *out, size_t size) {
    if (row_number(row, "peak_vram_bytes") > 0)
        row_bytes(row, "peak_vram_bytes", out, size);
    else
        snprintf(out, size, "-");
}

const row_column bench_columns[] = {
    {"model", false, show_model},     {"params", true, show_params},
    {"size", true, show_size},        {"arch/mixers", false, show_mixers},
    {"backend", false, show_backend}, {"threads", true, show_threads},
    {"B", true, show_batch},          {"test", false, show_test},
    {"d", true, show_depth},          {"t/s", true, show_speed},
    {"TTFT ms", true, show_first},    {"state/seq", true, show_state},
    {"peak RSS", true, show_rss},     {"peak VRAM", true, show_vram},
};
const size_t n_bench_columns = sizeof bench_columns / sizeof *bench_columns;

void add_hint(text_buffer *hints, const json_t *row) {
    char model[256], test[64], weights[32], state[32], text[640];
    double seqs = row_number(row, "n_seqs"), step = row_number(row, "bytes_per_step");
    double own = step - row_number(row, "weight_bytes_read_per_token");
    show_model(row, model, sizeof model);
    show_test(row, test, sizeof test);
    row_bytes(row, "weight_bytes_read_per_token", weights, sizeof weights);
    human_bytes(state, sizeof state, (uint64_t)(own / seqs));
    snprintf(text, sizeof text,
             "%s, %s @ d%.0f, -t %.0f: a step moves %s of weights and %.0f x %s of state "
             "(%.0f %%), %.1f GB/s\n",
             model, test, row_number(row, "n_depth"), row_number(row, "n_threads"), weights, seqs,
             state, 100 * own / step, row_number(row, "gb_per_s"));
    text_append(hints, text, strlen(text));
}
