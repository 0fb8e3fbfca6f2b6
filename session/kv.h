/* Keys and values of a session in pages of 64 positions, reference-counted and copied on write: a
 * fork shares all pages, and whoever writes first copies the one it writes to. Layers behind a
 * window have pages of their own, so that what has left the windows goes while layers without one
 * keep all. A page holds all layers of its table, each KV head as kernels.h's kv_view wants it. */
#ifndef KV_H
#define KV_H

#include "../backend.h"
#include "../kernels_cpu/kernels.h"

typedef enum { KV_ALL, KV_WINDOWED, KV_TABLES } kv_table_id; /* what its layers look back at */

/* A layer that keeps keys and values. */
typedef struct {
    int heads, head_dim;
    kv_table_id table;
    size_t at[KV_KINDS]; /* where in a page its heads begin, by kind */
} kv_slot;

typedef struct {
    kv_kind kind;
    int layers;
    const kv_slot *slots;         /* [layers], the model's */
    size_t page_bytes[KV_TABLES]; /* as allocated; 0: no layer */
    backend *where;               /* whose memory pages are: kv_layout_of says the CPU's */
} kv_layout;

typedef struct kv_slab kv_slab;
typedef struct {
    atomic_size_t owners; /* caches */
    kv_slab *slab;
    uint8_t *data; /* in the backend's memory */
} kv_page;

typedef struct {
    /* page i holds positions [64 i, 64 i + 64); NULL: dropped, out of every window */
    kv_page **pages;
    size_t n_pages, cap;
    size_t held;   /* pages that are not NULL */
    kv_slab *slab; /* what the next page is cut from, or NULL */
} kv_table;

typedef struct {
    kv_layout layout;
    kv_table tables[KV_TABLES];
} kv_cache;

/* Fills in `at`, from the rest. */
void kv_place(kv_slot *slots, int layers);
kv_layout kv_layout_of(kv_kind kind, const kv_slot *slots, int layers);
/* Makes positions [from, to) writable: adds pages, copies shared ones. On failure the cache still
 * holds what it held (perhaps with pages to spare; kv_truncate drops them). */
linnet_status kv_reserve(kv_cache *c, size_t from, size_t to, linnet_error *err);
/* The same in one table. */
linnet_status kv_reserve_in(kv_cache *c, kv_table_id table, size_t from, size_t to,
                            linnet_error *err);
/* Keeps positions [0, n) only. */
void kv_truncate(kv_cache *c, size_t n);
/* Drops whole pages of windowed layers before position n, which nothing will look at again, except
 * those that hold the first `keep` positions. */
void kv_drop_before(kv_cache *c, size_t keep, size_t n);
/* *out becomes a second owner of all pages; *out was zeroed. */
linnet_status kv_fork(const kv_cache *c, kv_cache *out, linnet_error *err);
void kv_free(kv_cache *c);
uint64_t kv_held_bytes(const kv_cache *c);
/* What follows until kv_packed_bytes is for pages in the host's memory. */
kv_view kv_at(const kv_cache *c, size_t page, int layer, int head);
/* Stores one position's key and value of a head, [head_dim] floats each. */
void kv_write(const kv_cache *c, const kernels *kernels, size_t position, int layer, int head,
              const float *k, const float *v);
/* Reads them back. */
void kv_read(const kv_cache *c, size_t position, int layer, int head, float *k, float *v);

/* A head's positions of a page as they are saved, without padding and whatever the layout above:
 * for each of the first n positions its key [head_dim], then of each its value; with KV_Q8_0 then
 * of each the key's scales [head_dim/32], of each the value's. Bytes per position: */
size_t kv_packed_bytes(const kv_layout *l, int layer);
/* `page`: a page's bytes in the host's memory. */
void kv_pack(const kv_layout *l, const uint8_t *page, int layer, int head, size_t n, uint8_t *out);
void kv_unpack(const kv_layout *l, uint8_t *page, int layer, int head, size_t n, const uint8_t *in);

#endif
