/* linnet perplexity: how well a model predicts a text. */
#include <math.h>
#include <stdlib.h>

#include "commands.h"
#include "engine.h"
#include "score.h"

static const char about[] =
    "Prints `perplexity P +- E (N scored)`. The file is one text, newlines kept, no BOS. It is cut "
    "into windows of --ctx ids, in order; a shorter last one counts if it has at least 2. The "
    "session is reset before each window, and every position but a window's first is scored: the "
    "negative log-likelihood of its id, from a log-softmax in float64 over all rows of the output "
    "matrix. P = exp(mean); E = P times the standard error of the mean (standard deviation of the "
    "N scores / sqrt(N)).";

typedef struct {
    engine e;
    const char *model, *file;
    size_t chars; /* 0: all */
} perplexity_options;

/* Mean and variance as they come (Welford, Technometrics 4(3), 1962): no list of scores is kept. */
typedef struct {
    const int32_t *ids; /* of the window */
    size_t n_ids, n_rows;
    size_t n;
    double mean, squares;
} score;

static bool score_rows(void *user, size_t first, size_t n_rows, const float *logits) {
    score *s = user;
    for (size_t i = 0; i < n_rows; i++) {
        if (first + i + 1 >= s->n_ids) break; /* nothing follows the window's last id */
        double x = -log_likelihood(logits + i * s->n_rows, s->n_rows, s->ids[first + i + 1]);
        double from_mean = x - s->mean;
        s->mean += from_mean / (double)++s->n;
        s->squares += from_mean * (x - s->mean);
    }
    return !interrupted();
}

static int score_windows(perplexity_options *o, const linnet_model *model, linnet_session *session,
                         const id_buffer *ids) {
    score s = {.n_rows = (size_t)linnet_model_get_info(model)->n_rows};
    size_t window = (size_t)linnet_session_ctx(session);
    o->e.own_progress = true;
    for (size_t i = 0; i < ids->n; i += window) {
        s.ids = ids->at + i;
        s.n_ids = ids->n - i < window ? ids->n - i : window;
        if (s.n_ids < 2) break;
        if (!show_progress(NULL, "perplexity", i, ids->n)) return interrupt_code();
        linnet_session_reset(session);
        int code = engine_feed(&o->e, session, s.ids, s.n_ids, LINNET_LOGITS_ALL, score_rows, &s);
        if (code) return code;
    }
    show_progress(NULL, "perplexity", ids->n, ids->n);
    double p = exp(s.mean);
    double error = s.n > 1 ? sqrt(s.squares / (double)(s.n - 1) / (double)s.n) : 0;
    printf("perplexity %.4f +- %.4f (%zu scored)\n", p, p * error, s.n);
    return EXIT_WORKED;
}

static int read_and_score(perplexity_options *o, linnet_model *model) {
    const linnet_model_info *info = linnet_model_get_info(model);
    linnet_session *session = NULL;
    text_buffer text = {0};
    id_buffer ids = {0};
    if (!o->e.ctx) {
        o->e.ctx = 512;
        if (info->ctx_is_limit && info->n_ctx_train < o->e.ctx) {
            o->e.ctx = info->n_ctx_train;
            say("windows of %d ids: the context of %s has no more", o->e.ctx, o->model);
        }
    }
    int code = read_text(&text, o->file) ? EXIT_WORKED : EXIT_FAILED;
    size_t n = o->chars && !code ? utf8_prefix(text.at, text.n, o->chars) : text.n;
    if (!code) code = text_to_ids(model, text.at, n, 0, &ids);
    if (!code && ids.n < 2)
        code = failed("%s has %zu token%s: expected at least 2 to score one", o->file, ids.n,
                      ids.n == 1 ? "" : "s");
    if (!code) code = engine_session(&o->e, model, &session);
    if (!code) code = score_windows(o, model, session, &ids);
    if (!code) code = finish_stdout();
    if (!code) engine_print_stats(&o->e, model, session);
    free(text.at);
    free(ids.at);
    linnet_session_free(session);
    return interrupted() ? interrupt_code() : code;
}

int command_perplexity(int argc, char **argv) {
    perplexity_options o = {0};
    flag_table f;
    flags_begin(&f, "perplexity", "MODEL FILE [--ctx 512] [--chars N]", about);
    flags_argument(&f, "MODEL", &o.model);
    flags_argument(&f, "FILE", &o.file);
    flags_title(&f, "Text");
    flag_int(&f, "--ctx", "N", &o.e.ctx, 2, INT32_MAX, "ids in a window; default 512");
    flag_size(&f, "--chars", "N", &o.chars, 1, "only the first N code points of the file");
    precision_flags(&f, &o.e, "exact");
    engine_flags(&f, &o.e);
    window_flag(&f, &o.e);
    stats_flag(&f, &o.e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    linnet_model *model = NULL;
    catch_interrupts(false);
    code = engine_open(&o.e, o.model, false, &model);
    if (!code) code = read_and_score(&o, model);
    linnet_model_close(model);
    return code;
}
