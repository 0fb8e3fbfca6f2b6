/* The one internal vocabulary: Config, layers, Model, Session. Public types are in linnet.h.
 *
 * Data flows one way: weights/ (GGUF) -> config.c, model.c (packed matrices) -> session/ -> the
 * forward pass (kernels_cpu/forward.c, mixers in attention/) -> logits -> sampler -> tokenizer ->
 * text.
 *
 * Short names, the paper's symbols and the GGUF tensors (blk.N. in front):
 *   wq wk wv wo    W^Q W^K W^V W^O     attn_q attn_k attn_v attn_output (gpt2: attn_qkv, split)
 *   w_gate w_up w_down                 ffn_gate ffn_up ffn_down
 *   x [n, n_embd]  the residual stream; h: its normalized copy
 */
#ifndef MODEL_H
#define MODEL_H

#include "attention/mixer.h"
#include "backend.h"
#include "kernels_cpu/kernels.h"
#include "kernels_cpu/packer.h"
#include "kernels_cpu/team.h"
#include "session/kv.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"

/* Caps on what a file may ask for; config_validate holds every number to them. */
enum {
    MAX_LAYERS = 1024,
    MAX_DIM = 1 << 17, /* n_embd, n_ff, n_heads * head_dim */
    MAX_HEAD_DIM = 512,
    MAX_DELTA_DIM = 4096, /* key_dim, value_dim of the delta rule */
    MAX_DELTA_CONV = 32,  /* taps of its convolution */
    MAX_SINKS = 1024,
    MAX_ROWS = 1 << 24, /* rows of the output matrix */
    MAX_CTX = 1 << 28,  /* tokens of a session */
    PIECE = 256,        /* most rows of activations computed at once */
    LOGITS_PIECE = 32   /* most rows of logits held at once */
};

typedef enum { NORM_RMS, NORM_LAYER } norm_kind;
typedef enum { ROPE_NONE, ROPE_PAIRS, ROPE_HALVES } rope_kind; /* (2i, 2i+1) or (i, i + d/2) */
/* gate(W_gate x) * W_up x with silu, exact gelu, sigmoid or powlu; or gelu (tanh form) of W_up x.
 */
typedef enum {
    FFN_SILU_GATED,
    FFN_GELU_GATED,
    FFN_SIGMOID_GATED,
    FFN_POWLU_GATED,
    FFN_GELU
} ffn_kind;

typedef enum { DELTA_SILU, DELTA_RELU, DELTA_ELU, DELTA_IDENTITY } delta_activation;

/* The delta-rule layers of a model (attention/delta.c); n_heads 0: it has none. */
typedef struct {
    int n_heads, n_value_heads; /* of q and k, and of v, a multiple of it */
    int key_dim, value_dim;     /* of a head */
    int conv_kernel;            /* taps of the short convolution where a layer has one */
    bool heads_alternate;       /* value head j uses q/k head j % n_heads (llama.cpp's order), not
                                 * j / (n_value_heads / n_heads) */
    delta_activation qk_activation;
    bool sum_norm;    /* q, k / sum |.|, not l2 */
    bool complete;    /* every layer has a convolution and a gate; else its tensors say */
    float beta_scale; /* 2: eigenvalues may be negative */
    float norm_eps;   /* of the output's norm */
    bool sigmoid_gate;
} delta_config;

/* The heads of a layer's softmax attention. */
typedef struct {
    int n_heads, n_kv_heads, head_dim; /* n_heads % n_kv_heads == 0 */
    int rope_dim;                      /* leading dimensions of a head that rotate */
    double rope_base;
    size_t angles; /* where its frequencies begin in config.rope_freq */
} head_layout;

typedef struct {
    bool own_format; /* architecture linnet */
    int n_layers, n_embd;
    int n_ff;                          /* 0: layers without a feed-forward */
    int n_heads, n_kv_heads, head_dim; /* of the first layer where layers differ */
    int n_rows;                        /* of the output matrix */
    int n_ctx_train;
    norm_kind norm;
    float norm_eps;
    ffn_kind ffn;
    rope_kind rope;
    int rope_dim; /* as in head_layout; base likewise */
    double rope_base;
    float *rope_freq; /* [n_angles] radians per position, scaling included: rope_dim/2, more where
                       * layers differ */
    size_t n_angles;
    float rope_scale; /* factor on cos and sin (YaRN's attention temperature), else 1 */
    bool learned_positions;
    int window;           /* default of every layer, 0 = whole context */
    int n_sink;           /* the first positions, which every window also sees */
    int trained_length;   /* LoLCATs' linear part is held beyond it (attention/lolcats.c); or 0 */
    bool tied;            /* the output matrix is the embedding */
    bool gated_attention; /* softmax layers: W^Q gives [query | gate] per head */
    bool ffn_norm_is_post_attention; /* ffn_norm is called post_attention_norm (Qwen3-Next) */
    bool recurrent[MAX_LAYERS];      /* by architecture: mixer gated_delta_net, not softmax */
    int n_nextn; /* blocks after the layers: multi-token prediction, which nothing here uses */
    delta_config delta;
} config;

/* Reads and checks the config (config.c); `arch` receives general.architecture even where that is
 * not supported. c->rope_freq is the caller's to free, also after an error. */
linnet_status config_read(const gguf *g, config *c, char arch[64], linnet_error *err);
/* The heads of every layer, once the layers have mixers. */
linnet_status config_heads(linnet_model *m, linnet_error *err);

typedef struct {
    float *w, *b; /* [n]; b NULL for RMS norm */
} norm_weights;

typedef struct {
    const mixer_ops *mixer;
    void *mixer_weights;              /* the mixer's own struct */
    int window;                       /* of the mixer: tokens visible, 0 = all */
    head_layout heads;                /* of the mixer, if it has softmax attention */
    int kv_slot;                      /* which of the session's KV slots, -1: keeps none */
    size_t state_at;                  /* its place in the session's fixed-size state */
    norm_weights attn_norm, ffn_norm; /* before the mixer and the feed-forward; absent: w NULL */
    norm_weights attn_post_norm, ffn_post_norm; /* of their outputs; absent: w NULL */
    matrix w_gate, w_up, w_down;
} layer_weights;

/* Buffers of one forward piece, grown to the rows needed (at most PIECE). */
typedef struct scratch scratch;

struct linnet_model {
    gguf *file;
    tokenizer *tok; /* NULL: no vocabulary */
    const chat_template *chat;
    config cfg;
    layer_weights *layers;
    int kv_layers;     /* how many mixers keep keys and values */
    kv_slot *kv_slots; /* [kv_layers] */
    bool heads_differ; /* between layers */
    struct {
        size_t q, kv, heads, kv_heads, head_dim, group; /* q: heads * head_dim, kv likewise */
    } most;                                             /* of any layer */
    size_t state_bytes;     /* of all mixers' fixed-size state, per session */
    atomic_uintptr_t spare; /* the backend's memory for a copy of one, 0: none or in use */
    int map_lag; /* with cfg.trained_length: rows after its own until a key enters LoLCATs' linear
                    part; -1: no such layer yet */
    size_t work_floats; /* the most that a mixer wants per row */
    size_t widest;      /* columns of the widest matrix */
    bool post_norms;    /* some layer normalizes its outputs */
    bool terrace;       /* some layer was trained with windows of whole blocks: modes apply */
    norm_weights out_norm;
    matrix output; /* packed; the embedding too when tied */
    /* Read row by row from the file: [n_embd, n_rows], unused when tied; [n_embd, n_ctx_train],
     * NULL without learned positions. */
    const gguf_tensor *embedding, *positions;
    /* The same, packed, for a backend that gathers rows itself (!host_memory). */
    matrix packed_embedding, packed_positions;
    linnet_model_info info;
    linnet_activations act;
    bool loaded;   /* weights are there: not opened with metadata_only */
    bool declined; /* the backend could not be opened, or has no room for this model */
    struct backend *backend;
    void *prepared;                /* what the backend keeps for this model, if not the CPU */
    const struct kernels *kernels; /* of the CPU; NULL when another computes, and if not loaded */
    struct team *team;
    struct scratch *scratch;
    uint8_t *arena; /* all packed matrices and vectors: one anonymous mapping */
    size_t arena_bytes, arena_used;
    char arch[64], name[128], note[sizeof((linnet_error *)0)->text]; /* what info points to */
    atomic_size_t owners; /* the caller until it closes the model, and every session */
    atomic_bool closed;   /* sessions that are left can only be freed */
    bool identified;      /* identity is there; guarded by the team's lock */
    uint64_t identity[2]; /* of the config, of the weights: see model_identity */
};

/* What `kv` means for this model: exact activations always keep float32. */
kv_kind model_kv_kind(const linnet_model *m, linnet_kv_type kv);
/* The first position that any window still needs once n_tokens are in and the next token comes
 * under `mode`, n_tokens if no layer has one; the sinks, cfg.n_sink first positions, are needed
 * always. */
size_t model_kv_start(const linnet_model *m, linnet_window_mode mode, size_t n_tokens);
/* The first position in the window of position t. Sliding: t is the last of `window`. Terrace: the
 * window is t's block of `window` positions, up to t, and the block before it. */
static inline int window_first(linnet_window_mode mode, int window, int t) {
    int first = mode == LINNET_TERRACE ? (t / window - 1) * window : t - window + 1;
    return first > 0 ? first : 0;
}

/* With a trained length L, LoLCATs' maps see no position beyond it: queries at L - 1 and keys at
 * L/2 - 1 at most. By how many positions one at `t` is turned back: */
static inline int lolcats_back(int trained_length, bool query, int t) {
    int last = (query ? trained_length : trained_length / 2) - 1;
    return t > last ? t - last : 0;
}

/* What the model computes, as two hashes: of the metadata that matters and of all weights. Equal
 * for every copy and every rewriting of the file that keeps names, types and values. The first call
 * reads the whole file. The team must not be held. */
linnet_status model_identity(linnet_model *m, uint64_t out[2], linnet_error *err);
void model_release(linnet_model *m); /* one owner less; the last one frees it */

/* ---- Loading, for mixers (model.c) -------------------------------------------------------------
 */

/* Loading runs twice over the same calls: first to check every tensor and add up the arena, then to
 * fill it. The functions below do what the phase asks for. */
struct loader {
    linnet_model *model;
    bool fill;
    bool *used;            /* per tensor of the file: something asked for it */
    struct packer *packer; /* of the second run */
    linnet_progress_fn progress;
    void *user;
};

/* blk.`layer`.`name` (layer < 0: `name` itself) as rows [row0, row0 + rows) of a [rows_total, cols]
 * matrix. */
linnet_status load_matrix(loader *l, int layer, const char *name, size_t rows_total, size_t row0,
                          size_t rows, size_t cols, matrix *out, linnet_error *err);
/* A whole tensor of float type as float32; `dims` in GGUF order, unused ones 1. */
linnet_status load_floats(loader *l, int layer, const char *name, const size_t dims[3], float **out,
                          linnet_error *err);
/* The taps of a convolution of single channels, in the file [taps, channels], as *out
 * [taps][channels]: one row per tap. */
linnet_status load_taps(loader *l, int layer, const char *name, size_t taps, size_t channels,
                        float **out, linnet_error *err);
/* n float32 values starting at `first` of a vector of n_total; an absent optional one gives NULL.
 */
linnet_status load_vector(loader *l, int layer, const char *name, bool optional, size_t n_total,
                          size_t first, size_t n, float **out, linnet_error *err);
bool has_tensor(const loader *l, int layer, const char *name);
/* Elements of a tensor, 0 if absent: where its length says which of two things it is. */
uint64_t tensor_length(const loader *l, int layer, const char *name);
/* Row r of a tensor that stays in the file, as n float32 values. Thread-safe. */
linnet_status read_row(const gguf *g, const gguf_tensor *t, uint64_t r, float *out, size_t n,
                       linnet_error *err);

/* ---- Sessions ----------------------------------------------------------------------------------
 */

struct linnet_session {
    linnet_model *model;
    int ctx;
    linnet_window_mode mode; /* as asked for */
    linnet_window_mode rule; /* of the running forward: sliding for sampled tokens */
    int whole;   /* tokens of the running prefill if rule is LINNET_TERRACE_HF, else 0 */
    kv_cache kv; /* keys and values of the layers that keep them */
    int32_t *tokens;
    size_t n_tokens, tokens_cap;
    size_t n_ruled; /* of them, from the first on: known to be fed under `mode`. All, but for
                     * sampled tokens where windows are not to slide; LINNET_TERRACE_HF: the prompt;
                     * none of a state from other activations */
    uint8_t *state; /* fixed-size state of all layers, [model->state_bytes]; NULL if that is 0 */
    bool lost;      /* a step failed after changing the state: only a reset helps */
    float *logits;  /* [n_rows] after the last token, valid if has_logits; else perhaps NULL */
    float *pending; /* where a running forward writes them: swapped when it succeeds */
    bool has_logits;
};

/* ---- The forward pass (kernels_cpu/forward.c) --------------------------------------------------
 */

/* One row of a piece: a token of a session at a position. */
typedef struct {
    linnet_session *session;
    int32_t token;
    int position;
    size_t item; /* which linnet_item it came from */
    bool want;   /* its logits are wanted */
} row;

/* Computes all items; on success every session holds its new tokens. The model's team must be held.
 */
linnet_status forward_cpu(linnet_model *m, linnet_item *items, size_t n_items,
                          linnet_progress_fn progress, void *user, linnet_error *err);
uint64_t forward_activation_bytes(const linnet_model *m, size_t rows);
void scratch_free(scratch *s);

#endif
