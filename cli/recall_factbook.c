/* Countries as lines "Key: value" in random order, and a key to be answered: the kind of task that
 * SWDE is, on public-domain text (data/README.md). */
#include <stdlib.h>
#include <string.h>

#include "recall.h"
#include "score.h"
#include "texts.h"

enum { PER_DOCUMENT = 4 }; /* questions on each document, which they share as a prefix */

typedef struct {
    json_t *countries; /* [{"id", "pairs": [[key, value], ...]}, ...] */
} factbook;

static int open_factbook(recall_job *job) {
    factbook *f = job->data = calloc(1, sizeof *f);
    if (f) f->countries = json_array();
    if (!f || !f->countries) return failed("out of memory");
    for (const char *line = factbook_text; line < factbook_end;) {
        const char *end = memchr(line, '\n', (size_t)(factbook_end - line));
        json_t *country = json_loadb(line, (size_t)(end - line), 0, NULL);
        if (!country || json_array_append_new(f->countries, country))
            return failed("out of memory for the factbook");
        line = end + 1;
    }
    job->n_items = SIZE_MAX;
    return EXIT_WORKED;
}

static void close_factbook(recall_job *job) {
    if (job->data) json_decref(((factbook *)job->data)->countries);
    free(job->data);
}

/* A document: a country's pairs in random order. */
typedef struct {
    json_t *pairs;
    uint32_t *order;
    size_t n;
    text_buffer text; /* of the first lines */
} document;

static const char *part(const document *d, size_t line, size_t which) {
    return json_string_value(json_array_get(json_array_get(d->pairs, d->order[line]), which));
}

static size_t characters(const char *text) {
    size_t n = 0;
    for (; *text; text++)
        n += (*text & 0xc0) != 0x80;
    return n;
}

static bool write_document(document *d, size_t n_lines) {
    d->text.n = 0;
    bool good = text_append(&d->text, "", 0);
    for (size_t i = 0; good && i < n_lines; i++)
        good = text_printf(&d->text, "\n%s: %s", part(d, i, 0), part(d, i, 1));
    return good;
}

/* The value has 3 to 40 characters and stands once in the document, and so does the key. */
static bool askable(const document *d, size_t line) {
    const char *key = part(d, line, 0), *value = part(d, line, 1);
    size_t n = characters(value);
    char start[256];
    int n_start = snprintf(start, sizeof start, "\n%s:", key);
    return n >= 3 && n <= 40 && n_start < (int)sizeof start &&
           count_folded(d->text.at, d->text.n, value, strlen(value), 2) == 1 &&
           count_folded(d->text.at, d->text.n, start, (size_t)n_start, 2) == 1;
}

/* The first line from `from` on that can be asked and is not taken; n_lines if there is none. */
static size_t next_line(const document *d, size_t n_lines, size_t from, const size_t *taken,
                        size_t n_taken) {
    for (size_t k = 0; k < n_lines; k++) {
        size_t line = (from + k) % n_lines, t = 0;
        while (t < n_taken && taken[t] != line)
            t++;
        if (t == n_taken && askable(d, line)) return line;
    }
    return n_lines;
}

/* The line of a document's question `which`: each starts to look a quarter of the lines behind the
 * one before it. Where nothing (more) can be asked, the last line gives way to one that can;
 * n_lines: the country has none. */
static size_t choose_line(document *d, size_t n_lines, size_t from, size_t which) {
    size_t taken[PER_DOCUMENT] = {0};
    for (size_t k = 0; k <= which; k++)
        taken[k] = next_line(d, n_lines, from + k * n_lines / PER_DOCUMENT, taken, k);
    if (taken[which] < n_lines) return taken[which];
    for (size_t other = n_lines; other < d->n; other++) {
        uint32_t kept = d->order[n_lines - 1];
        d->order[n_lines - 1] = d->order[other];
        if (!write_document(d, n_lines)) break;
        if (askable(d, n_lines - 1)) return n_lines - 1;
        d->order[n_lines - 1] = kept;
    }
    return n_lines;
}

/* The document of item i: countries in random order, each again with other lines after the last. */
static bool make_document(const recall_cell *cell, size_t i, document *d) {
    const factbook *f = cell->job->data;
    uint32_t countries[64];
    size_t n = json_array_size(f->countries), number = i / PER_DOCUMENT;
    random_stream all = recall_random(cell, SIZE_MAX), own = recall_random(cell, number);
    if (n > sizeof countries / sizeof *countries) n = sizeof countries / sizeof *countries;
    if (!recall_draw(&all, n, n, countries)) return false;
    d->pairs = json_object_get(json_array_get(f->countries, countries[number % n]), "pairs");
    d->n = json_array_size(d->pairs);
    d->order = malloc(d->n * sizeof *d->order);
    return d->order && recall_draw(&own, d->n, d->n, d->order);
}

static size_t most_lines(const recall_cell *cell, size_t i) {
    document d = {0};
    size_t n = make_document(cell, i, &d) ? d.n : 1;
    free(d.order);
    return n;
}

static int make_factbook(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    document d = {0};
    random_stream r = recall_random(cell, i / PER_DOCUMENT);
    size_t from = (size_t)random_below(&r, 1 << 20, units);
    bool good = make_document(cell, i, &d) && write_document(&d, units);
    size_t line = good ? choose_line(&d, units, from, i % PER_DOCUMENT) : units;
    if (good && line < units) {
        const char *key = part(&d, line, 0), *value = part(&d, line, 1);
        while (d.text.n && strchr(".\n ", d.text.at[d.text.n - 1]))
            d.text.n--;
        good = text_printf(&item->intro, "Information about %s. ", key) &&
               text_append(&item->context, d.text.at + 1, d.text.n - 1) &&
               text_append(&item->context, ".", 1) && text_printf(&item->question, " %s:", key) &&
               recall_answer(item, value, strlen(value));
    }
    free(d.order);
    free(d.text.at);
    if (good && line == units) return failed("a country of the factbook has nothing to ask");
    return good ? EXIT_WORKED : failed("out of memory for a document");
}

const recall_task task_factbook = {
    .name = "factbook",
    .help = "lines of a country's profile in random order, a key to be answered; n=100",
    .keys = "n",
    .n = 100,
    .sized = true,
    .doubled = true,
    .max_new = 48,
    .stop = "\n",
    .rule = RECALL_CONTAINS,
    .open = open_factbook,
    .close = close_factbook,
    .make = make_factbook,
    .most_units = most_lines,
};
