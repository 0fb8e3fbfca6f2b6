/* Packed matrices on the GPU: their layout, and its numbers as floats in registers.
 *
 * A panel is 16 rows (the last one of a matrix padded with zeros) in planes. The first plane has
 * the quants row after row, a row in units of 16 bytes: a lane of a warp loads one, so a warp reads
 * 512 bytes in a row. What else a row's unit needs lies in planes of its own, in the same order, so
 * that it is read in a row too. The size is the file's, but for columns of float types padded to a
 * unit:
 *
 *     type        unit        quants, 16 bytes    further planes
 *     f32         4 columns   as in the file
 *     f16, bf16   8           as in the file
 *     q8_0        16          bytes, plus 128     scales
 *     q4_0, q4_1  32          nibbles             scales
 *     q5_0, q5_1  32          nibbles             high bits u32, scales
 *     q4_K        32          nibbles             heads
 *     q5_K        32          nibbles             heads, high bits u32
 *     q6_K        32          nibbles             high bits u64, scales, heads
 *
 *     nibbles     bits 4k ... 4k+3 are column k
 *     scales      per 32 columns: d f16 (q4_1, q5_1: d, m f16; q6_K: two int8)
 *     heads       per 256 columns: the file's 16 bytes of d, dmin and 6-bit scales; q6_K: d f16
 *
 * A matrix of a float type is thus row-major as a whole.
 *
 * All quantized numbers are d u + m, u without a sign. u becomes a float without a conversion: as
 * the low bits of a float of a high exponent, v = 2^(23-s) + u where u sits s bits up; fmaf(v, d,
 * -2^(23-s) d) is d u, exactly (u and d have few bits). With m added last this is dequantize_row to
 * the bit. Nibbles of a step (4 columns) sit 0, 4, 8, 12 bits up in half a word. The high bits are
 * placed so that one rotation per step brings each of them above its nibble. */
#ifndef CUDA_WEIGHTS_H
#define CUDA_WEIGHTS_H

#include "../kernels_cpu/kernels.h"
#include "device.h"

/* Columns of a unit; bytes per unit of 32 columns, per block of 32, per 256 columns. */
typedef struct {
    unsigned unit, high, scale, head;
} packing;

static constexpr packing packing_of(dtype type) {
    switch (type) {
    case DTYPE_F32:
        return {4, 0, 0, 0};
    case DTYPE_F16:
    case DTYPE_BF16:
        return {8, 0, 0, 0};
    case DTYPE_Q8_0:
        return {16, 0, 2, 0};
    case DTYPE_Q4_0:
        return {32, 0, 2, 0};
    case DTYPE_Q4_1:
        return {32, 0, 4, 0};
    case DTYPE_Q5_0:
        return {32, 4, 2, 0};
    case DTYPE_Q5_1:
        return {32, 4, 4, 0};
    case DTYPE_Q4_K:
        return {32, 0, 0, 16};
    case DTYPE_Q5_K:
        return {32, 4, 0, 16};
    case DTYPE_Q6_K:
        return {32, 8, 2, 2};
    }
    return {1, 0, 0, 0};
}

/* The same as constants of kernels. */
template <dtype T> struct packed_as {
    enum : unsigned {
        unit = packing_of(T).unit,
        high = packing_of(T).high,
        scale = packing_of(T).scale,
        head = packing_of(T).head,
        is_float = unit <= 8,                        /* else d u + m */
        steps = unit / 4,                            /* of 4 columns */
        scale_steps = T == DTYPE_Q6_K ? 4 : unit / 4 /* that share a scale */
    };
};

/* Where the planes of a panel begin, for rows of so many units. Heads of 16 bytes come second, of 2
 * bytes last: everything is aligned to its size. */
typedef struct {
    unsigned head, high, scale, bytes;
} packed_planes;

#define PLANES_OF                                                                                  \
    {                                                                                              \
        unsigned quants = PANEL * 16 * units, at_high = quants;                                    \
        if (k.head == 16) at_high += PANEL * (units * k.unit / 256 * 16);                          \
        unsigned at_scale = at_high + PANEL * units * k.high;                                      \
        unsigned end = at_scale + PANEL * (units * k.unit / BLOCK * k.scale);                      \
        unsigned at_head = k.head == 16 ? quants : end;                                            \
        if (k.head == 2) end += PANEL * (units * k.unit / 256 * 2);                                \
        return {at_head, at_high, at_scale, end};                                                  \
    }
static inline packed_planes planes_of(packing k, unsigned units) PLANES_OF DEVICE packed_planes
    device_planes_of(packing k, unsigned units) PLANES_OF
#undef PLANES_OF

    /* Units of a row. */
    static inline unsigned units_of(dtype type, size_t cols) {
    packing k = packing_of(type);
    return (unsigned)((cols + k.unit - 1) / k.unit);
}

/* Calls CALL(type) with the dtype as a constant. */
#define FOR_DTYPE(type, CALL)                                                                      \
    switch (type) {                                                                                \
    case DTYPE_F32:                                                                                \
        CALL(DTYPE_F32);                                                                           \
        break;                                                                                     \
    case DTYPE_F16:                                                                                \
        CALL(DTYPE_F16);                                                                           \
        break;                                                                                     \
    case DTYPE_BF16:                                                                               \
        CALL(DTYPE_BF16);                                                                          \
        break;                                                                                     \
    case DTYPE_Q8_0:                                                                               \
        CALL(DTYPE_Q8_0);                                                                          \
        break;                                                                                     \
    case DTYPE_Q4_0:                                                                               \
        CALL(DTYPE_Q4_0);                                                                          \
        break;                                                                                     \
    case DTYPE_Q4_1:                                                                               \
        CALL(DTYPE_Q4_1);                                                                          \
        break;                                                                                     \
    case DTYPE_Q5_0:                                                                               \
        CALL(DTYPE_Q5_0);                                                                          \
        break;                                                                                     \
    case DTYPE_Q5_1:                                                                               \
        CALL(DTYPE_Q5_1);                                                                          \
        break;                                                                                     \
    case DTYPE_Q4_K:                                                                               \
        CALL(DTYPE_Q4_K);                                                                          \
        break;                                                                                     \
    case DTYPE_Q5_K:                                                                               \
        CALL(DTYPE_Q5_K);                                                                          \
        break;                                                                                     \
    case DTYPE_Q6_K:                                                                               \
        CALL(DTYPE_Q6_K);                                                                          \
        break;                                                                                     \
    }

/* A unit as it was loaded; what a type does not have is never touched. */
typedef struct {
    uint4 quants, head;
    uint2 high;
    unsigned scale; /* of q6_K: d in the upper half */
} packed_unit;

/* Unit u of row r (0 ... 15) of a panel with `units` per row. */
template <dtype T>
DEVICE packed_unit load_unit(const uint8_t *panel, unsigned r, unsigned u, unsigned units) {
    typedef packed_as<T> k;
    packed_planes at = device_planes_of({k::unit, k::high, k::scale, k::head}, units);
    packed_unit x;
    x.quants = load16(panel + (size_t)(r * units + u) * 16);
    if constexpr (k::high == 4)
        x.high.x = *(const uint32_t *)(panel + at.high + (r * units + u) * 4);
    if constexpr (k::high == 8) x.high = *(const uint2 *)(panel + at.high + (r * units + u) * 8);
    if constexpr (k::scale == 2)
        x.scale = *(const uint16_t *)(panel + at.scale +
                                      (r * (units * k::unit / BLOCK) + u * k::unit / BLOCK) * 2);
    if constexpr (k::scale == 4)
        x.scale = *(const uint32_t *)(panel + at.scale + (r * units + u) * 4);
    if constexpr (k::head == 16) x.head = load16(panel + at.head + (r * (units / 8) + u / 8) * 16);
    if constexpr (k::head == 2)
        x.scale |= (unsigned)*(const uint16_t *)(panel + at.head + (r * (units / 8) + u / 8) * 2)
                   << 16;
    return x;
}

/* What turns u into d u: b[j] = -2^(23-4j) d; and m. */
typedef struct {
    float d, b[4], m;
} unit_scale;

/* Byte i of a word that is chosen by lane. */
DEVICE unsigned byte_of(unsigned word, unsigned i) {
    return word >> 8 * i & 255;
}

/* The scale of steps [step, step + scale_steps) of unit u. */
template <dtype T> DEVICE unit_scale scale_of(const packed_unit &x, unsigned u, int step) {
    unit_scale s;
    if constexpr (T == DTYPE_Q4_K || T == DTYPE_Q5_K) {
        /* weights/dtype.c, unpack_scales */
        unsigned j = u % 8, i = j % 4;
        unsigned a = byte_of(x.head.y, i), b = byte_of(x.head.z, i), c = byte_of(x.head.w, i);
        unsigned scale = j < 4 ? a & 63 : (c & 15) | a >> 6 << 4;
        unsigned min = j < 4 ? b & 63 : c >> 4 | b >> 6 << 4;
        s.d = f16_to_float((uint16_t)x.head.x) * __uint2float_rn(scale);
        s.m = -(f16_to_float((uint16_t)(x.head.x >> 16)) * __uint2float_rn(min));
    } else if constexpr (T == DTYPE_Q6_K) {
        int scale = (int8_t)byte_of(x.scale, (unsigned)step / 4);
        s.d = f16_to_float((uint16_t)(x.scale >> 16)) * __int2float_rn(scale);
        s.m = -32 * s.d;
    } else {
        s.d = f16_to_float((uint16_t)x.scale);
        if constexpr (T == DTYPE_Q4_1 || T == DTYPE_Q5_1)
            s.m = f16_to_float((uint16_t)(x.scale >> 16));
        else
            s.m = s.d * (T == DTYPE_Q8_0 ? -128.0f : T == DTYPE_Q4_0 ? -8.0f : -16.0f);
    }
    for (int j = 0; j < 4; j++)
        s.b[j] = s.d * -(float)(1 << (23 - 4 * j));
    return s;
}

DEVICE unsigned word_of(const uint4 &q, int i) {
    return i == 0 ? q.x : i == 1 ? q.y : i == 2 ? q.z : q.w;
}

DEVICE unsigned rotated_right(unsigned x, int by) {
    return by ? x >> by | x << (32 - by) : x;
}

/* d u of the four columns of a step, a constant; of float types, the numbers themselves. */
template <dtype T>
DEVICE void step_values(const packed_unit &x, const unit_scale &s, int step, float (&w)[4]) {
    if constexpr (T == DTYPE_F32) {
        for (int j = 0; j < 4; j++)
            w[j] = __uint_as_float(word_of(x.quants, j));
    } else if constexpr (T == DTYPE_F16 || T == DTYPE_BF16) {
        for (int j = 0; j < 4; j++) {
            unsigned pair = word_of(x.quants, 2 * step + j / 2);
            if constexpr (T == DTYPE_BF16)
                w[j] = __uint_as_float(j % 2 ? pair & 0xffff0000 : pair << 16);
            else
                w[j] = f16_to_float((uint16_t)(j % 2 ? pair >> 16 : pair));
        }
    } else if constexpr (T == DTYPE_Q8_0) {
        unsigned q = word_of(x.quants, step);
        for (int j = 0; j < 4; j++)
            w[j] = fmaf(__uint_as_float(__byte_perm(q, 0x4b000000, 0x7650 + (unsigned)j)), s.d,
                        s.b[0]);
    } else {
        unsigned q = word_of(x.quants, step / 2) >> step % 2 * 16, high = 0;
        if constexpr (packed_as<T>::high == 4)
            high = rotated_right(x.high.x, step % 4 + step / 4 * 16);
        if constexpr (packed_as<T>::high == 8)
            high = rotated_right(step < 4 ? x.high.x : x.high.y, step % 2 * 2 + step % 4 / 2 * 16);
        for (int j = 0; j < 4; j++) {
            unsigned v = (q & 15u << 4 * j) | (150u - 4 * j) << 23;
            if constexpr (packed_as<T>::high == 4) v |= high & 16u << 4 * j;
            if constexpr (packed_as<T>::high == 8) v |= high & 48u << 4 * j;
            w[j] = fmaf(__uint_as_float(v), s.d, s.b[j]);
        }
    }
}

/* All numbers of a unit, as dequantize_row has them. */
template <dtype T>
DEVICE void unit_values(const packed_unit &x, unsigned u, float (&w)[packed_as<T>::unit]) {
    unit_scale s;
    UNROLL
    for (int step = 0; step < (int)packed_as<T>::steps; step++) {
        if constexpr (!packed_as<T>::is_float)
            if (step % (int)packed_as<T>::scale_steps == 0) s = scale_of<T>(x, u, step);
        float v[4];
        step_values<T>(x, s, step, v);
        for (int j = 0; j < 4; j++)
            w[4 * step + j] = packed_as<T>::is_float ? v[j] : v[j] + s.m;
    }
}

#endif
