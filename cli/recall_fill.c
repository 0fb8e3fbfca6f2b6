/* Prompts of a given length, in the tokens of the model that reads them. */
#include <stdlib.h>
#include <string.h>

#include "recall.h"
#include "score.h"

bool recall_prompt(const recall_job *job, const recall_item *item, text_buffer *out) {
    const text_buffer *c = &item->context;
    bool good = text_append(out, "", 0);
    if (good && job->twice) good = text_append(out, item->intro.at, item->intro.n);
    if (good && job->twice && !item->once)
        good = text_append(out, c->at, c->n) && text_append(out, "\n", 1);
    return good && text_append(out, c->at, c->n) &&
           text_append(out, item->question.at, item->question.n);
}

int recall_detokenize(const linnet_model *model, const int32_t *ids, size_t n, text_buffer *out) {
    linnet_error err;
    size_t found = 0;
    char *text = NULL;
    for (size_t cap = n * 8 + 16;; cap = found) {
        free(text);
        if (!(text = malloc(cap + 1))) return failed("out of memory for a text");
        if (linnet_detokenize(model, ids, n, 0, text, cap, &found, &err)) {
            free(text);
            return failed_with(&err);
        }
        if (found <= cap) break;
    }
    bool good = text_append(out, text, found);
    free(text);
    return good ? EXIT_WORKED : EXIT_FAILED;
}

/* ---- one prompt --------------------------------------------------------------------------- */

static int make(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    text_buffer prompt = {0};
    recall_item_clear(item);
    int code = cell->job->task->make(cell, i, units, item);
    if (!code && !cell->job->task->ids) {
        code = recall_prompt(cell->job, item, &prompt)
                   ? text_to_ids(cell->model, prompt.at, prompt.n, LINNET_ADD_BOS, &item->ids)
                   : EXIT_FAILED;
        free(prompt.at);
    }
    return code;
}

static int answer_in(const recall_cell *cell, const recall_item *item, bool *found) {
    text_buffer text = {0};
    size_t k;
    json_t *answer;
    int code = recall_detokenize(cell->model, item->ids.at, item->ids.n, &text);
    *found = false;
    json_array_foreach(item->answers, k, answer) {
        const char *what = json_string_value(answer);
        if (!code && find_folded(text.at, text.n, what, json_string_length(answer))) *found = true;
    }
    free(text.at);
    return code;
}

/* Keeps the last `room` ids, and BOS. */
static int cut_left(const recall_cell *cell, recall_item *item, size_t room) {
    const linnet_model_info *info = linnet_model_get_info(cell->model);
    size_t bos = info->add_bos && info->bos >= 0 && item->ids.at[0] == info->bos;
    size_t kept = room - bos, drop = item->ids.n - room;
    memmove(item->ids.at + bos, item->ids.at + bos + drop, kept * sizeof *item->ids.at);
    item->ids.n = room;
    bool found;
    int code = answer_in(cell, item, &found);
    item->cut_off = !found;
    return code;
}

static int make_as_it_is(const recall_cell *cell, size_t i, size_t room, recall_item *item) {
    const recall_job *job = cell->job;
    size_t units = job->params.N > 2 ? (size_t)job->params.N - 2 : 1; /* of phonebook */
    int code = make(cell, i, units, item);
    if (code) return code;
    if (job->cut_left) return item->ids.n > room ? cut_left(cell, item, room) : EXIT_WORKED;
    if (item->ids.n + (size_t)job->task->max_new <= (size_t)cell->ctx) return EXIT_WORKED;
    return failed("%s: prompt %zu has %zu tokens, and its answer up to %d: more than the context "
                  "of %d",
                  job->task->name, i, item->ids.n, job->task->max_new, cell->ctx);
}

/* The largest number of units that fits, looked for from the last prompt's on. */
static int make_longest(recall_cell *cell, size_t i, size_t room, recall_item *item) {
    const recall_task *task = cell->job->task;
    size_t most = task->most_units ? task->most_units(cell, i) : (size_t)cell->len;
    size_t good = 0, bad = most + 1, step = 1, at = cell->units ? cell->units : room / 16 + 1;
    size_t made = 0, shortest = 0;
    if (at > most) at = most;
    while (bad - good > 1) { /* good fits, bad does not */
        int code = make(cell, i, at, item);
        if (code) return code;
        made = at;
        shortest = item->ids.n;
        *(item->ids.n <= room ? &good : &bad) = at;
        size_t up = good + step, down = bad > step ? bad - step : 1;
        bool open_above = bad == most + 1 && good, open_below = !good;
        step *= 2;
        at = open_above && up < bad      ? up
             : open_below && down > good ? down
                                         : good + (bad - good) / 2;
        if (interrupted()) return interrupt_code();
    }
    cell->units = good;
    if (!good)
        return failed("%s at --len %d: the shortest prompt has %zu tokens, and its answer up to %d",
                      task->name, cell->len, shortest, task->max_new);
    return made == good ? EXIT_WORKED : make(cell, i, good, item);
}

/* The ids of the first answer, as a text of its own they may be others. */
static int add_gold(const recall_cell *cell, recall_item *item) {
    const char *answer = json_string_value(json_array_get(item->answers, 0));
    text_buffer text = {0};
    id_buffer before = {0}, all = {0};
    int code = recall_prompt(cell->job, item, &text) ? EXIT_WORKED : EXIT_FAILED;
    if (!code) code = text_to_ids(cell->model, text.at, text.n, LINNET_ADD_BOS, &before);
    bool apart = text.n && strchr(" \t\n", text.at[text.n - 1]);
    if (!code && !apart && *answer != ' ' && !text_append(&text, " ", 1)) code = EXIT_FAILED;
    if (!code && !text_append(&text, answer, strlen(answer))) code = EXIT_FAILED;
    if (!code) code = text_to_ids(cell->model, text.at, text.n, LINNET_ADD_BOS, &all);
    if (!code && all.n > before.n && !memcmp(all.at, before.at, before.n * sizeof *all.at) &&
        item->ids.n + all.n - before.n <= (size_t)cell->ctx &&
        !ids_append(&item->gold, all.at + before.n, all.n - before.n))
        code = EXIT_FAILED;
    free(text.at);
    free(before.at);
    free(all.at);
    return code;
}

int recall_fill(recall_cell *cell, size_t i, recall_item *item) {
    const recall_task *task = cell->job->task;
    size_t room = cell->len > task->max_new ? (size_t)(cell->len - task->max_new) : 1;
    int code = task->sized && !task->ids && !cell->job->params.N
                   ? make_longest(cell, i, room, item)
                   : make_as_it_is(cell, i, room, item);
    return code || task->ids ? code : add_gold(cell, item);
}
