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
    bool special = flags & LINNET_PARSE_SPECIAL;
    if (!s && (flags & LINNET_MIDDLE) && !special)
        s = tokenizer_encode_plain(m->tok, text ? text : "", bytes, true, &list, err);
    else if (!s)
        s = tokenizer_encode(m->tok, text ? text : "", bytes, special, &list, err);
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
        const char *from = piece;
        size_t got = 0;
        if (!(flags & LINNET_BYTES)) {
            got = i < n ? decoder_push(&d, ids[i], piece) : decoder_flush(&d, piece);
        } else if (i < n) {
            from = tokenizer_piece(m->tok, ids[i], !d.started, d.special, &got);
            if (d.special || !tokenizer_is_special(m->tok, ids[i])) d.started = true;
        }
        if (total < cap && got) memcpy(text + total, from, min_size(got, cap - total));
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

/* The checks that all conversations pass, and the template they are written with. */
static linnet_status need_template(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n,
                                   const chat_template **out, linnet_error *err) {
    for (size_t i = 0; i < n; i++)
        if (!messages[i].role || !messages[i].content)
            return fail(err, LINNET_ERR_ARGUMENT, "message %zu: its role or content is NULL",
                        i + 1);
    linnet_status s = need_tokenizer(m, err);
    if (s) return s;
    *out = name ? chat_template_by_name(name) : m->chat;
    if (!*out && name)
        return fail(err, LINNET_ERR_ARGUMENT, "chat template '%s' is not known; there are %s", name,
                    chat_template_list());
    if (!*out) return chat_template_unknown(m->file, strcmp(m->info.chat_template, "none"), err);
    return LINNET_OK;
}

linnet_status linnet_chat_tokenize(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages,
                                   bool add_generation_prompt, int32_t *ids, size_t cap, size_t *n,
                                   linnet_error *err) {
    if (!m || !messages || !n || (!ids && cap))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_chat_tokenize: NULL argument");
    const chat_template *c;
    linnet_status s = need_template(m, name, messages, n_messages, &c, err);
    if (s) return s;
    id_list list = {0};
    s = chat_render(c, m->file, m->tok, messages, n_messages, add_generation_prompt, &list, err);
    return give(&list, s, ids, cap, n);
}

/* What the template writes after an answer (`<|im_end|>` and a newline, say): the end that two
 * conversations have in common whose last answers differ. *end: ids of it up to the end token, or
 * all where it has none. */
static linnet_status after_answer(const linnet_model *m, const chat_template *c, id_list *out,
                                  size_t *end, linnet_error *err) {
    linnet_message talk[] = {{"user", "a"}, {"assistant", "a"}};
    id_list other = {0};
    linnet_status s = chat_render(c, m->file, m->tok, talk, 2, false, out, err);
    talk[1].content = "7";
    if (!s) s = chat_render(c, m->file, m->tok, talk, 2, false, &other, err);
    if (!s) {
        size_t n = 0, least = min_size(out->n, other.n);
        while (n < least && out->at[out->n - 1 - n] == other.at[other.n - 1 - n])
            n++;
        if (n) memmove(out->at, out->at + out->n - n, n * sizeof *out->at);
        out->n = n;
        for (*end = 0; *end < n && !tokenizer_is_end(m->tok, out->at[*end]);)
            ++*end;
        *end = min_size(*end + 1, n);
    }
    ids_free(&other);
    return s;
}

static bool same_ids(const int32_t *a, const int32_t *b, size_t n) {
    return n == 0 || !memcmp(a, b, n * sizeof *a);
}

linnet_status linnet_chat_continue(const linnet_model *m, const char *name,
                                   const linnet_message *messages, size_t n_messages, size_t from,
                                   bool add_generation_prompt, int32_t *ids, size_t cap, size_t *n,
                                   linnet_error *err) {
    if (!m || !messages || !n || (!ids && cap))
        return fail(err, LINNET_ERR_ARGUMENT, "linnet_chat_continue: NULL argument");
    if (from > n_messages)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "linnet_chat_continue: from is %zu, but there are %zu messages", from,
                    n_messages);
    if (!from)
        return linnet_chat_tokenize(m, name, messages, n_messages, add_generation_prompt, ids, cap,
                                    n, err);
    const chat_template *c;
    linnet_status s = need_template(m, name, messages, n_messages, &c, err);
    if (s) return s;
    if (strcmp(messages[from - 1].role, "assistant"))
        return fail(err, LINNET_ERR_ARGUMENT,
                    "linnet_chat_continue: message %zu has role \"%.40s\", expected an answer",
                    from, messages[from - 1].role);
    /* The ids of all messages go on where those of the first `from` have their last end token: what
     * the template writes behind it may melt into the text of the next turn. */
    id_list all = {0}, before = {0}, asked = {0}, tail = {0};
    size_t end = 0;
    s = chat_render(c, m->file, m->tok, messages, from, false, &before, err);
    if (!s && from > 1) s = chat_render(c, m->file, m->tok, messages, from - 1, true, &asked, err);
    if (!s) s = after_answer(m, c, &tail, &end, err);
    if (!s)
        s = chat_render(c, m->file, m->tok, messages, n_messages, add_generation_prompt, &all, err);
    if (!s) {
        /* What comes before the end token may have melted into the answer. */
        bool ends = end && tokenizer_is_end(m->tok, tail.at[end - 1]);
        size_t must = ends ? tail.n - end + 1 : tail.n, held = before.n - (tail.n - end);
        bool fits = before.n >= tail.n && all.n >= held && same_ids(all.at, before.at, held) &&
                    same_ids(before.at + before.n - must, tail.at + tail.n - must, must);
        /* So may the end of the question, behind its last special token. */
        while (asked.n && !tokenizer_is_special(m->tok, asked.at[asked.n - 1]))
            asked.n--;
        fits = fits && all.n >= asked.n && same_ids(all.at, asked.at, asked.n);
        if (!fits) {
            s = fail(err, LINNET_ERR_UNSUPPORTED,
                     "the %s chat template rewrites what came before message %zu",
                     chat_template_get_name(c), from + 1);
        } else if (from == n_messages && !add_generation_prompt) {
            tail.n = end;
            s = give(&tail, s, ids, cap, n);
        } else {
            all.n -= held;
            memmove(all.at, all.at + held, all.n * sizeof *all.at);
            s = give(&all, s, ids, cap, n);
        }
    }
    ids_free(&all);
    ids_free(&before);
    ids_free(&asked);
    ids_free(&tail);
    return s;
}
