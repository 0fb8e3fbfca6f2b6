/* Answers: whole ones, errors in OpenAI's shape, server-sent events. An answer goes out in one
 * write, an event too. */
#include "connection.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool request_write(request *r, const void *bytes, size_t n) {
    if (!r->gone && mg_write(r->mg, bytes, n) != (int)n) r->gone = true;
    return !r->gone;
}

void request_note(request *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->note, sizeof r->note, format, args);
    va_end(args);
}

void respond_header(request *r, const char *name, const char *value) {
    size_t at = strlen(r->headers);
    if (at + strlen(name) + strlen(value) + 5 < sizeof r->headers)
        sprintf(r->headers + at, "%s: %s\r\n", name, value);
}

static const char *reason(int status) {
    static const struct {
        int status;
        const char *text;
    } reasons[] = {
        {200, "OK"},
        {204, "No Content"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {417, "Expectation Failed"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].status == status) return reasons[i].text;
    return "Error";
}

/* The head's bytes; `length` -1: a stream. */
static int head(request *r, char *out, size_t size, int status, const char *type, int64_t length) {
    char framing[64] = "", origin[600] = "";
    /* What is left unread would be taken for the next request. */
    bool close = r->close || r->unread || (length < 0 && !r->chunked);
    if (status != 204 && status != 304) {
        if (length >= 0)
            snprintf(framing, sizeof framing, "Content-Length: %lld\r\n", (long long)length);
        else if (r->chunked)
            snprintf(framing, sizeof framing, "Transfer-Encoding: chunked\r\n");
    }
    if (r->origin)
        snprintf(origin, sizeof origin, "Access-Control-Allow-Origin: %.500s\r\nVary: Origin\r\n",
                 r->origin);
    r->close = close;
    r->status = status;
    return snprintf(out, size,
                    "HTTP/1.1 %d %s\r\n%s%s%s%s%s%s"
                    "X-Content-Type-Options: nosniff\r\nConnection: %s\r\n\r\n",
                    status, reason(status), type ? "Content-Type: " : "", type ? type : "",
                    type ? "\r\n" : "", framing, origin, r->headers,
                    close ? "close" : "keep-alive");
}

void respond_bytes(request *r, int status, const char *type, const void *body, size_t n) {
    char *out = malloc(4096 + n);
    if (!out) {
        r->gone = true;
        return;
    }
    int at = head(r, out, 4096, status, type, (int64_t)n);
    if (n && !r->head) memcpy(out + at, body, n);
    request_write(r, out, (size_t)at + (r->head ? 0 : n));
    free(out);
}

/* Nine digits tell every float32 from every other. */
static char *json_text(json_t *value) {
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(value);
    return text;
}

void respond_json(request *r, int status, json_t *body) {
    static const char no_memory[] =
        "{\"error\":{\"message\":\"no memory for the answer\",\"type\":\"server_error\","
        "\"param\":null,\"code\":null}}";
    char *text = json_text(body);
    if (!strstr(r->headers, "Cache-Control: ")) respond_header(r, "Cache-Control", "no-store");
    respond_bytes(r, text ? status : 503, "application/json", text ? text : no_memory,
                  strlen(text ? text : no_memory));
    free(text);
}

static json_t *error_json(const char *message, const char *type, const char *param,
                          const char *code) {
    /* A name or a value that a message quotes may have been cut within a character. */
    json_t *text = json_string(message);
    if (!text) text = json_string("the request holds text that is not valid UTF-8");
    return json_pack("{s:{s:o,s:s,s:s?,s:s?}}", "error", "message", text, "type", type, "param",
                     param, "code", code);
}

void respond_error(request *r, int status, const char *type, const char *param, const char *code,
                   const char *format, ...) {
    char message[1400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    respond_json(r, status, error_json(message, type, param, code));
}

void respond_busy(request *r, const char *code, const char *message) {
    respond_header(r, "Retry-After", "1");
    respond_error(r, 503, "server_error", NULL, code, "%s", message);
}

void respond_failed(request *r, const linnet_error *err) {
    /* Where the model's file lies is nobody's business. */
    const char *path = r->server->options.model_path, *text = err->text;
    size_t n = strlen(path);
    if (!strncmp(text, path, n) && !strncmp(text + n, ": ", 2)) text += n + 2;
    switch (err->code) {
    case LINNET_ERR_CONTEXT:
        respond_error(r, 400, "invalid_request_error", NULL, "context_length_exceeded", "%s", text);
        break;
    case LINNET_ERR_ARGUMENT:
    case LINNET_ERR_TOKENIZER:
    case LINNET_ERR_UNSUPPORTED:
        respond_error(r, 400, "invalid_request_error", NULL, NULL, "%s", text);
        break;
    case LINNET_ERR_MEMORY:
        respond_busy(r, NULL, text);
        break;
    default:
        respond_error(r, 500, "server_error", NULL, NULL, "%s", text);
    }
}

/* ---- server-sent events ------------------------------------------------------------------- */

bool stream_begin(request *r) {
    char out[4096];
    r->chunked = strcmp(r->info->http_version, "1.0") != 0;
    respond_header(r, "Cache-Control", "no-cache");
    respond_header(r, "X-Accel-Buffering", "no"); /* nginx: pass events on as they come */
    int n = head(r, out, sizeof out, 200, "text/event-stream", -1);
    return request_write(r, out, (size_t)n);
}

/* prefix, text, a blank line; as one chunk. */
static bool send_event(request *r, const char *prefix, const char *text, const char *tail) {
    size_t n = strlen(prefix) + strlen(text) + 2;
    char *out = malloc(n + 64);
    if (!out) {
        r->gone = true;
        return false;
    }
    int at = r->chunked ? sprintf(out, "%zx\r\n", n) : 0;
    at += sprintf(out + at, "%s%s\n\n%s%s", prefix, text, r->chunked ? "\r\n" : "", tail);
    bool sent = request_write(r, out, (size_t)at);
    free(out);
    return sent;
}

bool stream_json(request *r, json_t *data) {
    char *text = json_text(data);
    if (!text) {
        r->gone = true;
        return false;
    }
    bool sent = send_event(r, "data: ", text, "");
    free(text);
    return sent;
}

bool stream_comment(request *r, const char *text) {
    return send_event(r, ": ", text, "");
}

bool stream_end(request *r) {
    return send_event(r, "data: ", "[DONE]", r->chunked ? "0\r\n\r\n" : "");
}

bool stream_error(request *r, const char *type, const char *code, const char *message) {
    char *text = json_text(error_json(message, type, NULL, code));
    bool sent = text && send_event(r, "data: ", text, r->chunked ? "0\r\n\r\n" : "");
    free(text);
    return sent;
}
