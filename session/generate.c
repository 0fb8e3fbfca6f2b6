/* linnet_generate: sample, feed, show, until something ends it.
 *
 * A token is fed before its text is shown, so that whatever was shown is in the session's timeline
 * together with the logits after it: the session can be saved, forked or continued at any end. The
 * price is one forward for the last token. When a stop string ends inside a token, the whole token
 * is in the timeline although only its first characters were shown. */
#include "../model.h"

#include <string.h>

typedef struct {
    linnet_text *text;
    linnet_text_fn show;
    void *user;
    const char *stop; /* the stop string that matched */
} output;

/* Takes a token, -1 at the end; false when the callback wants no more. */
static bool push(output *o, int32_t token) {
    size_t n;
    const char *text = linnet_text_push(o->text, token, &n, NULL, &o->stop);
    return n == 0 || !o->show || o->show(o->user, text, n);
}

/* The caller's own pointer to the stop string. */
static const char *own_stop(const linnet_generate_options *o, const char *stop) {
    for (size_t i = 0; stop && i < o->n_stops; i++)
        if (!strcmp(o->stops[i], stop)) return o->stops[i];
    return NULL;
}

static linnet_status generate(linnet_session *session, const linnet_generate_options *options,
                              output *o, linnet_generated *r, linnet_error *err) {
    for (;;) {
        if (options->max_tokens && r->n_tokens == options->max_tokens) {
            r->end = LINNET_END_LENGTH;
            break;
        }
        if (session->n_tokens >= (size_t)session->ctx) {
            r->end = LINNET_END_CONTEXT;
            break;
        }
        int32_t token = 0;
        linnet_status status = linnet_sample(session, &options->sampling, &token, err);
        if (status) return status;
        bool end = linnet_is_end(session->model, token);
        if (!end || options->feed_end) {
            linnet_item item = {.session = session,
                                .tokens = &token,
                                .n_tokens = 1,
                                .want = LINNET_LOGITS_LAST,
                                .sampled = true};
            status = linnet_forward(&item, 1, NULL, NULL, err);
            if (status) return status;
        }
        if (end) {
            r->end = LINNET_END_TOKEN;
            break;
        }
        r->n_tokens++;
        if (!push(o, token)) return LINNET_OK; /* cancelled */
        if (o->stop) break;
    }
    /* The text is over: what was held back is shown now. */
    if (!o->stop && !push(o, -1))
        r->end = LINNET_END_CANCELLED;
    else if (o->stop)
        r->end = LINNET_END_STOP;
    return LINNET_OK;
}

linnet_status linnet_generate(linnet_session *session, const linnet_generate_options *options,
                              linnet_text_fn text, void *user, linnet_generated *result,
                              linnet_error *err) {
    static const linnet_generate_options defaults = LINNET_GENERATE_DEFAULT;
    linnet_generated r = {LINNET_END_CANCELLED, 0, NULL};
    if (result) *result = r;
    if (!session) return fail(err, LINNET_ERR_ARGUMENT, "generate: the session is NULL");
    if (!options) options = &defaults;
    output o = {.show = text, .user = user};
    linnet_status status = linnet_text_new(&o.text, session, options->stops, options->n_stops, err);
    if (!status) status = generate(session, options, &o, &r, err);
    if (r.end == LINNET_END_STOP) r.stop = own_stop(options, o.stop);
    if (result) *result = r;
    linnet_text_free(o.text);
    return status;
}
