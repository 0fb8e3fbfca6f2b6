/* GET /health, and GET /metrics in Prometheus' text form. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "routes.h"

void handle_health(server *s, request *r) {
    if (scheduler_draining(s->scheduler))
        respond_busy(r, "stopping", "the server is stopping");
    else
        respond_json(r, 200, json_pack("{s:s}", "status", "ok"));
}

static void metric(FILE *f, const char *name, const char *type, const char *help, double value) {
    fprintf(f, "# HELP linnet_%s %s\n# TYPE linnet_%s %s\nlinnet_%s %.17g\n", name, help, name,
            type, name, value);
}

static void counter(FILE *f, const char *name, const char *help, double value) {
    metric(f, name, "counter", help, value);
}

static void gauge(FILE *f, const char *name, const char *help, double value) {
    metric(f, name, "gauge", help, value);
}

static void print_histogram(FILE *f, const char *name, const char *help, const histogram *h) {
    uint64_t below = 0;
    fprintf(f, "# HELP linnet_%s %s\n# TYPE linnet_%s histogram\n", name, help, name);
    for (int i = 0; i < HTTP_BUCKETS; i++) {
        below += h->buckets[i];
        if (i < HTTP_BUCKETS - 1)
            fprintf(f, "linnet_%s_bucket{le=\"%g\"} %llu\n", name, http_bounds[i],
                    (unsigned long long)below);
        else
            fprintf(f, "linnet_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)below);
    }
    fprintf(f, "linnet_%s_sum %.17g\nlinnet_%s_count %llu\n", name, h->sum, name,
            (unsigned long long)h->count);
}

static void print_scheduler(FILE *f, server *s) {
    scheduler_stats x;
    scheduler_get_stats(s->scheduler, &x);
    gauge(f, "slots", "Sessions that can run at once.", (double)x.slots);
    gauge(f, "slots_busy", "Sessions that run.", (double)x.busy);
    gauge(f, "jobs_queued", "Jobs that wait for a slot.", (double)x.queued);
    counter(f, "jobs_total", "Jobs taken.", (double)x.jobs);
    counter(f, "jobs_cancelled_total",
            "Jobs cancelled: the client left or read too slowly, or the server stops.",
            (double)x.cancelled);
    counter(f, "jobs_failed_total", "Jobs that failed.", (double)x.failed);
    counter(f, "jobs_refused_total", "Jobs refused because the queue was full.", (double)x.refused);
    counter(f, "prompt_tokens_total", "Tokens of prompts.", (double)x.prompt_tokens);
    counter(f, "cached_tokens_total", "Tokens of prompts whose state was there already.",
            (double)x.cached_tokens);
    counter(f, "sampled_tokens_total", "Tokens sampled.", (double)x.sampled_tokens);
    counter(f, "steps_total", "Forward passes.", (double)x.steps);
    counter(f, "prefill_seconds_total", "Seconds of jobs in prefill.", x.prefill_seconds);
    counter(f, "decode_seconds_total", "Seconds of jobs in decoding.", x.decode_seconds);
    counter(f, "queue_seconds_total", "Seconds of jobs in the queue.", x.queue_seconds);
    gauge(f, "state_bytes", "Bytes of state of the running sessions.", (double)x.state_bytes);
}

static void print_cache(FILE *f, server *s) {
    linnet_cache_stats x = {0};
    if (!s->cache) return;
    linnet_cache_get_stats(s->cache, &x);
    gauge(f, "cache_entries", "Snapshots in memory.", (double)x.entries);
    gauge(f, "cache_bytes", "Bytes of snapshots in memory.", (double)x.bytes);
    gauge(f, "cache_files", "Snapshots in the folder.", (double)x.files);
    gauge(f, "cache_file_bytes", "Bytes of snapshots in the folder.", (double)x.file_bytes);
    counter(f, "cache_hits_total", "Prompts for which a snapshot was found.", (double)x.hits);
    counter(f, "cache_misses_total", "Prompts for which none was.", (double)x.misses);
    counter(f, "cache_evictions_total", "Snapshots given up for others.", (double)x.evictions);
}

static void print_conversations(FILE *f, server *s) {
    conversations_stats x;
    conversations_get_stats(s->conversations, &x);
    gauge(f, "conversations_remembered", "Answers whose ids are remembered.", (double)x.remembered);
    gauge(f, "conversations_named", "States with a name in memory.", (double)x.named);
    gauge(f, "conversations_bytes", "Bytes of both.", (double)x.bytes);
    counter(f, "conversations_hits_total", "Answers of earlier turns found again.", (double)x.hits);
    counter(f, "conversations_misses_total", "Answers of earlier turns that were not.",
            (double)x.misses);
    counter(f, "conversations_not_kept_total", "Answers that could not be kept.",
            (double)x.not_kept);
    gauge(f, "store_up", "1 if the store of states answers.", x.store_up);
    counter(f, "store_reads_total", "States read from the store.", (double)x.store_reads);
    counter(f, "store_writes_total", "States written to the store.", (double)x.store_writes);
    counter(f, "store_errors_total", "Failures of the store.", (double)x.store_errors);
    counter(f, "store_read_seconds_total", "Seconds of reading from it.", x.store_read_seconds);
    counter(f, "store_write_seconds_total", "Seconds of writing to it.", x.store_write_seconds);
}

static void print_http(FILE *f, server *s) {
    static const char *const classes[] = {"gone", "1xx", "2xx", "3xx", "4xx", "5xx"};
    http_stats x;
    http_get_stats(s->http, &x);
    gauge(f, "http_connections", "Open connections.", (double)x.open);
    gauge(f, "http_requests_running", "Requests being answered.", (double)x.busy);
    counter(f, "http_connections_total", "Connections taken.", (double)x.connections);
    fprintf(f, "# HELP linnet_http_requests_total Requests by class of answer; gone: the client "
               "left.\n# TYPE linnet_http_requests_total counter\n");
    for (int i = 0; i < 6; i++)
        fprintf(f, "linnet_http_requests_total{code=\"%s\"} %llu\n", classes[i],
                (unsigned long long)x.classes[i]);
    print_histogram(f, "http_request_seconds", "Seconds of a request.", &x.seconds);
    print_histogram(f, "first_token_seconds", "Seconds until a request's first sampled token.",
                    &x.first_token);
}

void handle_metrics(server *s, request *r) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f) {
        respond_busy(r, NULL, "no memory for the metrics");
        return;
    }
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    gauge(f, "start_time_seconds", "Unix time of the start.", s->started);
    gauge(f, "peak_resident_bytes", "Most memory held so far.", (double)usage.ru_maxrss * 1024);
    print_scheduler(f, s);
    print_cache(f, s);
    print_conversations(f, s);
    print_http(f, s);
    bool whole = !ferror(f);
    if (fclose(f) || !whole)
        respond_busy(r, NULL, "no memory for the metrics");
    else
        respond_bytes(r, 200, "text/plain; version=0.0.4; charset=utf-8", text, n);
    free(text);
}
