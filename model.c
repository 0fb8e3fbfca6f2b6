/* From a GGUF file to a model: tensors (checked, packed) by the config (config.c), and what the
 * model says of itself. Tensor names are llama.cpp's (gguf-py/gguf/constants.py); docs/format.md
 * lists them. */
#include "model.h"

#include "weights/hash.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- Tensors -------------------------------------------------------------------------------- */

static void *arena_take(loader *l, size_t bytes) {
    linnet_model *m = l->model;
    void *p = l->fill ? m->arena + m->arena_used : NULL;
    m->arena_used += round_up(bytes, 64);
    return p;
}

static void tensor_name(char out[96], int layer, const char *name) {
    if (layer < 0)
        snprintf(out, 96, "%s", name);
    else
        snprintf(out, 96, "blk.%d.%s", layer, name);
}

static const gguf_tensor *find_tensor(const loader *l, int layer, const char *name) {
    const gguf *g = l->model->file;
    char full[96];
    tensor_name(full, layer, name);
    const gguf_tensor *t = gguf_find_tensor(g, full);
    if (t) l->used[t - gguf_tensor_at(g, 0)] = true;
    return t;
}

bool has_tensor(const loader *l, int layer, const char *name) {
    return find_tensor(l, layer, name);
}

uint64_t tensor_length(const loader *l, int layer, const char *name) {
    const gguf_tensor *t = find_tensor(l, layer, name);
    return t ? t->n_elements : 0;
}

/* The tensor, present, readable and of the shape [cols, rows] (rows 0: a vector). */
static linnet_status require(loader *l, int layer, const char *name, size_t cols, size_t rows,
                             const gguf_tensor **out, linnet_error *err) {
    const char *path = gguf_path(l->model->file);
    const gguf_tensor *t = *out = find_tensor(l, layer, name);
    char full[96];
    tensor_name(full, layer, name);
    if (!t) return fail(err, LINNET_ERR_FORMAT, "%s: tensor %s is missing", path, full);
    if (!dtype_get(t->type))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: tensor %s has type %s, which this version cannot read; it reads %s", path,
                    full, dtype_any_name(t->type), dtype_list());
    bool fits = rows ? t->n_dims == 2 && t->dims[0] == cols && t->dims[1] == rows
                     : t->n_dims == 1 && t->dims[0] == cols;
    if (fits) return LINNET_OK;
    char expected[64], found[96] = "";
    snprintf(expected, sizeof expected, rows ? "[%zu, %zu]" : "[%zu]", cols, rows);
    for (uint32_t i = 0; i < t->n_dims; i++)
        snprintf(found + strlen(found), sizeof found - strlen(found), "%s%llu", i ? ", " : "[",
                 (unsigned long long)t->dims[i]);
    return fail(err, LINNET_ERR_FORMAT, "%s: tensor %s: expected shape %s, found %s]", path, full,
                expected, found);
}

linnet_status load_matrix(loader *l, int layer, const char *name, size_t rows_total, size_t row0,
                          size_t rows, size_t cols, matrix *out, linnet_error *err) {
    const gguf_tensor *t;
    linnet_status s = require(l, layer, name, cols, rows_total, &t, err);
    if (s) return s;
    out->rows = rows;
    out->cols = cols;
    l->model->widest = max_size(l->model->widest, cols);
    out->type = (dtype)t->type;
    out->panel_bytes = l->model->backend->ops->panel_bytes(out->type, cols);
    size_t bytes;
    if (!mul_size(out->panel_bytes, (rows + PANEL - 1) / PANEL, &bytes))
        return fail(err, LINNET_ERR_FORMAT, "%s: tensor %s is too large", gguf_path(l->model->file),
                    t->name);
    uint8_t *data = arena_take(l, bytes);
    if (!l->fill) return LINNET_OK;
    out->data = data;
    return packer_add(l->packer, t, out, data, row0, err);
}

linnet_status load_vector(loader *l, int layer, const char *name, bool optional, size_t n_total,
                          size_t first, size_t n, float **out, linnet_error *err) {
    const gguf_tensor *t;
    *out = NULL;
    if (optional && !has_tensor(l, layer, name)) return LINNET_OK;
    linnet_status s = require(l, layer, name, n_total, 0, &t, err);
    if (s) return s;
    if (!is_float_type((dtype)t->type))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: tensor %s has type %s, expected f32, f16 or bf16",
                    gguf_path(l->model->file), t->name, dtype_any_name(t->type));
    *out = arena_take(l, n * sizeof(float));
    if (!l->fill) return LINNET_OK;
    size_t size = dtype_row_bytes((dtype)t->type, 1);
    const void *data;
    void *buffer = malloc(n * size);
    if (!buffer)
        return fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes of weights", n * size);
    s = gguf_read(l->model->file, t, first * size, n * size, buffer, &data, err);
    if (!s) dequantize_row((dtype)t->type, data, *out, n);
    free(buffer);
    return s;
}

linnet_status load_floats(loader *l, int layer, const char *name, const size_t dims[3], float **out,
                          linnet_error *err) {
    const gguf *g = l->model->file;
    const gguf_tensor *t = find_tensor(l, layer, name);
    char full[96];
    tensor_name(full, layer, name);
    *out = NULL;
    if (!t) return fail(err, LINNET_ERR_FORMAT, "%s: tensor %s is missing", gguf_path(g), full);
    if (t->dims[0] != dims[0] || t->dims[1] != dims[1] || t->dims[2] != dims[2] || t->dims[3] != 1)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: tensor %s: expected shape [%zu, %zu, %zu], found [%llu, %llu, %llu, %llu]",
                    gguf_path(g), full, dims[0], dims[1], dims[2], (unsigned long long)t->dims[0],
                    (unsigned long long)t->dims[1], (unsigned long long)t->dims[2],
                    (unsigned long long)t->dims[3]);
    if (!dtype_get(t->type) || !is_float_type((dtype)t->type))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: tensor %s has type %s, expected f32, f16 or bf16", gguf_path(g), full,
                    dtype_any_name(t->type));
    size_t n = (size_t)t->n_elements, bytes;
    if (!mul_size(n, sizeof(float), &bytes))
        return fail(err, LINNET_ERR_FORMAT, "%s: tensor %s is too large", gguf_path(g), full);
    *out = arena_take(l, bytes);
    return l->fill ? read_row(g, t, 0, *out, n, err) : LINNET_OK;
}

linnet_status load_taps(loader *l, int layer, const char *name, size_t taps, size_t channels,
                        float **out, linnet_error *err) {
    const size_t dims[3] = {taps, channels, 1};
    linnet_status s = load_floats(l, layer, name, dims, out, err);
    if (s || !l->fill) return s;
    float *copy = malloc(taps * channels * sizeof *copy);
    if (!copy) return fail(err, LINNET_ERR_MEMORY, "no memory for layer %d", layer);
    memcpy(copy, *out, taps * channels * sizeof *copy);
    for (size_t c = 0; c < channels; c++)
        for (size_t j = 0; j < taps; j++)
            (*out)[j * channels + c] = copy[c * taps + j];
    free(copy);
    return LINNET_OK;
}

linnet_status read_row(const gguf *g, const gguf_tensor *t, uint64_t r, float *out, size_t n,
                       linnet_error *err) {
    size_t bytes = dtype_row_bytes((dtype)t->type, n);
    void *buffer = gguf_is_mapped(g) ? NULL : malloc(bytes);
    if (!buffer && !gguf_is_mapped(g)) return fail(err, LINNET_ERR_MEMORY, "no memory for a row");
    const void *data;
    linnet_status s = gguf_read(g, t, r * bytes, bytes, buffer, &data, err);
    if (!s) dequantize_row((dtype)t->type, data, out, n);
    free(buffer);
    return s;
}

static linnet_status load_norm(loader *l, int layer, const char *name, bool optional,
                               norm_weights *out, linnet_error *err) {
    size_t d = (size_t)l->model->cfg.n_embd;
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    linnet_status s = load_vector(l, layer, full, optional, d, 0, d, &out->w, err);
    if (s || l->model->cfg.norm == NORM_RMS) return s;
    snprintf(full, sizeof full, "%s.bias", name);
    return load_vector(l, layer, full, true, d, 0, d, &out->b, err);
}

static linnet_status load_biased(loader *l, int layer, const char *name, size_t rows, size_t cols,
                                 matrix *out, linnet_error *err) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    linnet_status s = load_matrix(l, layer, full, rows, 0, rows, cols, out, err);
    if (s) return s;
    snprintf(full, sizeof full, "%s.bias", name);
    return load_vector(l, layer, full, true, rows, 0, rows, &out->bias, err);
}

static linnet_status load_layer(loader *l, int i, linnet_error *err) {
    linnet_model *m = l->model;
    layer_weights *w = &m->layers[i];
    size_t d = (size_t)m->cfg.n_embd, ff = (size_t)m->cfg.n_ff;
    linnet_status s;
    /* norms before the mixer and the feed-forward, or (OLMo 2) of what they give */
    const char *ffn_norm = "ffn_norm", *attn_post_norm = "post_attention_norm";
    if (m->cfg.ffn_norm_is_post_attention) {
        ffn_norm = attn_post_norm;
        attn_post_norm = NULL;
    }
    bool attn_post = attn_post_norm && has_tensor(l, i, "post_attention_norm.weight");
    bool ffn_post = has_tensor(l, i, "post_ffw_norm.weight");
    m->post_norms = m->post_norms || attn_post || ffn_post;
    if ((s = load_norm(l, i, "attn_norm", attn_post, &w->attn_norm, err)) ||
        (attn_post && (s = load_norm(l, i, attn_post_norm, false, &w->attn_post_norm, err))) ||
        (s = w->mixer->load(l, i, &w->mixer_weights, err)))
        return s;
    if (!ff) return LINNET_OK;
    if ((s = load_norm(l, i, ffn_norm, ffn_post, &w->ffn_norm, err)) ||
        (s = load_norm(l, i, "post_ffw_norm", true, &w->ffn_post_norm, err)))
        return s;
    if (m->cfg.ffn != FFN_GELU && (s = load_biased(l, i, "ffn_gate", ff, d, &w->w_gate, err)))
        return s;
    if ((s = load_biased(l, i, "ffn_up", ff, d, &w->w_up, err))) return s;
    return load_biased(l, i, "ffn_down", d, ff, &w->w_down, err);
}

/* What the CPU reads row by row from the file, for backends that keep all weights. */
static linnet_status load_rows(loader *l, linnet_error *err) {
    linnet_model *m = l->model;
    const config *c = &m->cfg;
    size_t d = (size_t)c->n_embd, rows = (size_t)c->n_rows, ctx = (size_t)c->n_ctx_train;
    linnet_status s = LINNET_OK;
    if (!c->tied)
        s = load_matrix(l, -1, "token_embd.weight", rows, 0, rows, d, &m->packed_embedding, err);
    if (!s && c->learned_positions)
        s = load_matrix(l, -1, "position_embd.weight", ctx, 0, ctx, d, &m->packed_positions, err);
    return s;
}

static linnet_status load_all(loader *l, linnet_error *err) {
    linnet_model *m = l->model;
    const config *c = &m->cfg;
    const gguf_tensor *t;
    linnet_status s = require(l, -1, "token_embd.weight", (size_t)c->n_embd, (size_t)c->n_rows,
                              &m->embedding, err);
    if (s) return s;
    if (c->learned_positions && (s = require(l, -1, "position_embd.weight", (size_t)c->n_embd,
                                             (size_t)c->n_ctx_train, &m->positions, err)))
        return s;
    if (!m->backend->ops->host_memory && (s = load_rows(l, err))) return s;
    for (int i = 0; i < c->n_layers; i++)
        if ((s = load_layer(l, i, err))) return s;
    if ((s = load_norm(l, -1, "output_norm", false, &m->out_norm, err))) return s;
    const char *output = c->tied ? "token_embd.weight" : "output.weight";
    if ((t = find_tensor(l, -1, output)) && t->n_dims == 2 && t->dims[1] != (uint64_t)c->n_rows)
        return fail(
            err, LINNET_ERR_FORMAT,
            "%s: output.weight has %llu rows, token_embd.weight has %d: expected equal numbers",
            gguf_path(m->file), (unsigned long long)t->dims[1], c->n_rows);
    return load_matrix(l, -1, output, (size_t)c->n_rows, 0, (size_t)c->n_rows, (size_t)c->n_embd,
                       &m->output, err);
}

/* A block behind the last layer that the file says predicts further tokens. */
static bool is_nextn(const config *c, const char *tensor) {
    int block, end = 0;
    return sscanf(tensor, "blk.%9d.%n", &block, &end) == 1 && end && block >= c->n_layers &&
           block < c->n_layers + c->n_nextn;
}

/* A tensor that nothing asked for means that the model is not what it says, or more than this
 * version knows: its results would differ from its maker's. */
static linnet_status refuse_unused(const loader *l, linnet_error *err) {
    const gguf *g = l->model->file;
    for (size_t i = 0; i < gguf_n_tensors(g); i++)
        if (!l->used[i] && strcmp(gguf_tensor_at(g, i)->name, "rope_freqs.weight") &&
            !is_nextn(&l->model->cfg, gguf_tensor_at(g, i)->name))
            return fail(err, LINNET_ERR_UNSUPPORTED,
                        "%s: tensor %s is not part of the architecture as this version knows it",
                        gguf_path(g), gguf_tensor_at(g, i)->name);
    return LINNET_OK;
}

static linnet_status mixer_by_name(const gguf *g, gguf_str name, const mixer_ops **out,
                                   linnet_error *err) {
    char list[256] = "";
    for (const mixer_ops *const *m = mixers; *m; m++) {
        *out = *m;
        if (name.n == strlen((*m)->name) && !memcmp(name.p, (*m)->name, name.n)) return LINNET_OK;
        snprintf(list + strlen(list), sizeof list - strlen(list), " %s", (*m)->name);
    }
    return fail(err, LINNET_ERR_UNSUPPORTED,
                "%s: linnet.mixers names '%.*s', which this version does not know; it knows%s",
                gguf_path(g), (int)min_size(name.n, 40), name.p, list);
}

/* An array with an entry per layer, or NULL in *out. */
static linnet_status layer_array(const linnet_model *m, const char *key, gguf_type element,
                                 const gguf_kv **out, linnet_error *err) {
    linnet_status s = gguf_get_array(m->file, key, element, false, out, err);
    if (!s && *out && (*out)->count != (uint64_t)m->cfg.n_layers)
        return fail(err, LINNET_ERR_FORMAT, "%s: %s has %llu entries for %d layers",
                    gguf_path(m->file), key, (unsigned long long)(*out)->count, m->cfg.n_layers);
    return s;
}

static linnet_status choose_mixers(linnet_model *m, linnet_error *err) {
    const config *c = &m->cfg;
    const gguf_kv *windows, *names;
    size_t cursor = 0;
    linnet_status s = layer_array(m, "linnet.attention.window_layers", GGUF_U32, &windows, err);
    if (s || (s = layer_array(m, "linnet.mixers", GGUF_STRING, &names, err))) return s;
    for (int i = 0; i < c->n_layers; i++) {
        layer_weights *w = &m->layers[i];
        int64_t window = windows ? gguf_int_at(windows, (uint64_t)i) : c->window;
        if (window < 0 || window > MAX_CTX)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: layer %d has a window of %lld, expected 0 to %d", gguf_path(m->file),
                        i, (long long)window, MAX_CTX);
        w->mixer = &mixer_softmax;
        gguf_str delta = {"gated_delta_net", 15};
        if (c->recurrent[i] && (s = mixer_by_name(m->file, delta, &w->mixer, err))) return s;
        if (names && (s = mixer_by_name(m->file, gguf_next_str(names, &cursor), &w->mixer, err)))
            return s;
        w->window = (int)window;
        w->kv_slot = w->mixer->uses_kv ? m->kv_layers++ : -1;
    }
    return LINNET_OK;
}

/* Places for the mixers' fixed-size state, and the most scratch that one wants. */
static linnet_status plan_state(linnet_model *m, linnet_error *err) {
    for (int i = 0; i < m->cfg.n_layers; i++) {
        layer_weights *w = &m->layers[i];
        const mixer_ops *x = w->mixer;
        size_t bytes = x->state_bytes ? round_up(x->state_bytes(m, w->mixer_weights), 64) : 0;
        w->state_at = m->state_bytes;
        if (!add_size(m->state_bytes, bytes, &m->state_bytes))
            return fail(err, LINNET_ERR_FORMAT, "%s: the state is too large", gguf_path(m->file));
        if (x->work_floats)
            m->work_floats = max_size(m->work_floats, x->work_floats(m, w->mixer_weights));
    }
    return LINNET_OK;
}

/* ---- Opening -------------------------------------------------------------------------------- */

/* The second walk over the tensors, now that their sum is known. */
static linnet_status fill_arena(loader *l, linnet_error *err) {
    linnet_model *m = l->model;
    m->arena_bytes = max_size(m->arena_used, 64);
    m->arena =
        mmap(NULL, m->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->arena == MAP_FAILED) {
        m->arena = NULL;
        return fail(err, LINNET_ERR_MEMORY, "%s: no memory for %zu bytes of weights",
                    gguf_path(m->file), m->arena_bytes);
    }
    madvise(m->arena, m->arena_bytes, MADV_HUGEPAGE);
    m->arena_used = 0;
    l->fill = true;
    if (!(l->packer = packer_new(m->file, m->backend->ops, m->team)))
        return fail(err, LINNET_ERR_MEMORY, "no memory for a list of matrices");
    linnet_status s = load_all(l, err);
    if (!s) s = packer_run(l->packer, l->progress, l->user, err);
    if (!s && (s = m->backend->ops->prepare(m->backend, m, err))) m->declined = true;
    packer_free(l->packer);
    return s;
}

static linnet_status load_weights(linnet_model *m, const linnet_model_options *o,
                                  linnet_error *err) {
    loader l = {.model = m, .progress = o->progress, .user = o->user};
    if (!(l.used = calloc(gguf_n_tensors(m->file), sizeof *l.used)))
        return fail(err, LINNET_ERR_MEMORY, "no memory for a list of tensors");
    linnet_status s = load_all(&l, err);
    if (!s) s = refuse_unused(&l, err);
    if (!s) s = plan_state(m, err);
    if (!s && !o->metadata_only && (s = m->backend->ops->fits(m->backend, m, m->arena_used, err)))
        m->declined = true;
    if (!s && !o->metadata_only) s = fill_arena(&l, err);
    free(l.used);
    return s;
}
static void fill_info(linnet_model *m, const char *arch) {
    const config *c = &m->cfg;
    linnet_model_info *i = &m->info;
    gguf_str name = {"", 0};
    gguf_get_str(m->file, "general.name", false, &name, NULL);
    snprintf(m->arch, sizeof m->arch, "%s", arch);
    snprintf(m->name, sizeof m->name, "%.*s", (int)min_size(name.n, sizeof m->name - 1), name.p);
    i->architecture = m->arch;
    i->name = m->name;
    i->tokenizer = m->tok ? tokenizer_name(m->tok) : "none";
    i->isa = m->kernels ? m->kernels->name : "none";
    i->backend = m->backend->name;
    i->note = m->note;
    i->threads = m->team ? team_size(m->team) : 0;
    i->n_layers = c->n_layers;
    i->n_embd = c->n_embd;
    i->n_heads = c->n_heads;
    i->n_kv_heads = c->n_kv_heads;
    i->head_dim = c->head_dim;
    i->n_ff = c->n_ff;
    i->n_vocab = m->tok ? tokenizer_n_vocab(m->tok) : 0;
    i->n_rows = c->n_rows;
    i->n_ctx_train = c->n_ctx_train;
    i->ctx_is_limit = c->learned_positions;
    i->bos = m->tok ? tokenizer_bos(m->tok) : -1;
    i->eos = m->tok ? tokenizer_eos(m->tok) : -1;
    i->add_bos = m->tok && tokenizer_add_bos(m->tok);
    for (size_t t = 0; t < gguf_n_tensors(m->file); t++)
        i->n_params += gguf_tensor_at(m->file, t)->n_elements;
    i->file_bytes = gguf_file_bytes(m->file);
    i->weight_bytes = m->arena_used;
    i->n_tensors = gguf_n_tensors(m->file);
    i->n_metadata = gguf_n_kv(m->file);
}

static linnet_status open_parts(linnet_model *m, const char *path, const linnet_model_options *o,
                                linnet_error *err) {
    char arch[64] = "";
    bool has_template;
    linnet_status s;
    if ((s = gguf_open(&m->file, path, o->no_mmap, err)) ||
        (s = tokenizer_new(&m->tok, m->file, err)) ||
        (s = chat_template_of(m->file, &m->chat, &has_template, err)))
        return s;
    m->info.chat_template = m->chat        ? chat_template_get_name(m->chat)
                            : has_template ? "unknown"
                                           : "none";
    m->act = o->activations;
    bool vocabulary_only = gguf_n_tensors(m->file) == 0;
    if (vocabulary_only && !o->metadata_only)
        return fail(
            err, LINNET_ERR_FORMAT,
            "%s: a vocabulary without weights: only tokenize, detokenize and info can use it",
            path);
    if (!o->metadata_only) {
        if (m->backend == &backend_cpu && (s = kernels_select(o->isa, &m->kernels, err))) return s;
        int threads = o->threads ? o->threads : team_default_size();
        if ((s = team_new(&m->team, threads, err))) return s;
    }
    s = config_read(m->file, &m->cfg, arch, err);
    if (vocabulary_only) {
        s = arch[0] ? LINNET_OK : s; /* its numbers may be missing: nothing uses them */
    } else if (!s) {
        m->layers = calloc((size_t)m->cfg.n_layers, sizeof *m->layers);
        if (!m->layers)
            return fail(err, LINNET_ERR_MEMORY, "no memory for %d layers", m->cfg.n_layers);
        if ((s = choose_mixers(m, err)) || (s = config_heads(m, err)) ||
            (s = load_weights(m, o, err)))
            return s;
        if (m->tok && tokenizer_n_vocab(m->tok) > m->cfg.n_rows)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: %d tokens in the vocabulary, but only %d rows in the "
                        "output matrix",
                        path, tokenizer_n_vocab(m->tok), m->cfg.n_rows);
    }
    m->loaded = !s && !o->metadata_only;
    if (!s) fill_info(m, arch);
    return s;
}

static linnet_status check_options(const linnet_model_options *o, linnet_error *err) {
    if (o->threads < 0 || o->threads > 1024)
        return fail(err, LINNET_ERR_ARGUMENT, "threads is %d, expected 1 to 1024", o->threads);
    if (o->activations < LINNET_ACT_AUTO || o->activations > LINNET_ACT_Q8)
        return fail(err, LINNET_ERR_ARGUMENT, "activations is %d, not one of linnet_activations",
                    (int)o->activations);
    return LINNET_OK;
}

/* One try. With `note` a backend that cannot be opened, or that this model does not fit, says why
 * there: another may be tried. */
static linnet_status open_on(linnet_model **out, const char *path, const linnet_model_options *o,
                             const char *name, linnet_error *note, linnet_error *err) {
    linnet_model *m = calloc(1, sizeof *m);
    linnet_error why;
    if (!m) return fail(err, LINNET_ERR_MEMORY, "no memory for a model");
    m->map_lag = -1;
    atomic_init(&m->owners, 1);
    linnet_status s = backend_open(name, &m->backend, &why);
    m->declined = s;
    if (s) m->backend = &backend_cpu;
    if (!s) s = open_parts(m, path, o, &why);
    if (s && note && m->declined)
        *note = why;
    else if (s)
        fail(err, s, "%s", why.text);
    if (s)
        linnet_model_close(m);
    else
        *out = m;
    return s;
}

linnet_status linnet_model_open(linnet_model **out, const char *path,
                                const linnet_model_options *options, linnet_error *err) {
    linnet_model_options o = {0};
    if (options) o = *options;
    if (!out || !path) return fail(err, LINNET_ERR_ARGUMENT, "linnet_model_open: NULL argument");
    *out = NULL;
    linnet_status s = check_options(&o, err);
    if (s) return s;
    const char *backend = o.backend ? o.backend : "auto";
    bool any = !strcmp(backend, "auto");
    linnet_error note = {0};
    if (o.metadata_only || (any && !backend_has_cuda()))
        return open_on(out, path, &o, "cpu", NULL, err);
    s = open_on(out, path, &o, any ? "cuda" : backend, any ? &note : NULL, err);
    if (!any || !s || !note.code) return s;
    if (!(s = open_on(out, path, &o, "cpu", NULL, err)))
        snprintf((*out)->note, sizeof(*out)->note, "%s", note.text);
    return s;
}

void linnet_model_close(linnet_model *m) {
    if (!m) return;
    atomic_store(&m->closed, true);
    model_release(m);
}

void model_release(linnet_model *m) {
    if (atomic_fetch_sub(&m->owners, 1) != 1) return;
    for (int i = 0; m->layers && i < m->cfg.n_layers; i++)
        free(m->layers[i].mixer_weights);
    free(m->layers);
    free(m->kv_slots);
    free(m->cfg.rope_freq);
    m->backend->ops->free(m->backend, (void *)atomic_load(&m->spare), m->state_bytes);
    m->backend->ops->forget(m->backend, m);
    if (m->arena) munmap(m->arena, m->arena_bytes);
    team_free(m->team);
    tokenizer_free(m->tok);
    gguf_close(m->file);
    m->backend->ops->close(m->backend);
    free(m);
}

/* ---- Identity -------------------------------------------------------------------------------- */

/* Metadata that changes no result: names, authors, alignment; how a chat is written. */
static bool is_label(const char *key) {
    static const char template[] = "tokenizer.chat_template";
    return (!strncmp(key, "general.", 8) && strcmp(key, "general.architecture")) ||
           !strncmp(key, template, strlen(template));
}

/* The sum of the entries' hashes: their order does not matter. */
static uint64_t hash_metadata(const gguf *g) {
    uint64_t sum = 0;
    for (size_t i = 0; i < gguf_n_kv(g); i++) {
        const gguf_kv *kv = gguf_kv_at(g, i);
        uint64_t head[3] = {kv->type, kv->type == GGUF_ARRAY ? kv->element : 0, kv->count};
        hash64 h;
        if (is_label(kv->key.p)) continue;
        hash64_begin(&h);
        hash64_add(&h, kv->key.p, kv->key.n + 1); /* with its NUL */
        hash64_add(&h, head, sizeof head);
        hash64_add(&h, kv->data, (size_t)kv->bytes);
        sum += hash64_end(&h);
    }
    return sum;
}

static linnet_status hash_weights(const gguf *g, uint64_t *out, linnet_error *err) {
    enum { HASH_PIECE = 1 << 20 };
    void *buffer = gguf_is_mapped(g) ? NULL : malloc(HASH_PIECE);
    linnet_status s = LINNET_OK;
    if (!buffer && !gguf_is_mapped(g))
        return fail(err, LINNET_ERR_MEMORY, "no memory to read the weights");
    *out = 0;
    for (size_t i = 0; i < gguf_n_tensors(g) && !s; i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        uint64_t head[5] = {t->type, t->dims[0], t->dims[1], t->dims[2], t->dims[3]};
        hash64 h;
        hash64_begin(&h);
        hash64_add(&h, t->name, strlen(t->name) + 1);
        hash64_add(&h, head, sizeof head);
        for (uint64_t at = 0; at < t->bytes && !s; at += HASH_PIECE) {
            size_t n = t->bytes - at < HASH_PIECE ? (size_t)(t->bytes - at) : HASH_PIECE;
            const void *data;
            if ((s = gguf_read(g, t, at, n, buffer, &data, err))) break;
            hash64_add(&h, data, n);
            gguf_release(g, t, at, n);
        }
        *out += hash64_end(&h);
    }
    free(buffer);
    return s;
}

linnet_status model_identity(linnet_model *m, uint64_t out[2], linnet_error *err) {
    linnet_status s = LINNET_OK;
    team_lock(m->team);
    if (!m->identified) {
        m->identity[0] = hash_metadata(m->file);
        s = hash_weights(m->file, &m->identity[1], err);
        m->identified = !s;
    }
    memcpy(out, m->identity, sizeof m->identity);
    team_unlock(m->team);
    return s;
}

/* ---- What a model says of itself ------------------------------------------------------------ */

const char *linnet_version(void) {
    return LINNET_VERSION;
}

const linnet_model_info *linnet_model_get_info(const linnet_model *m) {
    return &m->info;
}

const char *linnet_model_mixer(const linnet_model *m, int layer, int *window) {
    if (layer < 0 || layer >= m->cfg.n_layers || !m->layers) return NULL;
    if (window) *window = m->layers[layer].window;
    return m->layers[layer].mixer->name;
}

size_t model_kv_start(const linnet_model *m, linnet_window_mode mode, size_t n_tokens) {
    size_t start = n_tokens;
    for (int i = 0; i < m->cfg.n_layers; i++) {
        int window = m->layers[i].window;
        if (m->layers[i].kv_slot < 0 || !window) continue;
        start = min_size(start, (size_t)window_first(mode, window, (int)n_tokens));
    }
    return start;
}

uint64_t linnet_model_state_bytes(const linnet_model *m, linnet_kv_type kv, uint64_t n_tokens) {
    if (!m->layers || n_tokens > MAX_CTX) return 0;
    kv_layout l = kv_layout_of(model_kv_kind(m, kv), m->kv_slots, m->kv_layers);
    uint64_t pages = (n_tokens + PAGE - 1) / PAGE;
    size_t pinned = round_up((size_t)m->cfg.n_sink, PAGE) / PAGE; /* kv_drop_before keeps them */
    size_t start = min_size(pages, model_kv_start(m, LINNET_SLIDING, n_tokens) / PAGE);
    uint64_t in_windows = pages - (start - min_size(start, pinned));
    return pages * l.page_bytes[KV_ALL] + in_windows * l.page_bytes[KV_WINDOWED] + m->state_bytes;
}

kv_kind model_kv_kind(const linnet_model *m, linnet_kv_type kv) {
    if (m->act == LINNET_ACT_EXACT || kv == LINNET_KV_F32) return KV_F32;
    return kv == LINNET_KV_Q8_0 ? KV_Q8_0 : KV_F16;
}

uint64_t linnet_model_gpu_bytes(const linnet_model *m) {
    return m->backend->ops->peak_bytes(m->backend);
}

uint64_t linnet_model_activation_bytes(const linnet_model *m) {
    return m->layers ? m->backend->ops->activation_bytes(m, PIECE) : 0;
}

const char *linnet_model_tensor(const linnet_model *m, size_t i, const char **dtype,
                                uint64_t dims[4], uint64_t *bytes) {
    if (i >= gguf_n_tensors(m->file)) return NULL;
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    const dtype_info *info = dtype_get(t->type);
    if (dtype) *dtype = info ? info->name : dtype_any_name(t->type);
    if (dims) memcpy(dims, t->dims, sizeof t->dims);
    if (bytes) *bytes = t->bytes;
    return t->name;
}

const char *linnet_model_metadata(const linnet_model *m, size_t i, char *value, size_t size) {
    if (i >= gguf_n_kv(m->file)) return NULL;
    const gguf_kv *kv = gguf_kv_at(m->file, i);
    if (value && size) gguf_kv_text(kv, value, size);
    return kv->key.p;
}

/* One tensor in pieces of whole blocks; LINNET_ERR_NUMERIC at the first value that is not finite.
 */
static linnet_status check_tensor(const gguf *g, const gguf_tensor *t, void *raw, float *values,
                                  size_t piece, linnet_error *err) {
    const dtype_info *info = dtype_get(t->type);
    if (!info)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: tensor %s has type %s, which this version cannot "
                    "read",
                    gguf_path(g), t->name, dtype_any_name(t->type));
    for (uint64_t at = 0; at < t->n_elements; at += piece) {
        size_t n = t->n_elements - at < piece ? (size_t)(t->n_elements - at) : piece;
        const void *data;
        linnet_status s = gguf_read(g, t, at / info->block * info->block_bytes,
                                    dtype_row_bytes((dtype)t->type, n), raw, &data, err);
        if (s) return s;
        dequantize_row((dtype)t->type, data, values, n);
        for (size_t i = 0; i < n; i++)
            if (!isfinite(values[i]))
                return fail(err, LINNET_ERR_NUMERIC, "%s: tensor %s has %s at element %llu",
                            gguf_path(g), t->name, isnan(values[i]) ? "NaN" : "infinity",
                            (unsigned long long)(at + i));
    }
    return LINNET_OK;
}

linnet_status linnet_model_check(const linnet_model *m, linnet_error *err) {
    enum { CHECK_PIECE = 1 << 16 }; /* a multiple of every block */
    void *raw = malloc(CHECK_PIECE * sizeof(float));
    float *values = malloc(CHECK_PIECE * sizeof(float));
    linnet_status s =
        raw && values ? LINNET_OK : fail(err, LINNET_ERR_MEMORY, "no memory to check weights");
    for (size_t i = 0; i < gguf_n_tensors(m->file) && !s; i++)
        s = check_tensor(m->file, gguf_tensor_at(m->file, i), raw, values, CHECK_PIECE, err);
    free(raw);
    free(values);
    return s;
}
