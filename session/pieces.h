/* How every backend cuts a forward: items into rows, rows into pieces of at most `most`. */
#ifndef PIECES_H
#define PIECES_H

#include "../model.h"

#include <string.h>

typedef linnet_status (*piece_fn)(linnet_model *m, linnet_item *items, const row *rows, size_t n,
                                  linnet_error *err);

/* Runs the items' tokens through `run`; rows [most] is scratch. With `one_kind` a piece has
 * sessions of one type of keys and values. `progress` is told after each piece and may cancel. */
static inline linnet_status run_pieces(linnet_model *m, linnet_item *items, size_t n_items,
                                       row *rows, size_t most, bool one_kind, piece_fn run,
                                       linnet_progress_fn progress, void *user, linnet_error *err) {
    size_t n = 0, done = 0, total = 0;
    for (size_t i = 0; i < n_items; i++)
        total += items[i].n_tokens;
    for (size_t i = 0; i < n_items; i++) {
        linnet_session *s = items[i].session;
        for (size_t t = 0; t < items[i].n_tokens; t++) {
            bool last = t + 1 == items[i].n_tokens, final = last && i + 1 == n_items;
            row *r = &rows[n++];
            r->session = s;
            r->token = items[i].tokens[t];
            r->position = (int)(s->n_tokens + t);
            r->item = i;
            r->want =
                items[i].want == LINNET_LOGITS_ALL || (items[i].want == LINNET_LOGITS_LAST && last);
            bool other = one_kind && last && !final &&
                         items[i + 1].session->kv.layout.kind != s->kv.layout.kind;
            if (n < most && !final && !other) continue;
            linnet_status status = run(m, items, rows, n, err);
            if (status) return status;
            done += n;
            n = 0;
            if (progress && !progress(user, "prefill", done, total))
                return fail(err, LINNET_ERR_CANCELLED, "cancelled after %zu of %zu tokens", done,
                            total);
        }
    }
    return LINNET_OK;
}

/* Where numbers stopped being finite, as stage << 32 | row of the piece; the first one is the
 * smallest. Stage 2l is the input of layer l, 2l + 1 that of its feed-forward, 2 n_layers that of
 * the output's norm and 2 n_layers + 1 the logits. */
#define ALL_FINITE UINT64_MAX

static inline linnet_status place_error(const linnet_model *m, const row *rows, uint64_t place,
                                        linnet_error *err) {
#define BROKEN "NaN or infinite values: the model's weights are damaged or overflow"
    if (place == ALL_FINITE) return LINNET_OK;
    size_t stage = place >> 32, layer = (stage - 1) / 2;
    const row *r = &rows[place & UINT32_MAX];
    bool mixer = stage % 2 || !m->cfg.n_ff;
    if (!stage)
        return fail(err, LINNET_ERR_NUMERIC, "position %d: the embedding of token %d has " BROKEN,
                    r->position, r->token);
    if (stage == 2 * (size_t)m->cfg.n_layers + 1)
        return fail(err, LINNET_ERR_NUMERIC,
                    "position %d: after finite layers, the logits have " BROKEN, r->position);
    return fail(err, LINNET_ERR_NUMERIC, "position %d: the %s of layer %zu gives " BROKEN,
                r->position, mixer ? m->layers[layer].mixer->name : "feed-forward", layer);
#undef BROKEN
}

/* Hands a row's logits [n_rows] to the item's callback, and those of its last token to its session.
 */
static inline linnet_status give_logits(const linnet_model *m, linnet_item *item, const row *r,
                                        const float *logits, linnet_error *err) {
    if (item->want == LINNET_LOGITS_ALL && item->rows &&
        !item->rows(item->user, (size_t)r->position, 1, logits))
        return fail(err, LINNET_ERR_CANCELLED, "cancelled by the logits callback");
    if ((size_t)r->position + 1 == r->session->n_tokens + item->n_tokens)
        memcpy(r->session->pending, logits, (size_t)m->cfg.n_rows * sizeof(float));
    return LINNET_OK;
}

#endif
