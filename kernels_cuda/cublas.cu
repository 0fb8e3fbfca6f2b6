/* Products of very many rows by cuBLASLt, which knows each GPU's tensor cores (Hopper's take their
 * tiles by instructions of their own): f16 x f16, summed in float32. Panels of f16 are row-major as
 * they lie; other types are unpacked to f16, as many rows at a time as fit in a room that L2 holds.
 * The library is opened when it is first wanted and is needed neither to build nor to run; its
 * header is, to build.
 *
 * In the emulation a plain loop stands for the library. */
#include "products.h"

#include <mutex>

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

/* How a product of one shape is done. */
typedef struct {
    size_t rows, cols, n, ldw, ldx, ldy;
    device_stream stream; /* its GPU */
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} known_shape;

typedef struct {
#define FIELD(name) decltype(&::name) name;
    FOR_CUBLAS(FIELD)
#undef FIELD
    cublasLtHandle_t handle; /* NULL: the library is not to be had */
    bool tried;
    known_shape shapes[64]; /* the last ones, in turn */
    size_t n_shapes;
} cublas_library;

static cublas_library *library(void) {
    static cublas_library lib;
    if (lib.tried) return lib.handle ? &lib : NULL;
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
    if (lib.cublasLtCreate(&lib.handle) != CUBLAS_STATUS_SUCCESS) lib.handle = NULL;
    return lib.handle ? &lib : NULL;
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
static const known_shape *choose(cublas_library *lib, const known_shape *k, const matmul_shape *s) {
    for (size_t i = 0; i < min_size(lib->n_shapes, 64); i++) {
        const known_shape *o = &lib->shapes[i];
        if (o->rows == k->rows && o->cols == k->cols && o->n == k->n && o->ldw == k->ldw &&
            o->ldx == k->ldx && o->ldy == k->ldy && o->stream == k->stream)
            return o;
    }
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found = {};
    int n_found = 0;
    size_t workspace = CUBLAS_WORKSPACE;
    if (lib->cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return NULL;
    lib->cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace, sizeof workspace);
    lib->cublasLtMatmulAlgoGetHeuristic(lib->handle, s->what, s->w, s->x, s->y, s->y, preference, 1,
                                        &found, &n_found);
    lib->cublasLtMatmulPreferenceDestroy(preference);
    if (!n_found) return NULL;
    known_shape *o = &lib->shapes[lib->n_shapes++ % 64];
    *o = *k;
    o->algorithm = found.algo;
    o->workspace = found.workspaceSize;
    return o;
}

static bool have_library(void) {
    return library() != NULL;
}

/* y [n, ldy] = alpha W x, or y +=. */
static bool multiply(const cuda_pass *p, const void *w, size_t ldw, const gpu_product *m,
                     size_t cols, const packed_rows *x, size_t n, void *workspace) {
    cublas_library *lib = library();
    /* The stream itself is the device layer's: a launch that never happens brings it here. */
    launch_shape shape = launch_as("cublasLtMatmul", dim3(1), dim3(1), 0, false, false);
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    if (!device_prepare(p->stream, shape, NULL, &config, attributes)) return true; /* kept */
    known_shape wanted = {};
    wanted.rows = m->rows;
    wanted.cols = cols;
    wanted.n = n;
    wanted.ldw = ldw;
    wanted.ldx = x->ld;
    wanted.ldy = m->ldy;
    wanted.stream = p->stream;
    matmul_shape s = {};
    float alpha = x->scale, beta = m->add ? 1 : 0;
    const known_shape *k = create_shape(lib, &s, &wanted) ? choose(lib, &wanted, &s) : NULL;
    bool done = k && lib->cublasLtMatmul(lib->handle, s.what, &alpha, w, s.w, x->at, s.x, &beta,
                                         m->y, s.y, m->y, s.y, &k->algorithm, workspace,
                                         k->workspace, config.stream) == CUBLAS_STATUS_SUCCESS;
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

static bool unpacked_product(const cuda_pass *p, dtype type, const gpu_products *m,
                             const gpu_product *of, const packed_rows *x, size_t n,
                             void *workspace) {
    uint16_t *room = (uint16_t *)((uint8_t *)workspace + CUBLAS_OWN);
    size_t ld = round_up(m->cols, 8);
    unsigned most = (unsigned)min_size(CUBLAS_UNPACKED / (ld * sizeof *room), 32768);
    for (unsigned row = 0; row < of->rows; row += most) {
        gpu_product part = *of;
        part.rows = (unsigned)min_size(most, of->rows - row);
        part.y += row;
#define CALL(T)                                                                                    \
    launch(p->stream, dim3((m->units + 63) / 64, part.rows), dim3(64), 0, unpack<T>, of->data,     \
           m->panel_bytes, m->units, row, room, ld)
        FOR_DTYPE(type, CALL)
#undef CALL
        if (!multiply(p, room, ld, &part, m->cols, x, n, workspace)) return false;
    }
    return true;
}

bool cublas_products(const cuda_pass *p, dtype type, const gpu_products *m, const packed_rows *x,
                     size_t n, void *workspace) {
    std::lock_guard<std::mutex> held(library_mutex); /* of several GPUs' callers */
    if (!have_library()) return false;
    for (unsigned i = 0; i < m->n; i++) {
        const gpu_product *of = &m->of[i];
        bool done = type == DTYPE_F16 ? multiply(p, of->data, m->units * packed_as<DTYPE_F16>::unit,
                                                 of, m->cols, x, n, workspace)
                                      : unpacked_product(p, type, m, of, x, n, workspace);
        if (!done) return false;
    }
    return true;
}
