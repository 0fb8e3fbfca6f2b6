/* Opening a backend by its name. CUDA lives in a library of its own, beside the program or this
 * library, or where the system's loader looks; a program may also have it linked in. */
#include "backend.h"

#include "common.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define CUDA_LIBRARY "liblinnet_cuda.so"

/* The library in the folder that this code was loaded from, or in ../lib, or by its plain name; why
 * gets what the loader said of the last. It stays open. */
static void *load_library(char *why, size_t size) {
    char path[4096];
    Dl_info here;
    void *library = NULL;
    const char *slash;
    if (dladdr((void *)(uintptr_t)backend_open, &here) && here.dli_fname &&
        (slash = strrchr(here.dli_fname, '/')))
        for (int i = 0; i < 2 && !library; i++) {
            snprintf(path, sizeof path, "%.*s/%s" CUDA_LIBRARY, (int)(slash - here.dli_fname),
                     here.dli_fname, i ? "../lib/" : "");
            library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
    if (!library) library = dlopen(CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) snprintf(why, size, "%s", dlerror());
    return library;
}

static linnet_status open_cuda(int index, backend **out, linnet_error *err) {
    char why[512] = "";
    backend_open_fn open;
    if (linnet_cuda_open_1) return linnet_cuda_open_1(index, out, err);
    void *symbol, *library = load_library(why, sizeof why);
    if (!library) return fail(err, LINNET_ERR_UNSUPPORTED, "no CUDA backend: %s", why);
    if (!(symbol = dlsym(library, "linnet_cuda_open_1")))
        return fail(err, LINNET_ERR_UNSUPPORTED,
                    "no CUDA backend: " CUDA_LIBRARY " is of another version of linnet");
    memcpy(&open, &symbol, sizeof open);
    return open(index, out, err);
}

bool backend_has_cuda(void) {
    char why[512];
    return linnet_cuda_open_1 || load_library(why, sizeof why);
}

linnet_status backend_open(const char *name, backend **out, linnet_error *err) {
    *out = NULL;
    if (!strcmp(name, "cpu")) {
        *out = &backend_cpu;
        return LINNET_OK;
    }
    char *end = "";
    long index = 0;
    bool number = !strncmp(name, "cuda:", 5) && name[5] >= '0' && name[5] <= '9';
    if (number) index = strtol(name + 5, &end, 10);
    if ((strcmp(name, "cuda") && !number) || *end || index > 1023)
        return fail(err, LINNET_ERR_ARGUMENT, "backend '%s': expected auto, cpu, cuda or cuda:N",
                    name);
    return open_cuda((int)index, out, err);
}
