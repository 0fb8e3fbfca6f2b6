#include "kv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Memory that the pages of one table are cut from: few allocations, and on the CPU huge pages. Each
 * page is used once. The slab goes with its last page, whoever holds that. */
struct kv_slab {
    atomic_size_t owners; /* pages, and the table that cuts from it */
    backend *where;
    uint8_t *memory;
    size_t bytes, used, n_pages;
    kv_page pages[];
};

enum {
    SLAB = 32 << 20,     /* bytes, or a few pages */
    SMALL_PAGE = 1 << 17 /* below it the CPU has a slab for every page */
};

static linnet_status slab_new(const kv_layout *l, size_t page_bytes, kv_slab **out,
                              linnet_error *err) {
    bool alone = l->where->ops->host_memory && page_bytes < SMALL_PAGE;
    size_t pages = alone ? 1 : max_size(SLAB / page_bytes, 4);
    kv_slab *s = malloc(sizeof *s + pages * sizeof *s->pages);
    if (!s) return fail(err, LINNET_ERR_MEMORY, "no memory for a list of KV pages");
    *s = (kv_slab){.where = l->where, .bytes = pages * page_bytes, .n_pages = pages};
    void *memory;
    linnet_status status = l->where->ops->alloc(l->where, s->bytes, &memory, err);
    if (status) {
        free(s);
        return status;
    }
    s->memory = memory;
    atomic_init(&s->owners, 1);
    *out = s;
    return LINNET_OK;
}

static void slab_release(kv_slab *s) {
    if (!s || atomic_fetch_sub(&s->owners, 1) > 1) return;
    s->where->ops->free(s->where, s->memory, s->bytes);
    free(s);
}

static size_t element_bytes(kv_kind kind) {
    return kind == KV_F32 ? 4 : kind == KV_F16 ? 2 : 1;
}

/* Bytes of a head's parts in a page, and of the whole head. */
typedef struct {
    size_t k, v, scales, all; /* scales: of k, and as many of v */
} head_bytes;

static inline head_bytes bytes_of(kv_kind kind, int head_dim) {
    size_t size = element_bytes(kind);
    head_bytes b = {.k = (size_t)head_dim * PAGE * size, .v = round_up(head_dim, 16) * PAGE * size};
    if (kind == KV_Q8_0) b.scales = (size_t)(head_dim / BLOCK) * PAGE * 2;
    b.all = round_up(b.k + b.v + 2 * b.scales, 64);
    return b;
}

void kv_place(kv_slot *slots, int layers) {
    for (int kind = 0; kind < KV_KINDS; kind++) {
        size_t at[KV_TABLES] = {0};
        for (int i = 0; i < layers; i++) {
            size_t *end = &at[slots[i].table];
            slots[i].at[kind] = *end;
            *end += bytes_of((kv_kind)kind, slots[i].head_dim).all * (size_t)slots[i].heads;
        }
    }
}

kv_layout kv_layout_of(kv_kind kind, const kv_slot *slots, int layers) {
    kv_layout l = {.kind = kind, .layers = layers, .slots = slots, .where = &backend_cpu};
    for (int i = 0; i < layers; i++) { /* a table ends with its last layer */
        const kv_slot *s = &slots[i];
        l.page_bytes[s->table] = s->at[kind] + bytes_of(kind, s->head_dim).all * (size_t)s->heads;
    }
    return l;
}

/* Gives a page's memory back that is never used again, where its slab lives on: few pages of a slab
 * may be snapshots that are kept for long. */
static void discard(const kv_layout *l, size_t page_bytes, const kv_page *p) {
    static const uintptr_t unit = 4096; /* larger units of the system refuse, which does no harm */
    if (!l->where->ops->host_memory || p->slab->n_pages == 1) return;
    uintptr_t from = round_up((uintptr_t)p->data, unit);
    uintptr_t to = ((uintptr_t)p->data + page_bytes) / unit * unit;
    if (from < to) (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

static void release(kv_cache *c, kv_table_id table, size_t i) {
    kv_table *t = &c->tables[table];
    kv_page *p = t->pages[i];
    if (!p) return;
    t->pages[i] = NULL;
    t->held--;
    if (atomic_fetch_sub(&p->owners, 1) != 1) return;
    if (atomic_load(&p->slab->owners) > 1) discard(&c->layout, c->layout.page_bytes[table], p);
    slab_release(p->slab);
}

/* A writable page: fresh and zero, or a copy of `from`. */
static linnet_status page_new(kv_cache *c, kv_table_id table, const kv_page *from, kv_page **out,
                              linnet_error *err) {
    size_t bytes = c->layout.page_bytes[table];
    kv_table *t = &c->tables[table];
    linnet_status s;
    if (!t->slab && (s = slab_new(&c->layout, bytes, &t->slab, err))) return s;
    kv_slab *slab = t->slab;
    kv_page *p = &slab->pages[slab->used];
    p->slab = slab;
    p->data = slab->memory + slab->used * bytes;
    backend *where = c->layout.where;
    if (from && (s = where->ops->copy(where, p->data, from->data, bytes, err))) return s;
    slab->used++;
    atomic_fetch_add(&slab->owners, 1);
    atomic_init(&p->owners, 1);
    *out = p;
    if (slab->used == slab->n_pages) { /* its pages keep it */
        slab_release(slab);
        t->slab = NULL;
    }
    return LINNET_OK;
}

linnet_status kv_reserve_in(kv_cache *c, kv_table_id table, size_t from, size_t to,
                            linnet_error *err) {
    kv_table *t = &c->tables[table];
    size_t need = round_up(to, PAGE) / PAGE, bytes = c->layout.page_bytes[table];
    if (!bytes || from >= to) return LINNET_OK;
    if (need > t->cap) {
        size_t cap = max_size(need, t->cap * 2);
        kv_page **pages = realloc(t->pages, cap * sizeof *pages);
        if (!pages) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu KV pages", cap);
        t->pages = pages;
        t->cap = cap;
    }
    while (t->n_pages < need)
        t->pages[t->n_pages++] = NULL;
    for (size_t i = from / PAGE; i < need; i++) {
        kv_page *p = t->pages[i];
        if (p && atomic_load(&p->owners) == 1) continue;
        kv_page *fresh = NULL;
        linnet_error why;
        linnet_status s = page_new(c, table, p, &fresh, &why);
        if (s)
            return fail(err, s, "a KV page of %zu bytes (%zu pages held): %s", bytes, t->held,
                        why.text);
        release(c, table, i);
        t->pages[i] = fresh;
        t->held++;
    }
    return LINNET_OK;
}

linnet_status kv_reserve(kv_cache *c, size_t from, size_t to, linnet_error *err) {
    linnet_status s = kv_reserve_in(c, KV_ALL, from, to, err);
    return s ? s : kv_reserve_in(c, KV_WINDOWED, from, to, err);
}

void kv_truncate(kv_cache *c, size_t n) {
    size_t keep = round_up(n, PAGE) / PAGE;
    for (kv_table_id i = 0; i < KV_TABLES; i++)
        while (c->tables[i].n_pages > keep)
            release(c, i, --c->tables[i].n_pages);
}

void kv_drop_before(kv_cache *c, size_t keep, size_t n) {
    const kv_table *t = &c->tables[KV_WINDOWED];
    size_t first = round_up(keep, PAGE) / PAGE;
    for (size_t i = min_size(n / PAGE, t->n_pages); i-- > first && t->pages[i];)
        release(c, KV_WINDOWED, i);
}

static linnet_status fork_table(const kv_table *t, kv_table *out, linnet_error *err) {
    if (!t->n_pages) return LINNET_OK;
    out->pages = malloc(t->n_pages * sizeof *out->pages);
    if (!out->pages) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu KV pages", t->n_pages);
    out->n_pages = out->cap = t->n_pages;
    out->held = t->held;
    for (size_t i = 0; i < t->n_pages; i++) {
        out->pages[i] = t->pages[i];
        if (t->pages[i]) atomic_fetch_add(&t->pages[i]->owners, 1);
    }
    return LINNET_OK;
}

linnet_status kv_fork(const kv_cache *c, kv_cache *out, linnet_error *err) {
    linnet_status s = LINNET_OK;
    out->layout = c->layout;
    for (int i = 0; i < KV_TABLES && !s; i++)
        s = fork_table(&c->tables[i], &out->tables[i], err);
    if (s) kv_free(out);
    return s;
}

void kv_free(kv_cache *c) {
    kv_truncate(c, 0);
    for (int i = 0; i < KV_TABLES; i++) {
        kv_table *t = &c->tables[i];
        slab_release(t->slab);
        free(t->pages);
        *t = (kv_table){0};
    }
}

uint64_t kv_held_bytes(const kv_cache *c) {
    uint64_t bytes = 0;
    for (int i = 0; i < KV_TABLES; i++)
        bytes += (uint64_t)c->tables[i].held * c->layout.page_bytes[i];
    return bytes;
}

/* A head in a page that begins at `data`. */
static kv_view view_of(const kv_layout *l, const uint8_t *data, int layer, int head) {
    const kv_slot *slot = &l->slots[layer];
    head_bytes b = bytes_of(l->kind, slot->head_dim);
    const uint8_t *k = data + slot->at[l->kind] + b.all * (size_t)head;
    const uint8_t *v = k + b.k, *kd = v + b.v;
    return (kv_view){k, v, (const uint16_t *)kd, (const uint16_t *)(kd + b.scales), 0};
}

kv_view kv_at(const kv_cache *c, size_t page, int layer, int head) {
    const kv_table *t = &c->tables[c->layout.slots[layer].table];
    kv_view view = view_of(&c->layout, t->pages[page]->data, layer, head);
    if (page + 1 < t->n_pages && t->pages[page + 1])
        view.next = t->pages[page + 1]->data - t->pages[page]->data;
    return view;
}

/* 32 values to int8 and a scale, as q8_0. */
static float quantize_block(const float *x, int8_t *q, uint16_t *scale) {
    float max = 0;
    for (int i = 0; i < BLOCK; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    float d = max / 127.0f, inverse = d > 0 ? 1.0f / d : 0.0f;
    for (int i = 0; i < BLOCK; i++)
        q[i] = (int8_t)lrintf(x[i] * inverse);
    *scale = f32_to_f16(d);
    return d;
}

static void write_q8(const kv_view *v, int head_dim, size_t at, const float *key,
                     const float *value) {
    int blocks = head_dim / BLOCK;
    int8_t q[BLOCK];
    for (int b = 0; b < blocks; b++) {
        quantize_block(key + b * BLOCK, q, (uint16_t *)v->kd + b * PAGE + at);
        for (int i = 0; i < BLOCK; i++)
            ((int8_t *)v->k)[(size_t)(b * BLOCK + i) * PAGE + at] = q[i];
        quantize_block(value + b * BLOCK, (int8_t *)v->v + at * round_up(head_dim, 16) + b * BLOCK,
                       (uint16_t *)v->vd + at * blocks + b);
    }
}

void kv_write(const kv_cache *c, const kernels *kernels, size_t position, int layer, int head,
              const float *k, const float *v) {
    kv_view view = kv_at(c, position / PAGE, layer, head);
    size_t at = position % PAGE, head_dim = (size_t)c->layout.slots[layer].head_dim;
    size_t padded = round_up(head_dim, 16);
    if (c->layout.kind == KV_F32) {
        for (size_t d = 0; d < head_dim; d++)
            ((float *)view.k)[d * PAGE + at] = k[d];
        memcpy((float *)view.v + at * padded, v, head_dim * sizeof(float));
    } else if (c->layout.kind == KV_F16) {
        uint16_t half[512];
        kernels->to_f16(half, k, head_dim);
        for (size_t d = 0; d < head_dim; d++)
            ((uint16_t *)view.k)[d * PAGE + at] = half[d];
        kernels->to_f16((uint16_t *)view.v + at * padded, v, head_dim);
    } else {
        write_q8(&view, (int)head_dim, at, k, v);
    }
}

void kv_read(const kv_cache *c, size_t position, int layer, int head, float *k, float *v) {
    kv_view view = kv_at(c, position / PAGE, layer, head);
    size_t at = position % PAGE, head_dim = (size_t)c->layout.slots[layer].head_dim;
    size_t padded = round_up(head_dim, 16), blocks = head_dim / BLOCK;
    const float *k32 = view.k, *v32 = (const float *)view.v + at * padded;
    const uint16_t *k16 = view.k, *v16 = (const uint16_t *)view.v + at * padded;
    const int8_t *k8 = view.k, *v8 = (const int8_t *)view.v + at * padded;
    for (size_t d = 0; d < head_dim; d++) {
        size_t key = d * PAGE + at;
        if (c->layout.kind == KV_F32)
            k[d] = k32[key], v[d] = v32[d];
        else if (c->layout.kind == KV_F16)
            k[d] = f16_to_f32(k16[key]), v[d] = f16_to_f32(v16[d]);
        else
            k[d] = f16_to_f32(view.kd[d / BLOCK * PAGE + at]) * (float)k8[key],
            v[d] = f16_to_f32(view.vd[at * blocks + d / BLOCK]) * (float)v8[d];
    }
}

/* ---- as saved ----------------------------------------------------------------------------- */

size_t kv_packed_bytes(const kv_layout *l, int layer) {
    size_t d = (size_t)l->slots[layer].head_dim;
    return l->kind == KV_F32 ? 8 * d : l->kind == KV_F16 ? 4 * d : 2 * d + d / BLOCK * 4;
}

/* Elements of a page that is stored one dimension after the other, [dims][64], and of one that
 * is stored one position after the other with `stride` elements each, between the page and
 * [n][dims]. */
static uint8_t *copy_across(uint8_t *page, uint8_t *packed, size_t n, size_t dims, size_t size,
                            bool pack) {
    for (size_t at = 0; at < n; at++)
        for (size_t d = 0; d < dims; d++, packed += size) {
            uint8_t *in_page = page + (d * PAGE + at) * size;
            memcpy(pack ? packed : in_page, pack ? in_page : packed, size);
        }
    return packed;
}

static uint8_t *copy_along(uint8_t *page, uint8_t *packed, size_t n, size_t dims, size_t stride,
                           size_t size, bool pack) {
    for (size_t at = 0; at < n; at++, packed += dims * size) {
        uint8_t *in_page = page + at * stride * size;
        memcpy(pack ? packed : in_page, pack ? in_page : packed, dims * size);
    }
    return packed;
}

static void copy_head(const kv_layout *l, const uint8_t *page, int layer, int head, size_t n,
                      uint8_t *packed, bool pack) {
    kv_view v = view_of(l, page, layer, head);
    size_t d = (size_t)l->slots[layer].head_dim, blocks = d / BLOCK, size = element_bytes(l->kind);
    packed = copy_across((uint8_t *)v.k, packed, n, d, size, pack);
    packed = copy_along((uint8_t *)v.v, packed, n, d, round_up(d, 16), size, pack);
    if (l->kind != KV_Q8_0) return;
    packed = copy_across((uint8_t *)v.kd, packed, n, blocks, 2, pack);
    copy_along((uint8_t *)v.vd, packed, n, blocks, blocks, 2, pack);
}

void kv_pack(const kv_layout *l, const uint8_t *page, int layer, int head, size_t n, uint8_t *out) {
    copy_head(l, page, layer, head, n, out, true);
}

void kv_unpack(const kv_layout *l, uint8_t *page, int layer, int head, size_t n,
               const uint8_t *in) {
    copy_head(l, page, layer, head, n, (uint8_t *)in, false);
}
