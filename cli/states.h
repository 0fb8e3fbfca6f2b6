/* Lines of a conversation as values: what was said, the session that follows it, the snapshots to
 * return to, and the forks that are kept under names. */
#ifndef CLI_STATES_H
#define CLI_STATES_H

#include "engine.h"

/* A question and its answer. A snapshot is NULL where there is none (any more). */
typedef struct {
    linnet_session *before, *asked; /* the session before the question, and before the answer */
} turn;

typedef struct {
    char *name;
    linnet_session *session;
    linnet_session *base; /* a loaded state, which the first n_base messages stand for, or NULL */
    size_t n_base;
    linnet_message *messages; /* owned texts; [system,] user, assistant, user, ... */
    size_t n_messages, messages_cap;
    turn *turns;
    size_t n_turns, turns_cap;
    bool stale; /* the session does not follow the messages: feed them again */
    uint64_t retries;
} branch;

bool push_message(branch *b, const char *role, const char *content);
void pop_message(branch *b);
/* The turn takes the snapshots over, also when it fails. Those of old turns are given up. */
bool push_turn(branch *b, linnet_session *before, linnet_session *asked);
void pop_turn(branch *b);
/* Forgets messages, turns and base; the session stays. */
void branch_clear(branch *b);
void branch_free(branch *b);
/* A fork of a session, NULL after a sentence. */
linnet_session *fork_of(const linnet_session *session);

/* The branches that the conversation is not in. */
typedef struct {
    branch *at;
    size_t n, cap;
} branch_book; /* start with {0} */

/* Keeps a fork of `now` under `name`, or under the next free fork1, fork2, ... */
int book_fork(branch_book *book, const branch *now, const char *name);
/* Exchanges `now` with the branch of that name; without a name lists them. */
int book_switch(branch_book *book, branch *now, const char *name);
void book_free(branch_book *book);

#endif
