/* The fields that chat completions and completions share. */
#ifndef SERVER_SAMPLING_H
#define SERVER_SAMPLING_H

#include "server.h"

enum { MAX_STOPS = 16, MAX_STOP_BYTES = 4096, MAX_CHOICES = 8, MAX_TOP_LOGPROBS = 20 };

typedef struct {
    linnet_sampling sampling; /* bias malloc'ed */
    size_t n;                 /* answers to each prompt; answer i draws with seed + i */
    size_t max_tokens;
    bool limited; /* max_tokens was given */
    char **stops;
    size_t n_stops;
    int top_logprobs; /* as in job_request */
    bool json, ignore_end;
    bool stream, include_usage, progress;
} generation_fields;

/* Reads and checks them; false: an error was answered. sampling_free either way. */
bool sampling_read(server *s, request *r, const json_t *body, generation_fields *out);
void sampling_free(generation_fields *f);
/* A job of its own copies of all that; false: no memory. */
bool sampling_job(const generation_fields *f, size_t choice, const char *owner, double seconds,
                  job_request *out);

/* A field that is null is one that is absent. The others: false after an error was answered, true
 * with *out as it was when the field is absent. */
json_t *field(const json_t *body, const char *name);
bool field_bool(request *r, const json_t *body, const char *name, bool *out);
bool field_whole(request *r, const json_t *body, const char *name, int64_t low, int64_t high,
                 int64_t *out);
/* 400 with `name` as its param. */
__attribute__((format(printf, 3, 4))) bool bad_field(request *r, const char *name,
                                                     const char *format, ...);
/* The model's name, if there is one, is ours. */
bool field_model(server *s, request *r, const json_t *body);
/* An array of token ids of the vocabulary; *out malloc'ed. */
bool token_ids(server *s, request *r, const char *name, const json_t *list, int32_t **out,
               size_t *n);
/* A JSON text as ids, with flags of linnet_tokenize; *ids is the caller's, also after an error. */
bool text_tokens(server *s, request *r, const json_t *text, unsigned flags, int32_t **ids,
                 size_t *n);
/* And back, special tokens as they are spelled; NUL-terminated, malloc'ed; NULL: an error was
 * answered. */
char *tokens_text(server *s, request *r, const int32_t *ids, size_t n, size_t *bytes);

#endif
