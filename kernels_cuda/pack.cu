/* Packing of panels on the host, as weights.h lays them out. */
#include "pass.h"
#include "weights.h"

#include <string.h>

size_t cuda_panel_bytes(dtype type, size_t cols) {
    return planes_of(packing_of(type), units_of(type, cols)).bytes;
}

/* Where the high bits of column 0 ... 31 begin in a unit's high bits, as step_values rotates them.
 */
static int high_place(int column, bool two) {
    int step = column / 4, j = column % 4;
    if (!two) return (4 * j + 4 + step % 4 + step / 4 * 16) % 32;
    return (4 * j + 4 + step % 2 * 2 + step % 4 / 2 * 16) % 32 + step / 4 * 32;
}

/* 32 numbers without sign, 0 ... 63, as a unit's quants and high bits. */
static void put_numbers(const uint8_t u[32], uint8_t *quants, uint8_t *high, size_t high_bytes) {
    uint64_t bits = 0;
    for (int k = 0; k < 32; k += 2)
        quants[k / 2] = (uint8_t)((u[k] & 15) | (u[k + 1] & 15) << 4);
    for (int k = 0; k < 32; k++) {
        int at = high_place(k, high_bytes == 8);
        bits |= (uint64_t)(u[k] >> 4 & 1) << at;
        if (high_bytes == 8) bits |= (uint64_t)(u[k] >> 5 & 1) << (at + 1);
    }
    memcpy(high, &bits, high_bytes);
}

/* A unit of a K type (`group` of 32 in its block of 256) or of q4_0 and its kind. */
static void numbers_of(dtype type, const uint8_t *b, int group, uint8_t u[32]) {
    uint32_t high = 0;
    const uint8_t *q = b + dtype_get(type)->block_bytes - 16;
    switch (type) {
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
        memcpy(&high, q - 4, 4);
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        q = b + (type == DTYPE_Q5_K ? 48 : 16) + group / 2 * 32;
        for (int i = 0; i < 32; i++)
            u[i] = (uint8_t)((q[i] >> group % 2 * 4 & 15) |
                             (type == DTYPE_Q5_K ? b[16 + i] >> group & 1 : 0) << 4);
        return;
    case DTYPE_Q6_K:
        q = b + group / 4 * 64 + group % 2 * 32;
        for (int i = 0; i < 32; i++)
            u[i] = (uint8_t)((q[i] >> group % 4 / 2 * 4 & 15) |
                             (b[128 + group / 4 * 32 + i] >> group % 4 * 2 & 3) << 4);
        return;
    default:
        break;
    }
    for (int i = 0; i < 16; i++) {
        u[i] = (uint8_t)((q[i] & 15) | (high >> i & 1) << 4);
        u[i + 16] = (uint8_t)(q[i] >> 4 | (high >> (i + 16) & 1) << 4);
    }
}

static void pack_row(dtype type, const uint8_t *src, size_t r, size_t cols, uint8_t *panel) {
    packing k = packing_of(type);
    unsigned units = units_of(type, cols);
    packed_planes at = planes_of(k, units);
    uint8_t *quants = panel + r * units * 16;
    if (k.unit <= 8) {
        memcpy(quants, src, dtype_row_bytes(type, cols));
        return;
    }
    size_t supers = units * k.unit / 256, blocks = units * k.unit / BLOCK;
    uint8_t *high = panel + at.high + r * units * k.high;
    uint8_t *scale = panel + at.scale + r * blocks * k.scale;
    uint8_t *head = panel + at.head + r * supers * k.head;
    const dtype_info *info = dtype_get(type);
    for (size_t b = 0; b < cols / info->block; b++, src += info->block_bytes) {
        if (type == DTYPE_Q8_0) {
            for (int i = 0; i < 32; i++)
                quants[b * 32 + i] = src[2 + i] ^ 0x80;
        } else {
            size_t groups = info->block / BLOCK;
            for (size_t g = 0; g < groups; g++) {
                size_t u = b * groups + g;
                uint8_t numbers[32];
                numbers_of(type, src, (int)g, numbers);
                put_numbers(numbers, quants + u * 16, high + u * k.high, k.high);
            }
        }
        if (type == DTYPE_Q6_K) {
            memcpy(scale + b * 16, src + 192, 16);
            memcpy(head + b * 2, src + 208, 2);
        } else if (k.head) {
            memcpy(head + b * 16, src, 16);
        } else {
            memcpy(scale + b * k.scale, src, k.scale);
        }
    }
}

void cuda_pack_panel(dtype type, const void *src, size_t stride, size_t rows, size_t cols,
                     void *panel) {
    memset(panel, 0, cuda_panel_bytes(type, cols));
    for (size_t r = 0; r < rows; r++)
        pack_row(type, (const uint8_t *)src + r * stride, r, cols, (uint8_t *)panel);
}
