/* Tokenizers against HF tokenizers and libsentencepiece (tests/golden/make_tokenizers.py), and
 * against files that are wrong. */
#include "../tokenizer/tokenizer.h"
#include "build_gguf.h"
#include "support.h"

#include <pthread.h>
#include <time.h>

#define DATA "tests/data/tokenizer/"

/* ---- Opening ----------------------------------------------------------------------------- */

static uint8_t *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot be opened", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*n + 1);
    assert_int_equal(fread(p, 1, *n, f), *n);
    fclose(f);
    return p;
}

typedef struct {
    uint8_t *bytes;
    gguf *g;
    tokenizer *t;
} loaded;

/* A vocabulary of tests/data, with another pre-tokenizer if `pre` is not NULL. */
static loaded load(const char *name, const char *pre) {
    static const char key[] = "tokenizer.ggml.pre";
    char path[128];
    size_t n;
    linnet_error err;
    loaded l;
    snprintf(path, sizeof path, DATA "%s", name);
    l.bytes = read_file(path, &n);
    if (pre) {
        uint8_t *at = memmem(l.bytes, n, key, strlen(key));
        assert_non_null(at);
        size_t value = (size_t)(at - l.bytes) + strlen(key) + 4;
        uint64_t old;
        memcpy(&old, l.bytes + value, 8);
        buf b = {0};
        put(&b, l.bytes, value);
        put_str(&b, pre);
        put(&b, l.bytes + value + 8 + old, n - value - 8 - old);
        free(l.bytes);
        l.bytes = b.p;
        n = b.n;
    }
    if (gguf_open_memory(&l.g, l.bytes, n, name, &err)) fail_msg("%s", err.text);
    if (tokenizer_new(&l.t, l.g, &err)) fail_msg("%s", err.text);
    assert_non_null(l.t);
    return l;
}

static void unload(loaded *l) {
    tokenizer_free(l->t);
    gguf_close(l->g);
    free(l->bytes);
}

static id_list encode(const tokenizer *t, const char *p, size_t n, bool special) {
    id_list ids = {0};
    linnet_error err;
    if (tokenizer_encode(t, p, n, special, &ids, &err)) fail_msg("%s", err.text);
    return ids;
}

/* Streams ids to text; checks that every step gives whole characters within the promised size. */
static char *decode(const tokenizer *t, const id_list *ids, size_t *n) {
    size_t most = tokenizer_max_piece(t), cap = 256;
    char *out = malloc(cap + 2 * most);
    decoder d = {.t = t};
    *n = 0;
    for (size_t i = 0; i <= ids->n; i++) {
        if (*n > cap) out = realloc(out, (cap = 2 * *n) + 2 * most);
        size_t k =
            i < ids->n ? decoder_push(&d, ids->at[i], out + *n) : decoder_flush(&d, out + *n);
        assert_true(k <= most);
        if (k) assert_true(((unsigned char)out[*n] & 0xC0) != 0x80);
        *n += k;
    }
    return out;
}

/* ---- Goldens ----------------------------------------------------------------------------- */

enum {
    N_STRINGS = 20000,
    BLOCK = 8,
    N_BLOCKS = N_STRINGS / BLOCK,
    GOLDEN_BYTES = 16 + 8 * N_BLOCKS
};

static uint8_t *strings_file;
static const char *string_at[N_STRINGS];
static size_t string_bytes[N_STRINGS];
static uint8_t *golden;
static size_t golden_bytes;

static int read_goldens(void **state) {
    (void)state;
    size_t n, at = 0;
    strings_file = read_file(DATA "strings.bin", &n);
    for (size_t i = 0; i < N_STRINGS; i++) {
        string_bytes[i] = strings_file[at] | (size_t)strings_file[at + 1] << 8;
        string_at[i] = (const char *)strings_file + at + 2;
        at += 2 + string_bytes[i];
    }
    assert_int_equal(at, n);
    golden = read_file(DATA "ids.bin", &golden_bytes);
    assert_int_equal(golden_bytes % GOLDEN_BYTES, 0);
    return 0;
}

static int free_goldens(void **state) {
    (void)state;
    free(strings_file);
    free(golden);
    return 0;
}

static uint64_t add_to_hash(uint64_t h, const id_list *ids) {
    for (size_t i = 0; i <= ids->n; i++)
        h = (h ^ (i < ids->n ? (uint32_t)ids->at[i] : 0xFFFFFFFFu)) * 0x100000001B3u;
    return h;
}

static void check_golden(const char *name, const tokenizer *t, bool special) {
    const uint8_t *want = NULL;
    for (size_t at = 0; at < golden_bytes; at += GOLDEN_BYTES)
        if (!strcmp((char *)golden + at, name)) want = golden + at + 16;
    if (!want) fail_msg("no golden named %s", name);
    size_t wrong = 0, first = 0;
    for (size_t block = 0; block < N_BLOCKS; block++) {
        uint64_t hash = 0xCBF29CE484222325u, expected;
        for (size_t i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
            id_list ids = encode(t, string_at[i], string_bytes[i], special);
            hash = add_to_hash(hash, &ids);
            ids_free(&ids);
        }
        memcpy(&expected, want + 8 * block, 8);
        if (hash == expected) continue;
        if (!wrong++) first = block;
    }
    if (wrong)
        fail_msg("%s: %zu of %d blocks differ, the first is that of strings %zu to %zu", name,
                 wrong, N_BLOCKS, first * BLOCK, first * BLOCK + BLOCK - 1);
}

static void bpe_goldens(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"gpt-2", "gpt-2"},   {"default", "gpt-2"},
        {"smollm", "smollm"}, {"llama-bpe", "llama-bpe"},
        {"dbrx", "dbrx"},     {"qwen2", "qwen2"},
        {"qwen35", "qwen35"}, {"tekken", "tekken"},
        {"gpt-4o", "gpt-4o"}, {"deepseek-v3", "deepseek-v3"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        loaded l = load("bpe.gguf", pairs[i][0]);
        check_golden(pairs[i][1], l.t, false);
        unload(&l);
    }
}

static void bpe_special_golden(void **state) {
    (void)state;
    loaded l = load("bpe.gguf", "smollm");
    assert_string_equal(tokenizer_name(l.t), "bpe/smollm");
    check_golden("smollm+special", l.t, true);
    unload(&l);
}

static void sp_goldens(void **state) {
    (void)state;
    static const char *const files[] = {"sp.gguf", "sp_raw.gguf"};
    for (size_t i = 0; i < 2; i++) {
        loaded l = load(files[i], NULL);
        assert_string_equal(tokenizer_name(l.t), "sentencepiece");
        check_golden("sp", l.t, false);
        check_golden("sp+special", l.t, true);
        unload(&l);
    }
}

/* The ids that ids.txt spells out, so that a wrong hash function cannot hide anything. */
static void spelled_out_goldens(void **state) {
    (void)state;
    char line[65536], name[32];
    FILE *f = fopen(DATA "ids.txt", "r");
    size_t checked = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        size_t index;
        int used;
        assert_int_equal(sscanf(line, "%31s %zu%n", name, &index, &used), 2);
        char *plus = strchr(name, '+');
        bool is_sp = !strncmp(name, "sp", 2);
        if (plus) *plus = 0;
        loaded l = load(is_sp ? "sp.gguf" : "bpe.gguf", is_sp ? NULL : name);
        id_list ids = encode(l.t, string_at[index], string_bytes[index], plus != NULL);
        char *p = line + used, *end;
        for (size_t i = 0;; i++, checked++) {
            long id = strtol(p, &end, 10);
            if (end == p) {
                assert_int_equal(i, ids.n);
                break;
            }
            assert_true(i < ids.n);
            assert_int_equal(ids.at[i], id);
            p = end;
        }
        ids_free(&ids);
        unload(&l);
    }
    fclose(f);
    assert_true(checked > 1000);
}

static void invalid_utf8(void **state) {
    (void)state;
    loaded bpe = load("bpe.gguf", "gpt-2"), sp = load("sp.gguf", NULL);
    char line[4096], kind[8], hex[256];
    FILE *f = fopen(DATA "invalid.txt", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        int used;
        assert_int_equal(sscanf(line, "%7s %255s%n", kind, hex, &used), 2);
        char bytes[128], *p = line + used, *end;
        size_t n = strlen(hex) / 2;
        for (size_t i = 0; i < n; i++) {
            char digits[3] = {hex[2 * i], hex[2 * i + 1], 0};
            bytes[i] = (char)strtol(digits, NULL, 16);
        }
        id_list ids = encode(kind[0] == 'b' ? bpe.t : sp.t, bytes, n, false);
        size_t i = 0;
        for (long id; id = strtol(p, &end, 10), end != p; p = end, i++)
            if (i >= ids.n || ids.at[i] != id) fail_msg("%s %s: id %zu differs", kind, hex, i);
        if (i != ids.n) fail_msg("%s %s: %zu ids, expected %zu", kind, hex, ids.n, i);
        ids_free(&ids);
    }
    fclose(f);
    unload(&bpe);
    unload(&sp);
}

/* ---- Properties -------------------------------------------------------------------------- */

static bool is_missing_byte(unsigned char c) {
    return c == 4 || c == 6 || c == 0x13 || c == 0x14 || c == 0x16 || c == 0x1D;
}

static void round_trips(void **state) {
    (void)state;
    loaded bpe = load("bpe.gguf", "smollm"), sp = load("sp.gguf", NULL);
    char *want = malloc(1 << 17);
    for (size_t i = 0; i < N_STRINGS; i++) {
        const char *s = string_at[i];
        size_t n = string_bytes[i], k = 0, n_text;
        id_list ids = encode(bpe.t, s, n, false);
        char *text = decode(bpe.t, &ids, &n_text);
        for (size_t j = 0; j < n; j++)
            if (!is_missing_byte((unsigned char)s[j])) want[k++] = s[j];
        assert_int_equal(n_text, k);
        assert_memory_equal(text, want, k);
        free(text);
        ids_free(&ids);

        ids = encode(sp.t, s, n, false);
        text = decode(sp.t, &ids, &n_text);
        k = 0;
        for (size_t j = 0; j < n; j++) {
            bool mark = n - j >= 3 && !memcmp(s + j, "\xE2\x96\x81", 3);
            want[k++] = mark ? ' ' : s[j];
            if (mark) j += 2;
        }
        assert_int_equal(n_text, k);
        assert_memory_equal(text, want, k);
        free(text);
        ids_free(&ids);
    }
    free(want);
    unload(&bpe);
    unload(&sp);
}

static void no_text_gives_control_tokens(void **state) {
    (void)state;
    loaded all[] = {load("bpe.gguf", "gpt-2"), load("bpe.gguf", "tekken"), load("sp.gguf", NULL),
                    load("sp_raw.gguf", NULL), load("sp_v3.gguf", NULL)};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        for (size_t i = 0; i < N_STRINGS; i++) {
            id_list ids = encode(all[k].t, string_at[i], string_bytes[i], false);
            for (size_t j = 0; j < ids.n; j++) {
                assert_in_range(ids.at[j], 0, tokenizer_n_vocab(all[k].t) - 1);
                assert_false(tokenizer_is_special(all[k].t, ids.at[j]));
            }
            ids_free(&ids);
        }
        unload(&all[k]);
    }
}

static void special_tokens(void **state) {
    (void)state;
    loaded l = load("bpe.gguf", "smollm");
    tokenizer *t = l.t;
    int32_t start = tokenizer_special(t, "<|im_start|>"), end = tokenizer_special(t, "<|im_end|>");
    int32_t shorter = tokenizer_special(t, "<|im"), think = tokenizer_special(t, "<think>");
    assert_int_equal(start, 1);
    assert_int_equal(end, 2);
    assert_true(think > 0 && !tokenizer_is_special(t, think) && tokenizer_is_special(t, start));
    assert_int_equal(tokenizer_special(t, "a"), -1);
    assert_int_equal(tokenizer_special(t, "<|im_start|> "), -1);
    assert_int_equal(tokenizer_special(t, ""), -1);
    assert_true(tokenizer_is_end(t, end) && tokenizer_is_end(t, tokenizer_eos(t)));
    assert_true(tokenizer_is_end(t, tokenizer_special(t, "<|eot_id|>")));
    assert_false(tokenizer_is_end(t, start));
    assert_false(tokenizer_is_end(t, -1));
    assert_false(tokenizer_is_end(t, tokenizer_n_vocab(t)));

    /* Leftmost, then longest, nothing trimmed; a beginning of one is text or a shorter one. */
    static const char text[] = " <|im_start|> \n<|im<|im_end|><|im_end";
    id_list ids = encode(t, text, strlen(text), true);
    assert_int_equal(ids.at[1], start);
    size_t n_short = 0, n_end = 0;
    for (size_t i = 0; i < ids.n; i++)
        n_short += ids.at[i] == shorter, n_end += ids.at[i] == end;
    assert_int_equal(n_short, 2);
    assert_int_equal(n_end, 1);
    size_t n;
    char *plain = decode(t, &ids, &n); /* without the texts of control tokens */
    assert_int_equal(n, strlen("  \n_end"));
    assert_memory_equal(plain, "  \n_end", n);
    free(plain);
    decoder d = {.t = t, .special = true};
    char *out = malloc(tokenizer_max_piece(t) * ids.n);
    n = 0;
    for (size_t i = 0; i < ids.n; i++)
        n += decoder_push(&d, ids.at[i], out + n);
    assert_int_equal(n, strlen(text));
    assert_memory_equal(out, text, n);
    free(out);
    ids_free(&ids);

    /* User-defined tokens are found always. */
    ids = encode(t, "a<think>", 8, false);
    assert_int_equal(ids.at[ids.n - 1], think);
    ids_free(&ids);
    unload(&l);
}

static int32_t byte_id(const tokenizer *t, unsigned char byte) {
    for (int32_t id = 0; id < tokenizer_n_vocab(t); id++) {
        size_t n;
        const char *p = tokenizer_piece(t, id, false, false, &n);
        if (n == 1 && (unsigned char)*p == byte) return id;
    }
    return -1;
}

static void decoding_broken_characters(void **state) {
    (void)state;
    loaded both[] = {load("bpe.gguf", "gpt-2"), load("sp.gguf", NULL)};
#define BAD "\xEF\xBF\xBD"
    /* bytes, what BPE gives (one per maximal part), what SentencePiece gives (one per byte) */
    static const char *const cases[][3] = {
        {"a\xE4\xB8", "a" BAD, "a" BAD BAD},
        {"\xE4\xB8z", BAD "z", BAD BAD "z"},
        {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
        {"\xF0\x9F\xE4\xB8\xAD", BAD "\xE4\xB8\xAD", BAD BAD "\xE4\xB8\xAD"},
        {"\x80\x80", BAD BAD, BAD BAD},
        {"\xED\xA0\x80", BAD BAD BAD, BAD BAD BAD},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t k = 0; k < 2; k++) {
            id_list ids = {0};
            linnet_error err;
            for (const char *p = cases[i][0]; *p; p++) {
                int32_t id = byte_id(both[k].t, (unsigned char)*p);
                assert_true(id >= 0);
                assert_int_equal(ids_push(&ids, id, &err), LINNET_OK);
            }
            size_t n;
            char *text = decode(both[k].t, &ids, &n);
            assert_int_equal(n, strlen(cases[i][k + 1]));
            assert_memory_equal(text, cases[i][k + 1], n);
            free(text);
            ids_free(&ids);
        }
    /* SentencePiece drops one space, and only where nothing came before. */
    id_list ids = encode(both[1].t, "  the", 5, false);
    decoder d = {.t = both[1].t, .started = true};
    char out[256];
    size_t n = 0;
    for (size_t i = 0; i < ids.n; i++)
        n += decoder_push(&d, ids.at[i], out + n);
    assert_int_equal(n, 6);
    assert_memory_equal(out, "   the", 6);
    ids_free(&ids);
    unload(&both[0]);
    unload(&both[1]);
}

/* A million characters: as many ids as by doubling would be wrong, so the text must come back, and
 * quickly. */
static void long_runs(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const double limit = 20;
#else
    const double limit = getenv("EMULATOR") ? 20 : 1;
#endif
    static const char *const units[] = {"a",  " ",    "\n",  "!",        "1",
                                        "A",  "ab",   " \n", "\xC3\xA9", "\xE4\xB8\xAD",
                                        "aA", "x y ", "'s",  "<|im",     "\xFF"};
    loaded all[] = {load("bpe.gguf", "smollm"), load("bpe.gguf", "llama-bpe"),
                    load("bpe.gguf", "tekken"), load("sp.gguf", NULL)};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t width = strlen(units[u]), times = 1000000 / (width > 1 ? 2 : 1),
                   n = width * times;
            char *text = malloc(n), *back;
            for (size_t i = 0; i < n; i++)
                text[i] = units[u][i % width];
            clock_t before = clock();
            id_list ids = encode(all[k].t, text, n, false);
            double seconds = (double)(clock() - before) / CLOCKS_PER_SEC;
            size_t n_back;
            back = decode(all[k].t, &ids, &n_back);
            if (units[u][0] != '\xFF') {
                assert_int_equal(n_back, n);
                assert_memory_equal(back, text, n);
            } else {
                assert_int_equal(n_back, 3 * n);
            }
            if (seconds > limit)
                fail_msg("%s: %zu times \"%s\" took %.2f s", tokenizer_name(all[k].t), times,
                         units[u], seconds);
            free(back);
            free(text);
            ids_free(&ids);
        }
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        unload(&all[k]);
}

/* As in make_tokenizers.py. */
static const char *const soups[][7] = {
    {"a"},
    {"a", "b"},
    {" ", "a", "b"},
    {"e", "\xC3\xA9", "\xE4\xB8\xAD"},
    {" "},
    {"\xE2\x96\x81", " ", "a"},
    {"\xF0\x9F\x99\x82", "\xC3\xA9", "q"},
    {"<tool>", "<tool_call>", "<tool", ">", "th", "e "},
    {"\xEF\xBF\xBD", " ", "th", "e ", "\xC3\xA9", "<tool>"},
};

static size_t make_soup(const char *const *units, char *text) {
    size_t n_units = 0, n = 0;
    uint64_t seed = 1;
    while (units[n_units])
        n_units++;
    for (size_t i = 0; i < 40000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const char *unit = units[(seed >> 33) % n_units];
        memcpy(text + n, unit, strlen(unit));
        n += strlen(unit);
    }
    return n;
}

/* Half a megabyte in one call: the shim hands it to the library in pieces, the reference was given
 * the whole. */
static void long_texts(void **state) {
    (void)state;
    char *text = malloc(1 << 20), name[16];
    FILE *f = fopen(DATA "long.txt", "r");
    size_t joint, n_ids, lines = 0;
    unsigned long long hash;
    assert_non_null(f);
    while (fscanf(f, "%15s %zu %zu %llx", name, &joint, &n_ids, &hash) == 4) {
        size_t n = joint >= 10 ? make_soup(soups[joint - 10], text) : 0;
        for (size_t i = 0; i < N_STRINGS && joint < 10; i++) {
            if (i && joint) text[n++] = ' ';
            memcpy(text + n, string_at[i], string_bytes[i]);
            n += string_bytes[i];
        }
        bool is_sp = !strcmp(name, "sp");
        loaded l[] = {load(is_sp ? "sp.gguf" : "bpe.gguf", is_sp ? NULL : name),
                      load(is_sp ? "sp_raw.gguf" : "bpe.gguf", is_sp ? NULL : name)};
        for (size_t k = 0; k < 2; k++) {
            id_list ids = encode(l[k].t, text, n, false);
            assert_int_equal(ids.n, n_ids);
            assert_true(add_to_hash(0xCBF29CE484222325u, &ids) == hash);
            ids_free(&ids);
            unload(&l[k]);
        }
        lines++;
    }
    fclose(f);
    free(text);
    assert_int_equal(lines, 13);
}

typedef struct {
    const tokenizer *t;
    uint64_t hash;
} job;

static void *hash_all(void *user) {
    job *j = user;
    j->hash = 0;
    for (size_t i = 0; i < 2000; i++) {
        id_list ids = encode(j->t, string_at[i], string_bytes[i], true);
        j->hash = add_to_hash(j->hash, &ids);
        ids_free(&ids);
    }
    return NULL;
}

static void many_threads(void **state) {
    (void)state;
    loaded both[] = {load("bpe.gguf", "smollm"), load("sp.gguf", NULL)};
    for (size_t k = 0; k < 2; k++) {
        pthread_t threads[4];
        job jobs[4];
        for (size_t i = 0; i < 4; i++) {
            jobs[i].t = both[k].t;
            assert_int_equal(pthread_create(&threads[i], NULL, hash_all, &jobs[i]), 0);
        }
        for (size_t i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        for (size_t i = 1; i < 4; i++)
            assert_true(jobs[i].hash == jobs[0].hash);
        unload(&both[k]);
    }
}

/* ---- Files that are wrong ---------------------------------------------------------------- */

typedef struct {
    const char *model, *pre;
    const char *const *tokens;
    int n_tokens, n_types, n_scores, n_merges; /* negative: the key is absent */
    const char *const *merges;
    const int32_t *types;
    const float *scores;
    const char *more_key;
    uint32_t more;
} recipe;

static buf bake(const recipe *r) {
    buf b = {0}, body = {0};
    uint64_t n = 0;
    if (r->model) put_kv_str(&body, "tokenizer.ggml.model", r->model), n++;
    if (r->pre) put_kv_str(&body, "tokenizer.ggml.pre", r->pre), n++;
    if (r->n_tokens >= 0) {
        put_kv_array(&body, "tokenizer.ggml.tokens", 8, (uint64_t)r->n_tokens);
        for (int i = 0; i < r->n_tokens; i++)
            put_str(&body, r->tokens[i]);
        n++;
    }
    if (r->n_types >= 0) {
        put_kv_array(&body, "tokenizer.ggml.token_type", 5, (uint64_t)r->n_types);
        for (int i = 0; i < r->n_types; i++)
            put_u32(&body, r->types ? (uint32_t)r->types[i] : 1);
        n++;
    }
    if (r->n_scores >= 0) {
        put_kv_array(&body, "tokenizer.ggml.scores", 6, (uint64_t)r->n_scores);
        for (int i = 0; i < r->n_scores; i++)
            put_f32(&body, r->scores ? r->scores[i] : -(float)i);
        n++;
    }
    if (r->n_merges >= 0) {
        put_kv_array(&body, "tokenizer.ggml.merges", 8, (uint64_t)r->n_merges);
        for (int i = 0; i < r->n_merges; i++)
            put_str(&body, r->merges[i]);
        n++;
    }
    if (r->more_key) put_kv_u32(&body, r->more_key, r->more), n++;
    put_head(&b, 0, n);
    put(&b, body.p, body.n);
    free(body.p);
    return b;
}

static linnet_status try_recipe(const recipe *r, tokenizer **t, linnet_error *err) {
    buf b = bake(r);
    gguf *g;
    err->text[0] = 0;
    if (gguf_open_memory(&g, b.p, b.n, "x.gguf", err)) fail_msg("%s", err->text);
    linnet_status status = tokenizer_new(t, g, err);
    gguf_close(g); /* a tokenizer outlives its file */
    free(b.p);
    return status;
}

static void refused(const recipe *r, linnet_status code, const char *part) {
    tokenizer *t = (tokenizer *)1;
    linnet_error err;
    linnet_status status = try_recipe(r, &t, &err);
    if (status != code || !strstr(err.text, part) || strncmp(err.text, "x.gguf: ", 8))
        fail_msg("status %d, \"%s\", expected %d and \"%s\"", status, err.text, code, part);
    assert_null(t);
}

static const char *const abc[] = {"a", "b", "c", "ab", "<s>", "</s>"};
static const int32_t abc_types[] = {1, 1, 1, 1, 3, 3};

static void refusals(void **state) {
    (void)state;
    static const char *const ab[] = {"a b"};
    const recipe good = {"gpt2", "gpt-2", abc, 6, 6, -1, 1, ab, abc_types, NULL, NULL, 0};
    tokenizer *t;
    linnet_error err;
    assert_int_equal(try_recipe(&good, &t, &err), LINNET_OK);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_false(tokenizer_add_bos(t));
    id_list ids = encode(t, "abc", 3, false);
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.at[0], 3);
    ids_free(&ids);
    tokenizer_free(t);

    recipe r = good;
    static const char *const models[] = {"bert", "t5", "rwkv", "plamo2", ""};
    for (size_t i = 0; i < 4; i++) {
        r.model = models[i];
        char part[64];
        snprintf(part, sizeof part, "tokenizer.ggml.model is \"%s\", supported are llama",
                 models[i]);
        refused(&r, LINNET_ERR_UNSUPPORTED, part);
    }
    r.model = NULL;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.model is missing");
    r = good, r.pre = "falcon";
    refused(&r, LINNET_ERR_UNSUPPORTED,
            "tokenizer.ggml.pre is \"falcon\", supported are default gpt-2");
    r = good, r.n_tokens = 0;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.tokens is missing or empty");
    r = good, r.n_tokens = -1;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.tokens is missing or empty");
    r = good, r.n_types = 5;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.token_type has 5 entries, expected 6");
    r = good, r.n_merges = -1;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.merges");
    static const char *const bad_merges[] = {"ab", " a", "a ", "", "  "};
    for (size_t i = 0; i < 5; i++) {
        r = good, r.merges = &bad_merges[i];
        refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.merges[0] must be two tokens");
    }
    static const int32_t bad_types[] = {1, 1, 7, 1, 3, 3}, negative_types[] = {1, -1, 1, 1, 3, 3};
    r = good, r.types = bad_types;
    refused(&r, LINNET_ERR_FORMAT, "token_type[2] must be 0 to 6, found 7");
    r = good, r.types = negative_types;
    refused(&r, LINNET_ERR_FORMAT, "token_type[1] must be 0 to 6, found -1");
    static const char *const id_keys[] = {
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < 4; i++) {
        r = good, r.more_key = id_keys[i], r.more = 6;
        refused(&r, LINNET_ERR_FORMAT, id_keys[i]);
        r.more = UINT32_MAX;
        refused(&r, LINNET_ERR_FORMAT, id_keys[i]);
    }
    r = good, r.more_key = "linnet.tokenizer.sentencepiece_model", r.more = 1;
    refused(&r, LINNET_ERR_FORMAT, "linnet.tokenizer.sentencepiece_model");

    /* Nothing at all is a file without a vocabulary, not an error. */
    const recipe none = {NULL, NULL, NULL, -1, -1, -1, -1, NULL, NULL, NULL, "general.x", 1};
    assert_int_equal(try_recipe(&none, &t, &err), LINNET_OK);
    assert_null(t);
}

static void sp_refusals(void **state) {
    (void)state;
    static const char *const tokens[] = {"<unk>",
                                         "<s>",
                                         "</s>",
                                         "\xE2\x96\x81",
                                         "a",
                                         ("\xE2\x96\x81"
                                          "a")};
    static const int32_t types[] = {2, 3, 3, 1, 1, 1};
    const recipe good = {"llama", NULL, tokens, 6, 6, 6, -1, NULL, types, NULL, NULL, 0};
    tokenizer *t;
    linnet_error err;
    assert_int_equal(try_recipe(&good, &t, &err), LINNET_OK);
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_true(tokenizer_add_bos(t));
    assert_false(tokenizer_add_eos(t));
    id_list ids = encode(t, "aaz", 3, false); /* no byte tokens: an unknown one */
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.at[0], 5);
    assert_int_equal(ids.at[1], 4);
    assert_int_equal(ids.at[2], 0);
    ids_free(&ids);
    ids = encode(t, "", 0, false);
    assert_int_equal(ids.n, 0);
    tokenizer_free(t);

    recipe r = good;
    r.n_types = -1;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.token_type is missing");
    r = good, r.n_scores = -1;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.scores is missing");
    r = good, r.n_scores = 7;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.scores has 7 entries, expected 6");
    static const float bad_scores[] = {0, 0, 0, 0, (float)NAN, 0},
                       huge[] = {0, 0, 0, 0, 0, (float)INFINITY};
    r = good, r.scores = bad_scores;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.scores[4] must be finite, found");
    r.scores = huge;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.scores[5] must be finite, found inf");
    static const char *const bad_bytes[] = {"<0x-1>", "<0x4>", "<0x4g>", "<0x041>", "a", ""};
    for (size_t i = 0; i < 6; i++) {
        const char *with[] = {"<unk>", "<s>", "</s>", "a", "b", bad_bytes[i]};
        static const int32_t byte_types[] = {2, 3, 3, 1, 1, 6};
        r = good, r.tokens = with, r.types = byte_types;
        refused(&r, LINNET_ERR_FORMAT, "the byte token 5 must be spelled <0x00> to <0xFF>");
    }
    static const char *const one_byte[] = {"<unk>", "<s>", "</s>", "a", "b", "<0x41>"};
    static const int32_t byte_types[] = {2, 3, 3, 1, 1, 6};
    r = good, r.tokens = one_byte, r.types = byte_types;
    refused(&r, LINNET_ERR_FORMAT, "the vocabulary has 1 byte tokens, expected 256 or none");
    r = good, r.more_key = "tokenizer.ggml.unknown_token_id", r.more = 9;
    refused(&r, LINNET_ERR_FORMAT, "tokenizer.ggml.unknown_token_id");

    /* 65 user-defined tokens that start with one another are more than the library can look at. */
    char names[70][80];
    const char *many[72] = {"<unk>", "<s>", "</s>"};
    int32_t many_types[72] = {2, 3, 3};
    for (int i = 0; i < 65; i++) {
        memset(names[i], 'x', 80);
        names[i][i + 1] = 0;
        many[3 + i] = names[i];
        many_types[3 + i] = 4;
    }
    r = good, r.tokens = many, r.types = many_types, r.n_tokens = r.n_types = r.n_scores = 68;
    refused(&r, LINNET_ERR_UNSUPPORTED,
            "65 user-defined tokens start with one another, at most 64");
    r.n_tokens = r.n_types = r.n_scores = 67;
    assert_int_equal(try_recipe(&r, &t, &err), LINNET_OK);
    ids = encode(t, names[64], 65, false);
    assert_int_equal(ids.n, 3); /* the dummy prefix is unknown here; 64 and 1 */
    assert_int_equal(ids.at[1], 66);
    ids_free(&ids);
    tokenizer_free(t);
}

/* What a hostile vocabulary may contain without harm. */
static void odd_vocabularies(void **state) {
    (void)state;
    linnet_error err;
    tokenizer *t;
    /* Control tokens spelled like ordinary text must not come out of text; of equal tokens the last
     * counts; empty ones are never met; <unk> may be of any type. */
    static const char *const tokens[] = {
        "\xE2\x96\x81", "a", "b", "ab", "ab", "", "", "a", "x", "ab"};
    static const int32_t types[] = {1, 3, 1, 1, 1, 1, 3, 1, 3, 3};
    recipe r = {
        "llama", NULL, tokens, 10, 10, 10, -1, NULL, types, NULL, "tokenizer.ggml.unknown_token_id",
        8};
    assert_int_equal(try_recipe(&r, &t, &err), LINNET_OK);
    id_list ids = encode(t, "abax", 4, false);
    assert_int_equal(ids.n, 4);
    assert_int_equal(ids.at[0], 0);
    assert_int_equal(ids.at[1], 4);
    assert_int_equal(ids.at[2], 7);
    assert_int_equal(ids.at[3], 8); /* unknown */
    ids_free(&ids);
    tokenizer_free(t);

    /* BPE: merges that name no token, or a control token, are ignored. */
    static const char *const merges[] = {"a b", "q r", "a c", "b c", "a b"};
    static const char *const words[] = {"a",  "b",        "c", "ab",      "ab",
                                        "bc", "\xFF\xFE", "",  "\xC4\xA0"};
    static const int32_t word_types[] = {1, 1, 1, 1, 1, 3, 1, 1, 1};
    r = (recipe){"gpt2", NULL, words, 9, 9, -1, 5, merges, word_types, NULL, NULL, 0};
    assert_int_equal(try_recipe(&r, &t, &err), LINNET_OK);
    assert_string_equal(tokenizer_name(t), "bpe/default");
    ids = encode(t, "abcbcac q", 9, false);
    static const int32_t want[] = {4, 2, 1, 2, 0, 2, 8}; /* q has no token */
    assert_int_equal(ids.n, 7);
    assert_memory_equal(ids.at, want, sizeof want);
    ids_free(&ids);
    size_t n;
    assert_string_equal(tokenizer_piece(t, 99, true, true, &n), "");
    assert_string_equal(tokenizer_piece(t, -1, true, true, &n), "");
    tokenizer_free(t);
}

/* Every damaged raw model is refused or works; nothing crashes. */
static void damaged_raw_models(void **state) {
    (void)state;
    size_t n;
    uint8_t *file = read_file(DATA "sp_raw.gguf", &n), *copy = malloc(n);
    uint64_t seed = 1;
    size_t good = 0, bad = 0;
    for (int round = 0; round < 300; round++) {
        memcpy(copy, file, n);
        for (int k = 0; k < 1 + round % 4; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            /* Near the end are the specs, before them the pieces. */
            size_t span = round % 2 ? 600 : n - 200;
            copy[n - 1 - (seed >> 33) % span] = (uint8_t)(seed >> 20);
        }
        gguf *g;
        tokenizer *t;
        linnet_error err;
        if (gguf_open_memory(&g, copy, n, "x.gguf", &err)) continue;
        if (tokenizer_new(&t, g, &err)) {
            assert_true(strlen(err.text) > 8);
            bad++;
        } else {
            id_list ids = {0};
            (void)tokenizer_encode(t, string_at[40], string_bytes[40], true, &ids, &err);
            ids_free(&ids);
            tokenizer_free(t);
            good++;
        }
        gguf_close(g);
    }
    assert_true(good > 10 && bad > 10);
    free(file);
    free(copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bpe_goldens),
        cmocka_unit_test(bpe_special_golden),
        cmocka_unit_test(sp_goldens),
        cmocka_unit_test(spelled_out_goldens),
        cmocka_unit_test(invalid_utf8),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(no_text_gives_control_tokens),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(decoding_broken_characters),
        cmocka_unit_test(long_runs),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(many_threads),
        cmocka_unit_test(refusals),
        cmocka_unit_test(sp_refusals),
        cmocka_unit_test(odd_vocabularies),
        cmocka_unit_test(damaged_raw_models),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, read_goldens, free_goldens);
}
