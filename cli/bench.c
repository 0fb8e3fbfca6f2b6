/* linnet bench: how fast, and in how much memory. Each row is measured in a process of its own, so
 * that one row's memory is not another's (cli/measure.c). */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "bench_row.h"
#include "commands.h"
#include "hash.h"
#include "machine.h"
#include "spawn.h"

static const char about[] =
    "Times prefill (pp), decoding (tg) and one after the other (pg) for every combination of "
    "models, threads, batch sizes and depths, a row each. A batch of B is B sessions that "
    "advance together, each with its own state; t/s counts the tokens of all. Ids are random "
    "from a fixed seed; a step feeds one token per session and computes its logits; nothing "
    "is sampled, no text is made. Every test runs once to warm up, then -r times: t/s is the "
    "median (mean +- standard deviation), and JSON has all samples.\n"
    "state/seq is what a session holds at the end of the test. Peak RSS is of a process that "
    "runs this row alone. Where memory does not suffice the row says OOM and the next one "
    "follows.\n"
    "To be fair, compare: the same dtype, threads and number of parameters; every model at "
    "batch 1 and at the largest batch that fits; softmax and recurrent models at several "
    "depths, since only one of them slows down.";

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
                     const char *hash, const bench_test *t, int threads, bench_output *out) {
    json_t *found, *row = describe_row(&o->e, model, path, hash, t, threads);
    int code = ask_child(o, path, t, threads, &found);
    if (!code && !complete_row(row, found, t)) code = failed("out of memory");
    for (int i = 0; !code && i < out->n_writers; i++)
        if (!rows_add(&out->writers[i], row)) code = EXIT_FAILED;
    if (!code && json_is_number(json_object_get(row, "gb_per_s"))) add_hint(&out->hints, row);
    if (!code && json_is_true(json_object_get(row, "oom")))
        say("%s", json_string_value(json_object_get(row, "error")));
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
    char hash[HASH_TEXT];
    int n = list_tests(o, tests), code = EXIT_WORKED;
    if (!hash_file(path, hash)) return interrupted() ? interrupt_code() : EXIT_FAILED;
    for (int t = 0; t < o->threads.n; t++)
        for (int b = 0; b < o->batch.n; b++)
            for (int d = 0; d < o->depth.n; d++)
                for (int i = 0; i < n && !code; i++) {
                    tests[i].n_seqs = o->batch.at[b];
                    tests[i].n_depth = o->depth.at[d];
                    code = bench_row(o, model, path, hash, &tests[i], o->threads.at[t], out);
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
        out.writers[i].columns = bench_columns;
        out.writers[i].n_columns = n_bench_columns;
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
