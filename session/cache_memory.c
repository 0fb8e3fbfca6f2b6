/* What the cache holds in memory, counted in bytes, and what goes first when that is too much. */
#include "cache.h"

#include <stdlib.h>
#include <string.h>

/* ---- Pages, each counted once ---------------------------------------------------------------- */

static size_t slot_of(const page_counts *p, const kv_page *page) {
    size_t i = (size_t)((uintptr_t)page * 0x9E3779B97F4A7C15u >> 20) & (p->cap - 1);
    while (p->at[i].page && p->at[i].page != page)
        i = (i + 1) & (p->cap - 1);
    return i;
}

/* Room for `more` pages at half load. */
static bool make_room(page_counts *p, size_t more) {
    size_t cap = p->cap ? p->cap : 256;
    while ((p->used + more) * 2 > cap)
        cap *= 2;
    if (cap == p->cap) return true;
    page_counts bigger = {calloc(cap, sizeof *bigger.at), cap, p->used};
    if (!bigger.at) return false;
    for (size_t i = 0; i < p->cap; i++)
        if (p->at[i].page) bigger.at[slot_of(&bigger, p->at[i].page)] = p->at[i];
    free(p->at);
    *p = bigger;
    return true;
}

/* Takes the slot out; those that stand behind their place because of it move up. */
static void remove_slot(page_counts *p, size_t i) {
    p->at[i] = (page_count){0};
    p->used--;
    for (size_t j = (i + 1) & (p->cap - 1); p->at[j].page; j = (j + 1) & (p->cap - 1)) {
        page_count moving = p->at[j];
        p->at[j] = (page_count){0};
        p->at[slot_of(p, moving.page)] = moving;
    }
}

/* ---- Holding --------------------------------------------------------------------------------- */

uint64_t cache_own_bytes(const linnet_session *s) {
    return sizeof(cache_entry) + sizeof *s + s->n_tokens * sizeof *s->tokens +
           (s->kv.tables[KV_ALL].n_pages + s->kv.tables[KV_WINDOWED].n_pages) * sizeof(kv_page *) +
           s->model->state_bytes +
           (s->has_logits ? (size_t)s->model->cfg.n_rows * sizeof *s->logits : 0);
}

/* Counts an owner more of each page; `bytes` of a page. */
static void hold_pages(linnet_cache *c, const kv_table *t, size_t bytes) {
    for (size_t i = 0; i < t->n_pages; i++) {
        if (!t->pages[i]) continue;
        page_count *p = &c->pages.at[slot_of(&c->pages, t->pages[i])];
        if (p->page) {
            p->n++;
            continue;
        }
        *p = (page_count){t->pages[i], 1};
        c->pages.used++;
        c->bytes += bytes;
    }
}

static void let_pages_go(linnet_cache *c, const kv_table *t, size_t bytes) {
    for (size_t i = 0; i < t->n_pages; i++) {
        if (!t->pages[i]) continue;
        size_t slot = slot_of(&c->pages, t->pages[i]);
        if (--c->pages.at[slot].n) continue;
        remove_slot(&c->pages, slot);
        c->bytes -= bytes;
    }
}

linnet_status cache_hold(linnet_cache *c, cache_entry *e, linnet_session *state,
                         linnet_error *err) {
    const kv_cache *kv = &state->kv;
    if (!make_room(&c->pages, kv->tables[KV_ALL].held + kv->tables[KV_WINDOWED].held))
        return fail(err, LINNET_ERR_MEMORY, "no memory to count the cache's pages");
    for (int i = 0; i < KV_TABLES; i++)
        hold_pages(c, &kv->tables[i], kv->layout.page_bytes[i]);
    e->own_bytes = cache_own_bytes(state);
    e->state = state;
    if (e->tokens != state->tokens) free(state->tokens);
    state->tokens = e->tokens;
    e->has_logits = state->has_logits;
    c->bytes += e->own_bytes;
    c->stats.entries++;
    return LINNET_OK;
}

void cache_let_go(linnet_cache *c, cache_entry *e) {
    linnet_session *s = e->state;
    if (!s) return;
    for (int i = 0; i < KV_TABLES; i++)
        let_pages_go(c, &s->kv.tables[i], s->kv.layout.page_bytes[i]);
    c->bytes -= e->own_bytes;
    c->stats.entries--;
    e->state = NULL;
    s->tokens = NULL; /* the entry's */
    linnet_session_free(s);
}

/* ---- Evicting -------------------------------------------------------------------------------- */

/* Pages that no other entry has. */
static uint64_t own_pages(const linnet_cache *c, const kv_table *t) {
    uint64_t n = 0;
    for (size_t i = 0; i < t->n_pages; i++)
        n += t->pages[i] && c->pages.at[slot_of(&c->pages, t->pages[i])].n == 1;
    return n;
}

/* Bytes that would be free without the entry. */
static uint64_t freed_bytes(const linnet_cache *c, const cache_entry *e) {
    const kv_cache *kv = &e->state->kv;
    uint64_t bytes = e->own_bytes;
    for (int i = 0; i < KV_TABLES; i++)
        bytes += own_pages(c, &kv->tables[i]) * kv->layout.page_bytes[i];
    return bytes;
}

static size_t shared(const cache_entry *a, const cache_entry *b) {
    return a->kind == b->kind ? common_tokens(a->tokens, a->n, b->tokens, b->n) : 0;
}

/* What an entry is worth: the tokens that would have to be computed again without it, those that no
 * other entry serves, times its uses, by the bytes that would be free and the time since its last
 * use. Returns the one worth least, of those in memory and without pins. `ancestors` is a stack of
 * entries that are the beginning of the one looked at: the array is sorted. */
static cache_entry *least_worth(const linnet_cache *c, const cache_entry **ancestors) {
    cache_entry *least = NULL;
    double least_worth = 0;
    size_t depth = 0;
    const cache_entry *previous = NULL;
    for (size_t i = 0; i < c->n; i++) {
        cache_entry *e = c->entries[i];
        if (!e->state) continue;
        while (depth && shared(ancestors[depth - 1], e) < ancestors[depth - 1]->n)
            depth--;
        size_t served = depth ? ancestors[depth - 1]->n : 0;
        if (e->can_cut) { /* by a neighbour, cut */
            const cache_entry *next = NULL;
            for (size_t j = i + 1; j < c->n && !next; j++)
                next = c->entries[j]->state ? c->entries[j] : NULL;
            if (previous) served = max_size(served, shared(previous, e));
            if (next) served = max_size(served, shared(next, e));
        }
        ancestors[depth++] = previous = e;
        if (e->pins) continue;
        double tokens = (double)(e->n - min_size(served, e->n - 1));
        if (e->file_bytes) tokens /= 16; /* reading is cheaper than computing */
        double worth =
            tokens * (double)e->uses / (double)freed_bytes(c, e) / (double)(c->now - e->last + 1);
        if (least && worth >= least_worth) continue;
        least = e;
        least_worth = worth;
    }
    return least;
}

/* One at a time: what was a copy may be the last one now. */
void cache_evict(linnet_cache *c) {
    if (c->bytes <= c->bytes_max) return;
    const cache_entry **ancestors = malloc((c->n + 1) * sizeof *ancestors);
    while (ancestors && c->bytes > c->bytes_max) {
        cache_entry *e = least_worth(c, ancestors);
        if (!e) break; /* all of it is in use */
        c->stats.evictions++;
        if (e->file_bytes && !e->dirty)
            cache_let_go(c, e);
        else
            cache_take_out(c, e);
    }
    free(ancestors);
}
