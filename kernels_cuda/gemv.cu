/* Products of few rows (decoding): every weight is read once, for all rows, as fast as memory gives
 * it.
 *
 * Blocks stay: as many as the GPU holds take sets of rows in turn, so that a large matrix (the
 * output) does not pay for the input again and again, and a set's first loads go out before the
 * sums of the one before it are added up. A warp has R rows of W (neighbours in a panel) and walks
 * over their columns in chunks of 32 units, 512 bytes of quants per row, one 16-byte load per lane
 * and row; the loads of the next chunk are under way while this one is multiplied. `split` warps
 * share the same rows, taking chunks in turn, where rows are too few to fill the GPU. The input,
 * normalized by every block for itself, lies in shared memory in tiles of whole chunks, 32 columns
 * in 36 floats: 8 lanes that read 4 columns of 8 neighbouring units touch all banks once, whatever
 * the unit. What is left of the 36 holds the sums of the 32 columns and of both halves, which the
 * weights' m is multiplied by: d u + m costs no more than d u.
 *
 * Traffic: the matrix once, the input once per block from L2; bound: memory's bandwidth. In flight
 * per warp: R x 512 bytes and their scales, up to twice. Operations per weight: about 2, and one
 * fma per row of input; shared memory 4/R bytes per row of input.
 *
 * A sum's order: a lane's columns within chunk c, c + split, ...; lanes as warp_sum; then the
 * split. It does not depend on the number of rows. */
#include "products.h"

enum {
    FEW_THREADS = 256,    /* of a block, at most */
    TILE_FLOATS = 8192,   /* of the input in shared memory, all rows together, without padding */
    STRIDE = BLOCK + 4,   /* floats that hold a block of 32 columns: its numbers, the sums of its */
    SUM_AT = BLOCK,       /* two halves, */
    SUM_ALL = SUM_AT + 2, /* and of both */
    MOST_WARPS = FEW_THREADS / 32
};

/* How the blocks of a launch share the work. */
typedef struct {
    int split;             /* warps with the same rows */
    unsigned tile_columns; /* whole chunks, or all columns */
    unsigned tile_stride;  /* floats from one row of input to the next */
    unsigned sets; /* of groups of rows, one per warp, or per `split` of them: a block's turns */
} few_plan;

/* Where a group of R rows is. */
typedef struct {
    unsigned product, row; /* of it, the first of the group */
    bool there;
} row_group;

template <int R> DEVICE row_group find_group(const gpu_products &m, unsigned group, bool gated) {
    row_group g = {0, group * (gated ? R / 2 : R), true};
    if (!gated) {
        while (g.product + 1 < m.n && group >= m.of[g.product + 1].first)
            g.product++;
        g.row = (group - m.of[g.product].first) * R;
    }
    g.there = g.row < m.of[g.product].rows;
    return g;
}

/* Columns k ... k+3 of a row of the input, by one load where it lies so. */
DEVICE float4 load_columns(const float *x, unsigned k, unsigned cols) {
    if (cols % 4 == 0 && (uintptr_t)x % 16 == 0) {
        if (k >= cols) return make_float4(0, 0, 0, 0);
        return *(const float4 *)(x + k);
    }
    return make_float4(k < cols ? x[k] : 0, k + 1 < cols ? x[k + 1] : 0,
                       k + 2 < cols ? x[k + 2] : 0, k + 3 < cols ? x[k + 3] : 0);
}

DEVICE bool is_finite(const float4 &v) {
    return v.x * 0 + v.y * 0 + v.z * 0 + v.w * 0 == 0;
}

/* Sums over the block of what each thread has for NB rows; parts [NB][MOST_WARPS]. All get them. */
template <int NB> DEVICE void sums_of_rows(float (&sum)[NB], float *parts) {
    for (int c = 0; c < NB; c++) {
        sum[c] = warp_sum(sum[c]);
        if (threadIdx.x % 32 == 0) parts[c * MOST_WARPS + threadIdx.x / 32] = sum[c];
    }
    __syncthreads();
    for (int c = 0; c < NB; c++) {
        sum[c] = 0;
        for (unsigned w = 0; w < blockDim.x / 32; w++)
            sum[c] += parts[c * MOST_WARPS + w];
    }
    __syncthreads();
}

/* Where row c of the input is in the source; rows past the last are the first. */
DEVICE unsigned find_row(const gpu_input &in, unsigned c) {
    unsigned i = c < in.n ? c : 0;
    return in.rows ? (unsigned)in.rows[i] : i;
}

/* Columns k ... k+3 of all rows: loads that do not wait for each other. */
template <int NB>
DEVICE void load_rows(const gpu_input &in, unsigned k, unsigned cols, float4 (&v)[NB]) {
    UNROLL
    for (int c = 0; c < NB; c++)
        v[c] = load_columns(in.src + (size_t)find_row(in, (unsigned)c) * cols, k, cols);
}

/* Every row's mean (0 for RMS) and scale, to norms [2][NB]; looks for numbers that are not finite.
 */
template <int NB>
DEVICE void norms_of_rows(const gpu_input &in, unsigned cols, float *parts, float *norms) {
    unsigned broken = 0;
    float mean[NB] = {};
    bool looks = in.not_finite && blockIdx.x == 0;
    if (!in.w && !looks) return;
    for (int pass = in.layer_norm && in.w ? 0 : 1; pass < 2; pass++) {
        float sum[NB] = {};
        for (unsigned k = threadIdx.x * 4; k < cols; k += blockDim.x * 4) {
            float4 v[NB];
            load_rows<NB>(in, k, cols, v);
            UNROLL
            for (int c = 0; c < NB; c++) {
                if (!is_finite(v[c])) broken |= 1u << c;
                if (pass == 0) {
                    sum[c] += (v[c].x + v[c].y) + (v[c].z + v[c].w);
                    continue;
                }
                float x = v[c].x - mean[c], y = k + 1 < cols ? v[c].y - mean[c] : 0,
                      z = k + 2 < cols ? v[c].z - mean[c] : 0,
                      w = k + 3 < cols ? v[c].w - mean[c] : 0;
                sum[c] = fmaf(x, x, sum[c]);
                sum[c] = fmaf(y, y, sum[c]);
                sum[c] = fmaf(z, z, sum[c]);
                sum[c] = fmaf(w, w, sum[c]);
            }
        }
        if (!in.w) break;
        sums_of_rows<NB>(sum, parts);
        for (int c = 0; c < NB; c++) {
            if (pass == 0) {
                mean[c] = sum[c] / (float)cols;
            } else if (threadIdx.x == 0) { /* read after stage_input's barrier */
                norms[c] = mean[c];
                norms[NB + c] = 1.0f / sqrtf(sum[c] / (float)cols + in.eps);
            }
        }
    }
    for (int c = 0; c < NB; c++)
        if (looks && broken >> c & 1)
            atomicMin(in.not_finite, in.place | find_row(in, (unsigned)c));
}

/* Columns [from, to) of the normalized input to shared memory; both are multiples of 32 but for the
 * last, which is rounded up to one with zeros. */
template <int NB>
DEVICE void stage_input(const gpu_input &in, unsigned cols, unsigned from, unsigned to,
                        const float *norms, float *tile, unsigned stride) {
    __syncthreads(); /* norms are there, the tile is no longer read */
    unsigned end = (to - from + BLOCK - 1) / BLOCK * (BLOCK / 4);
    /* Whole warps: 4 lanes add up 16 columns, 8 lanes 32. */
    for (unsigned i = threadIdx.x; i / 32 * 32 < end; i += blockDim.x) {
        unsigned k = from + 4 * min(i, end - 1);
        float4 all[NB], w = make_float4(1, 1, 1, 1), b = make_float4(0, 0, 0, 0);
        load_rows<NB>(in, k, cols, all);
        if (in.w) w = load_columns(in.w, k, cols);
        if (in.b) b = load_columns(in.b, k, cols);
        for (int c = 0; c < NB; c++) {
            float4 v = all[c];
            if (in.w) {
                v.x = (v.x - norms[c]) * norms[NB + c] * w.x + b.x;
                v.y = (v.y - norms[c]) * norms[NB + c] * w.y + b.y;
                v.z = (v.z - norms[c]) * norms[NB + c] * w.z + b.z;
                v.w = (v.w - norms[c]) * norms[NB + c] * w.w + b.w;
            }
            float half = (v.x + v.y) + (v.z + v.w);
            half += __shfl_xor_sync(~0u, half, 1);
            half += __shfl_xor_sync(~0u, half, 2);
            float both = half + __shfl_xor_sync(~0u, half, 4);
            if (i >= end) continue;
            float *block = tile + c * stride + i / 8 * STRIDE;
            *(float4 *)(block + i % 8 * 4) = v;
            if (i % 4 == 0) block[SUM_AT + i % 8 / 4] = half;
            if (i % 8 == 0) block[SUM_ALL] = both;
        }
    }
    __syncthreads();
}

/* acc += W x for a unit of R rows; x of the first row of input, the others `stride` floats on. */
template <dtype T, int R, int NB>
DEVICE void multiply_unit(const packed_unit (&raw)[R], unsigned u, const float *block, unsigned in,
                          unsigned stride, float (&acc)[R][NB]) {
    typedef packed_as<T> k;
    unit_scale s[R];
    UNROLL
    for (int step = 0; step < (int)k::steps; step++) {
        float w[R][4];
        UNROLL
        for (int r = 0; r < R; r++) {
            if constexpr (!k::is_float)
                if (step % (int)k::scale_steps == 0) s[r] = scale_of<T>(raw[r], u, step);
            step_values<T>(raw[r], s[r], step, w[r]);
        }
        UNROLL
        for (int c = 0; c < NB; c++) {
            float4 x = *(const float4 *)(block + c * stride + in + 4 * step);
            UNROLL
            for (int r = 0; r < R; r++) {
                float sum = fmaf(w[r][0], x.x, acc[r][c]);
                sum = fmaf(w[r][1], x.y, sum);
                sum = fmaf(w[r][2], x.z, sum);
                acc[r][c] = fmaf(w[r][3], x.w, sum);
            }
        }
        if constexpr (!k::is_float)
            if ((step + 1) % (int)k::scale_steps == 0) {
                unsigned half = (in + 4 * step) / 16;
                unsigned at = k::scale_steps == 8 ? +SUM_ALL : SUM_AT + half;
                UNROLL
                for (int c = 0; c < NB; c++) {
                    float sum = block[c * stride + at];
                    UNROLL
                    for (int r = 0; r < R; r++)
                        acc[r][c] = fmaf(s[r].m, sum, acc[r][c]);
                }
            }
    }
}

/* Sums of V values over the lanes (V a power of two up to 32), in the order of warp_sum; lane l
 * gets that of value l / (32 / V). */
template <int V> DEVICE float sums_of_lanes(float (&v)[V]) {
    unsigned lane = threadIdx.x % 32;
    int left = V;
    UNROLL
    for (int step = 16; step; step /= 2) {
        if (left == 1) {
            v[0] += __shfl_xor_sync(~0u, v[0], step);
            continue;
        }
        left /= 2;
        bool upper = lane & (unsigned)step;
        UNROLL
        for (int i = 0; i < V / 2; i++) {
            if (i >= left) break;
            float give = upper ? v[i] : v[i + left], keep = upper ? v[i + left] : v[i];
            v[i] = keep + __shfl_xor_sync(~0u, give, step);
        }
    }
    return v[0];
}

/* Adds up the parts [groups][split][R][NB] of the sums of groups from `first` on, and writes them.
 */
template <int R, int NB>
DEVICE void finish(const gpu_products &m, unsigned first, unsigned groups, unsigned split,
                   unsigned n, bool gated, const float *parts) {
    enum { V = R * NB };
    unsigned i = threadIdx.x % V, group = threadIdx.x / V, c = i % NB;
    if (group >= groups || c >= n) return;
    row_group g = find_group<R>(m, first + group, gated);
    unsigned row = g.row + i / NB;
    const gpu_product &of = m.of[g.product];
    if (row >= of.rows || (gated && i >= V / 2)) return;
    const float *part = parts + group * split * V + i;
    float sum = part[0];
    for (unsigned s = 1; s < split; s++)
        sum += part[s * V];
    if (of.bias) sum += of.bias[row];
    float *y = of.y + c * of.ldy + row;
    if (m.activation != NO_ACTIVATION) {
        float up = 0;
        if (gated) {
            up = part[V / 2];
            for (unsigned s = 1; s < split; s++)
                up += part[s * V + V / 2];
            if (m.of[1].bias) up += m.of[1].bias[row];
        }
        sum = activated(m.activation, sum, up);
    }
    *y = of.add ? *y + sum : sum;
}

template <dtype T, int R, int NB>
__global__ void __launch_bounds__(FEW_THREADS, NB <= 4 ? 2 : 1)
    multiply_few(gpu_products m, gpu_input in, few_plan plan) {
    typedef packed_as<T> k;
    enum { V = R * NB, CHUNK = 32 * k::unit };
    DYNAMIC_SHARED(float, tile);
    SHARED(float, parts, [MOST_WARPS * V]);
    SHARED(float, norms, [2 * NB]);
    static_assert(V >= NB, "norms use it too");
    bool gated = m.activation != NO_ACTIVATION && m.activation != FFN_GELU;
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, split = (unsigned)plan.split;
    unsigned groups = blockDim.x / 32 / split, units = m.units, stride = plan.tile_stride;
    bool one_tile = plan.tile_columns >= m.cols;

    /* The group of rows at hand, and its chunk that is loaded. */
    const uint8_t *panels[2];
    unsigned r, chunks, chunk;
    packed_unit raw[R] = {}, next[R] = {};
#define LOAD(to, chunk)                                                                            \
    if ((chunk) < chunks && (chunk)*32 + lane < units)                                             \
        for (int i = 0; i < R; i++)                                                                \
            to[i] = load_unit<T>(panels[i >= R / 2], r + (unsigned)i - (i >= R / 2 ? back : 0),    \
                                 (chunk)*32 + lane, units);
#define BEGIN(set)                                                                                 \
    do {                                                                                           \
        row_group g = find_group<R>(m, (set)*groups + warp / split, gated);                        \
        r = g.row % PANEL;                                                                         \
        chunks = g.there ? (units + 31) / 32 : 0;                                                  \
        chunk = warp % split;                                                                      \
        if (g.there) {                                                                             \
            panels[0] = m.of[g.product].data + g.row / PANEL * m.panel_bytes;                      \
            panels[1] = gated ? m.of[1].data + g.row / PANEL * m.panel_bytes : panels[0];          \
        }                                                                                          \
        LOAD(raw, chunk)                                                                           \
    } while (0)
    unsigned back = gated ? R / 2 : 0; /* the second half's rows begin again */
    BEGIN(blockIdx.x);
    let_next_start();
    wait_for_previous(); /* weights do not change; all else does */
    norms_of_rows<NB>(in, m.cols, parts, norms);

    for (unsigned set = blockIdx.x; set < plan.sets; set += gridDim.x) {
        float acc[R][NB];
        for (int i = 0; i < R; i++)
            for (int c = 0; c < NB; c++)
                acc[i][c] = 0;
        for (unsigned from = 0; from < m.cols; from += plan.tile_columns) {
            unsigned to = min(from + plan.tile_columns, m.cols);
            if (!one_tile || set == blockIdx.x)
                stage_input<NB>(in, m.cols, from, to, norms, tile, stride);
            for (; chunk < chunks && chunk * CHUNK < to; chunk += split) {
                LOAD(next, chunk + split)
                unsigned u = chunk * 32 + lane, column = u * k::unit - from;
                if (u < units)
                    multiply_unit<T, R, NB>(raw, u, tile + column / BLOCK * STRIDE, column % BLOCK,
                                            stride, acc);
                for (int i = 0; i < R; i++)
                    raw[i] = next[i];
            }
        }
        if (set + gridDim.x < plan.sets) BEGIN(set + gridDim.x);

        float values[V];
        for (int i = 0; i < V; i++)
            values[i] = acc[i / NB][i % NB];
        float sum = sums_of_lanes<V>(values);
        if (lane % (32 / V) == 0) parts[warp * V + lane / (32 / V)] = sum;
        __syncthreads();
        finish<R, NB>(m, set * groups, groups, split, in.n, gated, parts);
        __syncthreads(); /* parts may be written again */
    }
#undef BEGIN
#undef LOAD
}

/* ---- Launches ----------------------------------------------------------------------------- */

/* Warps that an SM should have at work, each with up to 4 KB under way (an H200 wants 40 KB): as
 * many as their registers allow. */
enum { WARPS_PER_SM = 16 };

template <dtype T, int R, int NB>
static void launch_few(const cuda_pass *p, const gpu_products *of, const gpu_input *in) {
    enum { CHUNK = 32 * packed_as<T>::unit };
    gpu_products m = *of;
    bool gated = is_gated(m.activation);
    unsigned groups = 0, chunks = (m.units + 31) / 32, sms = (unsigned)p->sm_count;
    for (unsigned i = 0; i < (gated ? 1 : m.n); i++) {
        m.of[i].first = groups;
        groups += (m.of[i].rows + (gated ? R / 2 : R) - 1) / (gated ? R / 2 : R);
    }
    unsigned split = 1, warps = MOST_WARPS;
    while (split < MOST_WARPS && 2 * split <= chunks && groups * split * 2 <= sms * WARPS_PER_SM)
        split *= 2;
    while (warps > split && groups * split / warps < sms)
        warps /= 2;
    unsigned per_block = warps / split, sets = (groups + per_block - 1) / per_block;
    unsigned resident = sms * WARPS_PER_SM / (NB <= 4 ? 1 : 2) / warps;
    size_t columns = min_size(TILE_FLOATS / NB / CHUNK * CHUNK, round_up(m.cols, BLOCK));
    size_t stride = round_up(columns, BLOCK) / BLOCK * STRIDE;
    few_plan plan = {(int)split, (unsigned)columns, (unsigned)stride, sets};
    launch_overlapped(p->stream, dim3((unsigned)min_size(sets, max_size(resident, 1))),
                      dim3(warps * 32), NB * stride * sizeof(float), multiply_few<T, R, NB>, m, *in,
                      plan);
}

/* Four rows per warp share what is read of the input; two where that leaves SMs idle. */
template <dtype T, int NB>
static void choose_rows(const cuda_pass *p, const gpu_products *m, const gpu_input *in) {
    size_t rows = 0;
    for (unsigned i = 0; i < m->n; i++)
        rows += m->of[i].rows;
    if (rows / 4 >= 8 * (size_t)p->sm_count)
        launch_few<T, 4, NB>(p, m, in);
    else
        launch_few<T, 2, NB>(p, m, in);
}

void few_products(const cuda_pass *p, dtype type, const gpu_products *m, const gpu_input *in) {
#define CALL(T)                                                                                    \
    if (in->n == 1)                                                                                \
        choose_rows<T, 1>(p, m, in);                                                               \
    else if (in->n == 2)                                                                           \
        choose_rows<T, 2>(p, m, in);                                                               \
    else if (in->n <= 4)                                                                           \
        choose_rows<T, 4>(p, m, in);                                                               \
    else                                                                                           \
        choose_rows<T, 8>(p, m, in)
    FOR_DTYPE(type, CALL)
#undef CALL
}
