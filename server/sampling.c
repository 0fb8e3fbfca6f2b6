/* Fields of a request, each checked where it enters. Unknown ones are ignored, as OpenAI does;
 * those that are known but not supported are refused where they would change the answer. */
#include "sampling.h"

#include <math.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *field(const json_t *body, const char *name) {
    json_t *value = json_object_get(body, name);
    return json_is_null(value) ? NULL : value;
}

bool bad_field(request *r, const char *name, const char *format, ...) {
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    respond_error(r, 400, "invalid_request_error", name, NULL, "%s: %s", name, text);
    return false;
}

bool field_bool(request *r, const json_t *body, const char *name, bool *out) {
    json_t *value = field(body, name);
    if (!value) return true;
    if (!json_is_boolean(value)) return bad_field(r, name, "expected true or false");
    *out = json_is_true(value);
    return true;
}

bool field_whole(request *r, const json_t *body, const char *name, int64_t low, int64_t high,
                 int64_t *out) {
    json_t *value = field(body, name);
    if (!value) return true;
    if (!json_is_integer(value) || json_integer_value(value) < low ||
        json_integer_value(value) > high)
        return bad_field(r, name, "expected a whole number from %lld to %lld", (long long)low,
                         (long long)high);
    *out = json_integer_value(value);
    return true;
}

static bool field_real(request *r, const json_t *body, const char *name, double low, double high,
                       float *out) {
    json_t *value = field(body, name);
    if (!value) return true;
    double x = json_number_value(value);
    if (!json_is_number(value) || !(x >= low && x <= high))
        return bad_field(r, name, "expected a number from %g to %g", low, high);
    *out = (float)x;
    return true;
}

bool field_model(server *s, request *r, const json_t *body) {
    json_t *value = field(body, "model");
    if (!value) return true;
    if (!json_is_string(value)) return bad_field(r, "model", "expected a text");
    const char *name = json_string_value(value), *slash = strrchr(name, '/');
    const char *base = slash ? slash + 1 : name;
    size_t n = strlen(base), own = strlen(s->model_name);
    if (n == own + 5 && !strcmp(base + own, ".gguf")) n = own;
    if (n == own && !memcmp(base, s->model_name, n)) return true;
    respond_error(r, 404, "invalid_request_error", "model", "model_not_found",
                  "the model '%.200s' does not exist here; this server has '%s'", name,
                  s->model_name);
    return false;
}

bool token_ids(server *s, request *r, const char *name, const json_t *list, int32_t **out,
               size_t *n) {
    const linnet_model_info *info = linnet_model_get_info(s->model);
    int most = info->n_vocab ? info->n_vocab : info->n_rows;
    *n = json_array_size(list);
    *out = malloc((*n ? *n : 1) * sizeof **out);
    if (!*out) {
        respond_busy(r, NULL, "no memory for the ids");
        return false;
    }
    for (size_t i = 0; i < *n; i++) {
        json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= most) {
            free(*out);
            *out = NULL;
            return bad_field(r, name, "expected token ids from 0 to %d, entry %zu is none",
                             most - 1, i);
        }
        (*out)[i] = (int32_t)json_integer_value(id);
    }
    return true;
}

/* ---- the fields --------------------------------------------------------------------------- */

static bool read_stops(request *r, const json_t *body, generation_fields *f) {
    json_t *value = field(body, "stop");
    if (!value) return true;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (!json_is_array(value) && !json_is_string(value))
        return bad_field(r, "stop", "expected a text or an array of texts");
    if (n > MAX_STOPS) return bad_field(r, "stop", "expected at most %d texts", MAX_STOPS);
    f->stops = calloc(n ? n : 1, sizeof *f->stops);
    for (size_t i = 0; i < n && f->stops; i++) {
        json_t *text = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(text) || !json_string_length(text))
            return bad_field(r, "stop", "expected texts that are not empty");
        if (json_string_length(text) > MAX_STOP_BYTES) /* every job has its own */
            return bad_field(r, "stop", "expected texts of at most %d bytes", MAX_STOP_BYTES);
        f->stops[i] = strdup(json_string_value(text));
        if (!f->stops[i]) break;
        f->n_stops++;
    }
    if (f->n_stops == n) return true;
    respond_busy(r, NULL, "no memory for the stop texts");
    return false;
}

static bool read_bias(server *s, request *r, json_t *body, generation_fields *f) {
    json_t *map = field(body, "logit_bias"), *value;
    const char *key;
    const linnet_model_info *info = linnet_model_get_info(s->model);
    int most = info->n_vocab ? info->n_vocab : info->n_rows;
    if (!map) return true;
    if (!json_is_object(map))
        return bad_field(r, "logit_bias", "expected an object of token ids and numbers");
    size_t n = json_object_size(map);
    linnet_logit_bias *bias = calloc(n ? n : 1, sizeof *bias);
    f->sampling.bias = bias;
    if (!bias) {
        respond_busy(r, NULL, "no memory for logit_bias");
        return false;
    }
    json_object_foreach(map, key, value) {
        char *end;
        size_t digits = strspn(key, "0123456789");
        long id = strtol(key, &end, 10);
        double x = json_number_value(value);
        if (!digits || digits > 9 || *end || id >= most)
            return bad_field(r, "logit_bias", "expected token ids from 0 to %d, found '%.40s'",
                             most - 1, key);
        if (!json_is_number(value) || !(x >= -100 && x <= 100))
            return bad_field(r, "logit_bias", "expected numbers from -100 to 100");
        /* -100 is said to ban a token, so it does. */
        bias[f->sampling.n_bias++] =
            (linnet_logit_bias){(int32_t)id, x == -100 ? -INFINITY : (float)x};
    }
    return true;
}

static bool read_format(request *r, const json_t *body, generation_fields *f) {
    json_t *format = field(body, "response_format");
    if (!format) return true;
    const char *type = json_string_value(json_object_get(format, "type"));
    if (type && !strcmp(type, "text")) return true;
    if (type && !strcmp(type, "json_object")) return f->json = true;
    if (type && !strcmp(type, "json_schema"))
        return bad_field(r, "response_format",
                         "json_schema is not supported, json_object is: any JSON object");
    return bad_field(r, "response_format", "expected {\"type\": \"text\"} or \"json_object\"");
}

static bool is_empty(const json_t *value) {
    return !value || (json_is_array(value) && !json_array_size(value)) ||
           (json_is_object(value) && !json_object_size(value));
}

static bool refuse_unsupported(request *r, const json_t *body) {
    static const char *const tools[] = {"tools", "functions"},
                             *const choices[] = {"tool_choice", "function_call"},
                             *const penalties[] = {"frequency_penalty", "presence_penalty"};
    for (int i = 0; i < 2; i++) {
        json_t *tool = field(body, tools[i]), *choice = field(body, choices[i]);
        const char *word = json_string_value(choice);
        if (!is_empty(tool)) return bad_field(r, tools[i], "this server calls no tools");
        if (choice && !(word && (!strcmp(word, "none") || !strcmp(word, "auto"))))
            return bad_field(r, choices[i], "this server calls no tools");
        float penalty = 0;
        if (!field_real(r, body, penalties[i], -2, 2, &penalty)) return false;
        if (penalty != 0)
            return bad_field(r, penalties[i],
                             "only 0 is supported; repeat_penalty is what there is");
    }
    return true;
}

static bool read_seed(request *r, const json_t *body, generation_fields *f) {
    json_t *value = field(body, "seed");
    if (value && !json_is_integer(value)) return bad_field(r, "seed", "expected a whole number");
    if (value)
        f->sampling.seed = (uint64_t)json_integer_value(value);
    else /* one that a double holds, since the answer tells it */
        f->sampling.seed = ((uint64_t)randombytes_random() << 21) ^ randombytes_random();
    return true;
}

bool sampling_read(server *s, request *r, const json_t *body, generation_fields *f) {
    *f = (generation_fields){.sampling = LINNET_SAMPLING_DEFAULT, .n = 1, .top_logprobs = -1};
    linnet_sampling *p = &f->sampling;
    int64_t n = 1, top_k = 0, best_of = 0, last = p->repeat_last;
    p->temperature = 1; /* OpenAI's default, not the library's */
    json_t *stream = field(body, "stream_options");
    if (stream && !json_is_object(stream))
        return bad_field(r, "stream_options", "expected an object");
    bool ok = field_model(s, r, body) && refuse_unsupported(r, body) &&
              field_real(r, body, "temperature", 0, 100, &p->temperature) &&
              field_real(r, body, "top_p", 0, 1, &p->top_p) &&
              field_real(r, body, "min_p", 0, 1, &p->min_p) &&
              field_whole(r, body, "top_k", -1, INT32_MAX, &top_k) &&
              field_real(r, body, "repetition_penalty", 0.01, 100, &p->repeat_penalty) &&
              field_real(r, body, "repeat_penalty", 0.01, 100, &p->repeat_penalty) &&
              field_whole(r, body, "repeat_last_n", 0, INT32_MAX, &last) &&
              field_whole(r, body, "n", 1, MAX_CHOICES, &n) &&
              field_whole(r, body, "best_of", 1, MAX_CHOICES, &best_of) &&
              field_bool(r, body, "ignore_eos", &f->ignore_end) &&
              field_bool(r, body, "stream", &f->stream) &&
              field_bool(r, body, "return_progress", &f->progress) &&
              (!stream || field_bool(r, stream, "include_usage", &f->include_usage)) &&
              read_seed(r, body, f) && read_stops(r, body, f) &&
              read_bias(s, r, (json_t *)body, f) && read_format(r, body, f);
    if (ok && best_of && best_of != n)
        return bad_field(r, "best_of", "only the same number as n is supported");
    p->top_k = top_k < 0 ? 0 : (int)top_k;
    p->repeat_last = (int)last;
    f->n = (size_t)n;
    return ok;
}

void sampling_free(generation_fields *f) {
    for (size_t i = 0; i < f->n_stops; i++)
        free(f->stops[i]);
    free(f->stops);
    free((void *)f->sampling.bias);
    f->stops = NULL;
    f->n_stops = 0;
    f->sampling.bias = NULL;
}

bool sampling_job(const generation_fields *f, size_t choice, const char *owner, double seconds,
                  job_request *out) {
    *out = (job_request){.sampling = f->sampling,
                         .max_tokens = f->max_tokens,
                         .prefill_only = f->limited && f->max_tokens == 0,
                         .top_logprobs = f->top_logprobs,
                         .json = f->json,
                         .ignore_end = f->ignore_end,
                         .seconds = seconds};
    out->sampling.seed += choice;
    out->sampling.bias = NULL;
    snprintf(out->owner, sizeof out->owner, "%s", owner);
    if (f->n_stops && !(out->stops = calloc(f->n_stops, sizeof *out->stops))) return false;
    for (; out->n_stops < f->n_stops; out->n_stops++)
        if (!(out->stops[out->n_stops] = strdup(f->stops[out->n_stops]))) return false;
    size_t n = f->sampling.n_bias;
    if (!n) return true;
    linnet_logit_bias *bias = malloc(n * sizeof *bias);
    if (!bias) return false;
    memcpy(bias, f->sampling.bias, n * sizeof *bias);
    out->sampling.bias = bias;
    return true;
}
