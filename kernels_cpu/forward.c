/* The CPU's forward pass: pieces of at most PIECE rows (tokens of any sessions), layer by layer,
 * then the logits that were asked for. Adding a mixer does not touch this file. */
#include "../session/pieces.h"
#include "pass.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Scratch ------------------------------------------------------------------------------------
 */

struct scratch {
    size_t rows, partials; /* what the buffers are large enough for */
    int threads;
    void *memory;
    size_t bytes;
    pass pass; /* its pointers point into memory */
    float *logits;
};

/* Lays the buffers of `p` out from `base` (NULL: only adds up) and returns their bytes. */
static size_t lay_out(const linnet_model *m, size_t rows, size_t partials, int threads, pass *p,
                      uint8_t *base) {
    const config *c = &m->cfg;
    size_t q = m->most.q, kv = m->most.kv;
    size_t widest = round_up(m->widest, BLOCK);
    size_t used = 0;
#define TAKE(field, count)                                                                         \
    do {                                                                                           \
        if (base) p->field = (void *)(base + used);                                                \
        used += round_up((count) * sizeof *p->field, 64);                                          \
    } while (0)
    TAKE(x, rows * c->n_embd);
    TAKE(q, rows * q);
    TAKE(key, rows * kv);
    TAKE(value, rows * kv);
    TAKE(mixed, rows * q);
    TAKE(gate, rows * c->n_ff);
    TAKE(up, c->ffn != FFN_GELU ? rows * c->n_ff : 0);
    TAKE(branch, m->post_norms ? rows * c->n_embd : 0);
    TAKE(work, rows * m->work_floats);
    TAKE(norm_row, (size_t)threads * c->n_embd);
    TAKE(cos, rows * c->n_angles);
    TAKE(sin, rows * c->n_angles);
    TAKE(back, c->trained_length ? 4 * rows * c->n_angles : 0);
    TAKE(attend_out, partials * round_up(m->most.head_dim, 16));
    TAKE(attend_sums, partials);
    TAKE(input.f, rows * widest);
    if (m->act == LINNET_ACT_Q8) TAKE(input.rounded, rows * widest);
    if (m->act != LINNET_ACT_EXACT) {
        TAKE(input.q, rows * widest);
        TAKE(input.scale, rows * widest / BLOCK);
        TAKE(input.scaled_sum, rows * widest / BLOCK);
        TAKE(input.sum, rows * widest / BLOCK * 2);
        TAKE(input.wide, rows * widest / BLOCK);
    }
    TAKE(logits, min_size(rows, LOGITS_PIECE) * c->n_rows);
#undef TAKE
    return used;
}

/* A model opened for its metadata alone has no team: it answers for the default one. */
static int threads_of(const linnet_model *m) {
    return m->team ? team_size(m->team) : team_default_size();
}

/* Partial attention results that `n` rows up to position `last` need, and whether to split. */
static size_t partials_of(const linnet_model *m, int team, size_t n, size_t last, bool *split) {
    size_t threads = (size_t)team;
    size_t units = (n + ATTEND_ROWS - 1) / ATTEND_ROWS * m->most.kv_heads;
    *split = units < 4 * threads && n <= 4 * threads;
    if (*split) return n * m->most.heads * (last / ATTEND_SEGMENT + 1);
    return threads * 2 * ATTEND_TILE;
}

static linnet_status scratch_fit(linnet_model *m, size_t rows, size_t partials, linnet_error *err) {
    scratch *s = m->scratch;
    if (s && s->rows >= rows && s->partials >= partials) return LINNET_OK;
    if (s) rows = max_size(rows, s->rows), partials = max_size(partials, s->partials);
    int threads = team_size(m->team);
    size_t bytes = lay_out(m, rows, partials, threads, NULL, NULL);
    scratch *fresh = calloc(1, sizeof *fresh);
    void *memory = fresh ? aligned_alloc(64, round_up(bytes, 64)) : NULL;
    if (!memory) {
        free(fresh);
        return fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes of activations (%zu rows)",
                    bytes, rows);
    }
    *fresh = (scratch){.rows = rows, .partials = partials, .memory = memory, .bytes = bytes};
    lay_out(m, rows, partials, threads, &fresh->pass, memory);
    scratch_free(s);
    m->scratch = fresh;
    return LINNET_OK;
}

void scratch_free(scratch *s) {
    if (s) free(s->memory);
    free(s);
}

uint64_t forward_activation_bytes(const linnet_model *m, size_t rows) {
    bool split;
    int threads = threads_of(m);
    size_t partials = partials_of(m, threads, rows, rows, &split);
    return lay_out(m, rows, partials, threads, NULL, NULL);
}

/* ---- Steps --------------------------------------------------------------------------------------
 */

/* What the products' matrices want to read, for row c from `src`, blocks [b0, b1). */
static void quantize_row_blocks(pass *p, const activations *a, size_t c, const float *src,
                                size_t b0, size_t b1) {
    p->k->quantize(a, c, src, b0, b1, p->m->act == LINNET_ACT_Q8);
}

static activations input_for(const pass *p, size_t n_rows, size_t cols, const product *products,
                             size_t n) {
    activations a = p->input;
    bool f = false, rounded = false, q = false;
    a.n = n_rows;
    a.cols = cols;
    for (size_t i = 0; i < n; i++) {
        dtype type = products[i].w->type;
        bool bf16 = type == DTYPE_BF16 && p->m->act == LINNET_ACT_Q8;
        bool exact = !bf16 && (is_float_type(type) || p->m->act == LINNET_ACT_EXACT);
        f = f || exact;
        rounded = rounded || bf16;
        q = q || !(exact || bf16);
    }
    if (!f) a.f = NULL;
    if (!rounded) a.rounded = NULL;
    if (!q) a.q = NULL;
    return a;
}

static size_t panels_of(const product *x) {
    return (x->w->rows + PANEL - 1) / PANEL;
}

/* One phase over the panels of all products, as if they stood below each other. */
static void multiply(pass *p, int thread, const activations *a, const product *products, size_t n) {
    size_t total = 0;
    for (size_t i = 0; i < n; i++)
        total += panels_of(&products[i]);
    for (phase ph = phase_begin(p->team, thread, total); phase_next(&ph);) {
        size_t at = 0; /* panels before product i */
        for (size_t i = 0; i < n; at += panels_of(&products[i++])) {
            const product *x = &products[i];
            size_t from = max_size(ph.from, at), to = min_size(ph.to, at + panels_of(x));
            if (from < to) p->k->gemm(x->w, from - at, to - at, a, x->y, x->ldy, x->mode);
        }
    }
}

/* A phase over blocks of 32 columns of [n, cols] rows: calls body with row `r` and blocks [b, b +
 * run). */
#define FOR_BLOCKS(cols, r, b, run, body)                                                          \
    do {                                                                                           \
        size_t blocks = ((cols) + BLOCK - 1) / BLOCK;                                              \
        for (phase ph = phase_begin(p->team, thread, p->n * blocks); phase_next(&ph);)             \
            for (size_t run; ph.from < ph.to; ph.from += run) {                                    \
                size_t r = ph.from / blocks, b = ph.from % blocks;                                 \
                run = min_size(blocks - b, ph.to - ph.from);                                       \
                body;                                                                              \
            }                                                                                      \
    } while (0)

static void normalize(const pass *p, const norm_weights *w, const float *x, float *out) {
    const config *c = &p->m->cfg;
    if (c->norm == NORM_RMS)
        p->k->rms_norm(out, x, w->w, (size_t)c->n_embd, c->norm_eps);
    else
        p->k->layer_norm(out, x, w->w, w->b, (size_t)c->n_embd, c->norm_eps);
}

static bool all_finite(const float *x, size_t n) {
    float sums[16] = {0}, sum = 0; /* 0 * x is NaN for NaN and infinity */
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++)
            sums[j] += 0.0f * x[i + j];
    for (; i < n; i++)
        sum += 0.0f * x[i];
    for (size_t j = 0; j < 16; j++)
        sum += sums[j];
    return sum == 0;
}

/* Every branch looks at its input x [n] of row r: a layer that breaks is found where it broke, and
 * in tokens whose logits nobody wants. */
static void check_finite(pass *p, size_t stage, size_t r, const float *x, size_t n) {
    if (all_finite(x, n)) return;
    uint_fast64_t place = (uint_fast64_t)stage << 32 | r, first = atomic_load(&p->not_finite);
    while (place < first && !atomic_compare_exchange_weak(&p->not_finite, &first, place)) {
    }
}

/* Products of norm(x) of n rows, rows[i] or just i. */
static void norm_products(pass *p, int thread, size_t stage, const norm_weights *w,
                          const size_t *rows, size_t n, const product *products,
                          size_t n_products) {
    size_t d = (size_t)p->m->cfg.n_embd;
    activations a = input_for(p, n, d, products, n_products);
    float *h = p->norm_row + (size_t)thread * d;
    for (phase ph = phase_begin(p->team, thread, n); phase_next(&ph);)
        for (size_t r = ph.from; r < ph.to; r++) {
            size_t at = rows ? rows[r] : r;
            check_finite(p, stage, at, p->x + at * d, d);
            normalize(p, w, p->x + at * d, h);
            quantize_row_blocks(p, &a, r, h, 0, (d + BLOCK - 1) / BLOCK);
        }
    multiply(p, thread, &a, products, n_products);
}

/* Products of x, normalized if `w` is there. */
static void begin_branch(pass *p, int thread, size_t stage, const norm_weights *w,
                         const product *products, size_t n_products) {
    size_t d = (size_t)p->m->cfg.n_embd;
    if (w->w) {
        norm_products(p, thread, stage, w, NULL, p->n, products, n_products);
        return;
    }
    activations a = input_for(p, p->n, d, products, n_products);
    FOR_BLOCKS(d, r, b, run, {
        check_finite(p, stage, r, p->x + r * d + b * BLOCK, min_size(run * BLOCK, d - b * BLOCK));
        quantize_row_blocks(p, &a, r, p->x + r * d, b, b + run);
    });
    multiply(p, thread, &a, products, n_products);
}

/* x += W a, or x += norm(W a). */
static void end_branch(pass *p, int thread, const norm_weights *post, const activations *a,
                       const matrix *w) {
    size_t d = (size_t)p->m->cfg.n_embd;
    const product add = {w, p->x, d, GEMM_ADD}, keep = {w, p->branch, d, GEMM_STORE};
    multiply(p, thread, a, post->w ? &keep : &add, 1);
    if (!post->w) return;
    float *h = p->norm_row + (size_t)thread * d;
    for (phase ph = phase_begin(p->team, thread, p->n); phase_next(&ph);)
        for (size_t r = ph.from; r < ph.to; r++) {
            normalize(p, post, p->branch + r * d, h);
            for (size_t i = 0; i < d; i++)
                p->x[r * d + i] += h[i];
        }
}

void pass_mix_in(pass *p, int thread, int layer, const product *products, size_t n_products) {
    begin_branch(p, thread, 2 * (size_t)layer, &p->m->layers[layer].attn_norm, products,
                 n_products);
}

void pass_mix_out(pass *p, int thread, int layer, const float *src, size_t cols, const matrix *w) {
    const product out = {w, NULL, 0, GEMM_ADD};
    activations a = input_for(p, p->n, cols, &out, 1);
    FOR_BLOCKS(cols, r, b, run, quantize_row_blocks(p, &a, r, src + r * cols, b, b + run));
    end_branch(p, thread, &p->m->layers[layer].attn_post_norm, &a, w);
}

/* gate = gate (1 + erf(gate / sqrt(2))) / 2 * up: the exact gelu of PyTorch. */
static void gelu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++)
        gate[i] *= (float)(0.5 * (1.0 + erf((double)gate[i] * M_SQRT1_2))) * up[i];
}

/* gate = gate^p sigmoid(gate) * up, p = 3 / (sqrt(gate) + 1) above 0, else 1: PowLU of
 * flash-linear-attention. */
static void powlu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i], x = g <= 0 ? g : pow(g, 3 / (sqrt(g) + 1));
        gate[i] = (float)(x / (1 + exp(-g))) * up[i];
    }
}

/* Input of the down projection: the activated gate times up, or gelu(up), and its quantization,
 * block by block. */
static void activate(pass *p, const activations *a, size_t r, size_t b, size_t run) {
    const config *c = &p->m->cfg;
    size_t ff = (size_t)c->n_ff, at = r * ff + b * BLOCK, n = min_size(run * BLOCK, ff - b * BLOCK);
    switch (c->ffn) {
    case FFN_SILU_GATED:
        p->k->silu_mul(p->gate + at, p->up + at, n);
        break;
    case FFN_GELU_GATED:
        gelu_mul(p->gate + at, p->up + at, n);
        break;
    case FFN_SIGMOID_GATED:
        p->k->sigmoid_mul(p->gate + at, p->up + at, n);
        break;
    case FFN_POWLU_GATED:
        powlu_mul(p->gate + at, p->up + at, n);
        break;
    case FFN_GELU:
        p->k->gelu(p->gate + at, n);
        break;
    }
    quantize_row_blocks(p, a, r, p->gate + r * ff, b, b + run);
}

static void feed_forward(pass *p, int thread, int layer) {
    const layer_weights *l = &p->m->layers[layer];
    const config *c = &p->m->cfg;
    size_t ff = (size_t)c->n_ff, stage = 2 * (size_t)layer + 1;
    const product gated[] = {{&l->w_gate, p->gate, ff, GEMM_STORE},
                             {&l->w_up, p->up, ff, GEMM_STORE}};
    const product plain[] = {{&l->w_up, p->gate, ff, GEMM_STORE}};
    const product down = {&l->w_down, NULL, 0, GEMM_ADD};
    if (c->ffn != FFN_GELU)
        begin_branch(p, thread, stage, &l->ffn_norm, gated, 2);
    else
        begin_branch(p, thread, stage, &l->ffn_norm, plain, 1);
    activations a = input_for(p, p->n, ff, &down, 1);
    FOR_BLOCKS(ff, r, b, run, activate(p, &a, r, b, run));
    end_branch(p, thread, &l->ffn_post_norm, &a, &l->w_down);
}

/* ---- One piece ----------------------------------------------------------------------------------
 */

static linnet_status embed(linnet_model *m, const row *row, float *x, linnet_error *err) {
    size_t d = (size_t)m->cfg.n_embd;
    linnet_status s;
    if (m->cfg.tied)
        packed_row(&m->output, (size_t)row->token, x);
    else if ((s = read_row(m->file, m->embedding, (uint64_t)row->token, x, d, err)))
        return s;
    if (!m->positions) return LINNET_OK;
    float *position = m->scratch->pass.norm_row; /* idle until the layers run */
    if ((s = read_row(m->file, m->positions, (uint64_t)row->position, position, d, err))) return s;
    for (size_t i = 0; i < d; i++)
        x[i] += position[i];
    return LINNET_OK;
}

/* As transformers does it: the frequency, the angle and its cosine are each rounded to float32. */
static void rope_row(const config *c, int position, float scale, float *cos_out, float *sin_out) {
    for (size_t i = 0; i < c->n_angles; i++) {
        float angle = (float)position * c->rope_freq[i];
        cos_out[i] = (float)cos((double)angle) * scale;
        sin_out[i] = (float)sin((double)angle) * scale;
    }
}

static void place_angles(const pass *p, size_t r) {
    const config *c = &p->m->cfg;
    size_t n = c->n_angles;
    int t = p->rows[r].position;
    rope_row(c, t, c->rope_scale, p->cos + r * n, p->sin + r * n);
    if (!c->trained_length) return;
    float *back = p->back + 4 * r * n;
    rope_row(c, lolcats_back(c->trained_length, true, t), 1, back, back + n);
    rope_row(c, lolcats_back(c->trained_length, false, t - p->m->map_lag), 1, back + 2 * n,
             back + 3 * n);
}

/* Pairs (2i, 2i+1), or (i, i + rope_dim/2). */
void pass_rotate(const pass *p, int layer, size_t r, float *head) {
    const config *c = &p->m->cfg;
    const head_layout *g = &p->m->layers[layer].heads;
    if (c->rope == ROPE_NONE) return;
    int half = g->rope_dim / 2;
    int step = c->rope == ROPE_PAIRS ? 2 : 1, other = c->rope == ROPE_PAIRS ? 1 : half;
    const float *cos = p->cos + r * c->n_angles + g->angles;
    const float *sin = p->sin + r * c->n_angles + g->angles;
    for (int i = 0; i < half; i++) {
        float *a = head + i * step, *b = a + other;
        float x = *a, y = *b;
        *a = x * cos[i] - y * sin[i];
        *b = x * sin[i] + y * cos[i];
    }
}

static void run_layers(void *arg, int thread) {
    pass *p = arg;
    const linnet_model *m = p->m;
    for (phase ph = phase_begin(p->team, thread, p->n); phase_next(&ph);)
        for (size_t r = ph.from; r < ph.to; r++)
            place_angles(p, r);
    for (int l = 0; l < m->cfg.n_layers; l++) {
        m->layers[l].mixer->forward(p, l, thread);
        if (m->cfg.n_ff) feed_forward(p, thread, l);
    }
    if (m->cfg.n_ff) return;
    size_t d = (size_t)m->cfg.n_embd; /* no feed-forward looks at what the last mixer gave */
    for (phase ph = phase_begin(p->team, thread, p->n); phase_next(&ph);)
        for (size_t r = ph.from; r < ph.to; r++)
            check_finite(p, 2 * (size_t)m->cfg.n_layers, r, p->x + r * d, d);
}

/* Logits of the rows p->wanted. */
static void run_output(void *arg, int thread) {
    pass *p = arg;
    const linnet_model *m = p->m;
    const product out = {&m->output, p->logits, (size_t)m->cfg.n_rows, GEMM_STORE};
    norm_products(p, thread, 2 * (size_t)m->cfg.n_layers, &m->out_norm, p->wanted, p->n_wanted,
                  &out, 1);
}

/* Most pieces want few logits, if any: they come in the same run. */
static void run_all(void *arg, int thread) {
    run_layers(arg, thread);
    if (((pass *)arg)->n_wanted) run_output(arg, thread);
}

static linnet_status check_stream(const pass *p, linnet_error *err) {
    return place_error(p->m, p->rows, atomic_load(&p->not_finite), err);
}

/* Hands logits of wanted rows [w0, w0 + n) to their sessions and callbacks. */
static linnet_status deliver(pass *p, linnet_item *items, const size_t *wanted, size_t n,
                             linnet_error *err) {
    size_t width = (size_t)p->m->cfg.n_rows;
    uint64_t stage = 2 * (uint64_t)p->m->cfg.n_layers + 1;
    linnet_status s = LINNET_OK;
    for (size_t i = 0; i < n && !s; i++) {
        const row *r = &p->rows[wanted[i]];
        const float *logits = p->logits + i * width;
        if (!all_finite(logits, width))
            return place_error(p->m, p->rows, stage << 32 | wanted[i], err);
        s = give_logits(p->m, &items[r->item], r, logits, err);
    }
    return s;
}

/* Cuts rows into runs of one session, at most `most` rows each. */
static size_t cut_runs(const row *rows, size_t n, size_t most, size_t *runs) {
    size_t n_runs = 0;
    for (size_t r = 0; r < n; r++)
        if (!r || r - runs[n_runs - 1] == most || rows[r].session != rows[r - 1].session)
            runs[n_runs++] = r;
    runs[n_runs] = n;
    return n_runs;
}

/* Rows that share a pass over the keys, fewer where groups of heads are large. */
static size_t cut_blocks(const linnet_model *m, const row *rows, size_t n, size_t *blocks) {
    return cut_runs(rows, n, min_size(ATTEND_ROWS, max_size(1, ATTEND_TILE / m->most.group)),
                    blocks);
}

static linnet_status run_piece(linnet_model *m, linnet_item *items, const row *rows, size_t n,
                               linnet_error *err) {
    size_t d = (size_t)m->cfg.n_embd, last = 0, n_wanted = 0;
    size_t wanted[PIECE], blocks[PIECE + 1], runs[PIECE + 1];
    bool split;
    for (size_t r = 0; r < n; r++) {
        last = max_size(last, (size_t)rows[r].position);
        if (rows[r].want) wanted[n_wanted++] = r;
    }
    size_t partials = partials_of(m, threads_of(m), n, last, &split);
    linnet_status s = scratch_fit(m, n, partials, err);
    if (!s) s = team_reserve(m->team, (size_t)(m->cfg.n_layers + 1) * PHASES_PER_LAYER, err);
    if (s) return s;
    pass *p = &m->scratch->pass;
    p->m = m;
    p->team = m->team;
    p->k = m->kernels;
    p->rows = rows;
    p->n = n;
    p->blocks = blocks;
    p->n_blocks = cut_blocks(m, rows, n, blocks);
    p->runs = runs;
    p->n_runs = cut_runs(rows, n, n, runs);
    p->split_attention = split;
    for (size_t r = 0; r < n; r++)
        if ((s = embed(m, &rows[r], p->x + r * d, err))) return s;
    p->wanted = wanted;
    p->n_wanted = min_size(LOGITS_PIECE, n_wanted);
    atomic_store(&p->not_finite, ALL_FINITE);
    team_run(m->team, run_all, p);
    if ((s = check_stream(p, err))) return s;
    for (size_t w = 0; w < n_wanted; w += LOGITS_PIECE) {
        p->wanted = wanted + w;
        p->n_wanted = min_size(LOGITS_PIECE, n_wanted - w);
        if (w) team_run(m->team, run_output, p);
        if ((s = check_stream(p, err)) || (s = deliver(p, items, p->wanted, p->n_wanted, err)))
            return s;
    }
    return LINNET_OK;
}

linnet_status forward_cpu(linnet_model *m, linnet_item *items, size_t n_items,
                          linnet_progress_fn progress, void *user, linnet_error *err) {
    row rows[PIECE];
    return run_pieces(m, items, n_items, rows, PIECE, false, run_piece, progress, user, err);
}
