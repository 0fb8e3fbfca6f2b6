/* Which kernels run: the best the CPU has, or the ones asked for. ARM means little-endian AArch64;
 * 32-bit ARM has the generic kernels, and no big-endian machine is supported at all. */
#include "kernels.h"

#include <string.h>
#ifdef __aarch64__
#include <sys/auxv.h>
#endif

static bool cpu_has(const kernels *k) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (k == &kernels_avx512_bf16)
        return __builtin_cpu_supports("avx512bf16") && cpu_has(&kernels_avx512);
    if (k == &kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    if (k == &kernels_avx2) /* F16C came before AVX2; clang's builtin does not know its name */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    if (k == &kernels_neon_dot) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    if (k == &kernels_neon) return true; /* part of AArch64 */
#endif
    return k == &kernels_generic;
}

linnet_status kernels_select(const char *isa, const kernels **out, linnet_error *err) {
    static const kernels *const all[] = {
#ifdef __x86_64__
        &kernels_avx512_bf16, &kernels_avx512, &kernels_avx2,
#elif defined(__aarch64__)
        &kernels_neon_dot, &kernels_neon,
#endif
        &kernels_generic};
    static const char *const names[] = {"generic", "avx2", "avx512", "neon"};
    bool any = !isa || !strcmp(isa, "auto"), known = any;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if ((any || !strcmp(isa, all[i]->name)) && cpu_has(all[i])) {
            *out = all[i];
            return LINNET_OK;
        }
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        known = known || !strcmp(isa, names[i]);
    if (known)
        return fail(err, LINNET_ERR_UNSUPPORTED, "isa %s: this CPU or build does not have it", isa);
    return fail(err, LINNET_ERR_ARGUMENT, "isa '%s': expected auto, generic, avx2, avx512 or neon",
                isa);
}
