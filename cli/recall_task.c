/* The tasks by name, and what stands behind the name. */
#include <stdlib.h>
#include <string.h>

#include "recall.h"

const recall_task *const recall_tasks[] = {
    &task_mqar,      &task_passkey, &task_niah1,    &task_niah2, &task_niah3, &task_mk2,
    &task_phonebook, &task_copy,    &task_factbook, &task_ar,    &task_jsonl, NULL};

/* ---- parameters --------------------------------------------------------------------------- */

typedef struct {
    const char *key;
    enum { WHOLE, REAL, WORD } kind;
    size_t offset; /* in recall_params */
    int low, high;
    const char *words; /* "a b": one of them; NULL: any text */
} parameter;

static const parameter parameters[] = {
    {"V", WHOLE, offsetof(recall_params, V), 4, 1 << 30, NULL},
    {"L", WHOLE, offsetof(recall_params, L), 2, 1 << 24, NULL},
    {"K", WHOLE, offsetof(recall_params, K), 1, 1 << 22, NULL},
    {"a", REAL, offsetof(recall_params, a), 0, 1, NULL},
    {"P", WHOLE, offsetof(recall_params, P), 1, 1 << 10, NULL},
    {"N", WHOLE, offsetof(recall_params, N), 2, 1 << 24, NULL},
    {"n", WHOLE, offsetof(recall_params, n), 1, 1 << 24, NULL},
    {"fill", WORD, offsetof(recall_params, fill), 0, 0, "random zero"},
    {"haystack", WORD, offsetof(recall_params, haystack), 0, 0, NULL},
};

/* `word` (n bytes) is one of a list with spaces between. */
static bool listed(const char *list, const char *word, size_t n) {
    for (const char *p = list; *p; p += strspn(p, " ")) {
        size_t length = strcspn(p, " ");
        if (length == n && !memcmp(p, word, n)) return true;
        p += length;
    }
    return false;
}

static const parameter *find_parameter(const char *keys, const char *key) {
    for (size_t i = 0; i < sizeof parameters / sizeof *parameters; i++)
        if (!strcmp(parameters[i].key, key) && listed(keys, key, strlen(key)))
            return &parameters[i];
    return NULL;
}

static int set_parameter(recall_job *job, const char *key, const char *value) {
    const char *name = job->task->name;
    const parameter *x = find_parameter(job->task->keys, key);
    char *at = (char *)&job->params + (x ? x->offset : 0);
    int64_t whole;
    double real;
    if (!x)
        return misused("recall", "%s has no parameter '%s'; it has: %s", name, key,
                       *job->task->keys ? job->task->keys : "none");
    if (x->kind == WHOLE) {
        if (!parse_whole(value, &whole) || whole < x->low || whole > x->high)
            return misused("recall", "%s: %s expects a whole number from %d to %d, found '%s'",
                           name, key, x->low, x->high, value);
        *(int *)(void *)at = (int)whole;
    } else if (x->kind == REAL) {
        if (!parse_real(value, &real) || real <= x->low || real > x->high)
            return misused("recall", "%s: %s expects a number above %d, at most %d, found '%s'",
                           name, key, x->low, x->high, value);
        *(double *)(void *)at = real;
    } else {
        if (!*value || (x->words && !listed(x->words, value, strlen(value))))
            return misused("recall", "%s: %s expects %s%s, found '%s'", name, key,
                           x->words ? "one of " : "a file", x->words ? x->words : "", value);
        *(const char **)(void *)at = value;
    }
    return EXIT_WORKED;
}

static int unknown_task(const char *spec, size_t n) {
    char list[256];
    size_t at = 0;
    for (size_t i = 0; recall_tasks[i]; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, " %s%s", recall_tasks[i]->name,
                               recall_tasks[i]->takes_file ? ":FILE" : "");
    return misused("recall", "unknown task '%.*s'; the tasks are%s", (int)n, spec, list);
}

int recall_parse(recall_job *job, const char *spec) {
    size_t n = strcspn(spec, ":");
    for (size_t i = 0; recall_tasks[i] && !job->task; i++)
        if (strlen(recall_tasks[i]->name) == n && !memcmp(recall_tasks[i]->name, spec, n))
            job->task = recall_tasks[i];
    if (!job->task) return unknown_task(spec, n);
    job->spec = strdup(spec + n + (spec[n] == ':'));
    if (!job->spec) return failed("out of memory");
    job->params.V = 8192, job->params.L = 256, job->params.K = 64, job->params.P = 1;
    job->params.a = 0.01;
    job->params.fill = "random", job->params.haystack = "austen";
    if (job->task->takes_file) {
        job->file = job->spec;
        if (*job->file) return EXIT_WORKED;
        return misused("recall", "%s expects a file: %s:FILE", job->task->name, job->task->name);
    }
    if (spec[n] && !spec[n + 1])
        return misused("recall", "%s: expects KEY=VALUE after the colon", job->task->name);
    for (char *p = job->spec; *p;) {
        char *next = p + strcspn(p, ","), *value = p + strcspn(p, "=,");
        if (*next) *next++ = '\0';
        if (*value != '=')
            return misused("recall", "%s expects KEY=VALUE, found '%s'", job->task->name, p);
        *value++ = '\0';
        int code = set_parameter(job, p, value);
        if (code) return code;
        p = next;
    }
    return EXIT_WORKED;
}

bool recall_params_text(const recall_job *job, text_buffer *out) {
    if (job->task->takes_file) {
        const char *slash = strrchr(job->file, '/');
        return text_printf(out, "file=%s", slash ? slash + 1 : job->file);
    }
    bool good = text_append(out, "", 0);
    for (size_t i = 0; good && i < sizeof parameters / sizeof *parameters; i++) {
        const parameter *x = &parameters[i];
        const char *at = (const char *)&job->params + x->offset, *comma = out->n ? "," : "";
        if (!find_parameter(job->task->keys, x->key) || !strcmp(x->key, "n")) continue;
        if (x->kind == WHOLE && *(const int *)(const void *)at)
            good = text_printf(out, "%s%s=%d", comma, x->key, *(const int *)(const void *)at);
        else if (x->kind == REAL)
            good = text_printf(out, "%s%s=%g", comma, x->key, *(const double *)(const void *)at);
        else if (x->kind == WORD)
            good =
                text_printf(out, "%s%s=%s", comma, x->key, *(const char *const *)(const void *)at);
    }
    return good;
}

const char *recall_task_help(void) {
    static char text[4096];
    size_t at = 0;
    for (size_t i = 0; recall_tasks[i] && at < sizeof text; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s%s: %s", i ? "\n" : "",
                               recall_tasks[i]->name, recall_tasks[i]->takes_file ? ":FILE" : "",
                               recall_tasks[i]->help);
    return text;
}

/* ---- items -------------------------------------------------------------------------------- */

void recall_item_clear(recall_item *item) {
    json_decref(item->answers);
    item->answers = NULL;
    item->intro.n = item->context.n = item->question.n = item->said.n = 0;
    item->ids.n = item->labels.n = item->others.n = item->guesses.n = item->gold.n = 0;
    item->scored = item->hits = item->n_nats = item->n_others = 0;
    item->label_nats = item->other_nats = 0;
    item->once = item->cut_off = false;
}

void recall_item_free(recall_item *item) {
    json_decref(item->answers);
    free(item->intro.at);
    free(item->context.at);
    free(item->question.at);
    free(item->said.at);
    free(item->ids.at);
    free(item->labels.at);
    free(item->others.at);
    free(item->guesses.at);
    free(item->gold.at);
    *item = (recall_item){0};
}

random_stream recall_random(const recall_cell *cell, size_t i) {
    uint64_t words[] = {cell->job->seed, 0x7265,
                        (uint64_t)i}; /* apart from mqar's, which are six */
    return random_for(words, sizeof words / sizeof *words);
}

bool recall_draw(random_stream *r, size_t n, size_t total, uint32_t *out) {
    uint32_t *deck = malloc(total * sizeof *deck);
    for (size_t i = 0; deck && i < total; i++)
        deck[i] = (uint32_t)i;
    for (size_t i = 0; deck && i < n; i++) {
        size_t j = i + (size_t)random_next(r, total - i);
        out[i] = deck[j];
        deck[j] = deck[i];
    }
    bool good = deck;
    free(deck);
    return good;
}

bool recall_answer(recall_item *item, const char *text, size_t n) {
    if (!item->answers) item->answers = json_array();
    json_t *value = json_stringn_nocheck(text, n);
    return item->answers && value && !json_array_append_new(item->answers, value);
}

/* ---- words -------------------------------------------------------------------------------- */

const char *const recall_adjectives[64] = {
    "able",   "amber",  "ancient", "bold",    "brave",  "bright", "brisk",   "calm",
    "clever", "cold",   "crisp",   "curious", "dark",   "deep",   "dry",     "eager",
    "early",  "easy",   "faint",   "fair",    "fancy",  "fast",   "fierce",  "fine",
    "firm",   "flat",   "fresh",   "gentle",  "glad",   "golden", "grand",   "gray",
    "green",  "happy",  "heavy",   "hollow",  "humble", "icy",    "jolly",   "keen",
    "kind",   "late",   "light",   "little",  "lively", "loud",   "lucky",   "mellow",
    "mild",   "modern", "narrow",  "neat",    "noble",  "odd",    "patient", "plain",
    "proud",  "quick",  "quiet",   "rapid",   "rough",  "silver", "steady",  "young"};
const char *const recall_nouns[64] = {
    "anchor",  "apple",  "arrow",  "badge",   "basket",  "beacon", "bell",   "bottle",
    "bridge",  "button", "candle", "canyon",  "carpet",  "castle", "cherry", "circle",
    "cloud",   "copper", "cotton", "desert",  "dragon",  "drum",   "engine", "falcon",
    "feather", "fence",  "forest", "garden",  "glove",   "hammer", "harbor", "hill",
    "island",  "jacket", "kettle", "ladder",  "lantern", "lemon",  "marble", "meadow",
    "mirror",  "needle", "ocean",  "orchard", "paper",   "pencil", "pepper", "piano",
    "pocket",  "rabbit", "ribbon", "river",   "saddle",  "shadow", "spoon",  "squirrel",
    "stone",   "table",  "temple", "thunder", "tower",   "tunnel", "violin", "window"};
const char *const recall_first_names[64] = {
    "Ada",   "Alan",   "Alice",  "Amir",   "Anna",   "Arthur", "Basil",  "Bella",
    "Bruno", "Carla",  "Cecil",  "Clara",  "Colin",  "Daria",  "David",  "Diana",
    "Edgar", "Elena",  "Ellen",  "Emil",   "Erik",   "Esther", "Felix",  "Fiona",
    "Frank", "Gloria", "Grace",  "Gustav", "Hanna",  "Harold", "Helen",  "Hugo",
    "Ida",   "Irene",  "Ivan",   "Jacob",  "Jane",   "Joan",   "Julia",  "Karl",
    "Kate",  "Laura",  "Leo",    "Lucy",   "Marco",  "Maria",  "Martin", "Mina",
    "Nadia", "Nina",   "Nora",   "Oliver", "Oscar",  "Paula",  "Peter",  "Rachel",
    "Ralph", "Rosa",   "Samuel", "Sofia",  "Thomas", "Vera",   "Victor", "Walter"};
const char *const recall_last_names[64] = {
    "Abbott", "Adams",  "Archer", "Bailey", "Baker",   "Barnes", "Becker", "Bishop",
    "Brooks", "Burton", "Carter", "Castro", "Chen",    "Cole",   "Cooper", "Dalton",
    "Dixon",  "Doyle",  "Ellis",  "Evans",  "Fisher",  "Foster", "Fuller", "Garcia",
    "Gibson", "Gordon", "Grant",  "Hansen", "Harper",  "Hayes",  "Hughes", "Hunter",
    "Ibarra", "Jensen", "Kelly",  "Keller", "Lambert", "Larsen", "Lopez",  "Marsh",
    "Mason",  "Meyer",  "Miller", "Moreno", "Nash",    "Nolan",  "Norris", "Olsen",
    "Palmer", "Parker", "Porter", "Quinn",  "Ramsey",  "Reyes",  "Rogers", "Sawyer",
    "Shaw",   "Silva",  "Taylor", "Turner", "Vargas",  "Wagner", "Weber",  "Young"};
