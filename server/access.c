/* Who may ask: names in Host (a page of the web must not reach this server under a name of its own,
 * as DNS rebinding does), origins, API keys. */
#include "connection.h"
#include "../error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { KEY_HASH = crypto_generichash_BYTES, MAX_KEY = 512 };

struct access {
    const server_options *options;
    bool keyed;
    size_t n_keys;
    unsigned char (*keys)[KEY_HASH];
    unsigned char secret[crypto_generichash_KEYBYTES]; /* so that hashes mean nothing elsewhere */
};

/* ---- API keys ----------------------------------------------------------------------------- */

static void hash_key(const access_rules *a, const char *key, size_t n,
                     unsigned char out[KEY_HASH]) {
    crypto_generichash(out, KEY_HASH, (const unsigned char *)key, n, a->secret, sizeof a->secret);
}

/* One key a line; empty lines and lines that begin with # are none. */
static linnet_status read_keys(access_rules *a, linnet_error *err) {
    const char *path = a->options->api_key_file;
    FILE *file = fopen(path, "re");
    struct stat st;
    if (!file || fstat(fileno(file), &st)) {
        int code = errno;
        if (file) fclose(file);
        return fail(err, LINNET_ERR_IO, "%s: %s", path, strerror(code));
    }
    if (!S_ISREG(st.st_mode)) {
        fclose(file);
        return fail(err, LINNET_ERR_IO, "%s: %s", path, "expected a file of API keys, one a line");
    }
    if ((st.st_mode & 0007) && a->options->log) {
        char line[1200];
        snprintf(line, sizeof line, "%.1000s can be read by everybody: chmod 600 it", path);
        a->options->log(line);
    }
    char line[MAX_KEY + 3];
    linnet_status status = LINNET_OK;
    bool comment = false; /* the line goes on, and is a long one */
    while (!status && fgets(line, sizeof line, file)) {
        size_t n = strlen(line);
        bool whole = (n && line[n - 1] == '\n') || feof(file);
        if (comment || line[0] == '#') {
            comment = !whole;
            continue;
        }
        while (n && strchr("\r\n \t", line[n - 1]))
            line[--n] = '\0';
        if (!n && whole) continue;
        if (n > MAX_KEY || !whole) {
            status = fail(err, LINNET_ERR_FORMAT, "%s: %s", path,
                          "an API key is longer than 512 characters");
            break;
        }
        if (strstr(line, " #") || strstr(line, "\t#")) { /* "KEY # whose" would be the key */
            status = fail(err, LINNET_ERR_FORMAT, "%s: %s", path,
                          "a # stands behind an API key; a comment needs a line of its own");
            break;
        }
        void *grown = realloc(a->keys, (a->n_keys + 1) * sizeof *a->keys);
        if (!grown) {
            status = fail(err, LINNET_ERR_MEMORY, "%s: %s", path, "no memory for its keys");
            break;
        }
        a->keys = grown;
        hash_key(a, line, n, a->keys[a->n_keys++]);
    }
    if (!status && ferror(file)) status = fail(err, LINNET_ERR_IO, "%s: %s", path, strerror(errno));
    if (!status && !a->n_keys)
        status = fail(err, LINNET_ERR_FORMAT, "%s: %s", path,
                      "expected API keys, one a line, found none");
    sodium_memzero(line, sizeof line);
    fclose(file);
    return status;
}

linnet_status access_new(access_rules **out, const server_options *options, linnet_error *err) {
    access_rules *a = calloc(1, sizeof *a);
    if (!a) return fail(err, LINNET_ERR_MEMORY, "%s: %s", "server", "no memory");
    a->options = options;
    randombytes_buf(a->secret, sizeof a->secret);
    a->keyed = options->api_key_file != NULL;
    linnet_status status = a->keyed ? read_keys(a, err) : LINNET_OK;
    if (status) {
        access_free(a);
        return status;
    }
    *out = a;
    return LINNET_OK;
}

void access_free(access_rules *a) {
    if (!a) return;
    free(a->keys);
    sodium_memzero(a, sizeof *a);
    free(a);
}

/* Every key is compared, whichever fits. */
static bool is_key(const access_rules *a, const unsigned char hash[KEY_HASH]) {
    int found = 0;
    for (size_t i = 0; i < a->n_keys; i++)
        found |= sodium_memcmp(hash, a->keys[i], KEY_HASH) == 0;
    return found;
}

static const char *given_key(const request *r) {
    const char *value = request_header(r, "Authorization");
    if (value && !strncasecmp(value, "Bearer ", 7)) {
        value += 7;
        return value + strspn(value, " ");
    }
    return request_header(r, "X-Api-Key");
}

static bool check_key(request *r, bool needed) {
    const access_rules *a = r->http->access;
    const char *key = given_key(r);
    size_t n = key ? strlen(key) : 0;
    unsigned char hash[KEY_HASH];
    const char *owner = r->info->remote_addr;
    if (a->keyed && n) owner = key;
    hash_key(a, owner, strlen(owner), hash);
    sodium_bin2hex(r->owner, sizeof r->owner, hash, sizeof hash);
    if (!a->keyed || !needed || (n && n <= MAX_KEY && is_key(a, hash))) return true;
    respond_header(r, "WWW-Authenticate", "Bearer");
    respond_error(r, 401, "authentication_error", NULL, "invalid_api_key",
                  n ? "the API key is not one of this server's"
                    : "an API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY");
    return false;
}

/* ---- Host and Origin ---------------------------------------------------------------------- */

/* Bytes of the name in "name", "name:port", "[v6]:port"; 0 if it is none of these. */
static size_t host_name(const char *host) {
    size_t n;
    if (host[0] == '[') {
        n = strspn(host + 1, "0123456789abcdefABCDEF:.") + 1;
        if (n < 3 || host[n] != ']') return 0;
        n++;
    } else {
        n = strspn(host, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-_");
    }
    if (host[n] == ':') {
        size_t digits = strspn(host + n + 1, "0123456789");
        if (!digits || digits > 5 || host[n + 1 + digits]) return 0;
    } else if (host[n]) {
        return 0;
    }
    return n;
}

/* A number cannot be rebound to another address, so any number is fine. */
static bool is_address(const char *name, size_t n) {
    char text[64];
    unsigned char bytes[16];
    if (n >= sizeof text) return false;
    if (name[0] == '[') {
        memcpy(text, name + 1, n - 2);
        text[n - 2] = '\0';
        return inet_pton(AF_INET6, text, bytes) == 1;
    }
    memcpy(text, name, n);
    text[n] = '\0';
    return inet_pton(AF_INET, text, bytes) == 1;
}

static bool same_name(const char *a, size_t n, const char *b) {
    return strlen(b) == n && !strncasecmp(a, b, n);
}

static bool is_our_name(const server_options *o, const char *host) {
    size_t n = host_name(host);
    if (!n) return false;
    if (is_address(host, n) || same_name(host, n, "localhost") || same_name(host, n, o->host))
        return true;
    for (size_t i = 0; i < o->n_hosts; i++)
        if (same_name(host, n, o->hosts[i]) || !strcmp(o->hosts[i], "*")) return true;
    return false;
}

static bool check_host(request *r) {
    const struct mg_request_info *info = r->info;
    const char *host = NULL;
    for (int i = 0; i < info->num_headers; i++) {
        if (strcasecmp(info->http_headers[i].name, "Host")) continue;
        if (host) {
            r->close = true;
            respond_error(r, 400, "invalid_request_error", NULL, NULL, "two Host headers");
            return false;
        }
        host = info->http_headers[i].value;
    }
    if (!host && !strcmp(info->http_version, "1.0")) return true;
    if (!host || !host_name(host)) {
        respond_error(r, 400, "invalid_request_error", NULL, NULL,
                      host ? "the Host header is not a host" : "there is no Host header");
        return false;
    }
    char target[300]; /* of http://host/path, if it is one, which wins over the header */
    const char *authority = strstr(info->request_uri, "://");
    if (info->request_uri[0] != '/' && authority) {
        size_t n = strcspn(authority + 3, "/?#");
        snprintf(target, sizeof target, "%.*s", (int)(n < 299 ? n : 299), authority + 3);
        host = target;
    }
    if (is_our_name(&r->server->options, host)) return true;
    respond_error(r, 403, "invalid_request_error", NULL, "host_not_allowed",
                  "this server does not answer to the name in Host; --allow-host adds names");
    return false;
}

static bool check_origin(request *r) {
    const server_options *o = &r->server->options;
    const char *origin = request_header(r, "Origin"), *host = request_header(r, "Host");
    if (!origin) return true;
    for (size_t i = 0; i < o->n_cors_origins; i++) {
        if (!strcmp(o->cors_origins[i], "*")) {
            r->origin = "*";
            return true;
        }
        if (!strcmp(o->cors_origins[i], origin)) {
            r->origin = origin;
            return true;
        }
    }
    const char *rest = !strncmp(origin, "http://", 7)    ? origin + 7
                       : !strncmp(origin, "https://", 8) ? origin + 8
                                                         : NULL;
    if (rest && host && !strcasecmp(rest, host)) return true; /* our own page */
    respond_error(r, 403, "invalid_request_error", NULL, "origin_not_allowed",
                  "pages of this origin may not use this server; --cors adds origins");
    return false;
}

bool access_check(request *r, bool needs_key) {
    return check_host(r) && check_origin(r) && check_key(r, needs_key);
}

void access_preflight(request *r, const char *methods) {
    const char *wanted = request_header(r, "Access-Control-Request-Headers");
    if (r->origin && request_header(r, "Access-Control-Request-Method")) {
        respond_header(r, "Access-Control-Allow-Methods", methods);
        if (wanted && strlen(wanted) < 300 &&
            !wanted[strspn(wanted, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
                                   "_, ")])
            respond_header(r, "Access-Control-Allow-Headers", wanted);
        respond_header(r, "Access-Control-Max-Age", "600");
    } else {
        respond_header(r, "Allow", methods);
    }
    respond_bytes(r, 204, NULL, NULL, 0);
}
