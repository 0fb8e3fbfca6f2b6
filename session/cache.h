/* The inside of the prefix cache (docs/cache.md).
 *
 * Entries are timelines, in memory, in the folder or both, in one array that is sorted by kind and
 * then by tokens, as words in a dictionary. The entry with the most tokens in common with a wanted
 * timeline is a neighbour of the place where that would stand, and the longest entry that is its
 * beginning is found by asking again with what was in common: a handful of binary searches. There
 * is no hash that could collide, and the common length is known where nothing fits, so the cache
 * can say why. */
#ifndef CACHE_H
#define CACHE_H

#include "fork.h"
#include "state.h"

#include <pthread.h>

typedef struct {
    int kind;        /* of keys and values, and window mode: see cache_kind */
    int32_t *tokens; /* `state` points to the same */
    size_t n;
    bool has_logits, can_cut; /* can_cut: to any earlier token */
    linnet_session *state;    /* NULL: in the folder only */
    uint64_t own_bytes;       /* of the state, but for pages */
    uint64_t uses, last;      /* how often it served, and the cache's time then */
    size_t pins;              /* threads that use it outside the lock */
    bool removed;             /* from the index; the last pin frees it */
    bool dirty;               /* the folder lacks it */
    uint64_t file_bytes;      /* 0: no file */
} cache_entry;

/* How many snapshots hold each page: open addressing, NULL is free. */
typedef struct {
    const kv_page *page;
    size_t n;
} page_count;
typedef struct {
    page_count *at;
    size_t cap, used;
} page_counts;

struct linnet_cache {
    linnet_model *model; /* of which the cache is an owner */
    uint64_t bytes_max, dir_max;
    size_t every;
    pthread_mutex_t lock;  /* of all below */
    cache_entry **entries; /* sorted */
    size_t n, cap;
    page_counts pages;
    uint64_t bytes, now; /* held in memory; uses so far */
    linnet_cache_stats stats;
    /* The folder; `folder_lock` is taken before `lock` and by whoever reads or writes it. */
    pthread_mutex_t folder_lock;
    char *dir;           /* NULL: none */
    int64_t dir_changed; /* the folder's own time when it was last read */
    uint64_t flushed;    /* `now` of the last flush */
    uint64_t model_key;  /* of names: what states of other models must not have */
};

/* ---- Index (cache_index.c). The lock is held. ------------------------------------------------ */

int cache_kind(const linnet_session *s);
size_t common_tokens(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b);
/* The first place whose entry stands after the timeline. */
size_t cache_place(const linnet_cache *c, int kind, const int32_t *tokens, size_t n);
cache_entry *cache_find(const linnet_cache *c, int kind, const int32_t *tokens, size_t n);
linnet_status cache_insert(linnet_cache *c, cache_entry *e, linnet_error *err);
void cache_take_out(linnet_cache *c, cache_entry *e); /* and frees it when it has no pins */
void cache_unpin(linnet_cache *c, cache_entry *e);

/* How many of n wanted tokens a timeline of `held` tokens serves that has `common` of them: all it
 * has, or, where it can be cut, what is in common; one less than wanted if logits are missing.
 * `can_cut`: to min(common, n - 1). */
size_t cache_serves(linnet_window_mode mode, size_t held, size_t common, size_t n, bool has_logits,
                    bool can_cut);
bool cache_can_cut(const cache_entry *e, size_t n); /* back to n tokens */
/* The entry that serves most, or NULL. *serves: how many; *common: the most that any has. */
cache_entry *cache_search(linnet_cache *c, int kind, const int32_t *tokens, size_t n,
                          size_t *serves, size_t *common);

/* ---- Memory (cache_memory.c). The lock is held. ---------------------------------------------- */

/* The entry takes `state` and counts it; on an error it is the caller's still. */
linnet_status cache_hold(linnet_cache *c, cache_entry *e, linnet_session *state, linnet_error *err);
/* Frees what the entry holds in memory. */
void cache_let_go(linnet_cache *c, cache_entry *e);
/* Frees what is worth least until the budget is kept. */
void cache_evict(linnet_cache *c);
/* Bytes that a snapshot of the session takes, pages aside. */
uint64_t cache_own_bytes(const linnet_session *s);

/* ---- Folder (cache_folder.c) ----------------------------------------------------------------- */

linnet_status folder_open(linnet_cache *c, const char *dir, linnet_error *err);
/* Looks for files that others wrote or removed, if the folder has changed and nobody is at it. */
void folder_refresh(linnet_cache *c);
/* The state of a pinned entry whose file is all there is, or NULL. The lock is not held. */
linnet_session *folder_load(linnet_cache *c, const cache_entry *e, linnet_error *err);
/* The lock is held: the entry has no file any more; and removes it. */
void folder_forget(linnet_cache *c, cache_entry *e);
void folder_remove(linnet_cache *c, cache_entry *e);
linnet_status folder_flush(linnet_cache *c, linnet_error *err);

#endif
