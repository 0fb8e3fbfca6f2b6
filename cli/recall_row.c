#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "describe.h"
#include "hash.h"
#include "machine.h"
#include "recall.h"
#include "score.h"

/* ---- a row -------------------------------------------------------------------------------- */

static void set_text(json_t *row, const char *key, const char *text) {
    json_object_set_new(row, key, text ? json_text(text) : json_null());
}

static void set_real(json_t *row, const char *key, double value) {
    json_object_set_new(row, key, isfinite(value) ? json_real(value) : json_null());
}

/* Of what was asked: every prompt's ids and what is right. */
static uint64_t hash_items(const recall_item *items, size_t n) {
    uint64_t hash = FNV_START;
    for (size_t k = 0; k < n; k++) {
        const recall_item *item = &items[k];
        size_t i;
        json_t *answer;
        hash = fnv1a(hash, item->ids.at, item->ids.n * sizeof *item->ids.at);
        hash = fnv1a(hash, item->labels.at, item->labels.n * sizeof *item->labels.at);
        json_array_foreach(item->answers, i, answer) {
            hash = fnv1a(hash, json_string_value(answer), json_string_length(answer) + 1);
        }
    }
    return hash;
}

static void set_result(json_t *row, const recall_item *items, size_t n) {
    size_t scored = 0, hits = 0, n_nats = 0, n_others = 0, cut_off = 0;
    double label_nats = 0, other_nats = 0, low, high;
    for (size_t k = 0; k < n; k++) {
        scored += items[k].scored;
        hits += items[k].hits;
        n_nats += items[k].n_nats;
        n_others += items[k].n_others;
        cut_off += items[k].cut_off;
        label_nats += items[k].label_nats;
        other_nats += items[k].other_nats;
    }
    wilson(hits, scored, &low, &high);
    json_set_int(row, "n_items", n);
    json_set_int(row, "n", scored);
    json_set_int(row, "hits", hits);
    set_real(row, "acc", scored ? (double)hits / (double)scored : NAN);
    set_real(row, "acc_low", low);
    set_real(row, "acc_high", high);
    json_set_int(row, "n_cut_off", cut_off);
    bool slices = n && items[0].others.n;
    set_real(row, "ppl",
             slices ? exp((label_nats + other_nats) / (double)(n_nats + n_others)) : NAN);
    set_real(row, "ppl_recall", n_nats ? exp(label_nats / (double)n_nats) : NAN);
    set_real(row, "ppl_other", slices && n_others ? exp(other_nats / (double)n_others) : NAN);
}

static bool has_mixer(const json_t *row, const char *name) {
    size_t i;
    const json_t *mixer;
    json_array_foreach(json_object_get(row, "mixers"), i, mixer) {
        if (!strcmp(json_string_value(mixer), name)) return true;
    }
    return false;
}

json_t *recall_row(const engine *e, const recall_cell *cell, const recall_item *items, size_t n,
                   const recall_run_info *run) {
    const recall_job *job = cell->job;
    const linnet_model_info *info = linnet_model_get_info(cell->model);
    linnet_kv_type kv = engine_kv(e);
    bool gpu = strcmp(info->backend, "cpu");
    text_buffer params = {0};
    char now[TIME_TEXT], hash[HASH_TEXT];
    size_t total = 0, longest = 0;
    for (size_t k = 0; k < n; k++) {
        total += items[k].ids.n;
        longest = items[k].ids.n > longest ? items[k].ids.n : longest;
    }
    time_now(now);
    hash_text(hash, hash_items(items, n));
    if (!recall_params_text(job, &params)) return NULL;

    json_t *row = json_object();
    set_text(row, "build_commit", build_commit);
    set_model_keys(row, cell->model, cell->path, run->model_hash);
    set_text(row, "task", job->task->name);
    set_text(row, "preset", job->preset);
    set_text(row, "params", params.at);
    json_set_int(row, "len", (uint64_t)cell->len);
    json_object_set_new(row, "depth", cell->depth >= 0 ? json_integer(cell->depth) : json_null());
    json_object_set_new(row, "twice", json_boolean(job->twice));
    set_text(row, "cut", job->cut ? job->cut : "none");
    json_object_set_new(row, "max_ctx", job->max_ctx ? json_integer(job->max_ctx) : json_null());
    json_object_set_new(row, "bos",
                        json_boolean(n && items[0].ids.n && info->add_bos && info->bos >= 0 &&
                                     items[0].ids.at[0] == info->bos));
    set_text(row, "data_hash", hash);
    json_object_set_new(row, "seed", json_integer((json_int_t)job->seed));
    set_text(row, "view", run->view);
    set_real(row, "prompt_tokens_mean", n ? (double)total / (double)n : 0);
    json_set_int(row, "prompt_tokens_max", longest);
    set_result(row, items, n);
    json_set_int(row, "n_skipped", job->n_skipped);
    json_set_int(row, "state_bytes_model", state_bytes_by_formula(cell->model, kv, longest));
    json_set_int(row, "state_bytes_alloc", linnet_model_state_bytes(cell->model, kv, longest));
    json_set_int(row, "tokens_prompts", run->cost.prompt_tokens);
    json_set_int(row, "tokens_prefilled", run->cost.fed);
    json_set_int(row, "tokens_said", run->cost.said);
    set_real(row, "eval_seconds", run->cost.seconds);
    set_real(row, "eval_ts",
             run->cost.seconds > 0 ? (double)(run->cost.fed + run->cost.said) / run->cost.seconds
                                   : NAN);
    set_precision_keys(row, cell->model, kv, e->activations);
    set_text(row, "window_mode", has_mixer(row, "lolcats") ? e->window_mode : NULL);
    json_set_int(row, "n_threads", (uint64_t)info->threads);
    set_text(row, "backends", gpu ? "CUDA" : "CPU");
    set_text(row, "isa", gpu ? NULL : info->isa);
    set_text(row, "test_time", now);
    free(params.at);
    return row;
}

/* ---- --dump ------------------------------------------------------------------------------- */

static json_t *ids_json(const id_buffer *ids) {
    json_t *list = json_array();
    for (size_t i = 0; i < ids->n; i++)
        json_array_append_new(list, json_integer(ids->at[i]));
    return list;
}

/* A model may say half a character: bytes that are no UTF-8 stand for Latin-1 ones then. */
static json_t *said_json(const text_buffer *t) {
    json_t *value = json_stringn(t->n ? t->at : "", t->n);
    return value ? value : json_text(t->at);
}

json_t *recall_dump_row(const recall_cell *cell, const recall_item *item, size_t i) {
    const recall_job *job = cell->job;
    char hash[HASH_TEXT];
    text_buffer prompt = {0};
    json_t *row = json_object();
    hash_text(hash, fnv1a(FNV_START, item->ids.at, item->ids.n * sizeof *item->ids.at));
    set_text(row, "model_filename", cell->path);
    set_text(row, "task", job->task->name);
    set_text(row, "preset", job->preset);
    json_set_int(row, "len", (uint64_t)cell->len);
    json_object_set_new(row, "depth", cell->depth >= 0 ? json_integer(cell->depth) : json_null());
    json_set_int(row, "item", i);
    set_text(row, "prompt_hash", hash);
    json_set_int(row, "prompt_tokens", item->ids.n);
    if (job->task->ids) {
        json_object_set_new(row, "ids", ids_json(&item->ids));
        json_object_set_new(row, "labels", ids_json(&item->labels));
        json_object_set_new(row, "prediction", ids_json(&item->guesses));
        json_set_int(row, "n", item->scored);
        json_set_int(row, "hits", item->hits);
    } else {
        /* The ids say what was cut off the text. */
        bool good = job->cut_left
                        ? !recall_detokenize(cell->model, item->ids.at, item->ids.n, &prompt)
                        : recall_prompt(job, item, &prompt);
        json_object_set_new(row, "prompt", good ? said_json(&prompt) : json_null());
        json_object_set(row, "answers", item->answers);
        json_object_set_new(row, "prediction", said_json(&item->said));
        json_object_set_new(row, "hit", json_boolean(item->hits));
    }
    free(prompt.at);
    return row;
}

/* ---- Markdown ----------------------------------------------------------------------------- */

static void show_task(const json_t *row, char *out, size_t size) {
    const char *preset = json_string_value(json_object_get(row, "preset"));
    const char *params = row_text(row, "params");
    snprintf(out, size, "%s%s%s%s%s%s", row_text(row, "task"), *params ? " " : "", params,
             preset ? ", " : "", preset ? preset : "",
             !preset && json_is_true(json_object_get(row, "twice")) ? ", twice" : "");
}

static void show_depth(const json_t *row, char *out, size_t size) {
    if (json_is_integer(json_object_get(row, "depth")))
        snprintf(out, size, "%.0f %%", row_number(row, "depth"));
    else
        snprintf(out, size, "-");
}

static void show_prompt(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.0f / %.0f", row_number(row, "prompt_tokens_mean"),
             row_number(row, "prompt_tokens_max"));
}

static void show_n(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.0f", row_number(row, "n"));
}

static void show_accuracy(const json_t *row, char *out, size_t size) {
    if (json_is_number(json_object_get(row, "acc")))
        snprintf(out, size, "%.3f (%.3f-%.3f)", row_number(row, "acc"), row_number(row, "acc_low"),
                 row_number(row, "acc_high"));
    else
        snprintf(out, size, "-");
    if (row_number(row, "ppl_recall") > 0 && !(row_number(row, "ppl") > 0))
        snprintf(out + strlen(out), size - strlen(out), ", ppl %.2f",
                 row_number(row, "ppl_recall"));
    else if (row_number(row, "ppl") > 0)
        snprintf(out + strlen(out), size - strlen(out), ", ppl %.2f: %.2f, other %.2f",
                 row_number(row, "ppl"), row_number(row, "ppl_recall"),
                 row_number(row, "ppl_other"));
}

static void show_paper_state(const json_t *row, char *out, size_t size) {
    row_bytes(row, "state_bytes_model", out, size);
}

static void show_speed(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%.1f", row_number(row, "eval_ts"));
}

static void show_view(const json_t *row, char *out, size_t size) {
    snprintf(out, size, "%s", row_text(row, "view"));
}

const row_column recall_columns[] = {
    {"model", false, show_model},
    {"params", true, show_params},
    {"arch/mixers", false, show_mixers},
    {"task", false, show_task},
    {"depth", true, show_depth},
    {"prompt mean / max", true, show_prompt},
    {"n", true, show_n},
    {"acc (95 %)", true, show_accuracy},
    {"state (papers)", true, show_paper_state},
    {"state (held)", true, show_state},
    {"eval t/s", true, show_speed},
    {"view", false, show_view},
};
const size_t n_recall_columns = sizeof recall_columns / sizeof *recall_columns;
