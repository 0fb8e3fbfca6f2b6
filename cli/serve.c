/* linnet serve: the server of server/, its flags. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "../server/server.h"
#include "commands.h"
#include "engine.h"

static const char about[] =
    "Serves a model over HTTP: OpenAI's API (/v1/chat/completions, /v1/completions, /v1/models), "
    "/tokenize, /detokenize, /health, /metrics in Prometheus' form, saved states (/v1/states), and "
    "a web page at /. docs/server.md describes it.\n"
    "A prompt that begins like an earlier one costs only its new tokens, on every mixer. Requests "
    "run together, --slots at a time, the others wait in a fair queue. Only this machine can "
    "connect unless --host says otherwise. SIGTERM or Ctrl-C lets running answers end, a second "
    "one does not.";

typedef struct {
    engine e;
    server_options server;
    const char *model, *cache_bytes, *max_body, *redis_bytes;
    text_list cors, hosts;
    int port, timeout, drain, redis_ttl;
} serve_options;

/* "512", "64K", "1.5G": powers of 1024. */
static int parse_bytes(const char *flag, const char *text, uint64_t *out) {
    static const char units[] = "KMGT";
    char number[32];
    double value;
    size_t n = strlen(text);
    const char *unit =
        n > 1 ? memchr(units, text[n - 1] & ~0x20, sizeof units - 1) : NULL; /* upper case */
    double scale = unit ? (double)(1ull << (10 * (unit - units + 1))) : 1;
    size_t digits = n - (unit != NULL);
    if (digits < sizeof number) {
        memcpy(number, text, digits);
        number[digits] = '\0';
        if (parse_real(number, &value) && value >= 0 && value * scale < 1e15) {
            *out = (uint64_t)(value * scale);
            return EXIT_WORKED;
        }
    }
    return misused("serve", "%s expects bytes, such as 512M or 2G, found '%s'", flag, text);
}

/* From any thread. */
static void log_line(const char *line) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    say("%s", line);
    pthread_mutex_unlock(&lock);
}

static int prepare(serve_options *o) {
    server_options *s = &o->server;
    uint64_t body = 0;
    int code = parse_bytes("--cache-bytes", o->cache_bytes, &s->cache_bytes);
    if (!code) code = parse_bytes("--max-body", o->max_body, &body);
    if (!code) code = parse_bytes("--redis-bytes", o->redis_bytes, &s->redis_max_bytes);
    if (!code && s->redis_max_bytes < 1024)
        code = misused("serve", "--redis-bytes expects at least 1K, found '%s'", o->redis_bytes);
    s->redis_ttl_seconds = o->redis_ttl;
    if (!code && (body < 1024 || body > INT32_MAX))
        code = misused("serve", "--max-body expects from 1K to 2047M, found '%s'", o->max_body);
    s->max_body = (size_t)body;
    s->port = o->port;
    s->request_seconds = o->timeout;
    s->header_seconds = o->timeout && o->timeout < 10 ? o->timeout : 10;
    s->drain_seconds = o->drain;
    s->model_path = o->model;
    s->cors_origins = o->cors.at;
    s->n_cors_origins = o->cors.n;
    s->hosts = o->hosts.at;
    s->n_hosts = o->hosts.n;
    s->session = engine_session_options(&o->e);
    s->log = log_line;
    return code;
}

static int serve(serve_options *o, linnet_model *model) {
    linnet_error err;
    if (server_run(model, &o->server, interrupted, &err)) return failed_with(&err);
    return EXIT_WORKED;
}

int command_serve(int argc, char **argv) {
    serve_options o = {
        .cache_bytes = "1G",
        .max_body = "8M",
        .redis_bytes = "512M",
        .redis_ttl = 7 * 24 * 3600,
        .port = 8080,
        .timeout = 600,
        .drain = 30,
        .server = {.host = "127.0.0.1", .slots = 8, .max_queue = 256, .max_connections = 256}};
    server_options *s = &o.server;
    const char *template = NULL;
    flag_table f;
    flags_begin(&f, "serve", "MODEL [flags]", about);
    flags_argument(&f, "MODEL", &o.model);
    flags_title(&f, "Network");
    flag_text(&f, "--host", "NAME", &s->host,
              "the address to listen on; default 127.0.0.1, which only this machine reaches");
    flag_int(&f, "--port", "N", &o.port, 0, 65535, "default 8080; 0: any free one, told on stderr");
    flag_text(&f, "--api-key-file", "FILE", &s->api_key_file,
              "who asks needs one of its keys, one a line, as Authorization: Bearer or X-Api-Key; "
              "only /health and the web page's files are open");
    flag_texts(&f, "--cors", "ORIGIN", &o.cors,
               "web pages of this origin may use the server, * for all; may be repeated; default: "
               "none but its own");
    flag_texts(&f, "--allow-host", "NAME", &o.hosts,
               "a further name under which clients may ask (Host), * for all; may be repeated");
    flag_size(&f, "--max-connections", "N", &s->max_connections, 1, "default 256");
    flag_text(&f, "--max-body", "BYTES", &o.max_body, "largest request; default 8M");
    flag_int(&f, "--timeout", "N", &o.timeout, 0, 1000000,
             "seconds of a request, the queue included; default 600; 0: no limit");
    flag_int(&f, "--drain", "N", &o.drain, 0, 1000000,
             "seconds for running answers to end when the server stops; default 30");
    flags_title(&f, "Sessions");
    flag_size(&f, "--slots", "N", &s->slots, 1, "requests that compute at once; default 8");
    flag_size(&f, "--max-queue", "N", &s->max_queue, 0,
              "requests that wait; more are refused with 503; default 256");
    flag_text(&f, "--cache-bytes", "BYTES", &o.cache_bytes,
              "memory for the state of earlier prompts; default 1G; 0: none");
    flag_text(&f, "--cache-dir", "FOLDER", &s->cache_dir,
              "also keep them, and conversations, in files that survive a restart");
    flag_text(
        &f, "--redis", "HOST:PORT", &s->redis,
        "keep conversations in Redis or Valkey, for servers that share them; also the path of "
        "a socket");
    flag_int(&f, "--redis-ttl", "N", &o.redis_ttl, 1, INT32_MAX,
             "seconds after which Redis forgets a state; default 604800, a week");
    flag_text(&f, "--redis-bytes", "BYTES", &o.redis_bytes,
              "largest state to keep there; default 512M, which is Redis' own limit");
    flag_text(&f, "--template", "NAME", &template, "the chat template; default: the file's");
    context_flag(&f, &o.e);
    precision_flags(&f, &o.e, "auto");
    engine_flags(&f, &o.e);
    window_flag(&f, &o.e);

    linnet_model *model = NULL;
    int code = flags_parse(&f, argc, argv);
    if (code == KEEP_GOING) {
        code = prepare(&o);
        catch_interrupts(false);
        if (!code) code = engine_open(&o.e, o.model, false, &model);
        if (!code && template) code = choose_template(&o.e, model, o.model, template, &s->template);
        if (!code) code = serve(&o, model);
        linnet_model_close(model);
    }
    free(o.cors.at);
    free(o.hosts.at);
    return code;
}
