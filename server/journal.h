/* The timelines of a shelf in a file, so that a restarted server still knows what it sampled. A
 * record is written at once and never changed; damaged ones (the disk was full, the machine went
 * down) are skipped when the file is next read. Not locked: conversations.c does that. */
#ifndef SERVER_JOURNAL_H
#define SERVER_JOURNAL_H

#include "shelf.h"

typedef struct journal journal;
/* Puts the records of the file, if there is one, on the shelf. It grows to twice the shelf's budget
 * before it is written anew from the shelf. */
linnet_status journal_open(journal **out, const char *path, shelf *s, linnet_error *err);
/* The newest entry of the shelf. */
linnet_status journal_add(journal *j, const shelf_entry *e, linnet_error *err);
void journal_close(journal *j); /* NULL is allowed */

#endif
