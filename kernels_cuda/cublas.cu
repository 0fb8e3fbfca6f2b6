/* Products of very many rows by cuBLASLt, which knows each GPU's tensor cores (Hopper's take their
 * tiles by instructions of their own): f16 x f16, summed in float32. Panels of f16 are row-major as
 * they lie; other types are unpacked to f16, as many rows at a time as fit in a room that L2 holds.
 * The library is opened when it is first wanted and is needed neither to build nor to run; its
 * header is, to build.
 *
 * In the emulation a plain loop stands for the library; it refuses odd numbers of inputs, as the
 * library may refuse a shape. */
#include "products.h"

#include <mutex>

enum { CUBLAS_STEP = 64 }; /* rows that are unpacked at a time are a multiple of it */

static std::mutex library_mutex;

#ifdef __CUDACC__
#include <cublasLt.h>
#include <dlfcn.h>

#define FOR_CUBLAS(CALL)                                                                           \
    CALL(cublasLtCreate)                                                                           \
    CALL(cublasLtMatmul)                                                                           \
    CALL(cublasLtMatmulDescCreate)                                                                 \
    CALL(cublasLtMatmulDescDestroy)                                                                \
    CALL(cublasLtMatmulDescSetAttribute)                                                           \
    CALL(cublasLtMatrixLayoutCreate)                                                               \
    CALL(cublasLtMatrixLayoutDestroy)                                                              \
    CALL(cublasLtMatmulPreferenceCreate)                                                           \
    CALL(cublasLtMatmulPreferenceDestroy)                                                          \
    CALL(cublasLtMatmulPreferenceSetAttribute)                                                     \
    CALL(cublasLtMatmulAlgoGetHeuristic)

enum { MOST_GPUS = 64 };

/* How a product of one shape is done. */
typedef struct {
    size_t rows, cols, n, ldw, ldx, ldy;
    uint32_t align_w, align_x, align_y; /* bytes */
    int gpu;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} known_shape;

typedef struct {
#define FIELD(name) decltype(&::name) name;
    FOR_CUBLAS(FIELD)
#undef FIELD
    cublasLtHandle_t handles[MOST_GPUS]; /* NULL: not yet wanted */
    bool tried, there;
    known_shape shapes[64]; /* the last ones, in turn */
    size_t n_shapes;
} cublas_library;

static cublas_library *library(void) {
    static cublas_library lib;
    if (lib.tried) return lib.there ? &lib : NULL;
    lib.tried = true;
    /* The structs that are passed by value are those of the header's major version. */
    char name[32];
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    void *so = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!so) return NULL;
#define FIND(name)                                                                                 \
    lib.name = (decltype(lib.name))dlsym(so, #name);                                               \
    if (!lib.name) return NULL;
    FOR_CUBLAS(FIND)
#undef FIND
    lib.there = true;
    return &lib;
}

/* Of the thread's current GPU: a handle is good for one. */
static cublasLtHandle_t handle_of(cublas_library *lib, int *gpu) {
    if (cudaGetDevice(gpu) != cudaSuccess || *gpu >= MOST_GPUS) return NULL;
    cublasLtHandle_t *h = &lib->handles[*gpu];
    if (!*h && lib->cublasLtCreate(h) != CUBLAS_STATUS_SUCCESS) *h = NULL;
    return *h;
}

/* The library takes 256 bytes for granted unless it is told. */
static uint32_t alignment_of(const void *p) {
    uintptr_t lowest = (uintptr_t)p & -(uintptr_t)p;
    return lowest < 256 ? (uint32_t)lowest : 256;
}

/* W is [rows, cols] row-major: by columns its transpose. The result [n, rows], by columns again. */
typedef struct {
    cublasLtMatmulDesc_t what;
    cublasLtMatrixLayout_t w, x, y;
} matmul_shape;

static void destroy_shape(const cublas_library *lib, matmul_shape *s) {
    if (s->what) lib->cublasLtMatmulDescDestroy(s->what);
    if (s->w) lib->cublasLtMatrixLayoutDestroy(s->w);
    if (s->x) lib->cublasLtMatrixLayoutDestroy(s->x);
    if (s->y) lib->cublasLtMatrixLayoutDestroy(s->y);
}

static bool create_shape(const cublas_library *lib, matmul_shape *s, const known_shape *k) {
    cublasOperation_t transposed = CUBLAS_OP_T;
    return lib->cublasLtMatmulDescCreate(&s->what, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
               CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatmulDescSetAttribute(s->what, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                               sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatrixLayoutCreate(&s->w, CUDA_R_16F, k->cols, k->rows, (int64_t)k->ldw) ==
               CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatrixLayoutCreate(&s->x, CUDA_R_16F, k->cols, k->n, (int64_t)k->ldx) ==
               CUBLAS_STATUS_SUCCESS &&
           lib->cublasLtMatrixLayoutCreate(&s->y, CUDA_R_32F, k->rows, k->n, (int64_t)k->ldy) ==
               CUBLAS_STATUS_SUCCESS;
}

/* The library's choice for this shape, asked for once. */
static const known_shape *choose(cublas_library *lib, cublasLtHandle_t handle, const known_shape *k,
                                 const matmul_shape *s) {
    for (size_t i = 0; i < min_size(lib->n_shapes, 64); i++) {
        const known_shape *o = &lib->shapes[i];
        if (o->rows == k->rows && o->cols == k->cols && o->n == k->n && o->ldw == k->ldw &&
            o->ldx == k->ldx && o->ldy == k->ldy && o->align_w == k->align_w &&
            o->align_x == k->align_x && o->align_y == k->align_y && o->gpu == k->gpu)
            return o;
    }
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found = {};
    int n_found = 0;
    size_t workspace = CUBLAS_OWN; /* behind it lie the unpacked rows */
    if (lib->cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return NULL;
    bool asked = true;
#define PREFER(what, value)                                                                        \
    asked = asked && lib->cublasLtMatmulPreferenceSetAttribute(                                    \
                         preference, CUBLASLT_MATMUL_PREF_##what, &(value), sizeof(value)) ==      \
                         CUBLAS_STATUS_SUCCESS
    PREFER(MAX_WORKSPACE_BYTES, workspace);
    PREFER(MIN_ALIGNMENT_A_BYTES, k->align_w);
    PREFER(MIN_ALIGNMENT_B_BYTES, k->align_x);
    PREFER(MIN_ALIGNMENT_C_BYTES, k->align_y);
    PREFER(MIN_ALIGNMENT_D_BYTES, k->align_y);
#undef PREFER
    asked = asked &&
            lib->cublasLtMatmulAlgoGetHeuristic(handle, s->what, s->w, s->x, s->y, s->y, preference,
                                                1, &found, &n_found) == CUBLAS_STATUS_SUCCESS;
    lib->cublasLtMatmulPreferenceDestroy(preference);
    if (!asked || !n_found || found.state != CUBLAS_STATUS_SUCCESS) return NULL;
    known_shape *o = &lib->shapes[lib->n_shapes++ % 64];
    *o = *k;
    o->algorithm = found.algo;
    o->workspace = found.workspaceSize;
    return o;
}

static bool have_library(void) {
    return library() != NULL;
}

/* y [n, ldy] = alpha W x, or y +=. False: the library does not do it, and nothing was done. */
static bool multiply(const cuda_pass *p, const void *w, size_t ldw, const gpu_product *m,
                     size_t cols, const packed_rows *x, size_t n, void *workspace) {
    cublas_library *lib = library();
    /* The stream itself is the device layer's: a launch that never happens brings it here. */
    launch_shape shape = launch_as("cublasLtMatmul", dim3(1), dim3(1), 0, false);
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attribute;
    if (!device_prepare(p->stream, shape, NULL, &config, &attribute)) return true; /* kept */
    known_shape wanted = {};
    cublasLtHandle_t handle = handle_of(lib, &wanted.gpu);
    if (!handle) return false;
    wanted.rows = m->rows;
    wanted.cols = cols;
    wanted.n = n;
    wanted.ldw = ldw;
    wanted.ldx = x->ld;
    wanted.ldy = m->ldy;
    wanted.align_w = alignment_of(w);
    wanted.align_x = alignment_of(x->at);
    wanted.align_y = alignment_of(m->y);
    matmul_shape s = {};
    float alpha = x->scale, beta = m->add ? 1 : 0;
    const known_shape *k = create_shape(lib, &s, &wanted) ? choose(lib, handle, &wanted, &s) : NULL;
    bool done = k && lib->cublasLtMatmul(handle, s.what, &alpha, w, s.w, x->at, s.x, &beta, m->y,
                                         s.y, m->y, s.y, &k->algorithm, workspace, k->workspace,
                                         config.stream) == CUBLAS_STATUS_SUCCESS;
    destroy_shape(lib, &s);
    if (done) device_launched(p->stream, shape, cudaSuccess);
    return done;
}

#else

static bool have_library(void) {
    return true;
}

__global__ void multiply_plainly(const uint16_t *w, size_t ldw, gpu_product m, unsigned cols,
                                 packed_rows x) {
    unsigned r = blockIdx.x * blockDim.x + threadIdx.x, c = blockIdx.y;
    if (r >= m.rows) return;
    float sum = 0;
    for (unsigned k = 0; k < cols; k++)
        sum = fmaf(f16_to_float(w[r * ldw + k]), f16_to_float(x.at[c * x.ld + k]), sum);
    float *y = m.y + c * m.ldy + r;
    *y = m.add ? *y + sum * x.scale : sum * x.scale;
}

static bool multiply(const cuda_pass *p, const void *w, size_t ldw, const gpu_product *m,
                     size_t cols, const packed_rows *x, size_t n, void *workspace) {
    (void)workspace;
    if (n % 2) return false;
    launch(p->stream, dim3((m->rows + 63) / 64, (unsigned)n), dim3(64), 0, multiply_plainly,
           (const uint16_t *)w, ldw, *m, (unsigned)cols, *x);
    return true;
}

#endif

/* Rows [row0, row0 + gridDim.y) as f16, `ld` apart: a thread per unit. Bound: its bytes. */
template <dtype T>
__global__ void unpack(const uint8_t *data, size_t panel_bytes, unsigned units, unsigned row0,
                       uint16_t *out, size_t ld) {
    enum { UNIT = packed_as<T>::unit };
    unsigned u = blockIdx.x * blockDim.x + threadIdx.x, r = row0 + blockIdx.y;
    if (u >= units) return;
    float v[UNIT];
    unit_values<T>(load_unit<T>(data + r / PANEL * panel_bytes, r % PANEL, u, units), u, v);
    uint2 *to = (uint2 *)(out + blockIdx.y * ld + u * UNIT);
    UNROLL
    for (unsigned i = 0; i < UNIT / 4; i++)
        to[i] = {f16_pair(v[4 * i], v[4 * i + 1]), f16_pair(v[4 * i + 2], v[4 * i + 3])};
}

/* Rows of W from `row` on, a multiple of PANEL, without the library. */
static void multiply_rest(const cuda_pass *p, dtype type, const gpu_products *m,
                          const gpu_product *of, unsigned row, const packed_rows *x, size_t n) {
    gpu_products rest = *m;
    packed_rows none = {};
    rest.n = 1;
    rest.activation = NO_ACTIVATION;
    rest.of[0] = *of;
    rest.of[0].data += row / PANEL * m->panel_bytes;
    rest.of[0].rows -= row;
    rest.of[0].y += row;
    tensor_products(p, type, &rest, x, n, &none);
}

static void unpacked_product(const cuda_pass *p, dtype type, const gpu_products *m,
                             const gpu_product *of, const packed_rows *x, size_t n,
                             void *workspace) {
    uint16_t *room = (uint16_t *)((uint8_t *)workspace + CUBLAS_OWN);
    size_t ld = round_up(m->cols, 8);
    unsigned most = (unsigned)min_size(CUBLAS_UNPACKED / (ld * sizeof *room), 32768);
    most = most / CUBLAS_STEP * CUBLAS_STEP;
    for (unsigned row = 0; row < of->rows; row += most) {
        gpu_product part = *of;
        part.rows = (unsigned)min_size(most, of->rows - row);
        part.y += row;
#define CALL(T)                                                                                    \
    launch(p->stream, dim3((m->units + 63) / 64, part.rows), dim3(64), 0, unpack<T>, of->data,     \
           m->panel_bytes, m->units, row, room, ld)
        FOR_DTYPE(type, CALL)
#undef CALL
        if (multiply(p, room, ld, &part, m->cols, x, n, workspace)) continue;
        multiply_rest(p, type, m, of, row, x, n);
        return;
    }
}

bool cublas_products(const cuda_pass *p, dtype type, const gpu_products *m, const packed_rows *x,
                     size_t n, void *workspace) {
    std::lock_guard<std::mutex> held(library_mutex); /* of several GPUs' callers */
    if (!have_library()) return false;
    for (unsigned i = 0; i < m->n; i++) {
        const gpu_product *of = &m->of[i];
        if (type != DTYPE_F16)
            unpacked_product(p, type, m, of, x, n, workspace);
        else if (!multiply(p, of->data, m->units * packed_as<DTYPE_F16>::unit, of, m->cols, x, n,
                           workspace))
            multiply_rest(p, type, m, of, 0, x, n);
    }
    return true;
}
