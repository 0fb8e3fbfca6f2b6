/* Files in and out: whole texts, lists of ids, JSON lines, and outputs that appear only when they
 * are complete. Every function that fails has said why on stderr. */
#ifndef CLI_FILES_H
#define CLI_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

typedef struct {
    char *at; /* NUL-terminated for convenience; may hold NULs before */
    size_t n, cap;
} text_buffer; /* start with {0}, free(at) */

bool text_append(text_buffer *t, const char *bytes, size_t n);
__attribute__((format(printf, 2, 3))) bool text_printf(text_buffer *t, const char *format, ...);

typedef struct {
    int32_t *at;
    size_t n, cap;
} id_buffer; /* start with {0}, free(at) */

bool ids_reserve(id_buffer *ids, size_t cap);
bool ids_append(id_buffer *ids, const int32_t *more, size_t n);

/* The whole of a file as valid UTF-8; path NULL or "-" is standard input. */
bool read_text(text_buffer *out, const char *path);
/* Refuses invalid UTF-8 with the byte offset; `what` names the text. */
bool check_utf8(const char *text, size_t n, const char *what);
/* Bytes of the first `n_points` code points of valid UTF-8. */
size_t utf8_prefix(const char *text, size_t n, size_t n_points);
/* All ids of a file, any whitespace between them. `n_ids` is the number of ids there are. */
bool read_ids(id_buffer *out, const char *path, int n_ids);

/* A file of lines, read one at a time. */
typedef struct {
    FILE *file;
    const char *path;
    char *line;
    size_t cap, n; /* n: bytes of the line, the newline not counted */
    size_t number; /* of the line, from 1 */
} line_reader;

bool lines_open(line_reader *r, const char *path);
/* 1: a line; 0: the end; -1: it failed. */
int lines_next(line_reader *r);
/* 1 and a JSON object (to be json_decref'ed) from the next line that is not blank; 0; -1. */
int lines_next_json(line_reader *r, json_t **out);
/* The first byte that is no blank, EOF if there is none; what stands before it is passed. */
int lines_peek(line_reader *r);
/* All that is left, UTF-8. */
bool lines_rest(line_reader *r, text_buffer *out);
void lines_close(line_reader *r);
/* A string of a file, which may not be UTF-8: jansson refuses those, so bytes stand for characters
 * there. */
json_t *json_text(const char *text);
void json_set_int(json_t *object, const char *key, uint64_t value);
/* Ids of one line. */
bool parse_ids(id_buffer *out, const char *text, size_t n, const char *path, size_t line,
               int n_ids);

/* An output file: written beside its final place and renamed by output_finish. A path that exists
 * and is not a regular file (a pipe, /dev/null) is written directly. */
typedef struct {
    FILE *file;
    char *path, *temporary; /* temporary is NULL when written directly */
} output_file;

bool output_open(output_file *o, const char *path);
bool output_write(output_file *o, const void *bytes, size_t n);
bool output_finish(output_file *o);
void output_abandon(output_file *o); /* removes it; harmless after output_finish */

#endif
