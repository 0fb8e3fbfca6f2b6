/* Repacking of GGUF rows into panels of 16 interleaved rows; layouts in kernels.h, block layouts of
 * the source: ggml-common.h. */
#include "kernels.h"

#include <string.h>

/* Bytes before the blocks of 32 of each unit (a block, or 256 columns of a K type), and bytes of
 * each block of 32. */
typedef struct {
    size_t head, body, per_unit;
} packed_layout;

static packed_layout layout_of(dtype type) {
    switch (type) {
    case DTYPE_F32:
        return (packed_layout){0, 2048, 1};
    case DTYPE_F16:
    case DTYPE_BF16:
        return (packed_layout){0, 1024, 1};
    case DTYPE_Q8_0:
        return (packed_layout){32, 512, 1};
    case DTYPE_Q4_0:
        return (packed_layout){32, 256, 1};
    case DTYPE_Q4_1:
        return (packed_layout){64, 256, 1};
    case DTYPE_Q5_0:
        return (packed_layout){32, 320, 1};
    case DTYPE_Q5_1:
        return (packed_layout){64, 320, 1};
    case DTYPE_Q4_K:
        return (packed_layout){64 + 192, 256, 8};
    case DTYPE_Q5_K:
        return (packed_layout){64 + 192, 320, 8};
    case DTYPE_Q6_K:
        return (packed_layout){32 + 256, 384, 8};
    }
    return (packed_layout){0, 0, 1};
}

size_t packed_block_bytes(dtype type) {
    packed_layout l = layout_of(type);
    return l.head + l.body * l.per_unit;
}

size_t packed_panel_bytes(dtype type, size_t cols) {
    packed_layout l = layout_of(type);
    size_t unit = BLOCK * l.per_unit;
    return round_up(cols, unit) / unit * packed_block_bytes(type);
}

static void put_u16(uint8_t *dst, size_t lane, const uint8_t *src) {
    memcpy(dst + 2 * lane, src, 2);
}

static void put_word(uint8_t *words, size_t word, size_t lane, uint32_t v) {
    memcpy(words + (word * PANEL + lane) * 4, &v, 4);
}

/* Columns 8j..8j+7 from the low (shift 0) or high (4) nibbles of 8 bytes. */
static uint32_t nibble_word(const uint8_t *s, int shift) {
    uint64_t v;
    memcpy(&v, s, 8);
    v = v >> shift & 0x0f0f0f0f0f0f0f0fu;
    return (uint32_t)v | (uint32_t)(v >> 32) << 4;
}

/* 32 nibbles of 16 bytes as q4_0 and its kind order them: low halves first, then high halves. */
static void put_nibbles(uint8_t *nibbles, size_t lane, const uint8_t *s) {
    for (int j = 0; j < 4; j++)
        put_word(nibbles, j, lane, nibble_word(s + j % 2 * 8, j / 2 * 4));
}

/* Bit 4g + i of `bits` to bit g of byte i. */
static uint32_t unshuffle(uint32_t bits) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t b = bits >> i & 0x11111111;
        b = (b | b >> 3) & 0x03030303;
        b = (b | b >> 6) & 0x000f000f;
        out |= ((b | b >> 12) & 0xff) << 8 * i;
    }
    return out;
}

/* One block of 32 columns (or 256 of a K type) of one row into its lane of a unit. */
static void pack_unit(dtype type, const uint8_t *s, size_t lane, uint8_t *u) {
    switch (type) {
    case DTYPE_Q8_0:
        put_u16(u, lane, s);
        s += 2;
        for (int j = 0; j < 8; j++, s += 4)
            put_word(u + 32, j, lane,
                     ((uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 |
                      (uint32_t)s[3] << 24) ^
                         0x80808080u);
        break;
    case DTYPE_Q4_0:
        put_u16(u, lane, s);
        put_nibbles(u + 32, lane, s + 2);
        break;
    case DTYPE_Q4_1:
        put_u16(u, lane, s);
        put_u16(u + 32, lane, s + 2);
        put_nibbles(u + 64, lane, s + 4);
        break;
    case DTYPE_Q5_0:
    case DTYPE_Q5_1: {
        size_t head = type == DTYPE_Q5_0 ? 2 : 4;
        uint32_t high;
        memcpy(&high, s + head, 4);
        for (size_t h = 0; h < head / 2; h++)
            put_u16(u + 32 * h, lane, s + 2 * h);
        put_nibbles(u + 16 * head, lane, s + head + 4);
        put_word(u + 16 * head + 256, 0, lane, unshuffle(high));
        break;
    }
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        const uint8_t *qh = s + 16, *qs = s + (type == DTYPE_Q4_K ? 16 : 48);
        size_t body = layout_of(type).body;
        put_u16(u, lane, s);
        put_u16(u + 32, lane, s + 2);
        for (int i = 0; i < 12; i++)
            u[64 + i * PANEL + lane] = s[4 + i];
        for (int b = 0; b < 8; b++) {
            uint8_t *block = u + 256 + b * body;
            for (int j = 0; j < 4; j++)
                put_word(block, j, lane, nibble_word(qs + b / 2 * 32 + 8 * j, b % 2 * 4));
            if (type == DTYPE_Q4_K) continue;
            uint32_t high = 0;
            for (int k = 0; k < 32; k++)
                high |= (uint32_t)(qh[k] >> b & 1) << k;
            put_word(block + 256, 0, lane, unshuffle(high));
        }
        break;
    }
    case DTYPE_Q6_K: {
        const uint8_t *ql = s, *qh = s + 128, *scales = s + 192;
        put_u16(u, lane, s + 208);
        for (int i = 0; i < 16; i++)
            u[32 + i * PANEL + lane] = scales[i];
        for (int b = 0; b < 8; b++) {
            uint8_t *block = u + 288 + b * 384;
            int half = b / 4, quarter = b % 4; /* 128 columns each; 32 of them */
            for (int j = 0; j < 4; j++)
                put_word(block, j, lane,
                         nibble_word(ql + half * 64 + quarter % 2 * 32 + 8 * j, quarter / 2 * 4));
            for (int h = 0; h < 2; h++) {
                uint32_t high = 0;
                for (int i = 0; i < 16; i++)
                    high |= (uint32_t)(qh[half * 32 + 16 * h + i] >> (2 * quarter) & 3)
                            << (i % 4 * 8 + i / 4 * 2);
                put_word(block + 256, h, lane, high);
            }
        }
        break;
    }
    default:
        break;
    }
}

/* Two bf16 numbers; zero, with their sign, where they are below 2^-126. */
static uint32_t flush_pair(uint32_t pair) {
    uint32_t normal = ((pair & 0x7f807f80) + 0x7f807f80) & 0x80008000; /* exponent not 0 */
    return pair & (0x80008000 | (normal - (normal >> 15)));
}

void pack_panel(dtype type, const void *src, size_t stride, size_t rows, size_t cols, void *panel) {
    uint8_t *out = panel;
    bool padded = rows < PANEL || (is_float_type(type) && cols % BLOCK);
    if (padded) memset(out, 0, packed_panel_bytes(type, cols));
    for (size_t r = 0; r < rows; r++) {
        const uint8_t *s = (const uint8_t *)src + r * stride;
        if (type == DTYPE_F32) {
            for (size_t k = 0; k < cols; k++)
                memcpy(out + (k * PANEL + r) * 4, s + 4 * k, 4);
        } else if (type == DTYPE_F16) {
            for (size_t k = 0; k < cols; k++)
                memcpy(out + (k * PANEL + r) * 2, s + 2 * k, 2);
        } else if (type == DTYPE_BF16) {
            for (size_t k = 0; k < cols; k += 2) {
                uint16_t low, high = 0;
                memcpy(&low, s + 2 * k, 2);
                if (k + 1 < cols) memcpy(&high, s + 2 * k + 2, 2);
                uint32_t pair = flush_pair(low | (uint32_t)high << 16);
                memcpy(out + (k / 2 * PANEL + r) * 4, &pair, 4);
            }
        } else {
            const dtype_info *info = dtype_get(type);
            size_t unit = packed_block_bytes(type);
            for (size_t b = 0; b < cols / info->block; b++)
                pack_unit(type, s + b * info->block_bytes, r, out + b * unit);
        }
    }
}

/* ---- Reading single lanes back: embeddings of tied models, and the generic kernels -------------
 */

static float lane_f16(const uint8_t *p, size_t lane) {
    uint16_t h;
    memcpy(&h, p + 2 * lane, 2);
    return f16_to_f32(h);
}

static uint32_t lane_u32(const uint8_t *words, size_t word, size_t lane) {
    uint32_t w;
    memcpy(&w, words + (word * PANEL + lane) * 4, 4);
    return w;
}

static int get_nibble(const uint8_t *nibbles, size_t lane, int k) {
    return lane_u32(nibbles, k / 8, lane) >> (8 * (k % 4) + 4 * (k / 4 % 2)) & 15;
}

static int get_high_bit(const uint8_t *high, size_t lane, int k) {
    return lane_u32(high, 0, lane) >> (8 * (k % 4) + k / 4) & 1;
}

void packed_lane(dtype type, const uint8_t *panel, size_t block, size_t lane, lane_block *out) {
    packed_layout l = layout_of(type);
    const uint8_t *u = panel + block / l.per_unit * packed_block_bytes(type);
    const uint8_t *body = u + l.head + block % l.per_unit * l.body;
    int j = (int)(block % l.per_unit);
    out->d[0] = out->d[1] = 1;
    out->m = 0;
    switch (type) {
    case DTYPE_F32:
        for (int k = 0; k < 32; k++)
            memcpy(&out->f[k], body + (k * PANEL + lane) * 4, 4);
        return;
    case DTYPE_F16:
        for (int k = 0; k < 32; k++)
            out->f[k] = lane_f16(body + k * 32, lane);
        return;
    case DTYPE_BF16:
        for (int k = 0; k < 32; k++) {
            uint16_t h;
            memcpy(&h, body + (k / 2 * PANEL + lane) * 4 + k % 2 * 2, 2);
            out->f[k] = bf16_to_f32(h);
        }
        return;
    case DTYPE_Q8_0:
        for (int k = 0; k < 32; k++)
            out->q[k] = (int16_t)((int)(lane_u32(body, k / 4, lane) >> (8 * (k % 4)) & 255) - 128);
        break;
    case DTYPE_Q6_K:
        for (int k = 0; k < 32; k++) {
            int high = lane_u32(body + 256, k / 16, lane) >> (8 * (k % 4) + k / 4 % 4 * 2) & 3;
            out->q[k] = (int16_t)((get_nibble(body, lane, k) | high << 4) - 32);
        }
        break;
    case DTYPE_Q4_0:
        for (int k = 0; k < 32; k++)
            out->q[k] = (int16_t)(get_nibble(body, lane, k) - 8);
        break;
    default: {
        bool five = type == DTYPE_Q5_0 || type == DTYPE_Q5_1 || type == DTYPE_Q5_K;
        for (int k = 0; k < 32; k++) {
            int q = get_nibble(body, lane, k);
            if (five) q |= get_high_bit(body + 256, lane, k) << 4;
            out->q[k] = (int16_t)(type == DTYPE_Q5_0 ? q - 16 : q);
        }
    }
    }
    float d = lane_f16(u, lane);
    out->d[0] = out->d[1] = d;
    if (type == DTYPE_Q4_1 || type == DTYPE_Q5_1) out->m = lane_f16(u + 32, lane);
    if (type == DTYPE_Q4_K || type == DTYPE_Q5_K) {
        const uint8_t *s = u + 64 + lane;
        int scale, min;
        if (j < 4) {
            scale = s[j * PANEL] & 63;
            min = s[(j + 4) * PANEL] & 63;
        } else {
            scale = (s[(j + 4) * PANEL] & 15) | (s[(j - 4) * PANEL] >> 6) << 4;
            min = s[(j + 4) * PANEL] >> 4 | (s[j * PANEL] >> 6) << 4;
        }
        out->d[0] = out->d[1] = d * (float)scale;
        out->m = -(lane_f16(u + 32, lane) * (float)min);
    }
    if (type == DTYPE_Q6_K)
        for (int h = 0; h < 2; h++)
            out->d[h] = d * (float)(int8_t)u[32 + (2 * j + h) * PANEL + lane];
}

void packed_row(const matrix *w, size_t r, float *out) {
    const uint8_t *panel = w->data + r / PANEL * w->panel_bytes;
    lane_block lane;
    for (size_t b = 0; b * BLOCK < w->cols; b++) {
        packed_lane(w->type, panel, b, r % PANEL, &lane);
        lane_to_f32(w->type, &lane);
        memcpy(out + b * BLOCK, lane.f, min_size(BLOCK, w->cols - b * BLOCK) * sizeof(float));
    }
}

void lane_to_f32(dtype type, lane_block *lane) {
    if (is_float_type(type)) return;
    for (int k = 0; k < 32; k++)
        lane->f[k] = lane->d[k / 16] * (float)lane->q[k] + lane->m;
}
