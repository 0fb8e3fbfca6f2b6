/* Multi-query associative recall, as docs/mqar.md defines it: pairs of key and value, then keys
 * again, each to be answered with its value. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "recall.h"

/* `n` of the ids low .. low + total - 1, without replacement: numbers first .. of the stream. */
static bool draw_ids(const random_stream *r, uint64_t first, size_t n, int32_t low, size_t total,
                     int32_t *out) {
    int32_t *deck = malloc(total * sizeof *deck);
    for (size_t i = 0; deck && i < total; i++)
        deck[i] = low + (int32_t)i;
    for (size_t i = 0; deck && i < n; i++) {
        size_t j = i + (size_t)random_below(r, first + i, total - i);
        int32_t kept = deck[i];
        out[i] = deck[i] = deck[j];
        deck[j] = kept;
    }
    bool good = deck;
    free(deck);
    return good;
}

/* Slots of the keys, drawn in order without replacement with weights w[g] = (g + 1)^(a - 1). */
static bool draw_slots(const random_stream *r, const recall_params *p, size_t n_slots,
                       size_t *slots) {
    uint64_t *w = malloc(n_slots * sizeof *w), sum = 0, K = (uint64_t)p->K;
    for (size_t g = 0; w && g < n_slots; g++) {
        w[g] = (uint64_t)floor(0x1p32 * pow((double)(g + 1), p->a - 1) + 0.5);
        sum += w[g];
    }
    for (uint64_t i = 0; w && i < K; i++) {
        uint64_t left = random_below(r, 2 * K + i, sum);
        size_t g = 0;
        while (left >= w[g])
            left -= w[g++];
        slots[i] = g;
        sum -= w[g];
        w[g] = 0;
    }
    bool good = w;
    free(w);
    return good;
}

bool mqar_sequence(const recall_params *p, uint64_t seed, uint64_t split, uint64_t index,
                   id_buffer *x, id_buffer *y) {
    size_t K = (size_t)p->K, L = (size_t)p->L, V = (size_t)p->V, H = V / 2;
    size_t C = 2 * K * (size_t)p->P, S = (L - C) / 2;
    uint64_t words[] = {seed, split, V, L, K, index};
    random_stream r = random_for(words, sizeof words / sizeof *words);
    int32_t *ids = malloc(2 * K * sizeof *ids);
    size_t *slots = malloc(K * sizeof *slots);
    bool good = ids && slots && draw_ids(&r, 0, K, 1, H - 1, ids) &&
                draw_ids(&r, K, K, (int32_t)H, H, ids + K) && draw_slots(&r, p, S, slots) &&
                ids_reserve(x, x->n + L) && ids_reserve(y, y->n + L);
    int32_t *to = good ? x->at + x->n : NULL, *labels = good ? y->at + y->n : NULL;
    for (size_t i = 0; good && i < L; i++) {
        bool filler = i >= C && strcmp(p->fill, "zero");
        to[i] = i < C    ? ids[i % 2 * K + i / 2 % K]
                : filler ? (int32_t)random_below(&r, 3 * K + i, V)
                         : 0;
        labels[i] = RECALL_IGNORED;
    }
    for (size_t i = 0; good && i < K; i++) {
        to[C + 2 * slots[i]] = ids[i];
        labels[C + 2 * slots[i]] = ids[K + i];
    }
    if (good) {
        x->n += L;
        y->n += L;
    }
    free(ids);
    free(slots);
    return good;
}

static int open_mqar(recall_job *job) {
    recall_params *p = &job->params;
    if (job->twice && p->P == 1) p->P = 2;
    if (p->V % 2) return misused("recall", "mqar expects an even V, found %d", p->V);
    if (p->K > p->V / 2 - 1)
        return misused("recall", "mqar expects at most V/2 - 1 = %d pairs, found K=%d",
                       p->V / 2 - 1, p->K);
    int64_t least = 2 * (int64_t)p->K * (p->P + 1);
    if (p->L % 2 || p->L < least)
        return misused("recall",
                       "mqar expects an even L of at least 2 K P + 2 K = %lld, found L=%d",
                       (long long)least, p->L);
    job->n_items = SIZE_MAX;
    return EXIT_WORKED;
}

static int check_mqar(recall_cell *cell) {
    const recall_params *p = &cell->job->params;
    int rows = linnet_model_get_info(cell->model)->n_rows;
    if (p->V > rows)
        return failed("mqar needs ids below V=%d, but %s has %d; choose V in --task", p->V,
                      cell->path, rows);
    cell->len = p->L;
    return EXIT_WORKED;
}

static int make_mqar(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    (void)units;
    bool good = mqar_sequence(&cell->job->params, cell->job->seed, 2, i, &item->ids, &item->labels);
    return good ? EXIT_WORKED : failed("out of memory for a sequence of mqar");
}

const recall_task task_mqar = {
    .name = "mqar",
    .help = "pairs of ids, then keys to be answered with their values; zoology's distribution "
            "(docs/mqar.md): V=8192,L=256,K=64,a=0.01,P=1,n=1000,fill=random",
    .keys = "V L K a P n fill",
    .n = 1000,
    .ids = true,
    .doubled = true,
    .open = open_mqar,
    .check = check_mqar,
    .make = make_mqar,
};
