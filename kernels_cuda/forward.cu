/* The GPU's forward pass: pieces of at most CUDA_PIECE rows (tokens of any sessions that keep keys
 * and values in the same type), layer by layer, then the logits that were asked for. All that a
 * piece needs to know goes up in one copy; a piece of few rows is recorded once as a graph for each
 * shape that it can have, and launched again: the host gives one copy, one graph and one copy back
 * per token, and waits once. Adding a mixer adds a line to the table. */
#include "forward.h"

#include "../session/pieces.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const cuda_mixer *const cuda_mixers[MIXER_KINDS] = {
    &cuda_softmax,      &cuda_lolcats,   &cuda_hedgehog,       &cuda_short_conv,
    &cuda_based_taylor, &cuda_delta_net, &cuda_gated_delta_net};

enum {
    CUDA_LOGITS = 256, /* most rows of logits held at once */
    DEPTH_STEP = 1024, /* graphs know the depth up to the next power of two, from here */
    MAX_GRAPHS = 64
};

/* Everything about a piece that launches depend on. */
typedef struct {
    size_t n, n_runs, longest_run, depth, n_wanted;
    kv_kind kv;
} piece_shape;

typedef struct {
    piece_shape shape;
    device_graph *graph;
} recorded;

struct cuda_model {
    uint8_t *weights; /* the arena's copy on the GPU, then config.rope_freq */
    /* Buffers for pieces of `rows` rows at `depth`. */
    size_t rows, depth;
    uint8_t *memory;
    cuda_pass pass; /* its pointers point into memory */
    /* What goes up with a piece, in pinned memory and on the GPU: rows, runs, wanted rows, the
     * place for `not_finite`, then the tables of KV pages. */
    uint8_t *up_host, *up_gpu;
    size_t up_bytes;
    float *logits_host; /* pinned [CUDA_LOGITS, n_rows], then not_finite */
    size_t logits_rows;
    recorded graphs[MAX_GRAPHS];
    size_t n_graphs;
    bool no_graphs; /* recording failed once (an older driver): launches one by one */
};

/* ---- Buffers ----------------------------------------------------------------------------------
 */

static size_t partial_floats(const linnet_model *m, size_t n, size_t depth, int sm_count) {
    size_t most = 0;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        const cuda_mixer *x = cuda_mixers[m->layers[l].mixer->kind];
        if (x->partial_floats) most = max_size(most, x->partial_floats(m, l, n, depth, sm_count));
    }
    return most;
}

static size_t work_floats(const linnet_model *m) {
    size_t most = m->work_floats;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        const cuda_mixer *x = cuda_mixers[m->layers[l].mixer->kind];
        if (x->work_floats) most = max_size(most, x->work_floats(m, l));
    }
    return most;
}

/* Lays the buffers of `p` out from `base` (NULL: only adds up) and returns their bytes. */
static size_t lay_out(const linnet_model *m, size_t n, size_t depth, int sm_count, cuda_pass *p,
                      uint8_t *base) {
    const config *c = &m->cfg;
    size_t used = 0, partial = partial_floats(m, n, depth, sm_count),
           packed = cuda_packed_bytes(m, n);
#define TAKE(field, count)                                                                         \
    do {                                                                                           \
        if (base) p->field = (decltype(p->field))(void *)(base + used);                            \
        used += round_up((count) * sizeof *p->field, 256);                                         \
    } while (0)
    TAKE(x, n * c->n_embd);
    TAKE(h, n * c->n_embd);
    TAKE(q, n * m->most.q);
    TAKE(key, n * m->most.kv);
    TAKE(value, n * m->most.kv);
    TAKE(mixed, n * m->most.q);
    TAKE(gate, n * c->n_ff);
    TAKE(up, n * c->n_ff);
    TAKE(branch, m->post_norms ? n * c->n_embd : 0);
    TAKE(work, n * work_floats(m));
    TAKE(cos, n * c->n_angles);
    TAKE(sin, n * c->n_angles);
    TAKE(partial, partial);
    TAKE(counters, CUDA_COUNTERS);
    TAKE(logits, min_size(n, CUDA_LOGITS) * c->n_rows);
#undef TAKE
    if (base) p->packed = base + used;
    used += round_up(packed, 256);
    if (p) p->partial_floats = partial, p->packed_bytes = packed;
    return used;
}

uint64_t cuda_activation_bytes(const linnet_model *m, size_t rows) {
    const cuda_backend *b = (const cuda_backend *)m->backend;
    return lay_out(m, rows, rows, b->info.sm_count, NULL, NULL);
}

static void forget_graphs(cuda_model *g) {
    for (size_t i = 0; i < g->n_graphs; i++)
        device_graph_free(g->graphs[i].graph);
    g->n_graphs = 0;
}

static size_t rounded_depth(size_t depth) {
    size_t d = DEPTH_STEP;
    while (d < depth)
        d *= 2;
    return d;
}

/* Room for a piece of n rows up to `depth`; what was recorded with the old buffers is forgotten. */
static linnet_status fit(cuda_backend *b, linnet_model *m, size_t n, size_t depth,
                         linnet_error *err) {
    cuda_model *g = (cuda_model *)m->prepared;
    depth = max_size(rounded_depth(depth), g->depth);
    n = max_size(n <= CUDA_FEW ? CUDA_FEW : n <= 64 ? 64 : CUDA_PIECE, g->rows);
    if (g->memory && g->rows >= n && g->depth >= depth) return LINNET_OK;
    void *memory;
    linnet_status s;
    forget_graphs(g);
    device_free(b->device, g->memory);
    g->memory = NULL;
    g->rows = g->depth = 0;
    size_t bytes = lay_out(m, n, depth, b->info.sm_count, NULL, NULL);
    if ((s = cuda_alloc(b, bytes, &memory, err))) return s;
    g->memory = (uint8_t *)memory;
    g->rows = n;
    g->depth = depth;
    lay_out(m, n, depth, b->info.sm_count, &g->pass, g->memory);
    device_zero(device_get_stream(b->device), g->pass.counters,
                CUDA_COUNTERS * sizeof *g->pass.counters);
    size_t rows = min_size(n, CUDA_LOGITS);
    if (g->logits_rows >= rows) return LINNET_OK;
    device_pinned_free(b->device, g->logits_host);
    g->logits_host = NULL;
    g->logits_rows = 0;
    size_t row = (size_t)m->cfg.n_rows * sizeof(float);
    if ((s = device_pinned_alloc(b->device, rows * row + sizeof(uint64_t), &memory, err))) return s;
    g->logits_host = (float *)memory;
    g->logits_rows = rows;
    return LINNET_OK;
}

/* ---- A piece ----------------------------------------------------------------------------------
 */

typedef struct {
    size_t rows, runs, wanted, not_finite, tables, bytes;
} upload_layout;

/* All but the tables lie at the same place for every piece that graphs are recorded of: they hold
 * the addresses. */
static upload_layout lay_out_upload(size_t n, size_t pages) {
    upload_layout u = {};
    size_t at = 0, rows = n <= CUDA_FEW ? CUDA_FEW : CUDA_PIECE;
    u.rows = at, at += round_up(rows * sizeof(cuda_row), 64);
    u.runs = at, at += round_up(rows * sizeof(cuda_run), 64);
    u.wanted = at, at += round_up(rows * sizeof(int), 64);
    u.not_finite = at, at += 64;
    u.tables = at, at += round_up(pages * sizeof(uint8_t *), 64);
    u.bytes = at;
    return u;
}

static linnet_status fit_upload(cuda_backend *b, cuda_model *g, size_t bytes, linnet_error *err) {
    if (g->up_bytes >= bytes) return LINNET_OK;
    bytes = max_size(bytes, 2 * g->up_bytes);
    void *host, *gpu;
    linnet_status s;
    forget_graphs(g);
    if ((s = device_pinned_alloc(b->device, bytes, &host, err))) return s;
    if ((s = cuda_alloc(b, bytes, &gpu, err))) {
        device_pinned_free(b->device, host);
        return s;
    }
    device_pinned_free(b->device, g->up_host);
    device_free(b->device, g->up_gpu);
    g->up_host = (uint8_t *)host;
    g->up_gpu = (uint8_t *)gpu;
    g->up_bytes = bytes;
    return LINNET_OK;
}

/* Where the logits of row r, the w-th of those that are wanted, go: to its session, or to a buffer
 * if a callback gets every row. */
static float *place_of_logits(const cuda_model *g, const linnet_item *items, const row *r,
                              size_t w) {
    if (items[r->item].want != LINNET_LOGITS_ALL) return r->session->pending;
    return g->logits_host + w % g->logits_rows * (size_t)g->pass.m->cfg.n_rows;
}

/* Fills the upload from the piece's rows; `wanted` gets all of them whose logits are wanted. */
static linnet_status describe(cuda_backend *b, linnet_model *m, const linnet_item *items,
                              const row *rows, size_t n, int *wanted, piece_shape *shape,
                              linnet_error *err) {
    cuda_model *g = (cuda_model *)m->prepared;
    size_t pages = 0;
    for (size_t r = 0; r < n; r++)
        if (!r || rows[r].session != rows[r - 1].session)
            for (const kv_table &t : rows[r].session->kv.tables)
                pages += t.n_pages;
    upload_layout u = lay_out_upload(n, pages);
    linnet_status s = fit_upload(b, g, u.bytes, err);
    if (s) return s;
    cuda_row *out = (cuda_row *)(void *)(g->up_host + u.rows);
    cuda_run *runs = (cuda_run *)(void *)(g->up_host + u.runs);
    uint8_t **tables = (uint8_t **)(void *)(g->up_host + u.tables);
    uint8_t *const *on_gpu[KV_TABLES] = {};
    size_t at = 0, last_position = 0;
    *shape = {};
    shape->n = n;
    shape->kv = rows->session->kv.layout.kind;
    for (size_t r = 0; r < n; r++) {
        const linnet_session *x = rows[r].session;
        if (!r || x != rows[r - 1].session) {
            runs[shape->n_runs++] = {(int)r, (int)r};
            for (int t = 0; t < KV_TABLES; t++) {
                const kv_table &kv = x->kv.tables[t];
                on_gpu[t] = (uint8_t *const *)(void *)(g->up_gpu + u.tables) + at;
                for (size_t i = 0; i < kv.n_pages; i++)
                    tables[at++] = kv.pages[i] ? kv.pages[i]->data : NULL;
            }
        }
        cuda_run *run = &runs[shape->n_runs - 1];
        run->last = (int)r + 1;
        shape->longest_run = max_size(shape->longest_run, (size_t)(run->last - run->first));
        last_position = max_size(last_position, (size_t)rows[r].position);
        out[r] = {x->state,
                  {on_gpu[KV_ALL], on_gpu[KV_WINDOWED]},
                  rows[r].want ? place_of_logits(g, items, &rows[r], shape->n_wanted) : NULL,
                  rows[r].token,
                  rows[r].position,
                  (int)shape->n_runs - 1,
                  x->mode,
                  x->rule,
                  x->whole};
        if (rows[r].want) wanted[shape->n_wanted++] = (int)r;
    }
    shape->depth = rounded_depth(last_position + 1);
    memcpy(g->up_host + u.wanted, wanted, shape->n_wanted * sizeof *wanted);
    const uint64_t all_finite = ALL_FINITE;
    memcpy(g->up_host + u.not_finite, &all_finite, sizeof all_finite);
    cuda_pass *p = &g->pass;
    p->host_rows = rows;
    p->rows = (const cuda_row *)(const void *)(g->up_gpu + u.rows);
    p->runs = (const cuda_run *)(const void *)(g->up_gpu + u.runs);
    p->wanted = (const int *)(const void *)(g->up_gpu + u.wanted);
    p->not_finite = (unsigned long long *)(void *)(g->up_gpu + u.not_finite);
    device_upload_async(p->stream, g->up_gpu, g->up_host, u.bytes);
    return LINNET_OK;
}

/* Logits to where their rows want them, looked at on the way: any that are not finite are of stage
 * 2 n_layers + 1. */
__global__ void hand_over(const cuda_row *rows, const int *wanted, const float *logits,
                          size_t width, unsigned long long stage, unsigned long long *not_finite) {
    int r = wanted[blockIdx.y];
    const float *from = logits + blockIdx.y * width;
    float *to = rows[r].logits;
    bool broken = false;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < width;
         i += (size_t)gridDim.x * blockDim.x) {
        to[i] = from[i];
        broken |= 0.0f * from[i] != 0;
    }
    if (broken) atomicMin(not_finite, stage << 32 | (unsigned)r);
}

__global__ void look_at(const float *x, size_t d, unsigned long long stage,
                        unsigned long long *not_finite) {
    bool broken = false;
    for (size_t i = threadIdx.x; i < d; i += blockDim.x)
        broken |= 0.0f * x[blockIdx.x * d + i] != 0;
    if (broken) atomicMin(not_finite, stage << 32 | blockIdx.x);
}

static void run_output(const cuda_pass *p) {
    size_t width = (size_t)p->m->cfg.n_rows;
    cuda_output(p);
    launch(p->stream, dim3((unsigned)min_size((width + 1023) / 1024, 64), (unsigned)p->n_wanted),
           dim3(256), 0, hand_over, p->rows, p->wanted, (const float *)p->logits, width,
           2ull * (unsigned)p->m->cfg.n_layers + 1, p->not_finite);
}

static void run_layers(const cuda_pass *p) {
    const linnet_model *m = p->m;
    cuda_embed(p);
    cuda_rope_table(p);
    for (int l = 0; l < m->cfg.n_layers; l++) {
        cuda_mixers[m->layers[l].mixer->kind]->forward(p, l);
        if (m->cfg.n_ff) cuda_feed_forward(p, l);
    }
    if (!m->cfg.n_ff) /* nothing has looked at what the last mixer gave */
        launch(p->stream, dim3((unsigned)p->n), dim3(128), 0, look_at, (const float *)p->x,
               (size_t)m->cfg.n_embd, 2ull * (unsigned)m->cfg.n_layers, p->not_finite);
    if (p->n_wanted) run_output(p);
}

/* A graph of run_layers for this shape, recorded now if it is new; NULL where it cannot be. */
static device_graph *graph_of(cuda_model *g, const piece_shape *shape) {
    for (size_t i = 0; i < g->n_graphs; i++) {
        const piece_shape *s = &g->graphs[i].shape;
        if (s->n == shape->n && s->n_runs == shape->n_runs &&
            s->longest_run == shape->longest_run && s->depth == shape->depth &&
            s->n_wanted == shape->n_wanted && s->kv == shape->kv)
            return g->graphs[i].graph;
    }
    if (g->no_graphs) return NULL;
    if (g->n_graphs == MAX_GRAPHS) forget_graphs(g);
    device_graph *graph = NULL;
    if ((g->no_graphs = device_graph_begin(g->pass.stream, NULL))) return NULL;
    run_layers(&g->pass);
    if ((g->no_graphs = device_graph_end(g->pass.stream, &graph, NULL))) return NULL;
    g->graphs[g->n_graphs].shape = *shape;
    g->graphs[g->n_graphs++].graph = graph;
    return graph;
}

/* Hands on the logits that are not where they belong already: of items that want all. */
static linnet_status deliver(const cuda_model *g, linnet_item *items, const int *wanted, size_t n,
                             linnet_error *err) {
    const cuda_pass *p = &g->pass;
    size_t width = (size_t)p->m->cfg.n_rows;
    linnet_status s = LINNET_OK;
    for (size_t i = 0; i < n && !s; i++) {
        const row *r = &p->host_rows[wanted[i]];
        linnet_item *item = &items[r->item];
        if (item->want == LINNET_LOGITS_ALL)
            s = give_logits(p->m, item, r, g->logits_host + i * width, err);
    }
    return s;
}

static linnet_status run_piece(linnet_model *m, linnet_item *items, const row *rows, size_t n,
                               linnet_error *err) {
    cuda_backend *b = (cuda_backend *)m->backend;
    cuda_model *g = (cuda_model *)m->prepared;
    cuda_pass *p = &g->pass;
    int wanted[CUDA_PIECE];
    piece_shape shape;
    size_t depth = 0, row = (size_t)m->cfg.n_rows;
    for (size_t r = 0; r < n; r++)
        depth = max_size(depth, (size_t)rows[r].position + 1);
    linnet_status s = fit(b, m, n, depth, err);
    if (!s) s = describe(b, m, items, rows, n, wanted, &shape, err);
    if (s) return s;
    size_t n_wanted = shape.n_wanted;
    shape.n_wanted = min_size(n_wanted, g->logits_rows);
    p->n = n;
    p->n_runs = shape.n_runs;
    p->longest_run = shape.longest_run;
    p->depth = shape.depth;
    p->n_wanted = shape.n_wanted;
    device_graph *graph = n <= CUDA_FEW && shape.longest_run == 1 ? graph_of(g, &shape) : NULL;
    if (graph)
        device_graph_launch(p->stream, graph);
    else
        run_layers(p);
    for (size_t w = 0;;) {
        device_download_async(p->stream, g->logits_host + g->logits_rows * row, p->not_finite,
                              sizeof *p->not_finite);
        uint64_t place;
        if ((s = device_finish(b->device, err))) return s;
        memcpy(&place, g->logits_host + g->logits_rows * row, sizeof place);
        if ((s = place_error(m, p->host_rows, place, err)) ||
            (s = deliver(g, items, wanted + w, p->n_wanted, err)))
            return s;
        if ((w += p->n_wanted) >= n_wanted) return LINNET_OK;
        p->wanted += p->n_wanted;
        p->n_wanted = min_size(n_wanted - w, g->logits_rows);
        run_output(p);
    }
}

linnet_status cuda_forward(linnet_model *m, linnet_item *items, size_t n_items,
                           linnet_progress_fn progress, void *user, linnet_error *err) {
    cuda_backend *b = (cuda_backend *)m->backend;
    std::lock_guard<std::mutex> held(b->mutex);
    row rows[CUDA_PIECE];
    return run_pieces(m, items, n_items, rows, CUDA_PIECE, true, run_piece, progress, user, err);
}

/* ---- A model on the GPU -------------------------------------------------------------------------
 */

linnet_status cuda_fits(backend *base, const linnet_model *m, uint64_t weight_bytes,
                        linnet_error *err) {
    cuda_backend *b = (cuda_backend *)base;
    device_info now;
    linnet_status s = device_get_info(b->device, &now, err);
    if (s) return s;
    uint64_t work =
        lay_out(m, CUDA_PIECE, (size_t)m->cfg.n_ctx_train, b->info.sm_count, NULL, NULL);
    uint64_t state = m->state_bytes;
    if (weight_bytes + work + state <= now.free_bytes) return LINNET_OK;
    return fail(err, LINNET_ERR_MEMORY,
                "%s: the model needs %llu MB (weights %llu, activations %llu, a session's state "
                "%llu), of %llu MB %llu are free",
                base->name, (unsigned long long)((weight_bytes + work + state) >> 20),
                (unsigned long long)(weight_bytes >> 20), (unsigned long long)(work >> 20),
                (unsigned long long)(state >> 20), (unsigned long long)(now.total_bytes >> 20),
                (unsigned long long)(now.free_bytes >> 20));
}

linnet_status cuda_prepare(backend *base, linnet_model *m, linnet_error *err) {
    cuda_backend *b = (cuda_backend *)base;
    std::lock_guard<std::mutex> held(b->mutex);
    cuda_model *g = (cuda_model *)calloc(1, sizeof *g);
    if (!g) return fail(err, LINNET_ERR_MEMORY, "no memory for a model");
    m->prepared = g;
    void *memory;
    size_t angles = m->cfg.n_angles * sizeof(float);
    linnet_status s = cuda_alloc(b, m->arena_bytes + angles, &memory, err);
    if (s) return s;
    g->weights = (uint8_t *)memory;
    cuda_pass *p = &g->pass;
    p->m = m;
    p->stream = device_get_stream(b->device);
    p->sm_count = b->info.sm_count;
    p->exact = m->act == LINNET_ACT_EXACT;
    p->weights = (ptrdiff_t)((uintptr_t)g->weights - (uintptr_t)m->arena);
    p->rope_freq = (const float *)(const void *)(g->weights + m->arena_bytes);
    if ((s = device_upload(b->device, g->weights, m->arena, m->arena_bytes, err)) ||
        (angles && (s = device_upload(b->device, g->weights + m->arena_bytes, m->cfg.rope_freq,
                                      angles, err))))
        return s;
    madvise(m->arena, m->arena_bytes, MADV_DONTNEED); /* only its addresses are used from here on */
    return LINNET_OK;
}

void cuda_forget(backend *base, linnet_model *m) {
    cuda_backend *b = (cuda_backend *)base;
    cuda_model *g = (cuda_model *)m->prepared;
    if (!g) return;
    std::lock_guard<std::mutex> held(b->mutex);
    forget_graphs(g);
    device_free(b->device, g->memory);
    device_free(b->device, g->weights);
    device_free(b->device, g->up_gpu);
    device_pinned_free(b->device, g->up_host);
    device_pinned_free(b->device, g->logits_host);
    free(g);
    m->prepared = NULL;
}
