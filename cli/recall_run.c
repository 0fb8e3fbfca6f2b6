/* Items through a model. Prompts that begin alike share a session up to where they part: it is kept
 * as a snapshot, and each prompt goes on from a fork, which computes the same bits as a session of
 * its own would. */
#include <stdlib.h>
#include <string.h>

#include "recall.h"
#include "score.h"

enum {
    MAX_SNAPSHOTS = 16,
    LEAST_SHARED = 16 /* tokens that are worth a snapshot */
};

typedef struct {
    linnet_session *session;
    size_t n; /* its tokens */
} snapshot;

typedef struct {
    engine *e;
    const recall_cell *cell;
    const linnet_session *blank;
    recall_view view;
    recall_cost *cost;
    snapshot stack[MAX_SNAPSHOTS]; /* each begins as the one below it */
    size_t n_stack;
} runner;

static int fork_session(const linnet_session *from, linnet_session **out) {
    linnet_error err;
    return linnet_session_fork(from, out, &err) ? failed_with(&err) : EXIT_WORKED;
}

static int feed(runner *x, linnet_session *session, const int32_t *ids, size_t n, linnet_want want,
                linnet_rows_fn rows, void *user) {
    int code = EXIT_WORKED;
    size_t step = x->view.by_token ? 1 : n;
    bool all = want == LINNET_LOGITS_ALL;
    for (size_t i = 0; i < n && !code; i += step)
        code = engine_feed(x->e, session, ids + i, step,
                           all || i + step == n ? want : LINNET_LOGITS_NONE, rows, user);
    if (!code) x->cost->fed += n;
    return code;
}

/* ---- id tasks ----------------------------------------------------------------------------- */

typedef struct {
    recall_item *item;
    size_t n_rows;
    bool nats; /* likelihoods, too */
    bool good;
} judge;

static bool judge_row(judge *j, size_t position, const float *logits) {
    recall_item *item = j->item;
    int32_t label = item->labels.at[position];
    int32_t other = item->others.n ? item->others.at[position] : RECALL_IGNORED;
    if (label >= 0) {
        int32_t guess = best_id(logits, j->n_rows);
        item->scored++;
        item->hits += guess == label;
        if (!ids_append(&item->guesses, &guess, 1)) return false;
        item->n_nats += j->nats;
        if (j->nats) item->label_nats -= log_likelihood(logits, j->n_rows, label);
    } else if (other >= 0) {
        item->n_others++;
        item->other_nats -= log_likelihood(logits, j->n_rows, other);
    }
    return true;
}

static bool judge_rows(void *user, size_t first, size_t n, const float *logits) {
    judge *j = user;
    for (size_t i = 0; i < n && j->good; i++)
        j->good = judge_row(j, first + i, logits + i * j->n_rows);
    return j->good && !interrupted();
}

static bool wants(const recall_item *item, size_t position) {
    return item->labels.at[position] >= 0 || (item->others.n && item->others.at[position] >= 0);
}

/* Logits from the first position that is judged to the last one; what is behind it changes nothing.
 */
static int run_ids(runner *x, recall_item *item) {
    judge j = {.item = item,
               .n_rows = (size_t)linnet_model_get_info(x->cell->model)->n_rows,
               .nats = x->cell->job->task->likely,
               .good = true};
    size_t first = 0, end = item->ids.n;
    while (first < end && !wants(item, first))
        first++;
    while (end > first && !wants(item, end - 1))
        end--;
    linnet_session *session = NULL;
    int code = fork_session(x->blank, &session);
    if (!code && first && first < end)
        code = feed(x, session, item->ids.at, first, LINNET_LOGITS_NONE, NULL, NULL);
    if (!code && first < end)
        code =
            feed(x, session, item->ids.at + first, end - first, LINNET_LOGITS_ALL, judge_rows, &j);
    linnet_session_free(session);
    return code;
}

/* ---- text tasks --------------------------------------------------------------------------- */

typedef struct {
    recall_item *item;
    recall_rule rule;
    bool good, hit;
} listener;

static bool right(const recall_item *item, recall_rule rule) {
    size_t k;
    json_t *answer;
    json_array_foreach(item->answers, k, answer) {
        const char *text = json_string_value(answer);
        size_t n = json_string_length(answer);
        if (rule == RECALL_CONTAINS ? find_folded(item->said.at, item->said.n, text, n) != NULL
                                    : first_line_is(item->said.at, item->said.n, text, n))
            return true;
    }
    return false;
}

/* What contains the answer goes on containing it: the rest need not be said. */
static bool listen(void *user, const char *text, size_t bytes) {
    listener *l = user;
    l->good = text_append(&l->item->said, text, bytes);
    l->hit = l->good && l->rule == RECALL_CONTAINS && right(l->item, l->rule);
    return l->good && !l->hit && !interrupted();
}

/* How likely the first answer is behind the prompt. The session stays as it is. */
static int judge_gold(runner *x, const linnet_session *asked, recall_item *item) {
    size_t n_rows = (size_t)linnet_model_get_info(x->cell->model)->n_rows;
    linnet_session *session = NULL;
    int code = item->gold.n ? fork_session(asked, &session) : EXIT_WORKED;
    for (size_t i = 0; i < item->gold.n && !code; i++) {
        const int32_t *id = &item->gold.at[i];
        item->label_nats -= log_likelihood(linnet_session_logits(session), n_rows, *id);
        item->n_nats++;
        if (i + 1 < item->gold.n)
            code = engine_feed(x->e, session, id, 1, LINNET_LOGITS_LAST, NULL, NULL);
    }
    linnet_session_free(session);
    return code;
}

static int run_text(runner *x, recall_item *item) {
    const recall_task *task = x->cell->job->task;
    linnet_error err;
    linnet_generated result;
    linnet_generate_options options = LINNET_GENERATE_DEFAULT;
    snapshot base = {.session = NULL};
    linnet_session *session = NULL;
    listener l = {.item = item, .rule = task->rule, .good = true};
    if (x->n_stack) base = x->stack[x->n_stack - 1];
    options.max_tokens = (size_t)task->max_new;
    options.stops = &task->stop;
    options.n_stops = task->stop != NULL;
    int code = text_append(&item->said, "", 0) ? EXIT_WORKED : EXIT_FAILED;
    if (!code) code = fork_session(base.session ? base.session : x->blank, &session);
    if (!code)
        code = feed(x, session, item->ids.at + base.n, item->ids.n - base.n, LINNET_LOGITS_LAST,
                    NULL, NULL);
    if (!code) code = judge_gold(x, session, item);
    if (!code && linnet_generate(session, &options, listen, &l, &result, &err))
        code = failed_with(&err);
    if (!code && !l.good) code = EXIT_FAILED;
    if (!code && interrupted()) code = interrupt_code();
    if (!code) {
        x->cost->said += result.n_tokens;
        item->scored = 1;
        item->hits = right(item, task->rule);
    }
    linnet_session_free(session);
    return code;
}

/* ---- what prompts share ------------------------------------------------------------------- */

static size_t shared(const recall_item *a, const recall_item *b) {
    size_t n = a->ids.n < b->ids.n ? a->ids.n : b->ids.n, i = 0;
    while (i < n && a->ids.at[i] == b->ids.at[i])
        i++;
    return i;
}

static int by_ids(const void *a, const void *b) {
    const recall_item *x = *(recall_item *const *)a, *y = *(recall_item *const *)b;
    size_t i = shared(x, y);
    if (i == x->ids.n || i == y->ids.n) return (x->ids.n > y->ids.n) - (x->ids.n < y->ids.n);
    return (x->ids.at[i] > y->ids.at[i]) - (x->ids.at[i] < y->ids.at[i]);
}

static void pop_beyond(runner *x, size_t n) {
    while (x->n_stack && x->stack[x->n_stack - 1].n > n)
        linnet_session_free(x->stack[--x->n_stack].session);
}

static int push(runner *x, const recall_item *item, size_t n) {
    snapshot base = {.session = NULL}, next = {.n = n};
    if (x->n_stack) base = x->stack[x->n_stack - 1];
    int code = fork_session(base.session ? base.session : x->blank, &next.session);
    if (!code)
        code = feed(x, next.session, item->ids.at + base.n, n - base.n, LINNET_LOGITS_NONE, NULL,
                    NULL);
    if (code)
        linnet_session_free(next.session);
    else
        x->stack[x->n_stack++] = next;
    return code;
}

/* Snapshots for prompt k and those behind it: with[j] tokens are shared by j and j + 1, so k shares
 * the least of with[k] ... with[j - 1] with j. The shortest first, each from the one before. */
static int push_shared(runner *x, recall_item *const *order, const size_t *with, size_t k,
                       size_t n) {
    size_t lengths[MAX_SNAPSHOTS], count = 0, least = order[k]->ids.n - 1;
    size_t held = x->n_stack ? x->stack[x->n_stack - 1].n : 0;
    for (size_t j = k; j + 1 < n; j++) {
        if (with[j] < held + LEAST_SHARED) break;
        if (count && with[j] >= lengths[count - 1]) continue;
        size_t length = with[j] < least ? with[j] : least;
        if (length < held + LEAST_SHARED) break;
        if (count && lengths[count - 1] < length + LEAST_SHARED)
            lengths[count - 1] = length; /* nearly the same: the shorter one serves both */
        else if (count < MAX_SNAPSHOTS)
            lengths[count++] = length;
        else
            memmove(lengths, lengths + 1, (MAX_SNAPSHOTS - 1) * sizeof *lengths),
                lengths[MAX_SNAPSHOTS - 1] = length;
    }
    int code = EXIT_WORKED;
    while (count && x->n_stack < MAX_SNAPSHOTS && !code)
        code = push(x, order[k], lengths[--count]);
    return code;
}

static int run_texts(runner *x, recall_item *items, size_t n, const char *what) {
    recall_item **order = malloc(n * sizeof *order);
    size_t *with = calloc(n, sizeof *with);
    int code = order && with ? EXIT_WORKED : failed("out of memory for %zu prompts", n);
    for (size_t k = 0; !code && k < n; k++)
        order[k] = &items[k];
    if (!code && !x->view.alone) {
        qsort(order, n, sizeof *order, by_ids);
        for (size_t k = 0; k + 1 < n; k++)
            with[k] = shared(order[k], order[k + 1]);
    }
    for (size_t k = 0; !code && k < n; k++) {
        pop_beyond(x, k ? with[k - 1] : 0);
        pop_beyond(x, order[k]->ids.n - 1); /* a prompt's last token is its own: it gives logits */
        code = push_shared(x, order, with, k, n);
        if (!code) code = run_text(x, order[k]);
        if (!show_progress(NULL, what, k + 1, n) && !code) code = interrupt_code();
    }
    pop_beyond(x, 0);
    free(order);
    free(with);
    return code;
}

int recall_run(engine *e, const recall_cell *cell, const linnet_session *blank, recall_item *items,
               size_t n, recall_view view, recall_cost *cost) {
    const char *what = cell->job->task->name;
    runner x = {.e = e, .cell = cell, .blank = blank, .view = view, .cost = cost};
    double start = seconds_now();
    int code = EXIT_WORKED;
    e->own_progress = true;
    if (!cell->job->task->ids) {
        code = run_texts(&x, items, n, what);
    } else {
        for (size_t k = 0; !code && k < n; k++) {
            code = run_ids(&x, &items[k]);
            if (!show_progress(NULL, what, k + 1, n) && !code) code = interrupt_code();
        }
    }
    for (size_t k = 0; k < n; k++)
        cost->prompt_tokens += items[k].ids.n;
    cost->seconds += seconds_now() - start;
    return code;
}

int recall_same(const recall_cell *cell, const recall_item *a, const recall_item *b, size_t n) {
    const char *task = cell->job->task->name;
    for (size_t k = 0; k < n; k++) {
        if (a[k].said.n != b[k].said.n ||
            (a[k].said.n && memcmp(a[k].said.at, b[k].said.at, a[k].said.n)))
            return failed("%s: the two views of %s differ at item %zu: '%.40s' as prefill, '%.40s' "
                          "token by token",
                          cell->path, task, k, a[k].said.at, b[k].said.at);
        for (size_t i = 0; i < a[k].guesses.n; i++)
            if (a[k].guesses.at[i] != b[k].guesses.at[i])
                return failed("%s: the two views of %s differ at item %zu, answer %zu: %d as "
                              "prefill, %d token by token",
                              cell->path, task, k, i, a[k].guesses.at[i], b[k].guesses.at[i]);
    }
    return EXIT_WORKED;
}
