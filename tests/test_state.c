/* State as a value: forks go ways of their own; whatever is damaged is refused and leaves the
 * session as it was. That what is saved or forked at any position continues bit for bit, also
 * elsewhere, is in test_grid.c. */
#include "../model.h"
#include "../weights/hash.h"

#include "each_model.h"

#include <sys/stat.h>
#include <unistd.h>

enum { MAX_IDS = 130 };
static char folder[] = "/tmp/linnet_state_XXXXXX";

typedef struct {
    char path[256];
    int32_t ids[MAX_IDS];
    size_t n, width;
} golden;

static golden find(const char *name) {
    golden g;
    char path[256];
    snprintf(g.path, sizeof g.path, "tests/data/models/%s.gguf", name);
    snprintf(path, sizeof path, "tests/data/models/%s.ids", name);
    g.n = read_ids(path, g.ids, MAX_IDS);
    for (size_t n = g.n; g.n < MAX_IDS; g.n++) /* again and again, to fill pages and windows */
        g.ids[g.n] = g.ids[g.n % n];
    linnet_model *m = open_model(g.path, &(linnet_model_options){.threads = 1});
    g.width = (size_t)linnet_model_get_info(m)->n_rows;
    linnet_model_close(m);
    return g;
}

typedef struct {
    uint8_t *at;
    size_t n;
} bytes;

static bytes save(const linnet_session *s) {
    linnet_error err;
    size_t n = (size_t)linnet_session_size(s);
    bytes b = {malloc(n + 8), n};
    memset(b.at, 0xA5, n + 8);
    if (linnet_session_save(s, b.at, n, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(b.at[n + i], 0xA5); /* not a byte more */
    return b;
}

static void load(linnet_session *s, bytes b) {
    linnet_error err;
    if (linnet_session_load(s, b.at, b.n, &err)) fail_msg("%s", err.text);
}

static linnet_session *fork_of(const linnet_session *s) {
    linnet_error err;
    linnet_session *f;
    if (linnet_session_fork(s, &f, &err)) fail_msg("%s", err.text);
    return f;
}

/* Feeds ids [from, to) in pieces of `chunk` and compares each row with `all`'s. */
static void continues(const char *what, linnet_session *s, const golden *g, size_t from, size_t to,
                      size_t chunk, const float *all) {
    float *out = malloc((to - from + 1) * g->width * sizeof *out);
    size_t n;
    linnet_error err;
    linnet_session_tokens(s, &n);
    assert_int_equal(n, from);
    if (from) {
        assert_non_null(linnet_session_logits(s));
        assert_memory_equal(linnet_session_logits(s), all + (from - 1) * g->width,
                            g->width * sizeof *all);
    }
    rows_at rows = {out - from * g->width, g->width};
    for (size_t at = from; at < to;) {
        size_t some = !chunk || to - at < chunk ? to - at : chunk;
        linnet_item item = {s, g->ids + at, some, LINNET_LOGITS_ALL, collect_rows, &rows, false};
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s: %s", what, err.text);
        at += some;
    }
    if (memcmp(out, all + from * g->width, (to - from) * g->width * sizeof *all))
        fail_msg("%s: %s: tokens %zu to %zu differ", g->path, what, from, to);
    free(out);
}

static float *all_logits(linnet_model *m, const golden *g, const linnet_session_options *o) {
    linnet_session *s = open_session(m, o);
    float *all = malloc(g->n * g->width * sizeof *all);
    feed_all(s, g->ids, g->n, 0, g->width, all);
    linnet_session_free(s);
    return all;
}

/* A fork and its original go different ways, at once in a batch and one after the other. */
static void forks_diverge(void **state) {
    static const size_t places[] = {0, 1, 7, 63, 64, 65, 100, 127, 128};
    golden g = find(*state), other = g;
    linnet_model *m = open_model(g.path, &(linnet_model_options){.threads = 2});
    float *all = all_logits(m, &g, NULL);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        size_t at = places[i];
        linnet_error err;
        if (at + 2 > g.n) continue;
        for (size_t j = at; j < g.n; j++)
            other.ids[j] = g.ids[g.n - 1 - j];
        float *all_other = all_logits(m, &other, NULL);
        linnet_session *s = open_session(m, NULL);
        if (at && linnet_feed(s, g.ids, at, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
        linnet_session *f = fork_of(s), *snapshot = fork_of(f);
        for (size_t j = at; j < g.n && j < at + 4; j++) {
            linnet_item both[] = {{s, g.ids + j, 1, LINNET_LOGITS_LAST, NULL, NULL, false},
                                  {f, other.ids + j, 1, LINNET_LOGITS_LAST, NULL, NULL, false}};
            if (linnet_forward(both, 2, NULL, NULL, &err)) fail_msg("%s", err.text);
        }
        size_t now = at + 4 < g.n ? at + 4 : g.n;
        continues("original", s, &g, now, g.n, 5, all);
        linnet_session_free(s);
        continues("fork", f, &other, now, g.n, 0, all_other);
        linnet_session_free(f);
        continues("snapshot", snapshot, &g, at, g.n, 0, all);
        linnet_session_free(snapshot);
        memcpy(other.ids, g.ids, sizeof g.ids);
        free(all_other);
    }
    linnet_model_close(m);
    free(all);
}

/* All that can be seen of a session, as it would be saved. */
static void unchanged(const char *what, const linnet_session *s, bytes before) {
    bytes now = save(s);
    if (now.n != before.n || memcmp(now.at, before.at, now.n))
        fail_msg("%s: the session changed", what);
    free(now.at);
}

static void refused(const char *what, linnet_session *s, const uint8_t *at, size_t n,
                    linnet_status code, const char *text) {
    linnet_error err = {0};
    linnet_status status = linnet_session_load(s, at, n, &err);
    if (!status) fail_msg("%s: accepted", what);
    assert_int_equal(status, err.code);
    if (code && status != code) fail_msg("%s: code %d: %s", what, status, err.text);
    if (!strstr(err.text, text)) fail_msg("%s: '%s' lacks '%s'", what, err.text, text);
}

/* Every cut and every flipped bit of a small state; afterwards the session goes on as its twin. */
static void every_damage(void **state) {
    golden g = find(*state);
    linnet_model *m = open_model(g.path, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL), *t = open_session(m, NULL);
    linnet_error err;
    float *all = all_logits(m, &g, NULL);
    size_t at = 66;
    if (linnet_feed(s, g.ids, 3, LINNET_LOGITS_LAST, &err) ||
        linnet_feed(t, g.ids, at, LINNET_LOGITS_LAST, &err))
        fail_msg("%s", err.text);
    bytes b = save(s), before = save(t);
    for (size_t n = 0; n < b.n; n++) {
        uint8_t *cut = malloc(n ? n : 1); /* AddressSanitizer sees the least over-read */
        memcpy(cut, b.at, n);
        refused("cut", t, cut, n, LINNET_ERR_FORMAT, n ? "truncated" : "empty");
        free(cut);
    }
    /* Bits: all of the head, the layers and the end, a sample of the rest. */
    for (size_t i = 0; i < b.n; i += i < 600 || i + 64 > b.n ? 1 : 37)
        for (int bit = 0; bit < 8; bit++) {
            b.at[i] ^= (uint8_t)(1 << bit);
            refused("flipped", t, b.at, b.n, 0, "the state: ");
            b.at[i] ^= (uint8_t)(1 << bit);
        }
    unchanged("damage", t, before);
    continues("after damage", t, &g, at, g.n, 11, all);
    load(t, b); /* and whole it is fine */
    continues("whole", t, &g, 3, g.n, 0, all);
    free(b.at);
    free(before.at);
    linnet_session_free(s);
    linnet_session_free(t);
    linnet_model_close(m);
    free(all);
}

/* ---- one model is enough ------------------------------------------------------------------- */

#define MODEL "tests/data/models/llama_f16.gguf"

static void flip_all_bits(void **state) {
    (void)state;
    golden g = find("llama_f16");
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL), *t = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 1, LINNET_LOGITS_NONE, &err)) fail_msg("%s", err.text);
    bytes b = save(s), before = save(t);
    for (size_t i = 0; i < b.n; i++)
        for (int bit = 0; bit < 8; bit++) {
            b.at[i] ^= (uint8_t)(1 << bit);
            refused("flipped", t, b.at, b.n, 0, "the state: ");
            b.at[i] ^= (uint8_t)(1 << bit);
        }
    unchanged("flips", t, before);
    free(b.at);
    free(before.at);
    linnet_session_free(s);
    linnet_session_free(t);
    linnet_model_close(m);
}

/* Changes 4 bytes and makes the checksum right again: only the meaning is wrong. */
static void forge(bytes b, size_t at, uint32_t value) {
    memcpy(b.at + at, &value, 4);
    uint64_t sum = hash64_of(b.at, b.n - 8);
    memcpy(b.at + b.n - 8, &sum, 8);
}

static void forged_states(void **state) {
    (void)state;
    golden g = find("mistral_window");
    linnet_model *m = open_model(g.path, &(linnet_model_options){.threads = 1});
    const linnet_model_info *info = linnet_model_get_info(m);
    linnet_session *s = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 130, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    bytes b = save(s);
    size_t layers = 88, tokens = layers + 48 * (size_t)info->n_layers, pages = tokens + 4 * 130;
    struct {
        const char *what;
        size_t at;
        uint32_t value;
        linnet_status code;
        const char *text;
    } lies[] = {
        {"magic", 0, 0x46554747, LINNET_ERR_FORMAT, "not a saved state"},
        {"version 0", 8, 0, LINNET_ERR_UNSUPPORTED, "version 0"},
        {"version 2", 8, 2, LINNET_ERR_UNSUPPORTED, "version 2"},
        {"flags", 12, 3, LINNET_ERR_FORMAT, "damaged"},
        {"no logits after all", 12, 0, LINNET_ERR_FORMAT, "damaged"},
        {"shorter", 16, (uint32_t)b.n - 1, LINNET_ERR_FORMAT, "damaged"},
        {"longer", 16, (uint32_t)b.n + 1, LINNET_ERR_FORMAT, "truncated"},
        {"configuration", 24, 1, LINNET_ERR_ARGUMENT, "configuration"},
        {"weights", 32, 1, LINNET_ERR_ARGUMENT, "weights"},
        {"layers", 40, 77, LINNET_ERR_ARGUMENT, "77 layers"},
        {"no layers", 40, 0, LINNET_ERR_ARGUMENT, "0 layers"},
        {"all layers", 40, UINT32_MAX, LINNET_ERR_ARGUMENT, "layers"},
        {"rows", 44, 3, LINNET_ERR_ARGUMENT, "3 rows"},
        {"kv", 48, 1, LINNET_ERR_ARGUMENT, "as f32, the session as f16"},
        {"kv of nowhere", 48, 3, LINNET_ERR_FORMAT, "damaged"},
        {"activations", 52, 9, LINNET_ERR_FORMAT, "damaged"},
        {"heads", 56, 99, LINNET_ERR_ARGUMENT, "99 KV heads"},
        {"head size", 60, 99, LINNET_ERR_ARGUMENT, "99 dimensions"},
        {"window mode", 64, 1, LINNET_ERR_ARGUMENT, "window mode"},
        {"reserved", 68, 1, LINNET_ERR_FORMAT, "damaged"},
        {"no tokens", 72, 0, LINNET_ERR_FORMAT, "damaged"},
        {"fewer tokens", 72, 129, LINNET_ERR_FORMAT, "damaged"},
        {"more tokens", 72, 131, LINNET_ERR_FORMAT, ""},
        {"many tokens", 72, UINT32_MAX, LINNET_ERR_CONTEXT, "more than the context"},
        {"very many", 76, UINT32_MAX, LINNET_ERR_CONTEXT, "more than the context"},
        {"pages", 80, 2, LINNET_ERR_FORMAT, "2 KV pages"},
        {"many pages", 84, 1, LINNET_ERR_FORMAT, "KV pages"},
        {"mixer", layers, 0x41414141, LINNET_ERR_ARGUMENT, "layer 0 is AAAA"},
        {"window", layers + 32, 5, LINNET_ERR_ARGUMENT, "window of 5"},
        {"no kv", layers + 36, 0, LINNET_ERR_ARGUMENT, "layer 0"},
        {"layer's state", layers + 40, 8, LINNET_ERR_ARGUMENT, "8 bytes of state"},
        {"token -1", tokens, UINT32_MAX, LINNET_ERR_FORMAT, "token 0 is -1"},
        {"token too large", tokens + 4 * 129, (uint32_t)info->n_rows, LINNET_ERR_FORMAT,
         "token 129"},
        {"needed page", pages - 1, 0x00000000, LINNET_ERR_FORMAT, ""},
    };
    uint8_t *whole = malloc(b.n);
    memcpy(whole, b.at, b.n);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        forge(b, lies[i].at, lies[i].value);
        refused(lies[i].what, s, b.at, b.n, lies[i].code, lies[i].text);
        memcpy(b.at, whole, b.n);
    }
    for (uint8_t page = 0; page < 3; page++) { /* what is held: neither more nor less */
        b.at[pages + page] ^= 1;
        forge(b, 8, 1);
        refused("a page", s, b.at, b.n, LINNET_ERR_FORMAT, "damaged");
        memcpy(b.at, whole, b.n);
        b.at[pages + page] = 7;
        forge(b, 8, 1);
        refused("a page that is 7", s, b.at, b.n, LINNET_ERR_FORMAT, "damaged");
        memcpy(b.at, whole, b.n);
    }
    unchanged("lies", s, b);
    /* bytes behind the end, also with a length that says so */
    bytes longer = {malloc(b.n + 5), b.n + 5};
    memcpy(longer.at, b.at, b.n);
    memset(longer.at + b.n, 0, 5);
    refused("trailing", s, longer.at, longer.n, LINNET_ERR_FORMAT, "damaged");
    forge(longer, 16, (uint32_t)longer.n);
    refused("trailing and counted", s, longer.at, longer.n, LINNET_ERR_FORMAT, "damaged");
    free(longer.at);
    free(whole);
    free(b.at);
    linnet_session_free(s);
    linnet_model_close(m);
}

/* LoLCATs states hold positions: how far keys have left the window. */
static void positions_inside(void **state) {
    (void)state;
    golden g = find("lolcats_softmax_full");
    linnet_model *m = open_model(g.path, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 130, LINNET_LOGITS_NONE, &err)) fail_msg("%s", err.text);
    bytes b = save(s), before = save(s);
    size_t at = 88 + 48 * (size_t)m->cfg.n_layers + 4 * 130 + 3;
    at += m->layers[0].mixer->state_bytes(m, m->layers[0].mixer_weights) - 4;
    uint32_t folded, first = 130 + 1 - (uint32_t)m->layers[0].window;
    memcpy(&folded, b.at + at, 4);
    assert_int_equal(folded, first);
    const uint32_t lies[] = {0, first - 64, 131, UINT32_MAX, INT32_MAX, 1u << 31};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        forge(b, at, lies[i]);
        refused("a position", s, b.at, b.n, LINNET_ERR_FORMAT, "layer 0 (lolcats)");
    }
    unchanged("positions", s, before);
    free(b.at);
    free(before.at);
    linnet_session_free(s);
    linnet_model_close(m);
}

static void other_sessions(void **state) {
    (void)state;
    golden g = find("llama_f16");
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 20, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    bytes b = save(s);
    linnet_session *small = open_session(m, &(linnet_session_options){.ctx = 19});
    refused("small", small, b.at, b.n, LINNET_ERR_CONTEXT,
            "20 tokens, more than the context of 19");
    linnet_session *f32 = open_session(m, &(linnet_session_options){.kv = LINNET_KV_F32});
    refused("kv", f32, b.at, b.n, LINNET_ERR_ARGUMENT, "as f16, the session as f32");
    linnet_model *exact =
        open_model(MODEL, &(linnet_model_options){.activations = LINNET_ACT_EXACT, .threads = 1});
    linnet_session *e = open_session(exact, NULL);
    refused("exact", e, b.at, b.n, LINNET_ERR_ARGUMENT, "as f16, the session as f32");
    for (int i = 0; i < n_names; i++) {
        char path[256];
        snprintf(path, sizeof path, "tests/data/models/%.63s.gguf", names[i]);
        if (!strcmp(path, MODEL)) continue;
        linnet_model *o = open_model(path, &(linnet_model_options){.threads = 1});
        linnet_session *t = open_session(o, NULL);
        refused(names[i], t, b.at, b.n, LINNET_ERR_ARGUMENT, "another model");
        linnet_session_free(t);
        linnet_model_close(o);
    }
    linnet_session_free(small);
    linnet_session_free(f32);
    linnet_session_free(e);
    linnet_session_free(s);
    linnet_model_close(exact);
    linnet_model_close(m);
    free(b.at);
}

static void copy_file(const char *from, const char *to, long flip) {
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_non_null(in);
    assert_non_null(out);
    for (long at = 0;; at++) {
        int c = getc(in);
        if (c == EOF) break;
        putc(at == flip ? c ^ 1 : c, out);
    }
    fclose(in);
    fclose(out);
}

/* One bit of one weight, anywhere, makes another model; a copy is the same. */
static void weights_matter(void **state) {
    (void)state;
    golden g = find("llama_f16");
    char path[300];
    snprintf(path, sizeof path, "%s/copy.gguf", folder);
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 20, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    bytes b = save(s);
    size_t n_tensors = (size_t)linnet_model_get_info(m)->n_tensors;
    copy_file(MODEL, path, -1);
    linnet_model *same = open_model(path, &(linnet_model_options){.threads = 1});
    linnet_session *t = open_session(same, NULL);
    load(t, b);
    linnet_session_free(t);
    linnet_model_close(same);
    for (size_t i = 0; i < n_tensors; i++) {
        const gguf_tensor *tensor = gguf_tensor_at(m->file, i);
        copy_file(MODEL, path, (long)(tensor->offset + tensor->bytes * i / n_tensors));
        linnet_model *other = open_model(path, &(linnet_model_options){.threads = 1});
        t = open_session(other, NULL);
        refused(tensor->name, t, b.at, b.n, LINNET_ERR_ARGUMENT, "weights");
        linnet_session_free(t);
        linnet_model_close(other);
    }
    unlink(path);
    free(b.at);
    linnet_session_free(s);
    linnet_model_close(m);
}

/* Layers behind windows keep what these show and the sinks, beside one that keeps all: so do the
 * session, its copies and its bytes. */
static void windows_beside_all(void **state) {
    (void)state;
    enum { N = 400, PAGES = (N + PAGE - 1) / PAGE };
    static const uint8_t expected[PAGES] = {1, 2, 2, 2, 2, 2, 1}; /* sinks; in the window */
    golden g = find("lolcats_exp_sinks");
    linnet_model *m = open_model(g.path, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL), *loaded = open_session(m, NULL);
    linnet_error err;
    for (int i = 0; i < N; i += 100)
        if (linnet_feed(s, g.ids, 100, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    assert_int_equal(s->kv.tables[KV_ALL].held, PAGES);
    assert_int_equal(s->kv.tables[KV_WINDOWED].held, 2);
    assert_int_equal(linnet_session_state_bytes(s), linnet_model_state_bytes(m, LINNET_KV_F16, N));
    bytes b = save(s);
    uint8_t *has = b.at + 88 + 48 * (size_t)m->cfg.n_layers + 4 * N;
    assert_memory_equal(has, expected, PAGES);
    if (linnet_session_load(loaded, b.at, b.n, &err)) fail_msg("%s", err.text);
    unchanged("loaded", loaded, b);
    linnet_session *f = fork_of(s);
    linnet_session *all[] = {s, loaded, f};
    for (size_t i = 0; i < 3; i++)
        if (linnet_feed(all[i], g.ids, 100, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    bytes after = save(s);
    unchanged("loaded, continued", loaded, after);
    unchanged("forked, continued", f, after);
    static const uint8_t lies[][2] = {{0, 2}, {1, 0}, {6, 2}, {6, 0}, {3, 3}}; /* page, what */
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint8_t was = has[lies[i][0]];
        has[lies[i][0]] = lies[i][1];
        forge(b, 8, 1);
        refused("a page", s, b.at, b.n, LINNET_ERR_FORMAT,
                lies[i][1] == 3 ? "neither there nor dropped" : "missing");
        has[lies[i][0]] = was;
    }
    unchanged("lies", s, after);
    free(after.at);
    free(b.at);
    for (size_t i = 0; i < 3; i++)
        linnet_session_free(all[i]);
    linnet_model_close(m);
}

static size_t shared_pages(const linnet_session *a, const linnet_session *b) {
    size_t n = 0;
    const kv_table *ta = &a->kv.tables[KV_ALL], *tb = &b->kv.tables[KV_ALL];
    for (size_t i = 0; i < ta->n_pages && i < tb->n_pages; i++)
        n += ta->pages[i] && ta->pages[i] == tb->pages[i];
    return n;
}

/* A fork copies no page; a token copies the one it is written to. */
static void forks_are_cheap(void **state) {
    (void)state;
    golden g = find("llama_f16");
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 100, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    linnet_session *f = fork_of(s), *h = fork_of(f);
    assert_int_equal(s->kv.tables[KV_ALL].n_pages, 2);
    assert_int_equal(shared_pages(s, f), 2);
    assert_int_equal(shared_pages(s, h), 2);
    assert_int_equal(linnet_session_state_bytes(s), linnet_session_state_bytes(f));
    if (linnet_feed(f, g.ids, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    assert_int_equal(shared_pages(s, f), 1);
    assert_int_equal(shared_pages(s, h), 2);
    linnet_session_free(s);
    linnet_session_free(h);
    const kv_page *page = f->kv.tables[KV_ALL].pages[1]; /* alone now: no copy is needed */
    if (linnet_feed(f, g.ids, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    assert_ptr_equal(page, f->kv.tables[KV_ALL].pages[1]);
    linnet_session_free(f);
    linnet_model_close(m);
}

/* Logits are there or not, in the copy as in the original; a lost state stays lost. */
static void flags_travel(void **state) {
    (void)state;
    golden g = find("llama_f16");
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL), *t = open_session(m, NULL);
    linnet_error err;
    bytes empty = save(s);
    if (linnet_feed(s, g.ids, 5, LINNET_LOGITS_NONE, &err)) fail_msg("%s", err.text);
    bytes none = save(s);
    linnet_session *f = fork_of(s);
    assert_null(linnet_session_logits(f));
    linnet_session_free(f);
    if (linnet_feed(s, g.ids + 5, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    bytes last = save(s);
    load(t, last);
    assert_non_null(linnet_session_logits(t));
    load(t, none);
    assert_null(linnet_session_logits(t));
    if (linnet_feed(t, g.ids + 5, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    unchanged("fed after loading", t, last);
    load(t, empty);
    size_t n;
    linnet_session_tokens(t, &n);
    assert_int_equal(n, 0);
    assert_null(linnet_session_logits(t));
    assert_int_equal(linnet_session_state_bytes(t), m->state_bytes);

    s->lost = true; /* as after a step that failed half-way */
    f = fork_of(s);
    assert_int_equal(linnet_feed(f, g.ids, 1, LINNET_LOGITS_NONE, &err), LINNET_ERR_ARGUMENT);
    linnet_session_free(f);
    assert_int_equal(linnet_session_save(s, last.at, last.n, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "lost"));
    load(s, none); /* a snapshot helps as a reset does */
    if (linnet_feed(s, g.ids + 5, 1, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    unchanged("found again", s, last);
    free(empty.at);
    free(none.at);
    free(last.at);
    linnet_session_free(s);
    linnet_session_free(t);
    linnet_model_close(m);
}

static void misuse(void **state) {
    (void)state;
    golden g = find("llama_f16");
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL), *f;
    linnet_error err;
    uint8_t byte = 0;
    int32_t token;
    assert_int_equal(linnet_session_size(NULL), 0);
    assert_int_equal(linnet_session_save(NULL, &byte, 1, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_save(s, NULL, 1, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_save(s, &byte, 1, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "the buffer has 1"));
    assert_int_equal(linnet_session_load(NULL, &byte, 1, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_load(s, NULL, 1, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_load(s, &byte, 1, NULL), LINNET_ERR_FORMAT);
    assert_int_equal(linnet_session_fork(NULL, &f, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_fork(s, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_save_file(NULL, "x", &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_save_file(s, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_load_file(NULL, "x", &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_load_file(s, NULL, &err), LINNET_ERR_ARGUMENT);

    /* Sessions that outlive their model: an error, and no access to what is gone. */
    if (linnet_feed(s, g.ids, 5, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    f = fork_of(s);
    bytes b = save(s);
    linnet_model_close(m);
    linnet_session *none;
    linnet_sampling sampling = LINNET_SAMPLING_DEFAULT;
    assert_int_equal(linnet_feed(f, g.ids, 1, LINNET_LOGITS_LAST, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "closed"));
    assert_int_equal(linnet_sample(f, &sampling, &token, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_fork(f, &none, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_save(s, b.at, b.n, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_load(s, b.at, b.n, &err), LINNET_ERR_ARGUMENT);
    linnet_session_free(s);
    linnet_session_reset(f);
    linnet_session_free(f);
    free(b.at);
}

static void files(void **state) {
    (void)state;
    golden g = find("llama_f16");
    char path[300], link[300], none[300];
    snprintf(path, sizeof path, "%s/a.state", folder);
    snprintf(link, sizeof link, "%s/link", folder);
    snprintf(none, sizeof none, "%s/none/a.state", folder);
    linnet_model *m = open_model(MODEL, &(linnet_model_options){.threads = 1});
    linnet_session *s = open_session(m, NULL), *t = open_session(m, NULL);
    linnet_error err;
    if (linnet_feed(s, g.ids, 70, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    bytes b = save(s), before = save(t);
    umask(0);
    if (linnet_session_save_file(s, path, &err)) fail_msg("%s", err.text);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, linnet_session_size(s));
    assert_int_equal(st.st_mode & 0777, 0600);
    if (linnet_session_load_file(t, path, &err)) fail_msg("%s", err.text);
    unchanged("from a file", t, b);
    load(t, before);

    /* over an old one, and over a link, whose target stays */
    assert_int_equal(symlink(path, link), 0);
    if (linnet_session_save_file(t, link, &err)) fail_msg("%s", err.text);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISREG(st.st_mode));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, b.n);
    unlink(link);

    /* every cut of the file */
    for (size_t n = b.n; n-- > 0;) {
        if (n % 97 && n > 300) continue;
        assert_int_equal(truncate(path, (off_t)n), 0);
        assert_int_equal(linnet_session_load_file(t, path, &err), LINNET_ERR_FORMAT);
        assert_non_null(strstr(err.text, "a.state"));
    }
    unlink(path);
    assert_int_equal(linnet_session_load_file(t, path, &err), LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "a.state"));
    assert_int_equal(linnet_session_load_file(t, folder, &err), LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "a folder"));
    assert_int_equal(linnet_session_load_file(t, "/dev/null", &err), LINNET_ERR_IO);
    assert_int_equal(linnet_session_load_file(t, MODEL, &err), LINNET_ERR_FORMAT);
    assert_non_null(strstr(err.text, "not a saved state"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(linnet_session_load_file(t, path, &err), LINNET_ERR_IO);
    assert_int_equal(linnet_session_save_file(t, path, &err), LINNET_ERR_IO);
    unlink(path);
    assert_int_equal(linnet_session_save_file(t, folder, &err), LINNET_ERR_IO);
    assert_int_equal(linnet_session_save_file(t, none, &err), LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "none/a.state"));
    assert_int_equal(linnet_session_save_file(t, "/dev/full", &err), LINNET_ERR_IO);
    unchanged("files", t, before);
    assert_int_equal(rmdir(folder), 0); /* nothing was left behind */
    assert_int_equal(mkdir(folder, 0700), 0);
    free(b.at);
    free(before.at);
    linnet_session_free(s);
    linnet_session_free(t);
    linnet_model_close(m);
}

static void known_hashes(void **state) {
    (void)state;
    static const char text[] = "Nobody inspects the spammish repetition";
    assert_true(hash64_of("", 0) == 0xEF46DB3751D8E999u);
    assert_true(hash64_of("a", 1) == 0xD24EC4F1A98C6E5Bu);
    assert_true(hash64_of("abc", 3) == 0x44BC2CF5AD770999u);
    assert_true(hash64_of(text, 39) == 0xFBCEA83C8A378BF1u);
    uint8_t all[200];
    for (int i = 0; i < 200; i++)
        all[i] = (uint8_t)(i * 7);
    for (size_t n = 0; n <= 200; n++)
        for (size_t cut = 0; cut <= n; cut++) {
            hash64 h;
            hash64_begin(&h);
            hash64_add(&h, all, cut);
            hash64_add(&h, all + cut, n - cut);
            assert_true(hash64_end(&h) == hash64_of(all, n));
        }
}

int main(void) {
    if (!mkdtemp(folder)) return 1;
    find_names(".ids");
    add("forks_diverge", forks_diverge);
    add("every_damage", every_damage);
    const struct CMUnitTest once[] = {
        cmocka_unit_test(flip_all_bits),    cmocka_unit_test(forged_states),
        cmocka_unit_test(positions_inside), cmocka_unit_test(other_sessions),
        cmocka_unit_test(weights_matter),   cmocka_unit_test(windows_beside_all),
        cmocka_unit_test(forks_are_cheap),  cmocka_unit_test(flags_travel),
        cmocka_unit_test(misuse),           cmocka_unit_test(files),
        cmocka_unit_test(known_hashes)};
    for (size_t i = 0; i < sizeof once / sizeof *once; i++)
        tests[n_tests++] = once[i];
    int failed = _cmocka_run_group_tests("state", tests, n_tests, NULL, NULL);
    if (rmdir(folder)) failed++;
    return failed;
}
