/* The CUDA backend against the CPU, on every golden model: one prefill, chunks, token by token,
 * batches at mixed depths, forks, and states that move from one backend to the other and back.
 * Each logit of the exact path within 1e-4 of the logits' RMS, greedy tokens equal, states within
 * 1e-3; with other precisions the RMS of the differences within `nearness` (some of these models
 * magnify a rounding a hundredfold: their weights are random).
 *
 * Built twice: with -DEMULATED its cuda backend is tests/emulation, which also runs the threads of
 * every kernel in other orders (equal bits: no races) and fails on demand; without, a real GPU.
 * Arguments are parts of names of models: only those are tried. */
#include "../model.h"
#include "support.h"
#ifdef EMULATED
#include "emulation/control.h"
#endif

#include <glob.h>

enum { N = 72, TERRACE_PROMPT = 45 };

typedef struct {
    char name[96], path[256];
    linnet_window_mode mode;
    int32_t ids[N];
    size_t width;
    linnet_model *cpu;
    float *want; /* [N, width] of the CPU's exact path */
} subject;

typedef struct {
    linnet_activations act;
    linnet_kv_type kv;
    double nearness;
} precision;

static const precision exact = {LINNET_ACT_EXACT, LINNET_KV_F32, 1e-4};
static const precision others[] = {{LINNET_ACT_AUTO, LINNET_KV_F16, 2e-2},
                                   {LINNET_ACT_AUTO, LINNET_KV_Q8_0, 0.2}};

static linnet_model *open_on(const subject *s, const char *backend, const precision *p) {
    return open_model(
        s->path, &(linnet_model_options){
                     .threads = 1, .backend = backend, .isa = "generic", .activations = p->act});
}

static linnet_session *begin(const subject *s, linnet_model *m, const precision *p) {
    linnet_session *x;
    linnet_session_options o = {.kv = p->kv, .window_mode = s->mode};
    return linnet_session_new(&x, m, &o, NULL) ? NULL : x; /* q8_0 does not suit all heads */
}

/* Feeds tokens [from, to) in pieces of `chunk` (0: at once), but a prompt under terrace-hf whole.
 */
static void feed(const subject *s, linnet_session *x, size_t from, size_t to, size_t chunk,
                 float *out) {
    linnet_error err;
    rows_at rows = {out, s->width};
    for (size_t n; from < to; from += n) {
        n = chunk && chunk < to - from ? chunk : to - from;
        if (s->mode == LINNET_TERRACE_HF && from < TERRACE_PROMPT) n = TERRACE_PROMPT - from;
        linnet_item item = {x, s->ids + from, n, LINNET_LOGITS_ALL, collect_rows, &rows, false};
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s: %s", s->name, err.text);
    }
}

static double rms(const float *x, size_t n) {
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)x[i] * x[i];
    return sqrt(square / (double)n);
}

static size_t largest(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void near(const subject *s, const char *way, const precision *p, const float *got,
                 size_t from, size_t to) {
    double scale = rms(s->want, N * s->width), worst = 0, square = 0;
    for (size_t i = from * s->width; i < to * s->width; i++) {
        double error = fabs((double)got[i] - s->want[i]);
        square += error * error;
        if (!(error <= worst)) worst = error;
    }
    if (p != &exact) worst = sqrt(square / (double)((to - from) * s->width));
    if (!(worst <= p->nearness * scale))
        fail_msg("%s, activations %d, kv %d: %s: logits differ by %g of the RMS", s->name, p->act,
                 p->kv, way, worst / scale);
    for (size_t t = from; t < to && p == &exact; t++) {
        const float *want = s->want + t * s->width, *have = got + t * s->width;
        size_t a = largest(want, s->width), b = largest(have, s->width);
        if (want[a] - want[b] > 2e-4 * scale)
            fail_msg("%s: %s: position %zu: greedy %zu, expected %zu", s->name, way, t, b, a);
    }
}

/* ---- States ---------------------------------------------------------------------------------- */

static void *saved(linnet_session *x, size_t *n) {
    linnet_error err;
    *n = linnet_session_size(x);
    void *bytes = malloc(*n);
    if (linnet_session_save(x, bytes, *n, &err)) fail_msg("%s", err.text);
    return bytes;
}

static void states_near(const subject *s, linnet_session *x, linnet_session *y) {
    linnet_model *m = x->model, *n = y->model;
    linnet_error err;
    size_t bytes = m->state_bytes;
    assert_int_equal(bytes, n->state_bytes);
    if (!bytes) return;
    uint8_t *a = malloc(bytes), *b = malloc(bytes);
    if (m->backend->ops->read(m->backend, a, x->state, bytes, &err) ||
        n->backend->ops->read(n->backend, b, y->state, bytes, &err))
        fail_msg("%s", err.text);
    for (int l = 0; l < m->cfg.n_layers; l++) {
        const layer_weights *w = &m->layers[l];
        if (!w->mixer->state_bytes) continue;
        size_t count = w->mixer->state_bytes(m, w->mixer_weights) / sizeof(float);
        const float *u = (const float *)(const void *)(a + w->state_at);
        const float *v = (const float *)(const void *)(b + w->state_at);
        double scale = rms(u, count), worst = 0;
        for (size_t i = 0; i < count; i++) /* counters are whole numbers: tiny as floats, equal */
            if (!(fabs((double)u[i] - v[i]) <= worst)) worst = fabs((double)u[i] - v[i]);
        if (!(worst <= 1e-3 * scale))
            fail_msg("%s: the state of layer %d (%s) differs by %g of its RMS", s->name, l,
                     w->mixer->name, worst / scale);
    }
    free(a);
    free(b);
}

/* A state saved on the one and loaded on the other, which goes on. */
static void moves(const subject *s, linnet_model *from, linnet_model *to, const char *way,
                  float *out) {
    linnet_error err;
    static const size_t places[] = {1, 50, 64};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        size_t at = places[i];
        if (s->mode == LINNET_TERRACE_HF && at < TERRACE_PROMPT) continue;
        linnet_session *x = begin(s, from, &exact), *y = begin(s, to, &exact);
        size_t bytes;
        feed(s, x, 0, at, 0, out);
        void *state = saved(x, &bytes);
        if (linnet_session_load(y, state, bytes, &err)) fail_msg("%s: %s", s->name, err.text);
        feed(s, y, at, N, 5, out);
        near(s, way, &exact, out, at, N);
        free(state);
        linnet_session_free(x);
        linnet_session_free(y);
    }
}

/* ---- Ways to the same logits ------------------------------------------------------------------
 */

static void in_pieces(const subject *s, linnet_model *m, const precision *p, float *out) {
    static const size_t chunks[] = {0, 1, 33};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        char way[32];
        linnet_session *x = begin(s, m, p);
        if (!x) return;
        snprintf(way, sizeof way, "chunks of %zu", chunks[i]);
        size_t begun = chunks[i] == 1 && p != &exact ? 56 : 0; /* decoding is slow to emulate */
        feed(s, x, 0, begun, 0, out);
        feed(s, x, begun, N, chunks[i], out);
        near(s, way, p, out, 0, N);
        if (p == &exact && s->mode != LINNET_TERRACE_HF) {
            linnet_session *y = begin(s, s->cpu, p);
            float *rest = malloc(N * s->width * sizeof *rest);
            feed(s, y, 0, N, 0, rest);
            states_near(s, y, x);
            free(rest);
            linnet_session_free(y);
        }
        linnet_session_free(x);
    }
}

static void in_batches(const subject *s, linnet_model *m, float *out) {
    enum { B = 3 };
    linnet_session *x[B];
    linnet_error err;
    float *all[B];
    if (s->mode == LINNET_TERRACE_HF) return;
    for (int b = 0; b < B; b++) { /* at depths 0, 11, 22 */
        x[b] = begin(s, m, &exact);
        all[b] = malloc(N * s->width * sizeof **all);
        feed(s, x[b], 0, 11 * (size_t)b, 0, all[b]);
    }
    for (size_t t = 0; t + 11 * (B - 1) < N;) {
        size_t n[B], most = N - 11 * (B - 1) - t;
        linnet_item items[B];
        rows_at rows[B];
        for (int b = 0; b < B; b++) {
            n[b] = most < 4 ? most : t % 3 ? 1 : 4; /* steps, and pieces side by side */
            rows[b] = (rows_at){all[b], s->width};
            items[b] = (linnet_item){
                x[b], s->ids + t + 11 * b, n[b], LINNET_LOGITS_ALL, collect_rows, &rows[b], false};
        }
        if (linnet_forward(items, B, NULL, NULL, &err)) fail_msg("%s: %s", s->name, err.text);
        t += n[0];
    }
    for (int b = 0; b < B; b++) {
        near(s, "in a batch", &exact, all[b], 0, N - 11 * (size_t)(B - 1 - b));
        free(all[b]);
        linnet_session_free(x[b]);
    }
    (void)out;
}

static void forked(const subject *s, linnet_model *m, float *out) {
    linnet_error err;
    linnet_session *x = begin(s, m, &exact), *y;
    size_t at = 50;
    feed(s, x, 0, at, 0, out);
    if (linnet_session_fork(x, &y, &err)) fail_msg("%s: %s", s->name, err.text);
    feed(s, x, at, N, 3, out);
    near(s, "the original", &exact, out, 0, N);
    linnet_session_free(x);
    feed(s, y, at, N, 1, out);
    near(s, "the fork", &exact, out, at, N);
    linnet_session_free(y);
}

#ifdef EMULATED
/* Threads and blocks in other orders: the same bits. */
static void without_races(const subject *s, linnet_model *m, const precision *p, float *out) {
    float *first = malloc(N * s->width * sizeof *first);
    for (int order = 0; order < 3; order++) {
        linnet_session *x = begin(s, m, p);
        if (!x) break;
        simt_set_order(order == 0   ? SIMT_FORWARD
                       : order == 1 ? SIMT_REVERSE
                                    : SIMT_SHUFFLED,
                       (uint64_t)order);
        feed(s, x, 0, 60, 0, out);
        feed(s, x, 60, N, 1, out);
        linnet_session_free(x);
        if (!order) memcpy(first, out, N * s->width * sizeof *first);
        if (memcmp(first, out, N * s->width * sizeof *first))
            fail_msg("%s, activations %d: a race: other bits in order %d", s->name, p->act, order);
    }
    simt_set_order(SIMT_FORWARD, 0);
    free(first);
}
#endif

static void parity(void **state) {
    subject *s = *state;
    s->cpu = open_on(s, "cpu", &exact);
    linnet_model *m = open_on(s, "cuda", &exact);
    const linnet_model_info *info = linnet_model_get_info(m);
    s->width = (size_t)info->n_rows;
    assert_non_null(strstr(info->backend, "cuda:0"));
    for (size_t t = 0; t < N; t++)
        s->ids[t] = (int32_t)((t * t * 7 + t * 3 + t / 11) % s->width);
    s->want = malloc(N * s->width * sizeof *s->want);
    float *out = malloc(N * s->width * sizeof *out);
    linnet_session *x = begin(s, s->cpu, &exact);
    feed(s, x, 0, N, 0, s->want);
    linnet_session_free(x);
    in_pieces(s, m, &exact, out);
    in_batches(s, m, out);
    forked(s, m, out);
    moves(s, s->cpu, m, "from the CPU", out);
    moves(s, m, s->cpu, "to the CPU", out);
#ifdef EMULATED
    without_races(s, m, &exact, out);
#endif
    linnet_model_close(m);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        m = open_on(s, "cuda", &others[i]);
        in_pieces(s, m, &others[i], out);
#ifdef EMULATED
        if (!i) without_races(s, m, &others[i], out);
#endif
        linnet_model_close(m);
    }
    linnet_model_close(s->cpu);
    free(s->want);
    free(out);
}

/* ---- All of it ---------------------------------------------------------------------------------
 */

enum { MAX_TESTS = 128 };
static struct CMUnitTest tests[MAX_TESTS];
static subject subjects[MAX_TESTS];
static int n_tests;

static void add(const char *path, linnet_window_mode mode, const char *what, int argc,
                char **argv) {
    subject *s = &subjects[n_tests];
    const char *slash = strrchr(path, '/') + 1;
    snprintf(s->path, sizeof s->path, "%s", path);
    snprintf(s->name, sizeof s->name, "%.*s%s", (int)strcspn(slash, "."), slash, what);
    s->mode = mode;
    bool chosen = argc < 2;
    for (int i = 1; i < argc; i++)
        chosen = chosen || strstr(s->name, argv[i]);
    if (chosen) tests[n_tests++] = (struct CMUnitTest){s->name, parity, NULL, NULL, s};
}

int main(int argc, char **argv) {
    static const char *const terrace = "tests/data/window_modes/terrace.gguf";
    glob_t found;
    if (glob("tests/data/models/*.gguf", 0, NULL, &found)) return 1;
    for (size_t i = 0; i < found.gl_pathc && n_tests < MAX_TESTS - 3; i++)
        add(found.gl_pathv[i], LINNET_SLIDING, "", argc, argv);
    globfree(&found);
    add(terrace, LINNET_SLIDING, "_sliding", argc, argv);
    add(terrace, LINNET_TERRACE, "_terrace", argc, argv);
    add(terrace, LINNET_TERRACE_HF, "_terrace_hf", argc, argv);
    return _cmocka_run_group_tests("cuda", tests, (size_t)n_tests, NULL, NULL);
}
