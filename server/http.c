/* civetweb's part: connections, what is checked before a handler runs, deadlines.
 *
 * civetweb 1.15 gives each connection one of a fixed number of threads, reads a request's head
 * within its own deadline and hands it over; errors it finds come to answer_error. What it leaves
 * to be done here:
 *   - it does not tell the socket, without which nobody sees that a client has left: found by its
 *     two addresses (connections.c);
 *   - a body has no deadline as a whole, nor an answer that is read slowly: the sweep shuts the
 *     socket down when a connection's time is over;
 *   - headers after the 64th, or after a folded line, are dropped without a word, and
 *     Content-Length is read as a number with anything behind: all refused (head.c), since a
 *     proxy in front may see another request in the same bytes;
 *   - a target on another host closes the connection without an answer (connection_close gives one
 *     where it is the connection's first request);
 *   - closing with bytes unread resets the connection, and the client may never see the answer:
 *     they are read for a moment first (linger);
 *   - its threads have stacks of 100 kB: a handler runs on a thread of its own. */
#include "clock.h"
#include "connection.h"
#include "../error.h"
#include "job.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

enum { HANDLER_STACK = 1 << 20 };

const double http_bounds[HTTP_BUCKETS - 1] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                              0.25,  0.5,    1,     2.5,  10,    60};

/* ---- connections -------------------------------------------------------------------------- */

static http *http_of(const struct mg_connection *mg) {
    return mg_get_user_data(mg_get_context(mg));
}

static connection *connection_of(const struct mg_connection *mg) {
    return mg_get_user_connection_data(mg);
}

static int connection_open(const struct mg_connection *mg, void **data) {
    http *h = http_of(mg);
    connection *c = calloc(1, sizeof *c);
    if (!c) return 0; /* its requests are refused */
    c->fd = -1;
    c->since = clock_seconds();
    connection_add(h, c);
    *data = c;
    return 0;
}

static request request_begin(struct mg_connection *mg);
static void request_end(request *r);

static void connection_close(const struct mg_connection *mg) {
    http *h = http_of(mg);
    connection *c = connection_of(mg);
    if (!c) return;
    const struct mg_request_info *info = mg_get_request_info(mg);
    if (!c->answered && info && info->request_uri && info->http_version && !info->local_uri) {
        request r = request_begin((struct mg_connection *)mg);
        r.close = true;
        respond_error(&r, 400, "invalid_request_error", NULL, NULL,
                      "the target is neither a path nor a URL of this server");
        request_end(&r);
    }
    connection_remove(h, c);
    free(c);
}

/* ---- requests ----------------------------------------------------------------------------- */

static request request_begin(struct mg_connection *mg) {
    http *h = http_of(mg);
    request r = {.server = h->server,
                 .http = h,
                 .connection = connection_of(mg),
                 .mg = mg,
                 .info = mg_get_request_info(mg),
                 .start = clock_seconds()};
    int fd = r.connection && r.connection->fd < 0 && r.info ? connection_socket(h, r.info) : -1;
    pthread_mutex_lock(&h->lock);
    if (fd >= 0) r.connection->fd = fd;
    h->stats.busy++;
    pthread_mutex_unlock(&h->lock);
    return r;
}

static void count(histogram *g, double seconds) {
    size_t i = 0;
    while (i < HTTP_BUCKETS - 1 && seconds > http_bounds[i])
        i++;
    g->buckets[i]++;
    g->count++;
    g->sum += seconds;
}

/* "2026-11-26T00:30:00Z 200 POST /v1/models 0.001 s" and what the handler noted. No query, which
 * may hold secrets, and nothing that could drive a terminal. */
static void log_request(const request *r, double seconds) {
    char line[1024], path[240] = "-", date[24];
    const char *from = r->path ? r->path : "-";
    size_t at = 0;
    for (; *from && at < sizeof path - 8; from++) {
        unsigned char c = (unsigned char)*from;
        if (c < 0x20 || c >= 0x7f || c == '\\')
            at += (size_t)snprintf(path + at, sizeof path - at, "\\x%02x", c);
        else
            path[at++] = (char)c;
    }
    path[at] = '\0';
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
    snprintf(line, sizeof line, "%s %d %s %s%s %.3f s%s%s", date, r->gone ? 499 : r->status,
             r->info ? r->info->request_method : "-", path, *from ? "..." : "", seconds,
             *r->note ? "; " : "", r->note);
    r->server->options.log(line);
}

static void request_end(request *r) {
    double seconds = clock_seconds() - r->start;
    http *h = r->http;
    if (r->connection) {
        connection_deadline(h, r->connection, 0, false);
        r->connection->answered = r->status > 0;
        r->connection->since = clock_seconds();
        r->connection->received = connection_received(r->connection);
        if (r->unread && r->connection->fd >= 0 && !r->gone) connection_linger(r->connection);
    }
    if (r->unread || r->gone || r->close) mg_disable_connection_keep_alive(r->mg);
    pthread_mutex_lock(&h->lock);
    h->stats.busy--;
    h->stats.requests++;
    h->stats.classes[r->gone ? 0 : r->status / 100 % 6]++;
    count(&h->stats.seconds, seconds);
    pthread_mutex_unlock(&h->lock);
    if (r->server->options.log) log_request(r, seconds);
    free(r->path);
    free(r->rest);
}

void request_first_token(request *r) {
    pthread_mutex_lock(&r->http->lock);
    count(&r->http->stats.first_token, clock_seconds() - r->start);
    pthread_mutex_unlock(&r->http->lock);
}

/* What civetweb refuses by itself. Of a head that it could not parse nothing else is known. */
static int answer_error(struct mg_connection *mg, int status, const char *message) {
    request r = request_begin(mg);
    http *h = r.http;
    const char *text = message;
    r.info = NULL;
    r.close = r.unread = true;
    double waited = r.connection ? clock_seconds() - r.connection->since : 0;
    bool full =
        r.connection && connection_received(r.connection) - r.connection->received >= HEAD_BUFFER;
    if (status == 413 || (full && strstr(message, "Malformed"))) {
        status = 431;
        text = "the request's head is larger than 32 KiB";
    } else if (status == 505) {
        text = "this server speaks HTTP/1.1";
    } else if (strstr(message, "Malformed") && waited >= h->server->options.header_seconds) {
        status = 408;
        text = "the request's head did not come in time";
    } else if (status < 500) {
        status = 400;
        text = "this is not an HTTP request that this server understands";
    }
    respond_error(&r, status, status < 500 ? "invalid_request_error" : "server_error", NULL, NULL,
                  "%s", text);
    request_end(&r);
    return 0;
}

/* ---- the handler -------------------------------------------------------------------------- */

static size_t open_connections(http *h) {
    pthread_mutex_lock(&h->lock);
    size_t open = h->stats.open;
    pthread_mutex_unlock(&h->lock);
    return open;
}

static bool wants_keep_alive(const request *r) {
    const char *connection = request_header(r, "Connection");
    size_t most = r->server->options.max_connections;
    /* Few threads left: none for those who only might ask again. */
    if (open_connections(r->http) > most - most / 4 || scheduler_draining(r->server->scheduler))
        return false;
    if (connection) return strcasestr(connection, "keep-alive") != NULL;
    return !strcmp(r->info->http_version, "1.1");
}

static void dispatch(request *r) {
    char methods[64];
    if (!head_path(r)) return;
    if (open_connections(r->http) > r->server->options.max_connections) {
        r->close = true;
        respond_busy(r, "too_many_connections", "this server has all the connections it takes");
        return;
    }
    const char *method = r->info->request_method;
    r->head = !strcmp(method, "HEAD");
    bool options = !strcmp(method, "OPTIONS");
    const route *to = route_find(r->head ? "GET" : method, r->path, methods, sizeof methods);
    if (!access_check(r, !options && !(to && to->open))) return;
    if (options && *methods) {
        access_preflight(r, methods);
        return;
    }
    if (!to && *methods) {
        respond_header(r, "Allow", methods);
        respond_error(r, 405, "invalid_request_error", NULL, "method_not_allowed",
                      "this path takes %s", methods);
        return;
    }
    if (!to) {
        respond_error(r, 404, "invalid_request_error", NULL, "not_found",
                      "there is nothing at this path");
        return;
    }
    size_t n = strlen(to->path);
    if (to->path[n - 1] == '*') r->rest = strdup(r->path + n - 1);
    to->handler(r->server, r);
    if (!r->status && !r->gone)
        respond_error(r, 500, "server_error", NULL, NULL, "the request was not answered");
}

static void *run_handler(void *user) {
    dispatch(user);
    return NULL;
}

static int begin_request(struct mg_connection *mg) {
    request r = request_begin(mg);
    pthread_t thread;
    pthread_attr_t attributes;
    if (!r.connection) {
        r.close = true;
        respond_busy(&r, NULL, "no memory for another connection");
    } else if (head_check(&r)) {
        r.unread = r.info->content_length > 0 || request_header(&r, "Transfer-Encoding");
        r.close = !wants_keep_alive(&r);
        /* A handler ends by its job's deadline; this is for one that writes to who does not read.
         */
        if (r.server->options.request_seconds > 0)
            connection_deadline(r.http, r.connection, r.server->options.request_seconds + 60,
                                false);
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, HANDLER_STACK);
        if (pthread_create(&thread, &attributes, run_handler, &r))
            respond_busy(&r, NULL, "no thread for another request");
        else
            pthread_join(thread, NULL);
        pthread_attr_destroy(&attributes);
    }
    int status = r.status ? r.status : 499;
    request_end(&r);
    return status;
}

/* ---- starting and stopping ---------------------------------------------------------------- */

/* Only what goes wrong while it starts is told; later it is clients that break off. */
static int take_complaint(const struct mg_connection *mg, const char *message) {
    http *h = mg && mg_get_context(mg) ? http_of(mg) : NULL;
    /* The first says why, those that follow what it led to. */
    if (h && pthread_equal(pthread_self(), h->starter) && !h->context && !*h->complaint)
        snprintf(h->complaint, sizeof h->complaint, "%s", message);
    return 1;
}

/* HOST:PORT as civetweb wants it, the name looked up; false after a sentence. */
static bool listening_address(const server_options *o, char *out, size_t size, linnet_error *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    char name[NI_MAXHOST];
    int code = getaddrinfo(o->host, NULL, &hints, &found);
    if (!code)
        code = getnameinfo(found->ai_addr, found->ai_addrlen, name, sizeof name, NULL, 0,
                           NI_NUMERICHOST);
    bool six = !code && found->ai_family == AF_INET6;
    if (found) freeaddrinfo(found);
    if (code) {
        fail(err, LINNET_ERR_ARGUMENT, "host %.200s: %s", o->host, gai_strerror(code));
        return false;
    }
    snprintf(out, size, six ? "[%s]:%d" : "%s:%d", name, o->port);
    return true;
}

linnet_status http_start(http **out, server *s, linnet_error *err) {
    const server_options *o = &s->options;
    linnet_error own;
    if (!err) err = &own;
    char address[NI_MAXHOST + 16], threads[16], head[16], seconds[24], size[16], backlog[16];
    if (!listening_address(o, address, sizeof address, err)) return err->code;
    http *h = calloc(1, sizeof *h);
    if (!h) return fail(err, LINNET_ERR_MEMORY, "no memory for the HTTP server");
    h->server = s;
    linnet_status status = access_new(&h->access, o, err);
    if (!status && !condition_start(&h->wake))
        status = fail(err, LINNET_ERR_MEMORY, "no memory for the HTTP server");
    if (status) {
        access_free(h->access);
        free(h);
        return status;
    }
    pthread_mutex_init(&h->lock, NULL);
    /* A few threads more, to tell those beyond the limit that they are. */
    snprintf(threads, sizeof threads, "%zu", o->max_connections + 4);
    snprintf(head, sizeof head, "%d", HEAD_BUFFER);
    snprintf(seconds, sizeof seconds, "%.0f", 1000 * o->header_seconds);
    snprintf(size, sizeof size, "%zu", o->max_connections);
    snprintf(backlog, sizeof backlog, "%zu", o->max_connections);
    const char *options[] = {"listening_ports",
                             address,
                             "num_threads",
                             threads,
                             "max_request_size",
                             head,
                             "request_timeout_ms",
                             seconds,
                             "keep_alive_timeout_ms",
                             seconds,
                             "enable_keep_alive",
                             "yes",
                             "tcp_nodelay",
                             "1",
                             "decode_url",
                             "no",
                             "enable_directory_listing",
                             "no",
                             "enable_auth_domain_check",
                             "no",
                             "connection_queue",
                             size,
                             "listen_backlog",
                             backlog,
                             NULL};
    struct mg_callbacks callbacks = {.begin_request = begin_request,
                                     .http_error = answer_error,
                                     .log_message = take_complaint,
                                     .init_connection = connection_open,
                                     .connection_close = connection_close};
    mg_init_library(0);
    *out = h; /* handlers look there */
    /* Connections wait for the lock, so they find the port. */
    pthread_mutex_lock(&h->lock);
    h->starter = pthread_self();
    struct mg_context *context = mg_start(&callbacks, h, options);
    struct mg_server_port port = {0};
    bool listens = context && mg_get_server_ports(context, 1, &port) == 1;
    h->context = context;
    h->port = port.port;
    pthread_mutex_unlock(&h->lock);
    if (!listens) {
        status = fail(err, LINNET_ERR_IO, "cannot listen on %s: %s", address,
                      *h->complaint ? h->complaint : "is the address taken, or another machine's?");
        http_stop(h);
        *out = NULL;
        return status;
    }
    if (!connections_watch(h)) {
        http_stop(h);
        *out = NULL;
        return fail(err, LINNET_ERR_MEMORY, "no thread for the HTTP server");
    }
    return LINNET_OK;
}

int http_port(const http *h) {
    return h->port;
}

bool http_busy(http *h) {
    pthread_mutex_lock(&h->lock);
    bool busy = h->stats.busy > 0;
    pthread_mutex_unlock(&h->lock);
    return busy;
}

void http_get_stats(http *h, http_stats *out) {
    pthread_mutex_lock(&h->lock);
    *out = h->stats;
    pthread_mutex_unlock(&h->lock);
}

void http_stop(http *h) {
    if (!h) return;
    connections_stop(h);
    if (h->context) mg_stop(h->context);
    mg_exit_library();
    access_free(h->access);
    pthread_cond_destroy(&h->wake);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
