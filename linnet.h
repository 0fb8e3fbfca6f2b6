/* linnet: run softmax, linearized and hybrid language models from one GGUF file.
 * This header is the manual. A complete program:
 *     linnet_error err; linnet_model *model; linnet_session *session; int32_t ids[256]; size_t n;
 *     if (linnet_model_open(&model, "model.gguf", NULL, &err) ||
 *         linnet_session_new(&session, model, NULL, &err) ||
 *         linnet_tokenize(model, "Once upon", 9, LINNET_ADD_BOS, ids, 256, &n, &err) ||
 *         linnet_feed(session, ids, n, LINNET_LOGITS_LAST, &err))
 *         return fprintf(stderr, "%s\n", err.text), 1;
 *     linnet_generate_options opt = LINNET_GENERATE_DEFAULT;
 *     linnet_generate(session, &opt, print_text, NULL, NULL, &err); // streams whole characters
 *     linnet_session_free(session), linnet_model_close(model);
 * Model: immutable weights, config, tokenizer. Session: one mutable timeline (tokens, state, last
 * logits). linnet_tools.h has more: what is in a file, what memory it takes, quantization.
 * Errors. What can fail returns a linnet_status, 0 when it worked; `err`, if not NULL, receives the
 * code and a sentence: the file, the thing, expected and found. A failed call leaves its objects as
 * they were unless it says otherwise. The library never prints, exits, aborts on input, installs
 * signal handlers or reads the environment.
 * Threads. A model may be used from many: calls that compute (feed, forward) take turns on its team
 * of threads, the others run side by side. A session belongs to one thread at a time. Callbacks
 * must not feed; returning false, they cancel. A model's `const` pointers live until it is closed.
 */
#ifndef LINNET_H
#define LINNET_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)
#define LINNET_VERSION "0.1.0"
const char *linnet_version(void); /* of the library that runs, for who compiled against another */
typedef enum {
    LINNET_OK = 0,
    LINNET_ERR_ARGUMENT,    /* a parameter is out of range */
    LINNET_ERR_IO,          /* the operating system refused: open, read, write, map */
    LINNET_ERR_FORMAT,      /* the file is damaged or contradicts itself */
    LINNET_ERR_UNSUPPORTED, /* valid, but this build cannot run it */
    LINNET_ERR_MEMORY,      /* an allocation failed or would exceed a limit */
    LINNET_ERR_CONTEXT,     /* the session has no room for these tokens */
    LINNET_ERR_TOKENIZER,   /* the file has no vocabulary */
    LINNET_ERR_NUMERIC,     /* NaN or infinity: in weights, in a layer, in the logits */
    LINNET_ERR_CANCELLED,   /* a callback asked to stop */
    LINNET_ERR_DEVICE       /* no GPU, or it failed */
} linnet_status;
typedef struct {
    linnet_status code;
    char text[1024];
} linnet_error;
typedef struct linnet_model linnet_model;
typedef struct linnet_session linnet_session;
typedef bool (*linnet_progress_fn)(void *user, const char *what, size_t done, size_t total);
/* ---- Model ------------------------------------------------------------------------------- */
/* AUTO: 16-bit blocks against quantized weights, else float32. EXACT: float32 everywhere. Q8: 8-bit
 * blocks against quantized weights, as most engines, and bf16 with bf16. */
typedef enum { LINNET_ACT_AUTO, LINNET_ACT_EXACT, LINNET_ACT_Q8 } linnet_activations;
typedef enum { LINNET_KV_F16 = 0, LINNET_KV_F32, LINNET_KV_Q8_0 } linnet_kv_type;
typedef struct {
    int threads;                 /* team size; 0 = physical cores */
    const char *isa;             /* "auto" (or NULL), "generic", "avx2", "avx512", "neon" */
    const char *backend;         /* "auto" (or NULL: CUDA if it can), "cpu", "cuda", "cuda:N" */
    bool no_mmap, metadata_only; /* read the file, do not map it; no weights: no sessions */
    linnet_activations activations;
    linnet_progress_fn progress; /* may be NULL */
    void *user;
} linnet_model_options;
/* Opens a GGUF v3 file. Here as elsewhere: `options` NULL = defaults; *out is the caller's. */
linnet_status linnet_model_open(linnet_model **out, const char *path,
                                const linnet_model_options *options, linnet_error *err);
void linnet_model_close(linnet_model *model); /* sessions that are left can only be freed */
typedef struct {
    const char *architecture, *name;       /* "llama", "qwen2", ...; general.name or "" */
    const char *tokenizer, *chat_template; /* "bpe/smollm", ..., "none"; "chatml", "unknown", ... */
    const char *isa, *backend; /* the CPU's kernels or "none"; "cpu", "cuda:0 (NVIDIA H200)" */
    const char *note;          /* why auto took the CPU, or "" */
    int threads, n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff; /* heads: first layer's */
    int n_vocab, n_rows, n_ctx_train; /* 0: no vocabulary; floats per row of logits; context */
    bool ctx_is_limit, add_bos;       /* no longer context is possible; the file asks for BOS */
    int32_t bos, eos;                 /* -1 when the file names none */
    uint64_t n_tensors, n_metadata, n_params, file_bytes, weight_bytes; /* ... as held in memory */
} linnet_model_info;
const linnet_model_info *linnet_model_get_info(const linnet_model *m);
const char *linnet_model_mixer(const linnet_model *m, int layer, int *window); /* 0: no window */
/* Bytes of state that a session of `n_tokens` holds, exactly as allocated; its windows slide. */
uint64_t linnet_model_state_bytes(const linnet_model *m, linnet_kv_type kv, uint64_t n_tokens);
/* ---- Tokens and text --------------------------------------------------------------------- */
enum {
    LINNET_ADD_BOS = 1,       /* BOS in front if the file asks for it */
    LINNET_PARSE_SPECIAL = 2, /* spellings of special tokens are those tokens, both ways */
    LINNET_MIDDLE = 4,        /* not a text's beginning: SentencePiece adds or drops no space */
    LINNET_BYTES = 8          /* detokenize: cut characters stay the bytes they are, not U+FFFD */
};
/* UTF-8 to ids, and back, not terminated. Writes up to `cap`; *n: how many there are. */
linnet_status linnet_tokenize(const linnet_model *m, const char *text, size_t bytes, unsigned flags,
                              int32_t *ids, size_t cap, size_t *n, linnet_error *err);
linnet_status linnet_detokenize(const linnet_model *m, const int32_t *ids, size_t n, unsigned flags,
                                char *text, size_t cap, size_t *bytes, linnet_error *err);
bool linnet_is_end(const linnet_model *m, int32_t token); /* EOS, end-of-turn and their kind */
typedef struct {
    const char *role, *content; /* UTF-8; role is "system", "user" or "assistant" */
} linnet_message;
/* Messages to ids, as the model's own template would; contents are plain text, so no user can forge
 * a turn. `name` NULL = the file's template; `prompt` opens the answer. Same buffer rule. */
linnet_status linnet_chat_tokenize(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages, bool prompt,
                                   int32_t *ids, size_t cap, size_t *n, linnet_error *err);
/* What messages [from, n) add to a session that holds those before with the last one's end token;
 * from = n, no prompt: to one without it. LINNET_ERR_UNSUPPORTED: it rewrites the past. */
linnet_status linnet_chat_continue(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages, size_t from,
                                   bool prompt, int32_t *ids, size_t cap, size_t *n,
                                   linnet_error *err);
/* ---- Sessions ---------------------------------------------------------------------------- */
/* Windows of fed tokens, for LoLCATs trained with terraces. HF: the first feed is the prompt. */
typedef enum { LINNET_SLIDING, LINNET_TERRACE, LINNET_TERRACE_HF } linnet_window_mode;
typedef struct {
    int ctx; /* most tokens; 0 = the trained length, or 2^28 where no layer's state grows */
    linnet_kv_type kv; /* LINNET_ACT_EXACT models always use F32 */
    linnet_window_mode window_mode;
} linnet_session_options;
linnet_status linnet_session_new(linnet_session **out, linnet_model *model,
                                 const linnet_session_options *options, linnet_error *err);
void linnet_session_free(linnet_session *session);                        /* NULL is allowed */
void linnet_session_reset(linnet_session *session);                       /* forgets all tokens */
const int32_t *linnet_session_tokens(const linnet_session *s, size_t *n); /* until it changes */
int linnet_session_ctx(const linnet_session *session);
uint64_t linnet_session_state_bytes(const linnet_session *session); /* held right now */
typedef enum { LINNET_LOGITS_NONE, LINNET_LOGITS_LAST, LINNET_LOGITS_ALL } linnet_want;
/* Receives logits of n positions in a row, [n, info.n_rows], valid in the call; false cancels. */
typedef bool (*linnet_rows_fn)(void *user, size_t first_position, size_t n, const float *logits);
typedef struct {
    linnet_session *session;
    const int32_t *tokens;
    size_t n_tokens; /* 1 = a decode step, more = prefill */
    linnet_want want;
    linnet_rows_fn rows; /* called for LINNET_LOGITS_ALL, on the calling thread */
    void *user;
    bool sampled; /* the model's own tokens: windows slide, whatever the mode */
} linnet_item;
/* Advances distinct sessions of one model at once, each bitwise as alone. After an error (NaN is
 * one) none has advanced, but a step may lose a recurrent state: then reset or load it. */
linnet_status linnet_forward(linnet_item *items, size_t n_items, linnet_progress_fn progress,
                             void *user, linnet_error *err);
linnet_status linnet_feed(linnet_session *session, const int32_t *tokens, size_t n,
                          linnet_want want, linnet_error *err);
const float *linnet_session_logits(const linnet_session *s); /* after the last token, or NULL */
/* State is a value (docs/state.md): a fork, and a session that loads what another saved, go on bit
 * for bit, on any machine. Forks share keys and values until one writes; files appear whole. */
linnet_status linnet_session_fork(const linnet_session *s, linnet_session **out, linnet_error *err);
uint64_t linnet_session_size(const linnet_session *s); /* n of linnet_session_save, exactly */
linnet_status linnet_session_save(const linnet_session *s, void *to, size_t n, linnet_error *err);
/* What a session of the same model (all weights count), kv and window_mode saved, undamaged. */
linnet_status linnet_session_load(linnet_session *s, const void *from, size_t n, linnet_error *err);
linnet_status linnet_session_save_file(const linnet_session *s, const char *to, linnet_error *err);
linnet_status linnet_session_load_file(linnet_session *s, const char *from, linnet_error *err);
/* ---- Sampling and generation ------------------------------------------------------------- */
typedef struct {
    int32_t token;
    float bias; /* added to its logit; -INFINITY forbids it */
} linnet_logit_bias;
typedef struct {
    uint64_t seed;
    float temperature;    /* 0 = greedy */
    int top_k;            /* 0 = off */
    float top_p, min_p;   /* 1 and 0 = off */
    float repeat_penalty; /* 1 = off; over the last `repeat_last` tokens of the session */
    int repeat_last;
    const linnet_logit_bias *bias;
    size_t n_bias;
    const uint32_t *allowed; /* bit t % 32 of [t / 32]: token t may be drawn; NULL = any */
} linnet_sampling;
#define LINNET_SAMPLING_DEFAULT                                                                    \
    { 0, 0, 0, 1, 0, 1, 64, NULL, 0, NULL }
/* Draws from the session's logits, feeds nothing. Random by (seed, tokens in the session) alone. */
linnet_status linnet_sample(const linnet_session *session, const linnet_sampling *sampling,
                            int32_t *token, linnet_error *err);
typedef struct {
    linnet_sampling sampling;
    size_t max_tokens;        /* 0 = until the end of the text or of the context */
    const char *const *stops; /* generation ends before any of these texts */
    size_t n_stops;
    bool feed_end; /* also feed the token that ended the text, as a chat needs */
} linnet_generate_options;
#define LINNET_GENERATE_DEFAULT                                                                    \
    { LINNET_SAMPLING_DEFAULT, 0, NULL, 0, false }
typedef enum {
    LINNET_END_TOKEN,    /* the text's own end */
    LINNET_END_STOP,     /* a stop string */
    LINNET_END_LENGTH,   /* max_tokens */
    LINNET_END_CONTEXT,  /* no room */
    LINNET_END_CANCELLED /* by the callback */
} linnet_end;
typedef struct {
    linnet_end end;
    size_t n_tokens;  /* sampled, the ending token not counted */
    const char *stop; /* the stop string that matched, or NULL */
} linnet_generated;
typedef bool (*linnet_text_fn)(void *user, const char *text, size_t bytes); /* not terminated */
/* Samples and feeds until something ends it. The session must hold logits, and does at the end,
 * with each token whose text was shown, one that a stop string cut too. `result` may be NULL. */
linnet_status linnet_generate(linnet_session *session, const linnet_generate_options *options,
                              linnet_text_fn text, void *user, linnet_generated *result,
                              linnet_error *err);
/* Text as linnet_generate shows it, for your own loop; `after`: what came before. Copies stops. */
typedef struct linnet_text linnet_text;
linnet_status linnet_text_new(linnet_text **out, const linnet_session *after,
                              const char *const *stops, size_t n_stops, linnet_error *err);
void linnet_text_free(linnet_text *text);
/* Takes a token, or -1 at the end; returns *bytes of whole characters to show, until the next call.
 * *stop: the stop string that ended it all, or NULL; *held: bytes that wait. Both may be NULL. */
const char *linnet_text_push(linnet_text *text, int32_t token, size_t *bytes, size_t *held,
                             const char **stop);
/* ---- Prefix cache ------------------------------------------------------------------------ */
/* Snapshots of sessions, found by their tokens: a prompt that begins like an earlier one computes
 * the rest only, on every mixer, to the same bits (docs/cache.md). For one model; any thread. */
typedef struct linnet_cache linnet_cache;
typedef struct {
    uint64_t bytes;     /* in memory, pages that snapshots share counted once; 0 = 1 GiB */
    const char *dir;    /* a folder whose files survive a restart; NULL = none */
    uint64_t dir_bytes; /* 0 = 16 GiB */
    size_t every;       /* tokens of a prefill between snapshots; 0 = 1024 */
} linnet_cache_options;
linnet_status linnet_cache_new(linnet_cache **out, linnet_model *model,
                               const linnet_cache_options *options, linnet_error *err);
void linnet_cache_free(linnet_cache *cache); /* writes what the folder lacks; NULL is allowed */
typedef struct {
    size_t n_reused, n_fed; /* of the tokens: were in place, were computed */
    char text[256];         /* one line: what was reused, and why not more */
} linnet_reuse;             /* may be NULL below */
/* Makes `tokens` the session's timeline, with logits: keeps or restores the longest prefix that it
 * or the cache (may be NULL) holds, feeds the rest, leaves snapshots on the way, at `mark` (where
 * the last turn begins; 0 = none) and at the end. After an error a part may be there. */
linnet_status linnet_session_sync(linnet_session *s, linnet_cache *cache, const int32_t *tokens,
                                  size_t n, size_t mark, linnet_reuse *reuse, linnet_error *err);
/* Its parts, for callers who batch. Leaves n - n_reused to feed; LINNET_TERRACE_HF: at once. */
linnet_status linnet_cache_restore(linnet_cache *cache, linnet_session *s, const int32_t *tokens,
                                   size_t n, linnet_reuse *reuse, linnet_error *err);
/* How many tokens to feed until the session, at `held` of `n`, is worth keeping. */
size_t linnet_cache_next(const linnet_cache *cache, size_t held, size_t n, size_t mark);
linnet_status linnet_cache_keep(linnet_cache *cache, const linnet_session *s, linnet_error *err);
linnet_status linnet_cache_flush(linnet_cache *cache, linnet_error *err); /* to the folder, now */
typedef struct {
    uint64_t entries, bytes, files, file_bytes, hits, misses, evictions;
} linnet_cache_stats;
void linnet_cache_get_stats(const linnet_cache *cache, linnet_cache_stats *stats);
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
