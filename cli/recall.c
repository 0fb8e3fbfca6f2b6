/* linnet recall: what a model finds again in its context. */
#include "recall.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "hash.h"

static const char about[] =
    "Asks for things that stand in the prompt and counts the right answers: a row for every model, "
    "task, length and depth. acc is a fraction with its 95 % Wilson interval. Prompts are fed as "
    "they are, BOS first where the file asks for it, no chat template; answers are greedy. Each "
    "prompt has a session of its own; prompts that begin alike share what they have in common.\n"
    "state (papers) is what papers plot for the longest prompt, state (held) what the engine "
    "allocates. docs/recall.md describes tasks, presets and every key of a row.\n"
    "To be fair, compare: the same dtype, threads and number of parameters; the same task file, "
    "preset and cut (data_hash is equal where the prompts are, token for token); softmax and "
    "recurrent models each in their best view; speed at batch 1 and at the largest batch that fits "
    "(linnet bench). lmeval and jrt presets never belong in one chart.\nTasks:\n";

typedef struct {
    engine e;
    text_list models, tasks;
    number_list lengths, depths;
    const char *preset, *view, *absent, *format, *save, *dump;
    int n, max_ctx;
    uint64_t seed;
    float min_acc;
    bool twice, no_share;
    recall_job *jobs;
    size_t n_jobs;
} recall_options;

typedef struct {
    row_writer out, save, dump;
    output_file save_file, dump_file;
    double worst; /* accuracy of all rows */
} recall_output;

/* ---- cells -------------------------------------------------------------------------------- */

/* Calls `each` for every cell of a job on a model until one fails. */
typedef int (*cell_fn)(recall_options *o, recall_cell *cell, void *user);

/* The most tokens of a session; as linnet_session_new has it. */
static int context_of(const recall_options *o, const linnet_model *model) {
    const linnet_model_info *info = linnet_model_get_info(model);
    linnet_kv_type kv = engine_kv(&o->e);
    bool grows = linnet_model_state_bytes(model, kv, 1 << 26) !=
                 linnet_model_state_bytes(model, kv, 1 << 27);
    if (o->e.ctx) return o->e.ctx;
    return grows || info->ctx_is_limit ? info->n_ctx_train : 1 << 28;
}

static int each_cell(recall_options *o, recall_job *job, const linnet_model *model,
                     const char *path, cell_fn each, void *user) {
    const recall_task *task = job->task;
    int trained = linnet_model_get_info(model)->n_ctx_train, context = context_of(o, model);
    int usual = o->e.ctx ? context : trained; /* where nobody says how long */
    bool sized = task->sized && !job->params.N;
    if (sized && usual > 1024) usual = 1024;
    int n_lengths = sized && o->lengths.n ? o->lengths.n : 1;
    int n_depths = task->deep && o->depths.n ? o->depths.n : 1, code = EXIT_WORKED;
    for (int l = 0; l < n_lengths; l++)
        for (int d = 0; d < n_depths && !code; d++) {
            recall_cell cell = {.job = job, .model = model, .path = path, .ctx = context};
            cell.len = sized && o->lengths.n ? o->lengths.at[l] : usual;
            cell.depth = task->deep && o->depths.n ? o->depths.at[d] : -1;
            if (task->check) code = task->check(&cell);
            if (!code) code = each(o, &cell, user);
        }
    return code;
}

/* What no run could do is told before the first one starts. */
static int check_cell(recall_options *o, recall_cell *cell, void *user) {
    const linnet_model_info *info = linnet_model_get_info(cell->model);
    (void)o, (void)user;
    if (!info->n_layers)
        return failed("%s: a vocabulary without weights recalls nothing", cell->path);
    if (!cell->job->task->ids && !info->n_vocab)
        return failed("%s has no vocabulary: of the tasks, mqar and copy need none", cell->path);
    if (cell->len > cell->ctx)
        return failed("%s of %d tokens is longer than the context of %s, %d%s",
                      cell->job->task->name, cell->len, cell->path, cell->ctx,
                      info->ctx_is_limit ? ": its positions are learned" : "; --ctx N allows more");
    return EXIT_WORKED;
}

/* The answers of the first view make place for those of the second. */
static void move_answers(recall_item *to, recall_item *from, size_t n) {
    for (size_t k = 0; k < n; k++) {
        to[k].said = from[k].said;
        to[k].guesses = from[k].guesses;
        from[k].said = (text_buffer){0};
        from[k].guesses = (id_buffer){0};
        from[k].scored = from[k].hits = from[k].n_nats = from[k].n_others = 0;
        from[k].label_nats = from[k].other_nats = 0;
    }
}

typedef struct {
    linnet_session *blank;
    const char *hash; /* of the model file */
    recall_output *out;
} cell_run;

static int write_cell(const recall_options *o, const recall_cell *cell, const recall_item *items,
                      size_t n, const recall_run_info *run, recall_output *out) {
    size_t scored = 0;
    for (size_t k = 0; k < n; k++)
        scored += items[k].scored;
    if (!scored) /* a text that repeats no pair of ids */
        return failed("%s asks for nothing here: there is no answer to judge",
                      cell->job->task->name);
    json_t *row = recall_row(&o->e, cell, items, n, run);
    bool good = row;
    for (size_t k = 0; good && o->dump && k < n; k++) {
        json_t *line = recall_dump_row(cell, &items[k], k);
        good = rows_add(&out->dump, line);
        json_decref(line);
    }
    good = good && rows_add(&out->out, row) && (!o->save || rows_add(&out->save, row));
    double acc = json_number_value(json_object_get(row, "acc"));
    if (good && acc < out->worst) out->worst = acc;
    json_decref(row);
    return good ? EXIT_WORKED : EXIT_FAILED;
}

static int run_views(recall_options *o, const recall_cell *cell, const cell_run *run,
                     recall_item *items, size_t n, recall_cost *cost) {
    bool both = !strcmp(o->view, "both"), alone = o->no_share;
    recall_view view = {.by_token = !strcmp(o->view, "recurrent"),
                        .alone = alone || !strcmp(o->e.window_mode, "terrace-hf")};
    int code = recall_run(&o->e, cell, run->blank, items, n, view, cost);
    if (code || !both) return code;
    recall_item *first = calloc(n, sizeof *first);
    recall_cost other = {0};
    if (!first) return failed("out of memory for %zu answers", n);
    view.by_token = true;
    move_answers(first, items, n);
    code = recall_run(&o->e, cell, run->blank, items, n, view, &other);
    if (!code) code = recall_same(cell, first, items, n);
    for (size_t k = 0; k < n; k++)
        recall_item_free(&first[k]);
    free(first);
    return code;
}

static int run_cell(recall_options *o, recall_cell *cell, void *user) {
    cell_run *run = user;
    const recall_job *job = cell->job;
    int wanted = job->params.n ? job->params.n : o->n ? o->n : job->task->n;
    size_t n = wanted && (size_t)wanted < job->n_items ? (size_t)wanted : job->n_items, cut = 0;
    recall_item *items = calloc(n, sizeof *items);
    recall_run_info info = {.view = o->view, .model_hash = run->hash};
    int code = items ? EXIT_WORKED : failed("out of memory for %zu items", n);
    for (size_t k = 0; !code && k < n; k++) {
        code = recall_fill(cell, k, &items[k]);
        if (!code && interrupted()) code = interrupt_code();
        if (!code) cut += items[k].cut_off;
    }
    if (!code && cut)
        say("%s: %zu of %zu prompts lost their answer when their beginning was cut off", job->file,
            cut, n);
    if (!code) code = run_views(o, cell, run, items, n, &info.cost);
    if (!code) code = write_cell(o, cell, items, n, &info, run->out);
    for (size_t k = 0; items && k < n; k++)
        recall_item_free(&items[k]);
    free(items);
    return code;
}

/* ---- all of them -------------------------------------------------------------------------- */

static int check_model(recall_options *o, const char *path) {
    linnet_model *model = NULL;
    int code = engine_open(&o->e, path, true, &model);
    for (size_t j = 0; j < o->n_jobs && !code; j++)
        code = each_cell(o, &o->jobs[j], model, path, check_cell, NULL);
    linnet_model_close(model);
    return code;
}

static int run_model(recall_options *o, const char *path, recall_output *out) {
    linnet_model *model = NULL;
    char hash[HASH_TEXT];
    cell_run run = {.hash = hash, .out = out};
    if (!hash_file(path, hash)) return interrupted() ? interrupt_code() : EXIT_FAILED;
    int code = engine_open(&o->e, path, false, &model);
    if (!code) code = engine_session(&o->e, model, &run.blank);
    for (size_t j = 0; j < o->n_jobs && !code; j++)
        code = each_cell(o, &o->jobs[j], model, path, run_cell, &run);
    linnet_session_free(run.blank);
    linnet_model_close(model);
    return code;
}

static int open_outputs(const recall_options *o, recall_output *out) {
    out->out = (row_writer){.format = o->format,
                            .columns = recall_columns,
                            .n_columns = n_recall_columns,
                            .write = write_stdout};
    out->save = (row_writer){.format = "jsonl", .write = write_output, .user = &out->save_file};
    out->dump = (row_writer){.format = "jsonl", .write = write_output, .user = &out->dump_file};
    if (o->save && !output_open(&out->save_file, o->save)) return EXIT_FAILED;
    if (o->dump && !output_open(&out->dump_file, o->dump)) return EXIT_FAILED;
    return EXIT_WORKED;
}

/* Rows that are there are kept, whatever ended the run. */
static int close_output(row_writer *rows, output_file *file, int code) {
    if (!file->file) return code;
    if (!rows->n)
        output_abandon(file);
    else if (!output_finish(file) && !code)
        code = EXIT_FAILED;
    return code;
}

static int recall(recall_options *o) {
    recall_output out = {.worst = 1};
    int code = EXIT_WORKED;
    catch_interrupts(false);
    be_quiet(o->e.quiet);
    for (size_t j = 0; j < o->n_jobs && !code; j++)
        code = o->jobs[j].task->open(&o->jobs[j]);
    for (size_t i = 0; i < o->models.n && !code; i++)
        code = check_model(o, o->models.at[i]);
    if (!code) code = open_outputs(o, &out);
    for (size_t i = 0; i < o->models.n && !code; i++)
        code = run_model(o, o->models.at[i], &out);
    if (out.out.n && !rows_end(&out.out) && !code) code = EXIT_FAILED;
    code = close_output(&out.save, &out.save_file, code);
    code = close_output(&out.dump, &out.dump_file, code);
    if (!code && out.worst < (double)o->min_acc)
        code = failed("an accuracy is %.4f, below --min-acc %g", out.worst, (double)o->min_acc);
    int stdout_code = finish_stdout();
    return code ? code : stdout_code;
}

/* ---- flags -------------------------------------------------------------------------------- */

/* A flag that no task of this run would read is a mistake. */
static int unread(const recall_options *o, const char *name, bool given,
                  bool (*reads)(const recall_job *)) {
    for (size_t j = 0; j < o->n_jobs; j++)
        if (reads(&o->jobs[j])) given = false;
    return given ? misused("recall", "%s means nothing to %s", name,
                           o->n_jobs > 1 ? "any of these tasks" : o->jobs[0].task->name)
                 : EXIT_WORKED;
}

static bool reads_len(const recall_job *job) {
    return job->task->sized && !job->params.N;
}
static bool reads_depths(const recall_job *job) {
    return job->task->deep;
}
static bool reads_preset(const recall_job *job) {
    return job->task == &task_jsonl;
}
static bool reads_max_ctx(const recall_job *job) {
    return job->task->takes_file;
}

/* A job knows the flags that its task reads; EXIT_WORKED or EXIT_MISUSED. */
static int make_job(const recall_options *o, recall_job *job, const char *spec) {
    int code = recall_parse(job, spec);
    if (code) return code;
    job->seed = o->seed;
    job->max_ctx = o->max_ctx;
    job->absent = o->absent;
    job->twice = o->twice;
    if (job->task == &task_copy && !job->params.N && !o->lengths.n) job->params.N = 64;
    if (reads_preset(job)) job->preset = o->preset ? o->preset : "lmeval-v1";
    if (job->preset && o->twice && !strcmp(job->preset, "jrt")) job->preset = "jrt-twice";
    if (job->preset) job->twice = !strcmp(job->preset, "jrt-twice");
    if (o->twice && !(job->preset ? job->twice : job->task->doubled))
        return misused("recall", "--twice does not go with %s%s%s", job->task->name,
                       job->preset ? " and preset " : "", job->preset ? job->preset : "");
    return EXIT_WORKED;
}

static int make_jobs(recall_options *o) {
    int code = EXIT_WORKED;
    o->jobs = calloc(o->tasks.n, sizeof *o->jobs);
    if (!o->jobs) return failed("out of memory");
    for (size_t i = 0; i < o->tasks.n && !code; i++)
        code = make_job(o, &o->jobs[o->n_jobs++], o->tasks.at[i]);
    if (!code) code = unread(o, "--len", o->lengths.n, reads_len);
    if (!code) code = unread(o, "--depths", o->depths.n, reads_depths);
    if (!code) code = unread(o, "--preset", o->preset, reads_preset);
    if (!code) code = unread(o, "--absent", strcmp(o->absent, "error"), reads_preset);
    if (!code) code = unread(o, "--max-ctx", o->max_ctx, reads_max_ctx);
    return code;
}

static int parse(recall_options *o, int argc, char **argv) {
    static char text[8192];
    flag_table f;
    snprintf(text, sizeof text, "%s%s", about, recall_task_help());
    flags_begin(&f, "recall", "-m MODEL [-m MODEL ...] --task TASK [--task TASK ...]", text);
    flags_title(&f, "What to ask (a LIST has commas, and a flag may come several times)");
    flag_texts(&f, "-m/--model", "MODEL", &o->models, "a model file");
    flag_texts(&f, "--task", "NAME[:KEY=VALUE,...]", &o->tasks, "a task of those above");
    flag_numbers(&f, "--len", "LIST", &o->lengths, 0, 2, 1 << 26,
                 "tokens of a prompt and its answer, which text fills up; default 1024, or the "
                 "model's context");
    flag_numbers(&f, "--depths", "LIST", &o->depths, 0, 0, 100,
                 "per cent of the context before the answer, a row each; default: mixed, one row");
    flag_int(&f, "--n", "N", &o->n, 1, 1 << 24, "items per row; default: as the task says");
    flag_u64(&f, "--seed", "N", &o->seed, "of keys, values and places; default 0");
    flag_switch(&f, "--twice", &o->twice,
                "the context comes twice (Just read twice; mqar: P=2): it costs twice the prefill");
    flag_choice(&f, "--view", "chunk recurrent both", &o->view,
                "prompts as prefill (default), token by token, or both, which must agree");
    flag_switch(&f, "--no-share", &o->no_share,
                "feed every prompt from its first token; the answers are the same");
    flags_title(&f, "Files of documents");
    flag_choice(&f, "--preset", "lmeval-v0 lmeval-v1 jrt jrt-twice", &o->preset,
                "how jsonl makes prompts; default lmeval-v1");
    flag_int(&f, "--max-ctx", "N", &o->max_ctx, 4, 1 << 26,
             "lmeval: the last N - 48 tokens of a prompt are kept (default: the model's context); "
             "jrt: N - 50 around the answer (1000); ar: ids in a window (512)");
    flag_choice(&f, "--absent", "error skip keep", &o->absent,
                "where no answer occurs in the text: stop (default), leave the line out, ask it");
    flags_title(&f, "Output");
    flag_choice(&f, "-o/--output", ROW_FORMATS, &o->format, "rows on stdout; default md");
    flag_text(&f, "--save", "FILE", &o->save,
              "rows as JSON lines into a file, which is replaced when the last one is there");
    flag_text(&f, "--dump", "FILE", &o->dump,
              "every prompt, answer and prediction as JSON lines; a prediction ends where the "
              "answer is found in it");
    flag_real(&f, "--min-acc", "X", &o->min_acc, 0, 1, "exit 1 if a row's acc is below");
    precision_flags(&f, &o->e, "auto");
    engine_flags(&f, &o->e);
    context_flag(&f, &o->e);
    window_flag(&f, &o->e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    if (o->seed > INT64_MAX) /* JSON's readers know no larger numbers */
        return misused("recall", "--seed is %" PRIu64 ", expected at most %" PRId64, o->seed,
                       INT64_MAX);
    if (!o->models.n) return misused("recall", "-m MODEL is missing");
    if (!o->tasks.n) return misused("recall", "--task TASK is missing");
    if (!strcmp(o->e.window_mode, "terrace-hf") && strcmp(o->view, "chunk"))
        return misused("recall", "--window-mode terrace-hf is one prefill, not --view %s", o->view);
    code = make_jobs(o);
    return code ? code : KEEP_GOING;
}

int command_recall(int argc, char **argv) {
    recall_options o = {.view = "chunk", .absent = "error", .format = "md"};
    int code = parse(&o, argc, argv);
    if (code == KEEP_GOING) code = recall(&o);
    for (size_t j = 0; j < o.n_jobs; j++) {
        if (o.jobs[j].task && o.jobs[j].task->close) o.jobs[j].task->close(&o.jobs[j]);
        free(o.jobs[j].spec);
    }
    free(o.jobs);
    free(o.models.at);
    free(o.tasks.at);
    return code;
}
