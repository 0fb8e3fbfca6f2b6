/* The prefix cache: whatever is reused, the logits are those of a session that was fed everything,
 * bit for bit, on every golden model; and what is reused is as much as can be. */
#include "../session/cache.h"

#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 1024 };

static uint64_t random_state = 88172645463325252ull; /* xorshift64 */
static size_t next_random(uint64_t *state, size_t n) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (size_t)(*state >> 33) % n;
}
static size_t below(size_t n) {
    return next_random(&random_state, n);
}

/* ---- Helpers --------------------------------------------------------------------------------- */

typedef struct {
    int32_t ids[MOST];
    size_t n;
} timeline;

static void append(timeline *t, const linnet_model *m, size_t n) {
    assert_true(t->n + n <= MOST);
    while (n--)
        t->ids[t->n++] = (int32_t)below((size_t)m->cfg.n_rows);
}

static linnet_cache *new_cache(linnet_model *m, uint64_t bytes, const char *dir, size_t every) {
    linnet_cache *c;
    linnet_error err;
    linnet_cache_options o = {.bytes = bytes, .dir = dir, .every = every};
    if (linnet_cache_new(&c, m, &o, &err)) fail_msg("%s", err.text);
    return c;
}

static linnet_session_options wide = {.ctx = 0};

static linnet_session *begin(linnet_model *m, size_t ctx) {
    linnet_session_options o = wide;
    if (!m->cfg.learned_positions) o.ctx = (int)ctx;
    return open_session(m, &o);
}

/* The index is sorted, and its bytes are those of all pages once and all else. */
static void check_cache(linnet_cache *c) {
    uint64_t bytes = 0, entries = 0, files = 0, file_bytes = 0;
    const kv_page **pages = malloc(sizeof *pages * 65536);
    size_t n_pages = 0;
    for (size_t i = 0; i < c->n; i++) {
        const cache_entry *e = c->entries[i], *next = i + 1 < c->n ? c->entries[i + 1] : NULL;
        assert_false(e->removed);
        assert_int_equal(e->pins, 0);
        assert_true(e->state || e->file_bytes);
        if (next && next->kind == e->kind) {
            size_t same = common_tokens(e->tokens, e->n, next->tokens, next->n);
            assert_true(same < next->n && (same == e->n || e->tokens[same] < next->tokens[same]));
        }
        files += e->file_bytes != 0;
        file_bytes += e->file_bytes;
        if (!e->state) continue;
        entries++;
        assert_ptr_equal(e->tokens, e->state->tokens);
        assert_int_equal(e->n, e->state->n_tokens);
        bytes += cache_own_bytes(e->state);
        const kv_table *all = &e->state->kv.tables[KV_ALL], *windowed = all + 1;
        for (size_t p = 0; p < all->n_pages + windowed->n_pages; p++) {
            bool last = p >= all->n_pages;
            const kv_page *page = last ? windowed->pages[p - all->n_pages] : all->pages[p];
            size_t k = 0;
            while (page && k < n_pages && pages[k] != page)
                k++;
            if (!page || k < n_pages) continue;
            assert_true(n_pages < 65536);
            pages[n_pages++] = page;
            bytes += e->state->kv.layout.page_bytes[last ? KV_WINDOWED : KV_ALL];
        }
    }
    linnet_cache_stats stats;
    linnet_cache_get_stats(c, &stats);
    assert_int_equal(stats.bytes, bytes);
    assert_int_equal(stats.entries, entries);
    assert_int_equal(stats.files, files);
    assert_int_equal(stats.file_bytes, file_bytes);
    assert_true(bytes <= c->bytes_max);
    assert_int_equal(c->pages.used, n_pages);
    free(pages);
}

/* The session holds the timeline, with the logits of a session that was fed it at once. */
static void holds(const char *what, const linnet_session *s, const timeline *t) {
    linnet_error err;
    linnet_session_options o = {
        .ctx = s->ctx, .kv = (linnet_kv_type)s->kv.layout.kind, .window_mode = s->mode};
    linnet_session *scratch = open_session(s->model, &o);
    if (linnet_feed(scratch, t->ids, t->n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    size_t n;
    const int32_t *tokens = linnet_session_tokens(s, &n);
    assert_int_equal(n, t->n);
    assert_memory_equal(tokens, t->ids, n * sizeof *tokens);
    const float *logits = linnet_session_logits(s);
    assert_non_null(logits);
    if (memcmp(logits, linnet_session_logits(scratch),
               sizeof *logits * (size_t)s->model->cfg.n_rows))
        fail_msg("%s: %s: the logits after %zu tokens differ", gguf_path(s->model->file), what, n);
    linnet_session_free(scratch);
}

static linnet_reuse sync_to(const char *what, linnet_session *s, linnet_cache *c, const timeline *t,
                            size_t mark) {
    linnet_reuse reuse;
    linnet_error err;
    if (linnet_session_sync(s, c, t->ids, t->n, mark, &reuse, &err)) fail_msg("%s", err.text);
    assert_int_equal(reuse.n_reused + reuse.n_fed, t->n);
    assert_true(strlen(reuse.text) > 0 && !strchr(reuse.text, '\n'));
    holds(what, s, t);
    if (c) check_cache(c);
    return reuse;
}

/* At least `least` tokens were reused; the most that a model which can be cut allows is `common`.
 */
static void reused(const char *what, const linnet_session *s, linnet_reuse r, size_t least,
                   size_t common) {
    if (model_can_cut(s->model) && s->mode == LINNET_SLIDING) least = common;
    if (r.n_reused < least || r.n_reused > common)
        fail_msg("%s: %s: reused %zu, expected %zu to %zu (%s)", gguf_path(s->model->file), what,
                 r.n_reused, least, common, r.text);
}

/* The model's own tokens. */
static void answer(linnet_session *s, timeline *t, size_t n) {
    linnet_error err;
    for (size_t i = 0; i < n; i++) {
        append(t, s->model, 1);
        linnet_item item = {s,    &t->ids[t->n - 1],        1, LINNET_LOGITS_LAST, NULL,
                            NULL, s->mode == LINNET_SLIDING};
        if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s", err.text);
    }
}

static size_t context_of(const linnet_model *m) {
    return m->cfg.learned_positions ? min_size((size_t)m->cfg.n_ctx_train, 300) : 300;
}

/* ---- Every model ----------------------------------------------------------------------------- */

/* Ten turns, the last edited, asked again, the first asked anew. */
static void a_conversation(linnet_model *m) {
    enum { TURNS = 10 };
    size_t ctx = context_of(m), turn = ctx / TURNS, marks[TURNS], prompts[TURNS];
    linnet_cache *c = new_cache(m, 0, NULL, 64);
    linnet_session *s = begin(m, ctx);
    timeline t = {.n = 0};
    for (size_t i = 0; i < TURNS; i++) {
        size_t held = t.n;
        marks[i] = held;
        append(&t, m, turn * 2 / 3);
        prompts[i] = t.n;
        linnet_reuse r = sync_to("a turn", s, c, &t, marks[i]);
        assert_int_equal(r.n_reused, held); /* exactly the new tokens */
        answer(s, &t, turn / 3);
    }
    /* The last turn, edited after its first two tokens: the session goes back. */
    timeline edited = t;
    edited.n = marks[TURNS - 1] + 2;
    append(&edited, m, turn / 2);
    while (edited.ids[marks[TURNS - 1] + 2] == t.ids[marks[TURNS - 1] + 2])
        edited.ids[marks[TURNS - 1] + 2] = (int32_t)below((size_t)m->cfg.n_rows);
    linnet_reuse r = sync_to("edited", s, c, &edited, marks[TURNS - 1]);
    reused("edited", s, r, prompts[TURNS - 2], marks[TURNS - 1] + 2);
    /* The first turn: exactly the prompt, regenerated. */
    t.n = prompts[0];
    r = sync_to("regenerated", s, c, &t, 0);
    reused("regenerated", s, r, t.n - !m->state_bytes, t.n - model_can_cut(m));
    /* A session from elsewhere: all is in memory. */
    linnet_session *other = begin(m, ctx);
    r = sync_to("elsewhere", other, c, &edited, 0);
    reused("elsewhere", s, r, edited.n, edited.n);
    assert_non_null(strstr(r.text, "memory"));
    linnet_session_free(other);
    linnet_session_free(s);
    linnet_cache_free(c);
}

/* Four conversations with a common beginning take turns in one session. */
static void taking_turns(linnet_model *m) {
    size_t ctx = context_of(m), turn = ctx / 12;
    linnet_cache *c = new_cache(m, 0, NULL, 64);
    linnet_session *s = begin(m, ctx);
    timeline t[4] = {{.n = 0}};
    append(&t[0], m, turn * 2);
    for (int i = 1; i < 4; i++)
        t[i] = t[0];
    for (int i = 0; i < 4; i++)
        append(&t[i], m, turn);
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 4; i++) {
            size_t held = t[i].n;
            if (k) append(&t[i], m, turn);
            linnet_reuse r = sync_to("taking turns", s, c, &t[i], 0);
            if (k) reused("taking turns", s, r, held, held);
            answer(s, &t[i], turn / 2);
        }
    linnet_session_free(s);
    linnet_cache_free(c);
}

static void without_room(linnet_model *m) {
    size_t ctx = context_of(m), turn = ctx / 10;
    linnet_cache *c = new_cache(m, 1, NULL, 64);
    linnet_session *s = begin(m, ctx);
    timeline a = {.n = 0}, b = {.n = 0};
    linnet_cache_stats stats;
    append(&a, m, turn);
    append(&b, m, turn);
    a.ids[0] = 1, b.ids[0] = 2;
    for (int i = 0; i < 4; i++) {
        timeline *t = i % 2 ? &b : &a;
        append(t, m, turn);
        assert_int_equal(sync_to("without room", s, c, t, 0).n_reused, 0);
        linnet_cache_get_stats(c, &stats);
        assert_int_equal(stats.entries, 0);
    }
    assert_int_equal(stats.hits, 0);
    assert_int_equal(stats.misses, 4);
    linnet_session_free(s);
    linnet_cache_free(c);
}

static void remove_folder(const char *dir) {
    DIR *d = opendir(dir);
    char path[1024];
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%.256s", dir, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    closedir(d);
    assert_int_equal(rmdir(dir), 0);
}

/* A second life: another cache of the same model finds the first one's files. */
static void after_a_restart(linnet_model *m) {
    char dir[] = "/tmp/linnet_cache_XXXXXX";
    assert_non_null(mkdtemp(dir));
    size_t ctx = context_of(m), turn = ctx / 6;
    timeline t = {.n = 0};
    for (int life = 0; life < 3; life++) {
        linnet_cache *c = new_cache(m, 0, dir, 64);
        linnet_session *s = begin(m, ctx);
        size_t held = t.n;
        append(&t, m, turn);
        linnet_reuse r = sync_to("restart", s, c, &t, 0);
        assert_int_equal(r.n_reused, held);
        if (life) assert_non_null(strstr(r.text, "the folder"));
        answer(s, &t, turn / 2);
        linnet_error err;
        if (linnet_cache_keep(c, s, &err)) fail_msg("%s", err.text);
        linnet_session_free(s);
        linnet_cache_free(c);
    }
    remove_folder(dir);
}

/* Timelines that grow, branch, are cut and come back, in two sessions, with a budget for a few. */
static void random_edits(linnet_model *m, int rounds) {
    enum { POOL = 6 };
    char dir[] = "/tmp/linnet_cache_XXXXXX";
    assert_non_null(mkdtemp(dir));
    size_t ctx = context_of(m);
    linnet_session *s[2] = {begin(m, ctx), begin(m, ctx)};
    timeline pool[POOL] = {{.n = 0}};
    linnet_cache_stats stats;
    for (int i = 0; i < POOL; i++)
        append(&pool[i], m, 1 + below(40));
    /* Room for about five sessions. */
    timeline longest = {.n = 0};
    append(&longest, m, ctx - 1);
    linnet_cache *c = new_cache(m, 0, NULL, 64);
    sync_to("the longest", s[0], c, &longest, 0);
    linnet_cache_get_stats(c, &stats);
    uint64_t bytes = stats.bytes / stats.entries * 5;
    linnet_cache_free(c);
    c = new_cache(m, bytes, below(2) ? dir : NULL, 64);
    linnet_error err;
    for (int i = 0; i < rounds; i++) {
        timeline *t = &pool[below(POOL)];
        linnet_session *x = s[below(2)];
        if (below(3) == 0) *t = pool[below(POOL)];
        if (below(3) == 0) t->n = 1 + below(t->n);
        size_t more = below(3) ? below(30) : 0;
        if (t->n + more + 8 > ctx) t->n = 1 + below(20);
        append(t, m, more);
        sync_to("random", x, c, t, below(t->n));
        if (below(3) == 0) answer(x, t, below(8));
        if (below(4) == 0 && linnet_cache_keep(c, x, &err)) fail_msg("%s", err.text);
        if (below(10) == 0 && linnet_cache_flush(c, &err)) fail_msg("%s", err.text);
        if (below(12) == 0) linnet_session_reset(x);
        check_cache(c);
    }
    linnet_cache_free(c);
    linnet_session_free(s[0]);
    linnet_session_free(s[1]);
    remove_folder(dir);
}

static void every_way(void **state) {
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 1});
    a_conversation(m);
    taking_turns(m);
    without_room(m);
    after_a_restart(m);
    random_edits(m, 25);
    linnet_model_close(m);
}

/* ---- Long prompts ---------------------------------------------------------------------------- */

#define LLAMA "tests/data/models/llama_f16.gguf"
#define LOLCATS "tests/data/models/lolcats_exp_sinks.gguf"
#define HYBRID "tests/data/models/gated_delta_hybrid.gguf"
#define WINDOW "tests/data/models/mistral_window.gguf"

static void stops_of_a_long_prompt(void **state) {
    (void)state;
    linnet_model *m = open_model(LOLCATS, &(linnet_model_options){.threads = 1});
    linnet_model *soft = open_model(LLAMA, &(linnet_model_options){.threads = 1});
    linnet_cache *c = new_cache(m, 0, NULL, 0), *cut = new_cache(soft, 0, NULL, 0);
    assert_int_equal(linnet_cache_next(c, 0, 2663, 2000), 1024);
    assert_int_equal(linnet_cache_next(c, 1024, 2663, 2000), 2000 - 1024);
    assert_int_equal(linnet_cache_next(c, 2000, 2663, 2000), 624); /* 2048 is too near */
    assert_int_equal(linnet_cache_next(c, 2624, 2663, 2000), 39);
    assert_int_equal(linnet_cache_next(c, 2624, 2664, 2640), 40);
    assert_int_equal(linnet_cache_next(c, 2048, 2663, 2600), 552); /* not twice in a page */
    assert_int_equal(linnet_cache_next(cut, 0, 2663, 2000), 1024);
    assert_int_equal(linnet_cache_next(cut, 2048, 2663, 2100), 615);
    assert_int_equal(linnet_cache_next(c, 2610, 2663, 2612), 53); /* a turn of a chat: one piece */
    assert_int_equal(linnet_cache_next(c, 5, 5, 0), 0);
    for (int i = 0; i < 2000; i++) { /* always on, never too far, never a handful */
        size_t n = 1 + below(5000), mark = below(n + 1), stops = 0;
        for (size_t held = below(n); held < n;) {
            size_t step = linnet_cache_next(i % 2 ? c : cut, held, n, mark);
            assert_in_range(step, 1, n - held);
            if (held + step < n) assert_true(step >= 64);
            held += step;
            stops++;
        }
        assert_true(stops <= n / 1024 + 4);
    }
    linnet_cache_free(c);
    linnet_cache_free(cut);
    linnet_model_close(m);
    linnet_model_close(soft);
}

/* A long prompt whose last words change; one that is stopped in the middle. */
static void long_prompts(void **state) {
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 1});
    linnet_cache *c = new_cache(m, 0, NULL, 256);
    linnet_session *s = begin(m, MOST);
    timeline t = {.n = 0}, other;
    append(&t, m, 800);
    other = t;
    linnet_reuse r = sync_to("long", s, c, &t, 100);
    assert_int_equal(r.n_reused, 0);
    other.ids[798] = (other.ids[798] + 1) % m->cfg.n_rows;
    linnet_session *x = begin(m, MOST);
    reused("last words", x, sync_to("last words", x, c, &other, 100), 768, 798);
    other = t;
    other.ids[150] = (other.ids[150] + 1) % m->cfg.n_rows;
    reused("after the mark", x, sync_to("after the mark", x, c, &other, 100), 100, 150);
    other = t;
    other.n = 550;
    append(&other, m, 20);
    other.ids[550] = (t.ids[550] + 1) % m->cfg.n_rows;
    r = sync_to("in the middle", x, c, &other, 0);
    reused("in the middle", x, r, 512, 550);
    if (!model_can_cut(m)) {
        assert_non_null(strstr(r.text, "512 of 570 tokens reused from memory"));
        assert_non_null(strstr(r.text, "differ from position 550 on"));
        assert_non_null(strstr(r.text, m->state_bytes ? "cannot be truncated" : "windows"));
    } else {
        assert_string_equal(r.text, "550 of 570 tokens reused from memory; the rest is new");
    }
    linnet_session_free(x);
    linnet_session_free(s);
    linnet_cache_free(c);
    linnet_model_close(m);
}

/* A system prompt in use outlives chats that come once; and there is room for what is left. */
static void a_system_prompt_survives_a_flood(void **state) {
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 1});
    linnet_cache_stats stats;
    linnet_session *s = begin(m, MOST);
    timeline system = {.n = 0};
    append(&system, m, 500);
    linnet_cache *c = new_cache(m, 0, NULL, 0);
    for (int i = 0; i < 4; i++) { /* room for a handful of these */
        timeline t = {.n = 0};
        append(&t, m, 600);
        sync_to("measure", s, c, &t, 0);
    }
    linnet_cache_get_stats(c, &stats);
    uint64_t bytes = stats.bytes;
    linnet_cache_free(c);
    c = new_cache(m, bytes, NULL, 0);
    for (int i = 0; i < 200; i++) {
        bool chat = i < 4 || i % 5 == 0;
        timeline t = {.n = 0};
        if (chat) t = system;
        append(&t, m, chat ? 60 : 560);
        linnet_reuse r;
        linnet_error err;
        if (linnet_session_sync(s, c, t.ids, t.n, chat ? system.n : 0, &r, &err))
            fail_msg("%s", err.text);
        if (i && chat) assert_true(r.n_reused >= system.n && r.n_reused < system.n + 10);
        if (i % 20 == 0) holds("flood", s, &t);
        check_cache(c);
    }
    linnet_cache_get_stats(c, &stats);
    assert_true(stats.evictions > 100);
    linnet_session_free(s);
    linnet_cache_free(c);
    linnet_model_close(m);
}

/* Pages that many snapshots share are counted, and held, once. */
static void shared_pages_count_once(void **state) {
    (void)state;
    linnet_model *m = open_model(HYBRID, &(linnet_model_options){.threads = 1});
    linnet_cache *c = new_cache(m, 0, NULL, 0);
    linnet_session *s = begin(m, MOST);
    timeline t = {.n = 0};
    linnet_cache_stats stats;
    append(&t, m, 640);
    sync_to("a page", s, c, &t, 0);
    linnet_cache_get_stats(c, &stats);
    uint64_t before = stats.bytes, entries = stats.entries;
    for (int i = 0; i < 30; i++)
        answer(s, &t, 1), assert_int_equal(linnet_cache_keep(c, s, NULL), 0);
    linnet_cache_get_stats(c, &stats);
    assert_int_equal(stats.entries, entries + 30);
    /* thirty states, token lists and logits, and one more page a snapshot, not ten */
    const size_t *page = s->kv.layout.page_bytes;
    uint64_t each = cache_own_bytes(s) + page[KV_ALL] + page[KV_WINDOWED];
    assert_true(stats.bytes - before <= 30 * each);
    check_cache(c);
    linnet_session_free(s);
    linnet_cache_free(c);
    linnet_model_close(m);
}

/* ---- Windows of terraces, kinds -------------------------------------------------------------- */

static void terraces(void **state) {
    (void)state;
    linnet_model *m =
        open_model("tests/data/window_modes/terrace.gguf", &(linnet_model_options){.threads = 1});
    linnet_cache *c = new_cache(m, 0, NULL, 64);
    timeline t = {.n = 0};
    append(&t, m, 150);
    wide.window_mode = LINNET_TERRACE;
    linnet_session *s = begin(m, 300);
    sync_to("terrace", s, c, &t, 0);
    append(&t, m, 20);
    assert_int_equal(sync_to("terrace", s, c, &t, 0).n_reused, 150);
    /* Sampled tokens slide: with them the session is not what feeding gives. */
    linnet_error err;
    linnet_item item = {s, t.ids, 1, LINNET_LOGITS_LAST, NULL, NULL, true};
    size_t held = t.n;
    if (linnet_forward(&item, 1, NULL, NULL, &err)) fail_msg("%s", err.text);
    t.ids[t.n++] = t.ids[0];
    append(&t, m, 5);
    assert_int_equal(sync_to("after sampling", s, c, &t, 0).n_reused, held);
    linnet_session_free(s);
    /* Another mode has entries of its own; terrace-hf takes a prompt as a whole, or has it. */
    wide.window_mode = LINNET_TERRACE_HF;
    s = begin(m, 300);
    linnet_reuse r = sync_to("hf", s, c, &t, 0);
    assert_int_equal(r.n_reused, 0);
    append(&t, m, 5);
    r = sync_to("hf", s, c, &t, 0);
    assert_int_equal(r.n_reused, 0);
    assert_non_null(strstr(r.text, "terrace-hf"));
    t.n -= 5;
    assert_int_equal(sync_to("hf again", s, c, &t, 0).n_reused, t.n);
    linnet_session_free(s);
    wide.window_mode = LINNET_SLIDING;
    s = begin(m, 300);
    assert_int_equal(sync_to("sliding", s, c, &t, 0).n_reused, 0);
    linnet_session_free(s);
    linnet_cache_free(c);
    linnet_model_close(m);
}

static void kinds_do_not_mix(void **state) {
    (void)state;
    linnet_model *m = open_model(LLAMA, &(linnet_model_options){.threads = 1});
    linnet_cache *c = new_cache(m, 0, NULL, 0);
    timeline t = {.n = 0};
    append(&t, m, 100);
    for (int i = 0; i < 4; i++) {
        wide.kv = i % 2 ? LINNET_KV_F32 : LINNET_KV_F16;
        linnet_session *s = begin(m, 300);
        assert_int_equal(sync_to("kinds", s, c, &t, 0).n_reused, i < 2 ? 0 : t.n);
        linnet_session_free(s);
    }
    wide.kv = LINNET_KV_F16;
    linnet_cache_free(c);
    linnet_model_close(m);
}

/* A loaded state goes on under other activations; the cache neither keeps nor reuses what they did
 * not compute. */
static void loaded_states_do_not_mix(void **state) {
    (void)state;
    linnet_error err;
    timeline t = {.n = 0};
    static const linnet_activations acts[] = {LINNET_ACT_EXACT, LINNET_ACT_AUTO};
    linnet_model *m[2];
    wide.kv = LINNET_KV_F32;
    for (int i = 0; i < 2; i++)
        m[i] = open_model(LOLCATS, &(linnet_model_options){.threads = 1, .activations = acts[i]});
    append(&t, m[0], 100);
    linnet_session *from = begin(m[0], 300);
    if (linnet_feed(from, t.ids, t.n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
    size_t bytes = linnet_session_size(from);
    uint8_t *saved = malloc(bytes);
    if (linnet_session_save(from, saved, bytes, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < 2; i++) {
        linnet_cache *c = new_cache(m[i], 0, NULL, 0);
        linnet_session *s = begin(m[i], 300);
        linnet_cache_stats stats;
        if (linnet_session_load(s, saved, bytes, &err)) fail_msg("%s", err.text);
        if (linnet_cache_keep(c, s, &err)) fail_msg("%s", err.text);
        linnet_cache_get_stats(c, &stats);
        assert_int_equal(stats.entries, !i);
        assert_int_equal(sync_to("loaded", s, c, &t, 0).n_reused, i ? 0 : t.n);
        linnet_session_free(s);
        linnet_cache_free(c);
    }
    free(saved);
    linnet_session_free(from);
    for (int i = 0; i < 2; i++)
        linnet_model_close(m[i]);
    wide.kv = LINNET_KV_F16;
}

/* ---- The folder ------------------------------------------------------------------------------ */

static size_t files_in(const char *dir, char paths[][512], size_t most) {
    char pattern[512];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*", dir);
    size_t n = glob(pattern, 0, NULL, &found) ? 0 : found.gl_pathc;
    for (size_t i = 0; i < n && i < most; i++)
        snprintf(paths[i], 512, "%s", found.gl_pathv[i]);
    if (n) globfree(&found);
    return n;
}

static void damage(const char *path, int how) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    if (how == 0) assert_int_equal(ftruncate(fileno(f), size / 2), 0);
    if (how == 1) assert_int_equal(ftruncate(fileno(f), 0), 0);
    if (how == 2) assert_int_equal(ftruncate(fileno(f), 40), 0);
    if (how >= 3) {
        long at = how == 3 ? size - 20 : how == 4 ? 9 : how == 5 ? 26 : size / 2;
        fseek(f, at, SEEK_SET);
        int byte = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(byte ^ 0x10, f);
    }
    fclose(f);
}

/* Files that were cut, changed, put there by others: misses, and the answers are right. */
static void damaged_files(void **state) {
    (void)state;
    char dir[] = "/tmp/linnet_cache_XXXXXX", paths[16][512], other[600];
    assert_non_null(mkdtemp(dir));
    linnet_model *m = open_model(LOLCATS, &(linnet_model_options){.threads = 1});
    linnet_session *s = begin(m, 300);
    timeline t = {.n = 0};
    append(&t, m, 50);
    struct stat st;
    for (int how = 0; how < 7; how++) {
        linnet_cache *c = new_cache(m, 0, dir, 0);
        sync_to("before", s, c, &t, 0);
        linnet_session_reset(s);
        if (how >= 3) linnet_cache_free(c), c = NULL;
        if (c) assert_int_equal(linnet_cache_flush(c, NULL), 0);
        assert_int_equal(files_in(dir, paths, 16), 1);
        assert_int_equal(stat(paths[0], &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        linnet_cache *second = how < 3 ? new_cache(m, 0, dir, 0) : NULL; /* knows it whole */
        damage(paths[0], how);
        if (!second) second = new_cache(m, 0, dir, 0);
        assert_int_equal(sync_to("damaged", s, second, &t, 0).n_reused, 0);
        linnet_session_reset(s);
        linnet_cache_free(second);
        linnet_cache_free(c);
        size_t n = files_in(dir, paths, 16);
        assert_int_equal(n,
                         1); /* written again, where it was damaged or beside what was not ours */
        unlink(paths[0]);
    }
    /* Not ours: stays. */
    linnet_cache *c = new_cache(m, 0, dir, 0);
    sync_to("again", s, c, &t, 0);
    linnet_cache_free(c);
    assert_int_equal(files_in(dir, paths, 16), 1);
    snprintf(other, sizeof other, "%s/notes.txt", dir);
    assert_int_equal(symlink(paths[0], other), 0);
    snprintf(other, sizeof other, "%s/0123456789abcdef-0123456789abcdef.state", dir);
    assert_int_equal(symlink("/etc/passwd", other), 0);
    snprintf(other, sizeof other, "%s/0123456789abcdef-0123456789abcde0.state", dir);
    assert_int_equal(link(paths[0], other), 0); /* a state, but not of this name */
    snprintf(other, sizeof other, "%s.tmp-1-0", paths[0]);
    FILE *f = fopen(other, "w");
    fclose(f);
    struct timespec old[2] = {{1000, 0}, {1000, 0}};
    assert_int_equal(utimensat(AT_FDCWD, other, old, 0), 0);
    snprintf(other, sizeof other, "%s.tmp-1-1", paths[0]); /* being written */
    f = fopen(other, "w");
    fclose(f);
    c = new_cache(m, 0, dir, 0);
    linnet_cache_stats stats;
    linnet_cache_get_stats(c, &stats);
    assert_int_equal(stats.files, 1);
    linnet_session_reset(s);
    assert_int_equal(sync_to("beside others", s, c, &t, 0).n_reused, t.n);
    linnet_cache_free(c);
    assert_int_equal(files_in(dir, paths, 16), 5);
    remove_folder(dir);
    linnet_session_free(s);
    linnet_model_close(m);
}

/* Another model, or other activations: not a hit, not an error, not a file less. */
static void other_models(void **state) {
    (void)state;
    static const struct {
        const char *path;
        linnet_activations act;
    } models[] = {{LOLCATS, LINNET_ACT_AUTO},
                  {LOLCATS, LINNET_ACT_EXACT},
                  {"tests/data/models/lolcats_exp_half_long.gguf", LINNET_ACT_AUTO},
                  {HYBRID, LINNET_ACT_AUTO}};
    char dir[] = "/tmp/linnet_cache_XXXXXX", paths[16][512];
    assert_non_null(mkdtemp(dir));
    timeline t = {.n = 0};
    for (int i = 0; i < 30; i++)
        t.ids[t.n++] = i;
    for (int life = 0; life < 2; life++)
        for (int i = 0; i < 4; i++) {
            linnet_model *m =
                open_model(models[i].path,
                           &(linnet_model_options){.threads = 1, .activations = models[i].act});
            linnet_cache *c = new_cache(m, 0, dir, 0);
            linnet_session *s = begin(m, 100);
            assert_int_equal(sync_to("others", s, c, &t, 0).n_reused, life ? t.n : 0);
            linnet_session_free(s);
            linnet_cache_free(c);
            linnet_model_close(m);
        }
    assert_int_equal(files_in(dir, paths, 16), 4);
    remove_folder(dir);
}

/* The folder has a budget of its own, and what was used last stays. */
static void the_folder_is_trimmed(void **state) {
    (void)state;
    char dir[] = "/tmp/linnet_cache_XXXXXX", paths[16][512];
    assert_non_null(mkdtemp(dir));
    linnet_model *m = open_model(LOLCATS, &(linnet_model_options){.threads = 1});
    linnet_session *s = begin(m, 300);
    timeline t[6] = {{.n = 0}};
    linnet_error err;
    for (int i = 0; i < 6; i++)
        append(&t[i], m, 40);
    linnet_cache_options o = {.dir = dir};
    linnet_cache *c = new_cache(m, 0, dir, 0);
    sync_to("one", s, c, &t[0], 0);
    linnet_cache_free(c);
    struct stat st;
    assert_int_equal(files_in(dir, paths, 16), 1);
    assert_int_equal(stat(paths[0], &st), 0);
    o.dir_bytes = (uint64_t)st.st_size * 3;
    if (linnet_cache_new(&c, m, &o, &err)) fail_msg("%s", err.text);
    for (int i = 1; i < 6; i++) {
        sync_to("more", s, c, &t[i], 0);
        sync_to("in use", s, c, &t[0], 0);
        if (linnet_cache_flush(c, &err)) fail_msg("%s", err.text);
        usleep(20000);
        assert_true(files_in(dir, paths, 16) <= 3);
        check_cache(c);
    }
    linnet_cache_free(c);
    c = new_cache(m, 0, dir, 0);
    linnet_session_reset(s);
    assert_int_equal(sync_to("kept", s, c, &t[0], 0).n_reused, t[0].n);
    linnet_session_reset(s);
    assert_int_equal(sync_to("gone", s, c, &t[1], 0).n_reused, 0);
    linnet_cache_free(c);
    linnet_session_free(s);
    linnet_model_close(m);
    remove_folder(dir);
}

/* Two processes, here two models of one file, share a folder while they run. */
static void a_shared_folder(void **state) {
    (void)state;
    char dir[] = "/tmp/linnet_cache_XXXXXX", paths[16][512];
    assert_non_null(mkdtemp(dir));
    linnet_model *m[2];
    linnet_cache *c[2];
    linnet_session *s[2];
    for (int i = 0; i < 2; i++) {
        m[i] = open_model(LLAMA, &(linnet_model_options){.threads = 1});
        c[i] = new_cache(m[i], 0, dir, 0);
        s[i] = begin(m[i], 300);
    }
    timeline t = {.n = 0};
    for (int turn = 0; turn < 6; turn++) {
        int i = turn % 2;
        size_t held = t.n;
        append(&t, m[0], 20);
        linnet_reuse r = sync_to("shared", s[i], c[i], &t, 0);
        assert_int_equal(r.n_reused, held);
        if (turn) assert_non_null(strstr(r.text, "the folder"));
        assert_int_equal(linnet_cache_flush(c[i], NULL), 0);
        usleep(20000); /* the folder's time has changed */
    }
    /* The longest serves for all: the others' files are gone. */
    assert_int_equal(files_in(dir, paths, 16), 1);
    /* A file that the other removed is a miss. */
    unlink(paths[0]);
    linnet_session_reset(s[0]);
    sync_to("removed", s[0], c[0], &t, 0);
    for (int i = 0; i < 2; i++) {
        linnet_session_free(s[i]);
        linnet_cache_free(c[i]);
        linnet_model_close(m[i]);
    }
    remove_folder(dir);
}

/* ---- Threads --------------------------------------------------------------------------------- */

typedef struct {
    linnet_model *m;
    linnet_cache *c;
    const timeline *t;
    float *const *logits;
    uint64_t seed;
    int wrong, failed;
} worker;

enum { THREADS = 4, LINES = 12 };

static void *work(void *user) {
    worker *w = user;
    linnet_error err;
    linnet_session *s, *fork;
    if (linnet_session_new(&s, w->m, &(linnet_session_options){.ctx = MOST}, &err)) return user;
    for (int i = 0; i < 60; i++) {
        size_t k = next_random(&w->seed, LINES);
        w->failed += linnet_session_sync(s, w->c, w->t[k].ids, w->t[k].n,
                                         next_random(&w->seed, w->t[k].n), NULL, &err) != 0;
        w->wrong += memcmp(linnet_session_logits(s), w->logits[k],
                           sizeof(float) * (size_t)w->m->cfg.n_rows) != 0;
        if (i % 5 == 0 && !linnet_session_fork(s, &fork, &err)) {
            int32_t id = 3;
            w->failed += linnet_feed(fork, &id, 1, LINNET_LOGITS_LAST, &err) != 0;
            w->failed += linnet_cache_keep(w->c, fork, &err) != 0;
            linnet_session_free(fork);
        }
        if (i % 20 == 7) w->failed += linnet_cache_flush(w->c, &err) != 0;
        linnet_cache_stats stats;
        linnet_cache_get_stats(w->c, &stats);
    }
    linnet_session_free(s);
    return NULL;
}

static void many_threads(void **state) {
    char dir[] = "/tmp/linnet_cache_XXXXXX";
    assert_non_null(mkdtemp(dir));
    linnet_model *m = open_model(*state, &(linnet_model_options){.threads = 1});
    static timeline t[LINES];
    float *logits[LINES];
    linnet_error err;
    for (int i = 0; i < LINES; i++) {
        t[i].n = 0;
        if (i) t[i] = t[below((size_t)i)];
        t[i].n = t[i].n / 2;
        append(&t[i], m, 20 + below(120));
        linnet_session *s = begin(m, MOST);
        if (linnet_feed(s, t[i].ids, t[i].n, LINNET_LOGITS_LAST, &err)) fail_msg("%s", err.text);
        logits[i] = malloc(sizeof(float) * (size_t)m->cfg.n_rows);
        memcpy(logits[i], linnet_session_logits(s), sizeof(float) * (size_t)m->cfg.n_rows);
        linnet_session_free(s);
    }
    linnet_session *s = begin(m, MOST);
    linnet_cache *c = new_cache(m, 0, NULL, 64);
    sync_to("measure", s, c, &t[0], 0);
    linnet_cache_stats stats;
    linnet_cache_get_stats(c, &stats);
    linnet_cache_free(c);
    linnet_session_free(s);
    c = new_cache(m, stats.bytes * 6, dir, 64);
    worker w[THREADS];
    pthread_t thread[THREADS];
    for (int i = 0; i < THREADS; i++) {
        w[i] = (worker){m, c, t, logits, (uint64_t)i + 77, 0, 0};
        assert_int_equal(pthread_create(&thread[i], NULL, work, &w[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *early;
        pthread_join(thread[i], &early);
        assert_null(early);
        assert_int_equal(w[i].wrong, 0);
        assert_int_equal(w[i].failed, 0);
    }
    check_cache(c);
    linnet_cache_free(c);
    linnet_model_close(m);
    for (int i = 0; i < LINES; i++)
        free(logits[i]);
    remove_folder(dir);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void refusals(void **state) {
    (void)state;
    linnet_model *m = open_model(LLAMA, &(linnet_model_options){.threads = 1});
    linnet_model *other = open_model(LLAMA, &(linnet_model_options){.threads = 1});
    linnet_model *meta = open_model(LLAMA, &(linnet_model_options){.metadata_only = true});
    linnet_cache *c, *d = (linnet_cache *)m;
    linnet_error err;
    assert_int_equal(linnet_cache_new(&d, meta, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_null(d);
    linnet_cache_options o = {.dir = "/proc/nowhere/cache"};
    assert_int_equal(linnet_cache_new(&d, m, &o, &err), LINNET_ERR_IO);
    assert_non_null(strstr(err.text, "/proc/nowhere/cache"));
    o.dir = LLAMA;
    assert_int_equal(linnet_cache_new(&d, m, &o, &err), LINNET_ERR_IO);
    assert_int_equal(linnet_cache_new(&c, m, NULL, &err), 0);
    linnet_session *s = begin(m, 50), *x = begin(other, 50);
    int32_t ids[60] = {1, 2, 3, 4};
    assert_int_equal(linnet_session_sync(s, c, ids, 0, 0, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_sync(s, c, NULL, 4, 0, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_sync(NULL, c, ids, 4, 0, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_session_sync(x, c, ids, 4, 0, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "another model"));
    assert_int_equal(linnet_cache_keep(c, x, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_cache_keep(NULL, s, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_cache_keep(c, s, &err), 0); /* empty: nothing to keep */
    assert_int_equal(linnet_session_sync(s, c, ids, 4, 900, NULL, &err), 0);
    /* Too long, not an id: the session is as it was. */
    assert_int_equal(linnet_session_sync(s, c, ids, 51, 0, NULL, &err), LINNET_ERR_CONTEXT);
    ids[3] = -1;
    assert_int_equal(linnet_session_sync(s, c, ids, 4, 0, NULL, &err), LINNET_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "token 3"));
    size_t n;
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 4);
    /* Without a cache there is the session's own past. */
    linnet_reuse r;
    ids[3] = 9;
    assert_int_equal(linnet_session_sync(s, NULL, ids, 6, 0, &r, &err), 0);
    assert_int_equal(r.n_reused, 3);
    /* Its parts; and a mark, a NULL reuse, that do not matter. */
    linnet_session_reset(s);
    assert_int_equal(linnet_cache_restore(c, s, ids, 0, &r, &err), LINNET_ERR_ARGUMENT);
    assert_int_equal(linnet_cache_restore(c, s, ids, 6, NULL, &err), 0);
    linnet_session_tokens(s, &n);
    assert_int_equal(n, 3);
    assert_null(linnet_session_logits(s));
    linnet_model_close(m);
    assert_int_equal(linnet_cache_restore(c, s, ids, 6, NULL, &err), LINNET_ERR_ARGUMENT);
    linnet_session_free(s);
    linnet_cache_free(c); /* after its model */
    linnet_cache_free(NULL);
    linnet_session_free(x);
    linnet_model_close(other);
    linnet_model_close(meta);
}

/* ---- All of it ------------------------------------------------------------------------------- */

int main(void) {
    enum { MAX_TESTS = 256 };
    static struct CMUnitTest tests[MAX_TESTS] = {
        cmocka_unit_test(stops_of_a_long_prompt),
        {"long_prompts_llama", long_prompts, NULL, NULL, LLAMA},
        {"long_prompts_lolcats", long_prompts, NULL, NULL, LOLCATS},
        {"long_prompts_hybrid", long_prompts, NULL, NULL, HYBRID},
        {"long_prompts_window", long_prompts, NULL, NULL, WINDOW},
        {"flood_llama", a_system_prompt_survives_a_flood, NULL, NULL, LLAMA},
        {"flood_lolcats", a_system_prompt_survives_a_flood, NULL, NULL, LOLCATS},
        {"flood_hybrid", a_system_prompt_survives_a_flood, NULL, NULL, HYBRID},
        cmocka_unit_test(shared_pages_count_once),
        cmocka_unit_test(terraces),
        cmocka_unit_test(kinds_do_not_mix),
        cmocka_unit_test(loaded_states_do_not_mix),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(other_models),
        cmocka_unit_test(the_folder_is_trimmed),
        cmocka_unit_test(a_shared_folder),
        {"threads_llama", many_threads, NULL, NULL, LLAMA},
        {"threads_lolcats", many_threads, NULL, NULL, LOLCATS},
        {"threads_hybrid", many_threads, NULL, NULL, HYBRID},
        cmocka_unit_test(refusals),
    };
    size_t n = 0;
    glob_t found;
    while (tests[n].name)
        n++;
    if (glob("tests/data/models/*.gguf", 0, NULL, &found)) return 1;
    for (size_t i = 0; i < found.gl_pathc && n < MAX_TESTS; i++)
        tests[n++] = (struct CMUnitTest){strrchr(found.gl_pathv[i], '/') + 1, every_way, NULL, NULL,
                                         found.gl_pathv[i]};
    int failed = _cmocka_run_group_tests("cache", tests, n, NULL, NULL);
    globfree(&found);
    return failed;
}
