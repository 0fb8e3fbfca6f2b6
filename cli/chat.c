/* linnet chat: a conversation, at a terminal or from a pipe.
 *
 * The session only ever grows: the ids of the next turn are those that the template adds after the
 * last answer, and the answer itself stays as it was sampled (its text may tokenize differently).
 * Where the template rewrites what came before, everything is rendered and fed again.
 *
 * A state file has no messages. After a load, a short exchange stands for the past: what a template
 * adds after an answer does not depend on the answer. */
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "generate.h"
#include "states.h"

static const char about[] =
    "Talks with a model. Its chat template is recognised from the file or named with --template. "
    "At a terminal a `> ` asks for the next turn; from a pipe each line is one user turn. Ctrl-C "
    "stops the answer, Ctrl-D leaves.\n"
    "Lines that start with / are commands (/help lists them); // starts a turn with a slash. "
    "Answers go to standard output, everything else to stderr. From a pipe, the exit code is 1 if "
    "a turn failed.";

static const char commands_help[] =
    "/undo forgets the last turn, /retry answers it again, /reset starts anew; /save FILE keeps "
    "the "
    "conversation's state, /load FILE goes on from one; /fork [NAME] keeps a copy, /switch [NAME] "
    "goes there; /stats tells speed and memory, /quit leaves; // starts a turn with a slash";

typedef struct {
    engine e;
    generation g;
    const char *model_path, *wanted_template, *system, *template;
    linnet_model *model;
    branch now;
    branch_book others;
    bool terminal;
    int code; /* what a pipe's caller learns */
} chat;

static bool reset(chat *c) {
    branch_clear(&c->now);
    linnet_session_reset(c->now.session);
    return !c->system || push_message(&c->now, "system", c->system);
}

static size_t n_tokens(const chat *c) {
    return tokens_held(c->now.session);
}

/* ---- ids of the next turn ----------------------------------------------------------------- */

/* The ids that take a session which follows the first `from` messages, without the end token of its
 * last answer, to the end of all: up to the answer to come if `prompt`, else to the end of the last
 * answer's text. *fits: there are such. */
static int ids_from(chat *c, size_t from, bool prompt, id_buffer *out, bool *fits) {
    const branch *b = &c->now;
    size_t n = b->n_messages;
    int code = EXIT_WORKED;
    out->n = 0;
    *fits = true;
    if (from)
        code = chat_ids_from(c->model, c->template, b->messages, from, from, false, out, fits);
    if (!code && *fits)
        code = chat_ids_from(c->model, c->template, b->messages, n, from, prompt, out, fits);
    if (code || !*fits || prompt) return code;
    id_buffer end = {0};
    code = chat_ids_from(c->model, c->template, b->messages, n, n, false, &end, fits);
    *fits = *fits && end.n <= out->n;
    if (!code && *fits && end.n) {
        for (out->n -= end.n; out->n && memcmp(out->at + out->n, end.at, end.n * sizeof *end.at);)
            out->n--;
    }
    free(end.at);
    return code;
}

/* The ids that continue the session so that the last message, a user's, can be answered. *anew:
 * they continue an empty session, or the loaded state, instead. */
static int next_ids(chat *c, bool prompt, id_buffer *out, bool *anew) {
    const branch *b = &c->now;
    bool fits = false;
    int code = EXIT_WORKED;
    *anew = false;
    if ((b->n_turns || b->base) && !b->stale)
        code = ids_from(c, b->n_messages - 1, prompt, out, &fits);
    if (code || fits) return code;
    *anew = true;
    code = ids_from(c, b->n_base, prompt, out, &fits);
    if (!code && !fits)
        code = failed("the template rewrites what came before a turn, and the loaded state has no "
                      "messages: /load it again, or /reset");
    return code;
}

/* Takes the session back to where all messages can be fed. */
static int start_over(chat *c) {
    branch *b = &c->now;
    b->stale = true; /* until a feed has worked */
    if (!b->base) {
        linnet_session_reset(b->session);
        return EXIT_WORKED;
    }
    linnet_session *fork = fork_of(b->base);
    if (!fork) return EXIT_FAILED;
    linnet_session_free(b->session);
    b->session = fork;
    return EXIT_WORKED;
}

/* ---- turns -------------------------------------------------------------------------------- */

/* Answers the last message from the session's logits. */
static int answer(chat *c) {
    generation g = c->g;
    text_buffer text = {0};
    linnet_generated result;
    size_t before = n_tokens(c);
    g.options.sampling.seed += c->now.retries;
    int code = text_append(&text, "", 0) ? generate(&c->e, c->now.session, &g, &text, &result)
                                         : EXIT_FAILED;
    /* The session may hold less or more than the text that was shown: it cannot be continued. */
    if (code || result.end == LINNET_END_STOP || n_tokens(c) - before != result.n_tokens)
        c->now.stale = true;
    if (!code && result.end == LINNET_END_CONTEXT)
        say("the context of %d tokens is full: /reset starts a new conversation, /undo takes back "
            "this turn",
            linnet_session_ctx(c->now.session));
    /* What was shown was said, also where an error cut it short. */
    if (!push_message(&c->now, "assistant", text.at ? text.at : "")) {
        pop_message(&c->now);
        pop_turn(&c->now);
        c->now.stale = true;
        code = EXIT_FAILED;
    }
    free(text.at);
    return code;
}

static int take_turn(chat *c, const char *text, size_t n) {
    if (!check_utf8(text, n, "the turn")) return EXIT_FAILED;
    if (strlen(text) != n) return failed("the turn holds a NUL character");
    if (!push_message(&c->now, "user", text)) return EXIT_FAILED;
    id_buffer ids = {0};
    bool anew;
    c->now.retries = 0;
    int code = next_ids(c, true, &ids, &anew);
    const linnet_session *from = !anew ? c->now.session : c->now.base;
    size_t held = from ? tokens_held(from) : 0, room = (size_t)linnet_session_ctx(c->now.session);
    linnet_session *before = NULL, *asked = NULL;
    if (!code && ids.n > room - held)
        code = failed("this turn needs %zu tokens and the context of %zu has room for %zu: it was "
                      "dropped; /reset starts a new conversation",
                      ids.n, room, room - held);
    if (!code && anew) code = start_over(c);
    /* A snapshot that fails costs an /undo that feeds again, no more. */
    if (!code && (!anew || !c->now.n_turns)) before = fork_of(c->now.session);
    if (!code)
        code = engine_feed(&c->e, c->now.session, ids.at, ids.n, LINNET_LOGITS_LAST, NULL, NULL);
    if (!code) asked = fork_of(c->now.session);
    if (code) {
        linnet_session_free(before);
    } else if (!push_turn(&c->now, before, asked)) {
        c->now.stale = true;
        code = EXIT_FAILED;
    }
    free(ids.at);
    if (code) {
        pop_message(&c->now);
        return code;
    }
    c->now.stale = false;
    return answer(c);
}

/* The session becomes `snapshot`. */
static void return_to(chat *c, linnet_session *snapshot) {
    linnet_session_free(c->now.session);
    c->now.session = snapshot;
    c->now.stale = false;
}

static int undo(chat *c) {
    branch *b = &c->now;
    if (!b->n_turns) return failed("there is no turn to take back");
    turn *last = &b->turns[b->n_turns - 1];
    if (last->before) {
        return_to(c, last->before);
        last->before = NULL;
    } else {
        b->stale = true; /* the next turn feeds what is left */
    }
    pop_turn(b);
    pop_message(b);
    pop_message(b);
    say("the last turn is forgotten; %zu remain%s", b->n_turns, b->n_turns == 1 ? "s" : "");
    return EXIT_WORKED;
}

static int retry(chat *c) {
    branch *b = &c->now;
    if (!b->n_turns) return failed("there is no answer to try again");
    if (c->g.options.sampling.temperature == 0)
        say("sampling is greedy (--temp 0): the answer will be the same");
    const linnet_session *asked = b->turns[b->n_turns - 1].asked;
    linnet_session *fork = asked ? fork_of(asked) : NULL;
    if (!fork) return failed("the last answer can no longer be tried again: /undo and ask anew");
    return_to(c, fork);
    pop_message(b);
    b->retries++;
    return answer(c);
}

/* ---- states ------------------------------------------------------------------------------- */

/* Saves the session as it stands after the last answer. */
static int save(chat *c, const char *path) {
    branch *b = &c->now;
    if (!*path) return failed("/save expects a file name");
    if (b->stale) {
        id_buffer ids = {0};
        bool anew = true;
        int code = b->n_turns ? next_ids(c, false, &ids, &anew) : EXIT_WORKED;
        if (!code) code = start_over(c);
        if (!code && ids.n)
            code = engine_feed(&c->e, b->session, ids.at, ids.n, LINNET_LOGITS_LAST, NULL, NULL);
        free(ids.at);
        if (code) return code;
        b->stale = false;
    }
    return save_state(b->session, path);
}

/* What the session holds was loaded. */
static int adopt(chat *c) {
    branch *b = &c->now;
    branch_clear(b);
    if (c->system && !push_message(b, "system", c->system)) return EXIT_FAILED;
    if (!n_tokens(c)) return EXIT_WORKED;
    b->base = fork_of(b->session);
    if (b->base && push_message(b, "user", "a") && push_message(b, "assistant", "a")) {
        b->n_base = b->n_messages;
        return EXIT_WORKED;
    }
    reset(c);
    return EXIT_FAILED;
}

static int load(chat *c, const char *path) {
    if (!*path) return failed("/load expects a file name");
    int code = load_state(c->now.session, path);
    return code ? code : adopt(c);
}

/* ---- lines -------------------------------------------------------------------------------- */

/* "4096", or "no limit" where the session has none. */
static const char *context_words(const chat *c, char text[16]) {
    int ctx = linnet_session_ctx(c->now.session);
    if (!c->e.ctx && ctx > linnet_model_get_info(c->model)->n_ctx_train) return "no limit";
    snprintf(text, 16, "%d", ctx);
    return text;
}

static void print_chat_stats(const chat *c) {
    char context[16];
    engine e = c->e;
    e.stats = true; /* asked for here and now */
    engine_print_stats(&e, c->model, c->now.session);
    complain("turns: %zu, tokens: %zu of %s", c->now.n_turns, n_tokens(c),
             context_words(c, context));
}

static bool is_command(const char *line, const char *name) {
    size_t n = strlen(name);
    return !strncmp(line, name, n) && strchr(" \t", line[n]);
}

/* What follows the command's name, without spaces around it. */
static const char *argument(char *line) {
    char *end = line + strlen(line);
    while (end > line && (end[-1] == ' ' || end[-1] == '\t'))
        *--end = '\0';
    line += strcspn(line, " \t");
    return line + strspn(line, " \t");
}

/* False when the conversation ends. */
static bool obey(chat *c, char *line) {
    if (is_command(line, "/quit")) return false;
    if (is_command(line, "/help")) {
        complain("%s", commands_help);
    } else if (is_command(line, "/stats")) {
        print_chat_stats(c);
    } else if (is_command(line, "/reset")) {
        if (!reset(c)) c->code = EXIT_FAILED;
        say("a new conversation");
    } else if (is_command(line, "/undo")) {
        if (undo(c)) c->code = EXIT_FAILED;
    } else if (is_command(line, "/retry")) {
        if (retry(c)) c->code = EXIT_FAILED;
    } else if (is_command(line, "/save")) {
        if (save(c, argument(line))) c->code = EXIT_FAILED;
    } else if (is_command(line, "/load")) {
        if (load(c, argument(line))) c->code = EXIT_FAILED;
    } else if (is_command(line, "/fork")) {
        if (book_fork(&c->others, &c->now, argument(line))) c->code = EXIT_FAILED;
    } else if (is_command(line, "/switch")) {
        if (book_switch(&c->others, &c->now, argument(line))) c->code = EXIT_FAILED;
    } else {
        complain("unknown command %.*s: /help lists them; // starts a turn with a slash",
                 (int)strcspn(line, " \t"), line);
    }
    return true;
}

static int converse(chat *c) {
    line_reader r;
    if (!lines_open(&r, NULL)) return EXIT_FAILED;
    for (bool going = true; going;) {
        if (c->terminal && !c->e.quiet) fprintf(stderr, "> ");
        int got = lines_next(&r);
        if (got < 0 && interrupted() && interrupt_code() == 130 && c->terminal) {
            clear_interrupt();
            clearerr(stdin);
            fputc('\n', stderr);
            say("Ctrl-D or /quit leaves");
            continue;
        }
        if (got < 0) c->code = interrupted() ? interrupt_code() : EXIT_FAILED;
        if (got <= 0) break;
        if (r.n && r.line[r.n - 1] == '\r') r.line[--r.n] = '\0';
        if (strspn(r.line, " \t") == r.n) continue;
        bool escaped = r.n > 1 && r.line[0] == '/' && r.line[1] == '/';
        if (r.line[0] == '/' && !escaped)
            going = obey(c, r.line);
        else if (take_turn(c, r.line + escaped, r.n - escaped))
            c->code = EXIT_FAILED;
        if (interrupted()) {
            if (interrupt_code() != 130) break; /* asked to end, not to stop the answer */
            say("stopped");
            clear_interrupt();
        }
        if (!stdout_alive()) break;
    }
    if (c->terminal && !c->e.quiet) fputc('\n', stderr);
    lines_close(&r);
    int out = finish_stdout();
    if (interrupted()) return interrupt_code();
    return out ? out : c->terminal ? EXIT_WORKED : c->code;
}

static int prepare(chat *c) {
    int code = generation_prepare(&c->e, &c->g);
    if (!code) code = engine_open(&c->e, c->model_path, false, &c->model);
    if (!code)
        code = choose_template(&c->e, c->model, c->model_path, c->wanted_template, &c->template);
    if (!code) code = engine_session(&c->e, c->model, &c->now.session);
    if (!code && c->system && !check_utf8(c->system, strlen(c->system), "--system"))
        code = EXIT_FAILED;
    if (!code && !(c->now.name = strdup("main"))) code = failed("out of memory");
    if (!code && c->e.load_state) return adopt(c);
    if (!code && !reset(c)) code = EXIT_FAILED;
    return code;
}

int command_chat(int argc, char **argv) {
    chat c = {0};
    flag_table f;
    flags_begin(&f, "chat", "MODEL [--system TEXT] [flags]", about);
    flags_argument(&f, "MODEL", &c.model_path);
    flags_title(&f, "Conversation");
    flag_text(&f, "--system", "TEXT", &c.system, "the system message; default: the template's");
    flag_text(&f, "--template", "NAME", &c.wanted_template,
              "the chat template; default: the file's. A wrong name lists the right ones");
    generation_flags(&f, &c.g);
    context_flag(&f, &c.e);
    precision_flags(&f, &c.e, "auto");
    engine_flags(&f, &c.e);
    stats_flag(&f, &c.e);
    window_flag(&f, &c.e);
    state_flags(&f, &c.e);

    int code = flags_parse(&f, argc, argv);
    if (code == KEEP_GOING) {
        c.terminal = on_terminal();
        catch_interrupts(true);
        code = prepare(&c);
        if (!code) {
            const linnet_model_info *info = linnet_model_get_info(c.model);
            char context[16];
            if (c.terminal)
                say("%s, template %s, tokens of context: %s; /help lists the commands",
                    *info->name ? info->name : c.model_path,
                    c.template ? c.template : info->chat_template, context_words(&c, context));
            code = converse(&c);
            if (c.e.save_state && save(&c, c.e.save_state)) code = code ? code : EXIT_FAILED;
            engine_print_stats(&c.e, c.model, c.now.session);
        }
    }
    branch_free(&c.now);
    book_free(&c.others);
    linnet_model_close(c.model);
    generation_free(&c.g);
    return code;
}
