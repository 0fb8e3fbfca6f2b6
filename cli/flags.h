/* One flag parser for all commands. A command fills a table with typed calls; parsing, range checks
 * and --help come from that one table. Flags and positional arguments may come in any order. */
#ifndef CLI_FLAGS_H
#define CLI_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EXIT_WORKED = 0, EXIT_FAILED = 1, EXIT_MISUSED = 2, KEEP_GOING = -1 };

typedef struct {
    const char **at;
    size_t n;
} text_list; /* the values of a repeatable flag, in order; the texts belong to argv */

enum { MAX_NUMBERS = 64 };

typedef struct {
    int at[MAX_NUMBERS];
    int n;
} number_list;

typedef struct {
    const char *names; /* "-t/--threads"; empty: a heading, whose text is `help` */
    const char *value; /* what --help calls the value; NULL for a switch */
    const char *help;
    int kind;
    void *out;
    int64_t low, high; /* whole numbers */
    int each;          /* of a list: how many numbers a value has; 0 = any */
    double real_low, real_high;
    const char *choices; /* "auto cpu" */
} flag;

enum { MAX_FLAGS = 40, MAX_ARGUMENTS = 3 };

typedef struct {
    const char *command; /* "run" */
    const char *usage;   /* what follows "linnet run" */
    const char *about;   /* paragraphs, separated by newlines */
    flag flags[MAX_FLAGS];
    int n;
    const char *argument_names[MAX_ARGUMENTS];
    const char **arguments[MAX_ARGUMENTS];
    int n_arguments;
    text_list *rest; /* takes the arguments after those, at least one */
} flag_table;

/* All strings must outlive the table. `out` keeps its value, the default, when a flag is absent. */
void flags_begin(flag_table *f, const char *command, const char *usage, const char *about);
void flags_title(flag_table *f, const char *title); /* a heading in --help */
void flags_argument(flag_table *f, const char *name, const char **out);
void flags_arguments(flag_table *f, const char *name, text_list *out); /* one or more; the last */
void flag_switch(flag_table *f, const char *names, bool *out, const char *help);
void flag_int(flag_table *f, const char *names, const char *value, int *out, int low, int high,
              const char *help);
void flag_size(flag_table *f, const char *names, const char *value, size_t *out, size_t low,
               const char *help);
void flag_u64(flag_table *f, const char *names, const char *value, uint64_t *out, const char *help);
void flag_real(flag_table *f, const char *names, const char *value, float *out, double low,
               double high, const char *help);
void flag_text(flag_table *f, const char *names, const char *value, const char **out,
               const char *help);
void flag_choice(flag_table *f, const char *names, const char *choices, const char **out,
                 const char *help);
void flag_texts(flag_table *f, const char *names, const char *value, text_list *out,
                const char *help);
/* Whole numbers with commas between them, `each` of them per value (0 = any); values of a repeated
 * flag are appended. */
void flag_numbers(flag_table *f, const char *names, const char *value, number_list *out, int each,
                  int low, int high, const char *help);

/* The next flags_parse hands its table to `visit` instead of parsing, and returns EXIT_WORKED. */
void flags_visit(void (*visit)(void *user, const flag_table *f), void *user);
/* The spellings of a flag, one after the other: its length in *n, 0 after the last. */
const char *flag_spelling(const flag *x, const char *after, size_t *n);

/* argv[0] is the command. Returns KEEP_GOING, or an exit code: EXIT_WORKED after --help,
 * EXIT_MISUSED after a sentence about the first thing that is wrong. */
int flags_parse(flag_table *f, int argc, char **argv);
/* "linnet: SENTENCE; see linnet COMMAND --help" on stderr; returns EXIT_MISUSED. */
__attribute__((format(printf, 2, 3))) int misused(const char *command, const char *format, ...);

/* Whole-string numbers: nothing before, nothing after, no nan or inf; false otherwise. */
bool parse_whole(const char *text, int64_t *out);
bool parse_u64(const char *text, uint64_t *out);
bool parse_real(const char *text, double *out);

#endif
