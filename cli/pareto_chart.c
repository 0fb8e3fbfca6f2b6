/* What a chart of a group says: its points, title and caption. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"
#include "talk.h"

bool group_has(const task_group *g, int y) {
    for (size_t i = 0; i < g->n; i++)
        if (!isnan(g->at[i].y[y])) return true;
    return false;
}

/* ---- a point's hover ---------------------------------------------------------------------- */

static void add_count(page *p, double n) {
    page_add(p, n < 1e6 ? "%.0f k" : "%.1f M", n / (n < 1e6 ? 1e3 : 1e6));
}

static void add_quality(page *p, const measured *m) {
    if (!isnan(m->y[Y_ACC]))
        page_add(p, "\naccuracy %.3f [%.3f, %.3f], n = %.0f", m->y[Y_ACC], m->low[Y_ACC],
                 m->high[Y_ACC], m->n);
    for (int y = Y_PERPLEXITY; y < N_Y; y++)
        if (!isnan(m->y[y])) page_add(p, "\n%s %.3f", y_titles[y], m->y[y]);
}

static void describe_point(page *p, const sources *s, const measured *m, const bench_cell *cell,
                           bool best) {
    const model_entry *e = &s->models[m->model];
    char model[32], alloc[32];
    page_add(p, "%s", m->name);
    page_add(p, "\n%s", s->families[e->family]);
    if (e->n_params > 0) {
        page_add(p, ", ");
        add_count(p, e->n_params);
        page_add(p, " parameters");
    }
    add_quality(p, m);
    bytes_label(model, sizeof model, m->state[0]);
    bytes_label(alloc, sizeof alloc, m->state[1]);
    if (!isnan(m->state[0])) page_add(p, "\nstate %s as papers count it", model);
    if (!isnan(m->state[1])) page_add(p, "\nstate %s as allocated", alloc);
    if (!isnan(x_of(m, X_SPEED)))
        page_add(p, "\ndecodes %.1f tok/s at depth %d, batch %d", x_of(m, X_SPEED), cell->depth,
                 cell->batch);
    if (!isnan(x_of(m, X_TTFT)))
        page_add(p, "\nfirst token after %.*f ms", x_of(m, X_TTFT) < 10 ? 3 : 1, x_of(m, X_TTFT));
    if (!isnan(x_of(m, X_RSS))) {
        bytes_label(model, sizeof model, x_of(m, X_RSS));
        page_add(p, "\npeak memory %s", model);
    }
    page_add(p, "%s", best ? "\non the frontier" : "");
}

/* ---- title and caption -------------------------------------------------------------------- */

/* A value that all rows have, or nothing. */
static const char *text_of_all(const task_group *g, const char *key, bool bench) {
    const char *found = NULL;
    for (size_t i = 0; i < g->n; i++) {
        const json_t *row =
            bench ? (g->at[i].tg ? g->at[i].tg : g->at[i].pp) : g->at[i].segments[0]->row;
        const char *text = row ? text_in(row, key) : NULL;
        if (text && *text && found && strcmp(found, text)) return NULL;
        if (text && *text) found = text;
    }
    return found;
}

static void add_n(page *p, const task_group *g) {
    double least = INFINITY, most = 0;
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->at[i].n_segments; k++) {
            double n = number_in(g->at[i].segments[k]->row, "n");
            least = fmin(least, n);
            most = fmax(most, n);
        }
    bool several = false;
    for (size_t i = 0; i < g->n; i++)
        several = several || g->at[i].n_segments > 1;
    if (most > 0 && least == most)
        page_add(p, "n = %.0f%s", most, several ? " in each segment" : "");
    else if (most > 0)
        page_add(p, "n = %.0f–%.0f%s", least, most, several ? " in a segment" : "");
}

static void add_budget(page *p, const sources *s, const task_group *g) {
    double least = INFINITY, most = 0;
    const char *dtype = NULL;
    bool one = true;
    for (size_t i = 0; i < g->n; i++) {
        const model_entry *e = &s->models[g->at[i].model];
        const char *last = e->type ? strrchr(e->type, ' ') : NULL;
        if (e->n_params > 0) least = fmin(least, e->n_params);
        most = fmax(most, e->n_params);
        if (last && dtype && strcmp(dtype, last + 1)) one = false;
        if (last) dtype = last + 1;
    }
    if (dtype && one) page_add(p, "; weights %s", dtype);
    if (!(most > 0)) return;
    page_add(p, "; ");
    if (least < most) {
        add_count(p, least);
        page_add(p, "–");
    }
    add_count(p, most);
    page_add(p, " parameters");
}

static void make_title(group_chart *gc, const task_group *g, const bench_cell *cell,
                       const pareto_options *o, int x, int y) {
    const x_axis *axis = &x_axes[x];
    page place = {0};
    if (x == X_SPEED)
        page_add(&place, " at depth %d, batch %d", cell->depth, cell->batch);
    else if (axis->from_bench)
        page_add(&place, ", depth %d, batch %d", cell->depth, cell->batch);
    if (o->title)
        page_add(&gc->title, "%s", o->title);
    else
        page_add(&gc->title, "%s: %s against %s%s", g->n_tasks > 1 ? "mean of tasks" : g->task,
                 y == Y_ACC ? "recall" : y_titles[y], axis->words, page_text(&place));
    page_add(&gc->subtitle, "task%s ", g->n_tasks > 1 ? "s" : "");
    for (const char *at = g->task; *at; at++)
        page_add(&gc->subtitle, g->n_tasks > 1 && *at == ',' ? "%c " : "%c", *at);
    page_add(&gc->subtitle, ", preset %s", g->preset ? g->preset : "none");
    if (o->title && place.text.n) page_add(&gc->subtitle, ", %s%s", axis->words, page_text(&place));
    if (g->segments_text.text.n) page_add(&gc->subtitle, "; %s", page_text(&g->segments_text));
    page_free(&place);
}

static void make_caption(group_chart *gc, const sources *s, const task_group *g,
                         const bench_cell *cell, int x, int y, const page *left_out) {
    page *p = &gc->caption;
    const json_t *seed = json_object_get(g->at[0].segments[0]->row, "seed");
    const char *activations = text_of_all(g, "activations", false);
    if (y != Y_PERPLEXITY) add_n(p, g); /* n does not count what else the text has */
    if (json_is_integer(seed))
        page_add(p, "%sseed %lld", p->text.n ? "; " : "", (long long)json_integer_value(seed));
    if (activations) page_add(p, "; activations %s", activations);
    add_budget(p, s, g);
    page_add(p, ".");
    bool bars = false;
    for (size_t i = 0; i < g->n; i++)
        bars = bars || !isnan(g->at[i].low[y]);
    if (bars && y == Y_ACC) page_add(p, " Bars: 95 %% intervals (Wilson).");
    if (x == X_STATE_MODEL)
        page_add(p,
                 "\nState at the longest test: keys and values, linear states with equal features "
                 "once, BASED's taps; no pages, no padding.");
    if (x == X_STATE_ALLOC) page_add(p, "\nState at the longest test, all that a session holds.");
    if (x_axes[x].from_bench) {
        const char *cpu = text_of_all(g, "cpu_info", true), *gpu = text_of_all(g, "gpu_info", true),
                   *isa = text_of_all(g, "isa", true),
                   *build = text_of_all(g, "build_commit", true);
        const json_t *any = NULL;
        for (size_t i = 0; i < g->n && !any; i++)
            any = x == X_TTFT ? g->at[i].pp : g->at[i].tg;
        page_add(p, "\n%s", gpu ? gpu : cpu ? cpu : "unknown processor");
        double threads = number_in(any, "n_threads"),
               tokens = number_in(any, x == X_TTFT ? "n_prompt" : "n_gen");
        if (threads > 0) page_add(p, ", %.0f thread%s", threads, threads == 1 ? "" : "s");
        if (isa) page_add(p, ", %s", isa);
        if (build) page_add(p, ", build %s", build);
        if (tokens > 0)
            page_add(p, "; %s of %.0f token%s", x == X_TTFT ? "prompts" : "decoding", tokens,
                     tokens == 1 ? "" : "s");
        if (x == X_SPEED && cell->batch > 1)
            page_add(p, "; tokens of all %d sequences together", cell->batch);
        page_add(p, ".");
    }
    if (g->other_ids)
        page_add(p, "\nThe prompts are not the same ids for all models: other tokenizers, or other "
                    "items.");
    if (left_out->text.n) page_add(p, "\nNot shown: %s.", page_text(left_out));
    if (g->forced.text.n || s->forced.text.n)
        page_add(&gc->warning, "Not a fair comparison, mixed by --force: %s%s%s.",
                 page_text(&s->forced), g->forced.text.n && s->forced.text.n ? "; " : "",
                 page_text(&g->forced));
}

/* Points that coincide hide each other: the caption names them. */
static void add_coincident(page *p, const chart *c) {
    size_t told = 0;
    for (size_t i = 0; i < c->n && told < 4; i++) {
        size_t same = 0;
        for (size_t k = 0; k < i; k++)
            same += c->at[k].x == c->at[i].x && c->at[k].y == c->at[i].y;
        if (same) continue; /* told with the first of them */
        for (size_t k = i + 1; k < c->n; k++) {
            if (c->at[k].x != c->at[i].x || c->at[k].y != c->at[i].y) continue;
            if (!same) page_add(p, "\nAt one place: %s", c->at[i].label);
            page_add(p, " = %s", c->at[k].label);
            same++;
        }
        if (same) {
            page_add(p, ".");
            told++;
        }
    }
}

bool group_chart_make(group_chart *gc, const sources *s, const task_group *g,
                      const bench_cell *cell, const pareto_options *o, int x, int y) {
    chart *c = &gc->c;
    page left_out = {0};
    *gc = (group_chart){0};
    c->at = calloc(g->n + 1, sizeof *c->at);
    gc->hovers = calloc(g->n + 1, sizeof *gc->hovers);
    const measured **from = calloc(g->n + 1, sizeof *from);
    bool good = c->at && gc->hovers && from;
    if (!good) complain("out of memory");
    for (size_t i = 0; good && i < g->n; i++) {
        const measured *m = &g->at[i];
        double at = x_of(m, x);
        const char *why = isnan(m->y[y]) ? "no quality of this kind"
                          : isnan(at)
                              ? (x_axes[x].from_bench && m->missing ? m->missing : "not measured")
                          : at <= 0 ? "a logarithmic axis has no zero"
                                    : NULL;
        if (why) {
            page_add(&left_out, "%s%s (%s)", left_out.text.n ? ", " : "", m->name, why);
            gc->n_left_out++;
            continue;
        }
        from[c->n] = m;
        c->at[c->n++] = (chart_point){.x = at,
                                      .y = m->y[y],
                                      .low = m->low[y],
                                      .high = m->high[y],
                                      .label = m->name,
                                      .family = s->models[m->model].family};
    }
    if (good && !c->n) {
        complain("nothing to join: task %s has no point with both %s and %s: %s", g->task,
                 y_names[y], x_axes[x].name, page_text(&left_out));
        good = false;
    }
    if (good) {
        gc->n_best = chart_frontier(c->at, c->n, x_axes[x].more_is_better, y == Y_ACC);
        for (size_t i = 0; i < c->n; i++) {
            describe_point(&gc->hovers[i], s, from[i], cell, c->at[i].best);
            c->at[i].hover = gc->hovers[i].text.at;
        }
        make_title(gc, g, cell, o, x, y);
        make_caption(gc, s, g, cell, x, y, &left_out);
        add_coincident(&gc->caption, c);
        c->title = page_text(&gc->title);
        c->subtitle = page_text(&gc->subtitle);
        c->caption = page_text(&gc->caption);
        c->warning = page_text(&gc->warning);
        c->x_title = x_axes[x].title;
        c->y_title = y_titles[y];
        c->x_unit = x_axes[x].unit;
        c->x_more = x_axes[x].more_is_better;
        c->y_more = c->y_fraction = y == Y_ACC;
        c->families = s->families;
        c->slots = s->slots;
        good =
            !gc->title.failed && !gc->subtitle.failed && !gc->caption.failed && !gc->warning.failed;
    }
    free(from);
    page_free(&left_out);
    return good;
}

void group_chart_free(group_chart *gc) {
    for (size_t i = 0; gc->hovers && i < gc->c.n; i++)
        page_free(&gc->hovers[i]);
    free(gc->hovers);
    free(gc->c.at);
    page_free(&gc->title);
    page_free(&gc->subtitle);
    page_free(&gc->caption);
    page_free(&gc->warning);
    *gc = (group_chart){0};
}
