/* KV pages as kernels see them. The layout is the CPU's (kernels.h, kv_view), so that a page saved
 * by one backend is a page of the other: per head K transposed [head_dim][64], then V [64]
 * [head_dim padded to 16]; with q8_0 then f16 scales of K [head_dim/32][64] and of V [64]
 * [head_dim/32]. */
#ifndef CUDA_KV_H
#define CUDA_KV_H

#include "pass.h"

/* Where a layer's heads lie in a page. */
typedef struct {
    kv_kind kind;
    kv_table_id table;
    int head_dim, padded;
    size_t at, head_bytes;     /* of the first head; from one to the next */
    size_t v_at, kd_at, vd_at; /* in a head */
} kv_place_of_layer;

static inline kv_place_of_layer kv_places(const cuda_pass *p, int layer) {
    const kv_layout *l = &p->host_rows[0].session->kv.layout;
    const kv_slot *slot = &l->slots[p->m->layers[layer].kv_slot];
    kv_place_of_layer k = {};
    size_t size = l->kind == KV_F32 ? 4 : l->kind == KV_F16 ? 2 : 1, d = (size_t)slot->head_dim;
    size_t scales = l->kind == KV_Q8_0 ? d / BLOCK * PAGE * 2 : 0;
    k.kind = l->kind;
    k.table = slot->table;
    k.head_dim = slot->head_dim;
    k.padded = (int)round_up(d, 16);
    k.at = slot->at[l->kind];
    k.v_at = d * PAGE * size;
    k.kd_at = k.v_at + (size_t)k.padded * PAGE * size;
    k.vd_at = k.kd_at + scales;
    k.head_bytes = round_up(k.vd_at + scales, 64);
    return k;
}

/* A head of the page that holds `position`. */
DEVICE uint8_t *kv_head(const kv_place_of_layer &k, const cuda_row &row, int position, int head) {
    return row.pages[k.table][position / PAGE] + k.at + k.head_bytes * (size_t)head;
}

/* Number d of the key, or of the value, at place `at` (position % 64) of a head. */
template <kv_kind KIND>
DEVICE float kv_key(const kv_place_of_layer &k, const uint8_t *head, int at, int d) {
    size_t i = (size_t)d * PAGE + at;
    if (KIND == KV_F32) return ((const float *)head)[i];
    if (KIND == KV_F16) return f16_to_float(((const uint16_t *)head)[i]);
    return f16_to_float(((const uint16_t *)(head + k.kd_at))[d / BLOCK * PAGE + at]) *
           (float)((const int8_t *)head)[i];
}

template <kv_kind KIND>
DEVICE float kv_value(const kv_place_of_layer &k, const uint8_t *head, int at, int d) {
    const uint8_t *v = head + k.v_at;
    size_t i = (size_t)at * k.padded + d;
    if (KIND == KV_F32) return ((const float *)v)[i];
    if (KIND == KV_F16) return f16_to_float(((const uint16_t *)v)[i]);
    return f16_to_float(
               ((const uint16_t *)(head + k.vd_at))[at * (k.head_dim / BLOCK) + d / BLOCK]) *
           (float)((const int8_t *)v)[i];
}

#endif
