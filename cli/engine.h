/* From flags to a model and a session, and what a person wants to know about a run: one place for
 * the options that every command shares. */
#ifndef CLI_ENGINE_H
#define CLI_ENGINE_H

#include "files.h"
#include "flags.h"
#include "talk.h"

typedef struct {
    const char *command;
    int threads, ctx; /* 0: the default */
    const char *backend, *isa, *activations, *kv, *window_mode;
    const char *load_state, *save_state; /* NULL: none */
    bool no_mmap, quiet, stats;
    bool own_progress; /* the command shows its own progress, not that of each feed */
    size_t prefill_tokens, decode_tokens; /* counted by engine_feed and by generate() */
    double prefill_seconds, decode_seconds;
} engine;

/* The common flags: threads and those of backend_flags (backend, isa, mmap, quiet). */
void engine_flags(flag_table *f, engine *e);
void backend_flags(flag_table *f, engine *e);
/* --activations and --kv; `activations` is the command's default. */
void precision_flags(flag_table *f, engine *e, const char *activations);
void context_flag(flag_table *f, engine *e);
void stats_flag(flag_table *f, engine *e);
void window_flag(flag_table *f, engine *e); /* --window-mode */
void state_flags(flag_table *f, engine *e); /* --load-state, --save-state */
/* What the flags mean for linnet_model_open; EXIT_MISUSED where they contradict each other. */
int engine_options(const engine *e, bool metadata_only, linnet_model_options *out);
/* A file's metadata and tokenizer only, or the model; EXIT_WORKED or another exit code. */
int engine_open(engine *e, const char *path, bool metadata_only, linnet_model **out);
/* A session, with --load-state's state in it. */
int engine_session(engine *e, linnet_model *model, linnet_session **out);
int load_state(linnet_session *session, const char *path);
int save_state(const linnet_session *session, const char *path);
size_t tokens_held(const linnet_session *session);
linnet_kv_type engine_kv(const engine *e);
linnet_session_options engine_session_options(const engine *e);

/* Prefills `n` ids with progress and counts the time. */
int engine_feed(engine *e, linnet_session *session, const int32_t *ids, size_t n, linnet_want want,
                linnet_rows_fn rows, void *user);
/* The last line on stderr when --stats asks for it. */
void engine_print_stats(const engine *e, const linnet_model *model, const linnet_session *session);

/* linnet_tokenize into a buffer, appended. */
int text_to_ids(const linnet_model *model, const char *text, size_t n, unsigned flags,
                id_buffer *out);
/* linnet_chat_tokenize into a buffer that is overwritten. */
int chat_to_ids(const linnet_model *model, const char *name, const linnet_message *messages,
                size_t n, bool add_generation_prompt, id_buffer *out);
/* linnet_chat_continue, appended; *fits: the template does not rewrite what came before. */
int chat_ids_from(const linnet_model *model, const char *name, const linnet_message *messages,
                  size_t n, size_t from, bool add_generation_prompt, id_buffer *out, bool *fits);
/* The template of --template, or the file's; EXIT_MISUSED or EXIT_FAILED after a sentence that
 * says how to choose. *out may stay NULL: the file's own. */
int choose_template(const engine *e, const linnet_model *model, const char *path,
                    const char *wanted, const char **out);

uint64_t nanoseconds_now(void);
double seconds_now(void);

#endif
