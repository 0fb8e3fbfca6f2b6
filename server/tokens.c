/* POST /tokenize, POST /detokenize, GET /tokenizer_info. Other servers' clients call them too: the
 * fields of llama.cpp's (content, add_special) and of vLLM's (prompt, add_special_tokens), by which
 * lm-evaluation-harness finds a tokenizer. */
#include <stdlib.h>
#include <string.h>

#include "../linnet_tools.h"
#include "answer.h"
#include "routes.h"

/* ---- tokenize ----------------------------------------------------------------------------- */

bool text_tokens(server *s, request *r, const json_t *text, unsigned flags, int32_t **ids,
                 size_t *n) {
    linnet_error err;
    *ids = NULL;
    for (size_t cap = json_string_length(text) + 16;; cap = *n) {
        free(*ids);
        *ids = malloc(cap * sizeof **ids);
        if (!*ids) {
            respond_busy(r, NULL, "no memory for the ids");
            return false;
        }
        if (linnet_tokenize(s->model, json_string_value(text), json_string_length(text), flags,
                            *ids, cap, n, &err)) {
            respond_failed(r, &err);
            return false;
        }
        if (*n <= cap) return true;
    }
}

static bool read_tokens(server *s, request *r, const json_t *body, int32_t **ids, size_t *n) {
    json_t *content = field(body, "content"), *prompt = field(body, "prompt");
    bool special = prompt != NULL, parse = true, open = true;
    if (field(body, "messages"))
        return field_bool(r, body, "add_generation_prompt", &open) &&
               chat_tokens(s, r, body, open, ids, n);
    json_t *text = prompt ? prompt : content;
    if (!json_is_string(text))
        return bad_field(r, prompt ? "prompt" : "content",
                         "expected a text, or \"messages\" instead");
    if (!field_bool(r, body, "add_special", &special) ||
        !field_bool(r, body, "add_special_tokens", &special) ||
        !field_bool(r, body, "parse_special", &parse))
        return false;
    unsigned flags = (special ? LINNET_ADD_BOS : 0) | (parse ? LINNET_PARSE_SPECIAL : 0);
    return text_tokens(s, r, text, flags, ids, n);
}

static json_t *piece_json(const linnet_model *model, int32_t id) {
    size_t n;
    char *text = token_text(model, id, &n);
    json_t *piece = text ? text_json(text, n) : json_null();
    free(text);
    return piece;
}

/* What `make` makes of each of the ids. Equal ids share one value: a text of a megabyte would take
 * hundreds as objects of their own. NULL: no memory. */
static json_t *for_each_id(const linnet_model *model, const int32_t *ids, size_t n,
                           json_t *(*make)(const linnet_model *model, int32_t id)) {
    size_t n_known = (size_t)linnet_model_get_info(model)->n_vocab;
    json_t **known = calloc(n_known ? n_known : 1, sizeof *known), *list = json_array();
    for (size_t i = 0; i < n && known && list; i++) {
        json_t **at = &known[ids[i]];
        if (!*at) *at = make(model, ids[i]);
        if (!json_array_append(list, *at)) continue;
        json_decref(list);
        list = NULL;
    }
    for (size_t i = 0; i < n_known && known; i++)
        json_decref(known[i]);
    if (!known) json_decref(list);
    free(known);
    return known ? list : NULL;
}

static json_t *id_json(const linnet_model *model, int32_t id) {
    (void)model;
    return json_integer(id);
}

static json_t *id_and_piece(const linnet_model *model, int32_t id) {
    return json_pack("{s:i,s:o}", "id", id, "piece", piece_json(model, id));
}

void handle_tokenize(server *s, request *r) {
    json_t *body = request_json(r);
    int32_t *ids = NULL;
    size_t n = 0;
    bool pieces = false, strings = false;
    if (!body) return;
    if (field_model(s, r, body) && field_bool(r, body, "with_pieces", &pieces) &&
        field_bool(r, body, "return_token_strs", &strings) && read_tokens(s, r, body, &ids, &n)) {
        json_t *list = for_each_id(s->model, ids, n, pieces ? id_and_piece : id_json);
        json_t *out = json_pack("{s:o,s:I,s:i}", "tokens", list, "count", (json_int_t)n,
                                "max_model_len", s->ctx);
        if (strings)
            json_object_set_new(out, "token_strs", for_each_id(s->model, ids, n, piece_json));
        respond_json(r, 200, out);
    }
    free(ids);
    json_decref(body);
}

/* ---- detokenize --------------------------------------------------------------------------- */

char *tokens_text(server *s, request *r, const int32_t *ids, size_t n, size_t *bytes) {
    linnet_error err;
    for (size_t cap = 8 * n + 64;; cap = *bytes) {
        char *text = malloc(cap + 1);
        if (!text) {
            respond_busy(r, NULL, "no memory for the text");
            return NULL;
        }
        if (linnet_detokenize(s->model, ids, n, LINNET_PARSE_SPECIAL, text, cap, bytes, &err)) {
            free(text);
            respond_failed(r, &err);
            return NULL;
        }
        if (*bytes <= cap) {
            text[*bytes] = '\0';
            return text;
        }
        free(text);
    }
}

void handle_detokenize(server *s, request *r) {
    json_t *body = request_json(r);
    int32_t *ids = NULL;
    char *text = NULL;
    size_t n = 0, bytes = 0;
    if (!body) return;
    json_t *list = field(body, "tokens");
    bool ok = field_model(s, r, body);
    if (ok && !json_is_array(list)) ok = bad_field(r, "tokens", "expected an array of token ids");
    if (ok && token_ids(s, r, "tokens", list, &ids, &n)) text = tokens_text(s, r, ids, n, &bytes);
    if (text) {
        json_t *value = text_json(text, bytes);
        respond_json(r, 200, json_pack("{s:O,s:o}", "prompt", value, "content", value));
    }
    free(text);
    free(ids);
    json_decref(body);
}

/* ---- tokenizer_info ----------------------------------------------------------------------- */

static json_t *special(const linnet_model *model, int32_t id) {
    return id < 0 ? json_null() : piece_json(model, id);
}

/* linnet_model_metadata shows line ends as \n: in a template's texts that means the same, between
 * its parts it would not. */
static void unescape(char *text) {
    char *to = text;
    for (const char *c = text; *c; c++) {
        char next = *c == '\\' ? c[1] : '\0';
        *to++ = next == 'n' ? '\n' : next == 't' ? '\t' : next == 'r' ? '\r' : *c;
        if (next && strchr("ntr", next)) c++;
    }
    *to = '\0';
}

/* The whole value, or null. */
static json_t *chat_template(const linnet_model *model) {
    const linnet_model_info *info = linnet_model_get_info(model);
    enum { MOST = 1 << 17 };
    char key[64], *value = malloc(MOST);
    json_t *found = NULL;
    for (size_t i = 0; i < info->n_metadata && value && !found; i++) {
        const char *name = linnet_model_metadata(model, i, key, 1);
        if (name && !strcmp(name, "tokenizer.chat_template")) {
            linnet_model_metadata(model, i, value, MOST);
            bool whole = strlen(value) < MOST - 1;
            unescape(value);
            if (whole) found = json_string(value);
        }
    }
    free(value);
    return found ? found : json_null();
}

void handle_tokenizer_info(server *s, request *r) {
    const linnet_model_info *info = linnet_model_get_info(s->model);
    respond_json(r, 200,
                 json_pack("{s:s,s:i,s:i,s:b,s:o,s:o,s:o,s:o}", "tokenizer_class", info->tokenizer,
                           "vocab_size", info->n_vocab, "model_max_length", s->ctx, "add_bos_token",
                           info->add_bos, "bos_token", special(s->model, info->bos), "eos_token",
                           special(s->model, info->eos), "pad_token", special(s->model, info->eos),
                           "chat_template", chat_template(s->model)));
}
