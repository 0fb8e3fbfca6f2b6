/* The only place with inline PTX: tensor cores and asynchronous copies (sm_80 on). Without nvcc,
 * tests/emulation/ptx_emulated.h does the same with the same registers.
 * All 32 lanes of a warp call each of mma_* and ldmatrix_* together. With lane = 4 g + t, g = 0 ...
 * 7, t = 0 ... 3, a lane holds (two 16-bit values of a register: the first in the low half)
 *   mma_bf16, mma_f16: d[16][8] += a[16][16] b[16][8], of 16-bit a and b
 *     a[0] = a[g][2t, 2t+1]     a[1] = a[g+8][2t, 2t+1]
 *     a[2] = a[g][2t+8, 2t+9]   a[3] = a[g+8][2t+8, 2t+9]
 *     b[0] = b[2t, 2t+1][g]     b[1] = b[2t+8, 2t+9][g]
 *     d[0], d[1] = d[g][2t, 2t+1]   d[2], d[3] = d[g+8][2t, 2t+1]
 *   mma_tf32: d[16][8] += a[16][8] b[8][8], of floats as bits; their low 13 bits are ignored, so
 *   round with to_tf32 first
 *     a[0] = a[g][t]   a[1] = a[g+8][t]   a[2] = a[g][t+4]   a[3] = a[g+8][t+4]
 *     b[0] = b[t][g]   b[1] = b[t+4][g]   d as above
 * The order in which a tensor core adds is its own: its sums equal no other to the bit.
 *   ldmatrix_x1, _x2, _x4: 8x8 matrices of 16-bit values from shared memory. Lane 8 i + r gives the
 *   address of row r of matrix i (16 bytes, aligned); the lanes past the last row give any address
 *   that is valid. r[i] = m_i[g][2t, 2t+1]; _trans: r[i] = m_i[2t, 2t+1][g].
 *     a of mma_bf16 from a row-major tile: x4, matrix i at row 8 (i % 2), column 8 (i / 2)
 *     b of mma_bf16 from a tile with rows of k (b[k][n]): x2_trans, matrix i at row 8 i
 *     b of mma_bf16 from a tile with rows of n (b^T): x2, matrix i at column 8 i
 *   cp_async16(shared, global, bytes): starts a copy of 16 bytes; of `bytes` (0 to 16), the rest is
 *   zero. Both addresses are multiples of 16. cp_async_commit closes a group, cp_async_wait<N>
 *   waits until at most N groups of this thread are under way; other threads see the bytes after
 *   a barrier that follows. */
#ifndef PTX_H
#define PTX_H

#include "device.h"

#ifndef __CUDACC__
#include "../tests/emulation/ptx_emulated.h"
#else

#define PTX_MMA16(name, type)                                                                      \
    DEVICE void name(float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) {                 \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                         \
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                       \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                   \
    }
PTX_MMA16(mma_bf16, "bf16")
PTX_MMA16(mma_f16, "f16")

DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* To 10 bits of fraction, to the nearest, ties away from zero. */
DEVICE uint32_t to_tf32(float f) {
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(f));
    return r;
}

DEVICE uint32_t ptx_shared(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

#define PTX_LDMATRIX(suffix, trans)                                                                \
    DEVICE void ldmatrix_x1##suffix(uint32_t(&r)[1], const void *row) {                            \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"               \
                     : "=r"(r[0])                                                                  \
                     : "r"(ptx_shared(row))                                                        \
                     : "memory");                                                                  \
    }                                                                                              \
    DEVICE void ldmatrix_x2##suffix(uint32_t(&r)[2], const void *row) {                            \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0,%1}, [%2];"            \
                     : "=r"(r[0]), "=r"(r[1])                                                      \
                     : "r"(ptx_shared(row))                                                        \
                     : "memory");                                                                  \
    }                                                                                              \
    DEVICE void ldmatrix_x4##suffix(uint32_t(&r)[4], const void *row) {                            \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0,%1,%2,%3}, [%4];"      \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                              \
                     : "r"(ptx_shared(row))                                                        \
                     : "memory");                                                                  \
    }
PTX_LDMATRIX(, "")
PTX_LDMATRIX(_trans, ".trans")

DEVICE void cp_async16(void *shared, const void *global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes)
                 : "memory");
}
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
#endif
