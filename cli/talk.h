/* What the program says besides its text: messages and progress on stderr, the care of stdout, and
 * the signals that end or interrupt it. */
#ifndef CLI_TALK_H
#define CLI_TALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../linnet.h"

/* "linnet: ..." and a newline on stderr, control characters escaped. say() obeys be_quiet(). */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
__attribute__((format(printf, 1, 2))) void complain(const char *format, ...);
void be_quiet(bool quiet);
/* complain() as an expression: returns EXIT_FAILED. */
__attribute__((format(printf, 1, 2))) int failed(const char *format, ...);
/* The library's sentence. A call that a callback cancelled has none: the callback told why, or a
 * signal came; returns interrupt_code(). */
int failed_with(const linnet_error *err);
/* Writes text with control characters as \n, \t or \xNN, so that a file cannot drive a terminal. */
void print_escaped(const char *text);

/* "4.4 MB", "640 bytes" */
void human_bytes(char *out, size_t size, uint64_t bytes);

/* Someone types at standard input and reads stderr. */
bool on_terminal(void);

/* A linnet_progress_fn: a percentage on a terminal if `user` is NULL; false once the user
 * interrupts. */
bool show_progress(void *user, const char *what, size_t done, size_t total);

/* Writes to stdout; after the first failure everything returns false. */
bool put(const char *bytes, size_t n);
bool put_now(const char *bytes, size_t n); /* and flushes */
/* After printf: false once stdout has failed. */
bool stdout_alive(void);
/* Flushes stdout; EXIT_WORKED, or EXIT_FAILED after a sentence. */
int finish_stdout(void);

/* Ignores SIGPIPE, gives SIGBUS its sentence, opens missing standard streams. Once, in main. */
void prepare_process(void);
/* From here on Ctrl-C, SIGTERM and SIGHUP set a flag, seen by interrupted(), instead of ending the
 * process; a second one ends it unless `again` is true. */
void catch_interrupts(bool again);
bool interrupted(void);
void clear_interrupt(void);
int interrupt_code(void); /* 128 + signal, as shells report it; Ctrl-C is 130 */
/* A file to remove if the process dies of SIGBUS, up to four at a time, until it is one to keep.
 * The pointer tells them apart; not copied. */
void remove_on_crash(const char *path);
void keep_on_crash(const char *path);

#endif
