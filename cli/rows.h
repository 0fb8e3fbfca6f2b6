/* Tables of results: rows are JSON objects with the same keys, written as they come as Markdown,
 * CSV, one JSON array or JSON lines. */
#ifndef CLI_ROWS_H
#define CLI_ROWS_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#define ROW_FORMATS "md csv json jsonl"

typedef struct {
    const char *title;
    bool right; /* aligned */
    void (*text)(const json_t *row, char *out, size_t size);
} row_column; /* of Markdown; the other formats write every key */

typedef bool (*write_fn)(void *user, const char *bytes, size_t n);

typedef struct {
    const char *format; /* of ROW_FORMATS */
    const row_column *columns;
    size_t n_columns;
    write_fn write;
    void *user;
    size_t n; /* rows so far */
} row_writer;

bool rows_add(row_writer *w, const json_t *row); /* false: no memory, or write() failed */
/* After the last row, also after an error: what is there becomes whole. */
bool rows_end(row_writer *w);

/* For write: stdout (flushed), stderr, an output_file of files.h. */
bool write_stdout(void *user, const char *bytes, size_t n);
bool write_stderr(void *user, const char *bytes, size_t n);
bool write_output(void *user, const char *bytes, size_t n);

#endif
