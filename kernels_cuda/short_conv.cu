/* BASED's gated short convolution (attention/short_conv.c). */
#include "pass.h"

typedef struct {
    int channels, past; /* e, taps but one */
    const float *taps, *bias;
    size_t state_at;
} short_conv_layer;

/* Input of the convolution `at` - past tokens after row `first`: of the state or of a row. */
DEVICE float input_at(const short_conv_layer &l, const float *state, const float *z, size_t first,
                      int at, int c) {
    return at < l.past ? state[(size_t)at * l.channels + c]
                       : z[(first + at - l.past) * 2 * l.channels + c];
}

/* A thread has one channel of `tile` rows of a run: z [n][a | g] to out [n][e]. The tile is at
 * least `past` long, so only the thread of the run's first tile reads the state of its channel, and
 * it alone writes it, from rows of z or, in order, from later places of the state. Traffic: z and
 * the state once from memory (rows that taps share come from L1), out once. */
__global__ void short_conv(short_conv_layer l, int tile, const cuda_row *rows, const cuda_run *runs,
                           const float *z, float *out) {
    int c = (int)(blockIdx.x * blockDim.x + threadIdx.x), past = l.past;
    size_t e = (size_t)l.channels;
    cuda_run run = runs[blockIdx.z];
    int n = run.last - run.first, from = (int)blockIdx.y * tile, to = min(n, from + tile);
    size_t first = (size_t)run.first;
    if (c >= l.channels || from >= n) return;
    float *state = past ? (float *)(void *)(rows[first].state + l.state_at) : NULL;
    float bias = l.bias ? l.bias[c] : 0;
    for (int t = from; t < to; t++) {
        float sum = 0, gate = z[(first + t) * 2 * e + e + c];
        for (int j = 0; j <= past; j++)
            sum += l.taps[j * e + c] * input_at(l, state, z, first, t + j, c);
        sum += bias;
        out[(first + t) * e + c] = sum / (1 + expf(-sum)) * gate;
    }
    if (from) return;
    for (int j = 0; j < past; j++)
        state[j * e + c] = input_at(l, state, z, first, n + j, c);
}

static void forward(const cuda_pass *p, int layer) {
    const conv_weights *w = (const conv_weights *)p->m->layers[layer].mixer_weights;
    size_t e = w->inner;
    float *z = p->work, *out = z + p->n * 2 * e;
    const product in = {&w->w_in, z, 2 * e, GEMM_STORE};
    cuda_mix_in(p, layer, &in, 1);
    short_conv_layer l = {(int)e, (int)w->kernel - 1, on_gpu(p, w->taps), on_gpu(p, w->bias),
                          p->m->layers[layer].state_at};
    size_t tile = max_size(16, w->kernel - 1);
    dim3 grid((unsigned)((e + 127) / 128), (unsigned)((p->longest_run + tile - 1) / tile),
              (unsigned)p->n_runs);
    launch(p->stream, grid, dim3(128), 0, short_conv, l, (int)tile, p->rows, p->runs,
           (const float *)z, out);
    cuda_mix_out(p, layer, out, e, &w->w_out);
}

extern const cuda_mixer cuda_short_conv = {MIXER_SHORT_CONV, forward, NULL, NULL};
