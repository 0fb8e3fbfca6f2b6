/* linnet manual: the manual page, as man reads it, made from what --help prints. */
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "flags.h"
#include "talk.h"

/* roff's own characters as plain ones; `text` has n bytes. */
static void print_roff(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        switch (text[i]) {
        case '\\':
            printf("\\e");
            break;
        case '-':
            printf("\\-");
            break;
        case '\'':
            printf("\\(aq");
            break;
        case '`':
            printf("\\(ga");
            break;
        case '^':
            printf("\\(ha");
            break;
        case '~':
            printf("\\(ti");
            break;
        case '"':
            printf("\\(dq");
            break;
        case '.':
            printf(i ? "." : "\\&.");
            break;
        default:
            putchar(text[i]);
        }
}

/* Paragraphs that newlines separate. */
static void print_text(const char *text, const char *between) {
    for (;;) {
        size_t n = strcspn(text, "\n");
        print_roff(text, n);
        printf("\n");
        if (!text[n]) return;
        text += n + 1;
        if (*text && *text != '\n') printf("%s\n", between);
    }
}

static void print_flag(const flag *x) {
    printf(".TP\n");
    size_t n;
    for (const char *p = flag_spelling(x, NULL, &n); n;) {
        printf("\\fB");
        print_roff(p, n);
        printf("\\fR");
        p = flag_spelling(x, p, &n);
        if (n) printf(", ");
    }
    if (x->value) {
        printf(" \\fI");
        print_roff(x->value, strlen(x->value));
        printf("\\fR");
    }
    printf("\n");
    print_text(x->help, ".br");
    if (x->choices) {
        printf("(");
        print_roff(x->choices, strlen(x->choices));
        printf(")\n");
    }
}

static void print_command(void *user, const flag_table *f) {
    (void)user;
    printf(".SS linnet %s ", f->command);
    print_roff(f->usage, strlen(f->usage));
    printf("\n");
    print_text(f->about, ".PP");
    for (int i = 0; i < f->n; i++) {
        const flag *x = &f->flags[i];
        if (x->names[0]) {
            print_flag(x);
            continue;
        }
        printf(".PP\n\\fI");
        print_roff(x->help, strlen(x->help));
        printf("\\fR\n");
    }
}

int command_manual(int argc, char **argv, const command *commands, int n) {
    flag_table f;
    flags_begin(&f, "manual", "", "Prints the manual page: linnet manual | man -l -");
    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    printf(".\\\" Made by `linnet manual`.\n"
           ".TH LINNET 1 \"\" \"linnet " LINNET_VERSION "\" \"User Commands\"\n"
           ".SH NAME\nlinnet \\- runs language models from one GGUF file\n"
           ".SH SYNOPSIS\n\\fBlinnet\\fR \\fICOMMAND\\fR ...\n"
           ".SH DESCRIPTION\n"
           "Runs softmax, linearized and hybrid language models.\n"
           "Text goes to standard output, all else to stderr.\n");
    for (int i = 0; i < n; i++) {
        printf(".TP\n\\fB%s\\fR\n", commands[i].name);
        print_text(commands[i].help, ".br");
    }
    printf(".SH COMMANDS\n");
    for (int i = 0; i < n; i++) {
        flags_visit(print_command, NULL);
        commands[i].run(0, NULL);
    }
    printf(".SH EXIT STATUS\n0: it worked. 1: it did not, and one sentence on stderr says why.\n"
           "2: the command line is wrong.\n"
           ".SH SEE ALSO\nThe header linnet.h is the manual of the library.\n");
    return finish_stdout();
}
