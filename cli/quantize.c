/* linnet quantize: a model file with its matrices as another type. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../linnet_tools.h"
#include "commands.h"
#include "engine.h"

static const char *const types[] = {"f32",  "f16",  "bf16", "q8_0", "q4_0",
                                    "q4_1", "q4_K", "q6_K", NULL};

static const char about[] =
    "Rewrites a GGUF file with its matrices as TYPE: f32 f16 bf16 q8_0 q4_0 q4_1 q4_K q6_K. "
    "Metadata is kept. What stays wider is said: vectors stay as they are; rows that 256 does not "
    "divide become q5_0 instead of q4_K and q8_0 instead of q6_K; an embedding that is also the "
    "output matrix becomes q8_0 unless --pure. OUT.gguf appears when it is complete.";

/* Tensors that got another type for the same reason are told in one line. */
typedef struct {
    char dtype[16], why[256], first[80];
    size_t n;
} note_group;

typedef struct {
    note_group at[32];
    size_t n;
} notes;

static void take_note(void *user, const char *tensor, const char *dtype, const char *why) {
    notes *all = user;
    for (size_t i = 0; i < all->n; i++)
        if (!strcmp(all->at[i].dtype, dtype) && !strcmp(all->at[i].why, why)) {
            all->at[i].n++;
            return;
        }
    if (all->n == sizeof all->at / sizeof *all->at) { /* reasons without end: no grouping */
        say("%s stays %s: %s", tensor, dtype, why);
        return;
    }
    note_group *g = &all->at[all->n++];
    snprintf(g->dtype, sizeof g->dtype, "%s", dtype);
    snprintf(g->why, sizeof g->why, "%s", why);
    snprintf(g->first, sizeof g->first, "%s", tensor);
    g->n = 1;
}

static bool progress(void *user, const char *what, size_t done, size_t total) {
    (void)user; /* the notes */
    return show_progress(NULL, what, done, total);
}

static void print_notes(const notes *all) {
    for (size_t i = 0; i < all->n; i++) {
        const note_group *g = &all->at[i];
        if (g->n == 1)
            say("%s is %s: %s", g->first, g->dtype, g->why);
        else
            say("%s and %zu more are %s: %s", g->first, g->n - 1, g->dtype, g->why);
    }
}

int command_quantize(int argc, char **argv) {
    const char *in = NULL, *out = NULL, *type = NULL;
    bool quiet = false;
    notes all = {0};
    linnet_quantize_options options = {.note = take_note, .progress = progress, .user = &all};
    flag_table f;
    flags_begin(&f, "quantize", "IN.gguf OUT.gguf TYPE [--pure]", about);
    flags_argument(&f, "IN.gguf", &in);
    flags_argument(&f, "OUT.gguf", &out);
    flags_argument(&f, "TYPE", &type);
    flags_title(&f, "Flags");
    flag_switch(&f, "--pure", &options.pure, "also an embedding that is the output matrix");
    flag_switch(&f, "--quiet", &quiet, "only errors on stderr");

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    bool known = false;
    for (int i = 0; types[i]; i++)
        known = known || !strcmp(types[i], type);
    if (!known)
        return misused("quantize",
                       "TYPE is one of f32 f16 bf16 q8_0 q4_0 q4_1 q4_K q6_K, found '%s'", type);
    be_quiet(quiet);
    catch_interrupts(false);
    struct stat a, b;
    if (!stat(in, &a) && !stat(out, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return failed("%s and %s are the same file: quantizing loses precision, so the original "
                      "is kept",
                      in, out);
    linnet_error err;
    if (linnet_quantize(in, out, type, &options, &err)) return failed_with(&err);
    print_notes(&all);
    if (!stat(in, &a) && !stat(out, &b))
        say("wrote %s: %.1f MB, from %.1f MB", out, (double)b.st_size / 1e6,
            (double)a.st_size / 1e6);
    return EXIT_WORKED;
}
