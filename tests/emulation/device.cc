/* device.h on the emulated GPU. Work for the stream waits in a queue until the host waits for it,
 * so a result that is read too early is not there, and staging memory that is used again too early
 * is wrong. */
#include "scheduler.h"

#include "../../kernels_cuda/device_sentences.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace {

/* A launch, or anything else (then `what` runs and tells what went wrong, "" = nothing). */
struct work {
    bool is_launch;
    simt_grid grid;
    std::function<std::string()> what;
};

std::mutex running; /* one launch at a time: the scheduler's globals */
simt_machine machine = SIMT_GPU;
size_t memory_limit = (size_t)16 << 30;
uint64_t fault_at, n_launches;

enum { SM_COUNT = 2, INDEX = 0, MOST_OVERLAPPED = 3 };
const char *const NAME = "emulated";

} // namespace

struct device {
    std::vector<work> queue;
    std::vector<work> recording;
    bool records;
    std::map<const char *, size_t> memory, pinned;
    size_t in_use;
    std::string error; /* since the last wait */
    std::string fault; /* for good */
};

struct device_graph {
    std::vector<work> steps;
};

static bool inside(const std::map<const char *, size_t> &of, const void *p, size_t bytes) {
    const char *c = static_cast<const char *>(p);
    auto after = of.upper_bound(c);
    if (after == of.begin()) return false;
    auto at = std::prev(after);
    size_t from = (size_t)(c - at->first);
    return from <= at->second && bytes <= at->second - from;
}

/* ---- Opening ----------------------------------------------------------------------------- */
linnet_status device_open(int index, device **out, linnet_error *err) {
    if (machine == SIMT_NO_GPU) return no_gpu(err);
    if (machine == SIMT_OLD_DRIVER) return old_driver(11080, 13000, err);
    if (index != INDEX) return no_such_gpu(index, 1, err);
    if (machine == SIMT_OTHER_ARCHITECTURE)
        return no_code_for_gpu(index, NAME, 75, "compute capability 8.0 and later", err);
    *out = new device();
    return LINNET_OK;
}

void device_close(device *d) {
    delete d;
}

linnet_status device_get_info(device *d, device_info *info, linnet_error *err) {
    if (!d->fault.empty()) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault.c_str());
    memset(info, 0, sizeof *info);
    snprintf(info->name, sizeof info->name, "%s", NAME);
    info->compute_capability = 80;
    info->sm_count = SM_COUNT;
    info->clock_mhz = 1000;
    info->total_bytes = memory_limit;
    info->free_bytes = memory_limit - min_size(d->in_use, memory_limit);
    info->l2_bytes = 4 << 20;
    info->shared_bytes = shared_limit;
    info->bandwidth = 100e9;
    info->driver = info->runtime = 13000;
    return LINNET_OK;
}

device_stream device_get_stream(device *d) {
    return d;
}

/* ---- The queue --------------------------------------------------------------------------- */
static void note_error(device *d, const std::string &text) {
    if (d->error.empty()) d->error = text;
}

static void give(device *d, work w) {
    if (!d->fault.empty() || !d->error.empty()) return;
    (d->records ? d->recording : d->queue).push_back(std::move(w));
}

static void give(device *d, std::function<std::string()> what) {
    give(d, work{false, {}, std::move(what)});
}

static bool run_launch(device *d, const simt_grid &grid, const std::function<bool()> *previous) {
    std::string failure;
    n_launches++;
    if (fault_at && !--fault_at)
        failure = "kernel " + grid.name + ": an illegal memory access was encountered";
    else if (simt_run(grid, previous, &failure))
        return true;
    if (!failure.empty() && d->fault.empty())
        d->fault = "GPU 0 (" + std::string(NAME) + "): " + failure;
    return false;
}

/* Runs steps[first .. last], launches of which each but the first may start before the one in front
 * has run: then it does, and what it does before wait_for_previous comes first. */
static bool run_chain(device *d, std::vector<work> &steps, size_t first, size_t last) {
    std::function<bool()> previous = [&, last] { return run_chain(d, steps, first, last - 1); };
    return run_launch(d, steps[last].grid, first < last ? &previous : nullptr);
}

static void flush(device *d) {
    std::lock_guard<std::mutex> lock(running);
    std::vector<work> steps;
    steps.swap(d->queue);
    for (size_t i = 0; i < steps.size() && d->fault.empty();) {
        if (!steps[i].is_launch) {
            std::string text = steps[i++].what();
            if (!text.empty()) d->fault = "GPU 0 (" + std::string(NAME) + "): " + text;
            continue;
        }
        size_t last = i;
        while (last - i < MOST_OVERLAPPED && last + 1 < steps.size() && steps[last + 1].is_launch &&
               steps[last + 1].grid.shape.overlapped)
            last++;
        if (!run_chain(d, steps, i, last)) break;
        i = last + 1;
    }
}

linnet_status device_finish(device *d, linnet_error *err) {
    if (d->records)
        return fail(err, LINNET_ERR_DEVICE, "GPU 0 (%s): a wait while a graph is recorded", NAME);
    flush(d);
    if (!d->fault.empty()) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault.c_str());
    if (!d->error.empty()) {
        std::string text;
        text.swap(d->error);
        return fail(err, LINNET_ERR_DEVICE, "%s", text.c_str());
    }
    return LINNET_OK;
}

void simt_launch(device_stream d, const launch_shape &shape, std::function<void()> body) {
    std::string name(shape.text, (size_t)kernel_name_length(shape.text));
    const unsigned *g = shape.grid, *b = shape.block;
    uint64_t threads = (uint64_t)b[0] * b[1] * b[2];
    char text[300] = "";
    if (!g[0] || !g[1] || !g[2] || g[0] > INT32_MAX || g[1] > 65535 || g[2] > 65535 || !threads ||
        threads > 1024)
        snprintf(text, sizeof text, "a grid of %ux%ux%u blocks of %ux%ux%u threads", g[0], g[1],
                 g[2], b[0], b[1], b[2]);
    else if (shape.shared_bytes > shared_limit)
        snprintf(text, sizeof text, "%zu bytes of shared memory per block, and there are %zu",
                 shape.shared_bytes, shared_limit);
    if (*text)
        note_error(d, "GPU 0 (" + std::string(NAME) + "): kernel " + name +
                          " was not launched: " + text);
    else
        give(d, work{true, {shape, name, std::move(body)}, {}});
}

/* ---- Memory ------------------------------------------------------------------------------ */
/* Exactly as long as asked for, so that AddressSanitizer sees its end; filled with NaN. */
static void *allocate(size_t bytes) {
    void *p;
    if (posix_memalign(&p, 256, bytes ? bytes : 1)) return nullptr;
    memset(p, 0xff, bytes);
    return p;
}

linnet_status device_alloc(device *d, size_t bytes, void **out, linnet_error *err) {
    if (!d->fault.empty()) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault.c_str());
    size_t left = memory_limit - min_size(d->in_use, memory_limit);
    void *p = bytes > left ? nullptr : allocate(bytes);
    if (!p) return no_gpu_memory(INDEX, NAME, bytes, left, memory_limit, err);
    d->memory[static_cast<char *>(p)] = bytes;
    d->in_use += bytes;
    *out = p;
    return LINNET_OK;
}

void device_free(device *d, void *p) {
    if (!p) return;
    flush(d);
    auto at = d->memory.find(static_cast<char *>(p));
    if (at == d->memory.end())
        return note_error(d, "GPU 0 (emulated): device_free of what is not allocated");
    d->in_use -= at->second;
    d->memory.erase(at);
    free(p);
}

linnet_status device_pinned_alloc(device *d, size_t bytes, void **out, linnet_error *err) {
    if (!d->fault.empty()) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault.c_str());
    void *p = allocate(bytes);
    if (!p) return no_pinned_memory(bytes, err);
    d->pinned[static_cast<char *>(p)] = bytes;
    *out = p;
    return LINNET_OK;
}

void device_pinned_free(device *d, void *p) {
    if (!p) return;
    flush(d);
    d->pinned.erase(static_cast<char *>(p));
    free(p);
}

static std::string copy_checked(device *d, void *to, const void *from, size_t bytes, bool to_gpu,
                                bool from_gpu) {
    if ((to_gpu && !inside(d->memory, to, bytes)) || (from_gpu && !inside(d->memory, from, bytes)))
        return "a copy of bytes that device_alloc has not given";
    if (bytes) memcpy(to, from, bytes);
    return "";
}

static linnet_status copy_now(device *d, void *to, const void *from, size_t bytes, bool to_gpu,
                              linnet_error *err) {
    if (!d->records) give(d, [=] { return copy_checked(d, to, from, bytes, to_gpu, !to_gpu); });
    return device_finish(d, err);
}

linnet_status device_upload(device *d, void *to, const void *from, size_t bytes,
                            linnet_error *err) {
    return copy_now(d, to, from, bytes, true, err);
}

linnet_status device_download(device *d, void *to, const void *from, size_t bytes,
                              linnet_error *err) {
    return copy_now(d, to, from, bytes, false, err);
}

static void copy_later(device *d, void *to, const void *from, size_t bytes, bool to_gpu,
                       bool from_gpu) {
    const void *host = to_gpu ? from : to;
    if (to_gpu != from_gpu && !inside(d->pinned, host, bytes))
        return note_error(d, "GPU 0 (emulated): an asynchronous copy of host memory that is not "
                             "pinned");
    give(d, [=] { return copy_checked(d, to, from, bytes, to_gpu, from_gpu); });
}

void device_upload_async(device_stream d, void *to, const void *from, size_t bytes) {
    copy_later(d, to, from, bytes, true, false);
}

void device_download_async(device_stream d, void *to, const void *from, size_t bytes) {
    copy_later(d, to, from, bytes, false, true);
}

void device_copy(device_stream d, void *to, const void *from, size_t bytes) {
    copy_later(d, to, from, bytes, true, true);
}

void device_zero(device_stream d, void *p, size_t bytes) {
    give(d, [=]() -> std::string {
        if (!inside(d->memory, p, bytes))
            return "device_zero of bytes that device_alloc has not given";
        memset(p, 0, bytes);
        return "";
    });
}

/* ---- Graphs ------------------------------------------------------------------------------ */
linnet_status device_graph_begin(device_stream d, linnet_error *err) {
    if (!d->fault.empty()) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault.c_str());
    if (d->records) return fail(err, LINNET_ERR_DEVICE, "GPU 0 (%s): a graph within a graph", NAME);
    d->records = true;
    d->recording.clear();
    return LINNET_OK;
}

linnet_status device_graph_end(device_stream d, device_graph **out, linnet_error *err) {
    d->records = false;
    if (!d->fault.empty()) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault.c_str());
    if (!d->error.empty()) return device_finish(d, err);
    *out = new device_graph{std::move(d->recording)};
    d->recording.clear();
    return LINNET_OK;
}

void device_graph_launch(device_stream d, device_graph *g) {
    for (const work &w : g->steps)
        give(d, w);
}

void device_graph_free(device_graph *g) {
    delete g;
}

/* ---- What tests call --------------------------------------------------------------------- */
void simt_set_machine(simt_machine m) {
    machine = m;
}

void simt_set_memory(size_t bytes) {
    memory_limit = bytes;
}

void simt_set_fault(uint64_t n) {
    fault_at = n;
}

uint64_t simt_launches(void) {
    return n_launches;
}
