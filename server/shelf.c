#include "shelf.h"

#include <stdlib.h>
#include <string.h>

/* Keys are hashes already. */
static shelf_entry **bucket_of(shelf *s, const uint8_t *key) {
    return &s->buckets[(key[0] | (size_t)key[1] << 8) % SHELF_BUCKETS];
}

static void unlink_age(shelf *s, shelf_entry *e) {
    *(e->newer ? &e->newer->older : &s->newest) = e->older;
    *(e->older ? &e->older->newer : &s->oldest) = e->newer;
}

static void make_newest(shelf *s, shelf_entry *e) {
    e->newer = NULL;
    e->older = s->newest;
    *(s->newest ? &s->newest->newer : &s->oldest) = e;
    s->newest = e;
}

static void remove_entry(shelf *s, shelf_entry *e) {
    shelf_entry **at = bucket_of(s, e->key);
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    unlink_age(s, e);
    s->bytes -= e->bytes;
    *(e->session ? &s->n_sessions : &s->n_timelines) -= 1;
    linnet_session_free(e->session);
    free(e->ids);
    free(e);
}

static shelf_entry *look(shelf *s, const uint8_t *key) {
    shelf_entry *e = *bucket_of(s, key);
    while (e && memcmp(e->key, key, SHELF_KEY))
        e = e->next;
    return e;
}

shelf_entry *shelf_find(shelf *s, const uint8_t key[SHELF_KEY]) {
    shelf_entry *e = look(s, key);
    if (e) {
        unlink_age(s, e);
        make_newest(s, e);
    }
    return e;
}

bool shelf_put(shelf *s, const uint8_t key[SHELF_KEY], int32_t *ids, size_t n,
               linnet_session *session, uint64_t evictions) {
    uint64_t bytes = sizeof(shelf_entry) + n * sizeof *ids;
    if (session) { /* its fixed parts, tokens and logits included */
        size_t n_tokens;
        linnet_session_tokens(session, &n_tokens);
        bytes += linnet_session_state_bytes(session) + 4 * n_tokens + 4096;
    }
    shelf_entry *e = bytes <= s->budget ? malloc(sizeof *e) : NULL;
    if (!e) {
        free(ids);
        linnet_session_free(session);
        return false;
    }
    shelf_entry *before = look(s, key);
    if (before) remove_entry(s, before);
    *e = (shelf_entry){
        .ids = ids, .n = n, .session = session, .evictions = evictions, .bytes = bytes};
    memcpy(e->key, key, SHELF_KEY);
    shelf_entry **bucket = bucket_of(s, key);
    e->next = *bucket;
    *bucket = e;
    make_newest(s, e);
    s->bytes += bytes;
    *(session ? &s->n_sessions : &s->n_timelines) += 1;
    while (s->bytes > s->budget)
        remove_entry(s, s->oldest);
    return true;
}

void shelf_clear(shelf *s) {
    while (s->oldest)
        remove_entry(s, s->oldest);
}
