/* Random numbers that depend on what they are for and on nothing else: a stream is chosen by words
 * (seed, task, index, ...), and its i-th number can be asked for alone. docs/mqar.md defines them.
 */
#ifndef CLI_RANDOM_H
#define CLI_RANDOM_H

#include <stddef.h>
#include <stdint.h>

#define RANDOM_GAMMA 0x9e3779b97f4a7c15u

/* The mixing of splitmix64 (Steele, Lea, Flood 2014), and one step of it. */
uint64_t random_mix(uint64_t z);
uint64_t random_step(uint64_t z);

typedef struct {
    uint64_t state, i; /* i: numbers taken by random_next */
} random_stream;

random_stream random_for(const uint64_t *words, size_t n);
/* The i-th integer below n of the stream. */
uint64_t random_below(const random_stream *r, uint64_t i, uint64_t n);
/* The next one. */
uint64_t random_next(random_stream *r, uint64_t n);

#endif
