#include "sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Random numbers ---------------------------------------------------------------------- */

void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    /* The paper's multipliers, and the Weyl steps of the key: the golden ratio and sqrt(3) - 1. */
    const uint32_t m0 = 0xD2511F53, m1 = 0xCD9E8D57, w0 = 0x9E3779B9, w1 = 0xBB67AE85;
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)m0 * c0, b = (uint64_t)m1 * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        k0 += w0;
        k1 += w1;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

double sample_uniform(uint64_t seed, uint64_t position) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    uint32_t r[4];
    philox4x32_10(counter, key, r);
    return (double)(((uint64_t)r[0] << 32 | r[1]) >> 11) * 0x1p-53;
}

/* ---- Settings ---------------------------------------------------------------------------- */

linnet_status sample_check(const linnet_sampling *s, size_t n_ids, linnet_error *err) {
    /* Written as !(inside), so that NaN is outside. */
    if (!(s->temperature >= 0 && s->temperature <= SAMPLE_MAX_TEMPERATURE))
        return fail(err, LINNET_ERR_ARGUMENT, "temperature must be in [0, %d], not %g",
                    SAMPLE_MAX_TEMPERATURE, (double)s->temperature);
    if (s->top_k < 0)
        return fail(err, LINNET_ERR_ARGUMENT, "top_k must be >= 0 (0 = off), not %d", s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return fail(err, LINNET_ERR_ARGUMENT, "top_p must be in (0, 1] (1 = off), not %g",
                    (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return fail(err, LINNET_ERR_ARGUMENT, "min_p must be in [0, 1] (0 = off), not %g",
                    (double)s->min_p);
    if (!(s->repeat_penalty > 0 && s->repeat_penalty < INFINITY))
        return fail(err, LINNET_ERR_ARGUMENT,
                    "repeat_penalty must be positive and finite (1 = off), not %g",
                    (double)s->repeat_penalty);
    if (s->repeat_last < 0)
        return fail(err, LINNET_ERR_ARGUMENT, "repeat_last must be >= 0, not %d", s->repeat_last);
    if (s->n_bias && !s->bias)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "logit bias: %zu entries announced, but the list "
                    "is NULL",
                    s->n_bias);
    for (size_t i = 0; i < s->n_bias; i++) {
        const linnet_logit_bias *b = &s->bias[i];
        if (b->token < 0 || (size_t)b->token >= n_ids)
            return fail(err, LINNET_ERR_ARGUMENT,
                        "logit bias: token %d is not in the model's vocabulary [0, %zu)", b->token,
                        n_ids);
        if (!(b->bias < INFINITY))
            return fail(err, LINNET_ERR_ARGUMENT,
                        "logit bias of token %d must be a number or -inf, not %g", b->token,
                        (double)b->bias);
    }
    return LINNET_OK;
}

/* ---- Candidates -------------------------------------------------------------------------- */

typedef struct {
    double weight; /* exp((logit - largest logit) / temperature), not normalised */
    float logit;
    int32_t id;
} candidate;

enum { N_INLINE = 256 };

/* What may be drawn. `at` is `few` or an allocation. */
typedef struct {
    candidate *at;
    size_t n;
    candidate few[N_INLINE];
} candidates;

/* True if a stands before b: larger logit, lower id among equals. A total order. */
static inline bool before(const candidate *a, const candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* Restores the heap property below c[i]: at the root stands the candidate after all others. */
static void sift_down(candidate *c, size_t n, size_t i) {
    const candidate x = c[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(&c[child], &c[child + 1])) child++;
        if (!before(&x, &c[child])) break;
        c[i] = c[child];
    }
    c[i] = x;
}

/* The k < n largest of x, in any order. */
static void select_top(const float *x, size_t n, size_t k, candidate *c) {
    for (size_t i = 0; i < k; i++)
        c[i] = (candidate){0, x[i], (int32_t)i};
    for (size_t i = k / 2; i-- > 0;)
        sift_down(c, k, i);
    for (size_t i = k; i < n; i++) {
        if (x[i] <= c[0].logit) continue; /* an equal one has the higher id */
        c[0] = (candidate){0, x[i], (int32_t)i};
        sift_down(c, k, 0);
    }
}

static int by_id(const void *a, const void *b) {
    int32_t x = ((const candidate *)a)->id, y = ((const candidate *)b)->id;
    return (x > y) - (x < y);
}

/* The candidate at which the running sum of weights, from the first on, reaches `target`; the last
 * one if the sum stays below. Quickselect (Hoare 1961) on sums instead of ranks: O(n) expected, for
 * every input, because the pivots are random numbers. Reorders c. */
static candidate crossing(candidate *c, size_t n, double target) {
    double above = 0;
    uint32_t random = 1;
    while (n > 1) {
        random = random * 1664525 + 1013904223;
        size_t at = (size_t)((uint64_t)random * n >> 32), first = 0;
        const candidate pivot = c[at];
        c[at] = c[n - 1];
        double mass = 0;
        for (size_t i = 0; i < n - 1; i++) {
            if (!before(&c[i], &pivot)) continue;
            candidate swap = c[i];
            c[i] = c[first];
            c[first++] = swap;
            mass += swap.weight;
        }
        c[n - 1] = c[first]; /* the pivot goes between those before it and those after it */
        c[first] = pivot;
        if (first > 0 && above + mass >= target) {
            n = first;
        } else if (above + mass + pivot.weight >= target || first + 1 == n) {
            return pivot;
        } else {
            above += mass + pivot.weight;
            c += first + 1;
            n -= first + 1;
        }
    }
    return c[0];
}

/* Keeps of c[*n], in order of ids, what is not after the crossing of `target`. */
static linnet_status keep_to_crossing(candidate *c, size_t *n, double target, linnet_error *err) {
    candidate *work = malloc(*n * sizeof *work);
    if (!work) return fail(err, LINNET_ERR_MEMORY, "no memory to sample among %zu tokens", *n);
    memcpy(work, c, *n * sizeof *work);
    const candidate last = crossing(work, *n, target);
    free(work);
    size_t kept = 0;
    for (size_t i = 0; i < *n; i++)
        if (!before(&last, &c[i])) c[kept++] = c[i];
    *n = kept;
    return LINNET_OK;
}

enum { LEAST_EXPONENT = -708 }; /* e^-708 = 3e-308: what is below weighs nothing */

/* x[i] = e^x[i] for x[i] in [LEAST_EXPONENT, 0]. x = k ln 2 + r with |r| <= ln 2 / 2; e^r by its
 * Taylor series to r^13 (the rest is < 5e-18); 2^k through the exponent bits. Only additions and
 * multiplications, so the same bits wherever double is IEEE 754. */
static inline void exponentials(double *x, size_t n) {
    const double shift = 0x1.8p52; /* adding it rounds to an integer, found in the low bits */
#ifndef __clang__                  /* which vectorises it unasked, and warns where it cannot */
#pragma omp simd
#endif
    for (size_t i = 0; i < n; i++) {
        union {
            double f;
            uint64_t bits;
        } k = {x[i] * 0x1.71547652b82fep+0 + shift}, scale; /* 1 / ln 2 */
        double whole = k.f - shift;
        /* ln 2 in two parts, the first short enough for an exact product */
        double r = x[i] - whole * 0x1.62e42fefa0000p-1 - whole * 0x1.cf79abc9e3b3ap-40;
        double e = 1.0 / 6227020800;
        e = e * r + 1.0 / 479001600;
        e = e * r + 1.0 / 39916800;
        e = e * r + 1.0 / 3628800;
        e = e * r + 1.0 / 362880;
        e = e * r + 1.0 / 40320;
        e = e * r + 1.0 / 5040;
        e = e * r + 1.0 / 720;
        e = e * r + 1.0 / 120;
        e = e * r + 1.0 / 24;
        e = e * r + 1.0 / 6;
        e = e * r + 0.5;
        e = e * r + 1.0;
        e = e * r + 1.0;
        scale.bits = (k.bits + 1023) << 52; /* the bits of `shift` leave through the top */
        x[i] = e * scale.f;
    }
}

/* Bias, mask and penalty applied to a copy of logits[n] (free it), or *out = NULL if nothing
 * changes. */
static linnet_status adjust(const linnet_sampling *s, const float *logits, size_t n,
                            const int32_t *history, size_t n_history, float **out,
                            linnet_error *err) {
    *out = NULL;
    size_t window = min_size(n_history, (size_t)s->repeat_last);
    bool penalise = s->repeat_penalty != 1 && window > 0;
    if (!penalise && s->n_bias == 0 && !s->allowed) return LINNET_OK;

    float *x = malloc(n * sizeof *x);
    uint8_t *seen = calloc(n / 8 + 1, 1); /* one bit for each id */
    if (!x || !seen) {
        free(x);
        free(seen);
        return fail(err, LINNET_ERR_MEMORY, "no memory to sample among %zu tokens", n);
    }
    memcpy(x, logits, n * sizeof *x);
    for (size_t i = 0; i < s->n_bias; i++)
        x[s->bias[i].token] += s->bias[i].bias;
    for (size_t word = 0; s->allowed && word < (n + 31) / 32; word++) {
        uint32_t out_of_it = ~s->allowed[word];
        for (size_t i = word * 32; out_of_it && i < n && i < word * 32 + 32; i++)
            if (out_of_it >> (i % 32) & 1) x[i] -= INFINITY; /* as a bias: NaN stays NaN */
    }
    for (size_t i = penalise ? n_history - window : n_history; i < n_history; i++) {
        int32_t id = history[i];
        if (id < 0 || (size_t)id >= n || seen[id / 8] >> (id % 8) & 1) continue;
        seen[id / 8] |= (uint8_t)(1 << (id % 8));
        x[id] = x[id] > 0 ? x[id] / s->repeat_penalty : x[id] * s->repeat_penalty;
    }
    free(seen);
    *out = x;
    return LINNET_OK;
}

/* The largest of x[n] as vectors find it; *numbers: none of them is NaN. */
static float maximum(const float *x, size_t n, bool *numbers) {
    float max = -INFINITY;
    int nans = 0;
#ifndef __clang__ /* which warns where it cannot */
#pragma omp simd reduction(max : max) reduction(| : nans)
#endif
    for (size_t i = 0; i < n; i++) {
        max = x[i] > max ? x[i] : max;
        nans |= x[i] != x[i];
    }
    *numbers = !nans;
    return max;
}

/* The largest of x[n], the first among equals. */
static linnet_status largest(const float *x, size_t n, bool adjusted, int32_t *best,
                             linnet_error *err) {
    static const char after[] = " (after logit bias, mask and repetition penalty)";
    bool numbers;
    float max = maximum(x, n, &numbers);
    size_t at = 0;
    while (at < n && (numbers ? x[at] != max : x[at] == x[at]))
        at++;
    if (!numbers)
        return fail(err, LINNET_ERR_NUMERIC, "logits: row %zu of %zu is NaN%s", at, n,
                    adjusted ? after : "");
    if (max == INFINITY)
        return fail(err, LINNET_ERR_NUMERIC, "logits: row %zu of %zu is +infinity%s", at, n,
                    adjusted ? after : "");
    if (max == -INFINITY)
        return fail(err, LINNET_ERR_NUMERIC,
                    "logits: all %zu rows are -infinity%s, no token is left to pick", n,
                    adjusted ? after : "");
    *best = (int32_t)at;
    return LINNET_OK;
}

/* Compiled once for each width of vectors, and chosen when the program starts: the same operations
 * in the same order, so the same bits. Sanitizers come too late for that choice. */
#if defined __x86_64__ && defined __linux__ && defined __GNUC__ && !defined __clang__ &&           \
    !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
#define FOR_EVERY_WIDTH __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FOR_EVERY_WIDTH
#endif

enum { BLOCK = 64, LANES = 8 };

/* The weights of x[n], n <= BLOCK, in w[BLOCK], zeros behind them. */
static inline void weigh_block(const float *x, size_t n, double max, double per_temperature,
                               double *w) {
    double clamped[BLOCK];
    for (size_t i = 0; i < BLOCK; i++) {
        w[i] = i < n ? ((double)x[i] - max) * per_temperature : -INFINITY;
        clamped[i] = w[i] > LEAST_EXPONENT ? w[i] : LEAST_EXPONENT;
    }
    exponentials(clamped, BLOCK);
    for (size_t i = 0; i < BLOCK; i++)
        w[i] = w[i] < LEAST_EXPONENT ? 0 : clamped[i];
}

/* Sums of w[BLOCK] by every LANES-th, which compilers vectorise, then of those. */
static inline double sum_block(const double *w) {
    double lane[LANES] = {0};
    for (size_t i = 0; i < BLOCK; i += LANES)
        for (size_t j = 0; j < LANES; j++)
            lane[j] += w[i + j];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* The mass of x[n], with the weight of max 1; `sums`: of each block, NULL if nobody asks. */
FOR_EVERY_WIDTH
static double mass_of_logits(const float *x, size_t n, double max, double per_temperature,
                             double *sums) {
    double w[BLOCK], total = 0;
    for (size_t from = 0; from < n; from += BLOCK) {
        weigh_block(x + from, min_size(BLOCK, n - from), max, per_temperature, w);
        double sum = sum_block(w);
        if (sums) sums[from / BLOCK] = sum;
        total += sum;
    }
    return total;
}

/* Fills the weights of c[n] and returns their sum. */
static double weigh(candidate *c, size_t n, double max, double per_temperature) {
    double w[BLOCK], total = 0;
    float x[BLOCK];
    for (size_t from = 0; from < n; from += BLOCK) {
        size_t count = min_size(BLOCK, n - from);
        for (size_t i = 0; i < count; i++)
            x[i] = c[from + i].logit;
        weigh_block(x, count, max, per_temperature, w);
        for (size_t i = 0; i < count; i++)
            c[from + i].weight = w[i];
        total += sum_block(w);
    }
    return total;
}

/* The lightest weight that top-p and min-p can let through among n tokens whose best weight is 1
 * and whose mass is `total`. Tokens lighter than (1 - top_p) * total / n weigh less than (1 -
 * top_p) * total together, so without them the rest still reaches top_p * total: the nucleus has
 * none of them. The factor leaves room for rounding. */
static double least_weight(const linnet_sampling *s, size_t n, double total) {
    double top_p = s->top_p, min_p = s->min_p;
    double floor = top_p < 1 ? (1 - top_p) * total / (double)n * (1 - 1e-9) : 0;
    return min_p > floor ? min_p : floor;
}

/* Drops what top-p and min-p drop from c[*n], which is in order of ids and stays so. */
static linnet_status filter(candidate *c, size_t *n, const linnet_sampling *s, double floor,
                            double total, linnet_error *err) {
    size_t kept = 0;
    for (size_t i = 0; i < *n; i++)
        if (c[i].weight >= floor) c[kept++] = c[i];
    *n = kept;
    return s->top_p < 1 ? keep_to_crossing(c, n, s->top_p * total, err) : LINNET_OK;
}

/* ---- A row of logits --------------------------------------------------------------------- */

/* What is drawn from: logits[n] or the adjusted ones (freed by row_free), the largest of them. */
typedef struct {
    const float *x;
    float *adjusted;
    size_t n;
    int32_t best;
    double max, per_temperature;
} row;

static linnet_status row_of(const linnet_sampling *s, const float *logits, size_t n_rows,
                            size_t n_vocab, const int32_t *history, size_t n_history, row *r,
                            linnet_error *err) {
    *r = (row){0};
    if (!s || !logits || (!history && n_history))
        return fail(err, LINNET_ERR_ARGUMENT, "sampling: %s is NULL",
                    !s        ? "the settings pointer"
                    : !logits ? "the logits pointer"
                              : "the history");
    r->n = n_vocab ? min_size(n_vocab, n_rows) : n_rows;
    if (r->n == 0 || r->n > INT32_MAX)
        return fail(err, LINNET_ERR_ARGUMENT,
                    "sampling: the number of rows of logits must be in [1, %d], not %zu", INT32_MAX,
                    r->n);
    linnet_status status = sample_check(s, r->n, err);
    if (!status) status = adjust(s, logits, r->n, history, n_history, &r->adjusted, err);
    if (status) return status;
    r->x = r->adjusted ? r->adjusted : logits;
    if ((status = largest(r->x, r->n, r->adjusted != NULL, &r->best, err))) return status;
    r->max = r->x[r->best];
    r->per_temperature = 1 / (double)s->temperature;
    return LINNET_OK;
}

static void row_free(row *r) {
    free(r->adjusted);
}

/* The candidates, weighed, that are not lighter than `floor`, and perhaps a few that are. */
static linnet_status gather(const row *r, double floor, candidates *c, linnet_error *err) {
    /* ln only narrows: weights decide. Its error, and that of the weights, are far below 1e-6. */
    double bound = floor > 0 ? r->max + (log(floor) - 1e-6) / r->per_temperature : -INFINITY;
    float least = bound > -FLT_MAX ? nextafterf((float)bound, -INFINITY) : -INFINITY;
    size_t count = 0;
#ifndef __clang__ /* which warns where it cannot */
#pragma omp simd reduction(+ : count)
#endif
    for (size_t i = 0; i < r->n; i++)
        count += r->x[i] >= least;
    if (count > N_INLINE && !(c->at = malloc(count * sizeof *c->at)))
        return fail(err, LINNET_ERR_MEMORY, "no memory to sample among %zu tokens", count);
    for (size_t i = 0; c->n < count; i++)
        if (r->x[i] >= least) c->at[c->n++] = (candidate){1, r->x[i], (int32_t)i};
    weigh(c->at, c->n, r->max, r->per_temperature);
    return LINNET_OK;
}

/* The k < n largest, weighed, in order of ids. -> *total: their mass */
static linnet_status gather_top(const row *r, size_t k, candidates *c, double *total,
                                linnet_error *err) {
    if (k <= N_INLINE) {
        select_top(r->x, r->n, k, c->few);
        qsort(c->few, k, sizeof *c->few, by_id);
    } else {
        c->at = malloc(r->n * sizeof *c->at);
        if (!c->at)
            return fail(err, LINNET_ERR_MEMORY, "no memory to sample among %zu tokens", r->n);
        for (size_t i = 0; i < r->n; i++)
            c->at[i] = (candidate){1, r->x[i], (int32_t)i};
        c->n = r->n;
        linnet_status status = keep_to_crossing(c->at, &c->n, (double)k, err);
        if (status) return status;
    }
    c->n = k;
    *total = weigh(c->at, k, r->max, r->per_temperature);
    return LINNET_OK;
}

/* Fills *c with what may be drawn, in order of ids, with weights. */
static linnet_status candidates_of(const linnet_sampling *s, const row *r, candidates *c,
                                   linnet_error *err) {
    c->at = c->few;
    c->n = 0;
    if (s->temperature == 0) {
        c->few[0] = (candidate){1, r->x[r->best], r->best};
        c->n = 1;
        return LINNET_OK;
    }
    double total = 0, floor;
    linnet_status status;
    if (s->top_k > 0 && (size_t)s->top_k < r->n) {
        status = gather_top(r, (size_t)s->top_k, c, &total, err);
        floor = status ? 0 : least_weight(s, c->n, total);
    } else {
        bool narrow = s->top_p < 1 || s->min_p > 0;
        total = narrow ? mass_of_logits(r->x, r->n, r->max, r->per_temperature, NULL) : 0;
        floor = narrow ? least_weight(s, r->n, total) : 0;
        status = gather(r, floor, c, err);
    }
    return status || floor == 0 ? status : filter(c->at, &c->n, s, floor, total, err);
}

static void candidates_free(candidates *c) {
    if (c->at != c->few) free(c->at);
}

/* ---- The draw ---------------------------------------------------------------------------- */

/* The first of w[n] at which the running sum, *sum before them, is above `point`; where rounding
 * keeps it below, the last that weighs anything. *sum: before the one found. */
static size_t first_above(const double *w, size_t n, double point, double *sum) {
    size_t at = 0;
    double cumulative = *sum;
    for (size_t i = 0; i < n && cumulative <= point; i++) {
        if (w[i] == 0) continue;
        at = i;
        *sum = cumulative;
        cumulative += w[i];
    }
    return at;
}

/* From all tokens, with nothing to drop: the block first, so that weights need not be kept. */
static linnet_status draw_any(const row *r, double u, int32_t *token, linnet_error *err) {
    size_t n_blocks = (r->n + BLOCK - 1) / BLOCK;
    double *sums = malloc(n_blocks * sizeof *sums), w[BLOCK], before = 0;
    if (!sums) return fail(err, LINNET_ERR_MEMORY, "no memory to sample among %zu tokens", r->n);
    double point = u * mass_of_logits(r->x, r->n, r->max, r->per_temperature, sums);
    size_t from = BLOCK * first_above(sums, n_blocks, point, &before);
    weigh_block(r->x + from, min_size(BLOCK, r->n - from), r->max, r->per_temperature, w);
    *token = (int32_t)(from + first_above(w, BLOCK, point, &before));
    free(sums);
    return LINNET_OK;
}

static double mass_of(const candidates *c) {
    double mass = 0;
    for (size_t i = 0; i < c->n; i++)
        mass += c->at[i].weight;
    return mass;
}

static linnet_status draw_among(const linnet_sampling *s, const row *r, double u, int32_t *token,
                                linnet_error *err) {
    candidates c;
    linnet_status status = candidates_of(s, r, &c, err);
    double point = status ? 0 : u * mass_of(&c), cumulative = 0;
    for (size_t i = 0; !status && i < c.n && cumulative <= point; i++) {
        if (c.at[i].weight == 0) continue;
        *token = c.at[i].id; /* the last one stays if rounding made point = mass */
        cumulative += c.at[i].weight;
    }
    candidates_free(&c);
    return status;
}

linnet_status sample_token(const linnet_sampling *s, const float *logits, size_t n_rows,
                           size_t n_vocab, const int32_t *history, size_t n_history, int32_t *token,
                           linnet_error *err) {
    row r;
    linnet_status status = row_of(s, logits, n_rows, n_vocab, history, n_history, &r, err);
    if (!status) {
        double u = sample_uniform(s->seed, n_history);
        if (s->temperature == 0)
            *token = r.best;
        else if (s->top_k == 0 && s->top_p == 1 && s->min_p == 0)
            status = draw_any(&r, u, token, err);
        else
            status = draw_among(s, &r, u, token, err);
    }
    row_free(&r);
    return status;
}

linnet_status sample_distribution(const linnet_sampling *s, const float *logits, size_t n_rows,
                                  size_t n_vocab, const int32_t *history, size_t n_history,
                                  double *p, linnet_error *err) {
    row r;
    candidates c;
    linnet_status status = row_of(s, logits, n_rows, n_vocab, history, n_history, &r, err);
    if (!status) {
        status = candidates_of(s, &r, &c, err);
        double mass = status ? 1 : mass_of(&c);
        memset(p, 0, n_rows * sizeof *p);
        for (size_t i = 0; !status && i < c.n; i++)
            p[c.at[i].id] = c.at[i].weight / mass;
        candidates_free(&c);
    }
    row_free(&r);
    return status;
}
