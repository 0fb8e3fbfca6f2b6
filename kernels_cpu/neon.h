/* The primitives of vector.h in 64-bit ARM's NEON: 4 lanes. neon.c and neon_dot.c differ in how
 * they multiply whole numbers. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

#define LANES 4
#define QUERIES 2
#define STRIPS 1
#define FLOAT_COLUMNS 4
#define NAME "neon"
#define V_SET1F(x) ((vf)vdupq_n_f32(x))
#define V_SET1I(x) ((vi)vdupq_n_s32(x))
#define V_FMA(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define V_MAX(a, b) select_f((a) > (b), a, b)
#define V_ABS(a) ((vf)vabsq_f32((float32x4_t)(a)))
#define V_F16(p) ((vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))))
#define V_STORE_F16(p, v) vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)(v))))
#define V_I8(p) ((vi)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(four_bytes(p))))))
#define V_U8(p) ((vi)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(four_bytes(p))))))
#define V_MAXI(a, b) ((vi)vmaxq_s32((int32x4_t)(a), (int32x4_t)(b)))
#define V_TOP(a) vmaxvq_s32((int32x4_t)(a))
#define V_TOTAL(a) vaddvq_s32((int32x4_t)(a))
#define V_ROUND(a) ((vi)vcvtnq_s32_f32((float32x4_t)(a)))

static inline uint32x2_t four_bytes(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return vdup_n_u32(v);
}
