/* Which ids were sampled, and which state was left, after which messages.
 *
 * A client sends its whole conversation with every turn, as text. The answer's text tokenized again
 * is not always what was sampled, so the ids of a timeline are remembered under a hash of the
 * messages that it stands for (BLAKE2b-256 over the model's fingerprint, the template's name and
 * every role and content, lengths included; clients may trim an answer that they send back, so its
 * outer blanks do not count), and the state itself in a Redis that other processes share. Earlier
 * turns that were edited match a shorter beginning. Of equal texts that were sampled differently
 * the last one counts. A conversation may also have a name of the client's ("conversation" of a
 * request), under which its last state is kept, in memory and in every store there is.
 *
 * With a folder the ids survive a restart, too: DIR/states/FINGERPRINT/ids, beside NAME.state. */
#ifndef SERVER_CONVERSATIONS_H
#define SERVER_CONVERSATIONS_H

#include "../linnet.h"

typedef struct conversations conversations;

typedef struct {
    linnet_model *model;
    linnet_cache *cache;
    uint64_t cache_bytes; /* its budget; 0 = 1 GiB, as there */
    linnet_session_options session;
    const char *template;          /* name, or NULL: the file's */
    const char *dir;               /* where states with a name are kept; NULL: in memory alone */
    const char *redis;             /* HOST:PORT, [IPv6]:PORT or the path of a socket, or NULL */
    double redis_ttl_seconds;      /* 0 = 7 days */
    uint64_t redis_max_bytes;      /* of a state; 0 = 512 MiB, Redis' own limit */
    uint64_t bytes;                /* of remembered ids and named states in memory; 0 = 256 MiB */
    void (*log)(const char *line); /* rare: Redis is down, is back, ...; may be NULL */
} conversations_options;
linnet_status conversations_new(conversations **out, const conversations_options *options,
                                linnet_error *err);
void conversations_free(conversations *c);

typedef struct {
    int32_t *tokens; /* malloc'ed */
    size_t n, mark;
    linnet_session *start; /* what the store had, or NULL */
    const char *source;    /* of start: "memory", "folder", "redis", or "" */
} conversation_prompt;
/* The prompt for an answer to `messages`: ids as they were sampled where answers were this
 * server's. `name` NULL: no conversation name. Any thread; may wait for the store. */
linnet_status conversations_prompt(conversations *c, const linnet_message *messages, size_t n,
                                   const char *name, conversation_prompt *out, linnet_error *err);
/* After the answer, messages[n - 1]: `session` holds the timeline (see scheduler.h: event.session,
 * rest, ended), and becomes the conversation's. Feeds what is missing (the rest of a cut answer,
 * the end of its turn). Never fails the request: what cannot be kept is logged and counted.
 * On the thread of the connection, when the text is out but before the answer is complete (a
 * stream's [DONE]): a client that asks on at once is to find it, at any replica. */
void conversations_keep(conversations *c, const linnet_message *messages, size_t n,
                        const char *name, linnet_session *session, const char *rest, bool ended);

/* 1 to 128 of [A-Za-z0-9._-], not beginning with a dot; n: bytes of name, should it hold NULs. */
bool conversations_name_ok(const char *name, size_t n);

/* States by name, for /v1/states: "to" becomes a copy of "id", here (fork), in the store (save), or
 * from there (restore). *bytes: of the state, *tokens: it holds. LINNET_ERR_ARGUMENT: a bad name,
 * or none of that name; LINNET_ERR_UNSUPPORTED: there is no store. */
typedef enum { STATE_SAVE, STATE_RESTORE, STATE_FORK } state_action;
linnet_status conversations_state(conversations *c, state_action action, const char *id,
                                  const char *to, uint64_t *bytes, size_t *tokens,
                                  linnet_error *err);

typedef struct {
    uint64_t remembered, named, bytes; /* timelines, states with a name, bytes of both in memory */
    uint64_t hits, misses, not_kept;   /* of prompts with answers in them: one was known, none */
    uint64_t store_reads, store_writes, store_errors;
    double store_read_seconds, store_write_seconds;
    bool store_up;
} conversations_stats;
void conversations_get_stats(conversations *c, conversations_stats *out);

#endif
