/* Reads the vocabulary, dispatches to SentencePiece or BPE, cuts out special tokens, decodes. */
#include "tokenizer.h"

#include "bpe.h"
#include "sentencepiece_shim.h"

#include <stdlib.h>

struct tokenizer {
    char name[64];
    vocab v;
    bpe *bpe; /* one of these two */
    sp_model *sp;
    bool dummy_prefix;
    int32_t bos, eos;
    bool add_bos, add_eos;
    uint8_t *end;      /* [n] does this token end a text? */
    int32_t *specials; /* control, unknown and user-defined tokens, sorted by text */
    size_t n_specials;
    bool starts[2][256]; /* first bytes of user-defined, of all specials */
};

linnet_status ids_push(id_list *list, int32_t id, linnet_error *err) {
    if (list->n == list->cap) {
        size_t cap = max_size(list->cap * 2, 64), bytes;
        int32_t *at = mul_size(cap, sizeof *at, &bytes) ? realloc(list->at, bytes) : NULL;
        if (!at) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu token ids", cap);
        list->at = at;
        list->cap = cap;
    }
    list->at[list->n++] = id;
    return LINNET_OK;
}

void ids_free(id_list *list) {
    free(list->at);
    *list = (id_list){0};
}

/* ---- Special tokens ---------------------------------------------------------------------- */

static bool is_kind(const tokenizer *t, int32_t id, bool user_only) {
    uint8_t type = t->v.type[id];
    if (type == TOKEN_USER) return true;
    return !user_only && (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN);
}

static int compare_text(const char *a, size_t n_a, const char *b, size_t n_b) {
    int c = memcmp(a, b, min_size(n_a, n_b));
    return c ? c : (n_a > n_b) - (n_a < n_b);
}

/* Bottom-up merge sort of ids by text, equal texts by id (qsort has no context argument). */
static void sort_specials(const vocab *v, int32_t *at, int32_t *spare, size_t n) {
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0; low < n; low += 2 * width) {
            size_t mid = min_size(low + width, n), high = min_size(low + 2 * width, n);
            for (size_t i = low, j = mid, k = low; k < high; k++) {
                bool left = j == high;
                if (!left && i < mid) {
                    size_t n_i, n_j;
                    const char *p_i = vocab_piece(v, at[i], &n_i);
                    const char *p_j = vocab_piece(v, at[j], &n_j);
                    left = compare_text(p_i, n_i, p_j, n_j) <= 0;
                }
                spare[k] = left ? at[i++] : at[j++];
            }
        }
        memcpy(at, spare, n * sizeof *at);
    }
}

static linnet_status collect_specials(tokenizer *t, const char *path, linnet_error *err) {
    size_t n = 0, k = 0;
    for (int32_t id = 0; id < t->v.n; id++)
        n += is_kind(t, id, false);
    t->specials = malloc((n + 1) * sizeof *t->specials);
    int32_t *spare = malloc((n + 1) * sizeof *spare);
    if (!t->specials || !spare) {
        free(spare);
        return fail(err, LINNET_ERR_MEMORY, "%s: no memory for %zu special tokens", path, n);
    }
    for (int32_t id = 0; id < t->v.n; id++) {
        size_t length;
        const char *p = vocab_piece(&t->v, id, &length);
        if (!length || !is_kind(t, id, false)) continue;
        t->specials[k++] = id;
        t->starts[1][(unsigned char)p[0]] = true;
        if (is_kind(t, id, true)) t->starts[0][(unsigned char)p[0]] = true;
    }
    sort_specials(&t->v, t->specials, spare, k);
    free(spare);
    t->n_specials = k;
    return LINNET_OK;
}

/* The first of the specials in [low, high) whose byte number `depth` is >= `byte`; all of them
 * agree on the bytes before, and those that end there (which sort first) count as smaller. */
static size_t lower_bound(const tokenizer *t, size_t low, size_t high, size_t depth, int byte) {
    while (low < high) {
        size_t mid = low + (high - low) / 2, n;
        const char *p = vocab_piece(&t->v, t->specials[mid], &n);
        if (n <= depth || (unsigned char)p[depth] < byte)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The longest special token at the start of `text`, -1 if there is none. */
static int32_t match_special(const tokenizer *t, const char *text, size_t n, bool user_only) {
    if (!t->starts[!user_only][(unsigned char)text[0]]) return -1;
    size_t low = 0, high = t->n_specials;
    int32_t best = -1;
    for (size_t depth = 0; depth < n; depth++) {
        int byte = (unsigned char)text[depth];
        low = lower_bound(t, low, high, depth, byte);
        high = lower_bound(t, low, high, depth, byte + 1);
        if (low == high) break;
        /* Tokens that end here sort first; of equal ones the last counts. */
        for (size_t i = low; i < high; i++) {
            if (t->v.at[t->specials[i] + 1] - t->v.at[t->specials[i]] != depth + 1) break;
            if (is_kind(t, t->specials[i], user_only)) best = t->specials[i];
        }
    }
    return best;
}

int32_t tokenizer_special(const tokenizer *t, const char *text) {
    size_t n = strlen(text), length;
    if (!n) return -1;
    int32_t id = match_special(t, text, n, false);
    if (id < 0) return -1;
    vocab_piece(&t->v, id, &length);
    return length == n ? id : -1;
}

int32_t tokenizer_next_special(const tokenizer *t, const char *text, size_t n, size_t *at,
                               size_t *length) {
    for (*at = 0; *at < n; ++*at) {
        int32_t id = match_special(t, text + *at, n - *at, false);
        if (id < 0) continue;
        vocab_piece(&t->v, id, length);
        return id;
    }
    return -1;
}

/* ---- Reading the file -------------------------------------------------------------------- */

/* A token as SentencePiece spells it, as bytes: U+2581 is a space, <0xHH> one byte. Returns the
 * length; `out` has room for n bytes. */
static size_t sp_unspell(const char *spelling, size_t n, uint8_t type, char *out) {
    size_t used = 0;
    unsigned byte;
    if (type == TOKEN_BYTE && n == 6) {
        char digits[3] = {spelling[3], spelling[4], 0};
        byte = (unsigned)strtoul(digits, NULL, 16);
        out[0] = (char)byte;
        return 1;
    }
    for (size_t i = 0; i < n;) {
        if (n - i >= 3 && !memcmp(spelling + i, "\xE2\x96\x81", 3)) {
            out[used++] = ' ';
            i += 3;
        } else {
            out[used++] = spelling[i++];
        }
    }
    return used;
}

typedef struct {
    const gguf_kv *tokens, *types, *scores, *raw;
    sp_model *raw_model;
    const char *path;
} source;

static linnet_status check_count(const source *s, const gguf_kv *array, const char *key,
                                 linnet_error *err) {
    if (!array || array->count == s->tokens->count) return LINNET_OK;
    return fail(err, LINNET_ERR_FORMAT,
                "%s: %s has %llu entries, expected %llu as in tokenizer.ggml.tokens", s->path, key,
                (unsigned long long)array->count, (unsigned long long)s->tokens->count);
}

static linnet_status type_array(const gguf *g, const gguf_kv **out, linnet_error *err) {
    const gguf_kv *kv = gguf_find(g, "tokenizer.ggml.token_type");
    /* Writers use INT32; UINT32 and smaller ones mean the same. */
    if (kv && kv->type == GGUF_ARRAY && kv->element <= GGUF_I32) {
        *out = kv;
        return LINNET_OK;
    }
    return gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_I32, false, out, err);
}

/* Fills t->v. Pieces come from the raw SentencePiece model if there is one; entries of the tokens
 * array beyond it are tokens that were added to the model. *in_alphabet [n] is for BPE. */
static linnet_status read_vocab(tokenizer *t, const source *s, bool is_bpe, uint8_t **in_alphabet,
                                linnet_error *err) {
    vocab *v = &t->v;
    size_t n_raw = s->raw_model ? sp_size(s->raw_model) : 0;
    size_t n_tokens = s->tokens ? (size_t)s->tokens->count : 0, n = max_size(n_raw, n_tokens);
    size_t total = s->tokens ? (size_t)s->tokens->bytes : 0;
    for (size_t i = 0; i < n_raw; i++)
        total += sp_get(s->raw_model, i).n;
    if (total > UINT32_MAX)
        return fail(err, LINNET_ERR_FORMAT, "%s: the vocabulary has %zu bytes, at most %u", s->path,
                    total, UINT32_MAX);
    v->n = (int32_t)n;
    v->type = malloc(n);
    v->at = malloc((n + 1) * sizeof *v->at);
    v->bytes = malloc(total + 1);
    *in_alphabet = malloc(n);
    if (!v->type || !v->at || !v->bytes || !*in_alphabet)
        return fail(err, LINNET_ERR_MEMORY, "%s: no memory for %zu tokens", s->path, n);
    size_t used = 0, cursor = 0;
    for (size_t i = 0; i < n; i++) {
        gguf_str text = {"", 0};
        int64_t type = TOKEN_NORMAL;
        if (i < n_tokens) {
            text = gguf_next_str(s->tokens, &cursor);
            if (s->types) type = gguf_int_at(s->types, i);
        }
        if (type < TOKEN_UNDEFINED || type > TOKEN_BYTE)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: tokenizer.ggml.token_type[%zu] must be 0 to 6, found %lld", s->path, i,
                        (long long)type);
        if (i < n_raw) {
            sp_piece piece = sp_get(s->raw_model, i);
            text = (gguf_str){piece.text, piece.n};
            type = piece.type;
        }
        bool plain = type == TOKEN_UNDEFINED || type == TOKEN_NORMAL || type == TOKEN_BYTE;
        bool in = false;
        size_t length = text.n;
        if (is_bpe && plain)
            length = bpe_unspell(text.p, text.n, v->bytes + used, &in);
        else if (!is_bpe && (plain || type == TOKEN_USER))
            length = sp_unspell(text.p, text.n, (uint8_t)type, v->bytes + used);
        else
            memcpy(v->bytes + used, text.p, text.n);
        v->at[i] = (uint32_t)used;
        v->type[i] = (uint8_t)(type == TOKEN_UNDEFINED ? TOKEN_NORMAL : type);
        (*in_alphabet)[i] = in;
        v->longest = max_size(v->longest, length);
        used += length;
    }
    v->at[n] = (uint32_t)used;
    char *fitted = realloc(v->bytes, used + 1);
    if (fitted) v->bytes = fitted;
    return LINNET_OK;
}

static linnet_status build_sp(tokenizer *t, const gguf *g, source *s, linnet_error *err) {
    linnet_status status;
    if (s->raw_model) {
        t->sp = s->raw_model;
        t->dummy_prefix = sp_dummy_prefix(t->sp);
        return LINNET_OK;
    }
    if (!s->types)
        return fail(err, LINNET_ERR_FORMAT, "%s: tokenizer.ggml.token_type is missing", s->path);
    if (!s->scores)
        return fail(err, LINNET_ERR_FORMAT, "%s: tokenizer.ggml.scores is missing", s->path);
    size_t n = (size_t)t->v.n, cursor = 0;
    int64_t unknown = -1;
    status =
        gguf_get_int(g, "tokenizer.ggml.unknown_token_id", false, 0, t->v.n - 1, &unknown, err);
    if (status) return status;
    bool dummy_prefix = true;
    status = gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", false, &dummy_prefix, err);
    if (status) return status;
    bool has_unknown = false;
    for (size_t i = 0; i < n; i++)
        has_unknown |= t->v.type[i] == TOKEN_UNKNOWN;
    /* Some converters call <unk> a control or a normal token; the library must have one. */
    if (!has_unknown) t->v.type[unknown < 0 ? 0 : unknown] = TOKEN_UNKNOWN;
    sp_piece *pieces = malloc(n * sizeof *pieces);
    if (!pieces) return fail(err, LINNET_ERR_MEMORY, "%s: no memory for %zu tokens", s->path, n);
    for (size_t i = 0; i < n; i++) {
        gguf_str text = gguf_next_str(s->tokens, &cursor);
        pieces[i] = (sp_piece){text.p, text.n, (float)gguf_float_at(s->scores, i), t->v.type[i]};
    }
    status = sp_new(&t->sp, pieces, n, dummy_prefix, s->path, err);
    t->dummy_prefix = dummy_prefix;
    free(pieces);
    return status;
}

static linnet_status read_id(const gguf *g, const char *key, int32_t n, int32_t *id,
                             linnet_error *err) {
    int64_t value = *id;
    linnet_status status = gguf_get_int(g, key, false, -1, n - 1, &value, err);
    if (!status) *id = (int32_t)value;
    return status;
}

static linnet_status read_ends(tokenizer *t, const gguf *g, linnet_error *err) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    static const char *const texts[] = {
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>",
        "<|eom_id|>", "</s>",          "<|end|>",    "<end_of_turn>",
    };
    t->end = calloc((size_t)t->v.n, 1);
    if (!t->end) return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the tokens", gguf_path(g));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int32_t id = -1;
        linnet_status status = read_id(g, keys[i], t->v.n, &id, err);
        if (status) return status;
        if (id >= 0) t->end[id] = 1;
    }
    if (t->eos >= 0) t->end[t->eos] = 1;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t id = tokenizer_special(t, texts[i]);
        if (id >= 0 && t->v.type[id] == TOKEN_CONTROL) t->end[id] = 1;
    }
    return LINNET_OK;
}

static linnet_status build(tokenizer *t, const gguf *g, source *s, bool is_bpe,
                           const pre_tokenizer *pre, linnet_error *err) {
    uint8_t *in_alphabet = NULL;
    linnet_status status = read_vocab(t, s, is_bpe, &in_alphabet, err);
    if (!status && is_bpe) {
        const gguf_kv *merges;
        status = gguf_get_array(g, "tokenizer.ggml.merges", GGUF_STRING, true, &merges, err);
        if (!status) status = bpe_new(&t->bpe, &t->v, in_alphabet, pre, merges, s->path, err);
    } else if (!status) {
        status = build_sp(t, g, s, err);
    }
    free(in_alphabet);
    if (status || (status = collect_specials(t, s->path, err))) return status;

    /* The defaults of llama.cpp; a raw model says it itself. */
    t->bos = t->eos = -1;
    t->add_bos = is_bpe ? pre_tokenizer_adds_bos(pre) : true;
    if (s->raw_model) {
        t->bos = sp_bos(s->raw_model);
        t->eos = sp_eos(s->raw_model);
    } else if (!is_bpe) {
        if (t->v.n > 1 && t->v.type[1] == TOKEN_CONTROL) t->bos = 1;
        if (t->v.n > 2 && t->v.type[2] == TOKEN_CONTROL) t->eos = 2;
    }
    if ((status = read_id(g, "tokenizer.ggml.bos_token_id", t->v.n, &t->bos, err)) ||
        (status = read_id(g, "tokenizer.ggml.eos_token_id", t->v.n, &t->eos, err)) ||
        (status = gguf_get_bool(g, "tokenizer.ggml.add_bos_token", false, &t->add_bos, err)) ||
        (status = gguf_get_bool(g, "tokenizer.ggml.add_eos_token", false, &t->add_eos, err)))
        return status;
    if (t->bos < 0) t->add_bos = false;
    if (t->eos < 0) t->add_eos = false;
    return read_ends(t, g, err);
}

linnet_status tokenizer_new(tokenizer **out, const gguf *g, linnet_error *err) {
    *out = NULL;
    source s = {.path = gguf_path(g)};
    gguf_str model = {NULL, 0}, pre_name = {"default", 7};
    linnet_status status;
    if ((status = gguf_get_str(g, "tokenizer.ggml.model", false, &model, err)) ||
        (status = gguf_get_str(g, "tokenizer.ggml.pre", false, &pre_name, err)) ||
        (status = gguf_get_array(g, "linnet.tokenizer.sentencepiece_model", GGUF_U8, false, &s.raw,
                                 err)) ||
        (status = gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, false, &s.tokens, err)) ||
        (status = gguf_get_array(g, "tokenizer.ggml.scores", GGUF_F32, false, &s.scores, err)) ||
        (status = type_array(g, &s.types, err)))
        return status;

    bool is_none = model.n == 0 || (model.n == 4 && !memcmp(model.p, "none", 4)) ||
                   (model.n == 8 && !memcmp(model.p, "no_vocab", 8));
    if (!s.raw && is_none) {
        if (model.n || !s.tokens) return LINNET_OK;
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: tokenizer.ggml.tokens is there but tokenizer.ggml.model is missing",
                    s.path);
    }
    bool is_bpe = !s.raw && model.n == 4 && !memcmp(model.p, "gpt2", 4);
    bool is_sp = s.raw || (model.n == 5 && !memcmp(model.p, "llama", 5));
    if (!is_bpe && !is_sp)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: tokenizer.ggml.model is \"%.*s\", supported are llama (SentencePiece) and "
                    "gpt2 (byte-level BPE)",
                    s.path, (int)min_size(model.n, 40), model.p);
    const pre_tokenizer *pre = is_bpe ? pre_tokenizer_find(pre_name.p, pre_name.n) : NULL;
    if (is_bpe && !pre)
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "%s: tokenizer.ggml.pre is \"%.*s\", supported are %s", s.path,
                    (int)min_size(pre_name.n, 40), pre_name.p, pre_tokenizer_list());
    if (!s.raw && (!s.tokens || s.tokens->count == 0))
        return fail(err, LINNET_ERR_FORMAT, "%s: tokenizer.ggml.tokens is missing or empty",
                    s.path);
    if (s.tokens) {
        if (s.tokens->count > VOCAB_MAX_TOKENS)
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: tokenizer.ggml.tokens has %llu entries, at most %d are supported",
                        s.path, (unsigned long long)s.tokens->count, VOCAB_MAX_TOKENS);
        if ((status = check_count(&s, s.types, "tokenizer.ggml.token_type", err)) ||
            (is_sp && (status = check_count(&s, s.scores, "tokenizer.ggml.scores", err))))
            return status;
    } else {
        s.types = s.scores = NULL;
    }

    tokenizer *t = calloc(1, sizeof *t);
    if (!t) return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the tokenizer", s.path);
    if (is_bpe)
        snprintf(t->name, sizeof t->name, "bpe/%.*s", (int)min_size(pre_name.n, 40), pre_name.p);
    else
        snprintf(t->name, sizeof t->name, "sentencepiece");
    if (s.raw) status = sp_new_raw(&s.raw_model, s.raw->data, (size_t)s.raw->bytes, s.path, err);
    if (!status) status = build(t, g, &s, is_bpe, pre, err);
    if (status) {
        if (t->sp != s.raw_model) sp_free(s.raw_model);
        tokenizer_free(t);
        return status;
    }
    *out = t;
    return LINNET_OK;
}

void tokenizer_free(tokenizer *t) {
    if (!t) return;
    bpe_free(t->bpe);
    sp_free(t->sp);
    free(t->v.type);
    free(t->v.at);
    free(t->v.bytes);
    free(t->end);
    free(t->specials);
    free(t);
}

/* ---- Questions --------------------------------------------------------------------------- */

const char *tokenizer_name(const tokenizer *t) {
    return t->name;
}
int32_t tokenizer_n_vocab(const tokenizer *t) {
    return t->v.n;
}
int32_t tokenizer_bos(const tokenizer *t) {
    return t->bos;
}
int32_t tokenizer_eos(const tokenizer *t) {
    return t->eos;
}
bool tokenizer_add_bos(const tokenizer *t) {
    return t->add_bos;
}
bool tokenizer_add_eos(const tokenizer *t) {
    return t->add_eos;
}

int32_t tokenizer_n_used(const tokenizer *t) {
    int32_t n = t->v.n;
    while (n > 0 && t->v.type[n - 1] == TOKEN_UNUSED)
        n--;
    return n;
}

bool tokenizer_is_end(const tokenizer *t, int32_t id) {
    return id >= 0 && id < t->v.n && t->end[id];
}

bool tokenizer_is_special(const tokenizer *t, int32_t id) {
    if (id < 0 || id >= t->v.n) return false;
    uint8_t type = t->v.type[id];
    return type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_UNUSED;
}

/* ---- Encoding ---------------------------------------------------------------------------- */

/* A copy of `text` with every maximal part of a broken character replaced by U+FFFD; NULL in *out
 * when the text is valid as it is. */
static linnet_status repair_utf8(const char *text, size_t n, char **out, size_t *n_out,
                                 linnet_error *err) {
    size_t bad = 0, length, used = 0;
    *out = NULL;
    *n_out = n;
    for (size_t i = 0; i < n; i += length)
        bad += utf8_step(text + i, n - i, &length) != 1;
    if (!bad) return LINNET_OK;
    char *copy = malloc(n + bad * 2);
    if (!copy) return fail(err, LINNET_ERR_MEMORY, "no memory for a text of %zu bytes", n);
    for (size_t i = 0; i < n; i += length) {
        bool good = utf8_step(text + i, n - i, &length) == 1;
        memcpy(copy + used, good ? text + i : "\xEF\xBF\xBD", good ? length : 3);
        used += good ? length : 3;
    }
    *out = copy;
    *n_out = used;
    return LINNET_OK;
}

/* A text between special tokens of the wanted kinds. */
static linnet_status encode_fragment(const tokenizer *t, bpe_work *w, const char *text, size_t n,
                                     bool continues, id_list *out, linnet_error *err) {
    if (!n) return LINNET_OK;
    if (t->sp) return sp_encode(t->sp, text, n, continues, out, err);
    return bpe_encode(t->bpe, w, text, n, out, err);
}

static linnet_status encode(const tokenizer *t, const char *text, size_t n, bool parse_special,
                            bool continues, id_list *out, linnet_error *err) {
    size_t before = out->n;
    char *repaired = NULL;
    bpe_work w = {0};
    linnet_status status = LINNET_OK;
    if (t->bpe && (status = repair_utf8(text, n, &repaired, &n, err))) return status;
    if (repaired) text = repaired;
    /* The library finds user-defined tokens itself. */
    bool search = parse_special || t->bpe;
    size_t from = 0;
    for (size_t i = 0; search && i < n && !status;) {
        int32_t id = match_special(t, text + i, n - i, !parse_special);
        if (id >= 0 && t->sp && t->v.type[id] == TOKEN_USER) id = -1;
        if (id < 0) {
            i++;
            continue;
        }
        size_t length;
        vocab_piece(&t->v, id, &length);
        status = encode_fragment(t, &w, text + from, i - from, continues && !from, out, err);
        if (!status) status = ids_push(out, id, err);
        from = i += length;
    }
    if (!status)
        status = encode_fragment(t, &w, text + from, n - from, continues && !from, out, err);
    bpe_work_free(&w);
    free(repaired);
    if (status) out->n = before;
    return status;
}

linnet_status tokenizer_encode(const tokenizer *t, const char *text, size_t n, bool parse_special,
                               id_list *out, linnet_error *err) {
    return encode(t, text, n, parse_special, false, out, err);
}

linnet_status tokenizer_encode_plain(const tokenizer *t, const char *text, size_t n, bool continues,
                                     id_list *out, linnet_error *err) {
    return encode(t, text, n, false, continues, out, err);
}

/* ---- Decoding ---------------------------------------------------------------------------- */

const char *tokenizer_piece(const tokenizer *t, int32_t id, bool first, bool special, size_t *n) {
    *n = 0;
    if (id < 0 || id >= t->v.n) return "";
    if (tokenizer_is_special(t, id)) return special ? vocab_piece(&t->v, id, n) : "";
    const char *p = vocab_piece(&t->v, id, n);
    if (first && t->sp && t->dummy_prefix && t->v.type[id] != TOKEN_BYTE && *n && p[0] == ' ') {
        p++;
        --*n;
    }
    return p;
}

size_t tokenizer_max_piece(const tokenizer *t) {
    return 3 * (t->v.longest + 4);
}

/* U+FFFD for a broken character of n bytes. */
static size_t write_bad(const decoder *d, size_t n, char *out) {
    size_t times = d->t->sp ? n : 1;
    for (size_t i = 0; i < times; i++)
        memcpy(out + 3 * i, "\xEF\xBF\xBD", 3);
    return 3 * times;
}

/* One byte behind those that are held; writes what it completes or breaks. */
static size_t push_byte(decoder *d, char byte, char *out) {
    size_t used = 0, length;
    d->held[d->n_held++] = byte;
    while (d->n_held) {
        int step = utf8_step(d->held, d->n_held, &length);
        if (step < 0) break;
        if (step) {
            memcpy(out + used, d->held, length);
            used += length;
        } else {
            used += write_bad(d, length, out + used);
        }
        d->n_held -= length;
        memmove(d->held, d->held + length, d->n_held);
    }
    return used;
}

size_t decoder_push(decoder *d, int32_t id, char *out) {
    size_t n, used = 0;
    const char *p = tokenizer_piece(d->t, id, !d->started, d->special, &n);
    if (d->special || !tokenizer_is_special(d->t, id)) d->started = true;
    for (size_t i = 0; i < n; i++) {
        if (!d->n_held && (unsigned char)p[i] < 0x80)
            out[used++] = p[i];
        else
            used += push_byte(d, p[i], out + used);
    }
    return used;
}

size_t decoder_flush(decoder *d, char *out) {
    size_t used = d->n_held ? write_bad(d, d->n_held, out) : 0;
    d->n_held = 0;
    return used;
}
