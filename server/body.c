/* A request as a handler sees it: its headers, its body as JSON, whether its client is still there.
 */
#include "clock.h"
#include "connection.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

const char *request_header(const request *r, const char *name) {
    return r->info ? mg_get_header(r->mg, name) : NULL;
}

const char *request_method(const request *r) {
    return r->info->request_method;
}

const char *request_path(const request *r) {
    return r->path;
}

const char *request_rest(const request *r) {
    return r->rest ? r->rest : "";
}

const char *request_owner(const request *r) {
    return r->owner;
}

/* Clients that only close their half are taken to have left, as nginx and others do. */
bool request_gone(request *r) {
    if (r->gone || r->connection->fd < 0) return r->gone;
    struct pollfd p = {.fd = r->connection->fd, .events = POLLRDHUP};
    if (poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR))) r->gone = true;
    return r->gone;
}

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

/* ---- the body ----------------------------------------------------------------------------- */

static void too_large(request *r) {
    respond_error(r, 413, "invalid_request_error", NULL, "body_too_large",
                  "the body is larger than the %zu bytes that this server takes (--max-body)",
                  r->server->options.max_body);
}

/* Reads all of it, whatever its framing. NULL: answered. */
static char *read_body(request *r, size_t *n) {
    const server_options *o = &r->server->options;
    long long announced = r->info->content_length;
    const char *expect = request_header(r, "Expect");
    bool chunked = request_header(r, "Transfer-Encoding") != NULL;
    if (!chunked && announced > (long long)o->max_body) {
        too_large(r);
        return NULL;
    }
    if (expect && strcasecmp(expect, "100-continue")) {
        respond_error(r, 417, "invalid_request_error", NULL, NULL,
                      "of Expect only 100-continue is understood");
        return NULL;
    }
    if (expect && (chunked || announced > 0) && !strcmp(r->info->http_version, "1.1"))
        request_write(r, "HTTP/1.1 100 Continue\r\n\r\n", 25);

    enum { PIECE = 65536 };
    double start = clock_seconds();
    size_t cap = PIECE, want;
    char *bytes = malloc(cap + 1);
    *n = 0;
    int got = 0;
    do {
        /* Time for an honest line: 100 kB/s. mg_read waits for all that it is asked for, so a byte
         * too many is enough. */
        want = min_size(cap - *n, o->max_body + 1 - *n);
        connection_deadline(
            r->http, r->connection,
            start + o->header_seconds + 1e-5 * (double)(*n + want) - clock_seconds(), true);
        if (!bytes || (got = mg_read(r->mg, bytes + *n, want)) <= 0) break;
        *n += (size_t)got;
        if (*n < cap) continue;
        char *grown = realloc(bytes, cap + PIECE + 1);
        if (!grown) free(bytes);
        bytes = grown;
        cap += PIECE;
    } while (*n <= o->max_body);
    connection_deadline(r->http, r->connection,
                        o->request_seconds > 0 ? o->request_seconds + 60 : 0, false);
    if (!bytes) {
        respond_error(r, 503, "server_error", NULL, NULL, "no memory for the body");
        return NULL;
    }
    if (*n > o->max_body) {
        too_large(r);
    } else if (r->connection->expired) {
        respond_error(r, 408, "invalid_request_error", NULL, NULL, "the body did not come in time");
    } else if (got < 0 || (!chunked && (long long)*n < announced)) {
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      chunked ? "the body's chunks are damaged"
                              : "the body is shorter than announced");
    } else {
        r->unread = false;
        bytes[*n] = '\0';
        return bytes;
    }
    free(bytes);
    return NULL;
}

/* What the parser is not to be given: it calls itself for what is nested, and an object of two
 * bytes takes hundreds in memory. Answers. */
static bool is_harmless(request *r, const char *bytes, size_t n) {
    size_t depth = 0, most = 0, count = 0;
    bool text = false;
    for (size_t i = 0; i < n; i++) {
        char c = bytes[i];
        if (text) {
            if (c == '\\')
                i++;
            else
                text = c != '"';
        } else if (c == '"') {
            text = true;
        } else if (c == '[' || c == '{') {
            count++;
            if (++depth > most) most = depth;
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        }
    }
    if (most > MAX_DEPTH)
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      "the JSON is nested more than %d deep", MAX_DEPTH);
    else if (count > MAX_CONTAINERS)
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      "the JSON has more than %d objects and arrays", MAX_CONTAINERS);
    return most <= MAX_DEPTH && count <= MAX_CONTAINERS;
}

json_t *request_json(request *r) {
    size_t n;
    char *bytes = read_body(r, &n);
    if (!bytes) return NULL;
    json_error_t error = {0};
    json_t *body = NULL;
    if (!n) {
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      "there is no body: expected a JSON object");
    } else if (!is_harmless(r, bytes, n)) {
        body = NULL;
    } else if (!(body = json_loadb(bytes, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error))) {
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      "the body is not JSON: %s, at byte %d", error.text, error.position);
    } else if (!json_is_object(body)) {
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      "expected a JSON object as the body");
        json_decref(body);
        body = NULL;
    }
    free(bytes);
    return body;
}
