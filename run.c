/* linnet: the command line. It stands on linnet.h, linnet_tools.h and error.h alone, as
 * any other program could.
 *
 * A map for reading, in the order in which a token is made:
 *   linnet.h            the public interface: model, session, feed, sample, generate
 *   run.c               this file: commands by name
 *   cli/run.c           `linnet run`: open, tokenize, feed the prompt, generate
 *   weights/            the model file: GGUF reading and writing, dtypes, quantization
 *   model.h, config.c, model.c   what a model is: its config, weights, mixers
 *   tokenizer/          text <-> ids: SentencePiece, byte-level BPE, chat templates
 *   session/            tokens, state, the prefix cache, sampling, generation
 *   attention/          one file per mixer
 *   kernels_cpu/        the forward pass and its hot loops, by instruction set
 *   backend.h, kernels_cuda/     the seam, and the same for NVIDIA GPUs
 *   server/             `linnet serve`; server.h starts with a map
 *   cli/                the other commands: flags.c parses for all of them, engine.c opens models;
 *                       recall.h starts with a map of `linnet recall`; completion.c and manual.c
 *                       tell shells and readers what the tables of flags say
 *   export/, train/     Python: checkpoints -> model files; small models trained, Llamas linearized
 *   python/, examples/, deploy/, models/, data/, tests/, bench/, docs/
 */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/talk.h"

static const command commands[] = {
    {"run", command_run, "continue a text"},
    {"chat", command_chat, "talk"},
    {"info", command_info, "what a model file holds"},
    {"tokenize", command_tokenize, "text to token ids"},
    {"detokenize", command_detokenize, "token ids to text"},
    {"logits", command_logits, "the model's output for a sequence of ids, as .npy"},
    {"perplexity", command_perplexity, "how well a model predicts a text"},
    {"quantize", command_quantize, "rewrite a model file with smaller weights"},
    {"bench", command_bench, "how fast, and in how much memory"},
    {"recall", command_recall, "accuracy on in-context lookup"},
    {"pareto", command_pareto, "recall against speed and state, as a picture"},
    {"serve", command_serve, "an OpenAI-compatible server and a web page"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *out) {
    fprintf(out, "usage: linnet COMMAND ...\n\nlinnet " LINNET_VERSION
                 ": runs language models from one GGUF file.\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
    fprintf(
        out,
        "\nlinnet COMMAND --help tells its flags; linnet completion bash|zsh|fish prints a script "
        "for a shell.\nText goes to standard output, all else to stderr.\n"
        "Exit code: 0 it worked, 1 it did not, 2 the command line is wrong.\n");
}

int main(int argc, char **argv) {
    prepare_process();
    if (argc < 2) {
        print_help(stderr);
        return EXIT_MISUSED;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        print_help(stdout);
        return finish_stdout();
    }
    if (!strcmp(name, "--version")) {
        printf("linnet " LINNET_VERSION "\n");
        return finish_stdout();
    }
    if (!strcmp(name, "completion"))
        return command_completion(argc - 1, argv + 1, commands, N_COMMANDS);
    if (!strcmp(name, "manual")) return command_manual(argc - 1, argv + 1, commands, N_COMMANDS);
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(name, commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    return misused("", name[0] == '-' ? "unknown flag %s" : "unknown command '%s'", name);
}
