/* What conversations.c (messages), conversations_named.c (states by name) and
 * conversations_stores.c (setting up, asking stores) share. */
#ifndef SERVER_CONVERSATIONS_PARTS_H
#define SERVER_CONVERSATIONS_PARTS_H

#include "conversations.h"
#include "journal.h"
#include "shelf.h"
#include "store.h"

#include <pthread.h>
#include <sodium.h>

enum { KEY = SHELF_KEY, MAX_STORES = 2 };

/* A store, and what is wrong with it as the log was told. */
typedef struct {
    store *store;
    bool no_read, no_write, refused; /* refused: a state of it; never taken back */
} shared;

struct conversations {
    conversations_options options;
    char *template;
    uint8_t seed[KEY]; /* of every chain of messages */
    char fingerprint[33];
    shared stores[MAX_STORES]; /* in the order in which they are asked */
    size_t n_stores;
    pthread_mutex_t lock; /* all below, and what is wrong with stores */
    shelf shelf;
    journal *journal;
    bool journal_failed;
    conversations_stats stats;
};

void conversations_say(const conversations *c, const char *line);

/* Length, then bytes, so that no two lists of texts make the same key. */
static inline void hash_text(crypto_generichash_state *h, const char *text, size_t n) {
    uint64_t length = n;
    crypto_generichash_update(h, (const uint8_t *)&length, sizeof length);
    crypto_generichash_update(h, (const uint8_t *)text, n);
}

/* ---- conversations.c ------------------------------------------------------------------------ */
typedef struct {
    int32_t *at;
    size_t n;
} id_text;
/* `held` and then linnet_chat_continue of messages [from, n); `from` 0: all. *out is malloc'ed. */
linnet_status ids_from(const conversations *c, const linnet_message *m, size_t n, size_t from,
                       bool prompt, const id_text *held, id_text *out, linnet_error *err);
/* The cache may have lost what it was given when it had given up `evictions` snapshots. */
bool in_cache(const conversations *c, const shelf_entry *e);
/* Gives the cache a snapshot. *evictions: for shelf_put; UINT64_MAX: it took none. */
void keep_in_cache(conversations *c, const linnet_session *session, uint64_t *evictions);

/* ---- conversations_named.c ------------------------------------------------------------------ */
linnet_status check_name(const char *what, const char *name, linnet_error *err);
/* Puts the session, which it takes, on the shelf under a name; false: it does not fit. */
bool keep_named(conversations *c, const char *name, linnet_session *session, uint64_t evictions);
/* A copy of the state of that name in memory, or NULL. *cached: the cache surely has it; then there
 * is none unless `always`. */
linnet_session *named_copy(conversations *c, const char *name, bool always, bool *cached);

/* ---- conversations_stores.c ----------------------------------------------------------------- */
linnet_status store_put(conversations *c, shared *s, store_key key, const linnet_session *session,
                        linnet_error *err);
/* A session with what the first of the keys that is there holds, or NULL. */
linnet_session *store_get(conversations *c, shared *s, const store_key *keys, size_t n,
                          size_t *which);
/* The state of that name from the stores, or NULL. */
linnet_session *stored(conversations *c, const char *name, const char **source);

#endif
