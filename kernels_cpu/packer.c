#include "packer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef struct {
    const gguf_tensor *t;
    matrix m;
    uint8_t *out;
    size_t row0, first, panels; /* panels before this job, and of it */
    atomic_size_t left;
} job;

struct packer {
    const gguf *g;
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

packer *packer_new(const gguf *g, team *t) {
    packer *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->g = g;
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
    atomic_init(&j->left, j->panels);
    p->panels += j->panels;
    return LINNET_OK;
}

static linnet_status pack_one(packer *p, job *j, size_t panel, void *buffer, linnet_error *err) {
    size_t row_bytes = dtype_row_bytes(j->m.type, j->m.cols);
    size_t rows = min_size(PANEL, j->m.rows - panel * PANEL);
    const void *src;
    linnet_status s = gguf_read(p->g, j->t, (j->row0 + panel * PANEL) * row_bytes, rows * row_bytes,
                                buffer, &src, err);
    if (s) return s;
    pack_panel(j->m.type, src, row_bytes, rows, j->m.cols, j->out + panel * j->m.panel_bytes);
    if (atomic_fetch_sub(&j->left, 1) == 1) gguf_release(p->g, j->t);
    return LINNET_OK;
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
    for (phase ph = phase_begin(p->team, thread, p->panels); phase_next(&ph);)
        for (size_t i = ph.from; i < ph.to && !atomic_load(&p->stop); i++) {
            if (p->jobs[j].first > i) j = 0;
            while (i >= p->jobs[j].first + p->jobs[j].panels)
                j++;
            linnet_status s = pack_one(p, &p->jobs[j], i - p->jobs[j].first, buffer, &err);
            if (s) refuse(p, s, &err);
            size_t done = atomic_fetch_add(&p->done, 1) + 1;
            if (thread == 0 && p->progress && (i % 64 == 0 || done == p->panels) &&
                !p->progress(p->user, "load", done, p->panels))
                refuse(
                    p,
                    fail(&err, LINNET_ERR_CANCELLED, "%s: loading was cancelled", gguf_path(p->g)),
                    &err);
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
