/* linnet recall from the inside: random numbers, generators, scoring, prompts, and the command on
 * models that recall perfectly (tests/copy_model.h) or not at all. */
#include "copy_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <unistd.h>

#include "../cli/commands.h"
#include "../cli/hash.h"
#include "../cli/recall.h"
#include "../cli/score.h"
#include "../cli/texts.h"

static char folder[64], copying[128], paired[128], knowing_nothing[128];

static char *at(const char *name) {
    static char path[160];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_lines(const char *name, const char *text) {
    FILE *f = fopen(at(name), "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* ---- the command, in this process --------------------------------------------------------- */

enum { MAX_ARGUMENTS_HERE = 40 };

/* Runs `linnet recall` with arguments that are separated by spaces, quiet, one thread, its rows as
 * JSON; what it says goes to err.txt. */
static int recall(json_t **rows, const char *arguments, ...) {
    char text[2048];
    char *argv[MAX_ARGUMENTS_HERE] = {"recall", "--quiet", "-t", "1", "-o", "json"};
    int argc = 6;
    va_list list;
    va_start(list, arguments);
    vsnprintf(text, sizeof text, arguments, list);
    va_end(list);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    fflush(stdout);
    fflush(stderr);
    int out = dup(1), err = dup(2);
    assert_non_null(freopen(at("out.json"), "wb", stdout));
    assert_non_null(freopen(at("err.txt"), "wb", stderr));
    int code = command_recall(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    clearerr(stdout);
    json_t *found = json_load_file(at("out.json"), 0, NULL);
    if (rows)
        *rows = found;
    else
        json_decref(found);
    return code;
}

static const char *complaint(void) {
    static char text[2048];
    FILE *f = fopen(at("err.txt"), "rb");
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    return text;
}

static double number(const json_t *rows, size_t i, const char *key) {
    const json_t *value = json_object_get(json_array_get(rows, i), key);
    if (!json_is_number(value)) fail_msg("no number %s: %s", key, complaint());
    return json_number_value(value);
}

static const char *text(const json_t *rows, size_t i, const char *key) {
    return json_string_value(json_object_get(json_array_get(rows, i), key));
}

static json_t *run_well(const char *arguments, const char *model) {
    json_t *rows = NULL;
    if (recall(&rows, "-m %s %s", model, arguments)) fail_msg("%s", complaint());
    assert_non_null(rows);
    return rows;
}

/* ---- random numbers, hashes --------------------------------------------------------------- */

static void test_splitmix(void **state) {
    (void)state;
    /* The first numbers of splitmix64 with seed 0, as Vigna's splitmix64.c prints them. */
    random_stream r = {0};
    assert_true(random_step(0) == 0xe220a8397b1dcdafu);
    assert_true(random_mix(2 * RANDOM_GAMMA) == 0x6e789e6aa1b965f4u);
    assert_true(random_mix(3 * RANDOM_GAMMA) == 0x06c45d188009454fu);
    assert_true(random_below(&r, 0, 1000) == 883); /* 0xe220... / 2^64 = 0.88331 */
    assert_true(random_next(&r, 1000) == 883);
    assert_true(random_next(&r, 1000) == 431); /* 0x6e78... / 2^64 = 0.43153 */
    assert_true(fnv1a(FNV_START, "a", 1) == 0xaf63dc4c8601ec8cu);
    assert_true(fnv1a(fnv1a(FNV_START, "foo", 3), "bar", 3) == 0x85944171f73967e8u);
}

static void test_hash_of_a_file(void **state) {
    (void)state;
    char a[HASH_TEXT], b[HASH_TEXT];
    write_lines("a", "12345678x");
    assert_true(hash_file(at("a"), a));
    uint64_t words = random_step(random_step(random_step(0x3837363534333231u) ^ 'x') ^ 9);
    hash_text(b, words);
    assert_string_equal(a, b);
    write_lines("b", "12345678x");
    assert_true(hash_file(at("b"), b));
    assert_string_equal(a, b);
    write_lines("b", "12345678y");
    assert_true(hash_file(at("b"), b));
    assert_string_not_equal(a, b);
}

/* ---- mqar --------------------------------------------------------------------------------- */

static uint64_t mqar_hash(const recall_params *p, uint64_t seed, size_t n) {
    uint64_t hash = FNV_START;
    for (size_t i = 0; i < n; i++) {
        id_buffer x = {0}, y = {0};
        assert_true(mqar_sequence(p, seed, 2, i, &x, &y));
        assert_int_equal(x.n, p->L);
        assert_int_equal(y.n, p->L);
        hash = fnv1a(hash, x.at, x.n * sizeof *x.at);
        hash = fnv1a(hash, y.at, y.n * sizeof *y.at);
        free(x.at);
        free(y.at);
    }
    return hash;
}

static void test_mqar_golden(void **state) {
    (void)state;
    static const struct {
        recall_params p;
        uint64_t hash;
    } cases[] = {
        /* docs/mqar.md; made by train/mqar.py */
        {{.V = 8192, .L = 64, .K = 4, .P = 1, .a = 0.01, .fill = "random"}, 0x7163b6aea3dd9775},
        {{.V = 8192, .L = 256, .K = 64, .P = 1, .a = 0.01, .fill = "random"}, 0x630847c68dbbb509},
        {{.V = 8192, .L = 1024, .K = 256, .P = 1, .a = 0.01, .fill = "random"}, 0x85aae7faa9feea2c},
        {{.V = 512, .L = 64, .K = 8, .P = 2, .a = 0.5, .fill = "zero"}, 0xedae0d6bc200192d},
        {{.V = 64, .L = 32, .K = 4, .P = 1, .a = 1, .fill = "random"}, 0x10acb189511e240c},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t hash = mqar_hash(&cases[i].p, 0, 64);
        if (hash != cases[i].hash) fail_msg("case %zu: %016llx", i, (unsigned long long)hash);
    }
    assert_true(mqar_hash(&cases[0].p, 1, 64) != cases[0].hash);
}

/* Key 0 takes a slot with probability (g + 1)^(a - 1) / sum, and keys are uniform: chi-square on
 * 27 and 30 degrees of freedom, whose 0.9999 quantiles are 64 and 69. Structure on the way. */
static void test_mqar_distribution(void **state) {
    (void)state;
    enum { N = 20000, SLOTS = 28, KEYS = 31 };
    const recall_params p = {.V = 64, .L = 64, .K = 4, .P = 1, .a = 0.01, .fill = "random"};
    double expected[SLOTS], sum = 0, chi_slots = 0, chi_keys = 0;
    size_t slots[SLOTS] = {0}, keys[KEYS] = {0};
    for (int g = 0; g < SLOTS; g++)
        sum += expected[g] = pow(g + 1, -0.99);
    for (size_t i = 0; i < N; i++) {
        id_buffer x = {0}, y = {0};
        int labels = 0;
        assert_true(mqar_sequence(&p, 7, 2, i, &x, &y));
        for (int k = 0; k < 4; k++) {
            assert_in_range(x.at[2 * k], 1, 31);
            assert_in_range(x.at[2 * k + 1], 32, 63);
            for (int l = 0; l < k; l++)
                assert_true(x.at[2 * k] != x.at[2 * l] && x.at[2 * k + 1] != x.at[2 * l + 1]);
        }
        for (int t = 0; t < p.L; t++) {
            assert_in_range(x.at[t], 0, 63);
            if (y.at[t] == RECALL_IGNORED) continue;
            assert_true(t >= 8 && t % 2 == 0);
            int k = 0;
            while (x.at[2 * k] != x.at[t])
                k++;
            assert_int_equal(y.at[t], x.at[2 * k + 1]);
            if (!k) slots[(t - 8) / 2]++;
            labels++;
        }
        assert_int_equal(labels, 4);
        keys[x.at[0] - 1]++;
        free(x.at);
        free(y.at);
    }
    for (int g = 0; g < SLOTS; g++) {
        double e = N * expected[g] / sum;
        chi_slots += ((double)slots[g] - e) * ((double)slots[g] - e) / e;
    }
    for (int k = 0; k < KEYS; k++) {
        double e = (double)N / KEYS;
        chi_keys += ((double)keys[k] - e) * ((double)keys[k] - e) / e;
    }
    assert_true(chi_slots < 64);
    assert_true(chi_keys < 69);
}

/* ---- words and texts ---------------------------------------------------------------------- */

static void test_words(void **state) {
    (void)state;
    const char *const *lists[] = {recall_adjectives, recall_nouns, recall_first_names,
                                  recall_last_names};
    for (int l = 0; l < 4; l++)
        for (int i = 0; i < 64; i++) {
            assert_true(strlen(lists[l][i]) >= 2);
            for (int k = 0; k < i; k++)
                if (!strcmp(lists[l][i], lists[l][k])) fail_msg("%s twice", lists[l][i]);
        }
    assert_true(haystack_end - haystack_text > 290000 && haystack_end - haystack_text <= 300000);
    assert_int_equal(*haystack_end, 0);
    assert_memory_equal(haystack_text, "Emma Woodhouse, handsome", 24);
    assert_true(factbook_end - factbook_text <= 300000);
}

/* ---- scoring ------------------------------------------------------------------------------ */

static bool contains(const char *said, const char *gold) {
    return find_folded(said, strlen(said), gold, strlen(gold)) != NULL;
}

static bool first_line(const char *said, const char *gold) {
    return first_line_is(said, strlen(said), gold, strlen(gold));
}

static void test_scoring(void **state) {
    (void)state;
    assert_true(contains(" The Hague, of course", "the hague"));
    assert_true(contains("a.b", ".") && !contains("ab", ".")); /* no pattern */
    assert_true(contains("x", "x") && contains("x", "") && !contains("", "x"));
    assert_false(contains("Paris", "Paris ")); /* lmeval-v0: a blank at the end counts */
    assert_true(contains("S\xc3\x83O TOM\xc3\x89", "s\xc3\xa3o tom\xc3\xa9"));
    assert_false(contains("\xc3\x97", "\xc3\xb7")); /* times, divided by */
    assert_true(contains("\xe1\xba\x9e", "\xe1\xba\x9e"));
    assert_int_equal(count_folded("aAa", 3, "aa", 2, 9), 2);
    assert_int_equal(count_folded("aAa", 3, "aa", 2, 1), 1);
    assert_int_equal(count_folded("abc", 3, "x", 1, 9), 0);
    assert_true(first_line(" 6123456789\nmore", "6123456789"));
    assert_true(first_line("6123456789\r\n", "6123456789"));
    assert_false(first_line("61234567890", "6123456789"));
    assert_false(first_line("\n6123456789", "6123456789"));
    assert_false(first_line("", "6"));
    const float logits[] = {1, 3, 3, -1};
    assert_int_equal(best_id(logits, 4), 1);
    double z = exp(-2) + 1 + 1 + exp(-4);
    assert_true(fabs(log_likelihood(logits, 4, 0) - log(exp(-2) / z)) < 1e-14);
}

/* Newcombe (1998), Table I: method 3 for 81/263, 15/148, 0/20, 1/29. */
static void test_wilson(void **state) {
    (void)state;
    static const struct {
        size_t hits, n;
        double low, high;
    } cases[] = {{81, 263, .2553, .3662}, {15, 148, .0624, .1605}, {0, 20, 0, .1611},
                 {1, 29, .0061, .1718},   {20, 20, .8389, 1},      {0, 0, 0, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double low, high;
        wilson(cases[i].hits, cases[i].n, &low, &high);
        assert_true(fabs(low - cases[i].low) < 6e-5 && fabs(high - cases[i].high) < 6e-5);
    }
}

static linnet_model *open_tokenizer(void) {
    linnet_error err;
    linnet_model *model;
    if (linnet_model_open(&model, copying, &(linnet_model_options){.metadata_only = true}, &err))
        fail_msg("%s", err.text);
    return model;
}

/* ---- prompts of jsonl --------------------------------------------------------------------- */

/* The prompt of line `i` of a file, in a buffer that the next call overwrites; NULL if the file is
 * refused or has no such line. max_ctx 0: no cut. */
static const char *jsonl_prompt(const char *lines, const char *preset, int max_ctx, size_t i,
                                bool *cut_off) {
    static text_buffer out;
    char spec[200];
    linnet_model *model = open_tokenizer();
    recall_job job = {.absent = "keep"};
    write_lines("in.jsonl", lines);
    snprintf(spec, sizeof spec, "jsonl:%s", at("in.jsonl"));
    assert_int_equal(recall_parse(&job, spec), 0);
    job.preset = preset;
    job.twice = !strcmp(preset, "jrt-twice");
    job.max_ctx = max_ctx ? max_ctx : 2000;
    recall_cell cell = {
        .job = &job, .model = model, .path = copying, .ctx = 1 << 20, .len = 2000, .depth = -1};
    recall_item item = {0};
    bool good = !job.task->open(&job) && i < job.n_items && !job.task->check(&cell) &&
                !recall_fill(&cell, i, &item);
    out.n = 0;
    if (good && recall_detokenize(model, item.ids.at, item.ids.n, &out)) good = false;
    if (cut_off) *cut_off = item.cut_off;
    recall_item_free(&item);
    job.task->close(&job);
    free(job.spec);
    linnet_model_close(model);
    return good ? out.at : NULL;
}

static void test_presets(void **state) {
    (void)state;
    static const char fda[] =
        "{\"text\": \" Device: pump.\\nMaker: Acme\\n\\nmaker:\", \"key\": \"maker\", "
        "\"value\": \"Acme \"}\n";
    assert_string_equal(jsonl_prompt(fda, "lmeval-v0", 0, 0, NULL),
                        " Device: pump.\nMaker: Acme\n\nmaker:");
    assert_string_equal(jsonl_prompt(fda, "lmeval-v1", 0, 0, NULL),
                        "Device: pump.\nMaker: Acme\n\nmaker:");
    assert_string_equal(jsonl_prompt(fda, "jrt", 0, 0, NULL), "Device: pump.\nMaker: Acme. Maker:");
    assert_string_equal(jsonl_prompt(fda, "jrt-twice", 0, 0, NULL),
                        "Information about Maker. Device: pump.\nMaker: Acme.\n"
                        "Device: pump.\nMaker: Acme. Maker:");
    static const char swde[] =
        "{\"text\": \"A film.\\nDirector: Ada Low.\\n\\nSummary of information above...\\n"
        "year: 1999\\ndirector:\", \"key\": \"director\", \"value\": \"Ada Low\"}\n";
    assert_string_equal(jsonl_prompt(swde, "jrt", 0, 0, NULL),
                        "A film.\nDirector: Ada Low. Director:");
    assert_non_null(strstr(jsonl_prompt(swde, "lmeval-v1", 0, 0, NULL), "year: 1999"));
    static const char squad[] =
        "{\"text\": \"   Ada met Bob. Ada met\", \"value\": \"Bob\", \"question\": \"Whom?\", "
        "\"context\": \"Ada met Bob.Question: whom\"}\n";
    assert_string_equal(jsonl_prompt(squad, "jrt", 0, 0, NULL), "Ada met Bob. Ada met");
    assert_string_equal(jsonl_prompt(squad, "jrt-twice", 0, 0, NULL),
                        "Whom? Ada met Bob.\nAda met Bob. Ada met");
    assert_string_equal(jsonl_prompt(squad, "lmeval-v0", 0, 0, NULL), "   Ada met Bob. Ada met");
    static const char asked[] =
        "{\"context\": \"[DOC] [TLE] Ada met Bob. Answer:\", \"question\": \"Answer:\", "
        "\"orig_question\": \"Whom did Ada meet?\", \"answers\": [\"Bob\", \"Robert\"]}\n";
    assert_string_equal(jsonl_prompt(asked, "jrt", 0, 0, NULL), "Ada met Bob. Answer:");
    assert_string_equal(jsonl_prompt(asked, "jrt-twice", 0, 0, NULL),
                        "Whom did Ada meet? Ada met Bob.\nAda met Bob. Answer:");
    static const char ready[] = "{\"prompt\": \"  a b \", \"answers\": [\"b\"]}\n";
    assert_string_equal(jsonl_prompt(ready, "lmeval-v0", 0, 0, NULL), "  a b ");
    assert_string_equal(jsonl_prompt(ready, "lmeval-v1", 0, 0, NULL), "a b");
}

/* Tokens are bytes here, so that windows can be counted by hand. */
static void test_cuts(void **state) {
    (void)state;
    bool cut_off;
    static const char digits[] = "{\"text\": \"0123456789abcdefghij0123456789ABCDEFGHIJ key:\", "
                                 "\"key\": \"zz\", \"value\": \"%s\"}\n";
    char line[256];
    snprintf(line, sizeof line, digits, "aBc"); /* at 10, whatever its case */
    /* W = 10: 5 before, 5 from the answer on; '.' and " Zz:" come from the prompt. */
    assert_string_equal(jsonl_prompt(line, "jrt", 60, 0, NULL), "56789abcde. Zz:");
    snprintf(line, sizeof line, digits, "123"); /* at 1: the window starts at 0, W long */
    assert_string_equal(jsonl_prompt(line, "jrt", 60, 0, NULL), "0123456789. Zz:");
    snprintf(line, sizeof line, digits, "key:"); /* near the end: it ends there */
    assert_string_equal(jsonl_prompt(line, "jrt", 60, 0, NULL), "GHIJ key:. Zz:");
    snprintf(line, sizeof line, digits, "nowhere"); /* as upstream: the last W / 2 */
    assert_string_equal(jsonl_prompt(line, "jrt", 60, 0, NULL), "J key:. Zz:");
    /* lm-eval keeps the last --max-ctx - 48. */
    snprintf(line, sizeof line, digits, "HIJ");
    assert_string_equal(jsonl_prompt(line, "lmeval-v1", 58, 0, &cut_off), "FGHIJ key:");
    assert_false(cut_off);
    snprintf(line, sizeof line, digits, "abc"); /* ABC is 15 from the end */
    jsonl_prompt(line, "lmeval-v1", 63, 0, &cut_off);
    assert_false(cut_off);
    jsonl_prompt(line, "lmeval-v1", 62, 0, &cut_off);
    assert_true(cut_off);
    /* 'é' is two tokens; half of one is U+FFFD, upstream too. */
    static const char accents[] =
        "{\"text\": \"\xc3\xa9\xc3\xa9\xc3\xa9X12\xc3\xa9\xc3\xa9\xc3\xa9\", \"key\": \"qq\", "
        "\"value\": \"X12\"}\n";
    assert_string_equal(jsonl_prompt(accents, "jrt", 60, 0, NULL),
                        "\xef\xbf\xbd\xc3\xa9\xc3\xa9X12\xc3\xa9. Qq:");
    /* A question without tok_pos keeps the head; with it, the answer's place or that token. */
    static const char head[] = "{\"context\": \"0123456789abcdefghij\", \"question\": \"Q?\", "
                               "\"answers\": [\"hij\"]}\n";
    assert_string_equal(jsonl_prompt(head, "jrt", 60, 0, NULL), "0123456789. Q?");
    static const char near[] = "{\"context\": \"0123456789abcdefghij\", \"question\": \"Q?\", "
                               "\"answers\": [\"no\"], \"tok_pos\": 12}\n";
    assert_string_equal(jsonl_prompt(near, "jrt", 60, 0, NULL), "789abcdefg. Q?");
    /* Too short an answer: upstream drops the document. */
    assert_null(jsonl_prompt("{\"text\": \"a b\", \"key\": \"kk\", \"value\": \"a\"}\n"
                             "{\"text\": \"a bb\", \"key\": \"kk\", \"value\": \"bb\"}\n",
                             "jrt", 0, 1, NULL));
}

/* ---- generators --------------------------------------------------------------------------- */

/* Prompts of a task: lengths, answers, needles. */
static void test_prompts_fill(void **state) {
    (void)state;
    static const char *const tasks[] = {"passkey", "niah1",     "niah2",   "niah3",
                                        "mk2",     "phonebook", "factbook"};
    static const int slack[] = {100, 92, 26, 26, 75, 29, 130}; /* bytes of the largest unit */
    linnet_model *model = open_tokenizer();
    for (size_t t = 0; t < sizeof tasks / sizeof *tasks; t++)
        for (int twice = 0; twice < 2; twice++) {
            recall_job job = {.absent = "error", .twice = twice, .seed = 3};
            assert_int_equal(recall_parse(&job, tasks[t]), 0);
            assert_int_equal(job.task->open(&job), 0);
            recall_cell cell = {.job = &job,
                                .model = model,
                                .path = copying,
                                .ctx = 3000,
                                .len = 3000,
                                .depth = -1};
            for (size_t i = 0; i < 6; i++) {
                recall_item item = {0};
                assert_int_equal(recall_fill(&cell, i, &item), 0);
                int room = 3000 - job.task->max_new;
                assert_true((int)item.ids.n <= room);
                if ((int)item.ids.n <= room - slack[t] * (1 + twice))
                    fail_msg("%s: %zu of %d tokens", tasks[t], item.ids.n, room);
                const char *gold = json_string_value(json_array_get(item.answers, 0));
                size_t times = count_folded(item.context.at, item.context.n, gold, strlen(gold), 9);
                assert_int_equal(times, strcmp(tasks[t], "passkey") ? 1 : 2);
                assert_int_equal(
                    count_folded(item.question.at, item.question.n, gold, strlen(gold), 9), 0);
                recall_item_free(&item);
            }
            if (job.task->close) job.task->close(&job);
            free(job.spec);
        }
    linnet_model_close(model);
}

static void test_depths(void **state) {
    (void)state;
    static const char *const tasks[] = {"passkey", "niah1", "niah2", "mk2", "phonebook"};
    linnet_model *model = open_tokenizer();
    for (size_t t = 0; t < sizeof tasks / sizeof *tasks; t++) {
        recall_job job = {.absent = "error"};
        assert_int_equal(recall_parse(&job, tasks[t]), 0);
        assert_int_equal(job.task->open(&job), 0);
        for (int depth = 0; depth <= 100; depth += 25) {
            recall_cell cell = {.job = &job,
                                .model = model,
                                .path = copying,
                                .ctx = 20000,
                                .len = 20000,
                                .depth = depth};
            recall_item item = {0};
            assert_int_equal(recall_fill(&cell, 1, &item), 0);
            const char *gold = json_string_value(json_array_get(item.answers, 0));
            const char *place = find_folded(item.context.at, item.context.n, gold, strlen(gold));
            double share = 100.0 * (double)(place - item.context.at) / (double)item.context.n;
            if (fabs(share - depth) >
                (strcmp(tasks[t], "niah2") ? 3 : 12)) /* sentences differ in length */
                fail_msg("%s at %d: %.1f", tasks[t], depth, share);
            recall_item_free(&item);
        }
        if (job.task->close) job.task->close(&job);
        free(job.spec);
    }
    linnet_model_close(model);
}

/* ---- the command -------------------------------------------------------------------------- */

static void test_perfect_recall(void **state) {
    (void)state;
    json_t *rows = run_well("--activations exact --view both --len 600 --n 4 --task passkey --task "
                            "phonebook --task phonebook:N=30 --task copy:N=100",
                            copying);
    for (size_t i = 0; i < 4; i++) {
        assert_true(number(rows, i, "acc") == 1);
        if (number(rows, i, "ppl_recall") > 1.01)
            fail_msg("row %zu: %f", i, number(rows, i, "ppl_recall"));
    }
    assert_true(number(rows, 3, "n") == 4 * 99);
    assert_string_equal(text(rows, 3, "params"), "N=100");
    json_decref(rows);
    rows = run_well("--activations exact --view both --task mqar:V=256,L=64,K=8,n=10,fill=zero "
                    "--task mqar:V=128,L=128,K=16,n=4,fill=zero,P=2",
                    paired);
    assert_true(number(rows, 0, "acc") == 1 && number(rows, 1, "acc") == 1);
    assert_true(number(rows, 0, "n") == 80 && number(rows, 0, "n_items") == 10);
    json_decref(rows);
    rows = run_well("--activations exact --task mqar:V=64,L=48,K=8,n=5,fill=zero --twice", paired);
    assert_true(number(rows, 0, "acc") == 1);
    assert_non_null(strstr(text(rows, 0, "params"), "P=2"));
    json_decref(rows);
}

static void test_chance(void **state) {
    (void)state;
    json_t *rows = run_well("--view both --task mqar:V=64,L=64,K=8,n=200 --task copy:N=50,n=20 "
                            "--task passkey --len 400 --n 5",
                            knowing_nothing);
    assert_true(number(rows, 0, "acc_low") < 2.0 / 64); /* values are one of 32 */
    assert_true(number(rows, 1, "acc") < 0.05);
    assert_true(number(rows, 2, "acc") == 0);
    for (size_t i = 1; i < 3; i++) /* no better than one of all 262 ids */
        assert_true(number(rows, i, "ppl_recall") > 262);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 0), "ppl_recall")));
    json_decref(rows);
}

/* A row's hash of ids and labels is the golden one. */
static void test_data_hash(void **state) {
    (void)state;
    json_t *rows = run_well("--task mqar:V=64,L=32,K=4,a=1,n=64", paired);
    assert_string_equal(text(rows, 0, "data_hash"), "10acb189511e240c");
    assert_string_equal(text(rows, 0, "params"), "V=64,L=32,K=4,a=1,P=1,fill=random");
    json_decref(rows);
}

/* The lines of --dump, one text. */
static char *dump_of(const char *arguments, const char *model) {
    char more[512];
    snprintf(more, sizeof more, "%s --dump %s", arguments, at("dump.jsonl"));
    json_decref(run_well(more, model));
    FILE *f = fopen(at("dump.jsonl"), "rb");
    char *lines = calloc(1, 1 << 20);
    assert_non_null(f);
    assert_true(fread(lines, 1, (1 << 20) - 1, f) > 0);
    fclose(f);
    return lines;
}

/* Prompts that share what they have in common say what they say alone; the first ones say the same
 * whatever follows; no cell changes another. */
static void test_nothing_leaks(void **state) {
    (void)state;
    static const char tasks[] = "--task niah2 --task passkey --task factbook --len 520";
    char arguments[256], others[256];
    for (int k = 0; k < 2; k++) {
        const char *model = k ? copying : knowing_nothing;
        snprintf(arguments, sizeof arguments, "%s --n 8", tasks);
        snprintf(others, sizeof others, "%s --n 8 --no-share", tasks);
        char *shared = dump_of(arguments, model), *alone = dump_of(others, model);
        assert_string_equal(shared, alone);
        free(alone);
        snprintf(others, sizeof others, "--task niah2 --len 520 --n 3 --no-share");
        alone = dump_of(others, model);
        assert_memory_equal(shared, alone, strlen(alone));
        free(shared);
        free(alone);
        snprintf(others, sizeof others, "--task niah1 --len 800,700 --depths 0,50,100 --n 3");
        shared = dump_of(others, model);
        snprintf(others, sizeof others, "--task niah1 --len 700 --depths 50 --n 3");
        alone = dump_of(others, model);
        assert_non_null(strstr(shared, alone));
        free(shared);
        free(alone);
    }
    json_t *rows = run_well("--task niah2 --len 520 --n 8", knowing_nothing);
    assert_true(number(rows, 0, "tokens_prefilled") < 0.9 * number(rows, 0, "tokens_prompts"));
    json_decref(rows);
    rows = run_well("--task niah2 --len 520 --n 8 --no-share", knowing_nothing);
    assert_true(number(rows, 0, "tokens_prefilled") == number(rows, 0, "tokens_prompts"));
    json_decref(rows);
}

/* Pairs seen before, by hand: "abcabcab" has 7 pairs, ab bc ca new, ab bc ca ab again: the
 * copying model knows what follows them. */
static void test_slices(void **state) {
    (void)state;
    char arguments[256];
    write_lines("text", "abcabcab");
    snprintf(arguments, sizeof arguments, "--activations exact --view both --task ar:%s",
             at("text"));
    json_t *rows = run_well(arguments, paired);
    assert_true(number(rows, 0, "n") == 4 && number(rows, 0, "hits") == 4);
    assert_true(number(rows, 0, "ppl_recall") < 1.01 && number(rows, 0, "ppl_other") > 10);
    assert_float_equal(
        7 * log(number(rows, 0, "ppl")),
        4 * log(number(rows, 0, "ppl_recall")) + 3 * log(number(rows, 0, "ppl_other")), 1e-9);
    json_decref(rows);
    snprintf(arguments, sizeof arguments, "--task ar:%s --max-ctx 5", at("text"));
    rows =
        run_well(arguments, paired); /* abcab, cab: only ab is there twice; 3 ids are no window */
    assert_true(number(rows, 0, "n") == 1 && number(rows, 0, "n_items") == 1);
    json_decref(rows);
}

/* A row tells what a LoLCATs model's windows were, and how much of a document was fed. */
static void test_settings_of_a_row(void **state) {
    (void)state;
    static const char model[] = "tests/data/window_modes/terrace.gguf";
    static const char *const modes[] = {"sliding", "terrace", "terrace-hf"};
    for (size_t i = 0; i < 3; i++) {
        char arguments[128];
        snprintf(arguments, sizeof arguments, "--task copy:N=20,n=2 --window-mode %s", modes[i]);
        json_t *rows = run_well(arguments, model);
        assert_string_equal(text(rows, 0, "window_mode"), modes[i]);
        assert_true(json_is_null(json_object_get(json_array_get(rows, 0), "max_ctx")));
        json_decref(rows);
    }
    char arguments[256];
    write_lines("text", "abcabcab");
    snprintf(arguments, sizeof arguments, "--task ar:%s --max-ctx 5", at("text"));
    json_t *rows = run_well(arguments, paired);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 0), "window_mode")));
    assert_true(number(rows, 0, "max_ctx") == 5);
    json_decref(rows);
    assert_int_equal(recall(NULL, "-m %s --task copy --window-mode terrace", copying), 1);
    assert_non_null(strstr(complaint(), "window mode terrace is for LoLCATs models"));
}

static void test_twice(void **state) {
    (void)state;
    json_t *once = run_well("--task passkey --len 900 --n 2", copying);
    json_t *twice = run_well("--task passkey --len 900 --n 2 --twice --view both", copying);
    assert_true(number(twice, 0, "acc") == 1 && number(once, 0, "acc") == 1);
    assert_true(number(twice, 0, "prompt_tokens_max") <= 884);
    json_decref(once);
    json_decref(twice);
    char *lines = dump_of("--task factbook --len 900 --n 1 --twice", copying);
    assert_non_null(strstr(lines, "\"prompt\":\"Information about "));
    free(lines);
}

static void test_documents(void **state) {
    (void)state;
    char arguments[256];
    write_lines("docs.jsonl",
                "{\"text\": \"name: Ada Lovelace\\ncity: London town\\nname:\", \"key\": "
                "\"name\", \"value\": \"ada lovelace\"}\n\n"
                "{\"prompt\": \"the code is 7431. what? the code is\", \"answers\": [\"7431\"]}\n");
    snprintf(arguments, sizeof arguments, "--activations exact --view both --task jsonl:%s",
             at("docs.jsonl"));
    json_t *rows = run_well(arguments, copying);
    assert_true(number(rows, 0, "acc") == 1 && number(rows, 0, "n") == 2);
    assert_string_equal(text(rows, 0, "preset"), "lmeval-v1");
    assert_string_equal(text(rows, 0, "cut"), "left");
    json_decref(rows);
}

static void refused(const char *sentence, const char *arguments) {
    if (recall(NULL, "-m %s %s", copying, arguments) != 1 || !strstr(complaint(), sentence))
        fail_msg("%s\nexpected: %s\nfound: %s", arguments, sentence, complaint());
}

/* Lines of a file that are not what the task needs. */
static void test_bad_lines(void **state) {
    (void)state;
    static const struct {
        const char *line, *preset, *sentence;
    } cases[] = {
        {"{\"text\": 3, \"value\": \"a\"}", "lmeval-v1",
         "\"text\": expected a text, found a number"},
        {"{}", "lmeval-v1", "\"text\": expected a text (or"},
        {"{\"text\": \"a b\", \"key\": null, \"value\": \"b\"}", "jrt",
         "\"key\": expected a text, found null"},
        {"{\"text\": \"a b\", \"key\": \"kk\"}", "jrt", "\"value\": expected a text, or"},
        {"{\"text\": \"a b\", \"value\": [\"b\"]}", "jrt",
         "\"value\": expected a text, found a list"},
        {"{\"text\": \"a b\", \"answers\": [\"b\", 1]}", "jrt",
         "\"answers\": expected a list of texts, found a number"},
        {"{\"text\": \"a b\", \"answers\": []}", "jrt", "\"answers\": expected"},
        {"{\"prompt\": \"a b\", \"answers\": [\"b\"]}", "jrt", "\"prompt\": the preset jrt makes"},
        {"{\"context\": \"a b\", \"question\": \"q\", \"answers\": [\"b\"]}", "lmeval-v0",
         "\"text\": the preset lmeval-v0 expects"},
        {"{\"context\": \"a bb\", \"answers\": [\"bb\"]}", "jrt", "\"question\": expected a text"},
        {"{\"text\": \"a bb\", \"value\": \"bb\", \"question\": \"q\"}", "jrt-twice",
         "\"context\": expected a text"},
        {"{\"text\": \"a b\", \"value\": \"cc\"}", "lmeval-v1",
         "\"value\": 'cc' does not occur in \"text\""},
        {"[1]", "jrt", "expected a JSON object"},
        {"{\"text\"", "jrt", "not JSON"},
    };
    char arguments[300], sentence[300], lines[300];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(lines, sizeof lines,
                 "{\"text\": \"x yy\", \"value\": \"yy\", \"context\": \"c\", "
                 "\"question\": \"q\"}\n\n%s\n",
                 cases[i].line);
        write_lines("bad.jsonl", lines);
        snprintf(arguments, sizeof arguments, "--preset %s --task jsonl:%s", cases[i].preset,
                 at("bad.jsonl"));
        snprintf(sentence, sizeof sentence, "%s, line 3: ", at("bad.jsonl"));
        refused(sentence, arguments);
        refused(cases[i].sentence, arguments);
    }
    write_lines("bad.jsonl", "{\"text\": \"a b\", \"value\": \"cc\"}\n{\"text\": \"a\", "
                             "\"value\": \"\"}\n");
    snprintf(arguments, sizeof arguments, "--absent skip --task jsonl:%s", at("bad.jsonl"));
    refused("has no line to ask (2 left out)", arguments);
    write_lines("bad.jsonl", "");
    refused("has no line to ask (0 left out)", arguments);
    snprintf(arguments, sizeof arguments, "--task jsonl:%s", at("none.jsonl"));
    refused("cannot open", arguments);
    write_lines("text", "abcdefgh");
    snprintf(arguments, sizeof arguments, "--task ar:%s", at("text"));
    refused("ar asks for nothing here", arguments);
    /* An answer that is not there is skipped, or asked, where the user says so. */
    write_lines("bad.jsonl", "{\"text\": \"a b\", \"value\": \"cc\"}\n{\"text\": \"a dd a\", "
                             "\"value\": \"dd\"}\n");
    snprintf(arguments, sizeof arguments, "--absent skip --task jsonl:%s", at("bad.jsonl"));
    json_t *rows = run_well(arguments, copying);
    assert_true(number(rows, 0, "n") == 1 && number(rows, 0, "n_skipped") == 1);
    json_decref(rows);
    snprintf(arguments, sizeof arguments, "--absent keep --task jsonl:%s", at("bad.jsonl"));
    rows = run_well(arguments, copying);
    assert_true(number(rows, 0, "n") == 2 && number(rows, 0, "n_skipped") == 0);
    json_decref(rows);
}

static void test_refusals(void **state) {
    (void)state;
    char arguments[256];
    refused("mqar needs ids below V=8192, but", "--task mqar");
    refused("niah1 of 4096 tokens is longer than the context", "--task niah1 --len 4096");
    refused("mqar of 4096 tokens is longer", "--task mqar:V=256,L=4096,K=4");
    refused("the shortest prompt has", "--task niah1 --len 200 --n 2");
    refused("copy needs 300 different tokens", "--task copy:N=300");
    refused("copy at --len 3 leaves no room", "--task copy --len 3");
    refused("below --min-acc 0.9", "--task niah1 --n 1 --len 700 --min-acc 0.9");
    refused("prompt 0 has", "--task phonebook:N=200 --n 1");
    write_lines("text", "ab");
    snprintf(arguments, sizeof arguments, "--task ar:%s", at("text"));
    refused("expected at least 4", arguments);
    write_lines("text", " \n ");
    snprintf(arguments, sizeof arguments, "--task niah2:haystack=%s", at("text"));
    refused("holds no words", arguments);
    /* A row that is there stays when the next one fails. */
    json_t *rows = NULL;
    int code = recall(&rows, "-m %s --task phonebook:N=9 --task phonebook:N=200 --n 1 --save %s",
                      copying, at("kept.jsonl"));
    assert_int_equal(code, 1);
    assert_int_equal(json_array_size(rows), 1);
    json_decref(rows);
    rows = json_load_file(at("kept.jsonl"), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(rows, "params")), "N=9");
    json_decref(rows);
}

static int make_models(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/linnet-recall-XXXXXX");
    if (!mkdtemp(folder)) return 1;
    snprintf(copying, sizeof copying, "%s/copying.gguf", folder);
    snprintf(paired, sizeof paired, "%s/paired.gguf", folder);
    snprintf(knowing_nothing, sizeof knowing_nothing, "%s/knowing-nothing.gguf", folder);
    write_copy_model(copying, 0.5f);
    write_copy_model(paired, 0.125f);
    write_random_model(knowing_nothing);
    return 0;
}

static int remove_models(void **state) {
    static const char *const names[] = {"copying.gguf",
                                        "paired.gguf",
                                        "knowing-nothing.gguf",
                                        "out.json",
                                        "err.txt",
                                        "a",
                                        "b",
                                        "in.jsonl",
                                        "dump.jsonl",
                                        "text",
                                        "docs.jsonl",
                                        "bad.jsonl",
                                        "kept.jsonl"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(at(names[i]));
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splitmix),
        cmocka_unit_test(test_hash_of_a_file),
        cmocka_unit_test(test_mqar_golden),
        cmocka_unit_test(test_mqar_distribution),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_scoring),
        cmocka_unit_test(test_wilson),
        cmocka_unit_test(test_presets),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_prompts_fill),
        cmocka_unit_test(test_depths),
        cmocka_unit_test(test_perfect_recall),
        cmocka_unit_test(test_chance),
        cmocka_unit_test(test_data_hash),
        cmocka_unit_test(test_nothing_leaks),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_settings_of_a_row),
        cmocka_unit_test(test_twice),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_models, remove_models);
}
