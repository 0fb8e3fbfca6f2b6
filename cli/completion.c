/* linnet completion: scripts that let a shell complete commands, flags and their values. They are
 * made from the tables that parse the command line, so nothing is written twice. */
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "flags.h"
#include "talk.h"

static const char about[] =
    "Prints a script that lets a shell complete linnet's commands, flags and values.\n"
    "bash: source <(linnet completion bash). zsh: linnet completion zsh >_linnet in a folder of "
    "$fpath. fish: linnet completion fish | source.";

typedef enum { NO_FILE, ANY_FILE, MODEL_FILE } file_kind;

/* What --help calls a value says whether it is a file. */
static file_kind file_of(const char *value) {
    static const char *const words[] = {"FILE", "PATH", "FOLDER", "DIR", "OUT"};
    if (!value) return NO_FILE;
    if (!strcmp(value, "MODEL") || !strcmp(value, "IN.gguf")) return MODEL_FILE;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(value, words[i])) return ANY_FILE;
    return NO_FILE;
}

/* Whether an argument of the command is a file of this kind. */
static bool takes(const flag_table *f, file_kind kind) {
    for (int i = 0; i < f->n_arguments + (f->rest != NULL); i++)
        if (file_of(f->argument_names[i]) == kind) return true;
    return false;
}

static bool is_title(const flag *x) {
    return !x->names[0];
}

/* The first sentence of a help text, with what `special` lists behind a backslash; a single quote
 * becomes `quote`. */
static void print_brief(const char *help, const char *special, const char *quote) {
    size_t n = strcspn(help, ";");
    for (const char *dot = help; (dot = strstr(dot, ". ")) && dot < help + n; dot++)
        n = (size_t)(dot - help);
    for (size_t i = 0; i < n; i++) {
        if (help[i] == '\'') {
            printf("%s", quote);
            continue;
        }
        if (strchr(special, help[i])) putchar('\\');
        putchar(help[i] == '\n' ? ' ' : help[i]);
    }
}

/* Every spelling of a flag with `between` between them. */
static void print_spellings(const flag *x, const char *between) {
    size_t n;
    for (const char *p = flag_spelling(x, NULL, &n); n;) {
        printf("%.*s", (int)n, p);
        p = flag_spelling(x, p, &n);
        if (n) printf("%s", between);
    }
}

/* ---- bash --------------------------------------------------------------------------------- */

static void bash_command(void *user, const flag_table *f) {
    (void)user;
    printf("    %s)\n        flags=\"", f->command);
    for (int i = 0; i < f->n; i++)
        if (!is_title(&f->flags[i])) {
            print_spellings(&f->flags[i], " ");
            printf(" ");
        }
    printf("-h --help\"\n        case $before in\n");
    for (int i = 0; i < f->n; i++) {
        const flag *x = &f->flags[i];
        if (is_title(x) || !x->value) continue;
        printf("        ");
        print_spellings(x, "|");
        if (x->choices)
            printf(") words=\"%s\" ;;\n", x->choices);
        else if (file_of(x->value) == NO_FILE)
            printf(") return ;;\n");
        else
            printf(") files=%s ;;\n", file_of(x->value) == MODEL_FILE ? "models" : "all");
    }
    printf("        *) arguments=%s ;;\n        esac ;;\n", takes(f, ANY_FILE)     ? "all"
                                                            : takes(f, MODEL_FILE) ? "models"
                                                                                   : "");
}

static void bash_begin(const command *commands, int n) {
    printf("# bash completion of linnet " LINNET_VERSION ", made by `linnet completion bash`\n"
           "_linnet() {\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
           "    local flags=\"\" words=\"\" files=\"\" arguments=\"\"\n"
           "    COMPREPLY=()\n"
           "    # --flag=value comes as three words\n"
           "    if [ \"$word\" = = ]; then word=\"\"; "
           "elif [ \"$before\" = = ]; then before=${COMP_WORDS[COMP_CWORD - 2]}; fi\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        words=\"--help --version completion");
    for (int i = 0; i < n; i++)
        printf(" %s", commands[i].name);
    printf("\"\n    else case ${COMP_WORDS[1]} in\n"
           "    completion) words=\"bash zsh fish\" ;;\n");
}

static void bash_end(void) {
    printf(
        "    esac; fi\n"
        "    [ -z \"$words$files\" ] && case $word in -*) words=$flags ;; *) files=$arguments ;; "
        "esac\n"
        "    if [ -n \"$words\" ]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
        "    elif [ -n \"$files\" ]; then\n"
        "        compopt -o filenames 2>/dev/null\n"
        "        if [ \"$files\" = models ]; then\n"
        "            mapfile -t COMPREPLY < <(compgen -f -X '!*.gguf' -- \"$word\"; compgen -d -- "
        "\"$word\")\n"
        "        else\n"
        "            mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n"
        "        fi\n"
        "    fi\n"
        "}\n"
        "complete -F _linnet linnet\n");
}

/* ---- zsh ---------------------------------------------------------------------------------- */

static void zsh_files(file_kind kind) {
    printf("%s", kind == MODEL_FILE ? "_files -g \"*.gguf\"" : kind == ANY_FILE ? "_files" : " ");
}

static void zsh_command(void *user, const flag_table *f) {
    (void)user;
    printf("    %s)\n        _arguments -S '(- *)'{-h,--help}'[help]'", f->command);
    for (int i = 0; i < f->n; i++) {
        const flag *x = &f->flags[i];
        size_t n;
        if (is_title(x)) continue;
        for (const char *p = flag_spelling(x, NULL, &n); n; p = flag_spelling(x, p, &n)) {
            printf(" \\\n            '*%.*s[", (int)n, p);
            print_brief(x->help, "[]:\\", "'\\''");
            printf("]");
            if (x->value) {
                printf(":%s:", strcspn(x->value, "[:") < strlen(x->value) ? "VALUE" : x->value);
                if (x->choices)
                    printf("(%s)", x->choices);
                else
                    zsh_files(file_of(x->value));
            }
            printf("'");
        }
    }
    for (int i = 0; i < f->n_arguments + (f->rest != NULL); i++) {
        printf(" \\\n            '%s:%s:", f->rest && i == f->n_arguments ? "*" : "",
               f->argument_names[i]);
        zsh_files(file_of(f->argument_names[i]));
        printf("'");
    }
    printf(" ;;\n");
}

static void zsh_begin(const command *commands, int n) {
    printf("#compdef linnet\n# of linnet " LINNET_VERSION ", made by `linnet completion zsh`\n"
           "_linnet() {\n"
           "    if (( CURRENT == 2 )); then\n"
           "        local -a commands=(\n"
           "            'completion:a script for a shell'\n");
    for (int i = 0; i < n; i++) {
        printf("            '%s:", commands[i].name);
        print_brief(commands[i].help, ":\\", "'\\''");
        printf("'\n");
    }
    printf("        )\n        _describe command commands\n        return\n    fi\n"
           "    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n"
           "    case $command in\n"
           "    completion) _arguments ':SHELL:(bash zsh fish)' ;;\n");
}

static void zsh_end(void) {
    printf("    esac\n}\nif [ \"$funcstack[1]\" = _linnet ]; then _linnet \"$@\"; "
           "else compdef _linnet linnet; fi\n");
}

/* ---- fish --------------------------------------------------------------------------------- */

static void fish_line(const char *command) {
    printf("complete -c linnet -n '__fish_seen_subcommand_from %s'", command);
}

static void fish_command(void *user, const flag_table *f) {
    (void)user;
    for (int i = 0; i < f->n; i++) {
        const flag *x = &f->flags[i];
        size_t n;
        if (is_title(x)) continue;
        fish_line(f->command);
        for (const char *p = flag_spelling(x, NULL, &n); n; p = flag_spelling(x, p, &n))
            printf(" -%c %.*s",
                   p[1] == '-' ? 'l'
                   : n == 2    ? 's'
                               : 'o',
                   (int)n - 1 - (p[1] == '-'), p + 1 + (p[1] == '-'));
        if (x->choices)
            printf(" -x -a '%s'", x->choices);
        else if (x->value)
            printf(file_of(x->value) == NO_FILE ? " -x" : " -r -F");
        printf(" -d '");
        print_brief(x->help, "\\", "\\'");
        printf("'\n");
    }
    if (takes(f, MODEL_FILE) || takes(f, ANY_FILE)) {
        fish_line(f->command);
        printf(" -F\n");
    }
}

static void fish_begin(const command *commands, int n) {
    printf("# fish completion of linnet " LINNET_VERSION ", made by `linnet completion fish`\n"
           "complete -c linnet -f\n"
           "complete -c linnet -s h -l help -d help\n"
           "complete -c linnet -n __fish_use_subcommand -l version -d version\n"
           "complete -c linnet -n __fish_use_subcommand -a completion -d 'a script for a shell'\n"
           "complete -c linnet -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'\n");
    for (int i = 0; i < n; i++) {
        printf("complete -c linnet -n __fish_use_subcommand -a %s -d '", commands[i].name);
        print_brief(commands[i].help, "\\", "\\'");
        printf("'\n");
    }
}

static void fish_end(void) {}

/* ------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*begin)(const command *commands, int n);
    void (*command)(void *user, const flag_table *f);
    void (*end)(void);
} shell;

static const shell shells[] = {
    {"bash", bash_begin, bash_command, bash_end},
    {"zsh", zsh_begin, zsh_command, zsh_end},
    {"fish", fish_begin, fish_command, fish_end},
};

int command_completion(int argc, char **argv, const command *commands, int n) {
    const char *name = NULL;
    flag_table f;
    flags_begin(&f, "completion", "bash|zsh|fish", about);
    flags_argument(&f, "SHELL", &name);
    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++) {
        if (strcmp(name, shells[i].name)) continue;
        shells[i].begin(commands, n);
        for (int k = 0; k < n; k++) {
            flags_visit(shells[i].command, NULL);
            commands[k].run(0, NULL);
        }
        shells[i].end();
        return finish_stdout();
    }
    return misused("completion", "SHELL is bash, zsh or fish, found '%s'", name);
}
