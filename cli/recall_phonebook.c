/* A phone book, two of its entries again, and a name (Jelassi et al. 2024, arXiv 2402.01032). */
#include <stdlib.h>
#include <string.h>

#include "recall.h"

enum { N_NAMES = 64 * 64 };

static int open_phonebook(recall_job *job) {
    if (job->params.N && (job->params.N < 3 || job->params.N > N_NAMES))
        return misused("recall", "phonebook expects N from 3 to %d, found %d", N_NAMES,
                       job->params.N);
    job->n_items = SIZE_MAX;
    return EXIT_WORKED;
}

static size_t most_entries(const recall_cell *cell, size_t i) {
    (void)cell, (void)i;
    return N_NAMES - 2;
}

static bool add_name(text_buffer *t, const char *before, uint32_t name) {
    return text_printf(t, "%s%s %s:", before, recall_first_names[name / 64],
                       recall_last_names[name % 64]);
}

/* units + 2 entries: a book of three is the smallest one with two examples and a question. */
static int make_phonebook(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    size_t n = units + 2, asked[3];
    random_stream r = recall_random(cell, i);
    uint32_t *names = malloc(n * sizeof *names);
    uint64_t *numbers = malloc(n * sizeof *numbers);
    /* The names first: a longer book begins as the shorter one does. */
    bool good = names && numbers && recall_draw(&r, n, N_NAMES, names);
    asked[0] = (size_t)random_below(&r, 1 << 20, n);
    if (cell->depth >= 0) asked[0] = (n - 1) * (size_t)cell->depth / 100;
    asked[1] = (asked[0] + 1 + (size_t)random_below(&r, (1 << 20) + 1, n - 1)) % n;
    do /* two others, different */
        asked[2] = (size_t)random_below(&r, (1 << 21) + r.i++, n);
    while (asked[2] == asked[0] || asked[2] == asked[1]);
    for (size_t k = 0; good && k < n; k++) {
        numbers[k] = 6000000000u + random_below(&r, (1 << 22) + k, 4000000000u);
        good = add_name(&item->context, k ? "\n" : "", names[k]) &&
               text_printf(&item->context, " %llu", (unsigned long long)numbers[k]);
    }
    for (size_t k = 2; good && k >= 1; k--)
        good = add_name(&item->question, k == 2 ? "\n\n" : "\n", names[asked[k]]) &&
               text_printf(&item->question, " %llu", (unsigned long long)numbers[asked[k]]);
    char text[16];
    if (good) snprintf(text, sizeof text, "%llu", (unsigned long long)numbers[asked[0]]);
    good = good && add_name(&item->question, "\n\n", names[asked[0]]) &&
           recall_answer(item, text, strlen(text));
    free(names);
    free(numbers);
    return good ? EXIT_WORKED : failed("out of memory for a phone book");
}

const recall_task task_phonebook = {
    .name = "phonebook",
    .help = "names and numbers, two examples, a name; n=100 and, instead of --len, N entries",
    .keys = "N n",
    .n = 100,
    .sized = true,
    .deep = true,
    .doubled = true,
    .max_new = 50,
    .stop = "\n",
    .rule = RECALL_FIRST_LINE,
    .open = open_phonebook,
    .make = make_phonebook,
    .most_units = most_entries,
};
