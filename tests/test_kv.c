/* KV pages: the three layouts as kernels.h has them, growing, sharing by forks with copies on
 * write, cutting at both ends; and long random histories of all of it against plain arrays. */
#include "../session/kv.h"
#include "support.h"

#include <pthread.h>
#include <sys/mman.h>

static uint64_t seed = 1;

static uint32_t draw(uint32_t n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

static float number(void) {
    return ((float)draw(20001) - 10000.0f) / 1000.0f;
}

/* Layers alike, but that of `mixed` every other has no window, from the second on; the last two
 * caches made are valid. */
static kv_cache make_cache_of(bool mixed, kv_kind kind, int layers, int heads, int head_dim) {
    static kv_slot slots[2][8];
    static int at;
    kv_slot *own = slots[at++ % 2];
    assert_in_range(layers, 0, 8);
    for (int i = 0; i < layers; i++)
        own[i] = (kv_slot){
            .heads = heads, .head_dim = head_dim, .table = mixed && i % 2 ? KV_ALL : KV_WINDOWED};
    kv_place(own, layers);
    return (kv_cache){.layout = kv_layout_of(kind, own, layers)};
}

static kv_cache make_cache(kv_kind kind, int layers, int heads, int head_dim) {
    return make_cache_of(false, kind, layers, heads, head_dim);
}

static const kv_table *windowed(const kv_cache *c) {
    return &c->tables[KV_WINDOWED];
}

static void grow(kv_cache *c, size_t from, size_t to) {
    linnet_error err;
    if (kv_reserve(c, from, to, &err)) fail_msg("%s", err.text);
}

static void drop(kv_cache *c, size_t n) {
    kv_drop_before(c, 0, n);
}

/* What a position holds, read by the layout that kernels.h documents. */
static void read_back(const kv_cache *c, size_t position, int layer, int head, float *k, float *v) {
    kv_view p = kv_at(c, position / PAGE, layer, head);
    size_t at = position % PAGE, d = (size_t)c->layout.slots[layer].head_dim,
           padded = (d + 15) / 16 * 16;
    for (size_t i = 0; i < d; i++) {
        if (c->layout.kind == KV_F32) {
            k[i] = ((const float *)p.k)[i * PAGE + at];
            v[i] = ((const float *)p.v)[at * padded + i];
        } else if (c->layout.kind == KV_F16) {
            k[i] = f16_to_f32(((const uint16_t *)p.k)[i * PAGE + at]);
            v[i] = f16_to_f32(((const uint16_t *)p.v)[at * padded + i]);
        } else {
            k[i] = ((const int8_t *)p.k)[i * PAGE + at] * f16_to_f32(p.kd[i / 32 * PAGE + at]);
            v[i] =
                ((const int8_t *)p.v)[at * padded + i] * f16_to_f32(p.vd[at * (d / 32) + i / 32]);
        }
    }
}

/* The largest error that `kind` may make in x, one of a block whose largest magnitude is `max`. */
static float allowed(kv_kind kind, float x, float max) {
    if (kind == KV_F32) return 0;
    if (kind == KV_F16) return fabsf(x) / 2048 + 1e-7f; /* half a unit of 11 bits */
    return max / 127 * 0.5f + max / 1024;               /* half a step; the scale is rounded too */
}

static void expect_vector(kv_kind kind, const float *found, const float *written, size_t n) {
    for (size_t b = 0; b < n; b += 32) {
        float max = 0;
        for (size_t i = b; i < b + 32 && i < n; i++)
            max = fmaxf(max, fabsf(written[i]));
        for (size_t i = b; i < b + 32 && i < n; i++)
            if (!(fabsf(found[i] - written[i]) <= allowed(kind, written[i], max)))
                fail_msg("kind %d: wrote %g, read %g", kind, (double)written[i], (double)found[i]);
    }
}

static void layouts_round_trip(void **state) {
    (void)state;
    static const int dims[] = {2, 6, 8, 12, 16, 32, 64, 96, 128, 512};
    enum { LAYERS = 3, HEADS = 3, N = 70 };
    for (int kind = KV_F16; kind <= KV_Q8_0; kind++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
            size_t d = (size_t)dims[i], each = LAYERS * HEADS * d;
            if (kind == KV_Q8_0 && d % 32) continue;
            kv_cache c = make_cache_of(i % 2, (kv_kind)kind, LAYERS, HEADS, dims[i]);
            for (int t = 0; t < KV_TABLES; t++)
                assert_int_equal(c.layout.page_bytes[t] % 64, 0);
            for (int i = 0; i < c.layout.layers; i++)
                assert_int_equal(c.layout.slots[i].at[kind] % 64, 0);
            float *keys = malloc(N * each * sizeof(float)),
                  *values = malloc(N * each * sizeof(float));
            grow(&c, 0, N);
            for (size_t j = 0; j < N * each; j++) {
                keys[j] = number();
                values[j] = number() / 1000;
            }
            memset(keys, 0, d * sizeof(float)); /* a block of zeros has no scale */
            for (size_t at = 0, j = 0; at < N; at++)
                for (int layer = 0; layer < LAYERS; layer++)
                    for (int head = 0; head < HEADS; head++, j += d)
                        kv_write(&c, &kernels_generic, at, layer, head, keys + j, values + j);
            float k[512], v[512];
            for (size_t at = 0, j = 0; at < N; at++)
                for (int layer = 0; layer < LAYERS; layer++)
                    for (int head = 0; head < HEADS; head++, j += d) {
                        float k2[512], v2[512];
                        read_back(&c, at, layer, head, k, v);
                        kv_read(&c, at, layer, head, k2, v2);
                        assert_memory_equal(k, k2, d * sizeof(float));
                        assert_memory_equal(v, v2, d * sizeof(float));
                        expect_vector((kv_kind)kind, k, keys + j, d);
                        expect_vector((kv_kind)kind, v, values + j, d);
                    }
            /* positions that nobody wrote are zero: attention's loops read whole vectors */
            read_back(&c, N, 1, 2, k, v);
            for (size_t j = 0; j < d; j++)
                assert_true(k[j] == 0 && v[j] == 0);
            /* the padding of values too */
            kv_view p = kv_at(&c, 0, 1, 1);
            size_t padded = (d + 15) / 16 * 16, size = kind == KV_F32 ? 4 : kind == KV_F16 ? 2 : 1;
            for (size_t at = 0; at < PAGE; at++)
                for (size_t j = d * size; j < padded * size; j++)
                    assert_int_equal(((const uint8_t *)p.v)[at * padded * size + j], 0);
            assert_int_equal((uintptr_t)p.k % 64, 0);
            free(keys);
            free(values);
            kv_free(&c);
        }
}

static void pages_are_added_as_needed(void **state) {
    (void)state;
    kv_cache c = make_cache(KV_F16, 1, 2, 16);
    linnet_error err;
    grow(&c, 0, 0);
    assert_int_equal(windowed(&c)->held, 0);
    for (size_t n = 1; n <= 2000; n++) {
        grow(&c, n - 1, n);
        assert_int_equal(windowed(&c)->held, (n + PAGE - 1) / PAGE);
        assert_int_equal(windowed(&c)->n_pages, windowed(&c)->held);
    }
    grow(&c, 5, 100); /* there already */
    assert_int_equal(windowed(&c)->held, 32);
    const void *first = kv_at(&c, 0, 0, 0).k;
    grow(&c, 2000, 50000);
    assert_ptr_equal(kv_at(&c, 0, 0, 0).k, first); /* pages stay where they are */
    assert_int_equal(windowed(&c)->held, (50000 + PAGE - 1) / PAGE);
    kv_truncate(&c, 65);
    assert_int_equal(windowed(&c)->held, 2);
    kv_truncate(&c, 64);
    assert_int_equal(windowed(&c)->held, 1);
    kv_truncate(&c, 1000);
    assert_int_equal(windowed(&c)->held, 1);
    kv_truncate(&c, 0);
    assert_int_equal(windowed(&c)->held, 0);
    kv_free(&c);
    kv_free(&c);
    /* no layer keeps keys and values: no pages at all */
    kv_cache none = make_cache(KV_F32, 0, 2, 16);
    assert_int_equal(none.layout.page_bytes[KV_WINDOWED], 0);
    assert_int_equal(kv_reserve(&none, 0, 1000, &err), 0);
    assert_int_equal(windowed(&none)->held, 0);
    kv_free(&none);
}

static void set(kv_cache *c, size_t position, float x) {
    float k[2] = {x, -x}, v[2] = {x / 2, x / 4};
    for (int layer = 0; layer < c->layout.layers; layer++)
        kv_write(c, &kernels_generic, position, layer, 0, k, v);
}

static float get_of(const kv_cache *c, size_t position, int layer) {
    float k[2], v[2];
    read_back(c, position, layer, 0, k, v);
    assert_true(k[1] == -k[0] && v[0] == k[0] / 2 && v[1] == k[0] / 4);
    return k[0];
}

static float get(const kv_cache *c, size_t position) {
    return get_of(c, position, 0);
}

static void forks_share_until_written(void **state) {
    (void)state;
    linnet_error err;
    kv_cache a = make_cache(KV_F32, 1, 1, 2), b = {0}, third = {0};
    grow(&a, 0, 150);
    for (size_t i = 0; i < 150; i++)
        set(&a, i, (float)i + 1);
    assert_int_equal(kv_fork(&a, &b, &err), 0);
    assert_int_equal(windowed(&b)->held, 3);
    for (size_t p = 0; p < 3; p++)
        assert_ptr_equal(kv_at(&a, p, 0, 0).k, kv_at(&b, p, 0, 0).k);
    grow(&b, 150, 151); /* the last page is copied with what it holds, the others stay shared */
    set(&b, 150, -1);
    assert_ptr_equal(kv_at(&a, 0, 0, 0).k, kv_at(&b, 0, 0, 0).k);
    assert_ptr_equal(kv_at(&a, 1, 0, 0).k, kv_at(&b, 1, 0, 0).k);
    assert_ptr_not_equal(kv_at(&a, 2, 0, 0).k, kv_at(&b, 2, 0, 0).k);
    assert_true(get(&a, 150) == 0 && get(&b, 150) == -1 && get(&b, 149) == 150);
    grow(&a, 150, 151); /* alone with its last page again: no copy */
    const void *own = kv_at(&a, 2, 0, 0).k;
    grow(&a, 150, 160);
    assert_ptr_equal(kv_at(&a, 2, 0, 0).k, own);
    set(&a, 150, -2);
    assert_true(get(&b, 150) == -1);
    /* a fork that went back and writes into a shared page */
    assert_int_equal(kv_fork(&b, &third, &err), 0);
    kv_truncate(&third, 70);
    assert_int_equal(windowed(&third)->held, 2);
    grow(&third, 70, 71);
    set(&third, 70, -3);
    assert_true(get(&a, 70) == 71 && get(&b, 70) == 71 && get(&third, 70) == -3);
    assert_true(get(&third, 69) == 70);
    kv_free(&a); /* the others keep what they share */
    assert_true(get(&b, 0) == 1 && get(&third, 63) == 64);
    kv_free(&third);
    assert_true(get(&b, 100) == 101);
    kv_free(&b);
    kv_cache nothing = make_cache(KV_F32, 1, 1, 2), copy = {0};
    assert_int_equal(kv_fork(&nothing, &copy, &err), 0);
    assert_int_equal(windowed(&copy)->held, 0);
    grow(&copy, 0, 1);
    kv_free(&copy);
    kv_free(&nothing);
}

static void old_pages_are_dropped(void **state) {
    (void)state;
    linnet_error err;
    kv_cache c = make_cache(KV_F32, 1, 1, 2), fork = {0};
    grow(&c, 0, 300);
    for (size_t i = 0; i < 300; i++)
        set(&c, i, (float)i + 1);
    assert_int_equal(kv_fork(&c, &fork, &err), 0);
    drop(&c, 63);
    assert_int_equal(windowed(&c)->held, 5);
    drop(&c, 64);
    assert_int_equal(windowed(&c)->held, 4);
    drop(&c, 200);
    drop(&c, 200);
    drop(&c, 100);
    assert_int_equal(windowed(&c)->held, 2);
    assert_int_equal(windowed(&c)->n_pages, 5);
    assert_true(get(&c, 192) == 193 && get(&c, 299) == 300);
    assert_true(get(&fork, 0) == 1); /* the fork has them still */
    kv_cache young = {0};
    assert_int_equal(kv_fork(&c, &young, &err), 0);
    assert_int_equal(windowed(&young)->held, 2);
    grow(&young, 300, 400);
    assert_int_equal(windowed(&young)->held, 4);
    drop(&young, 100000); /* past the end: all of it */
    assert_int_equal(windowed(&young)->held, 0);
    kv_truncate(&c, 0);
    assert_int_equal(windowed(&c)->held, 0);
    kv_free(&young);
    kv_free(&c);
    assert_true(get(&fork, 100) == 101);
    kv_free(&fork);
}

static void pinned_pages_stay(void **state) {
    (void)state;
    for (size_t keep = 0; keep <= 130; keep += 13) {
        size_t pinned = (keep + PAGE - 1) / PAGE;
        kv_cache c = make_cache(KV_F32, 1, 1, 2);
        grow(&c, 0, 500);
        for (size_t i = 0; i < 500; i++)
            set(&c, i, (float)i + 1);
        for (size_t n = 0; n <= 500; n += 20) {
            kv_drop_before(&c, keep, n);
            size_t gone = n / PAGE > pinned ? n / PAGE - pinned : 0;
            assert_int_equal(windowed(&c)->held, 8 - gone);
            for (size_t i = 0; i < keep; i++)
                assert_true(get(&c, i) == (float)i + 1);
            assert_true(get(&c, n / PAGE * PAGE) == (float)(n / PAGE * PAGE) + 1);
        }
        kv_free(&c);
    }
}

/* ---- Random histories --------------------------------------------------------------------------
 */

enum { CACHES = 6, LONGEST = 500 };
typedef struct {
    kv_cache c;
    bool used;
    size_t n, start; /* positions [start, n) are there, of layer 1 all */
    float at[LONGEST];
} timeline;

static void check_timeline(const timeline *t) {
    const kv_table *w = windowed(&t->c), *all = &t->c.tables[KV_ALL];
    size_t held = 0;
    for (size_t i = 0; i < w->n_pages; i++)
        held += w->pages[i] != NULL;
    assert_int_equal(w->held, held);
    assert_int_equal(all->held, all->n_pages);
    assert_int_equal(all->held, (t->n + PAGE - 1) / PAGE);
    assert_int_equal(kv_held_bytes(&t->c), held * t->c.layout.page_bytes[KV_WINDOWED] +
                                               all->held * t->c.layout.page_bytes[KV_ALL]);
    assert_int_equal(held, (t->n + PAGE - 1) / PAGE - t->start / PAGE);
    for (size_t i = t->start / PAGE * PAGE; i < t->n; i++)
        if (get(&t->c, i) != t->at[i]) fail_msg("position %zu of %zu changed", i, t->n);
    for (size_t i = 0; i < t->n; i++)
        if (get_of(&t->c, i, 1) != t->at[i]) fail_msg("layer 1, position %zu changed", i);
}

static void random_histories(void **state) {
    (void)state;
    static timeline all[CACHES];
    linnet_error err;
    float next = 0;
    memset(all, 0, sizeof all);
    for (int step = 0; step < 4000; step++) {
        timeline *t = &all[draw(CACHES)], *other = &all[draw(CACHES)];
        if (!t->used) {
            *t = (timeline){.c = make_cache_of(true, KV_F32, 2, 1, 2), .used = true};
        } else if (draw(12) == 0) {
            kv_free(&t->c);
            t->used = false;
        } else if (draw(6) == 0 && !other->used) {
            *other = *t;
            other->c = (kv_cache){0};
            assert_int_equal(kv_fork(&t->c, &other->c, &err), 0);
        } else if (draw(6) == 0 && t->n > t->start) { /* as rolling back does, not into the gap */
            t->n = t->start + 1 + draw((uint32_t)(t->n - t->start));
            kv_truncate(&t->c, t->n);
        } else if (draw(5) == 0 && t->n) {
            size_t to = draw((uint32_t)t->n);
            if (to > t->start) t->start = to;
            drop(&t->c, t->start);
        } else {
            size_t more = 1 + draw(90);
            if (t->n + more > LONGEST) continue;
            grow(&t->c, t->n, t->n + more);
            for (; more > 0; more--, t->n++)
                set(&t->c, t->n, t->at[t->n] = ++next);
        }
        for (int i = 0; i < CACHES; i++)
            if (all[i].used) check_timeline(&all[i]);
    }
    for (int i = 0; i < CACHES; i++)
        if (all[i].used) kv_free(&all[i].c);
}

/* ---- Threads -----------------------------------------------------------------------------------
 */

typedef struct {
    kv_cache c;
    int wrong;
    float mark;
} branch;

static void *live(void *arg) {
    branch *b = arg;
    for (int round = 0; round < 200; round++) {
        kv_cache mine = {0};
        if (kv_fork(&b->c, &mine, NULL) || kv_reserve(&mine, 70, 130, NULL)) {
            b->wrong++;
            continue;
        }
        for (size_t i = 70; i < 130; i++)
            set(&mine, i, b->mark);
        for (size_t i = 0; i < 130; i++)
            if (get(&mine, i) != (i < 70 ? (float)i + 1 : b->mark)) b->wrong++;
        kv_free(&mine);
    }
    kv_free(&b->c);
    return NULL;
}

/* Forks of one prefix live, write and die on several threads. */
static void forks_on_threads(void **state) {
    (void)state;
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    branch branches[THREADS] = {0};
    kv_cache root = make_cache(KV_F32, 1, 1, 2);
    grow(&root, 0, 100);
    for (size_t i = 0; i < 100; i++)
        set(&root, i, (float)i + 1);
    for (int i = 0; i < THREADS; i++) {
        branches[i].mark = -1.0f - (float)i;
        assert_int_equal(kv_fork(&root, &branches[i].c, NULL), 0);
    }
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, live, &branches[i]), 0);
    kv_free(&root);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(branches[i].wrong, 0);
}

/* A snapshot that keeps one page of a slab does not keep the memory of the others. */
static void one_page_does_not_hold_the_slab(void **state) {
    (void)state;
    enum { HEADS = 8, DIM = 512, PAGES = 8, OS = 4096 }; /* 4 MB a page */
    kv_cache c = make_cache(KV_F32, 2, HEADS, DIM), snapshot = {0};
    uint8_t *data[PAGES], resident[16];
    linnet_error err;
    grow(&c, 0, PAGES * PAGE);
    for (int i = 0; i < PAGES; i++) {
        data[i] = windowed(&c)->pages[i]->data;
        memset(data[i], i + 1, c.layout.page_bytes[KV_WINDOWED]);
    }
    assert_int_equal(kv_fork(&c, &snapshot, &err), 0);
    kv_truncate(&snapshot, PAGE);
    kv_free(&c);
    for (int i = 0; i < PAGES; i++) {
        uint8_t *middle = data[i] + c.layout.page_bytes[KV_WINDOWED] / 2 / OS * OS;
        assert_int_equal((uintptr_t)middle % OS, 0);
        assert_int_equal(mincore(middle, sizeof resident * OS, resident), 0);
        for (size_t k = 0; k < sizeof resident; k++)
            assert_int_equal(resident[k] & 1, i == 0);
    }
    for (size_t i = 0; i < snapshot.layout.page_bytes[KV_WINDOWED]; i++)
        assert_int_equal(data[0][i], 1);
    kv_free(&snapshot);
}

/* Large pages are cut from slabs, which a fork keeps alive; small ones are not. */
static void large_pages_are_cut_from_slabs(void **state) {
    (void)state;
    enum { HEADS = 8, DIM = 512, N = 30 * PAGE }; /* 4 MB a page, 8 to a slab */
    kv_cache small = make_cache(KV_F16, 1, 1, 64), c = make_cache(KV_F32, 2, HEADS, DIM),
             fork = {0};
    float k[DIM], v[DIM];
    linnet_error err;
    grow(&small, 0, PAGE);
    assert_null(windowed(&small)->slab);
    kv_free(&small);
    for (size_t at = 0; at < N; at += PAGE) {
        grow(&c, at, at + PAGE);
        for (size_t i = 0; i < DIM; i++)
            k[i] = v[i] = 0;
        kv_read(&c, at + 5, 1, HEADS - 1, k, v);
        for (size_t i = 0; i < DIM; i++)
            assert_true(k[i] == 0 && v[i] == 0);
        for (size_t i = 0; i < DIM; i++)
            k[i] = (float)(at + i), v[i] = -k[i];
        kv_write(&c, &kernels_generic, at + 5, 1, HEADS - 1, k, v);
    }
    assert_non_null(windowed(&c)->slab);
    assert_int_equal(kv_fork(&c, &fork, &err), LINNET_OK);
    assert_null(windowed(&fork)->slab);
    kv_truncate(&c, 3 * PAGE);
    grow(&c, 3 * PAGE, 5 * PAGE); /* of the newest slab, whose pages the fork still has */
    kv_free(&c);
    grow(&fork, N - 1, N + 1); /* a copy and a new page, from a slab of its own */
    assert_non_null(windowed(&fork)->slab);
    for (size_t at = 0; at < N; at += PAGE) {
        kv_read(&fork, at + 5, 1, HEADS - 1, k, v);
        for (size_t i = 0; i < DIM; i++)
            assert_true(k[i] == (float)(at + i) && v[i] == -k[i]);
    }
    kv_free(&fork);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_round_trip),
        cmocka_unit_test(pages_are_added_as_needed),
        cmocka_unit_test(forks_share_until_written),
        cmocka_unit_test(old_pages_are_dropped),
        cmocka_unit_test(pinned_pages_stay),
        cmocka_unit_test(random_histories),
        cmocka_unit_test(forks_on_threads),
        cmocka_unit_test(large_pages_are_cut_from_slabs),
        cmocka_unit_test(one_page_does_not_hold_the_slab),
    };
    return cmocka_run_group_tests_name("kv", tests, NULL, NULL);
}
