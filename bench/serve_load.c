/* A load of concurrent clients on `linnet serve`, or on any server of OpenAI's /v1/completions:
 *
 *   serve_load [-c CLIENTS] [-r ROUNDS] [-n TOKENS] [-p WORDS] [-t TEMPERATURE] [-o md|json]
 *              HOST:PORT [API_KEY]
 *
 * Every client keeps one connection. In a round all send a prompt of WORDS words that nobody sent
 * before, at the same time, and read TOKENS streamed tokens. Told:
 *
 *   tok/s     tokens of a round by its time, prefill included; the sum over rounds
 *   decode    tokens by time while every client was receiving: from the last one's first token to
 *             the first one's last
 *   TTFT      from the request to the first text
 *   ITL       between two texts of a client
 *
 * A thread a client, plain sockets: next to nothing beside what it measures. */
#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CLIENTS = 1024, BUFFER = 1 << 16, KEY = 256 };

typedef struct {
    int clients, rounds, tokens, words;
    double temperature;
    const char *host, *port, *key;
} plan;

typedef struct {
    double *at;
    size_t n, cap;
} list;

typedef struct {
    const plan *p;
    int number, socket;
    char buffer[BUFFER];
    size_t from, to;    /* unread bytes of it */
    double first, last; /* of the round */
    list arrivals;      /* of the round */
    list ttft, itl;     /* of all */
    size_t tokens, errors;
    char why[200];
} client;

static pthread_barrier_t begin, end;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void add(list *l, double x) {
    if (l->n == l->cap) {
        l->cap = 2 * l->cap + 256;
        l->at = realloc(l->at, l->cap * sizeof *l->at);
        if (!l->at) exit(1);
    }
    l->at[l->n++] = x;
}

/* ---- HTTP ---------------------------------------------------------------------------------- */

static bool dial(client *c) {
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};
    if (c->socket >= 0) close(c->socket);
    c->socket = -1;
    c->from = c->to = 0;
    if (getaddrinfo(c->p->host, c->p->port, &hints, &found)) return false;
    for (struct addrinfo *a = found; a && c->socket < 0; a = a->ai_next) {
        int s = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (s >= 0 && !connect(s, a->ai_addr, a->ai_addrlen))
            c->socket = s;
        else if (s >= 0)
            close(s);
    }
    freeaddrinfo(found);
    return c->socket >= 0;
}

static bool fill(client *c) {
    memmove(c->buffer, c->buffer + c->from, c->to - c->from);
    c->to -= c->from;
    c->from = 0;
    if (c->to == BUFFER) return false;
    ssize_t n = recv(c->socket, c->buffer + c->to, BUFFER - c->to, 0);
    if (n > 0) c->to += (size_t)n;
    return n > 0;
}

/* The next line, ended by a NUL in place of its line end; NULL: the connection ended. */
static char *read_line(client *c) {
    for (size_t at = c->from;; at++) {
        while (at == c->to) {
            at -= c->from;
            if (!fill(c)) return NULL;
            at += c->from;
        }
        if (c->buffer[at] != '\n') continue;
        char *line = c->buffer + c->from;
        c->buffer[at] = 0;
        if (at > c->from && c->buffer[at - 1] == '\r') c->buffer[at - 1] = 0;
        c->from = at + 1;
        return line;
    }
}

static bool send_request(client *c, int round) {
    const plan *p = c->p;
    size_t cap = (size_t)p->words * 12 + 512, n = 0;
    char *body = malloc(cap), head[1024];
    if (!body) exit(1);
    n += (size_t)snprintf(body, cap,
                          "{\"stream\": true, \"stream_options\": {\"include_usage\": true}, "
                          "\"ignore_eos\": true, \"temperature\": %g, \"seed\": %d, "
                          "\"max_tokens\": %d, \"prompt\": \"",
                          p->temperature, c->number, p->tokens);
    unsigned random =
        (unsigned)(round * MOST_CLIENTS + c->number) * 2654435761u + (unsigned)time(NULL);
    for (int i = 0; i < p->words; i++) {
        random = random * 1664525 + 1013904223;
        n += (size_t)snprintf(body + n, cap - n, "%s%x", i ? " " : "", random >> 20);
    }
    n += (size_t)snprintf(body + n, cap - n, "\"}");
    int h = snprintf(head, sizeof head,
                     "POST /v1/completions HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: "
                     "application/json\r\n%s%s%sContent-Length: %zu\r\n\r\n",
                     p->host, p->port, p->key ? "Authorization: Bearer " : "", p->key ? p->key : "",
                     p->key ? "\r\n" : "", n);
    bool sent = send(c->socket, head, (size_t)h, MSG_NOSIGNAL) == h &&
                send(c->socket, body, n, MSG_NOSIGNAL) == (ssize_t)n;
    free(body);
    return sent;
}

/* The text of a chunk is not empty. */
static bool has_text(const char *json) {
    const char *t = strstr(json, "\"text\"");
    t = t ? strchr(t + 6, '"') : NULL;
    return t && t[1] != '"';
}

/* A streamed answer, to its end: notes when each text came. */
static bool read_answer(client *c, double sent) {
    char *line = read_line(c);
    bool chunked = false, ok = line && strstr(line, " 200");
    double last = 0;
    size_t tokens = 0;
    if (!ok) {
        snprintf(c->why, sizeof c->why, "%s", line ? line : "the connection was closed");
        return false;
    }
    while ((line = read_line(c)) && *line)
        chunked = chunked || !strcasecmp(line, "Transfer-Encoding: chunked");
    /* Events are lines of their own; a chunk's size, in between, is none and is skipped. */
    for (bool done = false; (line = read_line(c));) {
        if (done && (!chunked || !strcmp(line, "0"))) {
            if (chunked) read_line(c);
            c->tokens += tokens;
            return true;
        }
        if (strncmp(line, "data: ", 6)) continue;
        double t = now();
        const char *usage = strstr(line, "\"completion_tokens\"");
        usage = usage ? strchr(usage, ':') : NULL;
        if (usage) tokens = (size_t)strtoul(usage + 1, NULL, 10);
        if (strstr(line, "\"error\"")) {
            snprintf(c->why, sizeof c->why, "%.190s", line);
            return false;
        }
        done = !strcmp(line + 6, "[DONE]");
        if (!done && has_text(line)) {
            add(last > 0 ? &c->itl : &c->ttft, t - (last > 0 ? last : sent));
            add(&c->arrivals, t);
            if (!(c->first > 0)) c->first = t;
            c->last = last = t;
        }
    }
    snprintf(c->why, sizeof c->why, "the stream was cut");
    return false;
}

static void *run(void *user) {
    client *c = user;
    for (int round = 0; round < c->p->rounds; round++) {
        c->first = c->last = 0;
        c->arrivals.n = 0;
        bool ready = c->socket >= 0 || dial(c);
        pthread_barrier_wait(&begin);
        double sent = now();
        if (!ready || !send_request(c, round) || !read_answer(c, sent)) {
            if (!ready) snprintf(c->why, sizeof c->why, "connect: %s", strerror(errno));
            c->errors++;
            if (c->socket >= 0) close(c->socket);
            c->socket = -1;
        }
        pthread_barrier_wait(&end);
        pthread_barrier_wait(&end); /* the round was counted */
    }
    if (c->socket >= 0) close(c->socket);
    return NULL;
}

/* ---- Figures ------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const list *l, double p) {
    return l->n ? l->at[(size_t)(p * (double)(l->n - 1) + 0.5)] * 1000 : NAN;
}

static double mean(const list *l) {
    double sum = 0;
    for (size_t i = 0; i < l->n; i++)
        sum += l->at[i];
    return l->n ? sum / (double)l->n * 1000 : NAN;
}

/* Texts that came while all clients were receiving, and how long that was. */
static void count_decode(const client *c, int n, double *texts, double *seconds) {
    double from = 0, to = INFINITY;
    for (int i = 0; i < n; i++) {
        from = fmax(from, c[i].first);
        to = fmin(to, c[i].last);
    }
    if (!(to > from)) return;
    *seconds += to - from;
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < c[i].arrivals.n; k++)
            *texts += c[i].arrivals.at[k] > from && c[i].arrivals.at[k] <= to;
}

static int use(const char *problem) {
    fprintf(stderr,
            "serve_load: %s\nusage: serve_load [-c CLIENTS] [-r ROUNDS] [-n TOKENS] [-p WORDS] "
            "[-t TEMPERATURE] [-o md|json] HOST:PORT [API_KEY]\n",
            problem);
    return 2;
}

int main(int argc, char **argv) {
    plan p = {.clients = 16, .rounds = 1, .tokens = 128, .words = 16};
    bool json = false;
    for (int opt; (opt = getopt(argc, argv, "c:r:n:p:t:o:")) != -1;) {
        int number = optarg ? atoi(optarg) : 0;
        if (opt == 'o' && !strcmp(optarg, "json"))
            json = true;
        else if (opt == 'o' && !strcmp(optarg, "md"))
            json = false;
        else if (opt == 'c' && number > 0 && number <= MOST_CLIENTS)
            p.clients = number;
        else if (opt == 'r' && number > 0)
            p.rounds = number;
        else if (opt == 'n' && number > 0)
            p.tokens = number;
        else if (opt == 't' && atof(optarg) >= 0)
            p.temperature = atof(optarg);
        else if (opt == 'p' && number > 0 && number < 1 << 20)
            p.words = number;
        else
            return use("wrong flags");
    }
    char *colon = optind < argc ? strrchr(argv[optind], ':') : NULL;
    if (!colon) return use("expected HOST:PORT");
    *colon = 0;
    p.host = argv[optind];
    p.port = colon + 1;
    p.key = optind + 1 < argc ? argv[optind + 1] : NULL;
    if (p.key && strlen(p.key) > KEY) return use("the key is too long");

    client *c = calloc((size_t)p.clients, sizeof *c);
    pthread_t *threads = calloc((size_t)p.clients, sizeof *threads);
    if (!c || !threads) return 1;
    pthread_barrier_init(&begin, NULL, (unsigned)p.clients + 1);
    pthread_barrier_init(&end, NULL, (unsigned)p.clients + 1);
    for (int i = 0; i < p.clients; i++) {
        c[i].p = &p;
        c[i].number = i;
        c[i].socket = -1;
        if (pthread_create(&threads[i], NULL, run, &c[i])) {
            fprintf(stderr, "serve_load: thread %d cannot be started\n", i);
            return 1;
        }
    }
    double seconds = 0, decode_texts = 0, decode_seconds = 0;
    for (int round = 0; round < p.rounds; round++) {
        pthread_barrier_wait(&begin);
        double from = now();
        pthread_barrier_wait(&end);
        seconds += now() - from;
        count_decode(c, p.clients, &decode_texts, &decode_seconds);
        pthread_barrier_wait(&end);
    }
    list ttft = {0}, itl = {0};
    size_t tokens = 0, errors = 0;
    const char *why = "";
    for (int i = 0; i < p.clients; i++) {
        pthread_join(threads[i], NULL);
        tokens += c[i].tokens;
        errors += c[i].errors;
        if (c[i].errors) why = c[i].why;
        for (size_t k = 0; k < c[i].ttft.n; k++)
            add(&ttft, c[i].ttft.at[k]);
        for (size_t k = 0; k < c[i].itl.n; k++)
            add(&itl, c[i].itl.at[k]);
    }
    if (ttft.n) qsort(ttft.at, ttft.n, sizeof *ttft.at, by_size);
    if (itl.n) qsort(itl.at, itl.n, sizeof *itl.at, by_size);
    double rate = (double)tokens / seconds;
    /* A text may have several tokens; those of a round are its share of all. */
    double texts = (double)(ttft.n + itl.n), per_text = texts > 0 ? (double)tokens / texts : 0;
    double decode = decode_seconds > 0 ? decode_texts * per_text / decode_seconds : 0;
    if (json)
        printf("{\"clients\": %d, \"rounds\": %d, \"tokens\": %zu, \"seconds\": %.3f, \"tok_s\": "
               "%.2f, "
               "\"decode_tok_s\": %.2f, \"ttft_ms\": {\"p50\": %.2f, \"p99\": %.2f}, \"itl_ms\": "
               "{\"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f}, \"errors\": %zu}\n",
               p.clients, p.rounds, tokens, seconds, rate, decode, percentile(&ttft, 0.5),
               percentile(&ttft, 0.99), mean(&itl), percentile(&itl, 0.5), percentile(&itl, 0.99),
               errors);
    else
        printf("| clients | tokens | tok/s | decode tok/s | TTFT p50 ms | p99 | ITL mean ms | p50 "
               "| p99 "
               "| errors |\n|---|---|---|---|---|---|---|---|---|---|\n| %d | %zu | %.1f | %.1f | "
               "%.1f | "
               "%.1f | %.2f | %.2f | %.2f | %zu |\n",
               p.clients, tokens, rate, decode, percentile(&ttft, 0.5), percentile(&ttft, 0.99),
               mean(&itl), percentile(&itl, 0.5), percentile(&itl, 0.99), errors);
    if (errors) fprintf(stderr, "serve_load: %zu requests failed, one of them: %s\n", errors, why);
    return errors != 0;
}
