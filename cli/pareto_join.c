/* Rows to points: one per model and settings, the mean of its segments. What a chart must not mix
 * is refused here, and in pareto_speed.c what it must not join. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"
#include "talk.h"

const x_axis x_axes[N_X] = {
    {"state_bytes_model", "state per sequence, as papers count it", "state bytes", UNIT_BYTES,
     false, false},
    {"state_bytes_alloc", "state per sequence, as allocated", "allocated state bytes", UNIT_BYTES,
     false, false},
    {"tg_ts", "decode speed, tokens per second", "decode speed", UNIT_RATE, true, true},
    {"ttft", "time to first token", "time to first token", UNIT_MS, false, true},
    {"peak_rss", "peak resident memory", "peak memory", UNIT_BYTES, false, true},
};
const char *const y_names[N_Y] = {"acc", "perplexity", "ppl_recall"};
const char *const y_titles[N_Y] = {"accuracy", "perplexity",
                                   "perplexity of what is to be recalled"};

/* ---- settings ----------------------------------------------------------------------------- */

/* What rows of recall in one chart have in common. */
static const struct {
    const char *key, *words;
} settings[] = {
    {"preset", "preset"},
    {"seed", "seed"},
    {"activations", "activations"},
    {"dtype", "weights"},      /* the last word of model_type */
    {"kv", "keys and values"}, /* of dtype_state, where a layer has some */
    {"cut", "cut rule"},
    {"max_ctx", "longest context"},
    {"twice", "twice"},
    {"window_mode", "window mode"},
};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

static bool has_kv(const model_entry *m) {
    size_t i;
    const json_t *value;
    json_array_foreach(m->mixers, i, value) {
        const char *mixer = json_string_value(value);
        if (mixer && (!strcmp(mixer, "softmax") || !strcmp(mixer, "lolcats"))) return true;
    }
    return false;
}

static void add_value(page *out, const json_t *value) {
    if (json_is_string(value)) {
        page_add(out, "%s", json_string_value(value));
    } else if (value && !json_is_null(value)) {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(10));
        page_add(out, "%s", text ? text : "");
        free(text);
    }
}

/* The value of a setting, nothing where the row does not tell. */
static void setting_of(const sources *s, const result *r, const char *key, page *out) {
    const model_entry *m = &s->models[r->model];
    page_clear(out);
    if (!strcmp(key, "dtype")) {
        const char *last = m->type ? strrchr(m->type, ' ') : NULL;
        if (last) page_add(out, "%s", last + 1);
    } else if (!strcmp(key, "kv")) {
        const char *dtype = text_in(r->row, "dtype_state");
        if (dtype && has_kv(m)) page_add(out, "%.*s", (int)strcspn(dtype, "+"), dtype);
    } else {
        add_value(out, json_object_get(r->row, key));
    }
}

bool same_setting(const sources *s, const result *a, const result *b, const char *key,
                  bool unknown_is_same) {
    page one = {0}, two = {0};
    setting_of(s, a, key, &one);
    setting_of(s, b, key, &two);
    bool same = !strcmp(page_text(&one), page_text(&two)) ||
                (unknown_is_same && (!one.text.n || !two.text.n));
    page_free(&one);
    page_free(&two);
    return same;
}

void let_pass(task_group *g, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!strstr(page_text(&g->forced), text))
        page_add(&g->forced, "%s%s", g->forced.text.n ? "; " : "", text);
}

bool mixed(const sources *s, task_group *g, bool force, const char *key, const char *words,
           const result *a, const result *b) {
    page one = {0}, two = {0};
    char first[512], second[512];
    setting_of(s, a, key, &one);
    setting_of(s, b, key, &two);
    if (force)
        let_pass(g, "%s %s and %s", words, page_text(&one), page_text(&two));
    else
        complain("%s and %s differ in %s (%s, %s): one chart compares one; choose rows, or --force "
                 "and the caption says so",
                 where(a, first, sizeof first), where(b, second, sizeof second), words,
                 page_text(&one), page_text(&two));
    page_free(&one);
    page_free(&two);
    return force;
}

/* ---- segments ----------------------------------------------------------------------------- */

/* "L=256,fill=random" into an object. */
static void split_parameters(json_t *out, const char *text) {
    for (const char *p = text, *end; *p; p = end + (*end == ',')) {
        end = p + strcspn(p, ",");
        page key = {0}, word = {0};
        double number;
        size_t n = strcspn(p, "=,");
        page_add(&key, "%.*s", (int)n, p);
        if (p[n] == '=') n++;
        page_add(&word, "%.*s", (int)((size_t)(end - p) - n), p + n);
        bool whole = parse_real(page_text(&word), &number) && fabs(number) < 1e15;
        json_object_set_new(out, page_text(&key),
                            !whole                    ? json_string(page_text(&word))
                            : number == floor(number) ? json_integer((json_int_t)number)
                                                      : json_real(number));
        page_free(&key);
        page_free(&word);
    }
}

/* What tells rows of one test apart: its parameters. */
static json_t *segment_of(const json_t *row) {
    static const char *const beside[] = {"len", "depth"};
    const json_t *parameters = json_object_get(row, "params");
    json_t *out = json_object(), *task = json_object_get(row, "task");
    if (task) json_object_set(out, "task", task); /* first: segments of one task stay together */
    if (json_is_object(parameters)) json_object_update(out, (json_t *)parameters);
    if (json_is_string(parameters)) split_parameters(out, json_string_value(parameters));
    json_object_del(out, "file"); /* the task's name has it */
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        json_t *value = json_object_get(row, beside[i]);
        bool said = json_object_get(out, "L") || json_object_get(out, "N");
        if (i == 0 && said) continue; /* what follows from a parameter */
        if (value && !json_is_null(value)) json_object_set(out, beside[i], value);
    }
    return out;
}

static int compare_values(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) {
        double x = json_number_value(a), y = json_number_value(b);
        return (x > y) - (x < y);
    }
    page one = {0}, two = {0};
    add_value(&one, a);
    add_value(&two, b);
    int order = strcmp(page_text(&one), page_text(&two));
    page_free(&one);
    page_free(&two);
    return order;
}

static int compare_segments(const void *a, const void *b) {
    const result *x = *(const result *const *)a, *y = *(const result *const *)b;
    json_t *one = segment_of(x->row), *two = segment_of(y->row);
    const char *key;
    json_t *value;
    int order = 0;
    json_object_foreach(one, key, value) {
        if (!order) order = compare_values(value, json_object_get(two, key));
    }
    if (!order)
        order = (json_object_size(one) > json_object_size(two)) -
                (json_object_size(one) < json_object_size(two));
    json_decref(one);
    json_decref(two);
    return order;
}

/* The values of a parameter over all segments of the group: how many, and the ends of numbers. */
static size_t values_of(const task_group *g, const char *key, page *text) {
    const json_t *first = NULL, *low = NULL, *high = NULL;
    size_t n = 0;
    json_t *seen = json_array();
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->at[i].n_segments; k++) {
            json_t *segment = segment_of(g->at[i].segments[k]->row);
            json_t *value = json_object_get(segment, key);
            bool old = !value;
            for (size_t v = 0; !old && v < json_array_size(seen); v++)
                old = json_equal(json_array_get(seen, v), value);
            if (!old && !json_array_append(seen, value)) {
                n++;
                if (!first) first = value;
                if (!low || compare_values(value, low) < 0) low = value;
                if (!high || compare_values(value, high) > 0) high = value;
            }
            json_decref(segment);
        }
    if (n == 1) {
        add_value(text, first);
    } else if (json_is_number(low) && json_is_number(high)) {
        add_value(text, low);
        page_add(text, "–");
        add_value(text, high);
    } else {
        for (size_t v = 0; v < json_array_size(seen) && v < 6; v++) {
            page_add(text, "%s", v ? " / " : "");
            add_value(text, json_array_get(seen, v));
        }
    }
    json_decref(seen);
    return n;
}

void segment_label(const task_group *g, const result *r, page *out) {
    json_t *segment = segment_of(r->row), *value;
    const char *key;
    json_object_foreach(segment, key, value) {
        if (!json_object_get(g->varying, key)) continue;
        page_add(out, "%s%s=", out->text.n ? " " : "", key);
        add_value(out, value);
    }
    json_decref(segment);
}

/* "7 segments: L 64–1024, K 4–256; V 8192". */
static void describe_segments(task_group *g) {
    page varying = {0}, fixed = {0};
    json_t *keys = json_object(), *segment, *value;
    const char *key;
    size_t most = 0;
    g->varying = json_object();
    for (size_t i = 0; i < g->n; i++) {
        most = g->at[i].n_segments > most ? g->at[i].n_segments : most;
        for (size_t k = 0; k < g->at[i].n_segments; k++) {
            segment = segment_of(g->at[i].segments[k]->row);
            json_object_update_missing(keys, segment);
            json_decref(segment);
        }
    }
    json_object_foreach(keys, key, value) {
        page text = {0};
        if (!strcmp(key, "task")) { /* the title has it */
            if (g->n_tasks > 1) json_object_set_new(g->varying, key, json_true());
            continue;
        }
        page *to = values_of(g, key, &text) > 1 ? &varying : &fixed;
        if (to == &varying) json_object_set_new(g->varying, key, json_true());
        page_add(to, "%s%s %s", to->text.n ? ", " : "", key, page_text(&text));
        page_free(&text);
    }
    page *out = &g->segments_text;
    if (most > 1) page_add(out, "mean of %zu segments", most);
    if (varying.text.n) page_add(out, "%s%s", out->text.n ? ": " : "", page_text(&varying));
    if (fixed.text.n) page_add(out, "%s%s", out->text.n ? "; " : "", page_text(&fixed));
    page_free(&varying);
    page_free(&fixed);
    json_decref(keys);
}

/* ---- means -------------------------------------------------------------------------------- */

/* The interval of a mean of independent estimates from theirs (MOVER: Zou and Donner, Statistics in
 * Medicine 27, 2008): mean -+ sqrt(sum of squared distances) / m. */
static void average(measured *p) {
    double m = (double)p->n_segments, below = 0, above = 0;
    double logs[N_Y] = {0};
    p->y[Y_ACC] = 0;
    p->state[0] = p->state[1] = (double)NAN; /* which fmax passes over */
    for (size_t i = 0; i < p->n_segments; i++) {
        const json_t *row = p->segments[i]->row;
        double acc = number_in(row, "acc"), n = number_in(row, "n"), hits = number_in(row, "hits");
        double low = number_in(row, "acc_low"), high = number_in(row, "acc_high");
        p->n += n > 0 ? n : 0;
        p->hits += hits > 0 ? hits : 0;
        p->y[Y_ACC] += acc / m;
        below += (acc - low) * (acc - low);
        above += (high - acc) * (high - acc);
        for (int y = Y_PERPLEXITY; y < N_Y; y++)
            logs[y] += log(quality_in(row, y)) / m;
        for (int k = 0; k < 2; k++)
            p->state[k] =
                fmax(p->state[k], number_in(row, k ? "state_bytes_alloc" : "state_bytes_model"));
    }
    p->low[Y_ACC] = p->y[Y_ACC] - sqrt(below) / m;
    p->high[Y_ACC] = p->y[Y_ACC] + sqrt(above) / m;
    for (int y = Y_PERPLEXITY; y < N_Y; y++) {
        p->y[y] = exp(logs[y]);
        p->low[y] = p->high[y] = (double)NAN;
    }
}

/* ---- groups ------------------------------------------------------------------------------- */

static bool equal_texts(const char *a, const char *b) {
    return a == b || (a && b && !strcmp(a, b));
}

static const char *task_of(const result *r) {
    const char *task = text_in(r->row, "task");
    return task ? task : "perplexity";
}

/* "copy,passkey" names both. */
static bool names_task(const char *list, const char *task) {
    size_t n = strlen(task);
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && !strncmp(at, task, n)) return true;
    return false;
}

static bool is_chosen(const result *r, const pareto_options *o, bool several) {
    const char *preset = text_in(r->row, "preset");
    bool task =
        !o->task || (several ? names_task(o->task, task_of(r)) : !strcmp(o->task, task_of(r)));
    return task && (!o->preset || !strcmp(o->preset, preset ? preset : "none"));
}

static bool same_result(const json_t *a, const json_t *b) {
    static const char *const keys[] = {"acc",
                                       "hits",
                                       "n",
                                       "ppl",
                                       "ppl_recall",
                                       "perplexity",
                                       "state_bytes_model",
                                       "state_bytes_alloc"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double x = number_in(a, keys[i]), y = number_in(b, keys[i]);
        if (x != y && !(isnan(x) && isnan(y))) return false;
    }
    return true;
}

/* A segment that is there twice counts once. */
static bool drop_repeated(measured *p, const sources *s, task_group *g, bool force) {
    size_t n = 0;
    for (size_t i = 0; i < p->n_segments; i++) {
        if (n && !compare_segments(&p->segments[n - 1], &p->segments[i])) {
            char one[512], two[512];
            where(p->segments[n - 1], one, sizeof one);
            where(p->segments[i], two, sizeof two);
            bool same = same_result(p->segments[n - 1]->row, p->segments[i]->row);
            if (!same && !force) {
                complain("%s and %s: two results of %s for the same test; keep one, or --force to "
                         "take the later",
                         one, two, s->models[p->model].name);
                return false;
            }
            if (!same)
                let_pass(g, "two results of %s for one test, the later counts",
                         s->models[p->model].name);
            n--;
        }
        p->segments[n++] = p->segments[i];
    }
    p->n_segments = n;
    return true;
}

static bool add_segment(const sources *s, task_group *g, const result *r) {
    measured *p = NULL;
    for (size_t i = 0; i < g->n && !p; i++) {
        bool same = g->at[i].model == r->model;
        for (size_t k = 0; k < N_SETTINGS && same; k++)
            same = same_setting(s, g->at[i].segments[0], r, settings[k].key, false);
        if (same) p = &g->at[i];
    }
    if (!p) {
        measured *grown = realloc(g->at, (g->n + 1) * sizeof *grown);
        if (grown) {
            g->at = grown;
            p = &grown[g->n++];
            *p = (measured){.model = r->model};
        }
    }
    const result **more = p ? realloc(p->segments, (p->n_segments + 1) * sizeof *more) : NULL;
    if (!more) {
        complain("out of memory");
        return false;
    }
    p->segments = more;
    p->segments[p->n_segments++] = r;
    return true;
}

/* The model's name; where it has several points, what sets this one apart. */
static bool name_point(const sources *s, const task_group *g, measured *p) {
    page name = {0}, mine = {0};
    page_add(&name, "%s", s->models[p->model].name);
    for (size_t k = 0; k < N_SETTINGS; k++) {
        bool differs = false;
        for (size_t i = 0; i < g->n; i++)
            differs = differs || (g->at[i].model == p->model &&
                                  !same_setting(s, g->at[i].segments[0], p->segments[0],
                                                settings[k].key, false));
        setting_of(s, p->segments[0], settings[k].key, &mine);
        if (differs) page_add(&name, ", %s %s", settings[k].words, page_text(&mine));
    }
    page_free(&mine);
    p->name = name.text.at;
    return !name.failed;
}

static bool other_number(const json_t *a, const json_t *b, const char *key) {
    double x = number_in(a, key), y = number_in(b, key);
    return x != y && !isnan(x) && !isnan(y);
}

/* Every point answers the same questions under the same settings. */
static bool check_group(const sources *s, task_group *g, bool force) {
    page value = {0};
    bool good = true;
    for (size_t k = 0; k < N_SETTINGS; k++) {
        const result *known = NULL; /* the first that tells */
        for (size_t i = 0; good && i < g->n; i++) {
            const result *r = g->at[i].segments[0];
            setting_of(s, r, settings[k].key, &value);
            if (!known && value.text.n) known = r;
            if (known && !same_setting(s, known, r, settings[k].key, true))
                good = mixed(s, g, force, settings[k].key, settings[k].words, known, r);
        }
    }
    page_free(&value);
    if (!good) return false;
    for (size_t i = 1; i < g->n; i++) {
        const measured *a = &g->at[0], *b = &g->at[i];
        size_t n = a->n_segments < b->n_segments ? a->n_segments : b->n_segments, k = 0, q = 0,
               h = 0;
        while (k < n && !compare_segments(&a->segments[k], &b->segments[k]))
            k++;
        while (q < k && !other_number(a->segments[q]->row, b->segments[q]->row, "n"))
            q++;
        while (h < k && same_setting(s, a->segments[h], b->segments[h], "data_hash", true))
            h++;
        const char *what = a->n_segments != b->n_segments      ? "another number of tests"
                           : k < n                             ? "other tests"
                           : q < k                             ? "another number of questions (n)"
                           : h < k && !strcmp(g->task, "mqar") ? "other items (data_hash)"
                                                               : NULL;
        /* A hash of ids: of a text, another tokenizer makes another one. */
        if (!what && h < k) g->other_ids = true;
        if (!what) continue;
        if (!force) {
            complain("task %s: %s has %s than %s: one chart compares the same tests; run what is "
                     "missing, or --force and the caption says so",
                     g->task, b->name, what, a->name);
            return false;
        }
        let_pass(g, "%s has %s than %s", b->name, what, a->name);
    }
    return true;
}

static bool finish_group(const sources *s, task_group *g, bool force) {
    for (size_t i = 0; i < g->n; i++) {
        measured *p = &g->at[i];
        qsort(p->segments, p->n_segments, sizeof *p->segments, compare_segments);
        if (!drop_repeated(p, s, g, force) || !name_point(s, g, p)) return false;
        average(p);
    }
    if (!check_group(s, g, force)) return false;
    describe_segments(g);
    return !g->segments_text.failed && !g->forced.failed;
}

static bool add_group(task_groups *g, const result *r, const char *several, task_group **out) {
    task_group *grown = realloc(g->at, (g->n + 1) * sizeof *grown);
    if (!grown) {
        complain("out of memory");
        return false;
    }
    g->at = grown;
    *out = &grown[g->n++];
    **out = (task_group){
        .task = several ? several : task_of(r), .preset = text_in(r->row, "preset"), .n_tasks = 1};
    for (const char *at = several; at && (at = strchr(at, ',')); at++)
        (*out)->n_tasks++;
    return true;
}

static void list_choices(const sources *s, const pareto_options *o, bool presets, page *out) {
    json_t *seen = json_object();
    for (size_t i = 0; i < s->recall.n; i++) {
        const result *r = &s->recall.at[i];
        const char *preset = text_in(r->row, "preset");
        const char *name = presets ? (preset ? preset : "none") : task_of(r);
        if (presets && o->task && strcmp(o->task, task_of(r))) continue;
        if (json_object_get(seen, name)) continue;
        page_add(out, "%s%s", out->text.n ? ", " : "", name);
        json_object_set_new(seen, name, json_true());
    }
    json_decref(seen);
}

static bool has_task(const sources *s, const char *list) {
    for (size_t i = 0; i < s->recall.n && list; i++)
        if (!strcmp(list, task_of(&s->recall.at[i]))) return true;
    return !list;
}

/* Every task that is named has rows. */
static bool check_tasks(const sources *s, const pareto_options *o) {
    page name = {0}, choices = {0};
    bool good = true;
    for (const char *at = has_task(s, o->task) ? "" : o->task; *at && good; at += *at == ',') {
        size_t n = strcspn(at, ",");
        page_clear(&name);
        page_add(&name, "%.*s", (int)n, at);
        at += n;
        good = has_task(s, page_text(&name));
    }
    if (!good) {
        list_choices(s, &(pareto_options){0}, false, &choices);
        complain("nothing to join: no row of task %s; there are %s", page_text(&name),
                 page_text(&choices));
    }
    page_free(&name);
    page_free(&choices);
    return good;
}

bool groups_make(task_groups *g, sources *s, const pareto_options *o, bool by_preset) {
    page choices = {0};
    bool good = true;
    if (!s->recall.n) {
        complain("nothing to join: no row of recall among %zu rows of bench", s->bench.n);
        return false;
    }
    if (!check_tasks(s, o)) return false;
    /* A list, if it is not the name of one task: a file's name may have a comma. */
    const char *several = has_task(s, o->task) ? NULL : o->task;
    for (size_t i = 0; good && i < s->recall.n; i++) {
        const result *r = &s->recall.at[i];
        if (!is_chosen(r, o, several)) continue;
        task_group *to = NULL;
        for (size_t k = 0; k < g->n && !to; k++)
            if ((several || !strcmp(g->at[k].task, task_of(r))) &&
                (!by_preset || equal_texts(g->at[k].preset, text_in(r->row, "preset"))))
                to = &g->at[k];
        good = (to || add_group(g, r, several, &to)) && add_segment(s, to, r);
    }
    if (good && !g->n) {
        list_choices(s, o, true, &choices);
        complain("nothing to join: no row of preset %s; there are %s", o->preset,
                 page_text(&choices));
        good = false;
    }
    if (good && !by_preset && g->n > 1) {
        list_choices(s, o, false, &choices);
        complain("a chart shows one task: choose one of %s with --task", page_text(&choices));
        good = false;
    }
    for (size_t i = 0; good && i < g->n; i++)
        good = finish_group(s, &g->at[i], o->force);
    page_free(&choices);
    return good;
}

void groups_free(task_groups *g) {
    for (size_t i = 0; i < g->n; i++) {
        for (size_t k = 0; k < g->at[i].n; k++) {
            free(g->at[i].at[k].segments);
            free(g->at[i].at[k].name);
        }
        free(g->at[i].at);
        page_free(&g->at[i].segments_text);
        page_free(&g->at[i].forced);
        json_decref(g->at[i].varying);
    }
    free(g->at);
    *g = (task_groups){0};
}
