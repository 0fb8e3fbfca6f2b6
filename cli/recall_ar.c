/* Perplexity in two slices (Arora et al. 2023, arXiv 2312.04927): ids that complete a pair of ids
 * which the window has shown before, and all others. */
#include <stdlib.h>
#include <string.h>

#include "recall.h"

typedef struct {
    text_buffer text;
    const linnet_model *model; /* whose ids these are */
    id_buffer ids;
} slices;

static int open_ar(recall_job *job) {
    slices *s = job->data = calloc(1, sizeof *s);
    if (!s) return failed("out of memory");
    if (!read_text(&s->text, job->file)) return EXIT_FAILED;
    job->n_items = SIZE_MAX; /* known with the tokenizer */
    return EXIT_WORKED;
}

static void close_ar(recall_job *job) {
    slices *s = job->data;
    if (!s) return;
    free(s->text.at);
    free(s->ids.at);
    free(s);
}

static int check_ar(recall_cell *cell) {
    recall_job *job = cell->job;
    slices *s = job->data;
    if (job->max_ctx || cell->len > 512) cell->len = job->max_ctx ? job->max_ctx : 512;
    if (s->model != cell->model) {
        s->model = cell->model;
        s->ids.n = 0;
        int code = text_to_ids(cell->model, s->text.at, s->text.n, 0, &s->ids);
        if (code) return code;
    }
    /* Whole windows, and one more if the rest has a pair to repeat. */
    size_t window = (size_t)cell->len;
    job->n_items = s->ids.n / window + (s->ids.n % window >= 4);
    if (!job->n_items)
        return failed("%s has %zu tokens: expected at least 4 to find a repeated pair", job->file,
                      s->ids.n);
    return EXIT_WORKED;
}

static int ascending(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* repeated[k]: ids k and k + 1 stand next to each other earlier in the window, too. */
static bool find_repeated(const int32_t *ids, size_t n, bool *repeated) {
    typedef struct {
        uint64_t pair, at;
    } place;
    place *places = malloc(n * sizeof *places);
    for (size_t k = 0; places && k + 1 < n; k++)
        places[k] = (place){(uint64_t)(uint32_t)ids[k] << 32 | (uint32_t)ids[k + 1], k};
    if (places) qsort(places, n - 1, sizeof *places, ascending); /* by pair: it comes first */
    for (size_t k = 0; places && k + 1 < n; k++)
        repeated[k] = false;
    for (size_t k = 0, end; places && k + 1 < n; k = end) {
        size_t first = k;
        for (end = k + 1; end + 1 < n && places[end].pair == places[k].pair; end++)
            if (places[end].at < places[first].at) first = end;
        for (size_t i = k; i < end; i++)
            repeated[places[i].at] = i != first;
    }
    bool good = places;
    free(places);
    return good;
}

static int make_ar(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    (void)units;
    const slices *s = cell->job->data;
    size_t window = (size_t)cell->len, start = i * window;
    size_t n = s->ids.n - start < window ? s->ids.n - start : window;
    bool *repeated = calloc(n, sizeof *repeated);
    bool good = repeated && ids_append(&item->ids, s->ids.at + start, n) &&
                find_repeated(item->ids.at, n, repeated);
    for (size_t k = 0; good && k < n; k++) {
        int32_t none = RECALL_IGNORED, next = k + 1 < n ? item->ids.at[k + 1] : none;
        good = ids_append(&item->labels, repeated[k] && k + 1 < n ? &next : &none, 1) &&
               ids_append(&item->others, repeated[k] ? &none : &next, 1);
    }
    free(repeated);
    return good ? EXIT_WORKED : failed("out of memory for a window of %zu ids", n);
}

const recall_task task_ar = {
    .name = "ar",
    .help = "a text in windows of --max-ctx ids (512): the ids that complete a pair seen before in "
            "the window are judged, and their perplexity stands beside that of all others",
    .keys = "",
    .takes_file = true,
    .ids = true,
    .likely = true,
    .open = open_ar,
    .close = close_ar,
    .check = check_ar,
    .make = make_ar,
};
