/* ptx.h on fibers: each lane hands its registers to the warp and reads the fragments of all, as the
 * layouts in ptx.h say. A sum over k is made in double and rounded once. */
#ifndef PTX_EMULATED_H
#define PTX_EMULATED_H

struct mma_registers {
    uint32_t a[4], b[2];
};

static inline mma_registers mma_of_lane(const unsigned char *all, unsigned lane) {
    mma_registers r;
    memcpy(&r, all + lane * 32, sizeof r);
    return r;
}

/* `of_register`: values in a 32-bit register; `value` decodes the i-th. */
template <int of_register, class F>
void simt_mma(simt_site site, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              F value) {
    enum { K = 8 * of_register };
    mma_registers mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const unsigned char *all = simt_exchange(site, ~0u, &mine, sizeof mine);
    unsigned g = simt_lane() / 4, t = simt_lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned column = 2 * t + i % 2;
        double sum = 0;
        for (unsigned k = 0; k < K; k++) {
            unsigned owner = k / of_register % 4, half = k / of_register / 4;
            mma_registers row = mma_of_lane(all, 4 * g + owner);
            mma_registers col = mma_of_lane(all, 4 * column + owner);
            sum += (double)value(row.a[2 * half + i / 2], k % of_register) *
                   (double)value(col.b[half], k % of_register);
        }
        d[i] = (float)(d[i] + sum);
    }
}

static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            SIMT_SITE) {
    simt_mma<2>(SIMT_HERE("mma_bf16"), d, a, b,
                [](uint32_t r, unsigned i) { return bf16_to_float((uint16_t)(r >> 16 * i)); });
}

static inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                           SIMT_SITE) {
    simt_mma<2>(SIMT_HERE("mma_f16"), d, a, b,
                [](uint32_t r, unsigned i) { return f16_to_float((uint16_t)(r >> 16 * i)); });
}

static inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            SIMT_SITE) {
    simt_mma<1>(SIMT_HERE("mma_tf32"), d, a, b,
                [](uint32_t r, unsigned) { return __uint_as_float(r & 0xffffe000); });
}

DEVICE uint32_t to_tf32(float f) {
    if (f != f) return 0x7fffffff;
    uint32_t u = __float_as_uint(f);
    return fabsf(f) == INFINITY ? u : (u + 0x1000) & 0xffffe000;
}

template <int N>
void simt_ldmatrix(simt_site site, uint32_t (&r)[N], const void *row, bool transposed) {
    uint16_t mine[8] = {0};
    if (simt_lane() < 8 * N) {
        simt_aligned(row, 16, "ldmatrix");
        memcpy(mine, row, sizeof mine);
    }
    const unsigned char *all = simt_exchange(site, ~0u, mine, sizeof mine);
    unsigned g = simt_lane() / 4, t = simt_lane() % 4;
    for (unsigned i = 0; i < N; i++) {
        uint16_t pair[2];
        for (unsigned j = 0; j < 2; j++) {
            unsigned y = transposed ? 2 * t + j : g, x = transposed ? g : 2 * t + j;
            memcpy(&pair[j], all + (8 * i + y) * 32 + 2 * x, 2);
        }
        r[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
}

#define SIMT_LDMATRIX(name, n, transposed)                                                         \
    static inline void name(uint32_t(&r)[n], const void *row, SIMT_SITE) {                         \
        simt_ldmatrix<n>(SIMT_HERE(#name), r, row, transposed);                                    \
    }
SIMT_LDMATRIX(ldmatrix_x1, 1, false)
SIMT_LDMATRIX(ldmatrix_x2, 2, false)
SIMT_LDMATRIX(ldmatrix_x4, 4, false)
SIMT_LDMATRIX(ldmatrix_x1_trans, 1, true)
SIMT_LDMATRIX(ldmatrix_x2_trans, 2, true)
SIMT_LDMATRIX(ldmatrix_x4_trans, 4, true)

static inline void cp_async16(void *shared, const void *global, int bytes = 16, SIMT_SITE) {
    if (bytes < 0 || bytes > 16) simt_fail("cp_async16 of %d bytes (%s:%d)", bytes, file, line);
    simt_copy_async(shared, global, (size_t)bytes, SIMT_HERE("cp_async16"));
}
DEVICE void cp_async_commit() {
    simt_copy_commit();
}
template <int N> void cp_async_wait() {
    simt_copy_wait(N);
}

#endif
