/* The equivalence grid: every way to the same 130 tokens gives the same bits, on every golden model
 * (so every mixer), window mode and precision.
 *
 *   one prefill = chunks of 1 2 7 8 63 64 65 = save and load at every position = fork at every
 *   position = batches of 1 2 3 8 sessions at mixed depths and counts = 1 2 8 threads = every
 *   instruction set = the file read instead of mapped
 *
 * Precisions differ from each other and stay near: see `nearness`. And 20,000 tokens of decode stay
 * finite. That the numbers are the right ones is in test_forward.c and test_window_modes.c. */
#include "../model.h"
#include "../weights/gguf_write.h"
#include "support.h"

#include <glob.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__ /* softmax over so many takes minutes there */
enum { N = 130, MANY = 3000 };
#else
enum { N = 130, MANY = 20000 };
#endif

/* ---- What is compared ---------------------------------------------------------------------- */

/* How tokens are fed: a prompt that comes whole first (0: none), then pieces; or sampled ones. */
typedef struct {
    const char *name;
    linnet_window_mode mode;
    size_t prompt;
    bool sampled;
} feeding;

static const feeding plain = {"", LINNET_SLIDING, 0, false},
                     terraces[] = {{"sliding", LINNET_SLIDING, 0, false},
                                   {"terrace", LINNET_TERRACE, 0, false},
                                   {"terrace_hf", LINNET_TERRACE_HF, 45, false},
                                   {"terrace_hf_short", LINNET_TERRACE_HF, 11, false},
                                   {"sampled", LINNET_TERRACE, 41, true}};

typedef struct {
    const char *name;
    linnet_activations act;
    linnet_kv_type kv;
    double nearness; /* largest difference from `exact`, of the logits' RMS */
} precision;

static const precision precisions[] = {{"exact", LINNET_ACT_EXACT, LINNET_KV_F32, 0},
                                       {"auto", LINNET_ACT_AUTO, LINNET_KV_F16, 1e-2},
                                       {"auto, kv f32", LINNET_ACT_AUTO, LINNET_KV_F32, 1e-2},
                                       {"auto, kv q8_0", LINNET_ACT_AUTO, LINNET_KV_Q8_0, 0.2},
                                       {"q8", LINNET_ACT_Q8, LINNET_KV_F16, 1.0}};
enum { PRECISIONS = sizeof precisions / sizeof *precisions };

typedef struct {
    char name[96], path[256];
    const feeding *f;
} subject;

/* A subject in one precision, on one thread. */
typedef struct {
    const subject *s;
    const precision *p;
    linnet_model *m;
    int32_t ids[N];
    size_t width;
    float *all; /* [N, width] by one prefill */
} cell;

static linnet_model *open_cell(const cell *c, int threads, const char *isa, bool no_mmap) {
    linnet_model_options o = {
        .threads = threads, .isa = isa, .no_mmap = no_mmap, .activations = c->p->act};
    linnet_model *m;
    return linnet_model_open(&m, c->s->path, &o, NULL) ? NULL : m; /* not on this CPU */
}

static linnet_session *begin(const cell *c, linnet_model *m) {
    return open_session(m, &(linnet_session_options){.kv = c->p->kv, .window_mode = c->s->f->mode});
}

/* How many of the tokens from `at` on come next when pieces have `chunk` tokens (0: all). */
static size_t piece(const cell *c, size_t at, size_t to, size_t chunk) {
    const feeding *f = c->s->f;
    size_t n = to - at;
    if (at < f->prompt) return f->prompt - at;
    if (f->sampled) return 1;
    return chunk && chunk < n ? chunk : n;
}

static linnet_item next_item(const cell *c, linnet_session *s, size_t at, size_t n, rows_at *rows) {
    bool sampled = c->s->f->sampled && at >= c->s->f->prompt;
    return (linnet_item){s, c->ids + at, n, LINNET_LOGITS_ALL, collect_rows, rows, sampled};
}

/* Feeds tokens [from, to); their rows go to their place in out. */
static void feed(const cell *c, linnet_session *s, size_t from, size_t to, size_t chunk,
                 float *out) {
    linnet_error err;
    rows_at rows = {out, c->width};
    for (size_t n; from < to; from += n) {
        n = piece(c, from, to, chunk);
        linnet_item item = next_item(c, s, from, n, &rows);
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s: %s", c->s->name, err.text);
    }
}

static void same(const cell *c, const char *way, size_t number, const float *out, size_t from,
                 size_t to) {
    size_t bytes = (to - from) * c->width * sizeof *out;
    if (memcmp(out + from * c->width, c->all + from * c->width, bytes))
        fail_msg("%s, %s: %s %zu: tokens %zu to %zu differ", c->s->name, c->p->name, way, number,
                 from, to);
}

/* ---- The ways ------------------------------------------------------------------------------ */

static void in_chunks(const cell *c, float *out) {
    static const size_t chunks[] = {1, 2, 7, 8, 63, 64, 65};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        linnet_session *s = begin(c, c->m);
        feed(c, s, 0, N, chunks[i], out);
        same(c, "chunks of", chunks[i], out, 0, N);
        assert_memory_equal(linnet_session_logits(s), out + (N - 1) * c->width,
                            c->width * sizeof *out);
        linnet_session_free(s);
    }
}

typedef struct {
    uint8_t *at;
    size_t n;
} bytes;

static bytes save(const linnet_session *s) {
    linnet_error err;
    bytes b = {.n = (size_t)linnet_session_size(s)};
    b.at = malloc(b.n);
    if (linnet_session_save(s, b.at, b.n, &err)) fail_msg("%s", err.text);
    return b;
}

/* Loads b: what was saved is what is there. */
static void load(linnet_session *s, bytes b) {
    linnet_error err;
    if (linnet_session_load(s, b.at, b.n, &err)) fail_msg("%s", err.text);
    bytes again = save(s);
    assert_int_equal(again.n, b.n);
    assert_memory_equal(again.at, b.at, b.n);
    free(again.at);
}

/* With other threads and instruction sets, from the start and from a state saved at token 70. */
static void elsewhere(const cell *c, float *out) {
    static const struct {
        int threads;
        const char *isa;
        bool no_mmap;
    } places[] = {{2, "auto", true},
                  {8, "auto", false},
                  {1, "generic", false},
                  {2, "avx2", false},
                  {3, "avx512", true}};
    linnet_session *s = begin(c, c->m);
    feed(c, s, 0, 70, 0, out);
    bytes b = save(s);
    linnet_session_free(s);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        linnet_model *m = open_cell(c, places[i].threads, places[i].isa, places[i].no_mmap);
        if (!m) continue;
        s = begin(c, m);
        feed(c, s, 0, N, i < 2 ? 9 : 50, out);
        same(c, "place", i, out, 0, N);
        load(s, b);
        feed(c, s, 70, N, 13, out);
        same(c, "state carried to place", i, out, 70, N);
        linnet_session_free(s);
        linnet_model_close(m);
    }
    free(b.at);
}

/* A session that goes step by step is saved and forked after each; copies take a step or two, some
 * go to the end. `other` has a past of its own. */
static void at_every_position(const cell *c, float *out) {
    linnet_session *s = begin(c, c->m), *other = begin(c, c->m), *fork;
    linnet_error err;
    for (size_t at = 0;;) {
        size_t two = at + 2 < N ? at + 2 : N, to = at % 64 == 3 ? N : two;
        if (to < c->s->f->prompt) to = c->s->f->prompt;
        bytes b = save(s);
        load(other, b);
        if (at)
            assert_memory_equal(linnet_session_logits(other), c->all + (at - 1) * c->width,
                                c->width * sizeof *out);
        feed(c, other, at, to, at % 2, out);
        same(c, "saved at", at, out, at, to);
        free(b.at);
        if (linnet_session_fork(s, &fork, &err)) fail_msg("%s", err.text);
        feed(c, fork, at, to, (at + 1) % 2, out);
        same(c, "forked at", at, out, at, to);
        linnet_session_free(fork);
        if (c->s->f->mode == LINNET_SLIDING)
            assert_int_equal(linnet_session_state_bytes(s),
                             linnet_model_state_bytes(c->m, c->p->kv, at));
        if (at == N) break;
        size_t n = piece(c, at, N, 1);
        feed(c, s, at, at + n, 1, out);
        same(c, "after being saved and forked at", at, out, at, at + n);
        at += n;
    }
    linnet_session_free(other);
    linnet_session_free(s);
}

/* Sessions that start at depths of their own take turns of their own size. */
static void in_batches(const cell *c, float *out) {
    enum { MOST = 8 };
    static const size_t sizes[] = {1, 2, 3, 8}, counts[MOST] = {5, 1, 17, 2, 64, 1, 9, 30},
                        depths[MOST] = {0, 60, 0, 3, 65, 100, 0, 12};
    float *rows[MOST];
    rows_at at[MOST];
    (void)out;
    for (int i = 0; i < MOST; i++) {
        rows[i] = malloc(N * c->width * sizeof *out);
        at[i] = (rows_at){rows[i], c->width};
    }
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        linnet_session *s[MOST];
        size_t fed[MOST];
        for (size_t i = 0; i < sizes[k]; i++) {
            s[i] = begin(c, c->m);
            fed[i] = depths[i] && depths[i] < c->s->f->prompt ? c->s->f->prompt : depths[i];
            feed(c, s[i], 0, fed[i], 0, rows[i]);
        }
        for (;;) {
            linnet_item items[MOST];
            linnet_error err;
            size_t n = 0;
            for (size_t i = 0; i < sizes[k]; i++) {
                if (fed[i] == N) continue;
                size_t some = piece(c, fed[i], N, counts[i]);
                items[n++] = next_item(c, s[i], fed[i], some, &at[i]);
                fed[i] += some;
            }
            if (!n) break;
            if (linnet_forward(items, n, NULL, NULL, &err)) fail_msg("%s", err.text);
        }
        for (size_t i = 0; i < sizes[k]; i++) {
            same(c, "in a batch, session", i, rows[i], 0, N);
            linnet_session_free(s[i]);
        }
    }
    for (int i = 0; i < MOST; i++)
        free(rows[i]);
}

/* ---- The grid ------------------------------------------------------------------------------ */

/* Precisions that differ from those before: other activations matter to quantized weights, and
 * 8-bit ones to bf16; other keys and values to layers that keep them. */
static bool matters(const precision *p, linnet_model *m) {
    bool quantized = false, bf16 = false;
    uint64_t dims[4];
    for (size_t i = 0; i < linnet_model_get_info(m)->n_tensors; i++) {
        const char *type;
        linnet_model_tensor(m, i, &type, dims, NULL);
        quantized = quantized || type[0] == 'q';
        bf16 = bf16 || !strcmp(type, "bf16");
    }
    if (p->act == LINNET_ACT_Q8) return quantized || bf16;
    if (p->kv == LINNET_KV_Q8_0) return m->kv_layers && m->cfg.head_dim % BLOCK == 0;
    if (p->act == LINNET_ACT_AUTO && p->kv == LINNET_KV_F32) return m->kv_layers && quantized;
    return true;
}

static void expect_near(const cell *c, const float *exact) {
    double worst = 0, square = 0;
    for (size_t i = 0; i < N * c->width; i++) {
        double d = fabs((double)c->all[i] - exact[i]);
        worst = d > worst || isnan(d) ? d : worst;
        square += (double)exact[i] * exact[i];
    }
    double error = worst / sqrt(square / (double)(N * c->width));
    if (!(error <= c->p->nearness))
        fail_msg("%s, %s: %g of the RMS from exact", c->s->name, c->p->name, error);
}

static void grid(void **state) {
    const subject *s = *state;
    char ids[256];
    float *exact = NULL, *out = NULL;
    for (int i = 0; i < PRECISIONS; i++) {
        cell c = {.s = s, .p = &precisions[i]};
        c.m = open_cell(&c, 1, "auto", false);
        if (!c.m) fail_msg("%s: cannot be opened", s->path);
        if (!matters(c.p, c.m)) {
            linnet_model_close(c.m);
            continue;
        }
        c.width = (size_t)c.m->cfg.n_rows;
        snprintf(ids, sizeof ids, "%.*s.ids", (int)(strrchr(s->path, '.') - s->path), s->path);
        size_t n = access(ids, R_OK) ? 0 : read_ids(ids, c.ids, N);
        for (size_t t = n; t < N; t++) /* again, to fill pages and windows */
            c.ids[t] = n ? c.ids[t % n] : (int32_t)(t * (t + 3) % c.width);
        c.all = malloc(N * c.width * sizeof *out);
        if (!out) out = malloc(N * c.width * sizeof *out);
        linnet_session *one = begin(&c, c.m);
        feed(&c, one, 0, N, 0, c.all);
        linnet_session_free(one);
        in_chunks(&c, out);
        elsewhere(&c, out);
        at_every_position(&c, out);
        in_batches(&c, out);
        linnet_model_close(c.m);
        if (exact) {
            expect_near(&c, exact);
            free(c.all);
        } else {
            exact = c.all;
        }
    }
    free(exact);
    free(out);
}

/* ---- Long decodes -------------------------------------------------------------------------- */

/* One token at a time; a token that is not finite would be an error. The state is as promised. */
static void long_decode(void **state) {
    const subject *s = *state;
    linnet_error err;
    linnet_model *m = open_model(s->path, &(linnet_model_options){.threads = 1});
    linnet_session *x =
        open_session(m, &(linnet_session_options){.ctx = MANY, .window_mode = s->f->mode});
    for (uint64_t t = 0; t < MANY; t++) {
        int32_t id = (int32_t)((t * t * 7 + t * 3 + t / 11) % (uint64_t)m->cfg.n_rows);
        if (linnet_feed(x, &id, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s: %s", s->name, err.text);
    }
    if (s->f->mode == LINNET_SLIDING)
        assert_int_equal(linnet_session_state_bytes(x),
                         linnet_model_state_bytes(m, LINNET_KV_F16, MANY));
    for (int i = 0; i < m->cfg.n_layers; i++) {
        const mixer_ops *mixer = m->layers[i].mixer;
        size_t n = mixer->state_bytes ? mixer->state_bytes(m, m->layers[i].mixer_weights) / 4 : 0;
        if (!n) continue;
        const float *at = (const float *)(x->state + m->layers[i].state_at);
        for (size_t k = 0; k < n; k++)
            if (!isfinite(at[k]))
                fail_msg("%s: layer %d: state %zu is %g", s->name, i, k, (double)at[k]);
    }
    linnet_session_free(x);
    linnet_model_close(m);
}

/* ---- A model of its own -------------------------------------------------------------------- */

/* Keys and values in q8_0 want heads of a multiple of 32 dimensions: one head of 32 from four of 8,
 * softmax with a window, and windows that may be terraces. */
static void widen(const char *from, const char *to) {
    static const struct {
        const char *key;
        uint32_t value;
        size_t at; /* in the value's bytes */
    } changes[] = {
        {"linnet.attention.head_count", 1, 0},  {"linnet.attention.head_count_kv", 1, 0},
        {"linnet.attention.key_length", 32, 0}, {"linnet.attention.value_length", 32, 0},
        {"linnet.rope.dimension_count", 32, 0}, {"linnet.attention.window_layers", 20, 4},
        {"linnet.lolcats.terrace", 1, 0}};
    linnet_error err;
    gguf *g;
    gguf_writer *w;
    linnet_status s = gguf_open(&g, from, false, &err);
    if (s || (s = gguf_writer_open(&w, to, &err))) fail_msg("%s", err.text);
    for (size_t i = 0; i < gguf_n_kv(g) && !s; i++) {
        gguf_kv kv = *gguf_kv_at(g, i);
        uint8_t *data = malloc(kv.bytes);
        memcpy(data, kv.data, kv.bytes);
        for (size_t k = 0; k < sizeof changes / sizeof *changes; k++)
            if (!strcmp(kv.key.p, changes[k].key))
                memcpy(data + changes[k].at, &changes[k].value, kv.type == GGUF_BOOL ? 1 : 4);
        kv.data = data;
        s = gguf_writer_copy_kv(w, &kv, &err);
        free(data);
    }
    for (int data = 0; data < 2; data++)
        for (size_t i = 0; i < gguf_n_tensors(g) && !s; i++) {
            const gguf_tensor *t = gguf_tensor_at(g, i);
            uint64_t dims[4], bytes = t->bytes;
            memcpy(dims, t->dims, sizeof dims);
            if (strstr(t->name, "attn_feature_")) dims[1] *= dims[2], dims[2] = 1;
            if (strstr(t->name, "_factor")) dims[0] = 1, bytes = 4;
            const void *at;
            if (!data)
                s = gguf_writer_add_tensor(w, t->name, (dtype)t->type, t->n_dims, dims, &err);
            else if (!(s = gguf_read(g, t, 0, bytes, NULL, &at, &err)))
                s = gguf_writer_data(w, at, bytes, &err);
        }
    if (s || gguf_writer_finish(w, &err)) fail_msg("%s", err.text);
    gguf_writer_free(w);
    gguf_close(g);
}

/* ---- All of it ----------------------------------------------------------------------------- */

enum { MAX_TESTS = 256 };
static struct CMUnitTest tests[MAX_TESTS];
static subject subjects[MAX_TESTS];
static int n_tests;
static char folder[] = "/tmp/linnet_grid_XXXXXX";

static void add(CMUnitTestFunction f, const char *what, const char *path, const feeding *feeding) {
    subject *s = &subjects[n_tests];
    const char *slash = strrchr(path, '/') + 1;
    snprintf(s->path, sizeof s->path, "%s", path);
    snprintf(s->name, sizeof s->name, "%.*s%s%s%s%s", (int)strcspn(slash, "."), slash,
             *feeding->name ? "_" : "", feeding->name, *what ? "_" : "", what);
    s->f = feeding;
    tests[n_tests++] = (struct CMUnitTest){s->name, f, NULL, NULL, s};
}

static void add_all(const char *pattern, const feeding *feedings, size_t n) {
    glob_t found;
    if (glob(pattern, 0, NULL, &found)) exit(99);
    for (size_t i = 0; i < found.gl_pathc; i++)
        for (size_t k = 0; k < n; k++)
            add(grid, "", found.gl_pathv[i], &feedings[k]);
    globfree(&found);
}

int main(void) {
    /* Small integers and bf16 against all mixers, not only where a golden model has them. */
    static const char *const quantized[] = {
        "based_hybrid",       "hedgehog_softmax",  "lolcats_exp_sinks",  "lolcats_elu_adapter",
        "gated_delta_groups", "delta_hybrid_list", "gated_delta_hybrid", "window_sinks",
        "based_hybrid",       "lolcats_exp_sinks", "gated_delta_hybrid", "window_sinks"};
    enum { QUANTIZED = sizeof quantized / sizeof *quantized, INTEGERS = 8 };
    static const char *const many[] = {"llama_f16",
                                       "mistral_window",
                                       "window_sinks",
                                       "qwen35_r2",
                                       "hedgehog_softmax",
                                       "hedgehog_exp_adapter",
                                       "t2r_relu",
                                       "lolcats_softmax_full",
                                       "lolcats_exp_sinks",
                                       "lolcats_elu_adapter",
                                       "lolcats_relu_bias",
                                       "lolcats_exp_half_long",
                                       "based_hybrid",
                                       "based_conv_4",
                                       "based_taylor_8",
                                       "based_taylor_16",
                                       "delta_odd_heads",
                                       "delta_elu_twice_beta",
                                       "delta_hybrid_list",
                                       "delta_identity_sum_wide",
                                       "gated_delta_groups",
                                       "gated_delta_hybrid",
                                       "delta_relu_sum_no_conv"};
    char path[QUANTIZED][256], from[256], wide[256];
    if (!mkdtemp(folder)) return 1;
    add_all("tests/data/models/*.gguf", &plain, 1);
    add_all("tests/data/window_modes/*.gguf", terraces, sizeof terraces / sizeof *terraces);
    for (int i = 0; i < QUANTIZED; i++) {
        linnet_error err;
        snprintf(from, sizeof from, "tests/data/models/%s.gguf", quantized[i]);
        const char *type = i >= INTEGERS ? "bf16" : i % 2 ? "q4_0" : "q8_0";
        snprintf(path[i], sizeof path[i], "%s/%s_%s.gguf", folder, quantized[i], type);
        if (linnet_quantize(from, path[i], type, NULL, &err)) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        add(grid, "", path[i], &plain);
    }
    snprintf(wide, sizeof wide, "%s/wide.gguf", folder);
    widen("tests/data/models/lolcats_exp_sinks.gguf", wide);
    add_all(wide, terraces, sizeof terraces / sizeof *terraces);
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
        snprintf(from, sizeof from, "tests/data/models/%s.gguf", many[i]);
        add(long_decode, "long", from, &plain);
    }
    add(long_decode, "long", "tests/data/window_modes/terrace.gguf", &terraces[1]);
    int failed = _cmocka_run_group_tests("grid", tests, (size_t)n_tests, NULL, NULL);
    for (int i = 0; i < QUANTIZED; i++)
        unlink(path[i]);
    unlink(wide);
    return rmdir(folder) ? 1 : failed;
}
