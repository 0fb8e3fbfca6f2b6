/* Sampling flags, and text streamed to stdout as it is generated: what `run` and `chat` share. */
#ifndef CLI_GENERATE_H
#define CLI_GENERATE_H

#include "engine.h"

typedef struct {
    linnet_generate_options options;
    int limit;                        /* -n; -1: none */
    text_list stop_texts, bias_texts; /* as given */
    linnet_logit_bias *bias;
} generation;

/* Fills *g with the defaults and adds -n, --stop, --seed, --temp and their kind. */
void generation_flags(flag_table *f, generation *g);
/* After parsing: reads the --logit-bias values. */
int generation_prepare(const engine *e, generation *g);
void generation_free(generation *g);

/* Generates, streams to stdout with a newline at the end, appends the text to *copy unless NULL,
 * and counts time and tokens in *e. Interruption is not an error: result->end is
 * LINNET_END_CANCELLED. */
int generate(engine *e, linnet_session *session, const generation *g, text_buffer *copy,
             linnet_generated *result);

#endif
