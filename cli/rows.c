#include "rows.h"

#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "talk.h"

static bool add(text_buffer *t, const char *text) {
    return text_append(t, text, strlen(text));
}

/* JSON on one line. */
static bool add_json(text_buffer *t, const json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(10));
    bool good = text && add(t, text);
    free(text);
    return good;
}

/* RFC 4180: every value in quotes, quotes doubled. Arrays are their JSON, null is empty. */
static bool add_csv_value(text_buffer *t, const json_t *value) {
    text_buffer raw = {0};
    bool good = json_is_null(value)     ? add(&raw, "")
                : json_is_string(value) ? add(&raw, json_string_value(value))
                                        : add_json(&raw, value);
    good = good && add(t, "\"");
    for (const char *p = raw.at; good && *p; p++)
        good = text_append(t, p, 1) && (*p != '"' || text_append(t, p, 1));
    free(raw.at);
    return good && add(t, "\"");
}

static bool add_csv(text_buffer *t, const json_t *row, bool keys) {
    const char *key;
    json_t *value;
    const char *comma = "";
    json_object_foreach((json_t *)row, key, value) {
        if (!add(t, comma) || !(keys ? add(t, key) : add_csv_value(t, value))) return false;
        comma = ",";
    }
    return add(t, "\n");
}

static bool add_md_head(const row_writer *w, text_buffer *t) {
    bool good = add(t, "|");
    for (size_t i = 0; good && i < w->n_columns; i++)
        good = add(t, " ") && add(t, w->columns[i].title) && add(t, " |");
    good = good && add(t, "\n|");
    for (size_t i = 0; good && i < w->n_columns; i++)
        good = add(t, w->columns[i].right ? "---:|" : "---|");
    return good && add(t, "\n");
}

static bool add_md(const row_writer *w, text_buffer *t, const json_t *row) {
    bool good = add(t, "|");
    for (size_t i = 0; good && i < w->n_columns; i++) {
        char text[512] = "";
        w->columns[i].text(row, text, sizeof text);
        good = add(t, " ");
        for (const char *p = text; good && *p; p++) /* a file name may hold anything */
            good = (*p != '|' || add(t, "\\")) && text_append(t, *p == '\n' ? " " : p, 1);
        good = good && add(t, " |");
    }
    return good && add(t, "\n");
}

bool rows_add(row_writer *w, const json_t *row) {
    text_buffer t = {0};
    bool first = !w->n, good;
    if (!strcmp(w->format, "md"))
        good = (!first || add_md_head(w, &t)) && add_md(w, &t, row);
    else if (!strcmp(w->format, "csv"))
        good = (!first || add_csv(&t, row, true)) && add_csv(&t, row, false);
    else if (!strcmp(w->format, "json"))
        good = add(&t, first ? "[\n  " : ",\n  ") && add_json(&t, row);
    else
        good = add_json(&t, row) && add(&t, "\n");
    good = good && w->write(w->user, t.at, t.n);
    if (good) w->n++;
    free(t.at);
    return good;
}

bool rows_end(row_writer *w) {
    if (strcmp(w->format, "json") || !w->n) return true;
    return w->write(w->user, "\n]\n", 3);
}

/* ---- columns ------------------------------------------------------------------------------ */

double row_number(const json_t *row, const char *key) {
    return json_number_value(json_object_get(row, key));
}

const char *row_text(const json_t *row, const char *key) {
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "-";
}

void row_bytes(const json_t *row, const char *key, char *out, size_t size) {
    human_bytes(out, size, (uint64_t)row_number(row, key));
}

void show_model(const json_t *row, char *out, size_t size) {
    const char *path = row_text(row, "model_filename"), *slash = strrchr(path, '/');
    snprintf(out, size, "%s", slash ? slash + 1 : path);
    size_t n = strlen(out);
    if (n > 5 && !strcmp(out + n - 5, ".gguf")) out[n - 5] = '\0';
}

void show_params(const json_t *row, char *out, size_t size) {
    double n = row_number(row, "model_n_params");
    snprintf(out, size, "%.1f %s", n < 1e6 ? n / 1e3 : n / 1e6, n < 1e6 ? "k" : "M");
}

void show_size(const json_t *row, char *out, size_t size) {
    row_bytes(row, "model_size", out, size);
}

/* "llama softmax", "qwen35 18 gated_delta_net + 6 softmax" */
void show_mixers(const json_t *row, char *out, size_t size) {
    const json_t *mixers = json_object_get(row, "mixers");
    size_t n = json_array_size(mixers), i;
    size_t at = (size_t)snprintf(out, size, "%s", row_text(row, "architecture"));
    json_t *value;
    json_array_foreach(mixers, i, value) {
        size_t same = 0, before = 0;
        for (size_t k = 0; k < n; k++) {
            bool equal = json_equal(value, json_array_get(mixers, k));
            same += equal;
            before += equal && k < i;
        }
        if (before || at >= size) continue;
        char count[24] = "";
        if (same < n) snprintf(count, sizeof count, "%zu ", same);
        at += (size_t)snprintf(out + at, size - at, "%s %s%s", i ? " +" : "", count,
                               json_string_value(value));
    }
}

void show_state(const json_t *row, char *out, size_t size) {
    row_bytes(row, "state_bytes_alloc", out, size);
}

/* ---- where rows go ------------------------------------------------------------------------ */

bool write_stdout(void *user, const char *bytes, size_t n) {
    (void)user;
    return put_now(bytes, n);
}

bool write_stderr(void *user, const char *bytes, size_t n) {
    (void)user;
    fwrite(bytes, 1, n, stderr);
    return true;
}

bool write_output(void *user, const char *bytes, size_t n) {
    return output_write(user, bytes, n);
}
