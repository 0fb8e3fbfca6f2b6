/* The report: one HTML file that asks nothing of the network. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"
#include "talk.h"

static const char head[] =
    "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
    "'unsafe-inline'; script-src 'unsafe-inline'\">\n"
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
    "<meta name=\"color-scheme\" content=\"light dark\">\n";

static const char style[] =
    "<style>\n"
    "body{font:15px/1.5 'DejaVu Sans',Verdana,Helvetica,Arial,sans-serif;max-width:1120px;margin:0 "
    "auto;padding:24px 16px 60px;background:#fff;color:#1f2328}\n"
    "h1{font-size:24px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 8px}h3{font-size:16px}\n"
    "figure{margin:18px 0}figure svg{max-width:100%;height:auto;display:block}\n"
    ".muted{color:#57606a}.warn{border-left:4px solid #cf222e;padding:6px "
    "12px;background:#ffebe9}\n"
    "a{color:#0969da}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;white-"
    "space:nowrap}\n"
    "th,td{padding:4px 10px;border-bottom:1px solid #d8dee4;text-align:left}\n"
    "th{position:sticky;top:0;background:#fff}td.r,th.r{text-align:right;font-variant-numeric:"
    "tabular-nums}\n"
    "details{margin:10px 0}summary{cursor:pointer}\n"
    "pre{background:#f6f8fa;padding:12px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:12."
    "5px;border-radius:6px}\n"
    "#tip{position:fixed;display:none;pointer-events:none;white-space:pre;background:#1f2328;"
    "color:#fff;padding:7px 10px;border-radius:6px;font-size:12px;line-height:1.45;z-index:9;"
    "box-shadow:0 2px 8px rgba(0,0,0,.3)}\n"
    ".point{cursor:default}.point:hover path,.point:focus path{stroke-width:4}.point:focus{outline:"
    "none}\n"
    "@media "
    "(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}.muted{color:#9da7b1}a{"
    "color:#"
    "58a6ff}th{"
    "background:#0d1117}th,td{border-color:#30363d}pre{background:#161b22}"
    ".warn{background:#3d1416;border-color:#f85149}#tip{background:#e6edf3;color:#0d1117}}\n"
    "@media print{figure{break-inside:avoid}}\n"
    "</style>\n";

/* Values at once, by pointer, finger or keyboard; without scripts the browser shows the titles. */
static const char script[] =
    "<script>\n(function(){var tip=document.getElementById('tip');\n"
    "document.querySelectorAll('.point').forEach(function(g){var t=g.querySelector('title'),s="
    "t.textContent;\n"
    "t.remove();g.setAttribute('tabindex','0');g.setAttribute('role','img');g.setAttribute("
    "'aria-label',s);\n"
    "function show(){var b=g.getBoundingClientRect();tip.textContent=s;tip.style.display='block';\n"
    "var x=b.right+8,y=b.top-10;if(x+tip.offsetWidth>innerWidth-8)x=b.left-8-tip.offsetWidth;\n"
    "tip.style.left=Math.max(8,x)+'px';tip.style.top=Math.max(8,Math.min(y,innerHeight-8-tip."
    "offsetHeight))+'px';}\n"
    "function hide(){tip.style.display='none';}\n"
    "g.addEventListener('pointerenter',show);g.addEventListener('pointerleave',hide);\n"
    "g.addEventListener('focus',show);g.addEventListener('blur',hide);});\n"
    "addEventListener('scroll',function(){tip.style.display='none';},{passive:true});})();\n"
    "</script>\n";

/* ---- the table ---------------------------------------------------------------------------- */

static void add_cell(page *p, const char *tag, bool right, const char *text) {
    page_add(p, "<%s%s>", tag, right ? " class=\"r\"" : "");
    page_xml(p, text);
    page_add(p, "</%s>", tag);
}

static bool is_part(const json_t *row) {
    const char *segment = text_in(row, "segment");
    return segment && *segment && strcmp(segment, "mean") != 0;
}

/* As in Markdown; names as they are, since HTML has its own escapes. */
static void add_table(page *p, const json_t *rows) {
    row_column columns[MAX_COLUMNS];
    size_t i, n = table_columns(rows, columns);
    const json_t *row;
    page_add(p, "<div class=\"wide\"><table>\n<thead><tr>");
    for (size_t k = 0; k < n; k++)
        add_cell(p, "th", columns[k].right, columns[k].title);
    page_add(p, "</tr></thead>\n<tbody>\n");
    json_array_foreach(rows, i, row) {
        page_add(p, "<tr>");
        for (size_t k = 0; k < n; k++) {
            char text[512] = "";
            const char *plain = text_in(row, columns[k].title); /* a name */
            if (!plain) columns[k].text(row, text, sizeof text);
            add_cell(p, "td", columns[k].right, plain ? plain : text);
        }
        page_add(p, "</tr>\n");
    }
    page_add(p, "</tbody></table></div>\n");
}

/* The points, and folded below them what they are the means of. */
static void add_tables(page *p, const json_t *rows) {
    json_t *points = json_array(), *parts = json_array();
    size_t i;
    json_t *row;
    json_array_foreach((json_t *)rows, i, row) {
        json_array_append(is_part(row) ? parts : points, row);
    }
    add_table(p, points);
    if (json_array_size(parts)) {
        page_add(p, "<details><summary>Every segment (%zu rows)</summary>\n",
                 json_array_size(parts));
        add_table(p, parts);
        page_add(p, "</details>\n");
    }
    json_decref(points);
    json_decref(parts);
}

/* ---- commands ----------------------------------------------------------------------------- */

/* A word for a POSIX shell. */
static void add_word(page *p, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-./:=,+@%";
    if (p->text.n && p->text.at[p->text.n - 1] != '\n') page_add(p, " ");
    if (*word && !word[strspn(word, plain)]) {
        page_add(p, "%s", word);
        return;
    }
    page_add(p, "'");
    for (const char *c = word; *c; c++)
        if (*c == '\'')
            page_add(p, "'\\''");
        else
            page_add(p, "%c", *c);
    page_add(p, "'");
}

static void add_words(page *p, const char *flag, const char *word) {
    add_word(p, flag);
    add_word(p, word);
}

static void add_number(page *p, const char *flag, const json_t *row, const char *key) {
    const json_t *value = json_object_get(row, key);
    char text[32];
    if (!json_is_integer(value)) return;
    snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
    add_words(p, flag, text);
}

/* --activations and, where those do not imply it, --kv. */
static void precision_words(page *p, const json_t *row) {
    const char *activations = text_in(row, "activations"), *kv = text_in(row, "kv");
    if (activations) add_words(p, "--activations", activations);
    if (kv && strcmp(kv, "f16") != 0 && !(activations && !strcmp(activations, "exact")))
        add_words(p, "--kv", kv);
}

/* Everything of the command after the models. */
static void recall_words(page *p, const json_t *row) {
    const char *task = text_in(row, "task"), *parameters = text_in(row, "params"),
               *preset = text_in(row, "preset"), *view = text_in(row, "view"),
               *mode = text_in(row, "window_mode");
    bool of_file = task && strchr(task, ':');
    page spec = {0};
    page_add(&spec, "%s", task ? task : "");
    double items = number_in(row, "n_items");
    if (task && !of_file) { /* else all of the file */
        bool more = parameters && *parameters;
        if (more) page_add(&spec, ":%s", parameters);
        if (items > 0) page_add(&spec, "%sn=%.0f", more ? "," : ":", items);
    }
    add_words(p, "--task", page_text(&spec));
    page_free(&spec);
    if (preset) add_words(p, "--preset", preset);
    /* What a prompt may hold is --max-ctx of a file's tasks, and elsewhere --len, which does not go
     * with parameters that say it. */
    bool says = parameters && (strstr(parameters, "L=") || strstr(parameters, "N="));
    if (of_file || !says) add_number(p, of_file ? "--max-ctx" : "--len", row, "len");
    add_number(p, "--ctx", row, "len"); /* it may exceed what the model was trained for */
    add_number(p, "--depths", row, "depth");
    if (!preset && json_is_true(json_object_get(row, "twice"))) add_word(p, "--twice");
    add_number(p, "--seed", row, "seed");
    if (view && strcmp(view, "chunk") != 0) add_words(p, "--view", view);
    if (mode && strcmp(mode, "sliding") != 0) add_words(p, "--window-mode", mode);
    precision_words(p, row);
}

/* A command per test, with all models that took it. */
static void add_recall_commands(page *out, const sources *s, const task_groups *g) {
    json_t *commands = json_object(), *models;
    const char *rest;
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->at[i].n; k++)
            for (size_t q = 0; q < g->at[i].at[k].n_segments; q++) {
                const result *r = g->at[i].at[k].segments[q];
                page words = {0};
                recall_words(&words, r->row);
                models = json_object_get(commands, page_text(&words));
                if (!models) {
                    models = json_object();
                    json_object_set_new(commands, page_text(&words), models);
                }
                json_object_set_new(models, s->models[r->model].path, json_true());
                page_free(&words);
            }
    json_object_foreach(commands, rest, models) {
        const char *path;
        json_t *value;
        page words = {0};
        add_words(&words, "linnet", "recall");
        json_object_foreach(models, path, value) add_words(&words, "-m", path);
        page_add(&words, " %s -o jsonl >>recall.jsonl\n", rest);
        page_xml(out, page_text(&words));
        page_free(&words);
    }
    json_decref(commands);
}

static void add_list(page *p, const char *flag, const json_t *seen, bool zero) {
    const char *key;
    json_t *value;
    page list = {0};
    json_object_foreach((json_t *)seen, key, value)
        page_add(&list, "%s%s", list.text.n ? "," : "", key);
    if (list.text.n || zero) add_words(p, flag, list.text.n ? page_text(&list) : "0");
    page_free(&list);
}

static void note_number(json_t *seen, const json_t *row, const char *key) {
    char text[32];
    if (isnan(number_in(row, key))) return;
    snprintf(text, sizeof text, "%.0f", number_in(row, key));
    json_object_set_new(seen, text, json_true());
}

/* A command per set of settings; its lists span the rows. */
static void add_bench_commands(page *out, const sources *s) {
    static const char *const lists[] = {"models", "p", "n", "d", "b"};
    json_t *commands = json_object(), *command;
    const char *rest;
    for (size_t i = 0; i < s->bench.n; i++) {
        const json_t *row = s->bench.at[i].row;
        size_t samples = json_array_size(json_object_get(row, "samples_ns"));
        page words = {0};
        add_number(&words, "-t", row, "n_threads");
        if (samples) page_add(&words, " -r %zu", samples);
        precision_words(&words, row);
        if (!json_object_get(commands, page_text(&words))) {
            command = json_object();
            for (size_t k = 0; k < sizeof lists / sizeof *lists; k++)
                json_object_set_new(command, lists[k], json_object());
            json_object_set_new(commands, page_text(&words), command);
        }
        command = json_object_get(commands, page_text(&words));
        json_object_set_new(json_object_get(command, "models"),
                            s->models[s->bench.at[i].model].path, json_true());
        bool prompt = number_in(row, "n_prompt") > 0, gen = number_in(row, "n_gen") > 0;
        if (prompt && !gen) note_number(json_object_get(command, "p"), row, "n_prompt");
        if (gen && !prompt) note_number(json_object_get(command, "n"), row, "n_gen");
        note_number(json_object_get(command, "d"), row, "n_depth");
        note_number(json_object_get(command, "b"), row, "n_seqs");
        page_free(&words);
    }
    json_object_foreach(commands, rest, command) {
        const char *path;
        json_t *value;
        page words = {0};
        add_words(&words, "linnet", "bench");
        json_object_foreach(json_object_get(command, "models"), path, value)
            add_words(&words, "-m", path);
        add_list(&words, "-p", json_object_get(command, "p"), true);
        add_list(&words, "-n", json_object_get(command, "n"), true);
        add_list(&words, "-d", json_object_get(command, "d"), false);
        add_list(&words, "-b", json_object_get(command, "b"), false);
        page_add(&words, "%s%s --save bench.jsonl\n", *rest == ' ' || !*rest ? "" : " ", rest);
        page_xml(out, page_text(&words));
        page_free(&words);
    }
    json_decref(commands);
}

static void note_builds(json_t *seen, const result_list *list) {
    for (size_t i = 0; i < list->n; i++) {
        const char *build = text_in(list->at[i].row, "build_commit");
        if (build) json_object_set_new(seen, build, json_true());
    }
}

static void add_commands(page *p, const sources *s, const task_groups *g, const pareto_options *o) {
    page words = {0};
    json_t *builds = json_object(), *value;
    const char *build;
    note_builds(builds, &s->recall);
    note_builds(builds, &s->bench);
    page_add(p,
             "<h2 id=\"commands\">The commands</h2>\n<p>They make rows of the same settings, and "
             "the last one this report of its files.");
    json_object_foreach(builds, build, value) {
        page_add(p, "%s", words.text.n ? ", " : " The rows come from linnet built from ");
        page_add(&words, "-");
        page_xml(p, build);
    }
    page_add(p, "%s</p>\n<pre>", words.text.n ? "." : "");
    page_clear(&words);
    json_decref(builds);
    add_recall_commands(p, s, g);
    add_bench_commands(p, s);
    add_words(&words, "linnet", "pareto");
    for (int i = 1; i < o->argc; i++)
        add_word(&words, o->argv[i]);
    page_xml(p, page_text(&words));
    page_add(p, "</pre>\n");
    page_free(&words);
}

/* ---- the report --------------------------------------------------------------------------- */

static bool add_figure(page *p, sources *s, task_group *t, const bench_cell *cell,
                       const pareto_options *o, int x, int y) {
    group_chart gc = {0};
    bool good = group_chart_make(&gc, s, t, cell, o, x, y);
    if (good) {
        page_add(p, "<figure>\n");
        good = chart_draw(p, &gc.c);
        page_add(p, "</figure>\n");
    }
    group_chart_free(&gc);
    return good;
}

static bool any_speed(const task_group *t) {
    for (size_t i = 0; i < t->n; i++)
        if (!isnan(x_of(&t->at[i], X_SPEED))) return true;
    return false;
}

/* Quality against decode speed, at the smallest batch and the largest. */
static bool add_speed_figures(page *p, sources *s, task_group *t, bench_cell *cell,
                              const pareto_options *o, int y, bool *drawn) {
    for (int i = cell->n_batches; i-- > 0;) { /* the smallest is left joined, for the table */
        page figure = {0};
        cell->batch = cell->batches[i];
        bool good = cell_join(cell, s, t, o, -1);
        if (good && any_speed(t)) {
            good = add_figure(&figure, s, t, cell, o, X_SPEED, y);
            *drawn = true;
        }
        page after = {0};
        page_add(&after, "%s", page_text(p));
        page_clear(p);
        page_add(p, "%s%s", page_text(&figure), page_text(&after));
        page_free(&after);
        page_free(&figure);
        if (!good) return false;
    }
    return true;
}

static void add_task_name(page *p, const task_group *t) {
    page_xml(p, t->task);
    if (t->preset) {
        page_add(p, ", preset ");
        page_xml(p, t->preset);
    }
}

/* A way to each task, where there are several. */
static void add_contents(page *p, const task_groups *g) {
    if (g->n < 2) return;
    page_add(p, "<p>");
    for (size_t i = 0; i < g->n; i++) {
        page_add(p, "%s<a href=\"#task-%zu\">", i ? " · " : "", i + 1);
        add_task_name(p, &g->at[i]);
        page_add(p, "</a>");
    }
    page_add(p,
             " · <a href=\"#limits\">what this shows, and what not</a> · <a href=\"#commands\">the "
             "commands</a></p>\n");
}

static bool add_group(page *p, sources *s, task_group *t, size_t number, const pareto_options *o) {
    bench_cell cell;
    page speed = {0};
    bool good = true, drawn = false;
    int y = o->y >= 0 ? o->y : group_has(t, Y_ACC) ? Y_ACC : Y_PERPLEXITY;
    int x = o->x >= 0 ? o->x : o->alloc ? X_STATE_ALLOC : X_STATE_MODEL;
    cell_choose(&cell, s, t, o);
    page_add(p, "<h2 id=\"task-%zu\">", number);
    add_task_name(p, t);
    page_add(p, "</h2>\n");
    if (t->forced.text.n) {
        page_add(p, "<p class=\"warn\">Not a fair comparison, mixed by --force: ");
        page_xml(p, page_text(&t->forced));
        page_add(p, ".</p>\n");
    }
    if (cell.any && o->x == X_TTFT) good = cell_join(&cell, s, t, o, X_TTFT);
    if (good && cell.any && o->x != X_TTFT)
        good = add_speed_figures(&speed, s, t, &cell, o, y, &drawn);
    good = good && add_figure(p, s, t, &cell, o, x, y);
    if (good && o->x < 0) {
        page_add(p, "%s", page_text(&speed));
        for (int other = 0; good && other < N_Y && o->y < 0; other++) {
            if (other == y || !group_has(t, other)) continue;
            good = add_figure(p, s, t, &cell, o, x, other);
            if (good && drawn && any_speed(t)) good = add_figure(p, s, t, &cell, o, X_SPEED, other);
        }
        if (!drawn)
            page_add(p, "<p class=\"muted\">No chart of speed: no row of bench joins these "
                        "models.</p>\n");
    }
    page_free(&speed);
    json_t *rows = good ? table_rows(s, t, &cell, x, y) : NULL;
    if (!rows) return false;
    page_add(p, "<h3>The table</h3>\n<p class=\"muted\">");
    if (drawn || o->x == X_TTFT)
        page_add(p, "Speed at depth %d, batch %d. ", cell.depth, cell.batch);
    page_add(p, "●: on the frontier of %s against %s.</p>\n", y_names[y], x_axes[x].words);
    add_tables(p, rows);
    json_decref(rows);
    return true;
}

static const char limits[] =
    "<h2 id=\"limits\">What this shows, and what not</h2>\n<ul>\n"
    "<li>Each point is one model, measured as its caption says. Filled markers are not beaten: no "
    "other "
    "point is at least as good on both axes and better on one. The dashed line joins them; between "
    "two "
    "of them there is no model, only the better of both at that cost.</li>\n"
    "<li>Bars are 95 % intervals of the questions asked (Wilson; for a mean of segments, the "
    "segments' intervals combined). They say nothing of another training run or seed. Two points "
    "whose "
    "bars overlap may well stand in the other order.</li>\n"
    "<li>State bytes are of one sequence at the longest test. As papers count them: keys and "
    "values, "
    "linear states with equal features once. As allocated: all that this program holds. Weights "
    "are in "
    "neither.</li>\n"
    "<li>Speed is of this program on the machine named, with that many threads, at one depth and "
    "batch. "
    "Another program, machine, depth or batch can turn the order around.</li>\n"
    "<li>A test measures recall from the prompt, not knowledge, and small models trained for a "
    "test "
    "tell of their mixers, not of products.</li>\n</ul>\n";

bool report_write(page *p, sources *s, task_groups *g, const pareto_options *o) {
    const char *title = o->title ? o->title : "Recall, speed and state";
    page_add(p, "%s<title>", head);
    page_xml(p, title);
    page_add(p, "</title>\n%s</head>\n<body>\n<h1>", style);
    page_xml(p, title);
    page_add(p,
             "</h1>\n<p class=\"muted\">%zu model%s; %zu rows of recall, %zu of bench. Point at a "
             "marker for its values.</p>\n",
             s->n_models, s->n_models == 1 ? "" : "s", s->recall.n, s->bench.n);
    if (s->forced.text.n) {
        page_add(p, "<p class=\"warn\">Mixed by --force: ");
        page_xml(p, page_text(&s->forced));
        page_add(p, ".</p>\n");
    }
    add_contents(p, g);
    for (size_t i = 0; i < g->n; i++)
        if (!add_group(p, s, &g->at[i], i + 1, o)) return false;
    page_add(p, "%s<h2>Fairness</h2>\n<p>", limits);
    page_xml(p, fairness);
    page_add(p, "</p>\n");
    add_commands(p, s, g, o);
    page_add(p, "<div id=\"tip\" role=\"status\"></div>\n%s</body>\n</html>\n", script);
    return !p->failed;
}
