#include "engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "../linnet_tools.h"
#include "hash.h"

uint64_t nanoseconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

double seconds_now(void) {
    return 1e-9 * (double)nanoseconds_now();
}

/* ---- flags -------------------------------------------------------------------------------- */

void engine_flags(flag_table *f, engine *e) {
    flags_title(f, "Common flags");
    flag_int(f, "-t/--threads", "N", &e->threads, 1, 1024,
             "threads that compute; default: the physical cores");
    backend_flags(f, e);
}

void backend_flags(flag_table *f, engine *e) {
    e->command = f->command;
    e->backend = "auto";
    e->isa = "auto";
    flag_text(
        f, "--backend", "NAME", &e->backend,
        "where to compute: auto (a GPU if there is one that the model fits), cpu, cuda or cuda:N");
    flag_choice(f, "--isa", "auto generic avx2 avx512 neon", &e->isa,
                "instruction set of the kernels");
    flag_switch(f, "--no-mmap", &e->no_mmap, "read the model file instead of mapping it");
    flag_switch(f, "--quiet", &e->quiet, "only errors on stderr");
}

void precision_flags(flag_table *f, engine *e, const char *activations) {
    static const char *const exact_help =
        "exact: float32 activations, state and KV (the default here). auto: 16-bit block "
        "activations against quantized weights, float32 otherwise. q8: 8-bit block activations "
        "against quantized weights, bf16 against bf16 ones";
    static const char *const auto_help =
        "auto (the default here): 16-bit block activations against quantized weights, float32 "
        "otherwise. exact: float32 activations, state and KV. q8: 8-bit block activations against "
        "quantized weights, bf16 against bf16 ones, less accurate: for comparing with engines that "
        "do so";
    e->activations = activations;
    flags_title(f, "Precision");
    flag_choice(f, "--activations", "exact auto q8", &e->activations,
                strcmp(activations, "auto") ? exact_help : auto_help);
    flag_choice(f, "--kv", "f32 f16 q8_0", &e->kv,
                "how keys and values are kept; default f16; --activations exact implies f32");
}

void context_flag(flag_table *f, engine *e) {
    flag_int(f, "--ctx", "N", &e->ctx, 1, INT32_MAX,
             "most tokens the session holds; default: the model's trained length, which N may "
             "exceed unless positions are learned; no limit where no layer's state grows");
}

void stats_flag(flag_table *f, engine *e) {
    flag_switch(f, "--stats", &e->stats,
                "a last line on stderr: prefill and decode tok/s, GB/s (bytes of all weights x "
                "decode tok/s, an approximation), state bytes, peak RSS, and a hash (FNV-1a) of "
                "the last logits");
}

void state_flags(flag_table *f, engine *e) {
    flags_title(f, "State");
    flag_text(f, "--load-state", "FILE", &e->load_state,
              "continue from a saved state of the same model, --kv and --window-mode: its tokens "
              "come first, no BOS is added");
    flag_text(f, "--save-state", "FILE", &e->save_state,
              "save tokens, state and logits after the last token");
}

void window_flag(flag_table *f, engine *e) {
    e->window_mode = "sliding";
    flag_choice(
        f, "--window-mode", "sliding terrace terrace-hf", &e->window_mode,
        "windows of the given tokens, for LoLCATs models trained with terraces (tk); sampled "
        "tokens always see a sliding one. sliding: the last W tokens, as in decoding. "
        "terrace: whole blocks of W, the one before the token's and its own. terrace-hf: "
        "upstream's own prefill, blocks that end with the prompt");
}

static linnet_window_mode window_mode(const engine *e) {
    const char *name = e->window_mode ? e->window_mode : "sliding";
    return !strcmp(name, "terrace-hf") ? LINNET_TERRACE_HF
           : !strcmp(name, "terrace")  ? LINNET_TERRACE
                                       : LINNET_SLIDING;
}

linnet_kv_type engine_kv(const engine *e) {
    const char *kv = e->kv ? e->kv : "f16";
    if (e->activations && !strcmp(e->activations, "exact")) return LINNET_KV_F32;
    return !strcmp(kv, "f32")    ? LINNET_KV_F32
           : !strcmp(kv, "q8_0") ? LINNET_KV_Q8_0
                                 : LINNET_KV_F16;
}

static bool is_backend(const char *name) {
    int64_t device;
    return !strcmp(name, "auto") || !strcmp(name, "cpu") || !strcmp(name, "cuda") ||
           (!strncmp(name, "cuda:", 5) && parse_whole(name + 5, &device) && device >= 0 &&
            device < 1024);
}

/* ---- opening ------------------------------------------------------------------------------ */

int engine_options(const engine *e, bool metadata_only, linnet_model_options *out) {
    if (!is_backend(e->backend))
        return misused(e->command, "--backend expects auto, cpu, cuda or cuda:N, found '%s'",
                       e->backend);
    if (e->activations && !strcmp(e->activations, "exact") && e->kv && strcmp(e->kv, "f32"))
        return misused(e->command, "--kv %s contradicts --activations exact, which keeps float32",
                       e->kv);
    const char *activations = e->activations ? e->activations : "auto";
    *out = (linnet_model_options){.threads = e->threads,
                                  .isa = e->isa,
                                  .backend = e->backend,
                                  .no_mmap = e->no_mmap,
                                  .metadata_only = metadata_only,
                                  .progress = show_progress};
    out->activations = !strcmp(activations, "exact") ? LINNET_ACT_EXACT
                       : !strcmp(activations, "q8")  ? LINNET_ACT_Q8
                                                     : LINNET_ACT_AUTO;
    return EXIT_WORKED;
}

int engine_open(engine *e, const char *path, bool metadata_only, linnet_model **out) {
    be_quiet(e->quiet);
    linnet_error err;
    linnet_model_options options;
    int code = engine_options(e, metadata_only, &options);
    if (code) return code;
    if (linnet_model_open(out, path, &options, &err)) return failed_with(&err);
    const linnet_model_info *info = linnet_model_get_info(*out);
    if (metadata_only) return EXIT_WORKED;
    if (strcmp(info->backend, "cpu"))
        say("computing on %s", info->backend);
    else if (!e->threads || info->note[0])
        say("%d thread%s%s, %s kernels%s%s", info->threads, info->threads == 1 ? "" : "s",
            e->threads ? "" : " (physical cores)", info->isa,
            info->note[0] ? "; not on a GPU: " : "", info->note);
    return EXIT_WORKED;
}

linnet_session_options engine_session_options(const engine *e) {
    return (linnet_session_options){
        .ctx = e->ctx, .kv = engine_kv(e), .window_mode = window_mode(e)};
}

int engine_session(engine *e, linnet_model *model, linnet_session **out) {
    const linnet_model_info *info = linnet_model_get_info(model);
    linnet_error err;
    linnet_session_options options = engine_session_options(e);
    if (linnet_session_new(out, model, &options, &err)) return failed_with(&err);
    if (info->n_ctx_train > 0 && e->ctx > info->n_ctx_train)
        say("--ctx %d is beyond the %d tokens this model was trained on", e->ctx,
            info->n_ctx_train);
    return e->load_state ? load_state(*out, e->load_state) : EXIT_WORKED;
}

int load_state(linnet_session *session, const char *path) {
    linnet_error err;
    if (linnet_session_load_file(session, path, &err)) return failed_with(&err);
    say("%s: %zu tokens", path, tokens_held(session));
    return EXIT_WORKED;
}

int save_state(const linnet_session *session, const char *path) {
    linnet_error err;
    if (linnet_session_save_file(session, path, &err)) return failed_with(&err);
    say("%s: %zu tokens saved, %llu bytes", path, tokens_held(session),
        (unsigned long long)linnet_session_size(session));
    return EXIT_WORKED;
}

size_t tokens_held(const linnet_session *session) {
    size_t n;
    linnet_session_tokens(session, &n);
    return n;
}

/* ---- computing ---------------------------------------------------------------------------- */

int engine_feed(engine *e, linnet_session *session, const int32_t *ids, size_t n, linnet_want want,
                linnet_rows_fn rows, void *user) {
    linnet_error err;
    linnet_item item = {
        .session = session, .tokens = ids, .n_tokens = n, .want = want, .rows = rows, .user = user};
    double start = seconds_now();
    if (linnet_forward(&item, 1, show_progress, e->own_progress ? e : NULL, &err))
        return failed_with(&err);
    e->prefill_seconds += seconds_now() - start;
    e->prefill_tokens += n;
    return EXIT_WORKED;
}

void engine_print_stats(const engine *e, const linnet_model *model, const linnet_session *session) {
    if (!e->stats) return;
    const linnet_model_info *info = linnet_model_get_info(model);
    const float *logits = linnet_session_logits(session);
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    double prefill = e->prefill_seconds > 0 ? (double)e->prefill_tokens / e->prefill_seconds : 0;
    double decode = e->decode_seconds > 0 ? (double)e->decode_tokens / e->decode_seconds : 0;
    char hash[HASH_TEXT] = "none";
    if (logits) hash_text(hash, fnv1a(FNV_START, logits, (size_t)info->n_rows * sizeof *logits));
    complain("prefill %.1f tok/s (%zu), decode %.1f tok/s (%zu), %.2f GB/s, state %llu bytes, "
             "peak RSS %.1f MB, logits %s",
             prefill, e->prefill_tokens, decode, e->decode_tokens,
             (double)info->weight_bytes * decode / 1e9,
             (unsigned long long)linnet_session_state_bytes(session),
             (double)usage.ru_maxrss * 1024 / 1e6, hash);
}

/* ---- ids and templates -------------------------------------------------------------------- */

int text_to_ids(const linnet_model *model, const char *text, size_t n, unsigned flags,
                id_buffer *out) {
    linnet_error err;
    size_t found = 0;
    /* Nearly every text has fewer ids than bytes; if not, the second round has the room. */
    for (size_t cap = n / 2 + 16;; cap = found) {
        if (!ids_reserve(out, out->n + cap)) return EXIT_FAILED;
        if (linnet_tokenize(model, text, n, flags, out->at + out->n, cap, &found, &err))
            return failed_with(&err);
        if (found <= cap) break;
    }
    out->n += found;
    return EXIT_WORKED;
}

int chat_to_ids(const linnet_model *model, const char *name, const linnet_message *messages,
                size_t n, bool add_generation_prompt, id_buffer *out) {
    bool fits;
    out->n = 0;
    return chat_ids_from(model, name, messages, n, 0, add_generation_prompt, out, &fits);
}

int chat_ids_from(const linnet_model *model, const char *name, const linnet_message *messages,
                  size_t n, size_t from, bool add_generation_prompt, id_buffer *out, bool *fits) {
    linnet_error err;
    size_t found = 0;
    *fits = true;
    for (size_t room = 256;; room = found) {
        if (!ids_reserve(out, out->n + room)) return EXIT_FAILED;
        linnet_status s =
            linnet_chat_continue(model, name, messages, n, from, add_generation_prompt,
                                 out->at + out->n, out->cap - out->n, &found, &err);
        *fits = s != LINNET_ERR_UNSUPPORTED;
        if (from && !*fits) return EXIT_WORKED;
        if (s) return failed_with(&err);
        if (found <= out->cap - out->n) break;
    }
    out->n += found;
    return EXIT_WORKED;
}

int choose_template(const engine *e, const linnet_model *model, const char *path,
                    const char *wanted, const char **out) {
    char list[512] = "";
    size_t at = 0;
    const char *name;
    *out = NULL;
    for (size_t i = 0; (name = linnet_chat_template_name(i)); i++) {
        if (wanted && !strcmp(name, wanted)) *out = name;
        int n = snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", name);
        at = at + (size_t)n < sizeof list ? at + (size_t)n : sizeof list - 1;
    }
    if (*out) return EXIT_WORKED;
    if (wanted)
        return misused(e->command, "--template expects one of %s, found '%s'", list, wanted);
    const char *own = linnet_model_get_info(model)->chat_template;
    if (!strcmp(own, "unknown"))
        return failed("%s has a chat template that this version does not recognise; choose one "
                      "with --template: %s",
                      path, list);
    if (!strcmp(own, "none"))
        return failed("%s has no chat template; choose one with --template: %s", path, list);
    return EXIT_WORKED;
}
