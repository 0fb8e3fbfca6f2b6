#include "json_mask.h"
#include "../error.h"

#include <stdlib.h>
#include <string.h>

/* ---- The automaton ------------------------------------------------------------------------ */

enum {
    BLANKS = 32,
    LINE_ENDS = 2,
    WHOLE_DIGITS = 18,
    FRACTION_DIGITS = 32,
};

/* What stands before the next byte. `count` counts blanks between things, digits in numbers, the
 * place in a word. */
enum {
    AT_START,
    AT_VALUE,
    AT_FIRST_VALUE, /* after [ */
    AT_FIRST_KEY,   /* after { */
    AT_KEY,         /* after , */
    AT_COLON,
    AT_AFTER, /* a value */
    AT_END,
    /* numbers */
    AT_MINUS,
    AT_ZERO,
    AT_WHOLE,
    AT_POINT,
    AT_FRACTION,
    AT_E,
    AT_E_SIGN,
    AT_EXPONENT_LOW, /* began with 0 or 1: three digits fit */
    AT_EXPONENT,
    /* words */
    AT_TRUE,
    AT_FALSE,
    AT_NULL,
    /* strings */
    AT_STRING,
    AT_ESCAPE,
    AT_HEX_1,
    AT_HEX_2, /* the first digit was not 0 or d */
    AT_HEX_3,
    AT_HEX_4,
    AT_ZERO_2, /* 0 so far */
    AT_ZERO_3,
    AT_ZERO_4,
    AT_D_2, /* d so far: what follows may make it a surrogate */
    AT_HIGH_3,
    AT_HIGH_4,
    AT_LOW_ESCAPE, /* the second half of a pair */
    AT_LOW_U,
    AT_LOW_1,
    AT_LOW_2,
    AT_LOW_3,
    AT_LOW_4,
    /* the bytes of a character that are left: table 3-7 of the Unicode standard */
    AT_UTF8_1,
    AT_UTF8_2,
    AT_UTF8_3,
    AT_UTF8_E0,
    AT_UTF8_ED,
    AT_UTF8_F0,
    AT_UTF8_F4,
};

static bool is_digit(unsigned char c) {
    return c >= '0' && c <= '9';
}

static bool is_hex(unsigned char c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool one_of(unsigned char c, const char *set) {
    return c && strchr(set, c);
}

static bool go(json_state *s, int at) {
    s->at = (uint8_t)at;
    s->count = 0;
    s->lines = 0;
    return true;
}

static bool inside_object(const json_state *s) {
    return s->depth && s->stack >> (s->depth - 1) & 1;
}

static bool open(json_state *s, bool object) {
    if (s->depth == JSON_DEPTH) return false;
    uint64_t bit = (uint64_t)1 << s->depth++;
    s->stack = object ? s->stack | bit : s->stack & ~bit;
    return go(s, object ? AT_FIRST_KEY : AT_FIRST_VALUE);
}

static bool shut(json_state *s, bool object) {
    if (!s->depth || inside_object(s) != object) return false;
    s->stack &= ~((uint64_t)1 << --s->depth);
    return go(s, s->depth ? AT_AFTER : AT_END);
}

static bool blank(json_state *s, unsigned char c) {
    bool line = c == '\n' || c == '\r';
    if (c != ' ' && c != '\t' && !line) return false;
    if (s->count == BLANKS || (line && s->lines == LINE_ENDS)) return false;
    s->count++;
    s->lines = (uint8_t)(s->lines + line);
    return true;
}

static bool string(json_state *s, bool key) {
    s->key = key;
    return go(s, AT_STRING);
}

static bool value(json_state *s, unsigned char c) {
    switch (c) {
    case '"':
        return string(s, false);
    case '{':
        return open(s, true);
    case '[':
        return open(s, false);
    case '-':
        return go(s, AT_MINUS);
    case '0':
        return go(s, AT_ZERO);
    case 't':
        go(s, AT_TRUE);
        s->count = 1;
        return true;
    case 'f':
        go(s, AT_FALSE);
        s->count = 1;
        return true;
    case 'n':
        go(s, AT_NULL);
        s->count = 1;
        return true;
    }
    if (!is_digit(c)) return false;
    go(s, AT_WHOLE);
    s->count = 1;
    return true;
}

static bool after(json_state *s, unsigned char c) {
    if (c == ',') return go(s, inside_object(s) ? AT_KEY : AT_VALUE);
    if (c == '}') return shut(s, true);
    if (c == ']') return shut(s, false);
    return blank(s, c);
}

/* A number ends where the next byte is not its own. */
static bool after_number(json_state *s, unsigned char c) {
    go(s, AT_AFTER);
    return after(s, c);
}

static bool number(json_state *s, unsigned char c) {
    switch (s->at) {
    case AT_MINUS:
        if (c == '0') return go(s, AT_ZERO);
        if (!is_digit(c)) return false;
        go(s, AT_WHOLE);
        s->count = 1;
        return true;
    case AT_WHOLE:
        if (is_digit(c)) return s->count++ < WHOLE_DIGITS;
        /* fall through */
    case AT_ZERO:
        if (c == '.') return go(s, AT_POINT);
        if (c == 'e' || c == 'E') return go(s, AT_E);
        return after_number(s, c);
    case AT_POINT:
        if (!is_digit(c)) return false;
        go(s, AT_FRACTION);
        s->count = 1;
        return true;
    case AT_FRACTION:
        if (is_digit(c)) return s->count++ < FRACTION_DIGITS;
        if (c == 'e' || c == 'E') return go(s, AT_E);
        return after_number(s, c);
    case AT_E:
        if (c == '+' || c == '-') return go(s, AT_E_SIGN);
        /* fall through */
    case AT_E_SIGN:
        if (!is_digit(c)) return false;
        go(s, c <= '1' ? AT_EXPONENT_LOW : AT_EXPONENT);
        s->count = 1;
        return true;
    default:
        if (is_digit(c)) return s->count++ < (s->at == AT_EXPONENT_LOW ? 3 : 2);
        return after_number(s, c);
    }
}

static bool word(json_state *s, unsigned char c) {
    static const char *const words[] = {"true", "false", "null"};
    const char *w = words[s->at - AT_TRUE];
    if ((char)c != w[s->count]) return false;
    if (!w[++s->count]) go(s, AT_AFTER);
    return true;
}

/* Goes on when the byte is from `low` to `high`. */
static bool tail(json_state *s, unsigned char c, unsigned low, unsigned high, int at) {
    return c >= low && c <= high && go(s, at);
}

static bool character(json_state *s, unsigned char c) {
    if (c == '"') {
        int next = s->key ? AT_COLON : AT_AFTER;
        s->key = 0;
        return go(s, next);
    }
    if (c == '\\') return go(s, AT_ESCAPE);
    if (c < 0x20) return false;
    if (c < 0x80) return true;
    if (c >= 0xC2 && c <= 0xDF) return go(s, AT_UTF8_1);
    if (c == 0xE0) return go(s, AT_UTF8_E0);
    if (c == 0xED) return go(s, AT_UTF8_ED);
    if (c >= 0xE1 && c <= 0xEF) return go(s, AT_UTF8_2);
    if (c == 0xF0) return go(s, AT_UTF8_F0);
    if (c >= 0xF1 && c <= 0xF3) return go(s, AT_UTF8_3);
    return c == 0xF4 && go(s, AT_UTF8_F4);
}

static bool in_string(json_state *s, unsigned char c) {
    bool d = c == 'd' || c == 'D';
    switch (s->at) {
    case AT_STRING:
        return character(s, c);
    case AT_ESCAPE:
        if (c == 'u') return go(s, AT_HEX_1);
        return one_of(c, "\"\\/bfnrt") && go(s, AT_STRING);
    case AT_HEX_1:
        return is_hex(c) && go(s, c == '0' ? AT_ZERO_2 : d ? AT_D_2 : AT_HEX_2);
    case AT_ZERO_2:
    case AT_ZERO_3:
        if (c == '0') return go(s, s->at + 1);
        return is_hex(c) && go(s, s->at == AT_ZERO_2 ? AT_HEX_3 : AT_HEX_4);
    case AT_ZERO_4:
        return c != '0' && is_hex(c) && go(s, AT_STRING);
    case AT_D_2: /* d800 to dbff is the first half of a pair, dc00 to dfff only the second */
        return one_of(c, "01234567") ? go(s, AT_HEX_3) : one_of(c, "89abAB") && go(s, AT_HIGH_3);
    case AT_HEX_2:
    case AT_HEX_3:
        return is_hex(c) && go(s, s->at + 1);
    case AT_HEX_4:
    case AT_LOW_4:
        return is_hex(c) && go(s, AT_STRING);
    case AT_HIGH_3:
    case AT_HIGH_4:
    case AT_LOW_3:
        return is_hex(c) && go(s, s->at + 1);
    case AT_LOW_ESCAPE:
        return c == '\\' && go(s, AT_LOW_U);
    case AT_LOW_U:
        return c == 'u' && go(s, AT_LOW_1);
    case AT_LOW_1:
        return d && go(s, AT_LOW_2);
    case AT_LOW_2:
        return one_of(c, "cdefCDEF") && go(s, AT_LOW_3);
    case AT_UTF8_1:
        return tail(s, c, 0x80, 0xBF, AT_STRING);
    case AT_UTF8_2:
        return tail(s, c, 0x80, 0xBF, AT_UTF8_1);
    case AT_UTF8_3:
        return tail(s, c, 0x80, 0xBF, AT_UTF8_2);
    case AT_UTF8_E0:
        return tail(s, c, 0xA0, 0xBF, AT_UTF8_1);
    case AT_UTF8_ED:
        return tail(s, c, 0x80, 0x9F, AT_UTF8_1);
    case AT_UTF8_F0:
        return tail(s, c, 0x90, 0xBF, AT_UTF8_2);
    default:
        return tail(s, c, 0x80, 0x8F, AT_UTF8_2);
    }
}

static bool accept(json_state *s, unsigned char c) {
    if (s->at >= AT_STRING) return in_string(s, c);
    if (s->at >= AT_TRUE) return word(s, c);
    if (s->at >= AT_MINUS) return number(s, c);
    switch (s->at) {
    case AT_START:
        return c == '{' ? open(s, true) : blank(s, c);
    case AT_VALUE:
        return blank(s, c) || value(s, c);
    case AT_FIRST_VALUE:
        return c == ']' ? shut(s, false) : blank(s, c) || value(s, c);
    case AT_FIRST_KEY:
        if (c == '}') return shut(s, true);
        /* fall through */
    case AT_KEY:
        return c == '"' ? string(s, true) : blank(s, c);
    case AT_COLON:
        return c == ':' ? go(s, AT_VALUE) : blank(s, c);
    case AT_AFTER:
        return after(s, c);
    }
    return false;
}

void json_begin(json_state *s) {
    memset(s, 0, sizeof *s);
}

bool json_accept(json_state *s, const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!accept(s, (unsigned char)bytes[i])) return false;
    return true;
}

bool json_complete(const json_state *s) {
    return s->at == AT_END;
}

/* ---- The vocabulary ----------------------------------------------------------------------- */

/* Tokens in the order of their bytes are a trie written down: a token shares the states of its
 * first `shared` bytes with the token before it, and where a prefix is refused, all tokens that
 * have it are. */
typedef struct {
    int32_t id;
    uint32_t at; /* in `bytes` */
    uint16_t n, shared;
} word_of;

enum { MASKS = 64 };

/* Inside a string, and between all things at a depth, the same states come again and again. */
typedef struct {
    json_state state;
    uint64_t used; /* when; 0: never */
    bool any;
    uint32_t *bits;
} kept_mask;

struct json_mask {
    char *bytes;
    word_of *words; /* tokens with text */
    size_t n_words;
    size_t *place; /* [n_ids]: of a token in words, or SIZE_MAX */
    size_t n_ids, n_mask;
    uint32_t *ends; /* tokens that end a text */
    bool any_end;
    uint64_t clock;
    kept_mask masks[MASKS];
    uint32_t *memory;
    json_state *states; /* after each byte of a token */
};

static int by_bytes(const void *x, const void *y, void *bytes) {
    const word_of *a = x, *b = y;
    const char *at = bytes;
    int c = memcmp(at + a->at, at + b->at, a->n < b->n ? a->n : b->n);
    return c ? c : a->n != b->n ? (a->n > b->n) - (a->n < b->n) : (a->id > b->id) - (a->id < b->id);
}

/* The text of every token that has one. Longer ones than a mask can use are left out. */
static linnet_status read_words(json_mask *m, const linnet_model *model, size_t *longest,
                                linnet_error *err) {
    enum { MOST = 4096 };
    char text[MOST];
    size_t used = 0, cap = 0;
    for (size_t i = 0; i < m->n_ids; i++) {
        int32_t id = (int32_t)i;
        size_t n;
        m->place[i] = SIZE_MAX;
        if (linnet_is_end(model, id)) {
            m->ends[i / 32] |= (uint32_t)1 << (i % 32);
            m->any_end = true;
            continue;
        }
        linnet_status s =
            linnet_detokenize(model, &id, 1, LINNET_MIDDLE | LINNET_BYTES, text, MOST, &n, err);
        if (s) return s;
        if (!n || n > MOST) continue;
        if (used + n > UINT32_MAX)
            return fail(err, LINNET_ERR_UNSUPPORTED,
                        "JSON mode: the vocabulary has more than 4 GiB of text");
        if (used + n > cap) {
            cap = 2 * (used + n) + 4096;
            char *more = realloc(m->bytes, cap);
            if (!more) return fail(err, LINNET_ERR_MEMORY, "no memory for the vocabulary's text");
            m->bytes = more;
        }
        memcpy(m->bytes + used, text, n);
        m->words[m->n_words++] = (word_of){id, (uint32_t)used, (uint16_t)n, 0};
        used += n;
        if (n > *longest) *longest = n;
    }
    return LINNET_OK;
}

static void arrange(json_mask *m) {
    qsort_r(m->words, m->n_words, sizeof *m->words, by_bytes, m->bytes);
    for (size_t i = 0; i < m->n_words; i++) {
        word_of *w = &m->words[i];
        m->place[w->id] = i;
        const word_of *before = i ? w - 1 : NULL;
        while (before && w->shared < w->n && w->shared < before->n &&
               m->bytes[w->at + w->shared] == m->bytes[before->at + w->shared])
            w->shared++;
    }
}

linnet_status json_mask_new(json_mask **out, const linnet_model *model, linnet_error *err) {
    const linnet_model_info *info = linnet_model_get_info(model);
    size_t n = (size_t)info->n_vocab, rows = (size_t)info->n_rows;
    *out = NULL;
    if (!n)
        return fail(err, LINNET_ERR_TOKENIZER,
                    "JSON mode: the model file has no vocabulary, so its tokens have no text");
    json_mask *m = calloc(1, sizeof *m);
    if (!m) return fail(err, LINNET_ERR_MEMORY, "no memory for JSON mode");
    m->n_ids = n;
    m->n_mask = ((n > rows ? n : rows) + 31) / 32;
    m->words = calloc(n, sizeof *m->words);
    m->place = calloc(n, sizeof *m->place);
    m->ends = calloc(m->n_mask, sizeof *m->ends);
    m->memory = calloc(MASKS * m->n_mask, sizeof *m->memory);
    size_t longest = 0;
    linnet_status s = LINNET_OK;
    if (m->words && m->place && m->ends && m->memory) s = read_words(m, model, &longest, err);
    if (!s) m->states = calloc(longest + 1, sizeof *m->states);
    if (!s && (!m->words || !m->place || !m->ends || !m->memory || !m->states))
        s = fail(err, LINNET_ERR_MEMORY, "no memory for JSON mode of %zu tokens", n);
    if (s) {
        json_mask_free(m);
        return s;
    }
    arrange(m);
    for (size_t i = 0; i < MASKS; i++)
        m->masks[i].bits = m->memory + i * m->n_mask;
    *out = m;
    return LINNET_OK;
}

void json_mask_free(json_mask *m) {
    if (!m) return;
    free(m->bytes);
    free(m->words);
    free(m->place);
    free(m->ends);
    free(m->memory);
    free(m->states);
    free(m);
}

/* ---- Masks -------------------------------------------------------------------------------- */

static void fill(json_mask *m, kept_mask *k) {
    memset(k->bits, 0, m->n_mask * sizeof *k->bits);
    k->any = false;
    m->states[0] = k->state;
    size_t good = 0; /* bytes of the token before that were accepted */
    for (size_t i = 0; i < m->n_words; i++) {
        const word_of *w = &m->words[i];
        const char *text = m->bytes + w->at;
        if (w->shared > good) continue; /* it has the byte that was refused */
        for (good = w->shared; good < w->n; good++) {
            m->states[good + 1] = m->states[good];
            if (!accept(&m->states[good + 1], (unsigned char)text[good])) break;
        }
        if (good < w->n) continue;
        k->bits[(size_t)w->id / 32] |= (uint32_t)1 << (w->id % 32);
        k->any = true;
    }
}

const uint32_t *json_mask_allowed(json_mask *m, const json_state *s, bool *any) {
    if (json_complete(s)) {
        *any = m->any_end;
        return m->ends;
    }
    kept_mask *oldest = m->masks;
    for (size_t i = 0; i < MASKS; i++) {
        kept_mask *k = &m->masks[i];
        if (k->used && !memcmp(&k->state, s, sizeof *s)) {
            k->used = ++m->clock;
            *any = k->any;
            return k->bits;
        }
        if (k->used < oldest->used) oldest = k;
    }
    oldest->state = *s;
    oldest->used = ++m->clock;
    fill(m, oldest);
    *any = oldest->any;
    return oldest->bits;
}

bool json_mask_accept(const json_mask *m, json_state *s, int32_t token) {
    size_t at = token >= 0 && (size_t)token < m->n_ids ? m->place[token] : SIZE_MAX;
    return at != SIZE_MAX && json_accept(s, m->bytes + m->words[at].at, m->words[at].n);
}
