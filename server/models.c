/* GET /v1/models and /v1/models/{id}: the one that is served. */
#include <stdio.h>
#include <string.h>

#include "routes.h"

static json_t *mixers(const linnet_model *model) {
    json_t *list = json_array();
    int n = linnet_model_get_info(model)->n_layers;
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_string(linnet_model_mixer(model, i, NULL)));
    return list;
}

static json_t *state_bytes(const server *s) {
    static const unsigned depths[] = {0, 1024, 8192, 32768};
    json_t *sizes = json_object();
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        char name[16];
        snprintf(name, sizeof name, "%u", depths[i]);
        uint64_t bytes = linnet_model_state_bytes(s->model, s->options.session.kv, depths[i]);
        json_object_set_new(sizes, name, json_integer((json_int_t)bytes));
    }
    return sizes;
}

static json_t *model_json(const server *s) {
    const linnet_model_info *info = linnet_model_get_info(s->model);
    linnet_kv_type kv = s->options.session.kv;
    /* What a softmax model of this shape would keep of a token: keys and values of every layer. */
    double each = kv == LINNET_KV_F32 ? 4 : kv == LINNET_KV_F16 ? 2 : 1 + 2.0 / 32;
    double width = (double)info->n_kv_heads * info->head_dim;
    if (info->n_heads * info->head_dim < info->n_embd / 2)
        width = info->n_embd; /* it has no heads */
    double softmax = 2.0 * info->n_layers * width * each;
    return json_pack("{s:s,s:s,s:I,s:s,s:i,s:{s:s,s:s,s:o,s:i,s:o,s:I}}", "id", s->model_name,
                     "object", "model", "created", (json_int_t)s->started, "owned_by", "linnet",
                     "max_model_len", s->ctx, "linnet", "architecture", info->architecture,
                     "template", s->options.template ? s->options.template : info->chat_template,
                     "mixers", mixers(s->model), "context", s->ctx, "state_bytes", state_bytes(s),
                     "softmax_token_bytes", (json_int_t)softmax);
}

void handle_models(server *s, request *r) {
    respond_json(r, 200, json_pack("{s:s,s:[o]}", "object", "list", "data", model_json(s)));
}

void handle_model(server *s, request *r) {
    if (!strcmp(request_rest(r), s->model_name))
        respond_json(r, 200, model_json(s));
    else
        respond_error(r, 404, "invalid_request_error", "model", "model_not_found",
                      "the model does not exist here; this server has '%s'", s->model_name);
}
