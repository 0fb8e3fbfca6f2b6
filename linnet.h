/* linnet: run softmax, linearized and hybrid language models from one GGUF file.
 * This header is the manual. A complete program:
 *     linnet_error err; linnet_model *model; linnet_session *session;
 *     int32_t ids[256]; size_t n;
 *     if (linnet_model_open(&model, "model.gguf", NULL, &err) ||
 *         linnet_session_new(&session, model, NULL, &err) ||
 *         linnet_tokenize(model, "Once upon", 9, LINNET_ADD_BOS, ids, 256, &n, &err) ||
 *         linnet_feed(session, ids, n, LINNET_LOGITS_LAST, &err))
 *         return fprintf(stderr, "%s\n", err.text), 1;
 *     linnet_generate_options opt = LINNET_GENERATE_DEFAULT;
 *     linnet_generate(session, &opt, print_text, NULL, NULL, &err); // streams whole characters
 *     linnet_session_free(session);
 *     linnet_model_close(model);
 * Model: immutable weights, config and tokenizer, shared by any number of sessions. Session: one
 * mutable timeline (tokens, state, last logits).
 * Errors. Every function that can fail returns a linnet_status, 0 when it worked. If `err` is not
 * NULL it receives the code and one sentence that names the file, the thing, what was expected
 * and what was found. A failed call leaves its objects as they were unless it says otherwise. The
 * library never prints, exits, aborts on input, installs signal handlers or reads the environment.
 * Threads. One model may be used from many threads: calls that compute (feed, forward) take turns
 * on the model's thread team, the others run side by side. A session belongs to one thread at a
 * time. Callbacks must not feed. `const` pointers from a model live until it is closed.
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
/* Called during long work with 0 <= done <= total; return false to cancel. */
typedef bool (*linnet_progress_fn)(void *user, const char *what, size_t done, size_t total);

/* ---- Model ------------------------------------------------------------------------------- */
typedef enum {
    LINNET_ACT_AUTO,  /* 16-bit block activations against quantized weights, float32 otherwise */
    LINNET_ACT_EXACT, /* float32 everywhere */
    LINNET_ACT_Q8     /* as most engines: 8-bit blocks against quantized weights, bf16 with bf16 */
} linnet_activations;
typedef enum { LINNET_KV_F16 = 0, LINNET_KV_F32, LINNET_KV_Q8_0 } linnet_kv_type;
typedef struct {
    int threads;         /* team size; 0 = physical cores */
    const char *isa;     /* "auto" (or NULL), "generic", "avx2", "avx512" */
    const char *backend; /* "auto" (or NULL: CUDA if it can), "cpu", "cuda", "cuda:N" */
    bool no_mmap;        /* read the file instead of mapping it */
    bool metadata_only;  /* no weights: info and tokenizer work, sessions do not */
    linnet_activations activations;
    linnet_progress_fn progress; /* may be NULL */
    void *user;
} linnet_model_options;
/* Opens a GGUF v3 file; `options` NULL = all defaults. On success *out is the caller's. */
linnet_status linnet_model_open(linnet_model **out, const char *path,
                                const linnet_model_options *options, linnet_error *err);
/* NULL is allowed. Sessions that are left can only be freed: all else on them is an error. */
void linnet_model_close(linnet_model *model);
typedef struct {
    const char *architecture;   /* "llama", "qwen2", ... */
    const char *name;           /* general.name or "" */
    const char *tokenizer;      /* "bpe/smollm", "sentencepiece", "none" */
    const char *chat_template;  /* "chatml", ...; "unknown": present, not recognised; "none" */
    const char *isa;            /* the kernels in use, of the CPU, or "none" */
    const char *backend, *note; /* "cpu", "cuda:0 (NVIDIA H200)"; why auto took the CPU, or "" */
    int threads, n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff; /* heads: first layer's */
    int n_vocab, n_rows; /* tokens in the vocabulary, 0 without one; floats per row of logits */
    int n_ctx_train;     /* trained context length */
    bool ctx_is_limit;   /* learned positions: the trained length cannot be exceeded */
    bool add_bos;        /* the file asks for BOS before a text */
    int32_t bos, eos;    /* -1 when the file names none */
    uint64_t n_tensors, n_metadata, n_params, file_bytes, weight_bytes; /* ... as held in memory */
} linnet_model_info;
const linnet_model_info *linnet_model_get_info(const linnet_model *m);
/* The mixer of one layer ("softmax", ...) and its window in tokens (0 = whole context). */
const char *linnet_model_mixer(const linnet_model *m, int layer, int *window);
/* Bytes of state that a session of `n_tokens` holds, exactly as allocated; its windows slide. */
uint64_t linnet_model_state_bytes(const linnet_model *m, linnet_kv_type kv, uint64_t n_tokens);
uint64_t linnet_model_gpu_bytes(const linnet_model *m); /* the most of a GPU's held so far, or 0 */
/* Bytes of activations that a prefill piece of the largest size needs. */
uint64_t linnet_model_activation_bytes(const linnet_model *m);
/* Tensor i < n_tensors: returns its name; dims[4] are in GGUF order (dims[0] contiguous). */
const char *linnet_model_tensor(const linnet_model *m, size_t i, const char **dtype,
                                uint64_t dims[4], uint64_t *bytes);
/* Metadata entry i < n_metadata: its key, and its value as text cut to `size` bytes. */
const char *linnet_model_metadata(const linnet_model *m, size_t i, char *value, size_t size);
/* Reads every weight from the file; an error names the first tensor with a NaN or infinity. */
linnet_status linnet_model_check(const linnet_model *m, linnet_error *err);

/* ---- Tokens and text --------------------------------------------------------------------- */
enum {
    LINNET_ADD_BOS = 1,       /* BOS in front if the file asks for it */
    LINNET_PARSE_SPECIAL = 2, /* spellings of special tokens become those tokens */
    LINNET_MIDDLE = 4         /* not a text's beginning: SentencePiece adds or drops no space */
};
/* UTF-8 (invalid bytes follow the tokenizer's own rule) to ids. Writes up to `cap` ids and sets
 * *n to the number there are; call again with a larger buffer when *n > cap. */
linnet_status linnet_tokenize(const linnet_model *m, const char *text, size_t bytes, unsigned flags,
                              int32_t *ids, size_t cap, size_t *n, linnet_error *err);
/* Back, all at once; no terminator. Special tokens give text if flags parse them. */
linnet_status linnet_detokenize(const linnet_model *m, const int32_t *ids, size_t n, unsigned flags,
                                char *text, size_t cap, size_t *bytes, linnet_error *err);
/* True for tokens that end a text: EOS, end-of-turn and their kind. */
bool linnet_is_end(const linnet_model *m, int32_t token);
typedef struct {
    const char *role, *content; /* NUL-terminated UTF-8; role is "system", "user" or "assistant" */
} linnet_message;
/* Messages to ids, as the model's own template would; contents are plain text, so no user can forge
 * a turn. `name` NULL = the file's; `add_generation_prompt` opens the answer. Same buffer rule. */
linnet_status linnet_chat_tokenize(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages,
                                   bool add_generation_prompt, int32_t *ids, size_t cap, size_t *n,
                                   linnet_error *err);
/* What messages [from, n) add to a session that holds those before and ends with the end token of
 * answer from - 1. LINNET_ERR_UNSUPPORTED: the template rewrites what came before. With from =
 * n_messages and no prompt: what ends that answer, for a session that lacks its end token. */
linnet_status linnet_chat_continue(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages, size_t from,
                                   bool add_generation_prompt, int32_t *ids, size_t cap, size_t *n,
                                   linnet_error *err);
const char *linnet_chat_template_name(size_t i); /* known names; NULL past the last */

/* ---- Sessions ---------------------------------------------------------------------------- */
/* Windows of the tokens that are fed, for LoLCATs models trained with terraces; tokens sampled by
 * linnet_generate always see a sliding window. TERRACE_HF takes the first feed as the prompt. */
typedef enum { LINNET_SLIDING, LINNET_TERRACE, LINNET_TERRACE_HF } linnet_window_mode;
typedef struct {
    int ctx; /* most tokens; 0 = the trained length, or 2^28 where no layer's state grows */
    linnet_kv_type kv; /* LINNET_ACT_EXACT models always use F32 */
    linnet_window_mode window_mode;
} linnet_session_options;
linnet_status linnet_session_new(linnet_session **out, linnet_model *model,
                                 const linnet_session_options *options, linnet_error *err);
void linnet_session_free(linnet_session *session);  /* NULL is allowed */
void linnet_session_reset(linnet_session *session); /* forgets all tokens */
/* The tokens fed so far; valid until the session is next fed, reset or freed. */
const int32_t *linnet_session_tokens(const linnet_session *session, size_t *n);
int linnet_session_ctx(const linnet_session *session);
uint64_t linnet_session_state_bytes(const linnet_session *session); /* held right now */
typedef enum { LINNET_LOGITS_NONE, LINNET_LOGITS_LAST, LINNET_LOGITS_ALL } linnet_want;
/* Receives logits of n positions in a row, [n, info.n_rows], valid in the call; false cancels. */
typedef bool (*linnet_rows_fn)(void *user, size_t first_position, size_t n, const float *logits);
/* One session's part of a forward: its next tokens. */
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
/* Logits after the last token, info.n_rows floats, NULL if they were not asked for. */
const float *linnet_session_logits(const linnet_session *session);
/* State is a value: tokens, keys and values, linear states, last logits.
 * A fork, and a session that loads what another saved, continue bit for bit as the original, on any
 * machine (docs/state.md). A fork shares pages of keys and values until either side writes to them;
 * kept, it is a snapshot to return to. */
linnet_status linnet_session_fork(const linnet_session *s, linnet_session **out, linnet_error *err);
uint64_t linnet_session_size(const linnet_session *s); /* n of linnet_session_save, exactly */
linnet_status linnet_session_save(const linnet_session *s, void *to, size_t n, linnet_error *err);
/* What a session of the same model (by a fingerprint of all weights), kv and window_mode saved,
 * whole and undamaged; anything else is refused and leaves the session as it was. */
linnet_status linnet_session_load(linnet_session *s, const void *from, size_t n, linnet_error *err);
/* To a file that appears when complete (mode 0600, fsync, rename), and from one. */
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
/* Draws the next token from the session's logits without feeding it. The random number depends on
 * (seed, number of tokens in the session) alone. */
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
/* Whole UTF-8 characters as they come, not NUL-terminated; return false to stop. */
typedef bool (*linnet_text_fn)(void *user, const char *text, size_t bytes);
/* Samples and feeds until something ends it. The session must hold logits, and does at the end:
 * each token whose text was shown is in it, one that a stop string cut too. `result` may be NULL.
 */
linnet_status linnet_generate(linnet_session *session, const linnet_generate_options *options,
                              linnet_text_fn text, void *user, linnet_generated *result,
                              linnet_error *err);

/* The text of tokens as they come, as linnet_generate shows it, for callers with their own loop. */
typedef struct linnet_text linnet_text;
/* `after`: the session that the text continues. The stop strings are copied. */
linnet_status linnet_text_new(linnet_text **out, const linnet_session *after,
                              const char *const *stops, size_t n_stops, linnet_error *err);
void linnet_text_free(linnet_text *text);
/* Takes a token, or -1 when the text is over. Returns what can be shown now: *bytes of whole
 * characters, not terminated, valid until the next call. *stop: the stop string that ended the text
 * (push no more then), or NULL. *held: bytes that wait for the rest of a character or of a stop. */
const char *linnet_text_push(linnet_text *text, int32_t token, size_t *bytes, size_t *held,
                             const char **stop);

/* ---- Prefix cache ------------------------------------------------------------------------ */
/* Snapshots of what sessions held, found again by their tokens: a prompt that begins like an
 * earlier one computes the rest only, on every mixer. One cache serves one model; its functions may
 * be called from many threads. */
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
} linnet_reuse;
/* Makes `tokens` the session's timeline with logits after the last: keeps or restores the longest
 * prefix that it or the cache holds, feeds the rest, and leaves snapshots every so many tokens, at
 * `mark` (where the last turn begins; 0 = none) and at the end. `reuse` may be NULL. */
linnet_status linnet_session_sync(linnet_session *s, linnet_cache *cache, const int32_t *tokens,
                                  size_t n, size_t mark, linnet_reuse *reuse, linnet_error *err);
/* Its parts, for callers who batch. Restores only; n - n_reused tokens are left to feed. */
linnet_status linnet_cache_restore(linnet_cache *cache, linnet_session *s, const int32_t *tokens,
                                   size_t n, linnet_reuse *reuse, linnet_error *err);
/* How many more tokens to feed until the session, at `held` of `n`, is worth keeping. */
size_t linnet_cache_next(const linnet_cache *cache, size_t held, size_t n, size_t mark);
linnet_status linnet_cache_keep(linnet_cache *cache, const linnet_session *s, linnet_error *err);
linnet_status linnet_cache_flush(linnet_cache *cache, linnet_error *err); /* to the folder, now */
typedef struct {
    uint64_t entries, bytes, files, file_bytes, hits, misses, evictions;
} linnet_cache_stats;
void linnet_cache_get_stats(const linnet_cache *cache, linnet_cache_stats *stats);

/* ---- Quantization ------------------------------------------------------------------------ */
typedef struct {
    bool pure; /* also quantize a tied embedding to the type */
    void (*note)(void *user, const char *tensor, const char *dtype, const char *why);
    linnet_progress_fn progress;
    void *user; /* for both callbacks */
} linnet_quantize_options;
/* Rewrites a GGUF with its matrices as `type` ("f32", ..., "q6_K"); keeps metadata. Atomic. */
linnet_status linnet_quantize(const char *in_path, const char *out_path, const char *type,
                              const linnet_quantize_options *options, linnet_error *err);
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
