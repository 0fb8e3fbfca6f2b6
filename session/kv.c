#include "kv.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Memory that the pages of one cache are cut from, in huge pages: reading all keys and values of a
 * deep session would miss the TLB every few hundred nanoseconds otherwise. Only what was written to
 * is resident. It goes with its last page, whoever holds that. */
struct kv_slab {
    atomic_size_t owners; /* pages, and the cache that cuts from it */
    void *map;
    size_t map_bytes, used, pages; /* pages: how many fit */
    uint8_t *first;
};

struct kv_page {
    _Alignas(64) atomic_size_t owners;
    kv_slab *slab; /* NULL: a page of its own */
    _Alignas(64) uint8_t data[];
};

enum {
    HUGE_PAGE = 1 << 21,
    SLAB = 32 << 20,      /* bytes, or a few pages */
    SMALL_PAGE = 1 << 17, /* below it slabs are not worth it */
};

static kv_slab *slab_new(size_t page_bytes) {
    kv_slab *s = malloc(sizeof *s);
    if (!s) return NULL;
    size_t pages = max_size(SLAB / page_bytes, 4);
    *s =
        (kv_slab){.pages = pages, .map_bytes = round_up(pages * page_bytes, HUGE_PAGE) + HUGE_PAGE};
    s->map = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->map == MAP_FAILED) {
        free(s);
        return NULL;
    }
    s->first = (uint8_t *)s->map + (HUGE_PAGE - (uintptr_t)s->map % HUGE_PAGE) % HUGE_PAGE;
    madvise(s->map, s->map_bytes, MADV_HUGEPAGE);
    atomic_init(&s->owners, 1);
    return s;
}

static void slab_release(kv_slab *s) {
    if (!s || atomic_fetch_sub(&s->owners, 1) > 1) return;
    munmap(s->map, s->map_bytes);
    free(s);
}

/* Uninitialized memory for a page. */
static kv_page *page_memory(kv_cache *c) {
    size_t bytes = c->layout.page_bytes;
    kv_page *p;
    if (bytes < SMALL_PAGE) {
        if ((p = aligned_alloc(64, bytes))) p->slab = NULL;
        return p;
    }
    if (!c->slab || c->slab->used == c->slab->pages) {
        kv_slab *fresh = slab_new(bytes);
        if (!fresh) return NULL;
        slab_release(c->slab);
        c->slab = fresh;
    }
    p = (kv_page *)(void *)(c->slab->first + c->slab->used++ * bytes);
    p->slab = c->slab;
    atomic_fetch_add(&c->slab->owners, 1);
    return p;
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
        size_t at = 0;
        for (int i = 0; i < layers; i++) {
            slots[i].at[kind] = at;
            at += bytes_of((kv_kind)kind, slots[i].head_dim).all * (size_t)slots[i].heads;
        }
    }
}

kv_layout kv_layout_of(kv_kind kind, const kv_slot *slots, int layers) {
    kv_layout l = {.kind = kind, .layers = layers, .slots = slots};
    if (!layers) return l;
    const kv_slot *last = &slots[layers - 1];
    l.page_bytes =
        sizeof(kv_page) + last->at[kind] + bytes_of(kind, last->head_dim).all * (size_t)last->heads;
    return l;
}

static void release(kv_cache *c, size_t i) {
    kv_page *p = c->pages[i];
    if (!p) return;
    c->pages[i] = NULL;
    c->held--;
    if (atomic_fetch_sub(&p->owners, 1) > 1) return;
    if (p->slab)
        slab_release(p->slab);
    else
        free(p);
}

/* A writable page: fresh and zero, or a copy of `from`. */
static kv_page *page_new(kv_cache *c, const kv_page *from) {
    kv_page *p = page_memory(c);
    if (!p) return NULL;
    size_t bytes = c->layout.page_bytes - sizeof *p;
    if (from)
        memcpy(p->data, from->data, bytes);
    else if (!p->slab) /* a slab's memory is zero, and is used once */
        memset(p->data, 0, bytes);
    atomic_init(&p->owners, 1);
    return p;
}

linnet_status kv_reserve(kv_cache *c, size_t from, size_t to, linnet_error *err) {
    if (!c->layout.layers || from >= to) return LINNET_OK;
    size_t need = round_up(to, PAGE) / PAGE;
    if (need > c->cap) {
        size_t cap = max_size(need, c->cap * 2);
        kv_page **pages = realloc(c->pages, cap * sizeof *pages);
        if (!pages) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu KV pages", cap);
        c->pages = pages;
        c->cap = cap;
    }
    while (c->n_pages < need)
        c->pages[c->n_pages++] = NULL;
    for (size_t i = from / PAGE; i < need; i++) {
        kv_page *p = c->pages[i];
        if (p && atomic_load(&p->owners) == 1) continue;
        kv_page *fresh = page_new(c, p);
        if (!fresh)
            return fail(err, LINNET_ERR_MEMORY,
                        "no memory for a KV page of %zu bytes (%zu pages held)",
                        c->layout.page_bytes, c->held);
        release(c, i);
        c->pages[i] = fresh;
        c->held++;
    }
    return LINNET_OK;
}

void kv_truncate(kv_cache *c, size_t n) {
    size_t keep = round_up(n, PAGE) / PAGE;
    while (c->n_pages > keep)
        release(c, --c->n_pages);
}

void kv_drop_before(kv_cache *c, size_t keep, size_t n) {
    size_t first = round_up(keep, PAGE) / PAGE;
    for (size_t i = min_size(n / PAGE, c->n_pages); i-- > first && c->pages[i];)
        release(c, i);
}

linnet_status kv_fork(const kv_cache *c, kv_cache *out, linnet_error *err) {
    out->layout = c->layout;
    if (!c->n_pages) return LINNET_OK;
    out->pages = malloc(c->n_pages * sizeof *out->pages);
    if (!out->pages) return fail(err, LINNET_ERR_MEMORY, "no memory for %zu KV pages", c->n_pages);
    out->n_pages = out->cap = c->n_pages;
    out->held = c->held;
    for (size_t i = 0; i < c->n_pages; i++) {
        out->pages[i] = c->pages[i];
        if (c->pages[i]) atomic_fetch_add(&c->pages[i]->owners, 1);
    }
    return LINNET_OK;
}

void kv_free(kv_cache *c) {
    kv_truncate(c, 0);
    slab_release(c->slab);
    c->slab = NULL;
    free(c->pages);
    c->pages = NULL;
    c->cap = 0;
}

kv_view kv_at(const kv_cache *c, size_t page, int layer, int head) {
    kv_kind kind = c->layout.kind;
    const kv_slot *slot = &c->layout.slots[layer];
    head_bytes b = bytes_of(kind, slot->head_dim);
    const uint8_t *k = c->pages[page]->data + slot->at[kind] + b.all * (size_t)head;
    const uint8_t *v = k + b.k, *kd = v + b.v;
    bool more = page + 1 < c->n_pages && c->pages[page + 1];
    ptrdiff_t next = more ? (uint8_t *)c->pages[page + 1] - (uint8_t *)c->pages[page] : 0;
    return (kv_view){k, v, (const uint16_t *)kd, (const uint16_t *)(kd + b.scales), next};
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

static void copy_head(const kv_cache *c, size_t page, int layer, int head, size_t n,
                      uint8_t *packed, bool pack) {
    kv_view v = kv_at(c, page, layer, head);
    size_t d = (size_t)c->layout.slots[layer].head_dim, blocks = d / BLOCK;
    size_t size = element_bytes(c->layout.kind);
    packed = copy_across((uint8_t *)v.k, packed, n, d, size, pack);
    packed = copy_along((uint8_t *)v.v, packed, n, d, round_up(d, 16), size, pack);
    if (c->layout.kind != KV_Q8_0) return;
    packed = copy_across((uint8_t *)v.kd, packed, n, blocks, 2, pack);
    copy_along((uint8_t *)v.vd, packed, n, blocks, blocks, 2, pack);
}

void kv_pack(const kv_cache *c, size_t page, int layer, int head, size_t n, uint8_t *out) {
    copy_head(c, page, layer, head, n, out, true);
}

void kv_unpack(const kv_cache *c, size_t page, int layer, int head, size_t n, const uint8_t *in) {
    copy_head(c, page, layer, head, n, (uint8_t *)in, false);
}
