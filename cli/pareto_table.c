/* Points and their segments as rows of a table. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"
#include "talk.h"

static void set_number(json_t *row, const char *key, double v) {
    bool whole = v == floor(v) && fabs(v) < 1e15;
    json_object_set_new(row, key,
                        isnan(v) || isinf(v) ? json_null()
                        : whole              ? json_integer((json_int_t)v)
                                             : json_real(v));
}

static void set_text(json_t *row, const char *key, const char *text) {
    json_object_set_new(row, key, text ? json_string(text) : json_null());
}

/* Keys in the order of CSV's columns; `only`: the segment alone, or all of the point's. */
static json_t *make_row(const sources *s, const task_group *g, const bench_cell *cell,
                        const measured *m, const result *only, int frontier) {
    const model_entry *e = &s->models[m->model];
    const json_t *first = m->segments[0]->row;
    const char *dtype = e->type ? strrchr(e->type, ' ') : NULL;
    json_t *row = json_object(), *seed = json_object_get(first, "seed");
    page label = {0};
    if (only)
        segment_label(g, only, &label);
    else
        page_add(&label, "%s", m->n_segments > 1 ? "mean" : "");
    set_text(row, "model", m->name);
    set_text(row, "mixers", s->families[e->family]);
    set_number(row, "model_n_params", e->n_params > 0 ? e->n_params : (double)NAN);
    set_text(row, "weights", dtype ? dtype + 1 : NULL);
    set_text(row, "activations", text_in(first, "activations"));
    set_text(row, "task", g->task);
    set_text(row, "preset", text_in(first, "preset"));
    json_object_set(row, "seed", seed ? seed : json_null());
    set_text(row, "segment", page_text(&label));
    measured alone = *m;
    if (only) { /* of one row: as it says */
        alone.n = number_in(only->row, "n");
        alone.hits = number_in(only->row, "hits");
        for (int k = 0; k < N_Y; k++)
            alone.y[k] = quality_in(only->row, k);
        alone.low[Y_ACC] = number_in(only->row, "acc_low");
        alone.high[Y_ACC] = number_in(only->row, "acc_high");
        alone.state[0] = number_in(only->row, "state_bytes_model");
        alone.state[1] = number_in(only->row, "state_bytes_alloc");
        alone.tg = alone.pp = NULL;
    }
    set_number(row, "n", alone.n);
    set_number(row, "hits", alone.hits);
    set_number(row, "acc", alone.y[Y_ACC]);
    set_number(row, "acc_low", alone.low[Y_ACC]);
    set_number(row, "acc_high", alone.high[Y_ACC]);
    set_number(row, "perplexity", alone.y[Y_PERPLEXITY]);
    set_number(row, "ppl_recall", alone.y[Y_RECALLED]);
    set_number(row, "state_bytes_model", alone.state[0]);
    set_number(row, "state_bytes_alloc", alone.state[1]);
    const json_t *bench = alone.tg ? alone.tg : alone.pp;
    set_number(row, "n_depth", bench ? cell->depth : (double)NAN);
    set_number(row, "n_seqs", bench ? cell->batch : (double)NAN);
    set_number(row, "n_threads", number_in(bench, "n_threads"));
    set_number(row, "tg_ts", x_of(&alone, X_SPEED));
    set_number(row, "ttft_ms", x_of(&alone, X_TTFT));
    set_number(row, "peak_rss_bytes", x_of(&alone, X_RSS));
    json_object_set_new(row, "frontier",
                        only || frontier < 0 ? json_null() : json_boolean(frontier));
    set_text(row, "model_hash", e->hash);
    set_text(row, "note", only || !cell->any ? NULL : m->missing);
    page_free(&label);
    return row;
}

static int by_state(const void *a, const void *b) {
    const measured *x = *(const measured *const *)a, *y = *(const measured *const *)b;
    double one = fmax(0, x->state[0]), two = fmax(0, y->state[0]); /* NaN is 0 */
    if (one != two) return one < two ? -1 : 1;
    return (x > y) - (x < y);
}

json_t *table_rows(const sources *s, const task_group *g, const bench_cell *cell, int x, int y) {
    json_t *rows = json_array();
    const measured **order = calloc(g->n + 1, sizeof *order);
    chart_point *points = calloc(g->n + 1, sizeof *points);
    if (!rows || !order || !points) {
        complain("out of memory");
        json_decref(rows);
        rows = NULL;
    }
    for (size_t i = 0; rows && i < g->n; i++)
        order[i] = &g->at[i];
    if (rows) qsort(order, g->n, sizeof *order, by_state);
    size_t n = 0;
    for (size_t i = 0; rows && i < g->n; i++)
        if (!isnan(x_of(order[i], x)) && !isnan(order[i]->y[y]))
            points[n++] = (chart_point){.x = x_of(order[i], x), .y = order[i]->y[y]};
    if (rows) chart_frontier(points, n, x_axes[x].more_is_better, y == Y_ACC);
    n = 0;
    for (size_t i = 0; rows && i < g->n; i++) {
        const measured *m = order[i];
        bool drawn = !isnan(x_of(m, x)) && !isnan(m->y[y]);
        json_array_append_new(rows,
                              make_row(s, g, cell, m, NULL, drawn ? (int)points[n++].best : -1));
        for (size_t k = 0; k < m->n_segments && m->n_segments > 1; k++)
            json_array_append_new(rows, make_row(s, g, cell, m, m->segments[k], -1));
    }
    free(order);
    free(points);
    return rows;
}

/* ---- Markdown ----------------------------------------------------------------------------- */

/* A name is not markup. */
static void show_text(const json_t *row, const char *key, char *out, size_t size) {
    const char *text = text_in(row, key);
    size_t n = 0;
    for (const char *p = text ? text : "-"; *p && n + 6 < size; p++) {
        const char *entity = *p == '<' ? "&lt;" : *p == '>' ? "&gt;" : *p == '&' ? "&amp;" : NULL;
        if (strchr("*_`[]\\", *p)) out[n++] = '\\';
        n += (size_t)snprintf(out + n, size - n, "%.*s", entity ? 5 : 1, entity ? entity : p);
    }
    out[n] = '\0';
}

static void show_number(const json_t *row, const char *key, const char *format, char *out,
                        size_t size) {
    double v = number_in(row, key);
    if (isnan(v))
        snprintf(out, size, "-");
    else
        snprintf(out, size, format, v);
}

static void show_bytes(const json_t *row, const char *key, char *out, size_t size) {
    double v = number_in(row, key);
    if (isnan(v))
        snprintf(out, size, "-");
    else
        human_bytes(out, size, (uint64_t)v);
}

static void show_name(const json_t *row, char *out, size_t size) {
    show_text(row, "model", out, size);
}

static void show_family(const json_t *row, char *out, size_t size) {
    show_text(row, "mixers", out, size);
}

static void show_count(const json_t *row, char *out, size_t size) {
    if (json_is_number(json_object_get(row, "model_n_params")))
        show_params(row, out, size);
    else
        snprintf(out, size, "-");
}

static void show_segment(const json_t *row, char *out, size_t size) {
    show_text(row, "segment", out, size);
}

static void show_acc(const json_t *row, char *out, size_t size) {
    show_number(row, "acc", "%.3f", out, size);
    double low = number_in(row, "acc_low"), high = number_in(row, "acc_high");
    size_t n = strlen(out);
    if (!isnan(low) && !isnan(high) && n < size)
        snprintf(out + n, size - n, " (%.3f–%.3f)", low, high);
}

static void show_perplexity(const json_t *row, char *out, size_t size) {
    show_number(row, "perplexity", "%.3f", out, size);
}

static void show_recalled(const json_t *row, char *out, size_t size) {
    show_number(row, "ppl_recall", "%.3f", out, size);
}

static void show_n(const json_t *row, char *out, size_t size) {
    show_number(row, "n", "%.0f", out, size);
}

static void show_paper_state(const json_t *row, char *out, size_t size) {
    show_bytes(row, "state_bytes_model", out, size);
}

static void show_held_state(const json_t *row, char *out, size_t size) {
    show_bytes(row, "state_bytes_alloc", out, size);
}

static void show_speed(const json_t *row, char *out, size_t size) {
    show_number(row, "tg_ts", "%.1f", out, size);
}

static void show_first(const json_t *row, char *out, size_t size) {
    show_number(row, "ttft_ms", number_in(row, "ttft_ms") < 10 ? "%.3f" : "%.1f", out, size);
}

static void show_rss(const json_t *row, char *out, size_t size) {
    show_bytes(row, "peak_rss_bytes", out, size);
}

static void show_frontier(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%s", json_is_true(json_object_get(row, "frontier")) ? "●" : "");
}

size_t table_columns(const json_t *rows, row_column out[MAX_COLUMNS]) {
    static const struct {
        row_column column;
        const char *key; /* of what must be there */
    } columns[] = {
        {{"model", false, show_name}, "model"},
        {{"mixers", false, show_family}, "mixers"},
        {{"params", true, show_count}, "model_n_params"},
        {{"segment", false, show_segment}, "segment"},
        {{"accuracy (95 %)", true, show_acc}, "acc"},
        {{"perplexity", true, show_perplexity}, "perplexity"},
        {{"of what is to be recalled", true, show_recalled}, "ppl_recall"},
        {{"n", true, show_n}, "n"},
        {{"state (papers)", true, show_paper_state}, "state_bytes_model"},
        {{"state (held)", true, show_held_state}, "state_bytes_alloc"},
        {{"tok/s", true, show_speed}, "tg_ts"},
        {{"TTFT ms", true, show_first}, "ttft_ms"},
        {{"peak RSS", true, show_rss}, "peak_rss_bytes"},
        {{"frontier", false, show_frontier}, "frontier"},
    };
    size_t n = 0;
    for (size_t k = 0; k < sizeof columns / sizeof *columns; k++) {
        bool filled = false;
        size_t i;
        const json_t *row;
        json_array_foreach(rows, i, row) {
            const json_t *value = json_object_get(row, columns[k].key);
            const char *text = json_string_value(value);
            if (!strcmp(columns[k].key, "segment") && text && !strcmp(text, "mean")) continue;
            filled = filled || !(json_is_null(value) || (text && !*text));
        }
        if (filled) out[n++] = columns[k].column;
    }
    return n;
}
