#include "flags.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "talk.h"

enum { SWITCH, WHOLE, SIZE, U64, REAL, TEXT, CHOICE, TEXTS, NUMBERS, TITLE };

/* ---- the table ---------------------------------------------------------------------------- */

void flags_begin(flag_table *f, const char *command, const char *usage, const char *about) {
    memset(f, 0, sizeof *f);
    f->command = command;
    f->usage = usage;
    f->about = about;
}

static flag *add(flag_table *f, int kind, const char *names, const char *value, void *out,
                 const char *help) {
    static flag overflow; /* a table that is too small loses its last flags, and --help shows it */
    flag *x = f->n < MAX_FLAGS ? &f->flags[f->n++] : &overflow;
    *x = (flag){.kind = kind, .names = names, .value = value, .out = out, .help = help};
    return x;
}

void flags_title(flag_table *f, const char *title) {
    add(f, TITLE, "", NULL, NULL, title);
}

void flags_argument(flag_table *f, const char *name, const char **out) {
    if (f->n_arguments == MAX_ARGUMENTS) return;
    f->argument_names[f->n_arguments] = name;
    f->arguments[f->n_arguments++] = out;
}

void flags_arguments(flag_table *f, const char *name, text_list *out) {
    if (f->n_arguments == MAX_ARGUMENTS) return;
    f->argument_names[f->n_arguments] = name;
    f->rest = out;
}

void flag_switch(flag_table *f, const char *names, bool *out, const char *help) {
    add(f, SWITCH, names, NULL, out, help);
}

void flag_int(flag_table *f, const char *names, const char *value, int *out, int low, int high,
              const char *help) {
    flag *x = add(f, WHOLE, names, value, out, help);
    x->low = low;
    x->high = high;
}

void flag_size(flag_table *f, const char *names, const char *value, size_t *out, size_t low,
               const char *help) {
    flag *x = add(f, SIZE, names, value, out, help);
    x->low = (int64_t)low;
    x->high = INT64_MAX;
}

void flag_u64(flag_table *f, const char *names, const char *value, uint64_t *out,
              const char *help) {
    add(f, U64, names, value, out, help);
}

void flag_real(flag_table *f, const char *names, const char *value, float *out, double low,
               double high, const char *help) {
    flag *x = add(f, REAL, names, value, out, help);
    x->real_low = low;
    x->real_high = high;
}

void flag_text(flag_table *f, const char *names, const char *value, const char **out,
               const char *help) {
    add(f, TEXT, names, value, out, help);
}

void flag_choice(flag_table *f, const char *names, const char *choices, const char **out,
                 const char *help) {
    add(f, CHOICE, names, "NAME", out, help)->choices = choices;
}

void flag_texts(flag_table *f, const char *names, const char *value, text_list *out,
                const char *help) {
    add(f, TEXTS, names, value, out, help);
}

void flag_numbers(flag_table *f, const char *names, const char *value, number_list *out, int each,
                  int low, int high, const char *help) {
    flag *x = add(f, NUMBERS, names, value, out, help);
    x->low = low;
    x->high = high;
    x->each = each;
}

/* ---- numbers ------------------------------------------------------------------------------ */

bool parse_whole(const char *text, int64_t *out) {
    if (!isdigit((unsigned char)text[text[0] == '-'])) return false; /* no spaces, no '+' */
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || *end) return false;
    *out = v;
    return true;
}

bool parse_u64(const char *text, uint64_t *out) {
    if (!isdigit((unsigned char)text[0])) return false; /* strtoull would wrap "-1" */
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno || *end) return false;
    *out = v;
    return true;
}

bool parse_real(const char *text, double *out) {
    /* Only the letter of an exponent: strtod would also take nan, infinity and hexadecimal. */
    if (!*text || text[strspn(text, "0123456789.eE+-")]) return false;
    char *end;
    double v = strtod(text, &end);
    if (*end || end == text || !isfinite(v)) return false;
    *out = v;
    return true;
}

/* ---- parsing ------------------------------------------------------------------------------ */

int misused(const char *command, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    complain("%s; see linnet %s%s--help", text, command, *command ? " " : "");
    return EXIT_MISUSED;
}

const char *flag_spelling(const flag *x, const char *after, size_t *n) {
    const char *p = after ? after + *n + (after[*n] == '/') : x->names;
    *n = strcspn(p, "/");
    return p;
}

static bool is_named(const flag *x, const char *name, size_t n) {
    size_t length;
    for (const char *p = flag_spelling(x, NULL, &length); length; p = flag_spelling(x, p, &length))
        if (length == n && !memcmp(p, name, n)) return true;
    return false;
}

static bool is_choice(const char *choices, const char *value) {
    size_t n = strlen(value);
    for (const char *p = choices; *p; p += strspn(p, " ")) {
        size_t length = strcspn(p, " ");
        if (length == n && !memcmp(p, value, n)) return true;
        p += length;
    }
    return false;
}

static bool append_numbers(const flag *x, const char *value) {
    number_list *list = x->out;
    int before = list->n;
    for (const char *p = value;; p++) {
        char one[24];
        int64_t whole;
        size_t n = strcspn(p, ",");
        if (n >= sizeof one || list->n == MAX_NUMBERS) return false;
        memcpy(one, p, n);
        one[n] = '\0';
        if (!parse_whole(one, &whole) || whole < x->low || whole > x->high) return false;
        list->at[list->n++] = (int)whole;
        p += n;
        if (!*p) return !x->each || list->n - before == x->each;
    }
}

static int append_text(text_list *list, const char *name, const char *value) {
    const char **grown = realloc(list->at, (list->n + 1) * sizeof *grown);
    if (!grown) {
        complain("out of memory for %s", name);
        return EXIT_FAILED;
    }
    list->at = grown;
    list->at[list->n++] = value;
    return KEEP_GOING;
}

static int set_value(const flag_table *f, const flag *x, const char *name, const char *value) {
    int64_t whole;
    uint64_t big;
    double real;
    switch (x->kind) {
    case WHOLE:
    case SIZE:
        if (!parse_whole(value, &whole) || whole < x->low || whole > x->high) {
            return misused(f->command, "%s expects a whole number from %lld to %lld, found '%s'",
                           name, (long long)x->low, (long long)x->high, value);
        }
        if (x->kind == WHOLE)
            *(int *)x->out = (int)whole;
        else
            *(size_t *)x->out = (size_t)whole;
        break;
    case U64:
        if (!parse_u64(value, &big))
            return misused(f->command,
                           "%s expects a whole number from 0 to 18446744073709551615, found '%s'",
                           name, value);
        *(uint64_t *)x->out = big;
        break;
    case REAL:
        if (!parse_real(value, &real) || real < x->real_low || real > x->real_high)
            return misused(f->command, "%s expects a number from %g to %g, found '%s'", name,
                           x->real_low, x->real_high, value);
        *(float *)x->out = (float)real;
        break;
    case CHOICE:
        if (!is_choice(x->choices, value))
            return misused(f->command, "%s expects one of %s, found '%s'", name, x->choices, value);
        *(const char **)x->out = value;
        break;
    case TEXT:
        *(const char **)x->out = value;
        break;
    case NUMBERS:
        if (append_numbers(x, value)) break;
        char few[32];
        snprintf(few, sizeof few, "%s%d", x->each ? "" : "at most ",
                 x->each ? x->each : MAX_NUMBERS);
        return misused(f->command,
                       "%s expects %s whole numbers from %lld to %lld, commas between them, "
                       "found '%s'",
                       name, few, (long long)x->low, (long long)x->high, value);
    case TEXTS:
        return append_text(x->out, name, value);
    }
    return KEEP_GOING;
}

static void print_help(const flag_table *f);

static struct {
    void (*fn)(void *user, const flag_table *f);
    void *user;
} visit;

void flags_visit(void (*fn)(void *user, const flag_table *f), void *user) {
    visit.fn = fn;
    visit.user = user;
}

int flags_parse(flag_table *f, int argc, char **argv) {
    if (visit.fn) {
        visit.fn(visit.user, f);
        visit.fn = NULL;
        return EXIT_WORKED;
    }
    int n_found = 0;
    bool only_arguments = false; /* after "--" */

    for (int i = 1; i < argc; i++) { /* --help wins over any mistake beside it */
        if (!strcmp(argv[i], "--")) break;
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            print_help(f);
            return finish_stdout();
        }
        for (int k = 0; k < f->n; k++) /* the value of a flag is not a flag */
            if (f->flags[k].value && is_named(&f->flags[k], argv[i], strlen(argv[i]))) {
                i++;
                break;
            }
    }
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_arguments && !strcmp(word, "--")) {
            only_arguments = true;
            continue;
        }
        if (only_arguments || word[0] != '-' || !word[1]) {
            if (n_found < f->n_arguments) {
                *f->arguments[n_found++] = word;
                continue;
            }
            if (!f->rest) return misused(f->command, "unexpected argument '%s'", word);
            int code = append_text(f->rest, f->argument_names[f->n_arguments], word);
            if (code != KEEP_GOING) return code;
            continue;
        }
        /* "--name=value" is "--name value" */
        size_t length = word[1] == '-' ? strcspn(word, "=") : strlen(word);
        const char *value = word[length] ? word + length + 1 : NULL;
        const flag *x = NULL;
        for (int k = 0; k < f->n && !x; k++)
            if (is_named(&f->flags[k], word, length)) x = &f->flags[k];
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)length, word);
        if (!x) return misused(f->command, "unknown flag %s", name);
        if (x->kind == SWITCH) {
            if (value) return misused(f->command, "%s takes no value, found '%s'", name, value);
            *(bool *)x->out = true;
            continue;
        }
        if (!value) {
            if (++i == argc) return misused(f->command, "%s expects a value", name);
            value = argv[i];
        }
        int code = set_value(f, x, name, value);
        if (code != KEEP_GOING) return code;
    }
    if (n_found < f->n_arguments)
        return misused(f->command, "%s is missing", f->argument_names[n_found]);
    if (f->rest && !f->rest->n)
        return misused(f->command, "%s is missing", f->argument_names[f->n_arguments]);
    return KEEP_GOING;
}

/* ---- help --------------------------------------------------------------------------------- */

enum { HELP_WIDTH = 96, HELP_INDENT = 28 };

/* Prints `text` wrapped, starting in column `column`, later lines indented by `indent`. */
static void print_wrapped(const char *text, int column, int indent) {
    while (*text) {
        int word = (int)strcspn(text, " \n");
        if (column > indent && column + 1 + word > HELP_WIDTH) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            column += printf(" ");
        }
        column += printf("%.*s", word, text);
        text += word;
        if (*text == '\n') {
            printf("\n%*s", indent, "");
            column = indent;
        }
        if (*text) text++;
    }
    printf("\n");
}

static void print_help_flag(void) {
    printf("%-*s %s\n", HELP_INDENT - 1, "  -h, --help", "this text");
}

static void print_help(const flag_table *f) {
    printf("usage: linnet %s %s\n\n", f->command, f->usage);
    print_wrapped(f->about, 0, 0);
    for (int i = 0; i < f->n; i++) {
        const flag *x = &f->flags[i];
        if (x->kind == TITLE) {
            printf("\n%s\n", x->help);
            continue;
        }
        char left[128] = "  ", help[1024];
        size_t at = 2;
        for (const char *p = x->names; *p && at < sizeof left - 3; p++) {
            left[at++] = *p == '/' ? ',' : *p;
            if (*p == '/') left[at++] = ' ';
        }
        left[at] = '\0';
        if (x->value) snprintf(left + at, sizeof left - at, " %s", x->value);
        if (x->kind == CHOICE)
            snprintf(help, sizeof help, "%s (%s)", x->help, x->choices);
        else
            snprintf(help, sizeof help, "%s", x->help);
        int column = printf("%-*s", HELP_INDENT - 1, left);
        if (column >= HELP_INDENT) {
            printf("\n%*s", HELP_INDENT - 1, "");
            column = HELP_INDENT - 1;
        }
        printf(" ");
        print_wrapped(help, HELP_INDENT, HELP_INDENT);
    }
    print_help_flag();
}
