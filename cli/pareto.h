/* Inside `linnet pareto`: rows of `bench` and `recall` in (pareto_read.c), joined to points
 * (pareto_join.c, pareto_speed.c); charts (pareto_chart.c, pareto_svg.c), tables (pareto_table.c)
 * and a report (pareto_html.c) out. Functions that return false have said why on stderr. */
#ifndef CLI_PARETO_H
#define CLI_PARETO_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "files.h"
#include "flags.h"
#include "rows.h"

/* ---- text that grows ---------------------------------------------------------------------- */

/* Memory that runs out is told once and remembered: look at `failed` when the page is whole. */
typedef struct {
    text_buffer text;
    bool failed;
} page; /* start with {0}, free(text.at) */

#define page_add(p, ...) page_note(p, text_printf(&(p)->text, __VA_ARGS__))
static inline void page_note(page *p, bool good) {
    p->failed = p->failed || !good;
}
/* With & < > " as entities, and U+FFFD for what XML 1.0 has no place for. */
void page_xml(page *p, const char *text);
const char *page_text(const page *p); /* never NULL */
void page_clear(page *p);             /* empty; keeps its memory */
void page_free(page *p);

/* ---- rows --------------------------------------------------------------------------------- */

typedef struct {
    const json_t *row;
    const char *file;
    size_t at; /* which row of the file, or which line of JSON lines, from 1 */
    bool is_lines;
    size_t model; /* of sources.models */
} result;

typedef struct {
    result *at;
    size_t n, cap;
} result_list;

/* A model as all rows of it tell. */
typedef struct {
    char *name;                     /* its file's, without folder and .gguf; unique */
    const char *path, *hash, *type; /* of the first row that has one, or NULL */
    const json_t *mixers, *windows; /* arrays, or NULL */
    double n_params, size;          /* 0: unknown */
    const result *first;
    size_t family;
} model_entry;

typedef struct {
    json_t *files; /* owns the rows */
    result_list recall, bench;
    model_entry *models;
    size_t n_models;
    char **families; /* names of the mixers' families, one colour and marker each */
    int *slots;      /* their colour and marker, of pareto_svg.c */
    size_t n_families;
    page forced; /* what --force let pass */
} sources;

bool sources_read(sources *s, const text_list *paths, bool force);
void sources_free(sources *s);
/* "rows.jsonl, line 3" */
const char *where(const result *r, char *out, size_t size);

double number_in(const json_t *row, const char *key);    /* NaN where there is none */
const char *text_in(const json_t *row, const char *key); /* NULL where there is none */
double quality_in(const json_t *row, int y);             /* Y_...; NaN where there is none */

/* ---- points ------------------------------------------------------------------------------- */

typedef enum { UNIT_BYTES, UNIT_RATE, UNIT_MS } axis_unit;

typedef struct {
    const char *name, *title, *words; /* "tg_ts", "decode speed, ...", "decode speed" */
    axis_unit unit;
    bool more_is_better, from_bench;
} x_axis;

enum { X_STATE_MODEL, X_STATE_ALLOC, X_SPEED, X_TTFT, X_RSS, N_X };
enum { Y_ACC, Y_PERPLEXITY, Y_RECALLED, N_Y }; /* the last: of what is to be recalled */
extern const x_axis x_axes[N_X];
extern const char *const y_names[N_Y], *const y_titles[N_Y];
#define X_NAMES "state_bytes_model state_bytes_alloc tg_ts ttft peak_rss"
#define Y_NAMES "acc perplexity ppl_recall"

/* What a user may choose. */
typedef struct {
    int x, y; /* -1: not said */
    const char *task, *preset, *title;
    int depth, batch, threads; /* -1, 0, 0: not said */
    bool alloc, force;
    int argc;
    char **argv;
} pareto_options;

/* One model under one set of settings: the mean of its segments. */
typedef struct {
    size_t model;
    const result **segments; /* in the order of their parameters */
    size_t n_segments;
    char *name; /* the model's, with what sets it apart where --force mixed settings */
    double n, hits;
    double y[N_Y], low[N_Y], high[N_Y]; /* NaN: none */
    double state[2];                    /* model, alloc; the most of all segments */
    const json_t *tg, *pp;              /* rows of bench in the cell, or NULL */
    const char *missing;                /* why tg is NULL */
} measured;

typedef struct {
    const char *task, *preset; /* preset may be NULL */
    int n_tasks;               /* above 1: task is a list, and segments are of all of them */
    measured *at;
    size_t n;
    json_t *varying;    /* the parameters that differ between segments: an object's keys */
    page segments_text; /* "7 segments: L 64-1024, K 4-256; V 8192" */
    page forced;        /* what --force let pass */
    bool other_ids;     /* the prompts of a test are other ids for other models */
} task_group;

typedef struct {
    task_group *at;
    size_t n;
} task_groups;

/* The tasks (and presets, if `by_preset`) that the options choose, each checked. */
bool groups_make(task_groups *g, sources *s, const pareto_options *o, bool by_preset);
void groups_free(task_groups *g);

/* Whether two rows agree in a setting ("seed", "dtype", ...); where one does not tell, as asked. */
bool same_setting(const sources *s, const result *a, const result *b, const char *key,
                  bool unknown_is_same);
/* One sentence about two rows that differ, unless `force` lets it pass into the caption. -> force
 */
bool mixed(const sources *s, task_group *g, bool force, const char *key, const char *words,
           const result *a, const result *b);
/* What --force let pass, once. */
void let_pass(task_group *g, const char *format, ...);

/* Where speed was measured. */
typedef struct {
    int depth, batch;
    int batches[2], n_batches; /* the smallest and the largest that all models have */
    bool any;                  /* there are rows of bench at all */
} bench_cell;

/* The cell that the options name, else the deepest that all models of the group have, and its
 * smallest batch. */
void cell_choose(bench_cell *c, const sources *s, const task_group *g, const pareto_options *o);
/* Finds the rows of bench of every point in the cell; refuses to mix settings. `needs`: X_SPEED,
 * X_TTFT, X_RSS, or -1: whatever there is. */
bool cell_join(const bench_cell *c, const sources *s, task_group *g, const pareto_options *o,
               int needs);

double x_of(const measured *m, int x);
/* "L=64 K=4": what sets a segment apart from the others of its group. */
void segment_label(const task_group *g, const result *r, page *out);

/* ---- charts ------------------------------------------------------------------------------- */

typedef struct {
    double x, y, low, high; /* low and high NaN: no bar */
    const char *label;
    size_t family;
    bool best; /* no other point is at least as good in both and better in one */
    char *hover;
} chart_point;

typedef struct {
    const char *title, *subtitle, *caption;
    const char *warning; /* below it, or "" */
    const char *x_title, *y_title;
    axis_unit x_unit;
    bool x_more, y_more; /* is better */
    bool y_fraction;
    char *const *families;
    const int *slots;
    chart_point *at;
    size_t n;
} chart;

/* Marks the points that no other dominates; returns how many there are. */
size_t chart_frontier(chart_point *at, size_t n, bool x_more, bool y_more);
bool chart_draw(page *out, const chart *c);
/* Colour and marker of a family whose main mixer is `mixer`, among those not taken. */
int chart_slot(const char *mixer, const bool *taken);
enum { N_SLOTS = 24 };
void bytes_label(char *out, size_t size, double bytes);

/* A chart of a group; `page_free` its texts with group_chart_free. */
typedef struct {
    chart c;
    page title, subtitle, caption, warning;
    page *hovers;
    size_t n_best, n_left_out;
} group_chart;

bool group_chart_make(group_chart *gc, const sources *s, const task_group *g,
                      const bench_cell *cell, const pareto_options *o, int x, int y);
void group_chart_free(group_chart *gc);
bool group_has(const task_group *g, int y);

/* ---- outputs ------------------------------------------------------------------------------ */

/* Rows of a group's table: means, then segments. Marks the frontier of x and y. */
json_t *table_rows(const sources *s, const task_group *g, const bench_cell *cell, int x, int y);
enum { MAX_COLUMNS = 16 };
/* The columns that these rows fill; returns how many. */
size_t table_columns(const json_t *rows, row_column out[MAX_COLUMNS]);
bool report_write(page *out, sources *s, task_groups *g, const pareto_options *o);
extern const char fairness[];

#endif
