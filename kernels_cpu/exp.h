/* The exponential that every kernel uses, so that all agree to the bit. */
#ifndef EXP_H
#define EXP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* exp(x) to within 1 ulp or so: x = n ln 2 + r, |r| <= ln(2)/2, Taylor to degree 7 (its remainder
 * is below half an ulp), then n goes into the exponent. Below -87 it is 0, above 88 it stays at
 * e^88; NaN stays NaN. The vector files do the same steps. */
static inline float exp_f32(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float clamped = x < -87.0f ? -87.0f : x;
    clamped = clamped > 88.0f ? 88.0f : clamped;
    float shifted = fmaf(clamped, 1.44269504f, magic);
    float n = shifted - magic;
    float r = fmaf(n, -0.693145752f, clamped); /* ln 2 in two parts */
    r = fmaf(n, -1.42860677e-6f, r);
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    int32_t bits, exponent;
    memcpy(&bits, &p, 4);
    memcpy(&exponent, &shifted, 4);
    bits = (int32_t)((uint32_t)bits + ((uint32_t)exponent << 23));
    memcpy(&p, &bits, 4);
    return x < -87.0f ? 0.0f : p;
}

#endif
