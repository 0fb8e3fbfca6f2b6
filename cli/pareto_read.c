/* Rows of bench and recall from files, and the models that they are of. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pareto.h"
#include "talk.h"

/* ---- text --------------------------------------------------------------------------------- */

void page_xml(page *p, const char *text) {
    for (const char *c = text; *c && !p->failed; c++) {
        const char *instead = *c == '&'   ? "&amp;"
                              : *c == '<' ? "&lt;"
                              : *c == '>' ? "&gt;"
                              : *c == '"' ? "&quot;"
                                          : NULL;
        unsigned char byte = (unsigned char)*c;
        size_t n = 1;
        if ((byte < 0x20 && byte != '\t' && byte != '\n') || byte == 0x7f) instead = "\xef\xbf\xbd";
        if (!strncmp(c, "\xef\xbf\xbe", 3) || !strncmp(c, "\xef\xbf\xbf", 3)) {
            instead = "\xef\xbf\xbd";
            n = 3;
        }
        p->failed = !(instead ? text_append(&p->text, instead, strlen(instead))
                              : text_append(&p->text, c, n));
        c += n - 1;
    }
}

const char *page_text(const page *p) {
    return p->text.at ? p->text.at : "";
}

void page_clear(page *p) {
    p->text.n = 0;
    if (p->text.at) p->text.at[0] = '\0';
}

void page_free(page *p) {
    free(p->text.at);
    *p = (page){0};
}

/* ---- rows --------------------------------------------------------------------------------- */

double number_in(const json_t *row, const char *key) {
    const json_t *value = json_object_get(row, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

const char *text_in(const json_t *row, const char *key) {
    return json_string_value(json_object_get(row, key));
}

double quality_in(const json_t *row, int y) {
    double all = number_in(row, "ppl");
    return y == Y_ACC        ? number_in(row, "acc")
           : y == Y_RECALLED ? number_in(row, "ppl_recall")
           : isnan(all)      ? number_in(row, "perplexity")
                             : all;
}

const char *where(const result *r, char *out, size_t size) {
    snprintf(out, size, "%s, %s %zu", r->file, r->is_lines ? "line" : "row", r->at);
    return out;
}

static bool bad_row(const result *r, const char *what) {
    char at[512];
    complain("%s: %s", where(r, at, sizeof at), what);
    return false;
}

/* Numbers that the join computes with are what they must be. */
static bool check_recall(const result *r) {
    double acc = number_in(r->row, "acc"), n = number_in(r->row, "n"),
           hits = number_in(r->row, "hits");
    double low = number_in(r->row, "acc_low"), high = number_in(r->row, "acc_high");
    if (acc < 0 || acc > 1) return bad_row(r, "acc is a fraction from 0 to 1");
    if (low > acc + 1e-6 || high < acc - 1e-6 || low < -1e-6 || high > 1 + 1e-6)
        return bad_row(r, "acc_low and acc_high must lie from 0 to 1 and enclose acc");
    if (n < 0 || hits < 0 || hits > n) return bad_row(r, "expected 0 <= hits <= n");
    if (quality_in(r->row, Y_PERPLEXITY) <= 0 || quality_in(r->row, Y_RECALLED) <= 0)
        return bad_row(r, "perplexity must be above 0");
    return true;
}

static bool check_bench(const result *r) {
    static const char *const sizes[] = {"n_prompt", "n_gen", "n_depth", "n_seqs", "n_threads"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        double v = number_in(r->row, sizes[i]);
        if (v < 0 || v > 1e9)
            return bad_row(r, "expected n_prompt, n_gen, n_depth, n_seqs and n_threads from 0 to "
                              "1000000000");
    }
    return true;
}

static bool add_result(result_list *list, const result *r) {
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 64;
        result *grown = realloc(list->at, cap * sizeof *grown);
        if (!grown) {
            complain("out of memory");
            return false;
        }
        list->at = grown;
        list->cap = cap;
    }
    list->at[list->n++] = *r;
    return true;
}

/* A task that reads a file is another task with another file: "jsonl:swde.jsonl", as --task says.
 */
static bool name_task(json_t *row) {
    const char *task = text_in(row, "task"), *params = text_in(row, "params");
    if (!task || !params || strncmp(params, "file=", 5) || strchr(task, ':')) return true;
    page name = {0};
    page_add(&name, "%s:%s", task, params + 5);
    bool good = !name.failed && !json_object_set_new(row, "task", json_string(name.text.at));
    page_free(&name);
    return good;
}

/* Takes the row into its list. */
static bool take_row(sources *s, const char *file, size_t at, bool is_lines, json_t *row) {
    result r = {.row = row, .file = file, .at = at, .is_lines = is_lines};
    if (!json_is_object(row)) return bad_row(&r, "expected a JSON object");
    bool recall = text_in(row, "task") || !isnan(quality_in(row, Y_PERPLEXITY)) ||
                  !isnan(quality_in(row, Y_RECALLED));
    bool bench = json_is_number(json_object_get(row, "n_gen")) &&
                 json_is_number(json_object_get(row, "n_prompt"));
    if (!recall && !bench)
        return bad_row(&r,
                       "neither a row of bench (no n_prompt and n_gen) nor of recall (no task)");
    if (!text_in(row, "model_filename")) return bad_row(&r, "model_filename is missing");
    if (recall) return check_recall(&r) && name_task(row) && add_result(&s->recall, &r);
    return check_bench(&r) && add_result(&s->bench, &r);
}

static bool read_lines(sources *s, line_reader *from, json_t *kept) {
    json_t *row;
    int got;
    bool good = true;
    while (good && (got = lines_next_json(from, &row)) == 1)
        good =
            !json_array_append_new(kept, row) && take_row(s, from->path, from->number, true, row);
    return good && got == 0;
}

static bool read_array(sources *s, line_reader *from, json_t *kept) {
    text_buffer text = {0};
    json_error_t error;
    if (!lines_rest(from, &text)) {
        free(text.at);
        return false;
    }
    json_t *array = json_loadb(text.at, text.n, 0, &error);
    free(text.at);
    if (!array) {
        complain("%s, line %zu: not JSON: %s", from->path, from->number + (size_t)error.line,
                 error.text);
        return false;
    }
    bool good = !json_array_append_new(kept, array);
    for (size_t i = 0; good && i < json_array_size(array); i++)
        good = take_row(s, from->path, i + 1, false, json_array_get(array, i));
    return good;
}

/* Opened once: a pipe cannot be read again, so what it holds shows in its first byte. */
static bool read_rows(sources *s, const char *path, json_t *kept) {
    line_reader from;
    if (!lines_open(&from, path)) return false;
    size_t before = s->recall.n + s->bench.n;
    bool good = (lines_peek(&from) == '[' ? read_array : read_lines)(s, &from, kept);
    if (good && s->recall.n + s->bench.n == before) {
        complain("%s holds no rows", from.path);
        good = false;
    }
    lines_close(&from);
    return good;
}

/* ---- models ------------------------------------------------------------------------------- */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool differ(double a, double b) {
    return a > 0 && b > 0 && a != b;
}

/* What makes the row's model another one than `m`, or NULL. */
static const char *other_model(const model_entry *m, const json_t *row) {
    const char *hash = text_in(row, "model_hash"), *type = text_in(row, "model_type");
    const json_t *mixers = json_object_get(row, "mixers");
    if (hash && m->hash) return strcmp(hash, m->hash) ? "model_hash" : NULL;
    if (differ(m->n_params, number_in(row, "model_n_params"))) return "model_n_params";
    if (differ(m->size, number_in(row, "model_size"))) return "model_size";
    if (type && m->type && strcmp(type, m->type)) return "model_type";
    if (json_is_array(mixers) && m->mixers && !json_equal(mixers, m->mixers)) return "mixers";
    return NULL;
}

static void learn(model_entry *m, const json_t *row) {
    double params = number_in(row, "model_n_params"), size = number_in(row, "model_size");
    const json_t *mixers = json_object_get(row, "mixers"),
                 *windows = json_object_get(row, "windows");
    if (!m->hash) m->hash = text_in(row, "model_hash");
    if (!m->type) m->type = text_in(row, "model_type");
    if (!m->mixers && json_is_array(mixers)) m->mixers = mixers;
    if (!m->windows && json_is_array(windows)) m->windows = windows;
    if (params > 0) m->n_params = params;
    if (size > 0) m->size = size;
}

/* The model of a row: the one of its hash, else the one of its file name if nothing contradicts. */
static bool find_model(sources *s, result *r, bool force) {
    const char *path = text_in(r->row, "model_filename"), *hash = text_in(r->row, "model_hash");
    const char *what = NULL;
    size_t found = s->n_models, namesake = s->n_models;
    for (size_t i = 0; i < s->n_models && hash && found == s->n_models; i++)
        if (s->models[i].hash && !strcmp(s->models[i].hash, hash)) found = i;
    for (size_t i = 0; i < s->n_models && found == s->n_models; i++) {
        if (strcmp(base_name(s->models[i].path), base_name(path))) continue;
        const char *other = other_model(&s->models[i], r->row);
        if (!other) found = i;
        if (other && namesake == s->n_models) {
            namesake = i;
            what = other;
        }
    }
    if (found == s->n_models && namesake < s->n_models) {
        char one[512], two[512];
        where(s->models[namesake].first, one, sizeof one);
        where(r, two, sizeof two);
        if (!force) {
            complain("%s and %s: two different models under the name %s (%s differs); rename one, "
                     "or --force to keep them apart",
                     one, two, base_name(path), what);
            return false;
        }
        page_add(&s->forced, "%stwo different models are called %s", s->forced.text.n ? "; " : "",
                 base_name(path));
    }
    if (found == s->n_models) {
        model_entry *grown = realloc(s->models, (s->n_models + 1) * sizeof *grown);
        if (!grown) {
            complain("out of memory");
            return false;
        }
        s->models = grown;
        grown[s->n_models++] = (model_entry){.path = path, .first = r};
    }
    learn(&s->models[found], r->row);
    r->model = found;
    return true;
}

/* The file's name without .gguf; models of one name are numbered. */
static bool name_models(sources *s) {
    for (size_t i = 0; i < s->n_models; i++) {
        const char *base = base_name(s->models[i].path);
        size_t n = strlen(base), same = 0;
        if (n > 5 && !strcmp(base + n - 5, ".gguf")) n -= 5;
        page name = {0};
        page_add(&name, "%.*s", (int)n, base);
        for (size_t k = 0; k < i; k++)
            same += !strcmp(base_name(s->models[k].path), base);
        if (same) page_add(&name, " #%zu", same + 1);
        if (name.failed) return false;
        s->models[i].name = name.text.at;
    }
    return true;
}

/* ---- families ----------------------------------------------------------------------------- */

static const struct {
    const char *mixer, *words;
} spellings[] = {
    {"delta_net", "DeltaNet"}, {"gated_delta_net", "Gated DeltaNet"},
    {"based_taylor", "BASED"}, {"hedgehog", "Hedgehog"},
    {"lolcats", "LoLCATs"},    {"sliding_window", "sliding window"},
    {"softmax", "softmax"},    {"short_conv", "short convolution"},
};
enum { N_SPELLINGS = sizeof spellings / sizeof *spellings };

/* Which of the spellings a model's mixers are, in that order; the first names its colour. */
static void count_mixers(const model_entry *m, bool found[N_SPELLINGS], const char **other) {
    size_t i;
    const json_t *value;
    json_array_foreach(m->mixers, i, value) {
        const char *mixer = json_string_value(value);
        if (!mixer) continue;
        if (!strcmp(mixer, "softmax") && json_number_value(json_array_get(m->windows, i)) > 0)
            mixer = "sliding_window";
        size_t k = 0;
        while (k < N_SPELLINGS && strcmp(mixer, spellings[k].mixer))
            k++;
        if (k < N_SPELLINGS)
            found[k] = true;
        else if (!*other)
            *other = mixer;
    }
}

/* "DeltaNet + sliding window"; short convolutions are told only where there is nothing else. */
static bool make_families(sources *s) {
    const char **mains = calloc(s->n_models + 1, sizeof *mains);
    s->families = calloc(s->n_models + 1, sizeof *s->families);
    s->slots = calloc(s->n_models + 1, sizeof *s->slots);
    bool good = mains && s->families && s->slots;
    if (!good) complain("out of memory");
    for (size_t i = 0; good && i < s->n_models; i++) {
        bool found[N_SPELLINGS] = {0};
        const char *other = NULL, *first = NULL;
        page name = {0};
        count_mixers(&s->models[i], found, &other);
        for (size_t k = 0; k < N_SPELLINGS; k++) {
            if (!found[k] || (first && !strcmp(spellings[k].mixer, "short_conv"))) continue;
            page_add(&name, "%s%s", first ? " + " : "", spellings[k].words);
            if (!first) first = spellings[k].mixer;
        }
        if (other) page_add(&name, "%s%s", first ? " + " : "", other);
        if (!name.text.n) page_add(&name, "unknown mixers");
        good = !name.failed;
        size_t f = 0;
        while (good && f < s->n_families && strcmp(s->families[f], name.text.at))
            f++;
        s->models[i].family = f;
        if (good && f == s->n_families) {
            mains[s->n_families] = first ? first : "";
            s->families[s->n_families++] = name.text.at;
        } else {
            page_free(&name);
        }
    }
    /* A family of one mixer has that mixer's colour; mixtures take theirs from what is left. */
    bool taken[N_SLOTS] = {0};
    for (int mixtures = 0; good && mixtures < 2; mixtures++)
        for (size_t f = 0; f < s->n_families; f++) {
            if ((strchr(s->families[f], '+') != NULL) != mixtures) continue;
            s->slots[f] = chart_slot(mains[f], taken);
            taken[s->slots[f]] = true;
        }
    free(mains);
    return good;
}

/* ---- all of it ---------------------------------------------------------------------------- */

bool sources_read(sources *s, const text_list *paths, bool force) {
    s->files = json_array();
    for (size_t i = 0; i < paths->n; i++) {
        json_t *kept = json_array();
        if (!s->files || !kept || json_array_append_new(s->files, kept)) {
            complain("out of memory");
            return false;
        }
        if (!read_rows(s, paths->at[i], kept)) return false;
    }
    for (size_t i = 0; i < s->recall.n; i++)
        if (!find_model(s, &s->recall.at[i], force)) return false;
    for (size_t i = 0; i < s->bench.n; i++)
        if (!find_model(s, &s->bench.at[i], force)) return false;
    return name_models(s) && make_families(s);
}

void sources_free(sources *s) {
    for (size_t i = 0; i < s->n_models; i++)
        free(s->models[i].name);
    for (size_t i = 0; i < s->n_families; i++)
        free(s->families[i]);
    free(s->models);
    free(s->families);
    free(s->slots);
    free(s->recall.at);
    free(s->bench.at);
    page_free(&s->forced);
    json_decref(s->files);
    *s = (sources){0};
}
