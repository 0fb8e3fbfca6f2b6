/* Which path is whose. */
#include "routes.h"

#include <stdio.h>
#include <string.h>

#include "connection.h"

static const route routes[] = {
    {"POST", "/v1/chat/completions", handle_chat, false},
    {"POST", "/v1/completions", handle_completions, false},
    {"GET", "/v1/models", handle_models, false},
    {"GET", "/v1/models/*", handle_model, false},
    {"POST", "/v1/embeddings", handle_embeddings, false},
    {"POST", "/v1/states/*", handle_states, false},
    {"POST", "/tokenize", handle_tokenize, false},
    {"POST", "/detokenize", handle_detokenize, false},
    {"GET", "/tokenizer_info", handle_tokenizer_info, false},
    {"GET", "/metrics", handle_metrics, false},
    {"GET", "/health", handle_health, true},
    {"GET", "/", handle_page, true}, /* the page has no secrets, and asks for a key */
    {"GET", "/page/*", handle_page, true},
};

static bool takes(const route *r, const char *path) {
    size_t n = strlen(r->path);
    if (r->path[n - 1] == '*') return !strncmp(path, r->path, n - 1) && path[n - 1];
    return !strcmp(path, r->path);
}

const route *route_find(const char *method, const char *path, char *methods, size_t size) {
    const route *found = NULL;
    size_t at = 0;
    *methods = '\0';
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const route *r = &routes[i];
        if (!takes(r, path)) continue;
        if (!strcmp(method, r->method)) found = r;
        int n = snprintf(methods + at, size - at, "%s%s", at ? ", " : "",
                         !strcmp(r->method, "GET") ? "GET, HEAD" : r->method);
        if (n > 0 && (size_t)n < size - at) at += (size_t)n;
    }
    if (at && at < size) snprintf(methods + at, size - at, ", OPTIONS");
    return found;
}
