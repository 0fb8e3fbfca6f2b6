#include "packer.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct {
    const gguf_tensor *t;
    matrix m;
    uint8_t *out;
    size_t row0, first, panels; /* panels before this job, and of it */
} job;

struct packer {
    const gguf *g;
    const backend_ops *ops;
    team *team;
    job *jobs;
    size_t n, cap, panels;
    linnet_progress_fn progress;
    void *user;
    atomic_size_t done;
    atomic_bool stop;
    pthread_mutex_t mutex; /* guards what follows */
    linnet_status status;  /* of the first that failed */
    linnet_error err;
};

packer *packer_new(const gguf *g, const backend_ops *ops, team *t) {
    packer *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->g = g;
    p->ops = ops;
    p->team = t;
    pthread_mutex_init(&p->mutex, NULL);
    return p;
}

void packer_free(packer *p) {
    if (!p) return;
    pthread_mutex_destroy(&p->mutex);
    free(p->jobs);
    free(p);
}

linnet_status packer_add(packer *p, const gguf_tensor *t, const matrix *m, uint8_t *out,
                         size_t row0, linnet_error *err) {
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        job *jobs = realloc(p->jobs, cap * sizeof *jobs);
        if (!jobs) return fail(err, LINNET_ERR_MEMORY, "no memory for a list of matrices");
        p->jobs = jobs;
        p->cap = cap;
    }
    job *j = &p->jobs[p->n++];
    *j = (job){.t = t, .m = *m, .out = out, .row0 = row0, .first = p->panels};
    j->panels = (m->rows + PANEL - 1) / PANEL;
    p->panels += j->panels;
    return LINNET_OK;
}

/* Panels [from, to) of one job; their file pages are released every RELEASE panels. */
static linnet_status pack_some(packer *p, const job *j, size_t from, size_t to, void *buffer,
                               linnet_error *err) {
    enum { RELEASE = 64 };
    size_t row_bytes = dtype_row_bytes(j->m.type, j->m.cols), panel_bytes = PANEL * row_bytes;
    linnet_status s = LINNET_OK;
    for (size_t i = from, kept = from; i < to && !s && !atomic_load(&p->stop); i++) {
        size_t rows = min_size(PANEL, j->m.rows - i * PANEL);
        uint64_t at = j->row0 * row_bytes;
        const void *src;
        s = gguf_read(p->g, j->t, at + i * panel_bytes, rows * row_bytes, buffer, &src, err);
        if (!s)
            p->ops->pack_panel(j->m.type, src, row_bytes, rows, j->m.cols,
                               j->out + i * j->m.panel_bytes);
        atomic_fetch_add(&p->done, 1);
        if (i + 1 < to && i + 1 - kept < RELEASE) continue;
        gguf_release(p->g, j->t, at + kept * panel_bytes, (i + 1 - kept) * panel_bytes);
        kept = i + 1;
    }
    return s;
}

static void refuse(packer *p, linnet_status status, const linnet_error *err) {
    pthread_mutex_lock(&p->mutex);
    if (!p->status) {
        p->status = status;
        p->err = *err;
    }
    pthread_mutex_unlock(&p->mutex);
    atomic_store(&p->stop, true);
}

static size_t widest_panel(const packer *p) {
    size_t bytes = 0;
    for (size_t i = 0; i < p->n; i++)
        bytes = max_size(bytes, PANEL * dtype_row_bytes(p->jobs[i].m.type, p->jobs[i].m.cols));
    return bytes;
}

static void pack_all(void *arg, int thread) {
    packer *p = arg;
    linnet_error err = {0};
    void *buffer = gguf_is_mapped(p->g) ? NULL : malloc(widest_panel(p));
    if (!buffer && !gguf_is_mapped(p->g))
        refuse(p, fail(&err, LINNET_ERR_MEMORY, "no memory for a panel of weights"), &err);
    size_t j = 0;
    for (phase ph = phase_begin(p->team, thread, p->panels); phase_next(&ph);) {
        for (j = p->jobs[j].first > ph.from ? 0 : j; j < p->n && p->jobs[j].first < ph.to; j++) {
            const job *job = &p->jobs[j];
            size_t from = max_size(ph.from, job->first),
                   to = min_size(ph.to, job->first + job->panels);
            if (from >= to) continue;
            linnet_status s = pack_some(p, job, from - job->first, to - job->first, buffer, &err);
            if (s) refuse(p, s, &err);
            if (thread == 0 && p->progress && !atomic_load(&p->stop) &&
                !p->progress(p->user, "load", atomic_load(&p->done), p->panels))
                refuse(
                    p,
                    fail(&err, LINNET_ERR_CANCELLED, "%s: loading was cancelled", gguf_path(p->g)),
                    &err);
        }
        j = j ? j - 1 : 0; /* the next piece may begin inside the last matrix */
    }
    free(buffer);
}

linnet_status packer_run(packer *p, linnet_progress_fn progress, void *user, linnet_error *err) {
    linnet_status s = team_reserve(p->team, 1, err);
    if (s) return s;
    p->progress = progress;
    p->user = user;
    team_run(p->team, pack_all, p);
    if (p->status) return fail(err, p->status, "%s", p->err.text);
    return LINNET_OK;
}
