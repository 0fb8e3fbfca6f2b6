/* linnet pareto: recall against state and speed, as charts, tables and a report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "pareto.h"
#include "talk.h"

const char fairness[] =
    "A fair comparison has: the same dtype of weights and activations; the same threads and "
    "machine; "
    "about the same number of parameters (they are shown); the same task, items, preset, seed and "
    "cut "
    "rule; softmax and recurrent models each in their better view; batch 1 and the largest batch "
    "that "
    "fits, since most of what recurrent models win is won in batches; more than one depth, since "
    "only "
    "softmax slows down with it. What rows tell of this is checked; the rest is yours.";

static const char about[] =
    "Joins rows of `linnet recall` and `linnet bench` (FILE: JSON lines, or one JSON array; - is "
    "standard input), a point per model, and marks the points that no other one beats: as good in "
    "both, better in one. Models are joined by model_hash, or by the name of their file where a "
    "row "
    "has none. A test of several lengths counts as the mean of its rows, each with the same "
    "weight; "
    "tables have every row.\n"
    "The ending of -o says what to make: .svg a chart, .csv and .md the table, .html a report with "
    "all "
    "charts, the table and the commands. A chart shows recall against state bytes, or what --x and "
    "--y say; it fits light and dark pages.\n"
    "Rows of other models, tasks, presets, seeds, activations, threads or machines never share a "
    "chart "
    "by mistake: that is an error, or with --force a caption that says so.\n";

typedef struct {
    pareto_options p;
    text_list files;
    const char *x, *y, *accounting, *out;
    bool quiet;
} command_line;

static int index_of(const char *name, const char *const *names, int n) {
    for (int i = 0; name && i < n; i++)
        if (!strcmp(name, names[i])) return i;
    return -1;
}

static bool ends_in(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n > m && !strcmp(text + n - m, end);
}

static int parse(command_line *c, int argc, char **argv) {
    static char text[sizeof about + sizeof fairness];
    flag_table f;
    snprintf(text, sizeof text, "%s%s", about, fairness);
    flags_begin(&f, "pareto", "FILE... -o PATH.svg|.csv|.md|.html [--x NAME] [--y NAME]", text);
    flags_arguments(&f, "FILE", &c->files);
    flags_title(&f, "What to show");
    flag_text(&f, "-o/--output", "PATH", &c->out, "what to write; its ending says what it is");
    flag_choice(&f, "--x", X_NAMES, &c->x, "default state_bytes_model");
    flag_choice(&f, "--y", Y_NAMES, &c->y, "default acc, where rows have it");
    flag_choice(&f, "--accounting", "model alloc", &c->accounting,
                "state bytes as papers count them, or as allocated; default model");
    flag_text(&f, "--title", "TEXT", &c->p.title, "instead of the title; task and preset stay");
    flags_title(&f, "Which rows");
    flag_text(&f, "--task", "NAME", &c->p.task,
              "of recall; A,B,...: the mean of all their rows; a chart shows one or such a list");
    flag_text(&f, "--preset", "NAME", &c->p.preset, "of recall; none: rows without");
    flag_int(&f, "--depth", "D", &c->p.depth, 0, 1 << 30,
             "of bench: tokens before; default the most that all models have");
    flag_int(&f, "--batch", "B", &c->p.batch, 1, 1 << 20,
             "of bench: sequences; default the fewest that all models have; a report shows the "
             "most, too");
    flag_int(&f, "-t/--threads", "N", &c->p.threads, 1, 1024,
             "of bench; must be said where rows have several");
    flag_switch(&f, "--force", &c->p.force, "mix what should not be mixed; the caption says so");
    flag_switch(&f, "--quiet", &c->quiet, "only errors on stderr");

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    if (!c->out) return misused("pareto", "-o PATH is missing");
    if (!ends_in(c->out, ".svg") && !ends_in(c->out, ".csv") && !ends_in(c->out, ".md") &&
        !ends_in(c->out, ".html"))
        return misused("pareto",
                       "-o expects a path that ends in .svg, .csv, .md or .html, found "
                       "'%s'",
                       c->out);
    const char *names[N_X];
    for (int i = 0; i < N_X; i++)
        names[i] = x_axes[i].name;
    c->p.x = index_of(c->x, names, N_X);
    c->p.y = index_of(c->y, y_names, N_Y);
    c->p.alloc = c->accounting && !strcmp(c->accounting, "alloc");
    if (c->accounting && (c->p.x == X_STATE_MODEL || c->p.x == X_STATE_ALLOC) &&
        (c->p.x == X_STATE_ALLOC) != c->p.alloc)
        return misused("pareto", "--accounting %s contradicts --x %s", c->accounting, c->x);
    c->p.argc = argc;
    c->p.argv = argv;
    return KEEP_GOING;
}

/* ---- outputs ------------------------------------------------------------------------------ */

static int default_x(const pareto_options *o) {
    return o->x >= 0 ? o->x : o->alloc ? X_STATE_ALLOC : X_STATE_MODEL;
}

static int default_y(const pareto_options *o, const task_group *g) {
    return o->y >= 0 ? o->y : group_has(g, Y_ACC) ? Y_ACC : Y_PERPLEXITY;
}

static bool make_svg(page *out, sources *s, task_groups *g, const pareto_options *o) {
    int x = default_x(o), y = default_y(o, &g->at[0]);
    bench_cell cell;
    group_chart gc = {0};
    cell_choose(&cell, s, &g->at[0], o);
    bool good = (!x_axes[x].from_bench || cell_join(&cell, s, &g->at[0], o, x)) &&
                group_chart_make(&gc, s, &g->at[0], &cell, o, x, y) && chart_draw(out, &gc.c);
    if (good)
        say("%s: %zu point%s, %zu on the frontier%s", o->title ? o->title : gc.c.title, gc.c.n,
            gc.c.n == 1 ? "" : "s", gc.n_best,
            gc.n_left_out ? "; the caption says what is missing" : "");
    group_chart_free(&gc);
    return good;
}

static bool write_page(void *user, const char *bytes, size_t n) {
    page *p = user;
    page_note(p, text_append(&p->text, bytes, n));
    return !p->failed;
}

static bool make_table(page *out, sources *s, task_groups *g, const pareto_options *o,
                       const char *format) {
    row_column columns[MAX_COLUMNS];
    row_writer all = {.format = format, .columns = columns, .write = write_page, .user = out};
    bool good = true, md = !strcmp(format, "md");
    for (size_t i = 0; good && i < g->n; i++) {
        task_group *t = &g->at[i];
        bench_cell cell;
        int x = default_x(o), y = default_y(o, t);
        cell_choose(&cell, s, t, o);
        if (cell.any && !cell_join(&cell, s, t, o, o->x == X_TTFT ? X_TTFT : -1)) return false;
        group_chart gc = {0}; /* its title and caption */
        if (md && !group_chart_make(&gc, s, t, &cell, o, x, y)) {
            group_chart_free(&gc);
            return false;
        }
        if (md) {
            all.n = 0; /* a table of its own */
            page_add(out, "%s**", i ? "\n" : "");
            page_xml(out, gc.c.title);
            page_add(out, "**\n\n");
        }
        json_t *rows = table_rows(s, t, &cell, x, y);
        good = rows != NULL;
        all.n_columns = table_columns(rows, columns);
        for (size_t k = 0; good && k < json_array_size(rows); k++)
            good = rows_add(&all, json_array_get(rows, k));
        json_decref(rows);
        if (md && good) {
            page_add(out, "\n");
            page_xml(out, gc.c.subtitle);
            page_add(out, "; ●: no other point is as good in %s and %s and better in one. ",
                     y_names[y], x_axes[x].name);
            bool speeds = cell.any && !x_axes[x].from_bench;
            if (speeds) page_add(out, "Speed at depth %d, batch %d. ", cell.depth, cell.batch);
            page_xml(out, gc.c.caption);
            page_add(out, "\n");
            if (*gc.c.warning) {
                page_add(out, "\n**");
                page_xml(out, gc.c.warning);
                page_add(out, "**\n");
            }
        }
        group_chart_free(&gc);
    }
    return good && rows_end(&all) && !out->failed;
}

static int pareto(const command_line *c) {
    const pareto_options *o = &c->p;
    sources s = {0};
    task_groups g = {0};
    page out = {0};
    output_file file = {0};
    bool svg = ends_in(c->out, ".svg");
    bool good = sources_read(&s, &c->files, o->force) && groups_make(&g, &s, o, !svg);
    if (good && svg)
        good = make_svg(&out, &s, &g, o);
    else if (good && ends_in(c->out, ".html"))
        good = report_write(&out, &s, &g, o);
    else if (good)
        good = make_table(&out, &s, &g, o, ends_in(c->out, ".csv") ? "csv" : "md");
    good = good && !out.failed && output_open(&file, c->out) &&
           output_write(&file, out.text.at, out.text.n) && output_finish(&file);
    output_abandon(&file);
    page_free(&out);
    groups_free(&g);
    sources_free(&s);
    return good ? EXIT_WORKED : EXIT_FAILED;
}

int command_pareto(int argc, char **argv) {
    command_line c = {.p = {.x = -1, .y = -1, .depth = -1}};
    int code = parse(&c, argc, argv);
    be_quiet(c.quiet);
    if (code == KEEP_GOING) code = pareto(&c);
    free(c.files.at);
    return code;
}
