/* Jobs that wait: owners take turns, jobs of one owner are first come, first served. Not locked. */
#ifndef SERVER_QUEUE_H
#define SERVER_QUEUE_H

#include "job.h"

typedef struct owner owner;
typedef struct {
    owner *first, **last; /* in the order of their turns */
    size_t n;             /* jobs */
} queue;

void queue_start(queue *q);
bool queue_push(queue *q, job *j); /* false: no memory */
/* The next job in turn for which `ready` is true, or NULL; its owner goes to the end of the line.
 * One that is not ready keeps its place and lets others pass. */
job *queue_take(queue *q, bool (*ready)(void *user, job *j), void *user);
/* Any job for which `out` is true, or NULL; turns stay as they are. */
job *queue_remove(queue *q, bool (*out)(void *user, job *j), void *user);

#endif
