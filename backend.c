/* Opening a backend by its name. CUDA lives in a library of its own, beside the program or this
 * library, or where the system's loader looks; a program may also have it linked in. */
#include "backend.h"

#include "common.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CUDA_LIBRARY "liblinnet_cuda.so"

/* What a program has linked in. Hidden: nothing that loads a shared library of this code can take
 * its place, and nothing of it is in that library's table of symbols. */
__attribute__((weak, visibility("hidden"))) linnet_status
linnet_cuda_open_1(int index, backend **out, linnet_error *err);

/* The file that this code was loaded from. The loader knows a library by its path, but the program
 * only as it was called: often a plain name, or a link to elsewhere. */
static bool own_path(char *path, size_t size) {
    Dl_info here;
    struct link_map *map = NULL;
    if (!dladdr1((void *)(uintptr_t)backend_open, &here, (void **)&map, RTLD_DL_LINKMAP))
        return false;
    if (map && map->l_name[0]) {
        int n = snprintf(path, size, "%s", map->l_name);
        return n > 0 && (size_t)n < size;
    }
    ssize_t n = readlink("/proc/self/exe", path, size);
    if (n <= 0 || (size_t)n >= size) return false;
    path[n] = '\0';
    return true;
}

/* The library in the folder that this code was loaded from, or in ../lib, or by its plain name; why
 * gets what the loader said of the last. It stays open. */
static void *load_library(char *why, size_t size) {
    char here[4096], path[sizeof here + 64];
    void *library = NULL;
    char *slash;
    if (own_path(here, sizeof here) && (slash = strrchr(here, '/')))
        for (int i = 0; i < 2 && !library; i++) {
            *slash = '\0';
            snprintf(path, sizeof path, "%s/%s" CUDA_LIBRARY, here, i ? "../lib/" : "");
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
