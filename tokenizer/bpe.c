/* Byte-level BPE. The cut follows each model's tokenizer.json as HF tokenizers runs it; names and
 * sharing of the expressions follow llama.cpp's llama-vocab.cpp. */
#include "bpe.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>

/* ---- Pre-tokenizers ---------------------------------------------------------------------- */

/* White_Space of Unicode, which the references' \s means; PCRE2's also has U+180E. */
#define SPACES                                                                                     \
    "\\t-\\r\\x20\\x85\\xA0\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"       \
    "\\x{3000}"
#define S "[" SPACES "]"
#define NOT_S "[^" SPACES "]"
#define SPACE_RUNS S "+(?!" NOT_S ")|" S "+"
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define EDGE "[^\\r\\n\\p{L}\\p{N}]?"

#define RX_DIGIT "\\p{N}"
#define RX_GPT2                                                                                    \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|" SPACE_RUNS
#define RX_CL100K(digits)                                                                          \
    CONTRACTION "|" EDGE "\\p{L}+|" digits "| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*|" S             \
                "*[\\r\\n]+|" SPACE_RUNS
#define RX_QWEN35                                                                                  \
    CONTRACTION "|" EDGE "[\\p{L}\\p{M}]+|\\p{N}| ?[^" SPACES "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" S   \
                "*[\\r\\n]+|" SPACE_RUNS
#define RX_O200K(suffix, digits)                                                                   \
    EDGE UPPER "*" LOWER "+" suffix "|" EDGE UPPER "+" LOWER "*" suffix "|" digits "| ?[^" SPACES  \
               "\\p{L}\\p{N}]+[\\r\\n/]*|" S "*[\\r\\n]+|" SPACE_RUNS
#define RX_DEEPSEEK3                                                                               \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"           \
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" S "*[\\r\\n]+|" SPACE_RUNS

enum { MAX_PASSES = 3 };

struct pre_tokenizer {
    const char *name;
    const char *passes[MAX_PASSES];
    bool ignore_merges; /* a piece that is a token is taken whole */
    bool adds_bos;
};

static const pre_tokenizer pre_tokenizers[] = {
    {"default", {RX_GPT2}, false, false},
    {"gpt-2", {RX_GPT2}, false, false},
    {"phi-2", {RX_GPT2}, false, false},
    {"olmo", {RX_GPT2}, false, false},
    {"smollm", {RX_DIGIT, RX_GPT2}, false, false},
    {"starcoder", {RX_DIGIT, RX_GPT2}, false, false},
    {"refact", {RX_DIGIT, RX_GPT2}, false, false},
    {"codeshell", {RX_DIGIT, RX_GPT2}, false, false},
    {"llama-bpe", {RX_CL100K("\\p{N}{1,3}")}, true, true},
    {"llama3", {RX_CL100K("\\p{N}{1,3}")}, true, true},
    {"llama-v3", {RX_CL100K("\\p{N}{1,3}")}, true, true},
    {"dbrx", {RX_CL100K("\\p{N}{1,3}")}, false, false},
    {"smaug-bpe", {RX_CL100K("\\p{N}{1,3}")}, false, false},
    {"qwen2", {RX_CL100K("\\p{N}")}, false, false},
    {"deepseek-r1-qwen", {RX_CL100K("\\p{N}")}, false, false},
    {"stablelm2", {RX_CL100K("\\p{N}")}, false, false},
    {"qwen35", {RX_QWEN35}, false, false},
    {"tekken", {RX_O200K("", "\\p{N}")}, true, true},
    {"gpt-4o", {RX_O200K(CONTRACTION "?", "\\p{N}{1,3}")}, false, false},
    {"deepseek-v3",
     {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+", RX_DEEPSEEK3},
     false,
     false},
};
static const size_t n_pre_tokenizers = sizeof pre_tokenizers / sizeof *pre_tokenizers;

const pre_tokenizer *pre_tokenizer_find(const char *name, size_t n) {
    for (size_t i = 0; i < n_pre_tokenizers; i++)
        if (strlen(pre_tokenizers[i].name) == n && !memcmp(pre_tokenizers[i].name, name, n))
            return &pre_tokenizers[i];
    return NULL;
}

const char *pre_tokenizer_list(void) {
    return "default gpt-2 phi-2 olmo smollm starcoder refact codeshell llama-bpe llama3 llama-v3 "
           "dbrx smaug-bpe qwen2 deepseek-r1-qwen stablelm2 qwen35 tekken gpt-4o deepseek-v3";
}

bool pre_tokenizer_adds_bos(const pre_tokenizer *p) {
    return p->adds_bos;
}

/* ---- The byte alphabet ------------------------------------------------------------------- */

/* GPT-2 spells a printable byte as itself and the k-th other one as U+0100 + k. */
static bool is_printable_byte(uint32_t b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
}

static int byte_of_letter(uint32_t letter) {
    if (letter < 256) return is_printable_byte(letter) ? (int)letter : -1;
    uint32_t k = 256;
    for (int b = 0; b < 256; b++)
        if (!is_printable_byte((uint32_t)b) && k++ == letter) return b;
    return -1;
}

size_t bpe_unspell(const char *spelling, size_t n, char *out, bool *in_alphabet) {
    size_t used = 0, length;
    *in_alphabet = true;
    for (size_t i = 0; i < n; i += length) {
        int b = -1;
        if (utf8_step(spelling + i, n - i, &length) == 1)
            b = byte_of_letter(utf8_value(spelling + i, length));
        if (b < 0) {
            *in_alphabet = false;
            memmove(out, spelling, n);
            return n;
        }
        out[used++] = (char)b;
    }
    return used;
}

/* ---- Tables ------------------------------------------------------------------------------ */

typedef struct {
    int32_t left, right; /* left < 0: an empty slot */
    uint32_t rank;
    int32_t joined;
} merge;

enum { WHOLE_UNKNOWN = 0, WHOLE_YES, WHOLE_NO };

struct bpe {
    const vocab *v;
    const pre_tokenizer *pre;
    pcre2_code *passes[MAX_PASSES];
    int n_passes;
    int32_t byte_token[256];
    uint32_t *tokens; /* open addressing: id + 1 by bytes, 0 = empty */
    size_t token_mask;
    merge *merges; /* open addressing by (left, right) */
    size_t merge_mask;
    /* Does merging this token's own bytes give the token back? Found out on first use; every
     * thread finds the same, so relaxed atomics are enough. */
    uint8_t *whole;
};

static uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

static uint64_t hash_bytes(const char *p, size_t n) {
    uint64_t h = n, part;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&part, p, 8);
        h = mix(h ^ part);
    }
    part = 0;
    for (size_t i = 0; i < n; i++)
        part = part << 8 | (unsigned char)p[i];
    return mix(h ^ part);
}

/* Slots for n entries, at most two thirds full. */
static size_t table_size(size_t n) {
    size_t size = 16;
    while (size < n + n / 2)
        size *= 2;
    return size;
}

static uint32_t *token_slot(const bpe *b, const char *p, size_t n) {
    size_t i = hash_bytes(p, n) & b->token_mask;
    for (; b->tokens[i]; i = (i + 1) & b->token_mask) {
        size_t length;
        const char *piece = vocab_piece(b->v, (int32_t)(b->tokens[i] - 1), &length);
        if (length == n && !memcmp(piece, p, n)) break;
    }
    return &b->tokens[i];
}

static int32_t find_token(const bpe *b, const char *p, size_t n) {
    return (int32_t)*token_slot(b, p, n) - 1;
}

static merge *merge_slot(const bpe *b, int32_t left, int32_t right) {
    size_t i = mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right) & b->merge_mask;
    while (b->merges[i].left >= 0 && (b->merges[i].left != left || b->merges[i].right != right))
        i = (i + 1) & b->merge_mask;
    return &b->merges[i];
}

/* Can text reach this token through bytes and merges? Special tokens never. */
static bool is_reachable(const vocab *v, const uint8_t *in_alphabet, int32_t id) {
    uint8_t type = v->type[id];
    return in_alphabet[id] && v->at[id + 1] > v->at[id] && type != TOKEN_CONTROL &&
           type != TOKEN_UNKNOWN && type != TOKEN_UNUSED && type != TOKEN_USER;
}

static linnet_status compile(bpe *b, const char *path, linnet_error *err) {
    for (; b->n_passes < MAX_PASSES && b->pre->passes[b->n_passes]; b->n_passes++) {
        int code;
        size_t at;
        pcre2_code *re =
            pcre2_compile((PCRE2_SPTR)b->pre->passes[b->n_passes], PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
        if (!re)
            return fail(
                err, code == PCRE2_ERROR_HEAP_FAILED ? LINNET_ERR_MEMORY : LINNET_ERR_UNSUPPORTED,
                "%s: PCRE2 does not accept the expression of pre-tokenizer %s: error %d at "
                "offset %zu",
                path, b->pre->name, code, at);
        /* Without JIT (a hardened kernel) the interpreter gives the same matches. */
        (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
        b->passes[b->n_passes] = re;
    }
    return LINNET_OK;
}

static linnet_status read_merges(bpe *b, const gguf_kv *merges, const char *path,
                                 linnet_error *err) {
    const vocab *v = b->v;
    size_t n = merges ? (size_t)merges->count : 0, cursor = 0, cap = 0;
    if (n > (size_t)VOCAB_MAX_TOKENS * 4)
        return fail(err, LINNET_ERR_FORMAT,
                    "%s: tokenizer.ggml.merges has %zu entries, at most %d are supported", path, n,
                    VOCAB_MAX_TOKENS * 4);
    b->merge_mask = table_size(n) - 1;
    b->merges = malloc((b->merge_mask + 1) * sizeof *b->merges);
    if (!b->merges) return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the merges", path);
    for (size_t i = 0; i <= b->merge_mask; i++)
        b->merges[i].left = -1;

    char *text = NULL;
    for (size_t rank = 0; rank < n; rank++) {
        gguf_str s = gguf_next_str(merges, &cursor);
        /* The first letter may itself be a space in alphabets that are not GPT-2's. */
        const char *space = s.n > 2 ? memchr(s.p + 1, ' ', s.n - 1) : NULL;
        if (!space || space + 1 == s.p + s.n) {
            free(text);
            return fail(err, LINNET_ERR_FORMAT,
                        "%s: tokenizer.ggml.merges[%zu] must be two tokens with a space between, "
                        "found \"%.*s\"",
                        path, rank, (int)min_size(s.n, 40), s.p);
        }
        if (s.n > cap) {
            char *bigger = realloc(text, s.n * 2);
            if (!bigger) {
                free(text);
                return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the merges", path);
            }
            text = bigger;
            cap = s.n * 2;
        }
        bool ok_left, ok_right;
        size_t n_left = bpe_unspell(s.p, (size_t)(space - s.p), text, &ok_left);
        size_t n_right =
            bpe_unspell(space + 1, (size_t)(s.p + s.n - space - 1), text + n_left, &ok_right);
        if (!ok_left || !ok_right || n_left + n_right > v->longest) continue;
        int32_t left = find_token(b, text, n_left);
        int32_t right = find_token(b, text + n_left, n_right);
        int32_t joined = find_token(b, text, n_left + n_right);
        if (left < 0 || right < 0 || joined < 0) continue;
        merge *m = merge_slot(b, left, right);
        if (m->left < 0) *m = (merge){left, right, (uint32_t)rank, joined};
    }
    free(text);
    return LINNET_OK;
}

linnet_status bpe_new(bpe **out, const vocab *v, const uint8_t *in_alphabet,
                      const pre_tokenizer *pre, const gguf_kv *merges, const char *path,
                      linnet_error *err) {
    *out = NULL;
    bpe *b = calloc(1, sizeof *b);
    if (!b) return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the tokenizer", path);
    b->v = v;
    b->pre = pre;
    b->token_mask = table_size((size_t)v->n) - 1;
    b->tokens = calloc(b->token_mask + 1, sizeof *b->tokens);
    b->whole = calloc((size_t)v->n, 1);
    linnet_status status = LINNET_OK;
    if (!b->tokens || !b->whole)
        status = fail(err, LINNET_ERR_MEMORY, "%s: no memory for %d tokens", path, v->n);
    for (int32_t id = 0; !status && id < v->n; id++) {
        if (!is_reachable(v, in_alphabet, id)) continue;
        size_t n;
        const char *piece = vocab_piece(v, id, &n);
        *token_slot(b, piece, n) = (uint32_t)id + 1;
    }
    for (int i = 0; !status && i < 256; i++) {
        char byte = (char)i;
        b->byte_token[i] = find_token(b, &byte, 1);
    }
    if (!status) status = read_merges(b, merges, path, err);
    if (!status) status = compile(b, path, err);
    if (status) {
        bpe_free(b);
        return status;
    }
    *out = b;
    return LINNET_OK;
}

void bpe_free(bpe *b) {
    if (!b) return;
    for (int i = 0; i < b->n_passes; i++)
        pcre2_code_free(b->passes[i]);
    free(b->tokens);
    free(b->merges);
    free(b->whole);
    free(b);
}

/* ---- Merging ----------------------------------------------------------------------------- */

#define NONE UINT32_MAX

typedef struct bpe_symbol {
    int32_t id;
    uint32_t previous, next; /* NONE at the ends */
    uint32_t rank;           /* of the merge with the next symbol, NONE if there is none */
} symbol;

/* The heap holds rank << 32 | position: its minimum is the lowest rank, then the leftmost. An
 * entry is stale when its position no longer has that rank; a rank names one pair, so an entry
 * that is not stale is current. */
static void sift_down(uint64_t *heap, size_t n, size_t i) {
    uint64_t x = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (x <= heap[child]) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t x) {
    size_t i = (*n)++;
    for (; i && heap[(i - 1) / 2] > x; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
}

static void rank_pair(const bpe *b, symbol *symbols, uint32_t i) {
    symbols[i].rank = NONE;
    if (symbols[i].next == NONE) return;
    const merge *m = merge_slot(b, symbols[i].id, symbols[symbols[i].next].id);
    if (m->left >= 0) symbols[i].rank = m->rank;
}

void bpe_work_free(bpe_work *w) {
    pcre2_match_data_free(w->match);
    pcre2_match_context_free(w->context);
    free(w->symbols);
    free(w->heap);
    *w = (bpe_work){0};
}

static linnet_status work_grow(bpe_work *w, size_t n, linnet_error *err) {
    if (n <= w->cap) return LINNET_OK;
    size_t cap = max_size(n, 64);
    free(w->symbols);
    free(w->heap);
    w->symbols = malloc(cap * sizeof *w->symbols);
    /* Every merge takes one entry and adds at most two, and there are at most n - 1 merges. */
    w->heap = malloc(cap * 2 * sizeof *w->heap);
    w->cap = w->symbols && w->heap ? cap : 0;
    if (w->cap) return LINNET_OK;
    free(w->symbols);
    free(w->heap);
    w->symbols = NULL;
    w->heap = NULL;
    return fail(err, LINNET_ERR_MEMORY, "no memory to encode a piece of %zu bytes", n);
}

/* Appends the tokens of one pre-token by merging. */
static linnet_status merge_piece(const bpe *b, bpe_work *w, const char *p, size_t n, id_list *out,
                                 linnet_error *err) {
    linnet_status status = work_grow(w, n, err);
    if (status) return status;
    symbol *s = w->symbols;
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = b->byte_token[(unsigned char)p[i]];
        if (id < 0) continue;
        s[count] = (symbol){id, count - 1, count + 1, NONE}; /* 0 - 1 is NONE */
        count++;
    }
    if (!count) return LINNET_OK;
    s[count - 1].next = NONE;

    size_t n_heap = 0;
    for (uint32_t i = 0; i < count; i++) {
        rank_pair(b, s, i);
        if (s[i].rank != NONE) w->heap[n_heap++] = (uint64_t)s[i].rank << 32 | i;
    }
    for (size_t i = n_heap / 2; i-- > 0;)
        sift_down(w->heap, n_heap, i);

    while (n_heap) {
        uint32_t i = (uint32_t)w->heap[0], rank = (uint32_t)(w->heap[0] >> 32);
        w->heap[0] = w->heap[--n_heap];
        if (n_heap) sift_down(w->heap, n_heap, 0);
        if (s[i].rank != rank) continue;
        uint32_t right = s[i].next;
        s[i].id = merge_slot(b, s[i].id, s[right].id)->joined;
        s[i].next = s[right].next;
        s[right].rank = NONE;
        if (s[i].next != NONE) s[s[i].next].previous = i;
        rank_pair(b, s, i);
        if (s[i].rank != NONE) heap_push(w->heap, &n_heap, (uint64_t)s[i].rank << 32 | i);
        uint32_t left = s[i].previous;
        if (left == NONE) continue;
        rank_pair(b, s, left);
        if (s[left].rank != NONE) heap_push(w->heap, &n_heap, (uint64_t)s[left].rank << 32 | left);
    }
    for (uint32_t i = 0; i != NONE && !status; i = s[i].next)
        status = ids_push(out, s[i].id, err);
    return status;
}

static linnet_status encode_piece(const bpe *b, bpe_work *w, const char *p, size_t n, id_list *out,
                                  linnet_error *err) {
    int32_t id = n <= b->v->longest ? find_token(b, p, n) : -1;
    if (id < 0) return merge_piece(b, w, p, n, out, err);
    uint8_t whole = __atomic_load_n(&b->whole[id], __ATOMIC_RELAXED);
    if (whole == WHOLE_YES || b->pre->ignore_merges) return ids_push(out, id, err);
    size_t before = out->n;
    linnet_status status = merge_piece(b, w, p, n, out, err);
    if (status || whole != WHOLE_UNKNOWN) return status;
    bool yes = out->n == before + 1 && out->at[before] == id;
    __atomic_store_n(&b->whole[id], yes ? WHOLE_YES : WHOLE_NO, __ATOMIC_RELAXED);
    return LINNET_OK;
}

/* ---- Cutting ----------------------------------------------------------------------------- */

static linnet_status cut(const bpe *b, bpe_work *w, int pass, const char *text, size_t n,
                         id_list *out, linnet_error *err) {
    if (!n) return LINNET_OK;
    if (pass == b->n_passes) return encode_piece(b, w, text, n, out, err);
    const size_t *match = pcre2_get_ovector_pointer(w->match);
    linnet_status status = LINNET_OK;
    for (size_t at = 0; at < n && !status;) {
        int rc = pcre2_match(b->passes[pass], (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, w->match,
                             w->context);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(b->passes[pass], (PCRE2_SPTR)text, n, at,
                             PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->match, w->context);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            return fail(err, rc == PCRE2_ERROR_NOMEMORY ? LINNET_ERR_MEMORY : LINNET_ERR_ARGUMENT,
                        "PCRE2 failed with error %d while cutting %zu bytes of text", rc, n);
        size_t start = rc > 0 ? match[0] : n, end = rc > 0 ? match[1] : n;
        status = cut(b, w, pass + 1, text + at, start - at, out, err);
        if (!status) status = cut(b, w, pass + 1, text + start, end - start, out, err);
        at = end;
    }
    return status;
}

linnet_status bpe_encode(const bpe *b, bpe_work *w, const char *text, size_t n, id_list *out,
                         linnet_error *err) {
    if (n > INT32_MAX)
        return fail(err, LINNET_ERR_ARGUMENT, "a text of %zu bytes is too long, at most %d", n,
                    INT32_MAX);
    if (!w->match) w->match = pcre2_match_data_create(1, NULL);
    if (!w->context) {
        w->context = pcre2_match_context_create(NULL);
        if (w->context) {
            /* The expressions are linear on one piece; only the length of the text bounds them. */
            pcre2_set_match_limit(w->context, UINT32_MAX);
            pcre2_set_depth_limit(w->context, UINT32_MAX);
            pcre2_set_heap_limit(w->context, UINT32_MAX);
        }
    }
    if (!w->match || !w->context) return fail(err, LINNET_ERR_MEMORY, "no memory to encode a text");
    return cut(b, w, 0, text, n, out, err);
}
