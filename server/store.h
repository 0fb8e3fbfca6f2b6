/* Where states outlive the process: a folder, or a Redis that replicas share. A store's functions
 * may be called from many threads; they may wait, but never longer than their timeouts.
 *
 * An error with code LINNET_ERR_IO is the store's own (down, slow, full, rubbish); any other is the
 * state's: damaged, of another model, too large. */
#ifndef SERVER_STORE_H
#define SERVER_STORE_H

#include "../linnet.h"

typedef struct {
    bool named;       /* a name that conversations_name_ok() likes, or a hash in hex */
    const char *text; /* never anything else: it becomes a file's name */
} store_key;

typedef struct store store;
struct store {
    const char *name; /* "folder", "redis" */
    bool hashes;      /* keeps states by hash, too, not only by name */
    linnet_status (*put)(store *s, store_key key, const linnet_session *session, linnet_error *err);
    /* `into` becomes what the first of the keys that is there holds; *which: its index, n if none
     * is. */
    linnet_status (*get)(store *s, const store_key *keys, size_t n, linnet_session *into,
                         size_t *which, linnet_error *err);
    void (*free)(store *s);
};

/* Files NAME.state in an existing folder, as linnet_session_save_file writes them. */
linnet_status store_folder_new(store **out, const char *dir, linnet_error *err);

typedef struct {
    const char *address;    /* HOST:PORT, [IPv6]:PORT, or /path/of/a.socket */
    const char *prefix;     /* of its keys: PREFIX:HASH and PREFIX:name:NAME */
    double connect_seconds; /* 0 = 0.5 */
    double command_seconds; /* without progress, or slower than 16 MB/s; 0 = 2 */
    double ttl_seconds;     /* states that nobody wrote for so long are gone; 0 = 7 days */
    uint64_t max_bytes;     /* of a state; 0 = 512 MiB, which is Redis' own limit */
} store_redis_options;
/* Connects when it is first used, so a Redis that is down is no error here. */
linnet_status store_redis_new(store **out, const store_redis_options *options, linnet_error *err);

#endif
