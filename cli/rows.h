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

/* Values of a row for Markdown: 0 or "-" where there is none. */
double row_number(const json_t *row, const char *key);
const char *row_text(const json_t *row, const char *key);
void row_bytes(const json_t *row, const char *key, char *out, size_t size);
/* Columns that tables share: by the keys of set_model_keys and set_precision_keys (describe.h), and
 * state_bytes_alloc. */
void show_model(const json_t *row, char *out, size_t size);
void show_params(const json_t *row, char *out, size_t size);
void show_size(const json_t *row, char *out, size_t size);
void show_mixers(const json_t *row, char *out, size_t size);
void show_state(const json_t *row, char *out, size_t size);

/* For write: stdout (flushed), stderr, an output_file of files.h. */
bool write_stdout(void *user, const char *bytes, size_t n);
bool write_stderr(void *user, const char *bytes, size_t n);
bool write_output(void *user, const char *bytes, size_t n);

#endif
