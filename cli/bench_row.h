/* A row of `linnet bench`: its keys, its numbers, its Markdown. */
#ifndef CLI_BENCH_ROW_H
#define CLI_BENCH_ROW_H

#include "engine.h"
#include "measure.h"
#include "rows.h"

/* Everything that is known without running (threads 0: the default; hash: of the file); the rest is
 * there as null, so that all rows have the same keys in the same order. */
json_t *describe_row(const engine *e, const linnet_model *model, const char *path, const char *hash,
                     const bench_test *t, int threads);
/* What measure() found, into the row; false without memory. */
bool complete_row(json_t *row, const json_t *found, const bench_test *t);
/* What bounds decoding: a step reads all weights once and every session's state. A line. */
void add_hint(text_buffer *hints, const json_t *row);

extern const row_column bench_columns[];
extern const size_t n_bench_columns;

#endif
