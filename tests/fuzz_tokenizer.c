/* libFuzzer target: texts and ids through every kind of tokenizer, and chat templates over
 * arbitrary text. Byte 0 picks the vocabulary, byte 1 what is done with the rest. */
#include "../tokenizer/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const files[] = {
    "tests/data/tokenizer/bpe.gguf",
    "tests/data/tokenizer/sp.gguf",
    "tests/data/tokenizer/sp_raw.gguf",
    "tests/data/tokenizer/sp_v3.gguf",
};

typedef struct {
    gguf *g;
    tokenizer *t;
} loaded;

static loaded get(size_t i) {
    static loaded all[4];
    linnet_error err;
    if (!all[i].t &&
        (gguf_open(&all[i].g, files[i], false, &err) || tokenizer_new(&all[i].t, all[i].g, &err))) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return all[i];
}

/* Ids to text, in whole characters. */
static void decode(const tokenizer *t, const int32_t *ids, size_t n, bool special) {
    char *out = malloc(tokenizer_max_piece(t));
    decoder d = {.t = t, .special = special};
    for (size_t i = 0; i <= n; i++) {
        size_t k = i < n ? decoder_push(&d, ids[i], out) : decoder_flush(&d, out);
        if (k > tokenizer_max_piece(t) || (k && ((unsigned char)out[0] & 0xC0) == 0x80)) abort();
    }
    free(out);
}

static void encode(const tokenizer *t, const char *text, size_t n, bool special) {
    id_list ids = {0};
    linnet_error err;
    if (tokenizer_encode(t, text, n, special, &ids, &err)) abort();
    for (size_t i = 0; i < ids.n; i++) {
        if (ids.at[i] < 0 || ids.at[i] >= tokenizer_n_vocab(t)) abort();
        if (!special && tokenizer_is_special(t, ids.at[i])) abort();
    }
    decode(t, ids.at, ids.n, special);
    ids_free(&ids);
}

/* Contents divided at zero bytes; roles by turns or by their first letter. */
static void chat(const loaded *l, const char *text, size_t n) {
    static const char *const roles[] = {"user", "assistant", "system", "tool"};
    char *copy = malloc(n + 1);
    linnet_message messages[8];
    size_t count = 0;
    linnet_error err;
    memcpy(copy, text, n);
    copy[n] = 0;
    for (size_t at = 0; at <= n && count < 8; at += strlen(copy + at) + 1) {
        messages[count].role = roles[copy[at] == '\1' ? 2 : copy[at] == '\2' ? 3 : count % 2];
        messages[count++].content = copy + at;
    }
    for (size_t i = 0; chat_template_name(i); i++) {
        id_list ids = {0};
        linnet_status status = chat_render(chat_template_by_name(chat_template_name(i)), l->g, l->t,
                                           messages, count, true, &ids, &err);
        if (status && (ids.n || !err.text[0])) abort();
        ids_free(&ids);
    }
    free(copy);
}

/* A file whose template is the text. */
static void recognise(const char *text, size_t n) {
    static const char key[] = "tokenizer.chat_template";
    uint64_t head[2] = {0, 1}, length = strlen(key), n_text = n;
    uint32_t version = 3, string = 8;
    size_t size = 24 + 8 + strlen(key) + 4 + 8 + n;
    uint8_t *bytes = malloc(size), *p = bytes;
#define ADD(from, count) (memcpy(p, from, count), p += (count))
    ADD("GGUF", 4);
    ADD(&version, 4);
    ADD(head, 16);
    ADD(&length, 8);
    ADD(key, strlen(key));
    ADD(&string, 4);
    ADD(&n_text, 8);
    if (n) ADD(text, n);
#undef ADD
    gguf *g;
    const chat_template *c;
    bool present;
    linnet_error err;
    if (!gguf_open_memory(&g, bytes, size, "fuzz", &err)) {
        if (chat_template_of(g, &c, &present, &err)) abort();
        gguf_close(g);
    }
    free(bytes);
}

/* The bytes as a whole file. */
static void open_file(const uint8_t *data, size_t size) {
    gguf *g;
    tokenizer *t;
    linnet_error err;
    if (gguf_open_memory(&g, data, size, "fuzz", &err)) return;
    if (!tokenizer_new(&t, g, &err) && t) {
        encode(t, "<s>ab c\n\xFF", 9, true);
        tokenizer_free(t);
    }
    gguf_close(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    loaded l = get(data[0] % 4);
    const char *text = (const char *)data + 2;
    size_t n = size - 2;
    switch (data[1] % 6) {
    case 0:
    case 1:
        encode(l.t, text, n, data[1] % 2);
        break;
    case 2: {
        int32_t *ids = malloc(n + 4);
        memcpy(ids, text, n / 4 * 4);
        for (size_t i = 0; i < n / 4; i += 2)
            ids[i] = (int32_t)((uint32_t)ids[i] % (uint32_t)tokenizer_n_vocab(l.t));
        decode(l.t, ids, n / 4, data[0] & 4);
        free(ids);
        break;
    }
    case 3:
        chat(&l, text, n);
        break;
    case 4:
        recognise(text, n);
        break;
    default:
        open_file(data + 2, n);
    }
    return 0;
}
