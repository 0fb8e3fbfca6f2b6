/* libFuzzer target: saved states. Byte 0 picks the model, byte 1 what the rest is: a state as it
 * is, or changes to a valid one whose checksum is made right again. A refused state leaves the
 * session as it was; one that is accepted can be saved, forked and fed. */
#include "../linnet.h"
#include "../weights/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const files[] = {
    "tests/data/models/mistral_window.gguf",     "tests/data/models/lolcats_exp_sinks.gguf",
    "tests/data/models/gated_delta_hybrid.gguf", "tests/data/models/llama_q8_0.gguf",
    "tests/data/models/based_hybrid.gguf",
};
enum { FILES = sizeof files / sizeof *files, DEPTHS = 3 };
static const size_t depths[DEPTHS] = {1, 70, 130};

typedef struct {
    linnet_model *m;
    linnet_session *s; /* what states are loaded into */
    struct {
        uint8_t *at;
        size_t n;
    } saved[DEPTHS];
    uint64_t before; /* the session's hash */
} loaded;

static void must(linnet_status status, const linnet_error *err) {
    if (!status) return;
    fprintf(stderr, "%s\n", err->text);
    abort();
}

static uint8_t *save(const linnet_session *s, size_t *n) {
    linnet_error err;
    *n = (size_t)linnet_session_size(s);
    uint8_t *bytes = malloc(*n);
    must(linnet_session_save(s, bytes, *n, &err), &err);
    return bytes;
}

static uint64_t hash_session(const linnet_session *s) {
    size_t n;
    uint8_t *bytes = save(s, &n);
    uint64_t hash = hash64_of(bytes, n);
    free(bytes);
    return hash;
}

static loaded *get(size_t i) {
    static loaded all[FILES];
    loaded *l = &all[i];
    linnet_error err;
    linnet_model_options o = {.threads = 1};
    linnet_session_options so = {.ctx = 140};
    if (l->m) return l;
    must(linnet_model_open(&l->m, files[i], &o, &err), &err);
    for (size_t d = 0; d < DEPTHS; d++) {
        int32_t ids[130];
        must(linnet_session_new(&l->s, l->m, &so, &err), &err);
        for (size_t k = 0; k < depths[d]; k++)
            ids[k] = (int32_t)(k * 7 % 40);
        must(linnet_feed(l->s, ids, depths[d], LINNET_LOGITS_LAST, &err), &err);
        l->saved[d].at = save(l->s, &l->saved[d].n);
        linnet_session_free(l->s);
    }
    must(linnet_session_new(&l->s, l->m, &so, &err), &err);
    must(linnet_session_load(l->s, l->saved[1].at, l->saved[1].n, &err), &err);
    l->before = hash_session(l->s);
    return l;
}

/* Fours of bytes: an offset (the second half counts from the end), a value; then the sum. */
static size_t change(uint8_t *bytes, size_t n, const uint8_t *edits, size_t n_edits) {
    for (; n_edits >= 4; edits += 4, n_edits -= 4) {
        size_t offset = edits[0] | (size_t)edits[1] << 8;
        if (offset & 0x8000) offset = n - 1 - (offset & 0x7fff) % n;
        bytes[offset % n] = (uint8_t)(edits[3] & 1 ? bytes[offset % n] + edits[2] : edits[2]);
    }
    if (n_edits && edits[0] && edits[0] < n) { /* cut, and say so */
        uint64_t left = n - edits[0];
        n = (size_t)left;
        if (n >= 24) memcpy(bytes + 16, &left, 8);
    }
    if (n >= 8) {
        uint64_t sum = hash64_of(bytes, n - 8);
        memcpy(bytes + n - 8, &sum, 8);
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    loaded *l = get(data[0] % FILES);
    size_t depth = data[1] % (DEPTHS + 1), n = size - 2;
    uint8_t *bytes;
    if (depth == DEPTHS) {
        bytes = malloc(n ? n : 1);
        memcpy(bytes, data + 2, n);
    } else {
        n = l->saved[depth].n;
        bytes = malloc(n);
        memcpy(bytes, l->saved[depth].at, n);
        n = change(bytes, n, data + 2, size - 2);
    }
    linnet_error err = {0};
    linnet_status status = linnet_session_load(l->s, bytes, n, &err);
    free(bytes);
    if (status) {
        if (status != err.code || !err.text[0] || hash_session(l->s) != l->before) abort();
        return 0;
    }
    linnet_session *fork;
    size_t held;
    must(linnet_session_fork(l->s, &fork, &err), &err);
    if (hash_session(fork) != hash_session(l->s)) abort();
    const int32_t next[] = {1, 2, 3};
    linnet_session_tokens(fork, &held);
    /* a state may hold any numbers: NaN in the logits is an error, not a crash */
    if (linnet_feed(fork, next, 3, LINNET_LOGITS_LAST, &err) && err.code != LINNET_ERR_NUMERIC)
        abort();
    linnet_session_free(fork);
    must(linnet_session_load(l->s, l->saved[1].at, l->saved[1].n, &err), &err);
    if (hash_session(l->s) != l->before) abort();
    return 0;
}
