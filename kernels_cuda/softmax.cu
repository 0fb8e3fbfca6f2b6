/* Softmax attention over KV pages (attend.h). A layer is two launches of products and, in decoding,
 * one of attention between them; in prefill queries, keys and values are placed first. */
#include "attend.h"

void cuda_attend(const cuda_pass *p, int layer, const softmax_weights *w) {
    if (p->longest_run == 1) {
        attend_few(p, layer, w);
        return;
    }
    cuda_place(p, layer, w);
    if (p->exact || !attend_many_fits(p->m, layer))
        attend_exact(p, layer);
    else
        attend_many(p, layer);
}

static void forward(const cuda_pass *p, int layer) {
    const softmax_weights *w = (const softmax_weights *)p->m->layers[layer].mixer_weights;
    const config *c = &p->m->cfg;
    const head_layout *g = &p->m->layers[layer].heads;
    size_t q = (size_t)g->n_heads * g->head_dim, kv = (size_t)g->n_kv_heads * g->head_dim;
    const product qkv[] = {
        {&w->wq, c->gated_attention ? p->work : p->q, c->gated_attention ? 2 * q : q, GEMM_STORE},
        {&w->wk, p->key, kv, GEMM_STORE},
        {&w->wv, p->value, kv, GEMM_STORE}};
    cuda_mix_in(p, layer, qkv, 3);
    cuda_attend(p, layer, w);
    cuda_mix_out(p, layer, p->mixed, q, &w->wo);
}

static size_t partial_floats(const linnet_model *m, int layer, size_t n, size_t depth,
                             int sm_count) {
    (void)n;
    size_t many = attend_many_fits(m, layer) ? attend_many_floats(m, layer, depth, sm_count) : 0;
    return max_size(max_size(attend_few_floats(m, layer, depth, sm_count), many),
                    attend_exact_floats(m, layer, depth, sm_count));
}

extern const cuda_mixer cuda_softmax = {MIXER_SOFTMAX, forward, partial_floats, NULL};
