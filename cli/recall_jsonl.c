/* Documents with answers from a file of JSON lines, as prompts of lm-eval or of "Just read twice"
 * (Arora et al. 2024, arXiv 2407.05483; HazyResearch/prefix-linear-attention). */
#include <stdlib.h>
#include <string.h>

#include "recall.h"
#include "score.h"

/* What a line is, by its fields. */
typedef enum {
    READY, /* prompt */
    KEYED, /* text, key: SWDE, FDA */
    CLOZE, /* text that ends where the answer begins: SQuAD */
    ASKED  /* context, question: NQ, DROP, TriviaQA */
} line_kind;

typedef struct {
    json_t *lines; /* those that are used */
} documents;

static const char spaces[] = " \t\n\v\f\r";
static const char summary[] = "Summary of information above...";

typedef struct {
    const char *at;
    size_t n;
} piece; /* of a text */

/* Python's strip: characters of `what` at both ends. */
static piece strip(piece p, const char *what) {
    while (p.n && *p.at && strchr(what, *p.at))
        p.at++, p.n--;
    while (p.n && p.at[p.n - 1] && strchr(what, p.at[p.n - 1]))
        p.n--;
    return p;
}

static piece field(const json_t *line, const char *name) {
    const json_t *value = json_object_get(line, name);
    const char *text = json_string_value(value);
    return (piece){text ? text : "", json_string_length(value)};
}

static bool ends_with(piece p, piece end) {
    return end.n && p.n >= end.n && find_folded(p.at + p.n - end.n, end.n, end.at, end.n);
}

static line_kind kind_of(const json_t *line) {
    return json_object_get(line, "prompt") ? READY
           : json_object_get(line, "text") ? json_object_get(line, "key") ? KEYED : CLOZE
                                           : ASKED;
}

static bool is_jrt(const recall_job *job) {
    return !strncmp(job->preset, "jrt", 3);
}

/* The text that the answer is looked for in. */
static piece source_of(const recall_job *job, const json_t *line) {
    line_kind kind = kind_of(line);
    piece text = field(line, kind == READY ? "prompt" : kind == ASKED ? "context" : "text");
    const char *end = kind == KEYED && is_jrt(job)
                          ? find_folded(text.at, text.n, summary, strlen(summary))
                          : NULL;
    if (end) text.n = (size_t)(end - text.at);
    return text;
}

/* ---- reading ------------------------------------------------------------------------------ */

static int bad_field(const line_reader *r, const char *name, const char *expected,
                     const json_t *found) {
    static const char *const types[] = {"an object", "a list", "a text", "a number",
                                        "a number",  "true",   "false",  "null"};
    return failed("%s, line %zu: field \"%s\": expected %s, found %s", r->path, r->number, name,
                  expected, found ? types[json_typeof(found)] : "none");
}

static int want_text(const line_reader *r, const json_t *line, const char *name) {
    const json_t *value = json_object_get(line, name);
    return json_is_string(value) ? EXIT_WORKED : bad_field(r, name, "a text", value);
}

/* The fields that this preset uses. */
static int check_fields(const recall_job *job, const line_reader *r, const json_t *line) {
    line_kind kind = kind_of(line);
    bool twice = !strcmp(job->preset, "jrt-twice");
    int code = EXIT_WORKED;
    if (kind == READY && is_jrt(job))
        return failed("%s, line %zu: field \"prompt\": the preset %s makes prompts itself, from "
                      "\"text\" or \"context\"",
                      r->path, r->number, job->preset);
    if (kind == ASKED && !json_object_get(line, "context"))
        return failed(
            "%s, line %zu: field \"text\": expected a text (or \"prompt\", or \"context\" "
            "and \"question\"), found none",
            r->path, r->number);
    if (kind == ASKED && !is_jrt(job))
        return failed("%s, line %zu: field \"text\": the preset %s expects \"text\" or \"prompt\"",
                      r->path, r->number, job->preset);
    code = want_text(r, line, kind == READY ? "prompt" : kind == ASKED ? "context" : "text");
    if (!code && kind == KEYED) code = want_text(r, line, "key");
    if (!code && (kind == ASKED || (kind == CLOZE && twice))) code = want_text(r, line, "question");
    if (!code && kind == CLOZE && twice) code = want_text(r, line, "context");
    const json_t *value = json_object_get(line, "value"), *answers, *answer;
    if (code || json_is_string(value)) return code;
    if (value) return bad_field(r, "value", "a text", value);
    answers = json_object_get(line, "answers");
    if (!json_is_array(answers) || !json_array_size(answers))
        return bad_field(r, answers ? "answers" : "value",
                         "a text, or \"answers\", a list of texts", answers);
    size_t k;
    json_array_foreach((json_t *)answers, k, answer) {
        if (!json_is_string(answer)) return bad_field(r, "answers", "a list of texts", answer);
    }
    return EXIT_WORKED;
}

static size_t n_answers(const json_t *line) {
    return json_object_get(line, "value") ? 1 : json_array_size(json_object_get(line, "answers"));
}

/* Whether the gold is stripped of spaces is the difference between lm-eval's versions. */
static piece answer_of(const recall_job *job, const json_t *line, size_t k) {
    const json_t *value = json_object_get(line, "value");
    if (!value) value = json_array_get(json_object_get(line, "answers"), k);
    piece p = {json_string_value(value), json_string_length(value)};
    return !strcmp(job->preset, "lmeval-v1") ? strip(p, spaces) : p;
}

/* Upstream leaves documents out whose key or answer, the first one, is one character or none; where
 * it does not look for the answer's place (cut_around), it does not look at its length. Nothing
 * at all would be found in every text. */
static bool too_short(const recall_job *job, const json_t *line) {
    line_kind kind = kind_of(line);
    bool placed = is_jrt(job) && (kind != ASKED || json_object_get(line, "tok_pos"));
    for (size_t k = 0; k < n_answers(line); k++)
        if (answer_of(job, line, k).n < (k || !placed ? 1 : 2)) return true;
    return kind == KEYED && field(line, "key").n < (placed ? 2 : 1);
}

static bool answer_occurs(const recall_job *job, const json_t *line) {
    piece text = source_of(job, line);
    for (size_t k = 0; k < n_answers(line); k++) {
        piece answer = strip(answer_of(job, line, k), spaces);
        if (find_folded(text.at, text.n, answer.at, answer.n)) return true;
    }
    return false;
}

static int add_line(recall_job *job, const line_reader *r, json_t *line) {
    documents *d = job->data;
    int code = check_fields(job, r, line);
    if (code) return code;
    bool absent = !too_short(job, line) && strcmp(job->absent, "keep") && !answer_occurs(job, line);
    if (absent && !strcmp(job->absent, "error")) {
        piece answer = answer_of(job, line, 0);
        line_kind kind = kind_of(line);
        return failed("%s, line %zu: field \"%s\": '%.*s' does not occur in \"%s\"; --absent skip "
                      "leaves such lines out",
                      r->path, r->number, json_object_get(line, "value") ? "value" : "answers",
                      answer.n < 60 ? (int)answer.n : 60, answer.at,
                      kind == READY   ? "prompt"
                      : kind == ASKED ? "context"
                                      : "text");
    }
    if (absent || too_short(job, line)) {
        job->n_skipped++;
        return EXIT_WORKED;
    }
    return json_array_append(d->lines, line) ? failed("out of memory for %s", r->path)
                                             : EXIT_WORKED;
}

static int open_jsonl(recall_job *job) {
    line_reader r;
    json_t *line;
    documents *d = job->data = calloc(1, sizeof *d);
    int code = EXIT_WORKED, got = 0;
    if (d) d->lines = json_array();
    if (!d || !d->lines) return failed("out of memory");
    job->cut_left = !is_jrt(job);
    job->cut = is_jrt(job) ? "answer-centred" : "left";
    if (!lines_open(&r, job->file)) return EXIT_FAILED;
    while (!code && (got = lines_next_json(&r, &line)) == 1) {
        code = add_line(job, &r, line);
        json_decref(line);
        if (!code && interrupted()) code = interrupt_code();
    }
    if (got < 0) code = interrupted() ? interrupt_code() : EXIT_FAILED;
    lines_close(&r);
    job->n_items = json_array_size(d->lines);
    if (!code && !job->n_items)
        code = failed("%s has no line to ask (%zu left out)", job->file, job->n_skipped);
    if (!code && job->n_skipped)
        say("%s: lines left out, since their answer is too short%s: %zu", job->file,
            strcmp(job->absent, "skip") ? "" : " or does not occur", job->n_skipped);
    return code;
}

static void close_jsonl(recall_job *job) {
    documents *d = job->data;
    if (d) json_decref(d->lines);
    free(d);
}

static int check_jsonl(recall_cell *cell) {
    const recall_job *job = cell->job;
    if (job->max_ctx || is_jrt(job)) cell->len = job->max_ctx ? job->max_ctx : 1000;
    int least = is_jrt(job) ? 52 : 50;
    if (cell->len < least)
        return failed("jsonl needs --max-ctx of at least %d, found %d", least, cell->len);
    return EXIT_WORKED;
}

/* ---- cutting ------------------------------------------------------------------------------ */

static void earliest(piece text, piece what, const char **best) {
    const char *at = find_folded(text.at, text.n, what.at, what.n);
    if (at && (!*best || at < *best)) *best = at;
}

/* Where upstream looks for the answer: NULL if it is not found. */
static const char *place_of(const recall_job *job, const json_t *line, piece text) {
    const char *best = NULL;
    earliest(text, answer_of(job, line, 0), &best);
    if (kind_of(line) == KEYED) earliest(text, field(line, "key"), &best);
    size_t k;
    json_t *other;
    json_array_foreach(json_object_get(line, "alt_answers"), k, other) {
        if (best || !json_is_string(other)) break;
        earliest(text, (piece){json_string_value(other), json_string_length(other)}, &best);
    }
    return best;
}

/* W = --max-ctx - 50 tokens of a text around its answer; what is not found is at the end, except
 * where NQ's tok_pos says better. Documents with a question and no tok_pos keep their head. */
static int cut_around(const recall_cell *cell, const json_t *line, piece text, text_buffer *out) {
    id_buffer ids = {0}, before = {0};
    size_t window = (size_t)cell->len - 50, start = 0, end;
    text = strip(text, spaces);
    const json_t *token = json_object_get(line, "tok_pos");
    bool head = kind_of(line) == ASKED && !token;
    const char *place = head ? text.at : place_of(cell->job, line, text);
    size_t prefix = place ? (size_t)(place - text.at) : text.n ? text.n - 1 : 0;
    int code = text_to_ids(cell->model, text.at, text.n, 0, &ids);
    if (!code) code = text_to_ids(cell->model, text.at, prefix, 0, &before);
    size_t at = before.n;
    if (!place && json_is_integer(token) && before.n > window && json_integer_value(token) >= 0)
        at = (size_t)json_integer_value(token);
    if (at > ids.n) at = ids.n;
    if (at > window / 2) start = at - window / 2;
    end = at + window - (at - start);
    if (end > ids.n) end = ids.n;
    if (!code) code = recall_detokenize(cell->model, ids.at + start, end - start, out);
    free(ids.at);
    free(before.at);
    return code;
}

/* ---- prompts ------------------------------------------------------------------------------ */

static bool add(text_buffer *t, piece p) {
    return text_append(t, p.at, p.n);
}

/* The name of a key at the start of a sentence. */
static bool add_key(text_buffer *t, const char *before, piece key, const char *after) {
    char first = key.n && *key.at >= 'a' && *key.at <= 'z' ? (char)(*key.at - 0x20) : *key.at;
    return text_printf(t, "%s", before) && text_append(t, &first, 1) &&
           text_append(t, key.at + 1, key.n - 1) && text_printf(t, "%s", after);
}

/* "{document}. {Key}:", without the repeated "key:" that the text may end with. What is stripped is
 * upstream's, which is not the same for SWDE, SWDE twice and FDA. */
static bool keyed_prompt(const recall_job *job, const json_t *line, piece text, recall_item *item) {
    piece key = field(line, "key"), whole = field(line, "text");
    bool swde = find_folded(whole.at, whole.n, summary, strlen(summary));
    text_buffer question = {0};
    bool good = add(&question, key) && text_append(&question, ":", 1);
    while (good && ends_with(text, (piece){question.at, question.n}))
        text.n -= question.n;
    text = strip(strip(text, swde && !job->twice ? spaces : "\n"), ".");
    if (swde && job->twice) text = strip(text, spaces);
    free(question.at);
    bool dot = text.n && text.at[text.n - 1] == '.';
    return good && add(&item->context, text) && text_append(&item->context, ".", !dot) &&
           add_key(&item->intro, "Information about ", key, ". ") &&
           add_key(&item->question, " ", key, ":");
}

/* "{text}"; twice: "{question} {context without 'Question:'}\n{text}" */
static bool cloze_prompt(const json_t *line, piece text, recall_item *item) {
    piece context = field(line, "context");
    const char *end = strstr(context.at, "Question:");
    if (end) context.n = (size_t)(end - context.at);
    item->once = true;
    return add(&item->context, strip(text, spaces)) && add(&item->intro, field(line, "question")) &&
           text_append(&item->intro, " ", 1) && add(&item->intro, context) &&
           text_append(&item->intro, "\n", 1);
}

/* "{context}. {question}" */
static bool asked_prompt(const recall_job *job, const json_t *line, piece text, recall_item *item) {
    static const char *const marks[] = {"[PAR]", "[DOC]", "[TLE]"}; /* TriviaQA's */
    piece question = strip(field(line, "question"), spaces);
    text_buffer clean = {0};
    bool good = text_append(&clean, "", 0);
    text = strip(text, spaces);
    for (size_t i = 0; good && i < text.n;) {
        size_t skip = 0;
        for (size_t k = 0; k < 3; k++)
            if (text.n - i >= 5 && !memcmp(text.at + i, marks[k], 5)) skip = 5;
        if (!skip) good = text_append(&clean, text.at + i, 1);
        i += skip ? skip : 1;
    }
    text = (piece){clean.at, clean.n};
    while (good && ends_with(text, question))
        text.n -= question.n;
    text = strip(strip(text, spaces), ".");
    if (job->twice) text = strip(text, spaces);
    piece original =
        field(line, json_object_get(line, "orig_question") ? "orig_question" : "question");
    good = good && add(&item->context, text) && text_append(&item->context, ".", 1) &&
           add(&item->intro, strip(original, ":")) && text_append(&item->intro, " ", 1) &&
           text_append(&item->question, " ", 1) && add(&item->question, question);
    free(clean.at);
    return good;
}

static int make_jsonl(const recall_cell *cell, size_t i, size_t units, recall_item *item) {
    (void)units;
    const recall_job *job = cell->job;
    const json_t *line = json_array_get(((documents *)job->data)->lines, i);
    line_kind kind = kind_of(line);
    piece text = source_of(job, line);
    text_buffer cut = {0};
    bool good = true;
    for (size_t k = 0; good && k < n_answers(line); k++) {
        piece answer = answer_of(job, line, k);
        good = recall_answer(item, answer.at, answer.n);
    }
    if (good && !is_jrt(job)) {
        if (!strcmp(job->preset, "lmeval-v1")) text = strip(text, spaces);
        good = add(&item->context, text);
    } else if (good) {
        int code = cut_around(cell, line, text, &cut);
        if (code) return code;
        text = (piece){cut.at, cut.n};
        good = kind == KEYED   ? keyed_prompt(job, line, text, item)
               : kind == CLOZE ? cloze_prompt(line, text, item)
                               : asked_prompt(job, line, text, item);
    }
    free(cut.at);
    return good ? EXIT_WORKED : failed("out of memory for a prompt");
}

const recall_task task_jsonl = {
    .name = "jsonl",
    .help = "documents and answers from a file: {\"text\", \"key\", \"value\"}, {\"text\", "
            "\"value\"}, {\"context\", \"question\", \"answers\"}, or {\"prompt\", \"answers\"}; "
            "--preset makes the prompts",
    .keys = "",
    .takes_file = true,
    .max_new = 48,
    .stop = "\n",
    .rule = RECALL_CONTAINS,
    .open = open_jsonl,
    .close = close_jsonl,
    .check = check_jsonl,
    .make = make_jsonl,
};
