/* How every backend cuts a forward: items into rows, rows into pieces of at most `most`. */
#ifndef PIECES_H
#define PIECES_H

#include "../model.h"

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

#endif
