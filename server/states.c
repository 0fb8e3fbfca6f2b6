/* POST /v1/states/save, restore, fork: {"id": NAME, "to": NAME}. */
#include <string.h>

#include "routes.h"
#include "sampling.h"

static bool read_name(request *r, const json_t *body, const char *key, const char *otherwise,
                      const char **out) {
    json_t *name = field(body, key);
    *out = name ? json_string_value(name) : otherwise;
    if (*out && conversations_name_ok(*out, name ? json_string_length(name) : strlen(*out)))
        return true;
    return bad_field(r, key, "expected 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot");
}

static void answer_state(server *s, request *r, state_action action, const char *id,
                         const char *to) {
    linnet_error err;
    uint64_t bytes;
    size_t tokens;
    linnet_status status =
        conversations_state(s->conversations, action, id, to, &bytes, &tokens, &err);
    if (status == LINNET_ERR_ARGUMENT) /* the names are good, so there is none */
        respond_error(r, 404, "invalid_request_error", "id", "state_not_found", "%s", err.text);
    else if (status)
        respond_failed(r, &err);
    else
        respond_json(r, 200,
                     json_pack("{s:s,s:s,s:I,s:I}", "id", id, "to", to, "bytes", (json_int_t)bytes,
                               "tokens", (json_int_t)tokens));
}

void handle_states(server *s, request *r) {
    static const struct {
        const char *path;
        state_action action;
    } actions[] = {{"save", STATE_SAVE}, {"restore", STATE_RESTORE}, {"fork", STATE_FORK}};
    size_t i = 0;
    while (i < 3 && strcmp(request_rest(r), actions[i].path))
        i++;
    if (i == 3) {
        respond_error(r, 404, "invalid_request_error", NULL, "not_found",
                      "there is no %s; there are /v1/states/save, /v1/states/restore and "
                      "/v1/states/fork",
                      request_path(r));
        return;
    }
    json_t *body = request_json(r);
    if (!body) return;
    const char *id, *to;
    /* A copy needs a name of its own; a saved one may have the same. */
    if (field_model(s, r, body) && read_name(r, body, "id", NULL, &id) &&
        read_name(r, body, "to", actions[i].action == STATE_FORK ? NULL : id, &to))
        answer_state(s, r, actions[i].action, id, to);
    json_decref(body);
}
