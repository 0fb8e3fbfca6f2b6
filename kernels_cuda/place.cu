/* Queries and keys: their norms, their rotation by positions, and the keys' and values' place in
 * the session's pages.
 *
 * Traffic: q, k and v once, q and k back, k and v to the pages. Keys lie across positions there, so
 * a row's key goes out in pieces of one number; rows of a piece meet in the L2 cache, and memory
 * sees whole lines. */
#include "rope.h"

enum { PLACE_WARPS = 4 };

/* A warp per head of a row, its queries, then its keys; with norms of whole rows a block has them
 * all. */
__global__ void place(placing l, kv_place_of_layer kv, bool keeps, const cuda_row *rows, float *q,
                      float *key) {
    DYNAMIC_SHARED(float, heads); /* [PLACE_WARPS][head_dim] normalized */
    int n_heads = l.heads.n_heads, n_kv = l.heads.n_kv_heads, d = l.heads.head_dim;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *head = heads + (size_t)warp * d;
    size_t r = blockIdx.y;
    wait_for_previous();
    float q_scale = l.q_whole ? scale_of_queries(l, r) : 0;
    float k_scale = l.k_whole ? scale_of_keys(l, r) : 0;
    const cuda_row &row = rows[r];
    for (int h = blockIdx.x * PLACE_WARPS + warp; h < n_heads + n_kv;
         h += gridDim.x * PLACE_WARPS) {
        if (h < n_heads) {
            normalize_query(l, r, h, q_scale, head);
            float *out = q + (r * n_heads + h) * d;
            for (int i = lane; i < d; i += 32)
                out[i] = rotated(l, r, head, i);
            continue;
        }
        size_t at = (r * n_kv + (h - n_heads)) * d;
        normalize_key(l, r, h - n_heads, k_scale, head);
        uint8_t *page = keeps ? kv_head(kv, row, row.position, h - n_heads) : NULL;
        for (int i = lane; i < d; i += 32) {
            float turned = rotated(l, r, head, i);
            key[at + i] = turned;
            if (keeps) keep(kv, page, row.position % PAGE, i, turned, l.value[at + i]);
        }
    }
}

void cuda_place(const cuda_pass *p, int layer, const softmax_weights *norms) {
    placing l = placing_of(p, layer, norms);
    bool keeps = p->m->layers[layer].kv_slot >= 0;
    unsigned blocks =
        (unsigned)(l.heads.n_heads + l.heads.n_kv_heads + PLACE_WARPS - 1) / PLACE_WARPS;
    launch_overlapped(
        p->stream, dim3(l.q_whole || l.k_whole ? 1 : blocks, (unsigned)p->n),
        dim3(32 * PLACE_WARPS), PLACE_WARPS * (size_t)l.heads.head_dim * sizeof(float), place, l,
        keeps ? kv_places(p, layer) : kv_place_of_layer{}, keeps, p->rows, p->q, p->key);
}
