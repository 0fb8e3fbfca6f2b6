/* A request's head as civetweb has parsed it: what it lets pass that another server in front may
 * read differently is refused, with the connection closed. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "connection.h"

/* A folded line ends the head for civetweb, and what follows is not among info's headers. Behind
 * the last value there must be its line's end, two bytes that civetweb has zeroed, and an empty
 * line. */
static bool head_is_whole(const struct mg_request_info *info) {
    if (!info->num_headers) return true;
    const char *end = info->http_headers[info->num_headers - 1].value;
    end += strlen(end);
    return !end[1] && end[2] == '\r';
}

static size_t head_bytes(const struct mg_request_info *info) {
    if (!info->num_headers) return 0;
    const char *end = info->http_headers[info->num_headers - 1].value;
    return (size_t)(end + strlen(end) + 3 - info->request_method);
}

/* "Name : value", where civetweb zeroes the space and the colon. */
static bool has_space_before_colon(const struct mg_header *h) {
    const char *end = h->name + strlen(h->name) + 1;
    return !*end && h->value != end;
}

static bool is_number(const char *text) {
    size_t n = strspn(text, "0123456789");
    return n && n <= 18 && !text[n];
}

static bool refuse_head(request *r, int status, const char *text) {
    r->close = r->unread = true;
    respond_error(r, status, "invalid_request_error", NULL, NULL, "%s", text);
    return false;
}

bool head_check(request *r) {
    const struct mg_request_info *info = r->info;
    int lengths = 0, encodings = 0;
    if (info->num_headers >= MG_MAX_HEADERS)
        return refuse_head(r, 431, "more than 63 header lines");
    if (head_bytes(info) > MAX_HEADER_BYTES)
        return refuse_head(r, 431, "the request's head is larger than 32 KiB");
    if (!head_is_whole(info)) return refuse_head(r, 400, "a header line is not one");
    for (int i = 0; i < info->num_headers; i++) {
        const struct mg_header *h = &info->http_headers[i];
        if (has_space_before_colon(h))
            return refuse_head(r, 400, "a space between a header's name and its colon");
        if (!strcasecmp(h->name, "Content-Length")) {
            lengths++;
            if (!is_number(h->value)) return refuse_head(r, 400, "Content-Length is not a number");
        } else if (!strcasecmp(h->name, "Transfer-Encoding")) {
            encodings++;
            if (strcasecmp(h->value, "chunked"))
                return refuse_head(r, 400, "of Transfer-Encoding only chunked is understood");
        }
    }
    if (lengths > 1) return refuse_head(r, 400, "two Content-Length headers");
    if (encodings > 1) return refuse_head(r, 400, "two Transfer-Encoding headers");
    if (lengths && encodings)
        return refuse_head(r, 400, "both Content-Length and Transfer-Encoding");
    if (encodings && strcmp(info->http_version, "1.1"))
        return refuse_head(r, 400, "Transfer-Encoding before HTTP/1.1");
    if (strlen(info->request_uri) > MAX_TARGET)
        return refuse_head(r, 414, "the target is longer than 8192 bytes");
    return true;
}

bool head_path(request *r) {
    const char *raw = r->info->local_uri_raw;
    size_t n = strlen(raw);
    char *path = malloc(n + 1);
    r->path = path;
    if (!path) {
        respond_error(r, 503, "server_error", NULL, NULL, "no memory");
        return false;
    }
    for (const char *p = raw; *p; p++) {
        unsigned value = (unsigned char)*p;
        if (*p == '%') {
            char digits[3] = {p[1], p[1] ? p[2] : '\0', '\0'};
            char *end;
            value = (unsigned)strtoul(digits, &end, 16);
            if (!digits[1] || *end || strchr("+- ", digits[0]) || !value) {
                *path = '\0';
                respond_error(r, 400, "invalid_request_error", NULL, NULL,
                              "the path holds a %% without two hexadecimal digits, or NUL");
                return false;
            }
            p += 2;
        }
        *path++ = (char)value;
    }
    *path = '\0';
    return true;
}
