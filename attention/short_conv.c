/* Gated short convolution, BASED's BaseConv (Arora et al. 2024; HazyResearch/based convolution.py):
 *
 *   [a_t; g_t] = W_in x_t + b_in                       e = inner_length channels each
 *   c_t = sum_{j<K} taps_j * a_{t-K+1+j} (+ b)         per channel; a before the text is 0
 *   y_t = W_out (silu(c_t) * g_t) + b_out
 *
 * State, float32: the last K-1 inputs of the convolution, [K-1][e], oldest first. */
#include "../kernels_cpu/pass.h"
#include "weights.h"

#include <stdlib.h>
#include <string.h>

enum { CHANNELS = 128 /* that a thread takes at once */ };

static linnet_status load(loader *l, int layer, void **weights, linnet_error *err) {
    if (!*weights && !(*weights = calloc(1, sizeof(conv_weights))))
        return fail(err, LINNET_ERR_MEMORY, "no memory for layer %d", layer);
    conv_weights *w = *weights;
    const gguf *g = l->model->file;
    int64_t kernel = 0, inner = 0;
    linnet_status s;
    if ((s = gguf_get_int(g, "linnet.shortconv.l_cache", true, 1, CONV_MAX_TAPS, &kernel, err)) ||
        (s = gguf_get_int(g, "linnet.shortconv.inner_length", true, 1, MAX_DIM, &inner, err)))
        return s;
    size_t d = (size_t)l->model->cfg.n_embd, e = w->inner = (size_t)inner;
    w->kernel = (size_t)kernel;
    if ((s = load_matrix(l, layer, "shortconv.in_proj.weight", 2 * e, 0, 2 * e, d, &w->w_in,
                         err)) ||
        (s = load_vector(l, layer, "shortconv.in_proj.bias", true, 2 * e, 0, 2 * e, &w->w_in.bias,
                         err)) ||
        (s = load_taps(l, layer, "shortconv.conv.weight", w->kernel, e, &w->taps, err)) ||
        (s = load_vector(l, layer, "shortconv.conv.bias", true, e, 0, e, &w->bias, err)) ||
        (s = load_matrix(l, layer, "shortconv.out_proj.weight", d, 0, d, e, &w->w_out, err)))
        return s;
    return load_vector(l, layer, "shortconv.out_proj.bias", true, d, 0, d, &w->w_out.bias, err);
}

static size_t state_bytes(const linnet_model *m, const void *weights) {
    (void)m;
    const conv_weights *w = weights;
    return (w->kernel - 1) * w->inner * sizeof(float);
}

static size_t work_floats(const linnet_model *m, const void *weights) {
    (void)m;
    return 3 * ((const conv_weights *)weights)->inner;
}

/* Input of the convolution `at` - past tokens after row `first`: of the state or of a row. */
static const float *input_at(const conv_weights *w, const float *state, const float *z,
                             size_t first, size_t at) {
    size_t past = w->kernel - 1;
    return at < past ? state + at * w->inner : z + (first + at - past) * 2 * w->inner;
}

/* Channels [from, to) of rows [first, last) of one session: z [rows][a | g] to out [rows][e]. */
static void convolve(const pass *p, const conv_weights *w, int layer, size_t first, size_t last,
                     size_t from, size_t to, const float *z, float *out) {
    size_t e = w->inner, past = w->kernel - 1;
    float *state = past ? row_state(p, first, layer) : NULL;
    const float *x[CONV_MAX_TAPS];
    for (size_t r = first; r < last; r++) {
        float *c = out + r * e;
        for (size_t j = 0; j <= past; j++)
            x[j] = input_at(w, state, z, first, r - first + j);
        p->k->short_conv(c, x, w->taps, w->bias, e, w->kernel, from, to, false);
        p->k->silu_mul(c + from, z + r * 2 * e + e + from, to - from);
    }
    for (size_t j = 0; j < past; j++) { /* rows of the state move up, or come from z */
        const float *a = input_at(w, state, z, first, last - first + j);
        memmove(state + j * e + from, a + from, (to - from) * sizeof *a);
    }
}

static void forward(pass *p, int layer, int thread) {
    const conv_weights *w = p->m->layers[layer].mixer_weights;
    size_t e = w->inner, blocks = (e + CHANNELS - 1) / CHANNELS;
    float *z = p->work, *out = z + p->n * 2 * e;
    const product in = {&w->w_in, z, 2 * e, GEMM_STORE};
    pass_mix_in(p, thread, layer, &in, 1);
    for (phase ph = phase_begin(p->team, thread, p->n_runs * blocks); phase_next(&ph);)
        for (size_t u = ph.from; u < ph.to; u++) {
            size_t run = u / blocks, from = u % blocks * CHANNELS;
            convolve(p, w, layer, p->runs[run], p->runs[run + 1], from,
                     min_size(from + CHANNELS, e), z, out);
        }
    pass_mix_out(p, thread, layer, out, e, &w->w_out);
}

const mixer_ops mixer_short_conv = {
    .kind = MIXER_SHORT_CONV,
    .name = "short_conv",
    .load = load,
    .state_bytes = state_bytes,
    .work_floats = work_floats,
    .forward = forward,
};
