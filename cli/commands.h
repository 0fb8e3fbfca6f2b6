/* The commands: each takes its own argv (argv[0] is its name) and returns the exit code. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

typedef struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} command;

int command_run(int argc, char **argv);
int command_chat(int argc, char **argv);
int command_info(int argc, char **argv);
int command_tokenize(int argc, char **argv);
int command_detokenize(int argc, char **argv);
int command_logits(int argc, char **argv);
int command_perplexity(int argc, char **argv);
int command_quantize(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_recall(int argc, char **argv);
int command_pareto(int argc, char **argv);
int command_serve(int argc, char **argv);

/* Of all commands: what a shell wants to know (`completion SHELL`), and the manual page. */
int command_completion(int argc, char **argv, const command *commands, int n);
int command_manual(int argc, char **argv, const command *commands, int n);

#endif
