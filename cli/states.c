#include "states.h"

#include <stdlib.h>
#include <string.h>

enum { SNAPSHOTS = 8 /* turns that keep theirs; each holds logits and fixed-size state */ };

static bool no_memory(void) {
    complain("out of memory");
    return false;
}

/* ---- one branch --------------------------------------------------------------------------- */

bool push_message(branch *b, const char *role, const char *content) {
    if (b->n_messages == b->messages_cap) {
        size_t cap = b->messages_cap * 2 + 16;
        linnet_message *grown = realloc(b->messages, cap * sizeof *grown);
        if (!grown) return no_memory();
        b->messages = grown;
        b->messages_cap = cap;
    }
    char *copy = strdup(content);
    if (!copy) return no_memory();
    b->messages[b->n_messages++] = (linnet_message){.role = role, .content = copy};
    return true;
}

void pop_message(branch *b) {
    free((char *)b->messages[--b->n_messages].content);
}

static void give_up(turn *t) {
    linnet_session_free(t->before);
    linnet_session_free(t->asked);
    *t = (turn){0};
}

bool push_turn(branch *b, linnet_session *before, linnet_session *asked) {
    turn new = {.before = before, .asked = asked};
    if (b->n_turns == b->turns_cap) {
        size_t cap = b->turns_cap * 2 + 16;
        turn *grown = realloc(b->turns, cap * sizeof *grown);
        if (!grown) {
            give_up(&new);
            return no_memory();
        }
        b->turns = grown;
        b->turns_cap = cap;
    }
    b->turns[b->n_turns++] = new;
    if (b->n_turns > SNAPSHOTS) give_up(&b->turns[b->n_turns - SNAPSHOTS - 1]);
    return true;
}

void pop_turn(branch *b) {
    give_up(&b->turns[--b->n_turns]);
}

void branch_clear(branch *b) {
    while (b->n_messages)
        pop_message(b);
    while (b->n_turns)
        pop_turn(b);
    linnet_session_free(b->base);
    b->base = NULL;
    b->n_base = 0;
    b->stale = false;
    b->retries = 0;
}

void branch_free(branch *b) {
    branch_clear(b);
    linnet_session_free(b->session);
    free(b->messages);
    free(b->turns);
    free(b->name);
    *b = (branch){0};
}

linnet_session *fork_of(const linnet_session *session) {
    linnet_error err;
    linnet_session *fork;
    if (!linnet_session_fork(session, &fork, &err)) return fork;
    failed_with(&err);
    return NULL;
}

static bool copy_branch(const branch *from, const char *name, branch *to) {
    *to = (branch){.n_base = from->n_base, .stale = from->stale, .retries = from->retries};
    if (!(to->name = strdup(name))) return no_memory();
    if (!(to->session = fork_of(from->session))) return false;
    if (from->base && !(to->base = fork_of(from->base))) return false;
    for (size_t i = 0; i < from->n_messages; i++)
        if (!push_message(to, from->messages[i].role, from->messages[i].content)) return false;
    for (size_t i = 0; i < from->n_turns; i++) {
        const turn *t = &from->turns[i];
        linnet_session *before = t->before ? fork_of(t->before) : NULL;
        linnet_session *asked = t->asked ? fork_of(t->asked) : NULL;
        if (!push_turn(to, before, asked)) return false;
    }
    return true;
}

/* ---- the others --------------------------------------------------------------------------- */

static branch *find(const branch_book *book, const char *name) {
    for (size_t i = 0; i < book->n; i++)
        if (!strcmp(book->at[i].name, name)) return &book->at[i];
    return NULL;
}

int book_fork(branch_book *book, const branch *now, const char *name) {
    char next[32];
    if (!*name) {
        for (int i = 1;; i++) {
            snprintf(next, sizeof next, "fork%d", i);
            if (strcmp(next, now->name) && !find(book, next)) break;
        }
        name = next;
    }
    if (strpbrk(name, " \t"))
        return failed("/fork expects a name without spaces, found '%s'", name);
    if (!strcmp(name, now->name) || find(book, name))
        return failed("there is a %s already: /fork expects a new name", name);
    if (book->n == book->cap) {
        size_t cap = book->cap * 2 + 8;
        branch *grown = realloc(book->at, cap * sizeof *grown);
        if (!grown) return failed("out of memory");
        book->at = grown;
        book->cap = cap;
    }
    branch *fork = &book->at[book->n];
    if (!copy_branch(now, name, fork)) {
        branch_free(fork);
        return EXIT_FAILED;
    }
    book->n++;
    say("%s is a fork of %s, where you still are: /switch %s goes there", name, now->name, name);
    return EXIT_WORKED;
}

int book_switch(branch_book *book, branch *now, const char *name) {
    char list[512] = "";
    for (size_t i = 0, at = 0; i < book->n && at < sizeof list; i++)
        at +=
            (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", book->at[i].name);
    if (!*name) {
        complain("you are in %s%s%s", now->name, book->n ? "; there is also " : "", list);
        return EXIT_WORKED;
    }
    branch *other = find(book, name);
    if (!other && !strcmp(name, now->name)) {
        say("you are in %s already", name);
        return EXIT_WORKED;
    }
    if (!other)
        return failed("there is no %s: /fork makes one; you are in %s%s%s", name, now->name,
                      book->n ? ", there is " : "", list);
    branch left = *now;
    *now = *other;
    *other = left;
    say("now in %s, %zu tokens", now->name, tokens_held(now->session));
    return EXIT_WORKED;
}

void book_free(branch_book *book) {
    while (book->n)
        branch_free(&book->at[--book->n]);
    free(book->at);
    *book = (branch_book){0};
}
