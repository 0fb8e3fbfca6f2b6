/* linnet recall: what its parts say to each other.
 *
 *   recall.c        the command: flags, models x tasks x lengths x depths, rows
 *   recall_task.c   the list of tasks; "NAME:KEY=VALUE,..." to a job
 *   recall_*.c      a task each (mqar, passkey, niah, phonebook, copy, factbook, ar, jsonl): items
 *   recall_fill.c   prompts that fill a length, counted by the model's own tokenizer
 *   recall_run.c    items through a model, in either view, prefixes shared
 *   recall_row.c    a row of results
 *
 * A task makes items; it neither runs nor judges them. */
#ifndef CLI_RECALL_H
#define CLI_RECALL_H

#include <jansson.h>

#include "engine.h"
#include "random.h"
#include "rows.h"

typedef struct recall_task recall_task;

enum { RECALL_IGNORED = -100 }; /* a label that is none */

/* One question. Text tasks give texts and answers; id tasks give ids and labels. */
typedef struct {
    text_buffer intro, context, question; /* intro: only said where the context comes twice */
    json_t *answers;                      /* texts, each of them right */
    id_buffer ids;                        /* what is fed */
    id_buffer labels;                     /* of id tasks, one per id: what follows, or ignored */
    id_buffer others;                     /* of ar, the same: what follows where it is not recall */
    id_buffer gold; /* of text tasks: the first answer's, behind the prompt and a blank; empty where
                       the tokenizer does not keep them apart from the prompt's */
    bool once;      /* intro and context already hold the context twice */
    bool cut_off;   /* the answer was cut off with the text before it */
    /* What the model said: recall_run fills it. */
    text_buffer said;
    id_buffer guesses; /* at each label, in order */
    size_t scored, hits;
    double label_nats, other_nats; /* sums of negative log-likelihoods: labels or gold, others */
    size_t n_nats, n_others;
} recall_item;

/* Forgets what is in it; recall_item_free gives the memory back, too. */
void recall_item_clear(recall_item *item);
void recall_item_free(recall_item *item);

/* What --task says, with all defaults filled in. */
typedef struct {
    int n, V, L, K, P, N;
    double a;
    const char *fill, *haystack;
} recall_params;

typedef struct {
    const recall_task *task;
    const char *file; /* of ar and jsonl */
    char *spec;       /* a copy of --task that the texts in params point into */
    recall_params params;
    const char *preset; /* of jsonl */
    int max_ctx;        /* --max-ctx, or 0 */
    bool twice;
    bool cut_left;      /* too long a prompt loses its beginning */
    const char *cut;    /* of the row: "none", "left", "answer-centred" */
    const char *absent; /* --absent: "error", "skip" or "keep" */
    uint64_t seed;
    size_t n_items;   /* of open() */
    size_t n_skipped; /* lines of a file that were left out */
    void *data;       /* of open() */
} recall_job;

/* One row's work. */
typedef struct {
    recall_job *job;
    const linnet_model *model;
    const char *path; /* of the model */
    int ctx;          /* the most tokens of a session */
    int len;          /* the most tokens of a prompt and its answer */
    int depth;        /* per cent of the context before what is asked for; -1: as the task says */
    size_t units;     /* where the search for the next prompt's size starts */
} recall_cell;

typedef enum { RECALL_CONTAINS, RECALL_FIRST_LINE } recall_rule;

struct recall_task {
    const char *name, *help;
    const char *keys; /* parameters that it takes, spaces between */
    int n;            /* items where nobody says how many; 0: all that there are */
    bool takes_file;  /* NAME:FILE */
    bool ids;         /* an id task: labels are judged. Else a text task: */
    bool likely;      /* of an id task: how likely the labels are, too */
    bool sized;       /* --len says how long a prompt is */
    bool deep;        /* --depths says where the answer stands */
    bool doubled;     /* --twice */
    int max_new;      /* tokens of an answer at most */
    const char *stop; /* text that ends an answer, or NULL */
    recall_rule rule;
    /* Checks the parameters and reads what the items are made from; EXIT_WORKED, or another code
     * after a sentence. Then job->n_items says how many items there are at most. */
    int (*open)(recall_job *job);
    void (*close)(recall_job *job); /* may be NULL */
    /* What this model cannot do, and cell->len where it is not --len; may be NULL. */
    int (*check)(recall_cell *cell);
    /* Item i of the cell. `units` is how much there is around the answer (lines, words, entries),
     * at least 1; one more unit makes a longer prompt. */
    int (*make)(const recall_cell *cell, size_t i, size_t units, recall_item *item);
    /* The most units of item i; NULL: as many as there are tokens in cell->len. */
    size_t (*most_units)(const recall_cell *cell, size_t i);
};

extern const recall_task task_mqar, task_passkey, task_niah1, task_niah2, task_niah3, task_mk2,
    task_phonebook, task_copy, task_factbook, task_ar, task_jsonl;
extern const recall_task *const recall_tasks[]; /* NULL at the end */

/* ---- recall_task.c ------------------------------------------------------------------------ */

/* Reads --task; EXIT_WORKED, or EXIT_MISUSED after a sentence. */
int recall_parse(recall_job *job, const char *spec);
/* "V=8192,L=256,...": all parameters of the job's task. */
bool recall_params_text(const recall_job *job, text_buffer *out);
/* A list of the tasks, a line each, for --help. */
const char *recall_task_help(void);
/* The numbers of item i of this task and seed. They are not those of mqar (docs/mqar.md). */
random_stream recall_random(const recall_cell *cell, size_t i);
/* `n` different numbers below `total`, in order of drawing; false without memory. */
bool recall_draw(random_stream *r, size_t n, size_t total, uint32_t *out);
bool recall_answer(recall_item *item, const char *text, size_t n);
extern const char *const recall_adjectives[64], *const recall_nouns[64];
extern const char *const recall_first_names[64], *const recall_last_names[64];

/* Turns a sequence into x and y of docs/mqar.md: appended. */
bool mqar_sequence(const recall_params *p, uint64_t seed, uint64_t split, uint64_t index,
                   id_buffer *x, id_buffer *y);

/* ---- recall_fill.c ------------------------------------------------------------------------ */

/* Makes item i, as long as the cell allows, and its ids; EXIT_WORKED or another code. */
int recall_fill(recall_cell *cell, size_t i, recall_item *item);
/* The prompt as text, with the context twice where the job says so. */
bool recall_prompt(const recall_job *job, const recall_item *item, text_buffer *out);
/* Ids back as text; half a character is what the tokenizer makes of it. */
int recall_detokenize(const linnet_model *model, const int32_t *ids, size_t n, text_buffer *out);

/* ---- recall_run.c ------------------------------------------------------------------------- */

typedef struct {
    size_t prompt_tokens; /* of all prompts */
    size_t fed, said;     /* computed: prompts without what they share, and answers */
    double seconds;
} recall_cost;

typedef struct {
    bool by_token; /* token by token, else prefill */
    bool alone;    /* no prompt uses what another one computed */
} recall_view;

/* Every item through the model, from `blank`, a session without tokens, which stays so. */
int recall_run(engine *e, const recall_cell *cell, const linnet_session *blank, recall_item *items,
               size_t n, recall_view view, recall_cost *cost);
/* Both views said the same; EXIT_FAILED after a sentence about the first difference. */
int recall_same(const recall_cell *cell, const recall_item *a, const recall_item *b, size_t n);

/* ---- recall_row.c ------------------------------------------------------------------------- */

typedef struct {
    const char *view; /* "chunk", "recurrent", "both" */
    const char *model_hash;
    recall_cost cost;
} recall_run_info;

json_t *recall_row(const engine *e, const recall_cell *cell, const recall_item *items, size_t n,
                   const recall_run_info *run);
/* An item as a line of --dump. */
json_t *recall_dump_row(const recall_cell *cell, const recall_item *item, size_t i);
extern const row_column recall_columns[];
extern const size_t n_recall_columns;

#endif
