/* The CUDA backend's table, and its memory for sessions. The device's functions are called under
 * one lock: sessions are saved and forked from other threads while a forward runs. */
#include "forward.h"

#include <new>

static cuda_backend *of(backend *b) {
    return (cuda_backend *)b;
}

linnet_status cuda_alloc(cuda_backend *b, size_t bytes, void **out, linnet_error *err) {
    device_info now;
    linnet_status s = device_alloc(b->device, bytes, out, err);
    if (s || device_get_info(b->device, &now, NULL)) return s;
    if (b->info.free_bytes > now.free_bytes && b->info.free_bytes - now.free_bytes > b->peak)
        b->peak = b->info.free_bytes - now.free_bytes;
    return LINNET_OK;
}

static uint64_t gpu_peak_bytes(backend *base) {
    std::lock_guard<std::mutex> held(of(base)->mutex);
    return of(base)->peak;
}

static linnet_status gpu_alloc(backend *base, size_t bytes, void **out, linnet_error *err) {
    std::lock_guard<std::mutex> held(of(base)->mutex);
    linnet_status s = cuda_alloc(of(base), bytes, out, err);
    if (!s) device_zero(device_get_stream(of(base)->device), *out, bytes);
    return s;
}

static void gpu_free(backend *base, void *memory, size_t bytes) {
    (void)bytes;
    std::lock_guard<std::mutex> held(of(base)->mutex);
    device_free(of(base)->device, memory);
}

static linnet_status gpu_zero(backend *base, void *memory, size_t bytes, linnet_error *err) {
    (void)err; /* shows when the stream is next waited for */
    std::lock_guard<std::mutex> held(of(base)->mutex);
    device_zero(device_get_stream(of(base)->device), memory, bytes);
    return LINNET_OK;
}

static linnet_status gpu_read(backend *base, void *host, const void *memory, size_t bytes,
                              linnet_error *err) {
    std::lock_guard<std::mutex> held(of(base)->mutex);
    return device_download(of(base)->device, host, memory, bytes, err);
}

static linnet_status gpu_write(backend *base, void *memory, const void *host, size_t bytes,
                               linnet_error *err) {
    std::lock_guard<std::mutex> held(of(base)->mutex);
    return device_upload(of(base)->device, memory, host, bytes, err);
}

static linnet_status gpu_copy(backend *base, void *to, const void *from, size_t bytes,
                              linnet_error *err) {
    (void)err;
    std::lock_guard<std::mutex> held(of(base)->mutex);
    device_copy(device_get_stream(of(base)->device), to, from, bytes);
    return LINNET_OK;
}

static void *gpu_host_alloc(backend *base, size_t bytes) {
    std::lock_guard<std::mutex> held(of(base)->mutex);
    void *out;
    return device_pinned_alloc(of(base)->device, bytes, &out, NULL) ? NULL : out;
}

static void gpu_host_free(backend *base, void *memory) {
    std::lock_guard<std::mutex> held(of(base)->mutex);
    device_pinned_free(of(base)->device, memory);
}

static void gpu_close(backend *base) {
    device_close(of(base)->device);
    delete of(base);
}

static backend_ops make_ops(void) {
    backend_ops o = {};
    o.panel_bytes = cuda_panel_bytes;
    o.pack_panel = cuda_pack_panel;
    o.fits = cuda_fits;
    o.prepare = cuda_prepare;
    o.forget = cuda_forget;
    o.alloc = gpu_alloc;
    o.free = gpu_free;
    o.zero = gpu_zero;
    o.read = gpu_read;
    o.write = gpu_write;
    o.copy = gpu_copy;
    o.host_alloc = gpu_host_alloc;
    o.host_free = gpu_host_free;
    o.forward = cuda_forward;
    o.activation_bytes = cuda_activation_bytes;
    o.peak_bytes = gpu_peak_bytes;
    o.close = gpu_close;
    return o;
}

static const backend_ops cuda_ops = make_ops();

extern "C" __attribute__((visibility("default"))) linnet_status
linnet_cuda_open_1(int index, backend **out, linnet_error *err) {
    cuda_backend *b = new (std::nothrow) cuda_backend();
    if (!b) return fail(err, LINNET_ERR_MEMORY, "no memory for a GPU");
    linnet_status s = device_open(index, &b->device, err);
    if (!s && (s = device_get_info(b->device, &b->info, err))) device_close(b->device);
    if (s) {
        delete b;
        return s;
    }
    b->base.ops = &cuda_ops;
    snprintf(b->base.name, sizeof b->base.name, "cuda:%d (%.120s)", index, b->info.name);
    *out = &b->base;
    return LINNET_OK;
}
