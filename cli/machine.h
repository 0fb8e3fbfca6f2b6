/* The machine that a measurement ran on, and what a process can ask of it (Linux). */
#ifndef CLI_MACHINE_H
#define CLI_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char cpu[128];     /* the model's name, or "" */
    char flags[256];   /* what matters to the kernels: "avx2 fma avx512f" */
    char governor[32]; /* of the first processor; "" where it cannot be read */
    int processors;    /* this process may use */
} machine;

void machine_read(machine *m);
extern const char build_commit[]; /* of the sources; "unknown" outside git */
extern const int build_number;    /* commits before it */

/* Each thread of this process on a processor of its own, one per core first; false where there are
 * fewer processors than threads, or the kernel refuses. */
bool pin_threads(void);
/* Peak resident memory of this process since it was executed (VmHWM), 0 if unknown. */
uint64_t peak_rss_bytes(void);
/* Should memory run out, the kernel ends this process before others. */
void die_first(void);

#endif
