/* From jobs to an answer: submits them, reads their events, and writes choices at once or as a
 * stream. What an endpoint's JSON looks like is its answer_format. */
#ifndef SERVER_ANSWER_H
#define SERVER_ANSWER_H

#include "sampling.h"

typedef struct {
    job_request job; /* the choice's until it is submitted */
    job *running;    /* NULL: not submitted */
    size_t prompt;   /* which one it answers */
    size_t n_prompt;
    const char *shown_prompt; /* to be repeated before the answer, or NULL */
    char *text;               /* the answer's so far; after shown_prompt */
    size_t n_text, cap;
    json_t *logprobs;  /* of all tokens, NULL: not wanted; of those not sent yet in a stream */
    size_t characters; /* before the next token: text_offset */
    event *end;
} choice;

typedef struct answer answer;

typedef struct {
    const char *id, *object, *chunk_object; /* "chatcmpl-", ... */
    /* Elements of "choices": the first of a stream, before any text (NULL: none); one of a stream;
     * that of a whole answer. They steal `logprobs`, which is NULL where there are none. */
    json_t *(*first)(const answer *a, size_t i);
    json_t *(*part)(const answer *a, size_t i, const char *text, json_t *logprobs,
                    const char *finish);
    json_t *(*whole)(const answer *a, size_t i, json_t *logprobs, const char *finish);
    json_t *(*new_logprobs)(void);
    void (*add_logprob)(const answer *a, choice *c, const event *e);
    void (*done)(answer *a); /* when all have ended, before the client knows; may be NULL */
} answer_format;

struct answer {
    server *server;
    request *request;
    const answer_format *format;
    const generation_fields *fields;
    void *user;
    choice *choices;
    size_t n;
    /* answer_run's own */
    char id[48];
    int64_t created;
    double started, last_write;
    bool saw_token, saw_progress;
    size_t cached;
};

/* Answers the request, whatever happens, and frees the choices. */
void answer_run(answer *a);
void answer_drop(answer *a); /* frees the choices alone */

/* Text of a single token, malloc'ed, NUL-terminated; perhaps not UTF-8. */
char *token_text(const linnet_model *model, int32_t token, size_t *n);
/* A JSON text of bytes: what is not UTF-8 becomes U+FFFD. */
json_t *text_json(const char *bytes, size_t n);
json_t *logprob_json(float logprob);
/* Appends; false: no memory. */
bool choice_append(choice *c, const char *text);

#endif
