/* One test of `linnet bench`, in the process that it has for itself. */
#ifndef CLI_MEASURE_H
#define CLI_MEASURE_H

#include <jansson.h>

#include "engine.h"

typedef struct {
    int n_prompt, n_gen; /* tokens of a prefill, and steps after it; one of them may be 0 */
    int n_depth;         /* tokens before, not timed */
    int n_seqs;          /* sessions that advance together */
} bench_test;

/* Opens the model, runs the test once and then `repeats` times, timed. *out: samples_ns[],
 * ttft_samples_ns[] (of the prefill; empty without one), n_threads, isa, peak_rss_bytes, pinned;
 * or, where memory did not suffice, oom = true and error. EXIT_WORKED, or another exit code after a
 * sentence. */
int measure(const engine *e, const char *model, const bench_test *test, int repeats, bool pin,
            json_t **out);

#endif
