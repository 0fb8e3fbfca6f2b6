/* The steps that mixers are built from: norms, products, the feed-forward, embeddings, logits.
 *
 * Few rows (decoding): the norm is part of the products' kernel, so that a softmax layer has four
 * launches here: q, k, v; o; gate, up and activation; down. Many rows: one launch normalizes (to
 * f16 for tensor cores), one multiplies; the activation is part of the second or, after cuBLASLt,
 * a third.
 */
#include "products.h"

#include <string.h>

/* ---- Rows of activations ------------------------------------------------------------------ */

/* What no norm has bounded, as tensor cores read it. */
static const float UNBOUNDED_SCALE = 16;

static size_t packed_width(size_t cols) {
    return round_up(cols, PACKED_STEP);
}

/* p->packed has what matrices read, then the feed-forward's activations, then cuBLASLt's room. */
static packed_rows packed_input(const cuda_pass *p, size_t cols, float scale) {
    return {(uint16_t *)p->packed, packed_width(cols), scale};
}

static packed_rows packed_activated(const cuda_pass *p) {
    return {(uint16_t *)p->packed + p->n * packed_width(p->m->widest),
            packed_width((size_t)p->m->cfg.n_ff), UNBOUNDED_SCALE};
}

static void *cublas_workspace(const cuda_pass *p) {
    return (uint8_t *)p->packed + p->packed_bytes - CUBLAS_WORKSPACE;
}

size_t cuda_packed_bytes(const linnet_model *m, size_t n) {
    if (m->act == LINNET_ACT_EXACT || n <= CUDA_FEW) return 0;
    size_t width = packed_width(m->widest) + packed_width((size_t)m->cfg.n_ff);
    return round_up(n * width * sizeof(uint16_t), 256) + (n >= CUBLAS_FROM ? CUBLAS_WORKSPACE : 0);
}

/* Where normalize puts a row: floats, floats that are added to, or f16. */
typedef struct {
    float *out;
    bool add;
    packed_rows packed; /* at NULL: out */
} norm_target;

/* One block per row, rows[c] or c of x [.., d]; without w only copied. Tells where x is not finite.
 * Bound: its bytes, read from L2 the second and third time. */
__global__ void normalize(gpu_input in, size_t d, norm_target to) {
    let_next_start();
    wait_for_previous();
    size_t c = blockIdx.x, at = in.rows ? (size_t)in.rows[c] : c;
    const float *row = in.src + at * d;
    float mean = 0, scale = 1, broken = 0;
    if (in.w && in.layer_norm) {
        float sum = 0;
        for (size_t i = threadIdx.x; i < d; i += blockDim.x)
            sum += row[i];
        mean = block_sum(sum) / (float)d;
    }
    if (in.w || in.not_finite) {
        float squares = 0;
        for (size_t i = threadIdx.x; i < d; i += blockDim.x) {
            float x = row[i] - mean;
            squares = fmaf(x, x, squares);
            broken += 0.0f * row[i];
        }
        if (in.w) scale = 1.0f / sqrtf(block_sum(squares) / (float)d + in.eps);
        if (in.not_finite && broken != 0) atomicMin(in.not_finite, in.place | at);
    }
    size_t end = to.packed.at ? to.packed.ld : d;
    for (size_t i = threadIdx.x; i < end; i += blockDim.x) {
        float y = i < d ? row[i] : 0;
        if (in.w && i < d) y = (y - mean) * scale * in.w[i] + (in.b ? in.b[i] : 0);
        if (to.packed.at)
            to.packed.at[c * end + i] = float_to_f16(y * (1 / to.packed.scale));
        else
            to.out[c * d + i] = to.add ? to.out[c * d + i] + y : y;
    }
}

static void normalize_rows(const cuda_pass *p, const gpu_input *in, size_t d, norm_target to) {
    launch_overlapped(p->stream, dim3(in->n), dim3(256), 0, normalize, *in, d, to);
}

/* x [n, n_embd], or rows[0 ... n) of it, by a norm that may be absent. `stage` < 0: not looked at
 * for numbers that are not finite. */
static gpu_input input_of(const cuda_pass *p, const float *x, const int *rows, size_t n,
                          const norm_weights *w, long stage) {
    const config *c = &p->m->cfg;
    gpu_input in = {};
    in.src = x;
    in.rows = rows;
    in.n = (unsigned)n;
    in.layer_norm = c->norm == NORM_LAYER;
    in.w = w ? on_gpu(p, w->w) : NULL;
    in.b = w ? on_gpu(p, w->b) : NULL;
    in.eps = c->norm_eps;
    in.place = stage < 0 ? 0 : (unsigned long long)stage << 32;
    in.not_finite = stage < 0 ? NULL : p->not_finite;
    return in;
}

/* ---- Products ----------------------------------------------------------------------------- */

static gpu_product product_of(const cuda_pass *p, const product *x) {
    return {on_gpu(p, x->w->data), on_gpu(p, x->w->bias), x->y, x->ldy, (unsigned)x->w->rows, 0,
            x->mode == GEMM_ADD};
}

/* The activation of results that cuBLASLt has left as floats. */
__global__ void activate(int kind, const float *gate, const float *up, size_t ff, packed_rows out) {
    size_t c = blockIdx.y, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= out.ld) return;
    float y = i < ff ? activated(kind, gate[c * ff + i], up[c * ff + i]) : 0;
    out.at[c * out.ld + i] = float_to_f16(y * (1 / out.scale));
}

__global__ void activate_exact(int kind, float *gate, const float *up, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) gate[i] = activated(kind, gate[i], up[i]);
}

/* The activation of gates and ups that lie as floats: in place, or packed. */
static void activate_floats(const cuda_pass *p, float *gate, const float *up, size_t n,
                            const packed_rows *packed) {
    size_t ff = (size_t)p->m->cfg.n_ff;
    int kind = p->m->cfg.ffn;
    if (packed)
        launch(p->stream, dim3((unsigned)((packed->ld + 63) / 64), (unsigned)n), dim3(64), 0,
               activate, kind, (const float *)gate, up, ff, *packed);
    else
        launch(p->stream, dim3((unsigned)((n * ff + 255) / 256)), dim3(256), 0, activate_exact,
               kind, gate, up, n * ff);
}

/* An input as the kernels for few rows, float32 or tensor cores read it. */
typedef struct {
    gpu_input few;
    const float *floats;
    packed_rows packed;
} product_input;

/* For many rows, the norm (or only the rows that are wanted, or the copy in f16) comes first. */
static product_input prepare(const cuda_pass *p, const gpu_input *in, size_t cols) {
    product_input x = {*in, in->src, {}};
    if (in->n <= CUDA_FEW) return x;
    if (!p->exact) {
        x.packed = packed_input(p, cols, in->w ? 1 : UNBOUNDED_SCALE);
        normalize_rows(p, in, cols, {NULL, false, x.packed});
    } else if (in->w || in->rows || in->not_finite) {
        x.floats = p->h;
        normalize_rows(p, in, cols, {p->h, false, {}});
    }
    return x;
}

/* What the feed-forward's activation has left. */
static product_input activated_input(const cuda_pass *p) {
    return {input_of(p, p->gate, NULL, p->n, NULL, -1), p->gate, packed_activated(p)};
}

/* Products of one type. With an activation the results are where activated_input says. */
static void products_of_type(const cuda_pass *p, const product_input *x, dtype type,
                             gpu_products *m) {
    size_t n = x->few.n;
    int activation = m->activation;
    if (n <= CUDA_FEW) {
        few_products(p, type, m, &x->few);
        return;
    }
    float *gate = m->of[0].y, *up = m->of[is_gated(activation) ? 1 : 0].y;
    if (p->exact) {
        m->activation = NO_ACTIVATION;
        exact_products(p, type, m, x->floats, n);
        if (activation != NO_ACTIVATION) activate_floats(p, gate, up, n, NULL);
        return;
    }
    packed_rows y = packed_activated(p);
    bool biased = false;
    for (unsigned i = 0; i < m->n; i++)
        biased = biased || m->of[i].bias;
    if (n < CUBLAS_FROM || biased ||
        !cublas_products(p, type, m, &x->packed, n, cublas_workspace(p)))
        tensor_products(p, type, m, &x->packed, n, &y);
    else if (activation != NO_ACTIVATION)
        activate_floats(p, gate, up, n, &y);
}

static gpu_products empty_products(const matrix *w, int activation) {
    gpu_products m = {};
    m.cols = (unsigned)w->cols;
    m.units = units_of(w->type, w->cols);
    m.panel_bytes = w->panel_bytes;
    m.activation = activation;
    return m;
}

/* One launch per type of matrix. */
static void multiply(const cuda_pass *p, const product_input *x, const product *products,
                     size_t n_products) {
    for (size_t i = 0; i < n_products; i++) {
        dtype type = products[i].w->type;
        bool done = false; /* with one before */
        for (size_t j = 0; j < i; j++)
            done = done || products[j].w->type == type;
        if (done) continue;
        gpu_products m = empty_products(products[i].w, NO_ACTIVATION);
        for (size_t j = i; j < n_products; j++) {
            if (products[j].w->type != type) continue;
            if (m.n == MOST_PRODUCTS) {
                products_of_type(p, x, type, &m);
                m = empty_products(products[i].w, NO_ACTIVATION);
            }
            m.of[m.n++] = product_of(p, &products[j]);
        }
        products_of_type(p, x, type, &m);
    }
}

void cuda_products(const cuda_pass *p, const float *src, size_t cols, const product *products,
                   size_t n_products) {
    gpu_input in = input_of(p, src, NULL, p->n, NULL, -1);
    product_input x = prepare(p, &in, cols);
    multiply(p, &x, products, n_products);
}

void cuda_mix_in(const cuda_pass *p, int layer, const product *products, size_t n_products) {
    gpu_input in = input_of(p, p->x, NULL, p->n, &p->m->layers[layer].attn_norm, 2 * (long)layer);
    product_input x = prepare(p, &in, (size_t)p->m->cfg.n_embd);
    multiply(p, &x, products, n_products);
}

/* x += W input, or x += norm(W input). */
static void end_branch(const cuda_pass *p, const norm_weights *post, const product_input *x,
                       const matrix *w) {
    size_t d = (size_t)p->m->cfg.n_embd;
    const product add = {w, p->x, d, GEMM_ADD}, keep = {w, p->branch, d, GEMM_STORE};
    multiply(p, x, post->w ? &keep : &add, 1);
    if (!post->w) return;
    gpu_input branch = input_of(p, p->branch, NULL, p->n, post, -1);
    normalize_rows(p, &branch, d, {p->x, true, {}});
}

void cuda_mix_out(const cuda_pass *p, int layer, const float *src, size_t cols, const matrix *w) {
    gpu_input in = input_of(p, src, NULL, p->n, NULL, -1);
    product_input x = prepare(p, &in, cols);
    end_branch(p, &p->m->layers[layer].attn_post_norm, &x, w);
}

void cuda_feed_forward(const cuda_pass *p, int layer) {
    const layer_weights *l = &p->m->layers[layer];
    const config *c = &p->m->cfg;
    size_t ff = (size_t)c->n_ff;
    bool gated = is_gated(c->ffn);
    const product gate_up[] = {{&l->w_gate, p->gate, ff, GEMM_STORE},
                               {&l->w_up, gated ? p->up : p->gate, ff, GEMM_STORE}};
    gpu_input in = input_of(p, p->x, NULL, p->n, &l->ffn_norm, 2 * (long)layer + 1);
    product_input x = prepare(p, &in, (size_t)c->n_embd), y = activated_input(p);
    if (gated && l->w_gate.type != l->w_up.type) { /* not one kernel's */
        multiply(p, &x, gate_up, 2);
        activate_floats(p, p->gate, p->up, p->n, p->n <= CUDA_FEW || p->exact ? NULL : &y.packed);
    } else {
        gpu_products m = empty_products(&l->w_up, c->ffn);
        if (gated) m.of[m.n++] = product_of(p, &gate_up[0]);
        m.of[m.n++] = product_of(p, &gate_up[1]);
        products_of_type(p, &x, l->w_up.type, &m);
    }
    end_branch(p, &l->ffn_post_norm, &y, &l->w_down);
}

void cuda_output(const cuda_pass *p) {
    const linnet_model *m = p->m;
    const product out = {&m->output, p->logits, (size_t)m->cfg.n_rows, GEMM_STORE};
    gpu_input in =
        input_of(p, p->x, p->wanted, p->n_wanted, &m->out_norm, 2 * (long)m->cfg.n_layers);
    product_input x = prepare(p, &in, (size_t)m->cfg.n_embd);
    multiply(p, &x, &out, 1);
}

/* ---- Where rows come from ----------------------------------------------------------------- */

/* x of token or position (added) r: one row of a packed matrix. A block per row. */
template <dtype T>
__global__ void gather(const uint8_t *data, size_t panel_bytes, unsigned units, unsigned cols,
                       const cuda_row *rows, bool by_position, float *x) {
    let_next_start();
    wait_for_previous();
    enum { UNIT = packed_as<T>::unit };
    unsigned r = (unsigned)(by_position ? rows[blockIdx.x].position : rows[blockIdx.x].token);
    x += (size_t)blockIdx.x * cols;
    for (unsigned u = threadIdx.x; u < units; u += blockDim.x) {
        float values[UNIT];
        unit_values<T>(load_unit<T>(data + r / PANEL * panel_bytes, r % PANEL, u, units), u,
                       values);
        for (unsigned i = 0; i < UNIT && u * UNIT + i < cols; i++)
            x[u * UNIT + i] = values[i] + (by_position ? x[u * UNIT + i] : 0);
    }
}

static void gather_rows(const cuda_pass *p, const matrix *w, bool by_position) {
#define CALL(T)                                                                                    \
    launch_overlapped(p->stream, dim3((unsigned)p->n), dim3(128), 0, gather<T>,                    \
                      (const uint8_t *)on_gpu(p, w->data), w->panel_bytes,                         \
                      units_of(w->type, w->cols), (unsigned)w->cols, p->rows, by_position, p->x)
    FOR_DTYPE(w->type, CALL)
#undef CALL
}

void cuda_embed(const cuda_pass *p) {
    const linnet_model *m = p->m;
    gather_rows(p, m->cfg.tied ? &m->output : &m->packed_embedding, false);
    if (m->positions) gather_rows(p, &m->packed_positions, true);
}

/* As transformers does it: the frequency, the angle and its cosine are each rounded to float32. */
__global__ void rope_table(const float *freq, size_t n_angles, float scale, const cuda_row *rows,
                           float *cos_out, float *sin_out) {
    let_next_start();
    wait_for_previous();
    size_t r = blockIdx.x;
    for (size_t i = threadIdx.x; i < n_angles; i += blockDim.x) {
        float angle = (float)rows[r].position * freq[i];
        cos_out[r * n_angles + i] = (float)cos((double)angle) * scale;
        sin_out[r * n_angles + i] = (float)sin((double)angle) * scale;
    }
}

void cuda_rope_table(const cuda_pass *p) {
    const config *c = &p->m->cfg;
    if (!c->n_angles) return;
    launch_overlapped(p->stream, dim3((unsigned)p->n), dim3(64), 0, rope_table, p->rope_freq,
                      c->n_angles, c->rope_scale, p->rows, p->cos, p->sin);
}
