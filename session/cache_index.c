#include "cache.h"

#include <stdlib.h>
#include <string.h>

int cache_kind(const linnet_session *s) {
    int kv = s->model->kv_layers ? (int)s->kv.layout.kind : 0;
    return kv * 3 + (int)s->mode;
}

size_t common_tokens(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b) {
    size_t n = min_size(n_a, n_b), i = 0;
    enum { STRIDE = 64 }; /* memcmp is faster, but says only whether */
    while (n - i >= STRIDE && !memcmp(a + i, b + i, STRIDE * sizeof *a))
        i += STRIDE;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* Whether the entry stands after the timeline. */
static bool after(const cache_entry *e, int kind, const int32_t *tokens, size_t n) {
    if (e->kind != kind) return e->kind > kind;
    size_t i = common_tokens(e->tokens, e->n, tokens, n);
    if (i == e->n || i == n) return e->n > n;
    return e->tokens[i] > tokens[i];
}

size_t cache_place(const linnet_cache *c, int kind, const int32_t *tokens, size_t n) {
    size_t from = 0, to = c->n;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (after(c->entries[middle], kind, tokens, n))
            to = middle;
        else
            from = middle + 1;
    }
    return from;
}

cache_entry *cache_find(const linnet_cache *c, int kind, const int32_t *tokens, size_t n) {
    size_t place = cache_place(c, kind, tokens, n);
    cache_entry *e = place ? c->entries[place - 1] : NULL;
    if (!e || e->kind != kind || e->n != n || memcmp(e->tokens, tokens, n * sizeof *tokens))
        return NULL;
    return e;
}

linnet_status cache_insert(linnet_cache *c, cache_entry *e, linnet_error *err) {
    if (c->n == c->cap) {
        size_t cap = c->cap ? c->cap * 2 : 64;
        cache_entry **entries = realloc(c->entries, cap * sizeof *entries);
        if (!entries) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu cache entries", cap);
        c->entries = entries;
        c->cap = cap;
    }
    size_t place = cache_place(c, e->kind, e->tokens, e->n);
    memmove(c->entries + place + 1, c->entries + place, (c->n - place) * sizeof *c->entries);
    c->entries[place] = e;
    c->n++;
    return LINNET_OK;
}

static void free_entry(cache_entry *e) {
    free(e->tokens);
    free(e);
}

void cache_take_out(linnet_cache *c, cache_entry *e) {
    size_t place = cache_place(c, e->kind, e->tokens, e->n) - 1;
    memmove(c->entries + place, c->entries + place + 1, (c->n - place - 1) * sizeof *c->entries);
    c->n--;
    e->removed = true;
    if (!e->pins) {
        cache_let_go(c, e);
        free_entry(e);
    }
}

void cache_unpin(linnet_cache *c, cache_entry *e) {
    if (--e->pins || !e->removed) return;
    cache_let_go(c, e);
    free_entry(e);
}

size_t cache_serves(linnet_window_mode mode, size_t held, size_t common, size_t n, bool has_logits,
                    bool can_cut) {
    if (common == n && held == n && has_logits) return n;
    if (mode == LINNET_TERRACE_HF) return 0; /* the prompt is one feed: a part of it is another */
    if (common == held && held < n) return held;
    return can_cut ? min_size(common, n - 1) : 0;
}

bool cache_can_cut(const cache_entry *e, size_t n) {
    return e->state ? session_can_cut(e->state, n) : e->can_cut;
}

/* The better of two entries that serve as many. */
static bool rather(const cache_entry *a, const cache_entry *b) {
    if (!a->state != !b->state) return a->state != NULL;
    return a->uses > b->uses;
}

cache_entry *cache_search(linnet_cache *c, int kind, const int32_t *tokens, size_t n,
                          size_t *serves, size_t *common) {
    cache_entry *best = NULL;
    linnet_window_mode mode = (linnet_window_mode)(kind % 3);
    *serves = *common = 0;
    for (size_t limit = n; limit > *serves;) {
        size_t place = cache_place(c, kind, tokens, limit), most = 0;
        for (size_t i = place ? place - 1 : 0; i < c->n && i <= place; i++) {
            cache_entry *e = c->entries[i];
            if (e->kind != kind) continue;
            size_t same = common_tokens(e->tokens, e->n, tokens, n);
            size_t found = cache_serves(mode, e->n, same, n, e->has_logits,
                                        cache_can_cut(e, min_size(same, n - 1)));
            if (found && (found > *serves || (found == *serves && rather(e, best)))) {
                best = e;
                *serves = found;
            }
            *common = max_size(*common, same);
            if (i < place) most = min_size(same, limit);
        }
        limit = most < limit ? most : limit - 1;
    }
    return best;
}
