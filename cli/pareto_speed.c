/* The rows of bench that were measured under the settings of a point, in one cell of depth and
 * batch. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"
#include "talk.h"

/* What rows of bench in one chart have in common, beside activations and kv, which must be those of
 * recall. */
static const struct {
    const char *key, *words;
} bench_settings[] = {
    {"n_threads", "threads"}, {"backends", "backend"},    {"cpu_info", "processor"},
    {"gpu_info", "GPU"},      {"isa", "instruction set"},
};
enum { N_BENCH_SETTINGS = sizeof bench_settings / sizeof *bench_settings };

/* ---- rows of bench ------------------------------------------------------------------------ */

/* Median tokens per second of a row; NaN where it has none. */
static double speed_of(const json_t *bench) {
    double median = number_in(bench, "median_ts");
    if (isnan(median)) median = number_in(bench, "avg_ts"); /* llama-bench has no median */
    return json_is_true(json_object_get(bench, "oom")) ? (double)NAN : median;
}

double x_of(const measured *m, int x) {
    switch (x) {
    case X_STATE_MODEL:
    case X_STATE_ALLOC:
        return m->state[x == X_STATE_ALLOC];
    case X_SPEED:
        return speed_of(m->tg);
    case X_TTFT:
        return number_in(m->pp, "ttft_ns") / 1e6;
    default:
        return number_in(m->tg ? m->tg : m->pp, "peak_rss_bytes");
    }
}

static bool is_decode(const json_t *row) {
    return number_in(row, "n_gen") > 0 && !(number_in(row, "n_prompt") > 0);
}

static bool is_prefill(const json_t *row) {
    return number_in(row, "n_prompt") > 0 && !(number_in(row, "n_gen") > 0);
}

static int whole_in(const json_t *row, const char *key, int absent) {
    double v = number_in(row, key);
    return isnan(v) ? absent : (int)v;
}

/* Whether a row of bench could stand beside a point, its cell apart. */
static bool suits(const result *r, const pareto_options *o, bool decode) {
    if (o->threads && whole_in(r->row, "n_threads", 0) != o->threads) return false;
    return decode ? is_decode(r->row) : is_prefill(r->row);
}

static bool same_activations(const sources *s, const measured *p, const result *r) {
    return same_setting(s, p->segments[0], r, "activations", true) &&
           same_setting(s, p->segments[0], r, "kv", true);
}

static bool in_group(const task_group *g, size_t model) {
    for (size_t i = 0; i < g->n; i++)
        if (g->at[i].model == model) return true;
    return false;
}

/* Of the values of `key` in rows that suit (at depth `depth` if >= 0): the least or the greatest
 * that all of the group's models with such rows have, else that any has; -1 where there are none.
 */
static int common_value(const sources *s, const task_group *g, const pareto_options *o, bool decode,
                        const char *key, int depth, bool greatest, bool all) {
    int best = -1;
    for (size_t i = 0; i < s->bench.n; i++) {
        const result *r = &s->bench.at[i];
        if (!suits(r, o, decode) || !in_group(g, r->model)) continue;
        if (depth >= 0 && whole_in(r->row, "n_depth", 0) != depth) continue;
        int value = whole_in(r->row, key, !strcmp(key, "n_seqs"));
        if (best >= 0 && (greatest ? value <= best : value >= best)) continue;
        bool everywhere = true;
        for (size_t m = 0; m < s->n_models && all && everywhere; m++) {
            bool any = false, has = false;
            for (size_t k = 0; k < s->bench.n; k++) {
                const result *q = &s->bench.at[k];
                if (q->model != m || !suits(q, o, decode)) continue;
                any = true;
                has = has || ((depth < 0 || whole_in(q->row, "n_depth", 0) == depth) &&
                              whole_in(q->row, key, !strcmp(key, "n_seqs")) == value);
            }
            everywhere = !in_group(g, m) || !any || has;
        }
        if (everywhere) best = value;
    }
    if (best < 0 && all) return common_value(s, g, o, decode, key, depth, greatest, false);
    return best;
}

void cell_choose(bench_cell *c, const sources *s, const task_group *g, const pareto_options *o) {
    bool decode = o->x != X_TTFT;
    *c = (bench_cell){.depth = o->depth, .batch = o->batch};
    if (c->depth < 0) c->depth = common_value(s, g, o, decode, "n_depth", -1, true, true);
    int low = common_value(s, g, o, decode, "n_seqs", c->depth, false, true);
    int high = common_value(s, g, o, decode, "n_seqs", c->depth, true, true);
    c->any = s->bench.n > 0;
    if (!c->batch) c->batch = low < 0 ? 1 : low;
    if (c->depth < 0) c->depth = 0;
    c->batches[c->n_batches++] = c->batch;
    if (!o->batch && high > c->batch) c->batches[c->n_batches++] = high;
}

/* A row of the cell beside a point: of several tests the longest, of several measurements the
 * last. */
static const result *pick(const bench_cell *c, const sources *s, const measured *p,
                          const pareto_options *o, bool decode, const char **missing) {
    const result *best = NULL;
    bool any = false, other = false;
    for (size_t i = 0; i < s->bench.n; i++) {
        const result *r = &s->bench.at[i];
        if (r->model != p->model || !suits(r, o, decode)) continue;
        any = true;
        if (whole_in(r->row, "n_depth", 0) != c->depth || whole_in(r->row, "n_seqs", 1) != c->batch)
            continue;
        if (!same_activations(s, p, r) && !o->force) {
            other = true;
            continue;
        }
        const char *key = decode ? "n_gen" : "n_prompt";
        bool exact = same_activations(s, p, r);
        bool worse = best && exact < same_activations(s, p, best);
        if (!worse && (!best || exact > same_activations(s, p, best) ||
                       whole_in(r->row, key, 0) >= whole_in(best->row, key, 0)))
            best = r;
    }
    *missing = best    ? NULL
               : other ? "bench has it with other activations or another type of keys and values"
               : any   ? "no row of bench at this depth and batch"
                       : "no row of bench";
    if (best && json_is_true(json_object_get(best->row, "oom"))) *missing = "out of memory";
    return best;
}

/* Rows that would be drawn together were measured alike. Looks at all that suit the cell, so that
 * two numbers of threads are not taken for one. */
static bool check_speed(const bench_cell *c, const sources *s, task_group *g,
                        const pareto_options *o, bool decode, const result **picked) {
    const char *length = decode ? "n_gen" : "n_prompt";
    for (size_t k = 0; k <= N_BENCH_SETTINGS; k++) {
        const char *key = k < N_BENCH_SETTINGS ? bench_settings[k].key : length;
        const char *words = k < N_BENCH_SETTINGS ? bench_settings[k].words : "tokens of the test";
        const result *first = NULL;
        bool told = false;
        for (size_t i = 0; i < g->n && k == N_BENCH_SETTINGS && !told; i++) {
            if (!picked[i]) continue;
            if (!first) first = picked[i];
            told = !same_setting(s, first, picked[i], key, true);
            if (told && !mixed(s, g, o->force, key, words, first, picked[i])) return false;
        }
        for (size_t i = 0; i < s->bench.n && k < N_BENCH_SETTINGS && !told; i++) {
            const result *r = &s->bench.at[i];
            if (!suits(r, o, decode) || !in_group(g, r->model) ||
                whole_in(r->row, "n_depth", 0) != c->depth ||
                whole_in(r->row, "n_seqs", 1) != c->batch)
                continue;
            if (!first) first = r;
            told = !same_setting(s, first, r, key, true);
            if (told && !mixed(s, g, o->force, key, words, first, r)) return false;
        }
    }
    for (size_t i = 0; i < g->n && o->force; i++)
        if (picked[i] && !same_activations(s, &g->at[i], picked[i]))
            let_pass(g, "%s: quality and speed under different activations or keys", g->at[i].name);
    return !g->forced.failed;
}

bool cell_join(const bench_cell *c, const sources *s, task_group *g, const pareto_options *o,
               int needs) {
    const result **picked = calloc(g->n + 1, sizeof *picked);
    bool good = picked != NULL;
    if (!good) complain("out of memory");
    for (int decode = 0; good && decode < 2; decode++) {
        if ((needs == X_TTFT && decode) || (needs == X_SPEED && !decode)) continue;
        for (size_t i = 0; i < g->n; i++) {
            const char *missing;
            picked[i] = pick(c, s, &g->at[i], o, decode, &missing);
            const json_t *row = picked[i] ? picked[i]->row : NULL;
            if (decode)
                g->at[i].tg = row;
            else
                g->at[i].pp = row;
            if (decode || needs == X_TTFT) g->at[i].missing = missing;
        }
        good = check_speed(c, s, g, o, decode, picked);
    }
    free(picked);
    return good;
}
