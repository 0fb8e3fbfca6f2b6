/* POST /v1/chat/completions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "routes.h"

/* ---- messages ----------------------------------------------------------------------------- */

typedef struct {
    linnet_message *at; /* room for the answer behind them */
    size_t n;
} message_list;

static void free_messages(message_list *m) {
    for (size_t i = 0; i < m->n; i++)
        free((char *)m->at[i].content);
    free(m->at);
    *m = (message_list){0};
}

/* A text, or an array of {"type": "text", "text": ...}; malloc'ed. NULL: it is neither. */
static char *content_text(const json_t *content) {
    if (json_is_string(content)) return strdup(json_string_value(content));
    if (!json_is_array(content)) return NULL;
    size_t n = 0, count = json_array_size(content);
    for (size_t i = 0; i < count; i++) {
        const json_t *part = json_array_get(content, i), *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || strcmp(type, "text") || !json_is_string(text)) return NULL;
        n += json_string_length(text);
    }
    char *all = malloc(n + 1), *to = all;
    if (!all) return NULL;
    for (size_t i = 0; i < count; i++) {
        const json_t *text = json_object_get(json_array_get(content, i), "text");
        memcpy(to, json_string_value(text), json_string_length(text));
        to += json_string_length(text);
    }
    *to = '\0';
    return all;
}

/* The library's name of a role, or NULL. */
static const char *role_name(const char *role) {
    static const char *const names[][2] = {{"system", "system"},
                                           {"developer", "system"},
                                           {"user", "user"},
                                           {"assistant", "assistant"}};
    for (size_t i = 0; role && i < sizeof names / sizeof *names; i++)
        if (!strcmp(role, names[i][0])) return names[i][1];
    return NULL;
}

static bool read_messages(request *r, const json_t *body, message_list *out) {
    json_t *list = field(body, "messages");
    size_t n = json_array_size(list);
    *out = (message_list){0};
    if (!n) return bad_field(r, "messages", "expected an array of at least one message");
    out->at = calloc(n + 1, sizeof *out->at);
    if (!out->at) {
        respond_busy(r, NULL, "no memory for the messages");
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *message = json_array_get(list, i), *content;
        const char *role = json_string_value(json_object_get(message, "role"));
        const char *name = role_name(role);
        if (!role) return bad_field(r, "messages", "message %zu has no role", i);
        if (!name)
            return bad_field(r, "messages",
                             "the role of message %zu is '%.40s'; system, developer, user and "
                             "assistant are supported",
                             i, role);
        content = json_object_get(message, "content");
        char *text = content_text(content);
        if (!text)
            return bad_field(r, "messages",
                             "the content of message %zu is neither a text nor an array of text "
                             "parts",
                             i);
        out->at[out->n++] = (linnet_message){name, text};
    }
    return true;
}

bool chat_tokens(server *s, request *r, const json_t *body, bool generation_prompt, int32_t **ids,
                 size_t *n) {
    message_list messages;
    linnet_error err;
    bool ok = read_messages(r, body, &messages);
    *ids = NULL;
    *n = 0;
    for (size_t cap = 256; ok; cap = *n) {
        free(*ids);
        *ids = malloc(cap * sizeof **ids);
        if (!*ids) {
            respond_busy(r, NULL, "no memory for the ids");
            ok = false;
        } else if (linnet_chat_tokenize(s->model, s->options.template, messages.at, messages.n,
                                        generation_prompt, *ids, cap, n, &err)) {
            respond_failed(r, &err);
            ok = false;
        } else if (*n <= cap) {
            break;
        }
    }
    free_messages(&messages);
    return ok;
}

/* ---- JSON --------------------------------------------------------------------------------- */

static json_t *element(size_t i, const char *key, json_t *value, json_t *logprobs,
                       const char *finish) {
    json_t *wrapped =
        logprobs ? json_pack("{s:o,s:n}", "content", logprobs, "refusal") : json_null();
    return json_pack("{s:I,s:o,s:o,s:s?}", "index", (json_int_t)i, key, value, "logprobs", wrapped,
                     "finish_reason", finish);
}

static json_t *first(const answer *a, size_t i) {
    (void)a;
    json_t *delta = json_pack("{s:s,s:s}", "role", "assistant", "content", "");
    return element(i, "delta", delta, NULL, NULL);
}

static json_t *part(const answer *a, size_t i, const char *text, json_t *logprobs,
                    const char *finish) {
    (void)a;
    json_t *delta =
        text ? json_pack("{s:o}", "content", text_json(text, strlen(text))) : json_object();
    return element(i, "delta", delta, logprobs, finish);
}

static json_t *whole(const answer *a, size_t i, json_t *logprobs, const char *finish) {
    const choice *c = &a->choices[i];
    json_t *message = json_pack("{s:s,s:o,s:n}", "role", "assistant", "content",
                                text_json(c->text ? c->text : "", c->n_text), "refusal");
    return element(i, "message", message, logprobs, finish);
}

/* {"token", "logprob", "bytes"} */
static json_t *token_json(const linnet_model *model, token_logprob t) {
    size_t n;
    char *text = token_text(model, t.token, &n);
    json_t *bytes = json_array();
    if (!text) return json_null();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(bytes, json_integer((unsigned char)text[i]));
    json_t *out = json_pack("{s:o,s:o,s:o}", "token", text_json(text, n), "logprob",
                            logprob_json(t.logprob), "bytes", bytes);
    free(text);
    return out;
}

static void add_logprob(const answer *a, choice *c, const event *e) {
    if (e->kind != EVENT_TOKEN) return;
    json_t *top = json_array();
    size_t n = a->fields->top_logprobs > 0 ? e->n_top : 0;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(top, token_json(a->server->model, e->top[i]));
    json_t *entry = token_json(a->server->model, e->token);
    json_object_set_new(entry, "top_logprobs", top);
    json_array_append_new(c->logprobs, entry);
}

/* ---- the request -------------------------------------------------------------------------- */

typedef struct {
    message_list messages;
    const char *name; /* of the conversation, or NULL */
} conversation;

/* What was answered belongs to the conversation before the client can ask on. */
static void keep(answer *a) {
    conversation *talk = a->user;
    choice *c = &a->choices[0];
    if (a->n != 1 || !c->end || !c->end->session || !c->text) return;
    linnet_session *session = c->end->session;
    c->end->session = NULL;
    message_list *m = &talk->messages;
    m->at[m->n] = (linnet_message){"assistant", c->text};
    conversations_keep(a->server->conversations, m->at, m->n + 1, talk->name, session,
                       c->end->rest ? c->end->rest : "", c->end->ended);
}

static const answer_format format = {.id = "chatcmpl-",
                                     .object = "chat.completion",
                                     .chunk_object = "chat.completion.chunk",
                                     .first = first,
                                     .part = part,
                                     .whole = whole,
                                     .new_logprobs = json_array,
                                     .add_logprob = add_logprob,
                                     .done = keep};

static bool read_limits(request *r, const json_t *body, generation_fields *f) {
    int64_t most = 0, top = 0;
    bool wanted = false;
    if (!field_whole(r, body, "max_tokens", 1, INT32_MAX, &most) ||
        !field_whole(r, body, "max_completion_tokens", 1, INT32_MAX, &most) ||
        !field_bool(r, body, "logprobs", &wanted) ||
        !field_whole(r, body, "top_logprobs", 0, MAX_TOP_LOGPROBS, &top))
        return false;
    if (top && !wanted) return bad_field(r, "top_logprobs", "expected logprobs to be true with it");
    f->max_tokens = (size_t)most;
    f->limited = most > 0;
    f->top_logprobs = wanted ? (int)top : -1;
    return true;
}

static bool read_name(request *r, const json_t *body, const char **out) {
    json_t *name = field(body, "conversation");
    if (name && !(json_is_string(name) &&
                  conversations_name_ok(json_string_value(name), json_string_length(name))))
        return bad_field(r, "conversation",
                         "expected 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot");
    *out = json_string_value(name);
    return true;
}

/* A job for each of the n answers, with the prompt's ids. */
static bool make_choices(answer *a, conversation_prompt *prompt) {
    size_t n = a->fields->n;
    a->choices = calloc(n, sizeof *a->choices);
    for (size_t i = 0; i < n && a->choices; i++) {
        choice *c = &a->choices[i];
        a->n = i + 1;
        if (!sampling_job(a->fields, i, request_owner(a->request),
                          a->server->options.request_seconds, &c->job))
            return false;
        c->n_prompt = c->job.n_prompt = prompt->n;
        c->job.mark = prompt->mark;
        c->job.keep = n == 1;
        if (i == n - 1) { /* the last takes what there is */
            c->job.prompt = prompt->tokens;
            c->job.start = prompt->start;
            prompt->tokens = NULL;
            prompt->start = NULL;
        } else if ((c->job.prompt = malloc(prompt->n * sizeof *prompt->tokens))) {
            memcpy(c->job.prompt, prompt->tokens, prompt->n * sizeof *prompt->tokens);
        }
        if (!c->job.prompt) return false;
    }
    return a->choices != NULL;
}

static void answer_chat(server *s, request *r, generation_fields *f, conversation *talk) {
    conversation_prompt prompt = {0};
    linnet_error err;
    answer a = {.server = s, .request = r, .format = &format, .fields = f, .user = talk};
    if (conversations_prompt(s->conversations, talk->messages.at, talk->messages.n, talk->name,
                             &prompt, &err)) {
        respond_failed(r, &err);
        return;
    }
    if (prompt.n >= (size_t)s->ctx)
        respond_error(r, 400, "invalid_request_error", "messages", "context_length_exceeded",
                      "the messages have %zu tokens, and the context of %d has no room to answer",
                      prompt.n, s->ctx);
    else if (make_choices(&a, &prompt))
        answer_run(&a);
    else {
        answer_drop(&a);
        respond_busy(r, NULL, "no memory for the request");
    }
    free(prompt.tokens);
    linnet_session_free(prompt.start);
}

void handle_chat(server *s, request *r) {
    json_t *body = request_json(r);
    generation_fields f = {0};
    conversation talk = {0};
    if (!body) return;
    if (sampling_read(s, r, body, &f) && read_limits(r, body, &f) &&
        read_name(r, body, &talk.name) && read_messages(r, body, &talk.messages))
        answer_chat(s, r, &f, &talk);
    free_messages(&talk.messages);
    sampling_free(&f);
    json_decref(body);
}
