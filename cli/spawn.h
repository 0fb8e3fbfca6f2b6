/* This program again, as a child that answers on its standard output. */
#ifndef CLI_SPAWN_H
#define CLI_SPAWN_H

#include "files.h"

/* Runs /proc/self/exe with argv (argv[0] included, NULL at the end) and appends what it prints to
 * `out`; *status as waitpid gives it. Interrupted, it ends the child. False after a sentence. */
bool run_self(char *const argv[], text_buffer *out, int *status);
/* In the child: end when the parent does. */
void end_with_parent(void);

#endif
