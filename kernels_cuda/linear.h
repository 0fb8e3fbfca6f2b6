/* What kernels of linear attention share: sums over the rows of a row-major matrix by a whole block
 * of LINEAR_THREADS, be it a map (u = W^T x) or a state (y = S^T phi). Threads lie side by side
 * along a row, so that a warp loads whole sectors, and down the rows; each has AHEAD loads under
 * way. */
#ifndef LINEAR_H
#define LINEAR_H

#include "device.h"

enum {
    LINEAR_THREADS = 256,
    LINEAR_WARPS = LINEAR_THREADS / 32,
    LINEAR_COLUMNS = 128,                           /* most columns of a pass */
    LINEAR_SCRATCH = LINEAR_WARPS * LINEAR_COLUMNS, /* floats of sum_rows */
    AHEAD = 4
};

/* VEC neighbouring floats as one load or store. */
template <int VEC> struct floats { float at[VEC]; };

template <int VEC> DEVICE floats<VEC> load_floats(const float *p) {
    floats<VEC> r;
    if (VEC == 4) {
        uint4 w = load16(p);
        r.at[0] = __uint_as_float(w.x);
        r.at[VEC > 1 ? 1 : 0] = __uint_as_float(w.y);
        r.at[VEC > 2 ? 2 : 0] = __uint_as_float(w.z);
        r.at[VEC > 3 ? 3 : 0] = __uint_as_float(w.w);
    } else
        for (int i = 0; i < VEC; i++)
            r.at[i] = p[i];
    return r;
}

template <int VEC> DEVICE void store_floats(float *p, const floats<VEC> &r) {
    if (VEC == 4)
        *(float4 *)(void *)p = make_float4(r.at[0], r.at[VEC > 1 ? 1 : 0], r.at[VEC > 2 ? 2 : 0],
                                           r.at[VEC > 3 ? 3 : 0]);
    else
        for (int i = 0; i < VEC; i++)
            p[i] = r.at[i];
}

/* Where this thread stands in a pass over `cols` columns: at column `column`, in every `step`-th
 * row from `row`. */
template <int VEC> struct pass_place { int lanes, column, row, step; };

template <int VEC> DEVICE pass_place<VEC> place_in_pass(int cols) {
    int lanes = 1;
    while (lanes < 32 && lanes * VEC < cols)
        lanes *= 2;
    int t = (int)threadIdx.x;
    return {lanes, t % lanes * VEC, t / lanes, LINEAR_THREADS / lanes};
}

/* The sums of all threads' `sum`, per column: finish(column, sum) is called once for each of
 * `cols`, by different threads. Starts behind a barrier or with scratch unused; ends with one. */
template <int VEC, class F>
DEVICE void sum_places(const pass_place<VEC> &at, int cols, floats<VEC> sum, float *scratch,
                       F finish) {
    int t = (int)threadIdx.x;
    for (int step = 16; step >= at.lanes; step /= 2)
        for (int i = 0; i < VEC; i++)
            sum.at[i] += __shfl_xor_sync(~0u, sum.at[i], step);
    if (t % 32 < at.lanes) store_floats<VEC>(scratch + t / 32 * LINEAR_COLUMNS + at.column, sum);
    __syncthreads();
    for (int c = t; c < cols; c += LINEAR_THREADS) {
        float total = scratch[c];
        for (int w = 1; w < LINEAR_WARPS; w++)
            total += scratch[w * LINEAR_COLUMNS + c];
        finish(c, total);
    }
    __syncthreads();
}

/* Over rows 0 ... rows-1 of at most LINEAR_COLUMNS columns: load(row, column) gives VEC numbers,
 * use(row, numbers, sum) adds to `sum`. All loads of a batch come before its uses, so `use` may
 * write where `load` read. */
template <int VEC, class L, class U, class F>
DEVICE void sum_rows(int rows, int cols, float *scratch, L load, U use, F finish) {
    pass_place<VEC> at = place_in_pass<VEC>(cols);
    floats<VEC> sum = {}, loaded[AHEAD];
    if (at.column < cols)
        for (int first = at.row; first < rows; first += AHEAD * at.step) {
            for (int i = 0; i < AHEAD; i++)
                if (first + i * at.step < rows) loaded[i] = load(first + i * at.step, at.column);
            for (int i = 0; i < AHEAD; i++)
                if (first + i * at.step < rows) use(first + i * at.step, loaded[i], sum);
        }
    sum_places<VEC>(at, cols, sum, scratch, finish);
}

/* finish(c, sum over r of w[r][c] x[r]) for a matrix w [rows][cols]. */
template <int VEC, class F>
DEVICE void multiply_transposed(const float *w, const float *x, int rows, int cols, float *scratch,
                                F finish) {
    for (int c0 = 0; c0 < cols; c0 += 32 * VEC)
        sum_rows<VEC>(
            rows, min(cols - c0, 32 * VEC), scratch,
            [=](int r, int c) { return load_floats<VEC>(w + (size_t)r * cols + c0 + c); },
            [=](int r, const floats<VEC> &row, floats<VEC> &sum) {
                for (int i = 0; i < VEC; i++)
                    sum.at[i] += x[r] * row.at[i];
            },
            [=](int c, float sum) { finish(c0 + c, sum); });
}

/* Columns of a state that a block takes: few enough that `heads` of `cols` columns fill the GPU,
 * but whole sectors. */
static inline int linear_columns(size_t heads, int cols, int vec, size_t blocks_wanted) {
    int of_block = 32 * vec;
    while (of_block > 16 && heads * (((size_t)cols + of_block - 1) / of_block) * 2 <= blocks_wanted)
        of_block /= 2;
    return of_block;
}

/* Runs that one launch takes where `slices` blocks share a head: each head has a counter. */
static inline size_t linear_runs(size_t n_runs, size_t heads, size_t slices, size_t counters) {
    return slices == 1 ? n_runs : min_size(n_runs, counters / heads);
}

/* True in every thread of the last of `blocks` to come; what the others did before is visible.
 * *counter is zero before and after. */
DEVICE bool last_of_blocks(unsigned *counter, unsigned blocks) {
    if (blocks == 1) return true;
    SHARED(int, last, [1]);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last[0] = atomicInc(counter, blocks - 1) == blocks - 1;
        __threadfence();
    }
    __syncthreads();
    return last[0] != 0;
}

#endif
