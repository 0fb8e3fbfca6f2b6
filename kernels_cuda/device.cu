/* device.h on CUDA's runtime. */
#include "device.h"
#include "device_sentences.h"

#include <stdlib.h>
#include <string.h>

struct device {
    int index;
    cudaDeviceProp properties;
    cudaStream_t stream;
    bool can_overlap;       /* the kernels that run here were compiled for sm_90 or later */
    cudaError_t error;      /* the first since the last wait */
    char kernel[256];       /* that failed to start; "" = it was none */
    const char *last;       /* launch since the last wait, NULL = none */
    unsigned long launches; /* since the last wait */
    char fault[512];        /* for good; "" = none */
};

struct device_graph {
    device *owner;
    cudaGraphExec_t graph;
};

/* ---- Errors ------------------------------------------------------------------------------ */
static void name_kernel(char *to, size_t size, const char *text) {
    snprintf(to, size, "%.*s", kernel_name_length(text), text);
}

/* After a fault every call answers with its error; others, asked for again, are gone. */
static bool is_fault(device *d, cudaError_t e) {
    if (e >= cudaErrorStreamCaptureUnsupported && e <= cudaErrorCapturedEvent) return false;
    cudaGetLastError();
    return cudaStreamQuery(d->stream) == e;
}

static void note(device *d, cudaError_t e) {
    if (e == cudaSuccess) return;
    cudaGetLastError(); /* an error that can be forgotten is */
    if (d->error == cudaSuccess) d->error = e;
}

/* What was noted, as a sentence, and forgotten unless it is a fault. */
static linnet_status tell(device *d, linnet_error *err) {
    if (*d->fault) return fail(err, LINNET_ERR_DEVICE, "%s", d->fault);
    if (d->error == cudaSuccess) {
        d->launches = 0;
        d->last = NULL;
        return LINNET_OK;
    }
    char text[sizeof d->fault], last[sizeof d->kernel];
    const char *name = d->properties.name, *what = cudaGetErrorString(d->error);
    if (*d->kernel) {
        snprintf(text, sizeof text, "GPU %d (%.64s): kernel %.128s was not launched: %s", d->index,
                 name, d->kernel, what);
    } else if (d->launches) {
        name_kernel(last, sizeof last, d->last);
        if (d->launches == 1)
            snprintf(text, sizeof text, "GPU %d (%.64s): kernel %.128s: %s", d->index, name, last,
                     what);
        else
            snprintf(text, sizeof text,
                     "GPU %d (%.64s): %s, in one of the last %lu kernels, which end with %.128s",
                     d->index, name, what, d->launches, last);
    } else {
        snprintf(text, sizeof text, "GPU %d (%.64s): %s", d->index, name, what);
    }
    if (is_fault(d, d->error)) memcpy(d->fault, text, sizeof text);
    d->error = cudaSuccess;
    *d->kernel = 0;
    d->launches = 0;
    d->last = NULL;
    return fail(err, LINNET_ERR_DEVICE, "%s", text);
}

/* Of a call that the caller waits for: its error, or one that was noted before. */
static linnet_status checked(device *d, cudaError_t e, linnet_error *err) {
    note(d, e);
    return d->error == cudaSuccess && !*d->fault ? LINNET_OK : tell(d, err);
}

/* ---- Opening ----------------------------------------------------------------------------- */
__global__ void device_probe() {}

#define TEXT_OF_LIST(...) #__VA_ARGS__
#define TEXT_OF(...) TEXT_OF_LIST(__VA_ARGS__)

linnet_status device_open(int index, device **out, linnet_error *err) {
    int count = 0, driver = 0, runtime = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver) return old_driver(driver, runtime, err);
    if (e == cudaErrorNoDevice || (e == cudaSuccess && !count)) return no_gpu(err);
    if (e != cudaSuccess)
        return fail(err, LINNET_ERR_DEVICE, "the GPUs cannot be counted: %s",
                    cudaGetErrorString(e));
    if (index < 0 || index >= count) return no_such_gpu(index, count, err);
    device *d = (device *)calloc(1, sizeof *d);
    if (!d) return fail(err, LINNET_ERR_MEMORY, "no memory for GPU %d", index);
    d->index = index;
    cudaFuncAttributes attributes;
    e = cudaGetDeviceProperties(&d->properties, index);
    if (e == cudaSuccess) e = cudaSetDevice(index);
    if (e == cudaSuccess) e = cudaFuncGetAttributes(&attributes, device_probe);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) {
        d->can_overlap = d->properties.major >= 9 && attributes.ptxVersion >= 90;
        *out = d;
        return LINNET_OK;
    }
    cudaGetLastError();
    linnet_status status;
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction ||
        e == cudaErrorUnsupportedPtxVersion || e == cudaErrorInvalidPtx)
        status = no_code_for_gpu(index, d->properties.name,
                                 d->properties.major * 10 + d->properties.minor,
                                 TEXT_OF(__CUDA_ARCH_LIST__), err);
    else
        status =
            fail(err, LINNET_ERR_DEVICE, "GPU %d cannot be used: %s", index, cudaGetErrorString(e));
    free(d);
    return status;
}

void device_close(device *d) {
    if (!d) return;
    cudaStreamDestroy(d->stream);
    free(d);
}

/* Every call goes to the thread's current GPU. */
static void use(device *d) {
    int current;
    if (cudaGetDevice(&current) != cudaSuccess || current != d->index)
        note(d, cudaSetDevice(d->index));
}

static int attribute(device *d, cudaDeviceAttr which) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, d->index) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return value;
}

linnet_status device_get_info(device *d, device_info *info, linnet_error *err) {
    if (*d->fault) return tell(d, err);
    memset(info, 0, sizeof *info);
    use(d);
    linnet_status status = checked(d, cudaMemGetInfo(&info->free_bytes, &info->total_bytes), err);
    if (status) return status;
    snprintf(info->name, sizeof info->name, "%s", d->properties.name);
    info->compute_capability = d->properties.major * 10 + d->properties.minor;
    info->sm_count = d->properties.multiProcessorCount;
    info->clock_mhz = attribute(d, cudaDevAttrClockRate) / 1000;
    info->l2_bytes = (size_t)d->properties.l2CacheSize;
    info->shared_bytes = d->properties.sharedMemPerBlockOptin;
    /* Two transfers per clock (kHz), a bus of so many bits. */
    info->bandwidth = 2e3 * attribute(d, cudaDevAttrMemoryClockRate) *
                      attribute(d, cudaDevAttrGlobalMemoryBusWidth) / 8;
    cudaDriverGetVersion(&info->driver);
    cudaRuntimeGetVersion(&info->runtime);
    return LINNET_OK;
}

device_stream device_get_stream(device *d) {
    return d;
}

/* ---- Memory ------------------------------------------------------------------------------ */
linnet_status device_alloc(device *d, size_t bytes, void **out, linnet_error *err) {
    if (*d->fault) return tell(d, err);
    use(d);
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        size_t left = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&left, &total);
        return no_gpu_memory(d->index, d->properties.name, bytes, left, total, err);
    }
    linnet_status status = checked(d, e, err);
    if (status)
        cudaFree(p);
    else
        *out = p;
    return status;
}

void device_free(device *d, void *p) {
    if (!p || *d->fault) return;
    use(d);
    note(d, cudaStreamSynchronize(d->stream));
    note(d, cudaFree(p));
}

linnet_status device_pinned_alloc(device *d, size_t bytes, void **out, linnet_error *err) {
    if (*d->fault) return tell(d, err);
    use(d);
    void *p = NULL;
    cudaError_t e = cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocDefault);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return no_pinned_memory(bytes, err);
    }
    linnet_status status = checked(d, e, err);
    if (status)
        cudaFreeHost(p);
    else
        *out = p;
    return status;
}

void device_pinned_free(device *d, void *p) {
    if (!p || *d->fault) return;
    use(d);
    note(d, cudaStreamSynchronize(d->stream));
    note(d, cudaFreeHost(p));
}

/* ---- Copies ------------------------------------------------------------------------------ */
static void copy_async(device *d, void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (*d->fault || !bytes) return;
    use(d);
    note(d, cudaMemcpyAsync(to, from, bytes, kind, d->stream));
}

linnet_status device_upload(device *d, void *to, const void *from, size_t bytes,
                            linnet_error *err) {
    copy_async(d, to, from, bytes, cudaMemcpyHostToDevice);
    return device_finish(d, err);
}

linnet_status device_download(device *d, void *to, const void *from, size_t bytes,
                              linnet_error *err) {
    copy_async(d, to, from, bytes, cudaMemcpyDeviceToHost);
    return device_finish(d, err);
}

void device_upload_async(device_stream s, void *to, const void *from, size_t bytes) {
    copy_async(s, to, from, bytes, cudaMemcpyHostToDevice);
}

void device_download_async(device_stream s, void *to, const void *from, size_t bytes) {
    copy_async(s, to, from, bytes, cudaMemcpyDeviceToHost);
}

void device_copy(device_stream s, void *to, const void *from, size_t bytes) {
    copy_async(s, to, from, bytes, cudaMemcpyDeviceToDevice);
}

void device_zero(device_stream s, void *p, size_t bytes) {
    if (*s->fault || !bytes) return;
    use(s);
    note(s, cudaMemsetAsync(p, 0, bytes, s->stream));
}

linnet_status device_finish(device *d, linnet_error *err) {
    if (*d->fault) return tell(d, err);
    use(d);
    note(d, cudaStreamSynchronize(d->stream));
    return tell(d, err);
}

/* ---- Launches ---------------------------------------------------------------------------- */
/* A kernel has 48 KiB of shared memory, its own arrays included, unless more is asked for by name:
 * then all that the GPU has, so that a graph's launches keep what they were recorded with. */
static cudaError_t allow_shared(device *d, const void *kernel, size_t bytes) {
    if (bytes <= 40 << 10) return cudaSuccess; /* no kernel that asks has 8 of its own */
    cudaFuncAttributes has;
    cudaError_t e = cudaFuncGetAttributes(&has, kernel);
    if (e != cudaSuccess) return e;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)(d->properties.sharedMemPerBlockOptin - has.sharedSizeBytes));
}

bool device_prepare(device_stream s, const launch_shape &shape, const void *kernel,
                    cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute) {
    if (*s->fault || s->error != cudaSuccess) return false;
    use(s);
    *config = cudaLaunchConfig_t();
    config->gridDim = dim3(shape.grid[0], shape.grid[1], shape.grid[2]);
    config->blockDim = dim3(shape.block[0], shape.block[1], shape.block[2]);
    config->dynamicSmemBytes = shape.shared_bytes;
    config->stream = s->stream;
    config->attrs = attribute;
    if (shape.overlapped && s->can_overlap) {
        attribute->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute->val.programmaticStreamSerializationAllowed = 1;
        config->numAttrs = 1;
    }
    cudaError_t e = allow_shared(s, kernel, shape.shared_bytes);
    if (e != cudaSuccess) device_launched(s, shape, e);
    return e == cudaSuccess;
}

void device_launched(device_stream s, const launch_shape &shape, cudaError_t error) {
    if (error != cudaSuccess && s->error == cudaSuccess && !is_fault(s, error))
        name_kernel(s->kernel, sizeof s->kernel, shape.text);
    note(s, error);
    if (error != cudaSuccess) return;
    s->last = shape.text;
    s->launches++;
}

/* ---- Graphs ------------------------------------------------------------------------------ */
linnet_status device_graph_begin(device_stream s, linnet_error *err) {
    if (*s->fault) return tell(s, err);
    use(s);
    /* Relaxed: a kernel's code may be loaded at its first launch. */
    return checked(s, cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeRelaxed), err);
}

linnet_status device_graph_end(device_stream s, device_graph **out, linnet_error *err) {
    if (*s->fault) return tell(s, err);
    use(s);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    note(s, cudaStreamEndCapture(s->stream, &graph));
    if (s->error == cudaSuccess) note(s, cudaGraphInstantiate(&exec, graph, 0));
    if (graph) cudaGraphDestroy(graph);
    linnet_status status = s->error == cudaSuccess ? LINNET_OK : tell(s, err);
    device_graph *g = status ? NULL : (device_graph *)calloc(1, sizeof *g);
    if (!status && !g) status = fail(err, LINNET_ERR_MEMORY, "no memory for a graph");
    if (status) {
        if (exec) cudaGraphExecDestroy(exec);
        return status;
    }
    g->owner = s;
    g->graph = exec;
    *out = g;
    return LINNET_OK;
}

void device_graph_launch(device_stream s, device_graph *g) {
    if (*s->fault || s->error != cudaSuccess) return;
    use(s);
    device_launched(s, launch_as("the graph", dim3(1), dim3(1), 0, false),
                    cudaGraphLaunch(g->graph, s->stream));
}

void device_graph_free(device_graph *g) {
    if (!g) return;
    cudaGraphExecDestroy(g->graph);
    free(g);
}
