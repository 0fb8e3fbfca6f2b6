#include "random.h"

uint64_t random_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t random_step(uint64_t z) {
    return random_mix(z + RANDOM_GAMMA);
}

random_stream random_for(const uint64_t *words, size_t n) {
    random_stream r = {0};
    for (size_t i = 0; i < n; i++)
        r.state = random_step(r.state ^ words[i]);
    return r;
}

uint64_t random_below(const random_stream *r, uint64_t i, uint64_t n) {
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)random_mix(r->state + (i + 1) * RANDOM_GAMMA) * n >> 64);
}

uint64_t random_next(random_stream *r, uint64_t n) {
    return random_below(r, r->i++, n);
}
