/* linnet run: continues a text. */
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "generate.h"

static const char about[] =
    "Streams the continuation of a text to standard output, then a newline; the prompt is not "
    "repeated. The prompt comes from -p, from -f, or from standard input. It must be valid UTF-8.\n"
    "The text ends at the model's end-of-text token, before a --stop text, after -n tokens, or "
    "when the context is full. Ctrl-C ends it cleanly: a newline, and exit code 130.";

typedef struct {
    engine e;
    generation g;
    const char *model, *prompt, *file;
    bool parse_special;
} run_options;

static int get_prompt(const run_options *o, const linnet_model *model, bool loaded,
                      id_buffer *ids) {
    text_buffer text = {0};
    unsigned flags = (loaded ? 0 : LINNET_ADD_BOS) | (o->parse_special ? LINNET_PARSE_SPECIAL : 0);
    int code = EXIT_FAILED;
    if (o->prompt) {
        if (check_utf8(o->prompt, strlen(o->prompt), "the prompt (-p)"))
            code = text_to_ids(model, o->prompt, strlen(o->prompt), flags, ids);
    } else {
        if (!o->file && on_terminal()) say("type the prompt; Ctrl-D ends it");
        if (read_text(&text, o->file)) code = text_to_ids(model, text.at, text.n, flags, ids);
    }
    free(text.at);
    if (code == EXIT_WORKED && !ids->n && !loaded)
        return failed("the prompt is empty and %s asks for no BOS token: nothing to continue",
                      o->model);
    return interrupted() ? interrupt_code() : code;
}

static int run(run_options *o, linnet_model *model, linnet_session *session, id_buffer *ids) {
    size_t held = tokens_held(session), room = (size_t)linnet_session_ctx(session);
    int code = get_prompt(o, model, held > 0, ids);
    if (code) return code;
    if (ids->n > room - held)
        return failed("the prompt has %zu tokens, more than the context of %zu%s (--ctx)", ids->n,
                      room, held ? " has room for after the loaded state" : "");
    if (!ids->n && !linnet_session_logits(session) && o->g.limit)
        return failed("%s holds no logits and the prompt is empty: nothing to continue",
                      o->e.load_state);
    if (ids->n &&
        (code = engine_feed(&o->e, session, ids->at, ids->n, LINNET_LOGITS_LAST, NULL, NULL)))
        return code;
    linnet_generated result;
    code = generate(&o->e, session, &o->g, NULL, &result);
    int out = finish_stdout();
    if (code == EXIT_WORKED) code = out;
    if (code == EXIT_WORKED && o->e.save_state) code = save_state(session, o->e.save_state);
    if (code == EXIT_WORKED && result.end == LINNET_END_CONTEXT)
        say("the context of %zu tokens is full (--ctx)", room);
    if (code == EXIT_WORKED && interrupted()) code = interrupt_code();
    engine_print_stats(&o->e, model, session);
    return code;
}

int command_run(int argc, char **argv) {
    run_options o = {0};
    flag_table f;
    flags_begin(&f, "run", "MODEL [-p TEXT | -f FILE] [-n N] [flags]", about);
    flags_argument(&f, "MODEL", &o.model);
    flags_title(&f, "Prompt");
    flag_text(&f, "-p", "TEXT", &o.prompt, "the prompt");
    flag_text(&f, "-f", "FILE", &o.file, "the prompt is the text of a file");
    flag_switch(&f, "--parse-special", &o.parse_special,
                "spellings of special tokens in the prompt become those tokens");
    generation_flags(&f, &o.g);
    context_flag(&f, &o.e);
    precision_flags(&f, &o.e, "auto");
    engine_flags(&f, &o.e);
    stats_flag(&f, &o.e);
    window_flag(&f, &o.e);
    state_flags(&f, &o.e);

    linnet_model *model = NULL;
    linnet_session *session = NULL;
    id_buffer ids = {0};
    int code = flags_parse(&f, argc, argv);
    if (code == KEEP_GOING) {
        code = generation_prepare(&o.e, &o.g);
        if (!code && o.prompt && o.file) code = misused("run", "-p and -f exclude each other");
        catch_interrupts(false);
        if (!code) code = engine_open(&o.e, o.model, false, &model);
        if (!code) code = engine_session(&o.e, model, &session);
        if (!code) code = run(&o, model, session, &ids);
    }
    free(ids.at);
    linnet_session_free(session);
    linnet_model_close(model);
    generation_free(&o.g);
    return code;
}
