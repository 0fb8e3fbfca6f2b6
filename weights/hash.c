#include "hash.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie");

static const uint64_t p1 = 0x9E3779B185EBCA87u, p2 = 0xC2B2AE3D27D4EB4Fu, p3 = 0x165667B19E3779F9u,
                      p4 = 0x85EBCA77C2B2AE63u, p5 = 0x27D4EB2F165667C5u;

static uint64_t rotate(uint64_t x, int n) {
    return x << n | x >> (64 - n);
}

static uint64_t word(const uint8_t *p) {
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
}

static uint64_t mix(uint64_t lane, uint64_t w) {
    return rotate(lane + w * p2, 31) * p1;
}

static uint64_t merge(uint64_t h, uint64_t lane) {
    return (h ^ mix(0, lane)) * p1 + p4;
}

void hash64_begin(hash64 *h) {
    *h = (hash64){.lanes = {p1 + p2, p2, 0, 0 - p1}};
}

/* n is a multiple of 32. */
static void stripes(hash64 *h, const uint8_t *p, size_t n) {
    uint64_t a = h->lanes[0], b = h->lanes[1], c = h->lanes[2], d = h->lanes[3];
    for (const uint8_t *end = p + n; p < end; p += 32) {
        a = mix(a, word(p));
        b = mix(b, word(p + 8));
        c = mix(c, word(p + 16));
        d = mix(d, word(p + 24));
    }
    h->lanes[0] = a;
    h->lanes[1] = b;
    h->lanes[2] = c;
    h->lanes[3] = d;
}

void hash64_add(hash64 *h, const void *data, size_t n) {
    const uint8_t *p = data;
    size_t held = h->total % 32, room = 32 - held;
    h->total += n;
    if (!n) return;
    if (held && n >= room) {
        memcpy(h->held + held, p, room);
        stripes(h, h->held, 32);
        p += room;
        n -= room;
        held = 0;
    }
    if (!held) {
        stripes(h, p, n / 32 * 32);
        p += n / 32 * 32;
        n %= 32;
    }
    memcpy(h->held + held, p, n);
}

uint64_t hash64_end(const hash64 *h) {
    const uint64_t *v = h->lanes;
    uint64_t out = p5;
    if (h->total >= 32) {
        out = rotate(v[0], 1) + rotate(v[1], 7) + rotate(v[2], 12) + rotate(v[3], 18);
        for (int i = 0; i < 4; i++)
            out = merge(out, v[i]);
    }
    out += h->total;
    const uint8_t *p = h->held, *end = p + h->total % 32;
    for (; end - p >= 8; p += 8)
        out = rotate(out ^ mix(0, word(p)), 27) * p1 + p4;
    if (end - p >= 4) {
        uint32_t w;
        memcpy(&w, p, 4);
        out = rotate(out ^ w * p1, 23) * p2 + p3;
        p += 4;
    }
    for (; p < end; p++)
        out = rotate(out ^ *p * p5, 11) * p1;
    out = (out ^ out >> 33) * p2;
    out = (out ^ out >> 29) * p3;
    return out ^ out >> 32;
}

uint64_t hash64_of(const void *data, size_t n) {
    hash64 h;
    hash64_begin(&h);
    hash64_add(&h, data, n);
    return hash64_end(&h);
}
