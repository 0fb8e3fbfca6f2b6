/* POST /v1/completions: text to text, and, with echo and logprobs, how likely a text is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "routes.h"

enum { MAX_PROMPTS = 256 };

typedef struct {
    int32_t *ids;
    size_t n;
    char *text;
} prompt;

typedef struct {
    prompt *at;
    size_t n;
    bool echo;
} prompt_list;

static void free_prompts(prompt_list *p) {
    for (size_t i = 0; i < p->n; i++) {
        free(p->at[i].ids);
        free(p->at[i].text);
    }
    free(p->at);
}

/* ---- prompts ------------------------------------------------------------------------------ */

static bool text_prompt(server *s, request *r, const json_t *value, prompt *out) {
    unsigned flags = linnet_model_get_info(s->model)->add_bos ? LINNET_ADD_BOS : 0;
    if (!(out->text = strdup(json_string_value(value)))) {
        respond_busy(r, NULL, "no memory for the prompt");
        return false;
    }
    return text_tokens(s, r, value, flags, &out->ids, &out->n);
}

static bool ids_prompt(server *s, request *r, const json_t *value, prompt *out) {
    size_t bytes;
    if (!token_ids(s, r, "prompt", value, &out->ids, &out->n)) return false;
    if (!linnet_model_get_info(s->model)->n_vocab) return (out->text = strdup("")) != NULL;
    return (out->text = tokens_text(s, r, out->ids, out->n, &bytes)) != NULL;
}

static bool read_prompts(server *s, request *r, const json_t *body, prompt_list *out) {
    json_t *value = field(body, "prompt"), *first = json_array_get(value, 0);
    bool list = json_is_string(first) || json_is_array(first);
    if (!json_is_string(value) && !(json_is_array(value) && json_array_size(value)))
        return bad_field(r, "prompt",
                         "expected a text, an array of texts, of token ids, or of arrays of them");
    size_t n = list ? json_array_size(value) : 1;
    if (n > MAX_PROMPTS) return bad_field(r, "prompt", "expected at most %d prompts", MAX_PROMPTS);
    out->at = calloc(n, sizeof *out->at);
    if (!out->at) {
        respond_busy(r, NULL, "no memory for the prompts");
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        json_t *one = list ? json_array_get(value, i) : value;
        prompt *p = &out->at[i];
        out->n = i + 1;
        if (json_is_string(one)  ? !text_prompt(s, r, one, p)
            : json_is_array(one) ? !ids_prompt(s, r, one, p)
                                 : !bad_field(r, "prompt", "entry %zu is no prompt", i))
            return false;
        if (!p->n)
            return bad_field(r, "prompt", "prompt %zu is empty, and the model has no BOS token", i);
    }
    return true;
}

/* ---- JSON --------------------------------------------------------------------------------- */

static json_t *element(size_t i, const char *text, size_t n, json_t *logprobs, const char *finish) {
    return json_pack("{s:I,s:o,s:o,s:s?}", "index", (json_int_t)i, "text", text_json(text, n),
                     "logprobs", logprobs ? logprobs : json_null(), "finish_reason", finish);
}

static json_t *first(const answer *a, size_t i) {
    const char *text = a->choices[i].shown_prompt;
    return text ? element(i, text, strlen(text), NULL, NULL) : NULL;
}

static json_t *part(const answer *a, size_t i, const char *text, json_t *logprobs,
                    const char *finish) {
    (void)a;
    return element(i, text ? text : "", text ? strlen(text) : 0, logprobs, finish);
}

static json_t *whole(const answer *a, size_t i, json_t *logprobs, const char *finish) {
    const choice *c = &a->choices[i];
    return element(i, c->text ? c->text : "", c->n_text, logprobs, finish);
}

static json_t *new_logprobs(void) {
    return json_pack("{s:[],s:[],s:[],s:[]}", "tokens", "token_logprobs", "top_logprobs",
                     "text_offset");
}

/* Its spelling; where it is a part of a character, "bytes:\xe2\x80", as OpenAI's; without a
 * vocabulary its id. malloc'ed. */
static char *token_name(const linnet_model *model, int32_t token) {
    size_t n;
    if (!linnet_model_get_info(model)->n_vocab) {
        char id[32];
        snprintf(id, sizeof id, "token_id:%d", token);
        return strdup(id);
    }
    char *text = token_text(model, token, &n);
    json_t *valid = text ? json_stringn(text, n) : NULL;
    bool plain = valid && !memchr(text, '\0', n);
    json_decref(valid);
    if (plain || !text) return text;
    char *name = malloc(4 * n + 7);
    if (name) {
        strcpy(name, "bytes:");
        for (size_t i = 0; i < n; i++)
            sprintf(name + 6 + 4 * i, "\\x%02x", (unsigned char)text[i]);
    }
    free(text);
    return name;
}

/* Characters that a token adds to the text: none if it is special. */
static size_t token_characters(const linnet_model *model, int32_t token, bool at_start) {
    char text[512];
    size_t n = 0, count = 0;
    linnet_detokenize(model, &token, 1, at_start ? 0 : LINNET_MIDDLE, text, sizeof text, &n, NULL);
    for (size_t i = 0; i < n && i < sizeof text; i++)
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

static void add_logprob(const answer *a, choice *c, const event *e) {
    const linnet_model *model = a->server->model;
    json_t *top = json_null();
    char *name = token_name(model, e->token.token);
    if (!name) return;
    if (!isnan(e->token.logprob)) {
        top = json_object();
        for (size_t i = 0; i < e->n_top && a->fields->top_logprobs > 0; i++) {
            char *other = token_name(model, e->top[i].token);
            /* Two tokens may spell the same: the likelier one stays. */
            if (other && !json_object_get(top, other))
                json_object_set_new(top, other, logprob_json(e->top[i].logprob));
            free(other);
        }
        if (!json_object_get(top, name))
            json_object_set_new(top, name, logprob_json(e->token.logprob));
    }
    json_array_append_new(json_object_get(c->logprobs, "tokens"), json_string(name));
    json_array_append_new(json_object_get(c->logprobs, "token_logprobs"),
                          logprob_json(e->token.logprob));
    json_array_append_new(json_object_get(c->logprobs, "top_logprobs"), top);
    json_array_append_new(json_object_get(c->logprobs, "text_offset"),
                          json_integer((json_int_t)c->characters));
    c->characters += token_characters(model, e->token.token, c->characters == 0);
    free(name);
}

static const answer_format format = {.id = "cmpl-",
                                     .object = "text_completion",
                                     .chunk_object = "text_completion",
                                     .first = first,
                                     .part = part,
                                     .whole = whole,
                                     .new_logprobs = new_logprobs,
                                     .add_logprob = add_logprob};

/* ---- the request -------------------------------------------------------------------------- */

static bool read_limits(request *r, const json_t *body, generation_fields *f, bool *echo) {
    int64_t most = 16, top = -1; /* OpenAI's default */
    json_t *suffix = field(body, "suffix");
    if (!field_whole(r, body, "max_tokens", 0, INT32_MAX, &most) ||
        !field_whole(r, body, "logprobs", 0, MAX_TOP_LOGPROBS, &top) ||
        !field_bool(r, body, "echo", echo))
        return false;
    if (suffix && !(json_is_string(suffix) && !json_string_length(suffix)))
        return bad_field(r, "suffix", "filling in a middle is not supported");
    f->max_tokens = (size_t)most;
    f->limited = true;
    f->top_logprobs = (int)top;
    return true;
}

static bool make_choices(answer *a, const prompt_list *prompts) {
    size_t each = a->fields->n;
    a->choices = calloc(prompts->n * each, sizeof *a->choices);
    for (size_t i = 0; i < prompts->n * each && a->choices; i++) {
        choice *c = &a->choices[i];
        const prompt *p = &prompts->at[i / each];
        a->n = i + 1;
        if (!sampling_job(a->fields, i % each, request_owner(a->request),
                          a->server->options.request_seconds, &c->job))
            return false;
        c->prompt = i / each;
        c->n_prompt = c->job.n_prompt = p->n;
        c->job.prompt_logprobs = prompts->echo && a->fields->top_logprobs >= 0;
        c->job.prompt = malloc(p->n * sizeof *p->ids);
        if (!c->job.prompt) return false;
        memcpy(c->job.prompt, p->ids, p->n * sizeof *p->ids);
        if (prompts->echo) {
            c->shown_prompt = p->text;
            if (!choice_append(c, p->text)) return false;
        } else {
            for (const char *t = p->text; *t; t++)
                c->characters += ((unsigned char)*t & 0xc0) != 0x80;
        }
    }
    return a->choices != NULL;
}

void handle_completions(server *s, request *r) {
    json_t *body = request_json(r);
    generation_fields f = {0};
    prompt_list prompts = {0};
    answer a = {.server = s, .request = r, .format = &format, .fields = &f};
    if (!body) return;
    if (sampling_read(s, r, body, &f) && read_limits(r, body, &f, &prompts.echo) &&
        read_prompts(s, r, body, &prompts)) {
        if (make_choices(&a, &prompts)) {
            answer_run(&a);
        } else {
            answer_drop(&a);
            respond_busy(r, NULL, "no memory for the request");
        }
    }
    free_prompts(&prompts);
    sampling_free(&f);
    json_decref(body);
}

void handle_embeddings(server *s, request *r) {
    (void)s;
    respond_error(r, 501, "invalid_request_error", NULL, "not_supported",
                  "these models were trained to continue text: they have no embeddings of it");
}
