/* linnet logits: the model's output for one sequence of ids, as a NumPy file. */
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "engine.h"

static const char about[] =
    "Writes the logits of one sequence of token ids as float32 [T, rows] (with --last: [1, rows]) "
    "to a NumPy .npy file. The ids are taken as they are: nothing is added. rows is the number of "
    "rows of the output matrix, padding included. The file appears when it is complete.";

typedef struct {
    engine e;
    const char *model, *ids, *out;
    size_t chunk;
    bool last;
} logits_options;

/* The header of version 1.0 (numpy/lib/format.py): magic, version, length, a Python dictionary
 * padded with spaces so that the data starts at a multiple of 64, a newline. */
static bool write_npy_header(output_file *o, size_t n_rows, size_t n_columns) {
    char header[192] = "\x93NUMPY\x01";
    int n = snprintf(header + 10, sizeof header - 10,
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", n_rows,
                     n_columns);
    size_t total = (10 + (size_t)n + 1 + 63) / 64 * 64;
    memset(header + 10 + n, ' ', total - 10 - (size_t)n);
    header[total - 1] = '\n';
    header[8] = (char)((total - 10) & 0xff);
    header[9] = (char)((total - 10) >> 8);
    return output_write(o, header, total);
}

typedef struct {
    output_file *out;
    size_t n_columns;
    bool failed;
} row_sink;

static bool write_rows(void *user, size_t first_position, size_t n_rows, const float *logits) {
    row_sink *s = user;
    (void)first_position; /* rows come in order */
    s->failed = !output_write(s->out, logits, n_rows * s->n_columns * sizeof *logits);
    return !s->failed && !interrupted();
}

static int write_logits(logits_options *o, const linnet_model *model, linnet_session *session,
                        const id_buffer *ids) {
    size_t n_columns = (size_t)linnet_model_get_info(model)->n_rows;
    size_t held = tokens_held(session), room = (size_t)linnet_session_ctx(session) - held;
    if (ids->n > room)
        return failed(held
                          ? "%s holds %zu ids, more than the %zu for which the context (--ctx) has "
                            "room after the loaded state"
                          : "%s holds %zu ids, more than the context of %zu (--ctx)",
                      o->ids, ids->n, room);
    output_file out;
    if (!output_open(&out, o->out)) return EXIT_FAILED;
    row_sink sink = {.out = &out, .n_columns = n_columns};
    if (!write_npy_header(&out, o->last ? 1 : ids->n, n_columns)) return EXIT_FAILED;
    int code = EXIT_WORKED;
    for (size_t i = 0, n; i < ids->n && !code; i += n) {
        n = o->chunk && o->chunk < ids->n - i ? o->chunk : ids->n - i;
        linnet_want want = !o->last          ? LINNET_LOGITS_ALL
                           : i + n == ids->n ? LINNET_LOGITS_LAST
                                             : LINNET_LOGITS_NONE;
        code =
            engine_feed(&o->e, session, ids->at + i, n, want, o->last ? NULL : write_rows, &sink);
    }
    if (!code && o->last) write_rows(&sink, ids->n - 1, 1, linnet_session_logits(session));
    if (sink.failed) return EXIT_FAILED; /* said and cleaned up where it failed */
    if (interrupted()) code = interrupt_code();
    if (!code && o->e.save_state) code = save_state(session, o->e.save_state);
    if (!code && !output_finish(&out)) return EXIT_FAILED;
    output_abandon(&out);
    return code;
}

int command_logits(int argc, char **argv) {
    logits_options o = {0};
    flag_table f;
    flags_begin(&f, "logits", "MODEL --ids FILE -o OUT.npy [--chunk N] [--last]", about);
    flags_argument(&f, "MODEL", &o.model);
    flags_title(&f, "Input and output");
    flag_text(&f, "--ids", "FILE", &o.ids,
              "token ids, any whitespace between them; - is standard input");
    flag_text(&f, "-o", "OUT.npy", &o.out, "the file to write");
    flag_size(&f, "--chunk", "N", &o.chunk, 1,
              "feed N ids at a time (1: as decoding does); default: all at once");
    flag_switch(&f, "--last", &o.last, "only the logits after the last id");
    context_flag(&f, &o.e);
    precision_flags(&f, &o.e, "exact");
    engine_flags(&f, &o.e);
    stats_flag(&f, &o.e);
    window_flag(&f, &o.e);
    state_flags(&f, &o.e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    if (!o.ids) return misused("logits", "--ids FILE is missing");
    if (!o.out) return misused("logits", "-o OUT.npy is missing");
    if (o.chunk && !strcmp(o.e.window_mode, "terrace-hf"))
        return misused("logits", "--chunk and --window-mode terrace-hf exclude each other: its "
                                 "blocks end with the prompt, which must come as one");
    linnet_model *model = NULL;
    linnet_session *session = NULL;
    id_buffer ids = {0};
    catch_interrupts(false);
    code = engine_open(&o.e, o.model, false, &model);
    if (!code) code = engine_session(&o.e, model, &session);
    if (!code && !read_ids(&ids, o.ids, linnet_model_get_info(model)->n_rows)) code = EXIT_FAILED;
    if (!code) code = write_logits(&o, model, session, &ids);
    if (!code) engine_print_stats(&o.e, model, session);
    free(ids.at);
    linnet_session_free(session);
    linnet_model_close(model);
    return code;
}
