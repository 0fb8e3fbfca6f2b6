/* Needles in a haystack with RULER's templates (Hsieh et al. 2024, arXiv 2404.06654): its
 * niah_single_1, 2, 3 and niah_multikey_2, on words and a book of our own. */
#include <stdlib.h>
#include <string.h>

#include "recall.h"
#include "texts.h"

enum { N_KEYS = 64 * 64 };

static const char noise[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/* ---- words -------------------------------------------------------------------------------- */

/* The text that --task's haystack names. */
typedef struct {
    text_buffer text;
    size_t *start, *end, n; /* of each word in the text */
    bool *stops;            /* a sentence ends with it */
} words;

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* A sentence ends with . ! or ?, and what closes quotes and brackets behind it, but not with a
 * title or an initial. */
static bool ends_sentence(const char *word, size_t n) {
    static const char *const titles[] = {"Mr.", "Mrs.", "Dr.", "St.", "Messrs."};
    while (n && strchr("\"')]_", word[n - 1]))
        n--;
    if (!n || !strchr(".!?", word[n - 1]) || n == 2) return false;
    for (size_t i = 0; i < sizeof titles / sizeof *titles; i++)
        if (n == strlen(titles[i]) && !memcmp(word, titles[i], n)) return false;
    return true;
}

static bool add_word(words *w, size_t start, size_t end, size_t *cap) {
    if (w->n == *cap) {
        *cap = *cap ? 2 * *cap : 1024;
        size_t *starts = realloc(w->start, *cap * sizeof *starts);
        if (starts) w->start = starts;
        size_t *ends = realloc(w->end, *cap * sizeof *ends);
        if (ends) w->end = ends;
        bool *stops = realloc(w->stops, *cap * sizeof *stops);
        if (stops) w->stops = stops;
        if (!starts || !ends || !stops) return false;
    }
    w->start[w->n] = start;
    w->end[w->n] = end;
    w->stops[w->n++] = ends_sentence(w->text.at + start, end - start);
    return true;
}

static int words_read(words *w, const char *name) {
    size_t cap = 0;
    if (strcmp(name, "austen")
            ? !read_text(&w->text, name)
            : !text_append(&w->text, haystack_text, (size_t)(haystack_end - haystack_text)))
        return EXIT_FAILED;
    for (size_t i = 0; i < w->text.n;) {
        size_t start = i;
        while (i < w->text.n && !is_space(w->text.at[i]))
            i++;
        if (i > start && !add_word(w, start, i, &cap)) return failed("out of memory for %s", name);
        i += i < w->text.n;
    }
    return w->n ? EXIT_WORKED : failed("%s holds no words", name);
}

static void words_free(words *w) {
    free(w->text.at);
    free(w->start);
    free(w->end);
    free(w->stops);
    *w = (words){0};
}

/* ---- items -------------------------------------------------------------------------------- */

typedef struct {
    const char *kind; /* "number" or "uuid" */
    bool uuid;
} needle_kind;

static needle_kind kind_of(const recall_cell *cell) {
    bool uuid = cell->job->task == &task_niah3;
    return (needle_kind){uuid ? "uuid" : "number", uuid};
}

enum { VALUE_TEXT = 64 };

static void write_value(random_stream *r, bool uuid, char out[VALUE_TEXT]) {
    if (!uuid) {
        snprintf(out, VALUE_TEXT, "%d", 1000000 + (int)random_next(r, 9000000));
        return;
    }
    uint32_t parts[6]; /* version 4, variant 1 (RFC 9562) */
    for (int i = 0; i < 6; i++)
        parts[i] = (uint32_t)random_next(r, 1ull << (i == 0 || i == 5 ? 32 : 16));
    snprintf(out, VALUE_TEXT, "%08x-%04x-4%03x-%04x-%04x%08x", parts[0], parts[1],
             parts[2] & 0xfffu, 0x8000u | (parts[3] & 0x3fffu), parts[4], parts[5]);
}

static bool add_needle(text_buffer *t, needle_kind kind, uint32_t key, const char *value) {
    return text_printf(t, "One of the special magic %ss for %s-%s is: %s.", kind.kind,
                       recall_adjectives[key / 64], recall_nouns[key % 64], value);
}

/* What is around the haystack; the needle's value is the answer. */
static bool add_question(recall_item *item, needle_kind kind, uint32_t key, const char *value) {
    const char *adjective = recall_adjectives[key / 64], *noun = recall_nouns[key % 64];
    return text_printf(&item->question,
                       "\nWhat is the special magic %s for %s-%s mentioned in the provided text? "
                       "The special magic %s for %s-%s mentioned in the provided text is",
                       kind.kind, adjective, noun, kind.kind, adjective, noun) &&
           recall_answer(item, value, strlen(value));
}

static bool add_head(recall_item *item, needle_kind kind) {
    return text_printf(&item->context,
                       "A special magic %s is hidden within the following text. Make sure to "
                       "memorize it. I will quiz you about the %s afterwards.\n",
                       kind.kind, kind.kind);
}

/* The first `units` words, the needle behind `depth` per cent of their sentences. */
static bool add_book(recall_item *item, const words *w, size_t units, size_t depth,
                     needle_kind kind, uint32_t key, const char *value) {
    size_t sentences = 0, done = 0;
    for (size_t k = 0; k < units; k++)
        sentences += w->stops[k % w->n] || k + 1 == units;
    size_t before = sentences * depth / 100;
    bool good = true, start = true; /* of a sentence */
    for (size_t k = 0; good && k <= units; k++) {
        if (start && done == before) {
            good = (!k || text_append(&item->context, " ", 1)) &&
                   add_needle(&item->context, kind, key, value);
            done++; /* once */
            if (good && k < units) good = text_append(&item->context, " ", 1);
        } else if (k && k < units) {
            good = text_append(&item->context, " ", 1);
        }
        if (!good || k == units) break;
        size_t word = k % w->n;
        good =
            text_append(&item->context, w->text.at + w->start[word], w->end[word] - w->start[word]);
        start = w->stops[word] || k + 1 == units;
        done += start;
    }
    return good;
}

/* `units` lines of noise, or of other needles, the needle before line `at`. */
static bool add_lines(recall_item *item, random_stream *r, size_t units, size_t at,
                      needle_kind kind, const uint32_t *keys, const char *value, bool needles) {
    bool good = true;
    for (size_t k = 0; good && k <= units; k++) {
        const char *newline = k ? "\n" : "";
        if (k == at) {
            good = text_printf(&item->context, "%s", newline) &&
                   add_needle(&item->context, kind, keys[0], value);
            newline = "\n";
        }
        if (!good || k == units) break;
        if (needles) {
            char other[VALUE_TEXT];
            write_value(r, kind.uuid, other);
            good = text_printf(&item->context, "%s", newline) &&
                   add_needle(&item->context, kind, keys[1 + k], other);
        } else {
            good = text_printf(&item->context, "%s%s", newline, noise);
        }
    }
    return good;
}

static int make_niah(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    const recall_task *task = cell->job->task;
    needle_kind kind = kind_of(cell);
    random_stream r = recall_random(cell, i);
    uint32_t *keys = malloc(N_KEYS * sizeof *keys);
    char value[VALUE_TEXT];
    bool good = keys && recall_draw(&r, N_KEYS, N_KEYS, keys) && add_head(item, kind);
    write_value(&r, kind.uuid, value);
    if (good && cell->job->data) {
        size_t depth = (size_t)random_next(&r, 40); /* round(linspace(0, 100, 40)) */
        depth = cell->depth >= 0 ? (size_t)cell->depth : (200 * depth + 39) / 78;
        good = add_book(item, cell->job->data, units, depth, kind, keys[0], value);
    } else if (good) {
        size_t at = (size_t)random_next(&r, units);
        if (cell->depth >= 0) at = units * (size_t)cell->depth / 100;
        good = add_lines(item, &r, units, at, kind, keys, value, task == &task_mk2);
    }
    good = good && add_question(item, kind, keys[0], value);
    free(keys);
    return good ? EXIT_WORKED : failed("out of memory for a prompt");
}

static size_t most_needles(const recall_cell *cell, size_t i) {
    (void)cell, (void)i;
    return N_KEYS - 1;
}

static int open_lines(recall_job *job) {
    job->n_items = SIZE_MAX;
    return EXIT_WORKED;
}

static int open_book(recall_job *job) {
    job->n_items = SIZE_MAX;
    job->data = calloc(1, sizeof(words));
    if (!job->data) return failed("out of memory");
    return words_read(job->data, job->params.haystack);
}

static void close_book(recall_job *job) {
    if (job->data) words_free(job->data);
    free(job->data);
}

/* RULER's 128 new tokens, greedy, nothing that ends them. */
#define NIAH(NAME)                                                                                 \
    .name = NAME, .n = 100, .sized = true, .deep = true, .doubled = true, .max_new = 128,          \
    .rule = RECALL_CONTAINS, .make = make_niah

const recall_task task_niah1 = {
    NIAH("niah1"),
    .help = "a 7-digit number in five repeated sentences; n=100",
    .keys = "n",
    .open = open_lines,
};
const recall_task task_niah2 = {
    NIAH("niah2"),
    .help = "the same in a book: n=100,haystack=austen (the one inside linnet) or a text file",
    .keys = "n haystack",
    .open = open_book,
    .close = close_book,
};
const recall_task task_niah3 = {
    NIAH("niah3"),        .help = "a UUID in a book; as niah2",
    .keys = "n haystack", .open = open_book,
    .close = close_book,
};
const recall_task task_mk2 = {
    NIAH("mk2"),
    .help = "one of many numbers, each with its own key; n=100",
    .keys = "n",
    .open = open_lines,
    .most_units = most_needles,
};
