/* Timelines and named states by a key, within a budget of bytes: what was not looked at for longest
 * goes first. Not locked: conversations.c does that. */
#ifndef SERVER_SHELF_H
#define SERVER_SHELF_H

#include "../linnet.h"

enum { SHELF_KEY = 32 };

typedef struct shelf_entry {
    uint8_t key[SHELF_KEY];
    int32_t *ids; /* of a timeline; NULL: a state with a name */
    size_t n;
    linnet_session *session;
    uint64_t evictions; /* the cache's, when it was given the state of this entry */
    uint64_t bytes;
    struct shelf_entry *newer, *older, *next; /* next: of its bucket */
} shelf_entry;

enum { SHELF_BUCKETS = 1 << 14 };
typedef struct {
    uint64_t budget, bytes, n_timelines, n_sessions;
    shelf_entry *newest, *oldest, *buckets[SHELF_BUCKETS];
} shelf;

/* NULL when it is not there; valid until the next shelf_put. */
shelf_entry *shelf_find(shelf *s, const uint8_t key[SHELF_KEY]);
/* Takes `ids` (malloc'ed, or NULL) and `session` (or NULL), in the place of what had this key.
 * False: there is no memory, or they are larger than the budget. */
bool shelf_put(shelf *s, const uint8_t key[SHELF_KEY], int32_t *ids, size_t n,
               linnet_session *session, uint64_t evictions);
void shelf_clear(shelf *s);

#endif
