/* A number in repeated sentences (llama.cpp's examples/passkey, after Mohtashami and Jaggi 2023).
 */
#include "recall.h"

static int open_passkey(recall_job *job) {
    job->n_items = SIZE_MAX;
    return EXIT_WORKED;
}

static int make_passkey(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    random_stream r = recall_random(cell, i);
    int key = 1 + (int)random_next(&r, 50000);
    size_t at = (size_t)random_next(&r, units);
    if (cell->depth >= 0) at = units * (size_t)cell->depth / 100;
    bool good = text_printf(&item->context,
                            "There is an important info hidden inside a lot of irrelevant text. "
                            "Find it and memorize them. I will quiz you about the important "
                            "information there.");
    for (size_t k = 0; good && k <= units; k++) {
        if (k == at)
            good = text_printf(&item->context,
                               " The pass key is %d. Remember it. %d is the pass key.", key, key);
        if (good && k < units)
            good = text_printf(&item->context,
                               " The grass is green. The sky is blue. The sun is yellow. Here we "
                               "go. There and back again.");
    }
    char text[16];
    int n = snprintf(text, sizeof text, "%d", key);
    good = good && text_printf(&item->question, " What is the pass key? The pass key is") &&
           recall_answer(item, text, (size_t)n);
    return good ? EXIT_WORKED : failed("out of memory for a prompt");
}

const recall_task task_passkey = {
    .name = "passkey",
    .help = "a number from 1 to 50000 in repeated sentences; n=100",
    .keys = "n",
    .n = 100,
    .sized = true,
    .deep = true,
    .doubled = true,
    .max_new = 16,
    .rule = RECALL_CONTAINS,
    .open = open_passkey,
    .make = make_passkey,
};
