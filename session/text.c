/* The tokenizer and the chat templates behind linnet.h's buffers. */
#include "../model.h"

#include <stdlib.h>
#include <string.h>

static linnet_status need_tokenizer(const linnet_model *m, linnet_error *err) {
    if (m->tok) return LINNET_OK;
    return fail(err, LINNET_ERR_TOKENIZER,
                "%s: the file has no vocabulary: export it with --tokenizer, or work with ids",
                gguf_path(m->file));
}

/* Copies a list into the caller's buffer and frees it. */
static linnet_status give(id_list *list, linnet_status status, int32_t *ids, size_t cap,
                          size_t *n) {
    if (!status) {
        *n = list->n;
        if (list->n && cap) memcpy(ids, list->at, min_size(cap, list->n) * sizeof *ids);
    }
    ids_free(list);
    return status;
}

linnet_status linnet_tokenize(const linnet_model *m, const char *text, size_t bytes, unsigned flags,
                              int32_t *ids, size_t cap, size_t *n, linnet_error *err) {
    if (!m || (!text && bytes) || !n || (!ids && cap))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_tokenize: NULL argument");
    linnet_status s = need_tokenizer(m, err);
    if (s) return s;
    id_list list = {0};
    if ((flags & LINNET_ADD_BOS) && tokenizer_add_bos(m->tok) && tokenizer_bos(m->tok) >= 0)
        s = ids_push(&list, tokenizer_bos(m->tok), err);
    if (!s)
        s = tokenizer_encode(m->tok, text ? text : "", bytes, flags & LINNET_PARSE_SPECIAL, &list,
                             err);
    return give(&list, s, ids, cap, n);
}

linnet_status linnet_detokenize(const linnet_model *m, const int32_t *ids, size_t n, unsigned flags,
                                char *text, size_t cap, size_t *bytes, linnet_error *err) {
    if (!m || (!ids && n) || !bytes || (!text && cap))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_detokenize: NULL argument");
    linnet_status s = need_tokenizer(m, err);
    if (s) return s;
    char *piece = malloc(tokenizer_max_piece(m->tok));
    if (!piece) return fail(err, LINNET_ERR_MEMORY, "no memory for a token's text");
    decoder d = {
        .t = m->tok, .special = flags & LINNET_PARSE_SPECIAL, .started = flags & LINNET_MIDDLE};
    size_t total = 0;
    for (size_t i = 0; i <= n && !s; i++) {
        if (i < n && (ids[i] < 0 || ids[i] >= tokenizer_n_vocab(m->tok))) {
            s = fail(err, LINNET_ERR_ARGUMENT, "token %zu is %d, expected 0 to %d", i, ids[i],
                     tokenizer_n_vocab(m->tok) - 1);
            break;
        }
        size_t got = i < n ? decoder_push(&d, ids[i], piece) : decoder_flush(&d, piece);
        if (total < cap) memcpy(text + total, piece, min_size(got, cap - total));
        total += got;
    }
    free(piece);
    if (!s) *bytes = total;
    return s;
}

bool linnet_is_end(const linnet_model *m, int32_t token) {
    return m->tok && tokenizer_is_end(m->tok, token);
}

const char *linnet_chat_template_name(size_t i) {
    return chat_template_name(i);
}

linnet_status linnet_chat_tokenize(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages,
                                   bool add_generation_prompt, int32_t *ids, size_t cap, size_t *n,
                                   linnet_error *err) {
    if (!m || !messages || !n || (!ids && cap))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_chat_tokenize: NULL argument");
    for (size_t i = 0; i < n_messages; i++)
        if (!messages[i].role || !messages[i].content)
            return fail(err, LINNET_ERR_ARGUMENT, "message %zu: its role or content is NULL",
                        i + 1);
    linnet_status s = need_tokenizer(m, err);
    if (s) return s;
    const chat_template *c = name ? chat_template_by_name(name) : m->chat;
    if (!c && name)
        return fail(err, LINNET_ERR_ARGUMENT, "chat template '%s' is not known; there are %s", name,
                    chat_template_list());
    if (!c) return chat_template_unknown(m->file, strcmp(m->info.chat_template, "none"), err);
    id_list list = {0};
    s = chat_render(c, m->file, m->tok, messages, n_messages, add_generation_prompt, &list, err);
    return give(&list, s, ids, cap, n);
}
