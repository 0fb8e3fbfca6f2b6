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
