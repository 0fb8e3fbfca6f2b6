/* linnet bench: how fast, and in how much memory. Each row is measured in a process of its own, so
 * that one row's memory is not another's (cli/measure.c). */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "commands.h"
#include "describe.h"
#include "machine.h"
#include "measure.h"
#include "rows.h"
#include "spawn.h"

static const char about[] =
    "Times prefill (pp), decoding (tg) and one after the other (pg) for every combination of "
    "models, "
    "threads, batch sizes and depths, a row each. A batch of B is B sessions that advance "
    "together, "
    "each with its own state; t/s counts the tokens of all. Ids are random from a fixed seed; a "
    "step "
    "feeds one token per session and computes its logits; nothing is sampled, no text is made. "
    "Every test runs once to warm up, then -r times: t/s is the median (mean +- standard "
    "deviation), and JSON has all samples.\n"
    "state/seq is what a session holds at the end of the test. Peak RSS is of a process that runs "
    "this "
    "row alone. Where memory does not suffice the row says OOM and the next one follows.\n"
    "To be fair, compare: the same dtype, threads and number of parameters; every model at batch 1 "
    "and "
    "at the largest batch that fits; softmax and recurrent models at several depths, since only "
    "one of them slows down.";

typedef struct {
    engine e;
    text_list models;
    number_list prompt, gen, prompt_gen, depth, batch, threads;
    int repeats;
    bool no_pin;
    const char *format, *format_err, *save;
} bench_options;

enum { MAX_TOKENS = 1 << 24, MAX_BATCH = 4096, MAX_TESTS = 3 * MAX_NUMBERS };

typedef struct {
    row_writer writers[3];
    int n_writers;
    output_file file;
    text_buffer hints; /* what a step moves, a line per row that decodes */
} bench_output;

/* ---- a row -------------------------------------------------------------------------------- */

/* Everything that is known without running; the rest is there as null, so that all rows have the
 * same keys in the same order. */
static json_t *describe_row(const bench_options *o, const linnet_model *model, const char *path,
                            const bench_test *t, int threads) {
    const linnet_model_info *info = linnet_model_get_info(model);
    uint64_t n = (uint64_t)t->n_seqs,
             tokens = (uint64_t)t->n_depth + (uint64_t)t->n_prompt + (uint64_t)t->n_gen;
    linnet_kv_type kv = engine_kv(&o->e);
    machine m;
    char text[128], now[32];
    time_t seconds = time(NULL);
    struct tm utc;
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
    machine_read(&m);
    dtype_count dtypes[MAX_DTYPES];
    uint64_t tensor_bytes = 0;
    for (size_t i = count_dtypes(model, dtypes); i-- > 0;)
        tensor_bytes += dtypes[i].bytes;

    json_t *row = json_object();
    json_object_set_new(row, "build_commit", json_string(build_commit));
    json_set_int(row, "build_number", (uint64_t)build_number);
    json_object_set_new(row, "cpu_info", json_text(m.cpu));
    json_object_set_new(row, "gpu_info", json_string(""));
    json_object_set_new(row, "backends", json_string("CPU"));
    json_object_set_new(row, "model_filename", json_text(path));
    snprintf(text, sizeof text, "%s %.0fM %s", info->architecture, (double)info->n_params / 1e6,
             main_dtype(model));
    json_object_set_new(row, "model_type", json_text(text));
    json_set_int(row, "model_size", tensor_bytes);
    json_set_int(row, "model_n_params", info->n_params);
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
    state_dtype(model, kv, text, sizeof text);
    json_object_set_new(row, "dtype_state", json_string(text));
    json_object_set_new(row, "activations", json_string(o->e.activations));
    json_object_set_new(row, "architecture", json_text(info->architecture));
    json_object_set_new(row, "mixers", mixers_json(model));
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

/* What the measuring process found, into the row. */
static bool complete_row(json_t *row, const json_t *found, const bench_test *t) {
    static const char *const kept[] = {"n_threads", "isa", "peak_rss_bytes",
                                       "pinned",    "oom", "error"};
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

static double number_of(const json_t *row, const char *key) {
    return json_number_value(json_object_get(row, key));
}

static const char *text_of(const json_t *row, const char *key) {
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "-";
}

static void bytes_of(const json_t *row, const char *key, char *out, size_t size) {
    human_bytes(out, size, (uint64_t)number_of(row, key));
}

static void show_model(const json_t *row, char *out, size_t size) {
    const char *path = text_of(row, "model_filename"), *slash = strrchr(path, '/');
    snprintf(out, size, "%s", slash ? slash + 1 : path);
    size_t n = strlen(out);
    if (n > 5 && !strcmp(out + n - 5, ".gguf")) out[n - 5] = '\0';
}

static void show_params(const json_t *row, char *out, size_t size) {
    double n = number_of(row, "model_n_params");
    snprintf(out, size, "%.1f %s", n < 1e6 ? n / 1e3 : n / 1e6, n < 1e6 ? "k" : "M");
}

static void show_size(const json_t *row, char *out, size_t size) {
    bytes_of(row, "model_size", out, size);
}

/* "llama softmax", "qwen35 18 gated_delta_net + 6 softmax" */
static void show_mixers(const json_t *row, char *out, size_t size) {
    const json_t *mixers = json_object_get(row, "mixers");
    size_t n = json_array_size(mixers), i;
    size_t at = (size_t)snprintf(out, size, "%s", text_of(row, "architecture"));
    json_t *value;
    json_array_foreach(mixers, i, value) {
        size_t same = 0, before = 0;
        for (size_t k = 0; k < n; k++) {
            bool equal = json_equal(value, json_array_get(mixers, k));
            same += equal;
            before += equal && k < i;
        }
        if (before || at >= size) continue;
        char count[24] = "";
        if (same < n) snprintf(count, sizeof count, "%zu ", same);
        at += (size_t)snprintf(out + at, size - at, "%s %s%s", i ? " +" : "", count,
                               json_string_value(value));
    }
}

static void show_backend(const json_t *row, char *out, size_t size) {
    const char *isa = json_string_value(json_object_get(row, "isa"));
    snprintf(out, size, "%s%s%s", text_of(row, "backends"), isa ? " " : "", isa ? isa : "");
}

static void show_threads(const json_t *row, char *out, size_t size) {
    double n = number_of(row, "n_threads");
    snprintf(out, size, n > 0 ? "%.0f" : "-", n);
}

static void show_batch(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.0f", number_of(row, "n_seqs"));
}

static void show_test(const json_t *row, char *out, size_t size) {
    double p = number_of(row, "n_prompt"), n = number_of(row, "n_gen");
    if (p > 0 && n > 0)
        snprintf(out, size, "pg%.0f,%.0f", p, n);
    else
        snprintf(out, size, "%s%.0f", p > 0 ? "pp" : "tg", p > 0 ? p : n);
}

static void show_depth(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.0f", number_of(row, "n_depth"));
}

static void show_speed(const json_t *row, char *out, size_t size) {
    if (json_is_true(json_object_get(row, "oom")))
        snprintf(out, size, "OOM");
    else
        snprintf(out, size, "%.1f (%.1f ± %.1f)", number_of(row, "median_ts"),
                 number_of(row, "avg_ts"), number_of(row, "stddev_ts"));
}

static void show_first(const json_t *row, char *out, size_t size) {
    double ns = number_of(row, "ttft_ns");
    snprintf(out, size, ns > 0 ? "%.*f" : "-", ns < 1e7 ? 3 : 1, ns / 1e6);
}

static void show_state(const json_t *row, char *out, size_t size) {
    bytes_of(row, "state_bytes_alloc", out, size);
}

static void show_rss(const json_t *row, char *out, size_t size) {
    if (number_of(row, "peak_rss_bytes") > 0)
        bytes_of(row, "peak_rss_bytes", out, size);
    else
        snprintf(out, size, "-");
}

static void show_vram(const json_t *row, char *out, size_t size) {
    if (number_of(row, "peak_vram_bytes") > 0)
        bytes_of(row, "peak_vram_bytes", out, size);
    else
        snprintf(out, size, "-");
}

static const row_column columns[] = {
    {"model", false, show_model},     {"params", true, show_params},
    {"size", true, show_size},        {"arch/mixers", false, show_mixers},
    {"backend", false, show_backend}, {"threads", true, show_threads},
    {"B", true, show_batch},          {"test", false, show_test},
    {"d", true, show_depth},          {"t/s", true, show_speed},
    {"TTFT ms", true, show_first},    {"state/seq", true, show_state},
    {"peak RSS", true, show_rss},     {"peak VRAM", true, show_vram},
};

/* What bounds decoding: a step reads all weights once and every session's state. */
static void add_hint(text_buffer *hints, const json_t *row) {
    char model[256], test[64], weights[32], state[32], text[640];
    double seqs = number_of(row, "n_seqs"), step = number_of(row, "bytes_per_step");
    double own = step - number_of(row, "weight_bytes_read_per_token");
    show_model(row, model, sizeof model);
    show_test(row, test, sizeof test);
    bytes_of(row, "weight_bytes_read_per_token", weights, sizeof weights);
    human_bytes(state, sizeof state, (uint64_t)(own / seqs));
    snprintf(text, sizeof text,
             "%s, %s @ d%.0f, -t %.0f: a step moves %s of weights and %.0f x %s of state "
             "(%.0f %%), %.1f GB/s\n",
             model, test, number_of(row, "n_depth"), number_of(row, "n_threads"), weights, seqs,
             state, 100 * own / step, number_of(row, "gb_per_s"));
    text_append(hints, text, strlen(text));
}

static void say_hints(const bench_output *out) {
    const char *line = out->hints.at;
    for (const char *end; line && (end = strchr(line, '\n')); line = end + 1)
        say("%.*s", (int)(end - line), line);
}

/* ---- running a row in a process of its own ----------------------------------------------------
 */

static char *whole(char text[16], int value) {
    snprintf(text, 16, "%d", value);
    return text;
}

/* What the process printed, or what became of it; EXIT_WORKED and a JSON object, or another code.
 */
static int ask_child(const bench_options *o, const char *path, const bench_test *t, int threads,
                     json_t **found) {
    char p[16], n[16], d[16], b[16], r[16], count[16];
    const char *argv[40] = {"linnet",
                            "bench",
                            "--row",
                            "-m",
                            path,
                            "-p",
                            whole(p, t->n_prompt),
                            "-n",
                            whole(n, t->n_gen),
                            "-d",
                            whole(d, t->n_depth),
                            "-b",
                            whole(b, t->n_seqs),
                            "-r",
                            whole(r, o->repeats),
                            "--backend",
                            o->e.backend,
                            "--isa",
                            o->e.isa,
                            "--activations",
                            o->e.activations,
                            "--quiet"};
    int k = 0;
    while (argv[k])
        k++;
    if (threads) argv[k++] = "-t", argv[k++] = whole(count, threads);
    if (o->e.kv) argv[k++] = "--kv", argv[k++] = o->e.kv;
    if (o->e.no_mmap) argv[k++] = "--no-mmap";
    if (o->no_pin) argv[k++] = "--no-pin";

    text_buffer text = {0};
    int status = 0, code = EXIT_FAILED;
    *found = NULL;
    if (!run_self((char *const *)argv, &text, &status)) {
        if (interrupted()) code = interrupt_code();
    } else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
        *found = json_pack("{s:b,s:s}", "oom", 1, "error",
                           "the kernel killed the process, most likely for lack of memory");
        code = *found ? EXIT_WORKED : failed("out of memory");
    } else if (WIFSIGNALED(status)) {
        failed("%s: signal %d ended the process that measured it", path, WTERMSIG(status));
    } else if ((code = WEXITSTATUS(status)) == EXIT_WORKED) {
        *found = json_loads(text.at ? text.at : "", 0, NULL);
        if (!*found) code = failed("%s: the process that measured it gave no result", path);
    }
    free(text.at);
    return code;
}

static int bench_row(const bench_options *o, const linnet_model *model, const char *path,
                     const bench_test *t, int threads, bench_output *out) {
    json_t *found, *row = describe_row(o, model, path, t, threads);
    int code = ask_child(o, path, t, threads, &found);
    if (!code && !complete_row(row, found, t)) code = failed("out of memory");
    for (int i = 0; !code && i < out->n_writers; i++)
        if (!rows_add(&out->writers[i], row)) code = EXIT_FAILED;
    if (!code && json_is_number(json_object_get(row, "gb_per_s"))) add_hint(&out->hints, row);
    if (!code && json_is_true(json_object_get(row, "oom"))) say("%s", text_of(row, "error"));
    json_decref(found);
    json_decref(row);
    return code;
}

/* ---- all rows ------------------------------------------------------------------------------- */

static void default_list(number_list *list, int value) {
    if (!list->n) list->at[list->n++] = value;
}

/* The tests of one depth and batch. */
static int list_tests(const bench_options *o, bench_test tests[MAX_TESTS]) {
    int n = 0;
    for (int i = 0; i < o->prompt.n; i++)
        if (o->prompt.at[i]) tests[n++] = (bench_test){.n_prompt = o->prompt.at[i]};
    for (int i = 0; i < o->gen.n; i++)
        if (o->gen.at[i]) tests[n++] = (bench_test){.n_gen = o->gen.at[i]};
    for (int i = 0; i + 1 < o->prompt_gen.n; i += 2)
        if (o->prompt_gen.at[i] || o->prompt_gen.at[i + 1])
            tests[n++] =
                (bench_test){.n_prompt = o->prompt_gen.at[i], .n_gen = o->prompt_gen.at[i + 1]};
    return n;
}

static int bench_model(const bench_options *o, const linnet_model *model, const char *path,
                       bench_output *out) {
    bench_test tests[MAX_TESTS];
    int n = list_tests(o, tests), code = EXIT_WORKED;
    for (int t = 0; t < o->threads.n; t++)
        for (int b = 0; b < o->batch.n; b++)
            for (int d = 0; d < o->depth.n; d++)
                for (int i = 0; i < n && !code; i++) {
                    tests[i].n_seqs = o->batch.at[b];
                    tests[i].n_depth = o->depth.at[d];
                    code = bench_row(o, model, path, &tests[i], o->threads.at[t], out);
                }
    return code;
}

/* What no row of this model could do is told before the first one runs. */
static int check_model(const bench_options *o, const linnet_model *model, const char *path) {
    const linnet_model_info *info = linnet_model_get_info(model);
    if (!info->n_layers) return failed("%s: a vocabulary without weights cannot be timed", path);
    bench_test tests[MAX_TESTS];
    int n = list_tests(o, tests);
    for (int d = 0; d < o->depth.n; d++)
        for (int i = 0; i < n && info->ctx_is_limit; i++) {
            int tokens = o->depth.at[d] + tests[i].n_prompt + tests[i].n_gen;
            if (tokens > info->n_ctx_train)
                return failed("%s: a test of %d tokens, but this model has learned positions for "
                              "%d only",
                              path, tokens, info->n_ctx_train);
        }
    return EXIT_WORKED;
}

static int bench_all(bench_options *o, bench_output *out) {
    size_t n = o->models.n;
    linnet_model **models = calloc(n, sizeof *models);
    if (!models) return failed("out of memory");
    int code = EXIT_WORKED;
    for (size_t i = 0; i < n && !code; i++) {
        code = engine_open(&o->e, o->models.at[i], true, &models[i]);
        if (!code) code = check_model(o, models[i], o->models.at[i]);
    }
    if (!code && o->save && !output_open(&out->file, o->save)) code = EXIT_FAILED;
    if (!code && o->save)
        out->writers[out->n_writers++] =
            (row_writer){.format = "jsonl", .write = write_output, .user = &out->file};
    for (size_t i = 0; i < n && !code; i++)
        code = bench_model(o, models[i], o->models.at[i], out);
    for (size_t i = 0; i < n; i++)
        linnet_model_close(models[i]);
    free(models);
    return code;
}

/* Rows that were measured are kept, whatever ended the run. */
static int finish(bench_output *out, int code) {
    for (int i = 0; i < out->n_writers; i++)
        if (!rows_end(&out->writers[i]) && !code) code = EXIT_FAILED;
    if (out->file.file) {
        if (!out->writers[0].n)
            output_abandon(&out->file);
        else if (!output_finish(&out->file) && !code)
            code = EXIT_FAILED;
    }
    say_hints(out);
    free(out->hints.at);
    int stdout_code = finish_stdout();
    return code ? code : stdout_code;
}

/* `linnet bench --row` and the flags of one row: measures it and prints what measure() found. */
static int measure_row(const bench_options *o) {
    json_t *found = NULL;
    engine e = o->e;
    bench_test t = {.n_prompt = o->prompt.at[0],
                    .n_gen = o->gen.at[0],
                    .n_depth = o->depth.at[0],
                    .n_seqs = o->batch.at[0]};
    e.threads = o->threads.at[0];
    be_quiet(true);
    end_with_parent();
    die_first();
    int code = measure(&e, o->models.at[0], &t, o->repeats, !o->no_pin, &found);
    char *text = code ? NULL : json_dumps(found, JSON_COMPACT);
    if (text) put(text, strlen(text));
    free(text);
    json_decref(found);
    return code ? code : finish_stdout();
}

static void say_machine(void) {
    machine m;
    machine_read(&m);
    say("%s, %d processors, %s; governor %s", m.cpu[0] ? m.cpu : "unknown processor", m.processors,
        m.flags[0] ? m.flags : "no known vector extensions",
        m.governor[0] ? m.governor : "cannot be read");
}

static int parse(bench_options *o, int argc, char **argv) {
    flag_table f;
    flags_begin(&f, "bench", "-m MODEL [-m MODEL ...] [-p LIST] [-n LIST] [-d LIST] [-b LIST]",
                about);
    flags_title(&f, "What to run (a LIST has commas, and a flag may come several times)");
    flag_texts(&f, "-m/--model", "MODEL", &o->models, "a model file");
    flag_numbers(&f, "-p/--n-prompt", "LIST", &o->prompt, 0, 0, MAX_TOKENS,
                 "pp: prefill of N tokens, with the logits of the last; 0: none; default 512");
    flag_numbers(&f, "-n/--n-gen", "LIST", &o->gen, 0, 0, MAX_TOKENS,
                 "tg: N steps of one token each; 0: none; default 128");
    flag_numbers(&f, "-pg", "P,N", &o->prompt_gen, 2, 0, MAX_TOKENS,
                 "prefill of P tokens, then N steps, timed as one");
    flag_numbers(&f, "-d/--n-depth", "LIST", &o->depth, 0, 0, MAX_TOKENS,
                 "tokens that a session holds before; default 0");
    flag_numbers(&f, "-b/--n-seqs", "LIST", &o->batch, 0, 1, MAX_BATCH,
                 "sessions at once; default 1");
    flag_numbers(&f, "-t/--threads", "LIST", &o->threads, 0, 1, 1024,
                 "threads that compute; default: the physical cores");
    flag_int(&f, "-r/--repetitions", "N", &o->repeats, 1, 100000, "timed runs per row; default 5");
    flag_switch(
        &f, "--no-pin", &o->no_pin,
        "let threads move; else each is bound to a processor of its own, if there are enough");
    flags_title(&f, "Output");
    flag_choice(&f, "-o/--output", ROW_FORMATS, &o->format, "rows on stdout; default md");
    flag_choice(&f, "-oe/--output-err", ROW_FORMATS, &o->format_err, "rows on stderr too");
    flag_text(&f, "--save", "FILE", &o->save,
              "rows as JSON lines into a file, which is replaced when the last one is there");
    precision_flags(&f, &o->e, "auto");
    flags_title(&f, "Common flags");
    backend_flags(&f, &o->e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    if (!o->models.n) return misused("bench", "-m MODEL is missing");
    default_list(&o->prompt, 512);
    default_list(&o->gen, 128);
    default_list(&o->depth, 0);
    default_list(&o->batch, 1);
    default_list(&o->threads, 0);
    bench_test tests[MAX_TESTS];
    if (!list_tests(o, tests))
        return misused("bench", "-p and -n leave every test out, and there is no -pg");
    return KEEP_GOING;
}

static int bench(bench_options *o) {
    catch_interrupts(false);
    be_quiet(o->e.quiet);
    say_machine();
    bench_output out = {.n_writers = 1};
    out.writers[0] = (row_writer){.format = o->format, .write = write_stdout};
    if (o->format_err)
        out.writers[out.n_writers++] = (row_writer){.format = o->format_err, .write = write_stderr};
    for (int i = 0; i < out.n_writers; i++) {
        out.writers[i].columns = columns;
        out.writers[i].n_columns = sizeof columns / sizeof *columns;
    }
    return finish(&out, bench_all(o, &out));
}

int command_bench(int argc, char **argv) {
    bench_options o = {.repeats = 5, .format = "md"};
    bool row = argc > 1 && !strcmp(argv[1], "--row"); /* not for people: see measure_row */
    int code = parse(&o, argc - row, argv + row);
    if (code == KEEP_GOING) code = row ? measure_row(&o) : bench(&o);
    free(o.models.at);
    return code;
}
