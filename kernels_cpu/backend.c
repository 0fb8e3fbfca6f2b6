/* The CPU as a backend: ordinary memory, and the forward pass of forward.c. */
#include "../model.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 1 << 21 };

/* Large blocks in huge pages, of which only what is written to is resident: reading all keys and
 * values of a deep session would miss the TLB every few hundred nanoseconds otherwise. */
static void *map_huge(size_t bytes) {
    size_t size = round_up(bytes, HUGE_PAGE) + HUGE_PAGE;
    uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)map % HUGE_PAGE) % HUGE_PAGE;
    size_t after = HUGE_PAGE - before;
    if (before) munmap(map, before);
    if (after) munmap(map + size - after, after);
    madvise(map + before, size - HUGE_PAGE, MADV_HUGEPAGE);
    return map + before;
}

static linnet_status host_alloc(backend *b, size_t bytes, void **out, linnet_error *err) {
    (void)b;
    if (bytes >= HUGE_PAGE)
        *out = map_huge(bytes);
    else if ((*out = aligned_alloc(64, round_up(bytes, 64))))
        memset(*out, 0, bytes);
    return *out ? LINNET_OK : fail(err, LINNET_ERR_MEMORY, "no memory for %zu bytes", bytes);
}

static void host_free(backend *b, void *memory, size_t bytes) {
    (void)b;
    if (memory && bytes >= HUGE_PAGE)
        munmap(memory, round_up(bytes, HUGE_PAGE));
    else
        free(memory);
}

static linnet_status host_zero(backend *b, void *memory, size_t bytes, linnet_error *err) {
    (void)b, (void)err;
    memset(memory, 0, bytes);
    return LINNET_OK;
}

static linnet_status host_copy(backend *b, void *to, const void *from, size_t bytes,
                               linnet_error *err) {
    (void)b, (void)err;
    memcpy(to, from, bytes);
    return LINNET_OK;
}

static linnet_status fits(backend *b, const linnet_model *m, uint64_t weight_bytes,
                          linnet_error *err) {
    (void)b, (void)m, (void)weight_bytes, (void)err;
    return LINNET_OK; /* the allocation says */
}

static linnet_status prepare(backend *b, linnet_model *m, linnet_error *err) {
    (void)b, (void)m, (void)err;
    return LINNET_OK;
}

static void forget(backend *b, linnet_model *m) {
    (void)b;
    scratch_free(m->scratch);
}

static void *plain_alloc(backend *b, size_t bytes) {
    (void)b;
    return malloc(bytes);
}

static void plain_free(backend *b, void *memory) {
    (void)b;
    free(memory);
}

static uint64_t no_device(backend *b) {
    (void)b;
    return 0;
}

static void close_nothing(backend *b) {
    (void)b;
}

static const backend_ops cpu_ops = {
    .host_memory = true,
    .panel_bytes = packed_panel_bytes,
    .pack_panel = pack_panel,
    .fits = fits,
    .prepare = prepare,
    .forget = forget,
    .alloc = host_alloc,
    .free = host_free,
    .zero = host_zero,
    .read = host_copy,
    .write = host_copy,
    .copy = host_copy,
    .host_alloc = plain_alloc,
    .host_free = plain_free,
    .forward = forward_cpu,
    .activation_bytes = forward_activation_bytes,
    .peak_bytes = no_device,
    .close = close_nothing,
};

backend backend_cpu = {&cpu_ops, "cpu"};
