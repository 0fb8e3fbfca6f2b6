/* A model's config from the file's metadata: every number is checked here, where it enters.
 * Keys are llama.cpp's (gguf-py/gguf/constants.py); docs/format.md lists them. */
#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    norm_kind norm;
    ffn_kind ffn;
    rope_kind rope;
    bool learned_positions;
    bool delta_hybrid; /* Qwen3-Next's: gated delta net and gated softmax layers */
} architectures[] = {
    {"llama", NORM_RMS, FFN_SILU_GATED, ROPE_PAIRS, false, false},
    {"qwen2", NORM_RMS, FFN_SILU_GATED, ROPE_HALVES, false, false},
    {"qwen3", NORM_RMS, FFN_SILU_GATED, ROPE_HALVES, false, false},
    {"qwen35", NORM_RMS, FFN_SILU_GATED, ROPE_HALVES, false, true},
    {"qwen3next", NORM_RMS, FFN_SILU_GATED, ROPE_HALVES, false, true},
    {"gpt2", NORM_LAYER, FFN_GELU, ROPE_NONE, true, false},
    {"linnet", NORM_RMS, FFN_SILU_GATED, ROPE_HALVES, false, false},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

static const double LEAST_BASE = 1.0001, MOST_BASE = 1e12; /* of rotary frequencies */

/* "arch.suffix" in a buffer that the next call overwrites. */
typedef struct {
    const gguf *g;
    char arch[64], buffer[160];
} keys;

static const char *key(keys *k, const char *suffix) {
    snprintf(k->buffer, sizeof k->buffer, "%s.%s", k->arch, suffix);
    return k->buffer;
}

static linnet_status get_int(keys *k, const char *suffix, bool required, int lo, int hi, int *out,
                             linnet_error *err) {
    int64_t v = *out;
    linnet_status s = gguf_get_int(k->g, key(k, suffix), required, lo, hi, &v, err);
    if (!s) *out = (int)v;
    return s;
}

/* Heads differ between layers in architecture linnet: config_heads reads them after the first. */
static bool may_differ(const keys *k, const char *suffix) {
    return !strcmp(k->arch, "linnet") && !strncmp(suffix, "attention.head_count", 20);
}

/* A key that is one integer, or one per layer that must all be equal. */
static linnet_status get_uniform(keys *k, const char *suffix, bool required, int lo, int hi,
                                 int *out, linnet_error *err) {
    const gguf_kv *kv = gguf_find(k->g, key(k, suffix));
    if (!kv || kv->type != GGUF_ARRAY) return get_int(k, suffix, required, lo, hi, out, err);
    if (!kv->count || (kv->element != GGUF_U32 && kv->element != GGUF_I32))
        return fail(err, LINNET_ERR_FORMAT, "%s: %s: expected an integer or an array of integers",
                    gguf_path(k->g), k->buffer);
    int64_t first = gguf_int_at(kv, 0);
    for (uint64_t i = 1; i < kv->count; i++)
        if (gguf_int_at(kv, i) != first && !may_differ(k, suffix))
            return fail(
                err, LINNET_ERR_UNSUPPORTED,
                "%s: %s differs between layers (%lld and %lld), which this version cannot run",
                gguf_path(k->g), k->buffer, (long long)first, (long long)gguf_int_at(kv, i));
    if (first < lo || first > hi)
        return fail(err, LINNET_ERR_FORMAT, "%s: %s is %lld, expected %d to %d", gguf_path(k->g),
                    k->buffer, (long long)first, lo, hi);
    *out = (int)first;
    return LINNET_OK;
}

static linnet_status get_float(keys *k, const char *suffix, double lo, double hi, double *out,
                               linnet_error *err) {
    linnet_status s = gguf_get_float(k->g, key(k, suffix), false, out, err);
    if (!s && !(*out >= lo && *out <= hi))
        return fail(err, LINNET_ERR_FORMAT, "%s: %s is %g, expected %g to %g", gguf_path(k->g),
                    k->buffer, *out, lo, hi);
    return s;
}

static bool str_is(gguf_str s, const char *text) {
    return s.n == strlen(text) && !memcmp(s.p, text, s.n);
}

/* YaRN (Peng et al. 2023; transformers' modeling_rope_utils.py): dimensions that turn often keep
 * their frequency, slow ones are interpolated, a ramp lies between. */
static void yarn_frequencies(config *c, double base, double factor, double original, double fast,
                             double slow) {
    int half = c->rope_dim / 2;
    double at[2], turns[2] = {fast, slow};
    for (int i = 0; i < 2; i++)
        at[i] = c->rope_dim * log(original / (turns[i] * 2 * M_PI)) / (2 * log(base));
    double low = fmax(floor(at[0]), 0), high = fmin(ceil(at[1]), c->rope_dim - 1);
    if (low == high) high += 0.001;
    for (int i = 0; i < half; i++) {
        float ramp = (float)fmin(fmax((i - low) / (high - low), 0), 1);
        c->rope_freq[i] = c->rope_freq[i] / (float)factor * ramp + c->rope_freq[i] * (1 - ramp);
    }
}

/* base^(-2i/dim) behind the frequencies that are there, at *at. */
static linnet_status add_frequencies(config *c, int dim, double base, size_t *at,
                                     linnet_error *err) {
    size_t half = (size_t)dim / 2;
    float *grown = realloc(c->rope_freq, (c->n_angles + half) * sizeof *grown);
    if (!grown) return fail(err, LINNET_ERR_MEMORY, "no memory for rope frequencies");
    c->rope_freq = grown;
    *at = c->n_angles;
    for (size_t i = 0; i < half; i++)
        grown[c->n_angles++] = 1.0f / powf((float)base, (float)(2 * i) / (float)dim);
    return LINNET_OK;
}

static linnet_status read_rope(keys *k, config *c, linnet_error *err) {
    double base = 10000, factor = 1, attn = 1, fast = 32, slow = 1;
    int original = c->n_ctx_train;
    gguf_str type = {"none", 4};
    linnet_status s;
    c->rope_dim = c->head_dim;
    c->rope_scale = 1;
    const gguf_kv *bases = gguf_find(k->g, key(k, "rope.freq_base"));
    bool differ = bases && bases->type == GGUF_ARRAY && !strcmp(k->arch, "linnet");
    if ((!differ && (s = get_float(k, "rope.freq_base", LEAST_BASE, MOST_BASE, &base, err))) ||
        (s = get_int(k, "rope.dimension_count", false, 2, c->head_dim, &c->rope_dim, err)) ||
        (s = gguf_get_str(k->g, key(k, "rope.scaling.type"), false, &type, err)) ||
        (s = get_float(k, "rope.scaling.factor", 1e-3, 1e6, &factor, err)) ||
        (s = get_float(k, "rope.scaling.attn_factor", 1e-3, 1e3, &attn, err)) ||
        (s = get_float(k, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &fast, err)) ||
        (s = get_float(k, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &slow, err)) ||
        (s = get_int(k, "rope.scaling.original_context_length", false, 1, MAX_CTX, &original, err)))
        return s;
    if (c->rope_dim % 2)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: %s.rope.dimension_count is %d, expected an even number", gguf_path(k->g),
                    k->arch, c->rope_dim);
    if (differ && bases->element == GGUF_F32 && bases->count) base = gguf_float_at(bases, 0);
    int half = c->rope_dim / 2;
    size_t at;
    if ((s = add_frequencies(c, c->rope_dim, base, &at, err))) return s;
    c->rope_base = base;
    if (str_is(type, "linear")) {
        for (int i = 0; i < half; i++)
            c->rope_freq[i] /= (float)factor;
    } else if (str_is(type, "yarn")) {
        yarn_frequencies(c, base, factor, original, fast, slow);
        c->rope_scale = (float)(attn * (factor > 1 ? 0.1 * log(factor) + 1 : 1));
    } else if (!str_is(type, "none")) {
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: %s.rope.scaling.type is '%.*s', expected none, linear or yarn",
                    gguf_path(k->g), k->arch, (int)min_size(type.n, 40), type.p);
    }
    /* Llama 3's scaling travels as one divisor per frequency. */
    const gguf_tensor *divisors = gguf_find_tensor(k->g, "rope_freqs.weight");
    if (!divisors) return LINNET_OK;
    if (divisors->type != DTYPE_F32 || divisors->n_elements != (uint64_t)half)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: rope_freqs.weight: expected %d f32 values, found %llu of %s",
                    gguf_path(k->g), half, (unsigned long long)divisors->n_elements,
                    dtype_any_name(divisors->type));
    float *d = malloc((size_t)half * sizeof *d);
    if (!d) return fail(err, LINNET_ERR_MEMORY, "no memory for rope frequencies");
    s = read_row(k->g, divisors, 0, d, (size_t)half, err);
    for (int i = 0; !s && i < half; i++) {
        if (!(d[i] > 0) || isinf(d[i]))
            s = fail(err, LINNET_ERR_FORMAT,
                     "%s: rope_freqs.weight[%d] is %g, expected a positive number", gguf_path(k->g),
                     i, (double)d[i]);
        c->rope_freq[i] /= d[i];
    }
    free(d);
    return s;
}

/* qwen35 and qwen3next as llama.cpp writes them (src/models/qwen35.cpp, qwen3next.cpp). block_count
 * includes blocks for multi-token prediction, which the layers' numbers do not. */
static linnet_status read_delta_hybrid(keys *k, config *c, linnet_error *err) {
    delta_config *d = &c->delta;
    int interval = 4, blocks = c->n_layers, inner = 0;
    const gguf_kv *recurrent;
    linnet_status s;
    c->gated_attention = true;
    c->ffn_norm_is_post_attention = true;
    if ((s = get_int(k, "nextn_predict_layers", false, 0, blocks - 1, &c->n_nextn, err)) ||
        (s = get_int(k, "full_attention_interval", false, 1, MAX_LAYERS, &interval, err)) ||
        (s = gguf_get_array(k->g, key(k, "attention.recurrent_layers"), GGUF_BOOL, false,
                            &recurrent, err)))
        return s;
    if (recurrent && recurrent->count != (uint64_t)blocks)
        return fail(err, LINNET_ERR_FORMAT, "%s: %s has %llu entries for %d blocks",
                    gguf_path(k->g), k->buffer, (unsigned long long)recurrent->count, blocks);
    c->n_layers -= c->n_nextn;
    for (int i = 0; i < c->n_layers; i++)
        c->recurrent[i] =
            recurrent ? gguf_int_at(recurrent, (uint64_t)i) != 0 : (i + 1) % interval != 0;
    if ((s = get_int(k, "ssm.conv_kernel", true, 1, MAX_DELTA_CONV, &d->conv_kernel, err)) ||
        (s = get_int(k, "ssm.state_size", true, 1, MAX_DELTA_DIM, &d->key_dim, err)) ||
        (s = get_int(k, "ssm.group_count", true, 1, MAX_DIM, &d->n_heads, err)) ||
        (s = get_int(k, "ssm.time_step_rank", true, 1, MAX_DIM, &d->n_value_heads, err)) ||
        (s = get_int(k, "ssm.inner_size", true, 1, MAX_DIM, &inner, err)))
        return s;
    if (d->n_value_heads % d->n_heads || inner % d->n_value_heads ||
        inner / d->n_value_heads > MAX_DELTA_DIM || (int64_t)d->n_heads * d->key_dim > MAX_DIM)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: %s.ssm: %d key heads of %d, %d value heads, inner size %d: expected "
                    "multiples, heads up to %d wide",
                    gguf_path(k->g), k->arch, d->n_heads, d->key_dim, d->n_value_heads, inner,
                    MAX_DELTA_DIM);
    d->value_dim = inner / d->n_value_heads;
    d->heads_alternate = !strcmp(k->arch, "qwen35");
    d->complete = true;
    d->beta_scale = 1;
    d->norm_eps = c->norm_eps;
    return LINNET_OK;
}

/* Which of `options` (ends with NULL) a string key names; the first where it is absent. */
static linnet_status get_option(keys *k, const char *suffix, const char *const *options, int *out,
                                linnet_error *err) {
    gguf_str v = {options[0], strlen(options[0])};
    linnet_status s = gguf_get_str(k->g, key(k, suffix), false, &v, err);
    if (s) return s;
    char list[128] = "";
    for (*out = 0; options[*out]; ++*out) {
        if (str_is(v, options[*out])) return LINNET_OK;
        snprintf(list + strlen(list), sizeof list - strlen(list), " %s", options[*out]);
    }
    return fail(err, LINNET_ERR_UNSUPPORTED, "%s: %s is '%.*s', expected one of%s", gguf_path(k->g),
                k->buffer, (int)min_size(v.n, 40), v.p, list);
}

/* The keys linnet.delta.*; without head_count the model has no such layers. */
static linnet_status read_delta(keys *k, config *c, linnet_error *err) {
    static const char *const activations[] = {"silu", "relu", "elu", "identity", NULL};
    static const char *const norms[] = {"l2", "sum", NULL}, *const gates[] = {"silu", "sigmoid",
                                                                              NULL};
    delta_config *d = &c->delta;
    int activation, norm, gate;
    double scale = 1, eps = (double)c->norm_eps;
    linnet_status s;
    if (!gguf_find(k->g, key(k, "delta.head_count"))) return LINNET_OK;
    d->conv_kernel = 4;
    if ((s = get_int(k, "delta.head_count", true, 1, MAX_DIM, &d->n_heads, err))) return s;
    d->n_value_heads = d->n_heads;
    if ((s = get_int(k, "delta.value_head_count", false, 1, MAX_DIM, &d->n_value_heads, err)) ||
        (s = get_int(k, "delta.key_length", true, 1, MAX_DELTA_DIM, &d->key_dim, err)) ||
        (s = get_int(k, "delta.value_length", true, 1, MAX_DELTA_DIM, &d->value_dim, err)) ||
        (s = get_int(k, "delta.conv_kernel", false, 1, MAX_DELTA_CONV, &d->conv_kernel, err)) ||
        (s = get_option(k, "delta.qk_activation", activations, &activation, err)) ||
        (s = get_option(k, "delta.qk_norm", norms, &norm, err)) ||
        (s = get_float(k, "delta.beta_scale", 0, 2, &scale, err)) ||
        (s = get_float(k, "delta.norm_epsilon", 0, 1, &eps, err)) ||
        (s = get_option(k, "delta.gate_activation", gates, &gate, err)))
        return s;
    if (d->n_value_heads % d->n_heads)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: %s.delta.value_head_count is %d, expected a multiple of head_count %d",
                    gguf_path(k->g), k->arch, d->n_value_heads, d->n_heads);
    if ((int64_t)d->n_heads * d->key_dim > MAX_DIM ||
        (int64_t)d->n_value_heads * d->value_dim > MAX_DIM)
        return fail(
            err, LINNET_ERR_FORMAT, "%s: delta-rule heads %d x %d and %d x %d exceed %d dimensions",
            gguf_path(k->g), d->n_heads, d->key_dim, d->n_value_heads, d->value_dim, MAX_DIM);
    d->qk_activation = (delta_activation)activation;
    d->sum_norm = norm == 1;
    d->beta_scale = (float)scale;
    d->norm_eps = (float)eps;
    d->sigmoid_gate = gate == 1;
    return LINNET_OK;
}

/* What the gate of a gated feed-forward goes through; silu, the first, where the key is absent. */
static linnet_status read_activation(const keys *k, config *c, linnet_error *err) {
    static const struct {
        const char *name;
        ffn_kind kind;
    } gates[] = {{"silu", FFN_SILU_GATED},
                 {"gelu", FFN_GELU_GATED},
                 {"sigmoid", FFN_SIGMOID_GATED},
                 {"powlu", FFN_POWLU_GATED}};
    gguf_str v = {"", 0};
    linnet_status s = gguf_get_str(k->g, "linnet.feed_forward.activation", false, &v, err);
    if (s || !v.n) return s;
    for (size_t i = 0; c->ffn == FFN_SILU_GATED && i < sizeof gates / sizeof *gates; i++)
        if (str_is(v, gates[i].name)) {
            c->ffn = gates[i].kind;
            return LINNET_OK;
        }
    return fail(err, LINNET_ERR_UNSUPPORTED,
                "%s: linnet.feed_forward.activation is '%.*s', expected silu, gelu, sigmoid or "
                "powlu of a gated feed-forward",
                gguf_path(k->g), (int)min_size(v.n, 40), v.p);
}

static linnet_status supported_architecture(const keys *k, size_t *index, linnet_error *err) {
    for (*index = 0; *index < N_ARCHITECTURES; ++*index)
        if (!strcmp(k->arch, architectures[*index].name)) return LINNET_OK;
    char list[256] = "";
    for (size_t i = 0; i < N_ARCHITECTURES; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "",
                 architectures[i].name);
    return fail(err, LINNET_ERR_UNSUPPORTED,
                "%s: architecture '%s' is not supported; this version runs %s", gguf_path(k->g),
                k->arch, list);
}

static linnet_status check_heads(const gguf *g, int heads, int kv_heads, int head_dim,
                                 linnet_error *err) {
    if (head_dim < 1 || head_dim > MAX_HEAD_DIM || head_dim % 2)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: heads of %d dimensions: expected an even number up to %d", gguf_path(g),
                    head_dim, MAX_HEAD_DIM);
    if (heads % kv_heads || heads / kv_heads > ATTEND_GROUP)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: %d heads over %d KV heads: expected a multiple of at most %d",
                    gguf_path(g), heads, kv_heads, ATTEND_GROUP);
    if ((int64_t)heads * head_dim > MAX_DIM)
        return fail(err, LINNET_ERR_FORMAT, "%s: %d heads of %d dimensions exceed %d", gguf_path(g),
                    heads, head_dim, MAX_DIM);
    return LINNET_OK;
}

linnet_status config_read(const gguf *g, config *c, char arch_out[64], linnet_error *err) {
    keys k = {.g = g};
    gguf_str arch;
    linnet_status s = gguf_get_str(g, "general.architecture", true, &arch, err);
    if (s) return s;
    snprintf(k.arch, sizeof k.arch, "%.*s", (int)min_size(arch.n, 60), arch.p);
    memcpy(arch_out, k.arch, sizeof k.arch);
    c->own_format = !strcmp(k.arch, "linnet");
    size_t a;
    if ((s = supported_architecture(&k, &a, err))) return s;
    c->norm = architectures[a].norm;
    c->ffn = architectures[a].ffn;
    c->rope = architectures[a].rope;
    c->learned_positions = architectures[a].learned_positions;
    int experts = 0, value_dim = 0;
    /* a model whose mixers have no softmax attention need not say how it would look */
    bool no_heads = !strcmp(k.arch, "linnet") && !gguf_find(g, key(&k, "attention.head_count"));
    c->n_heads = 1;
    if ((s = get_int(&k, "block_count", true, 1, MAX_LAYERS, &c->n_layers, err)) ||
        (s = get_int(&k, "embedding_length", true, 1, MAX_DIM, &c->n_embd, err)) ||
        (s = get_int(&k, "context_length", true, 1, MAX_CTX, &c->n_ctx_train, err)) ||
        (s = get_uniform(&k, "feed_forward_length", true, c->own_format ? 0 : 1, MAX_DIM, &c->n_ff,
                         err)) ||
        (s = get_uniform(&k, "attention.head_count", !no_heads, 1, MAX_DIM, &c->n_heads, err)))
        return s;
    c->n_kv_heads = c->n_heads;
    if ((s = get_uniform(&k, "attention.head_count_kv", false, 1, c->n_heads, &c->n_kv_heads,
                         err)) ||
        (s = get_int(&k, "expert_count", false, 0, 1 << 20, &experts, err)))
        return s;
    if (experts > 0)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: %s.expert_count is %d: mixtures of experts are not "
                    "supported",
                    gguf_path(g), k.arch, experts);
    c->head_dim = no_heads ? 2 : c->n_embd / c->n_heads;
    if (no_heads) c->rope = ROPE_NONE;
    if (!gguf_find(g, key(&k, "attention.key_length")) && c->n_embd % c->n_heads)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: embedding_length %d is not a multiple of head_count %d", gguf_path(g),
                    c->n_embd, c->n_heads);
    if ((s = get_int(&k, "attention.key_length", false, 1, MAX_HEAD_DIM, &c->head_dim, err)))
        return s;
    value_dim = c->head_dim;
    if ((s = get_int(&k, "attention.value_length", false, 1, MAX_HEAD_DIM, &value_dim, err)) ||
        (s = get_int(&k, "attention.sliding_window", false, 0, MAX_CTX, &c->window, err)))
        return s;
    int64_t sinks = 0;
    if ((s = gguf_get_int(g, "linnet.attention.n_sink", false, 0, MAX_SINKS, &sinks, err)))
        return s;
    c->n_sink = (int)sinks;
    int64_t trained = 0;
    if ((s = gguf_get_int(g, "linnet.lolcats.trained_length", false, 0, MAX_CTX, &trained, err)))
        return s;
    c->trained_length = (int)trained;
    if (value_dim != c->head_dim)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: keys of %d and values of %d dimensions: expected equal ones", gguf_path(g),
                    c->head_dim, value_dim);
    if ((s = check_heads(g, c->n_heads, c->n_kv_heads, c->head_dim, err))) return s;
    gguf_str pairing = {"", 0};
    if ((s = gguf_get_str(g, "linnet.rope.pairing", false, &pairing, err))) return s;
    if (str_is(pairing, "none"))
        c->rope = ROPE_NONE;
    else if (pairing.n && !str_is(pairing, "halves"))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: linnet.rope.pairing is '%.*s', expected halves or none", gguf_path(g),
                    (int)min_size(pairing.n, 40), pairing.p);
    if ((s = read_activation(&k, c, err))) return s;
    double eps = 1e-5;
    const char *eps_key =
        c->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
    if (!gguf_find(g, key(&k, eps_key)))
        return fail(err, LINNET_ERR_FORMAT, "%s: metadata key %s is missing", gguf_path(g),
                    k.buffer);
    if ((s = get_float(&k, eps_key, 0, 1, &eps, err))) return s;
    c->norm_eps = (float)eps;
    if (c->rope != ROPE_NONE && (s = read_rope(&k, c, err))) return s;
    if (!strcmp(k.arch, "linnet") && (s = read_delta(&k, c, err))) return s;
    const gguf_tensor *e = gguf_find_tensor(g, "token_embd.weight");
    if (e && (e->n_dims != 2 || e->dims[1] > MAX_ROWS))
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: token_embd.weight: expected a matrix of at most %d rows", gguf_path(g),
                    MAX_ROWS);
    c->n_rows = e ? (int)e->dims[1] : 0;
    c->tied = !gguf_find_tensor(g, "output.weight");
    if (architectures[a].delta_hybrid) return read_delta_hybrid(&k, c, err);
    return LINNET_OK;
}

/* ---- Layers that differ ------------------------------------------------------------------------
 */

/* The array of a key, an entry per layer; NULL if it is one number for all, or absent. */
static linnet_status layer_values(const linnet_model *m, const char *name, const gguf_kv **out,
                                  linnet_error *err) {
    const gguf_kv *kv = gguf_find(m->file, name);
    *out = NULL;
    if (!kv || kv->type != GGUF_ARRAY) return LINNET_OK;
    if (kv->count != (uint64_t)m->cfg.n_layers)
        return fail(err, LINNET_ERR_FORMAT, "%s: %s has %llu entries for %d layers",
                    gguf_path(m->file), name, (unsigned long long)kv->count, m->cfg.n_layers);
    *out = kv;
    return LINNET_OK;
}

static linnet_status layer_int(const linnet_model *m, const gguf_kv *values, int layer, int *out,
                               linnet_error *err) {
    if (!values) return LINNET_OK;
    int64_t v = gguf_int_at(values, (uint64_t)layer);
    if (v < 1 || v > MAX_DIM)
        return fail(err, LINNET_ERR_FORMAT, "%s: %s of layer %d is %lld, expected 1 to %d",
                    gguf_path(m->file), values->key.p, layer, (long long)v, MAX_DIM);
    *out = (int)v;
    return LINNET_OK;
}

/* What the arrays say of a layer, into *h, which has what the first one has. */
static linnet_status read_heads(const linnet_model *m, int layer, head_layout *h,
                                linnet_error *err) {
    const gguf *g = m->file;
    const gguf_kv *heads, *kv_heads, *bases;
    linnet_status s;
    if ((s = layer_values(m, "linnet.attention.head_count", &heads, err)) ||
        (s = layer_values(m, "linnet.attention.head_count_kv", &kv_heads, err)) ||
        (s = layer_values(m, "linnet.rope.freq_base", &bases, err)) ||
        (s = layer_int(m, heads, layer, &h->n_heads, err)))
        return s;
    if (heads && !gguf_find(g, "linnet.attention.head_count_kv")) h->n_kv_heads = h->n_heads;
    if ((s = layer_int(m, kv_heads, layer, &h->n_kv_heads, err))) return s;
    if (heads && !gguf_find(g, "linnet.attention.key_length")) {
        if (m->cfg.n_embd % h->n_heads)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: embedding_length %d is not a multiple of layer %d's head_count %d",
                        gguf_path(g), m->cfg.n_embd, layer, h->n_heads);
        h->head_dim = m->cfg.n_embd / h->n_heads;
        if (h->rope_dim && !gguf_find(g, "linnet.rope.dimension_count")) h->rope_dim = h->head_dim;
    }
    if ((s = check_heads(g, h->n_heads, h->n_kv_heads, h->head_dim, err))) return s;
    if (h->rope_dim > h->head_dim)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: layer %d has heads of %d dimensions, of which %d rotate", gguf_path(g),
                    layer, h->head_dim, h->rope_dim);
    if (!bases || !h->rope_dim) return LINNET_OK;
    h->rope_base = bases->element == GGUF_F32 ? gguf_float_at(bases, (uint64_t)layer) : NAN;
    if (!(h->rope_base >= LEAST_BASE && h->rope_base <= MOST_BASE))
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: linnet.rope.freq_base of layer %d is %g, expected an f32 of %g to %g",
                    gguf_path(g), layer, h->rope_base, LEAST_BASE, MOST_BASE);
    return LINNET_OK;
}

static bool same_rotation(const head_layout *a, const head_layout *b) {
    return a->rope_dim == b->rope_dim && a->rope_base == b->rope_base;
}

/* The layer's frequencies: those of an earlier one, or new ones behind them. */
static linnet_status place_frequencies(linnet_model *m, int layer, linnet_error *err) {
    head_layout *h = &m->layers[layer].heads;
    for (int i = 0; i < layer; i++)
        if (same_rotation(&m->layers[i].heads, h)) {
            h->angles = m->layers[i].heads.angles;
            return LINNET_OK;
        }
    if (!layer || !h->rope_dim) return LINNET_OK; /* the first layer's are there */
    gguf_str scaling = {"none", 4};
    linnet_status s = gguf_get_str(m->file, "linnet.rope.scaling.type", false, &scaling, err);
    if (s) return s;
    if (!str_is(scaling, "none") || gguf_find_tensor(m->file, "rope_freqs.weight"))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: layers with different rotary frequencies and a scaling of them",
                    gguf_path(m->file));
    return add_frequencies(&m->cfg, h->rope_dim, h->rope_base, &h->angles, err);
}

linnet_status config_heads(linnet_model *m, linnet_error *err) {
    config *c = &m->cfg;
    const head_layout first = {.n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim,
                               .rope_dim = c->rope_dim,
                               .rope_base = c->rope_base};
    if (m->kv_layers && !(m->kv_slots = calloc((size_t)m->kv_layers, sizeof *m->kv_slots)))
        return fail(err, LINNET_ERR_MEMORY, "no memory for %d layers", m->kv_layers);
    for (int i = 0; i < c->n_layers; i++) {
        layer_weights *w = &m->layers[i];
        head_layout *h = &w->heads;
        *h = first;
        linnet_status s = LINNET_OK;
        if (c->own_format) s = read_heads(m, i, h, err);
        if (s || (s = place_frequencies(m, i, err))) return s;
        m->heads_differ |= h->n_heads != first.n_heads || h->n_kv_heads != first.n_kv_heads ||
                           h->head_dim != first.head_dim || !same_rotation(h, &first);
        size_t heads = (size_t)h->n_heads, kv = (size_t)h->n_kv_heads, d = (size_t)h->head_dim;
        m->most.q = max_size(m->most.q, heads * d);
        m->most.kv = max_size(m->most.kv, kv * d);
        m->most.heads = max_size(m->most.heads, heads);
        m->most.kv_heads = max_size(m->most.kv_heads, kv);
        m->most.head_dim = max_size(m->most.head_dim, d);
        m->most.group = max_size(m->most.group, heads / kv);
        if (w->kv_slot >= 0)
            m->kv_slots[w->kv_slot] = (kv_slot){.heads = h->n_kv_heads,
                                                .head_dim = h->head_dim,
                                                .table = w->window ? KV_WINDOWED : KV_ALL};
    }
    kv_place(m->kv_slots, m->kv_layers);
    return LINNET_OK;
}
