/* N different random tokens, then the same again: what follows each token of the second copy. The
 * first one of a copy cannot be known, so N - 1 are judged. */
#include <stdlib.h>

#include "recall.h"

static int open_copy(recall_job *job) {
    job->n_items = SIZE_MAX;
    return EXIT_WORKED;
}

/* Ids of ordinary text: not special, not the end of anything. A model without a vocabulary has only
 * ordinary ones. */
static bool is_ordinary(const linnet_model *model, int32_t id) {
    const linnet_model_info *info = linnet_model_get_info(model);
    char text[8];
    size_t n = 0;
    if (!info->n_vocab) return true;
    return id != info->bos && !linnet_is_end(model, id) &&
           !linnet_detokenize(model, &id, 1, 0, text, sizeof text, &n, NULL) && n;
}

static bool ordinary_ids(const linnet_model *model, id_buffer *out) {
    const linnet_model_info *info = linnet_model_get_info(model);
    int32_t total = info->n_vocab ? info->n_vocab : info->n_rows;
    for (int32_t id = 0; id < total; id++)
        if (is_ordinary(model, id) && !ids_append(out, &id, 1)) return false;
    return true;
}

static int copies(const recall_job *job) {
    return job->twice ? 3 : 2;
}

static bool has_bos(const linnet_model_info *info) {
    return info->add_bos && info->bos >= 0;
}

static int copy_length(const recall_cell *cell) {
    if (cell->job->params.N) return cell->job->params.N;
    int n = (cell->len - has_bos(linnet_model_get_info(cell->model))) / copies(cell->job);
    return n;
}

static int check_copy(recall_cell *cell) {
    const linnet_model_info *info = linnet_model_get_info(cell->model);
    id_buffer ids = {0};
    int n = copy_length(cell), code = EXIT_WORKED;
    if (!ordinary_ids(cell->model, &ids))
        code = EXIT_FAILED;
    else if (n < 2)
        code = failed("copy at --len %d leaves no room for two tokens twice", cell->len);
    else if ((size_t)n > ids.n)
        code = failed("copy needs %d different tokens, %s has %zu", n, cell->path, ids.n);
    free(ids.at);
    cell->len = n * copies(cell->job) + has_bos(info);
    return code;
}

static int make_copy(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    (void)units;
    const linnet_model_info *info = linnet_model_get_info(cell->model);
    random_stream r = recall_random(cell, i);
    id_buffer ids = {0};
    size_t n = (size_t)copy_length(cell), times = (size_t)copies(cell->job);
    uint32_t *which = malloc(n * sizeof *which);
    bool good = which && ordinary_ids(cell->model, &ids) && recall_draw(&r, n, ids.n, which) &&
                (!has_bos(info) || ids_append(&item->ids, &info->bos, 1));
    for (size_t k = 0; good && k < n * times; k++)
        good = ids_append(&item->ids, &ids.at[which[k % n]], 1);
    size_t first = good ? item->ids.n - n : 0; /* of the last copy */
    for (size_t k = 0; good && k < item->ids.n; k++) {
        bool asked = k >= first && k + 1 < item->ids.n;
        int32_t label = asked ? item->ids.at[k + 1] : RECALL_IGNORED;
        good = ids_append(&item->labels, &label, 1);
    }
    free(ids.at);
    free(which);
    return good ? EXIT_WORKED : failed("out of memory for tokens to copy");
}

const recall_task task_copy = {
    .name = "copy",
    .help =
        "different random tokens, then the same again; n=100, and N=64 tokens or --len for both "
        "copies",
    .keys = "N n",
    .n = 100,
    .ids = true,
    .likely = true,
    .sized = true,
    .doubled = true,
    .open = open_copy,
    .check = check_copy,
    .make = make_copy,
};
