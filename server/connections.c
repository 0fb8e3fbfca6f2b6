/* Connections as sockets: found, watched, ended when their time is over. */
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "clock.h"
#include "connection.h"
#include "job.h"

enum { LINGER_MS = 1000, LINGER_BYTES = 1 << 22 };

static int most_files(void) {
    struct rlimit files;
    int limit = 65536;
    return getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur > (rlim_t)limit ? limit
                                                                              : (int)files.rlim_cur;
}

static int own_port(int fd) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    char port[NI_MAXSERV];
    if (getsockname(fd, (struct sockaddr *)&address, &size) ||
        getnameinfo((struct sockaddr *)&address, size, NULL, 0, port, sizeof port, NI_NUMERICSERV))
        return -1;
    return atoi(port);
}

/* The socket whose other end is the client and whose own end is our port. It is this thread's as
 * long as the connection is open, so the number cannot come to mean another. */
int connection_socket(const http *h, const struct mg_request_info *info) {
    for (int fd = 3, most = most_files(); fd < most; fd++) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        char name[NI_MAXHOST], port[NI_MAXSERV];
        if (getpeername(fd, (struct sockaddr *)&address, &size) ||
            (address.ss_family != AF_INET && address.ss_family != AF_INET6) ||
            getnameinfo((struct sockaddr *)&address, size, name, sizeof name, port, sizeof port,
                        NI_NUMERICHOST | NI_NUMERICSERV) ||
            atoi(port) != info->remote_port || strcmp(name, info->remote_addr))
            continue;
        if (own_port(fd) == h->port) return fd;
    }
    return -1;
}

/* Bytes that came in so far, as the kernel counts them. */
uint64_t connection_received(const connection *c) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (c->fd < 0 || getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &size) ||
        size < offsetof(struct tcp_info, tcpi_bytes_received) + sizeof info.tcpi_bytes_received)
        return 0;
    return info.tcpi_bytes_received;
}

void connection_deadline(http *h, connection *c, double seconds, bool reading) {
    pthread_mutex_lock(&h->lock);
    c->deadline = seconds ? clock_seconds() + seconds : 0;
    c->reading = reading;
    pthread_mutex_unlock(&h->lock);
}

static void *sweep(void *user) {
    http *h = user;
    pthread_mutex_lock(&h->lock);
    while (!h->stopping) {
        condition_wait(&h->wake, &h->lock, clock_seconds() + 0.1);
        double now = clock_seconds();
        for (connection *c = h->connections; c; c = c->next) {
            if (c->fd < 0 || !c->deadline || now < c->deadline) continue;
            c->expired = true;
            c->deadline = 0;
            shutdown(c->fd, c->reading ? SHUT_RD : SHUT_RDWR);
        }
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

bool connections_watch(http *h) {
    return h->watched = !pthread_create(&h->sweeper, NULL, sweep, h);
}

/* civetweb looks at its stop flag when something happens where it listens, or every two seconds. */
static void stop_listening(const http *h) {
    for (int fd = 3, most = most_files(); fd < most; fd++) {
        int listens = 0;
        socklen_t size = sizeof listens;
        if (!getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) && listens &&
            own_port(fd) == h->port)
            shutdown(fd, SHUT_RD);
    }
}

void connections_stop(http *h) {
    pthread_mutex_lock(&h->lock);
    h->stopping = true;
    for (connection *c = h->connections; c; c = c->next) /* those that wait for a next request */
        if (c->fd >= 0) shutdown(c->fd, SHUT_RD);
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->lock);
    if (h->watched) pthread_join(h->sweeper, NULL);
    if (h->context) stop_listening(h);
}

void connection_add(http *h, connection *c) {
    pthread_mutex_lock(&h->lock);
    c->next = h->connections;
    if (c->next) c->next->previous = c;
    h->connections = c;
    h->stats.connections++;
    h->stats.open++;
    pthread_mutex_unlock(&h->lock);
}

void connection_remove(http *h, connection *c) {
    pthread_mutex_lock(&h->lock);
    if (c->next) c->next->previous = c->previous;
    *(c->previous ? &c->previous->next : &h->connections) = c->next;
    h->stats.open--;
    pthread_mutex_unlock(&h->lock);
}

void connection_linger(const connection *c) {
    int fd = c->fd;
    char bytes[8192];
    double end = clock_seconds() + 1e-3 * LINGER_MS;
    shutdown(fd, SHUT_WR);
    for (size_t n = 0; n < LINGER_BYTES;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        double left = end - clock_seconds();
        if (left <= 0 || poll(&p, 1, (int)(1000 * left) + 1) <= 0) return;
        ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got <= 0) return;
        n += (size_t)got;
    }
}
