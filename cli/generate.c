#include "generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void generation_flags(flag_table *f, generation *g) {
    *g = (generation){.options = LINNET_GENERATE_DEFAULT, .limit = -1};
    linnet_sampling *s = &g->options.sampling;
    flags_title(f, "Generation");
    flag_int(f, "-n", "N", &g->limit, 0, INT32_MAX,
             "most tokens to generate; default: until the text ends or the context is full");
    flag_texts(f, "--stop", "TEXT", &g->stop_texts, "end before this text; may be repeated");
    flag_u64(f, "--seed", "N", &s->seed, "default 0; the same seed gives the same text");
    flag_real(f, "--temp", "X", &s->temperature, 0, 1000, "temperature; default 0: greedy");
    flag_int(f, "--top-k", "N", &s->top_k, 0, INT32_MAX,
             "keep the N most likely tokens; default 0: off");
    flag_real(f, "--top-p", "X", &s->top_p, 0, 1,
              "keep the most likely tokens that together reach this probability; default 1: off");
    flag_real(f, "--min-p", "X", &s->min_p, 0, 1,
              "drop tokens below X times the probability of the likeliest; default 0: off");
    flag_real(f, "--repeat-penalty", "X", &s->repeat_penalty, 0.01, 100,
              "divide the positive logits (multiply the negative ones) of the last 64 tokens by X; "
              "default 1: off");
    flag_texts(f, "--logit-bias", "ID=X", &g->bias_texts,
               "add X to the logit of a token, -inf forbids it; may be repeated");
}

int generation_prepare(const engine *e, generation *g) {
    size_t n = g->bias_texts.n;
    if (n && !(g->bias = calloc(n, sizeof *g->bias))) return failed("out of memory");
    for (size_t i = 0; i < n; i++) {
        const char *text = g->bias_texts.at[i], *value = strchr(text, '=');
        char id_text[24];
        int64_t id;
        double bias = -INFINITY;
        if (!value || (size_t)(value - text) >= sizeof id_text ||
            (memcpy(id_text, text, (size_t)(value - text)), id_text[value - text] = '\0',
             !parse_whole(id_text, &id) || id < 0 || id > INT32_MAX) ||
            (strcmp(value + 1, "-inf") &&
             (!parse_real(value + 1, &bias) || !isfinite((float)bias))))
            return misused(e->command,
                           "--logit-bias expects ID=X, a token id and a number or -inf, found '%s'",
                           text);
        g->bias[i] = (linnet_logit_bias){.token = (int32_t)id, .bias = (float)bias};
    }
    g->options.sampling.bias = g->bias;
    g->options.sampling.n_bias = n;
    for (size_t i = 0; i < g->stop_texts.n; i++)
        if (!*g->stop_texts.at[i]) return misused(e->command, "--stop expects a text, found ''");
    g->options.max_tokens = g->limit > 0 ? (size_t)g->limit : 0;
    g->options.stops = g->stop_texts.at;
    g->options.n_stops = g->stop_texts.n;
    return EXIT_WORKED;
}

void generation_free(generation *g) {
    free(g->bias);
    free(g->bias_texts.at);
    free(g->stop_texts.at);
    *g = (generation){0};
}

typedef struct {
    text_buffer *copy;
    bool no_memory, shown;
} sink;

static bool take_text(void *user, const char *text, size_t n) {
    sink *s = user;
    if (s->copy && !text_append(s->copy, text, n)) return !(s->no_memory = true);
    s->shown = true;
    return put_now(text, n) && !interrupted();
}

static int stream(engine *e, linnet_session *session, const generation *g, sink *s,
                  linnet_generated *result) {
    linnet_error err;
    size_t before, after;
    *result = (linnet_generated){.end = LINNET_END_LENGTH};
    if (g->limit == 0) return EXIT_WORKED; /* to the library, 0 means no limit */
    linnet_session_tokens(session, &before);
    double start = seconds_now();
    if (linnet_generate(session, &g->options, take_text, s, result, &err)) return failed_with(&err);
    e->decode_seconds += seconds_now() - start;
    linnet_session_tokens(session, &after);
    e->decode_tokens += after - before;
    return s->no_memory ? EXIT_FAILED : EXIT_WORKED;
}

int generate(engine *e, linnet_session *session, const generation *g, text_buffer *copy,
             linnet_generated *result) {
    sink s = {.copy = copy};
    int code = stream(e, session, g, &s, result);
    if (!code || s.shown) put_now("\n", 1);
    return code;
}
