/* Which kernels run: the best the CPU has, or the ones asked for. */
#include "kernels.h"

#include <string.h>

static bool cpu_has(const kernels *k) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (k == &kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    if (k == &kernels_avx2) /* F16C came before AVX2; clang's builtin does not know its name */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return k == &kernels_generic;
}

linnet_status kernels_select(const char *isa, const kernels **out, linnet_error *err) {
    static const kernels *const all[] = {
#ifdef __x86_64__
        &kernels_avx512, &kernels_avx2,
#endif
        &kernels_generic};
    bool any = !isa || !strcmp(isa, "auto"), known = any;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        bool named = !any && !strcmp(isa, all[i]->name);
        known = known || named;
        if ((any || named) && cpu_has(all[i])) {
            *out = all[i];
            return LINNET_OK;
        }
    }
    if (known || !strcmp(isa, "neon"))
        return fail(err, LINNET_ERR_UNSUPPORTED, "isa %s: this CPU or build does not have it", isa);
    return fail(err, LINNET_ERR_ARGUMENT, "isa '%s': expected auto, generic, avx2, avx512 or neon",
                isa);
}
