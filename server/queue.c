#include "queue.h"

#include <stdlib.h>
#include <string.h>

struct owner {
    char name[sizeof((job_request *)0)->owner];
    job *first, **last;
    owner *next;
};

void queue_start(queue *q) {
    *q = (queue){.last = &q->first};
}

static void append(queue *q, owner *o) {
    o->next = NULL;
    *q->last = o;
    q->last = &o->next;
}

/* Takes the owner at *place out of the line. */
static owner *unlink_owner(queue *q, owner **place) {
    owner *o = *place;
    *place = o->next;
    if (!o->next) q->last = place;
    return o;
}

bool queue_push(queue *q, job *j) {
    owner *o = q->first;
    while (o && strcmp(o->name, j->r.owner))
        o = o->next;
    if (!o) {
        if (!(o = calloc(1, sizeof *o))) return false;
        memcpy(o->name, j->r.owner, sizeof o->name);
        o->last = &o->first;
        append(q, o);
    }
    j->next = NULL;
    *o->last = j;
    o->last = &j->next;
    q->n++;
    return true;
}

/* The first job in line for which `wanted` is true. */
static job *take(queue *q, bool (*wanted)(void *user, job *j), void *user, bool turn) {
    for (owner **place = &q->first; *place; place = &(*place)->next) {
        owner *o = *place;
        for (job **at = &o->first; *at; at = &(*at)->next) {
            job *j = *at;
            if (!wanted(user, j)) continue;
            *at = j->next;
            if (!j->next) o->last = at;
            q->n--;
            if (!o->first)
                free(unlink_owner(q, place));
            else if (turn)
                append(q, unlink_owner(q, place));
            return j;
        }
    }
    return NULL;
}

job *queue_take(queue *q, bool (*ready)(void *user, job *j), void *user) {
    return take(q, ready, user, true);
}

job *queue_remove(queue *q, bool (*out)(void *user, job *j), void *user) {
    return take(q, out, user, false);
}
