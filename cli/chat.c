/* linnet chat: a conversation, at a terminal or from a pipe.
 *
 * The session only ever grows: the ids of the next turn are those that the template adds after the
 * last answer, and the answer itself stays as it was sampled (its text may tokenize differently).
 * Where the template rewrites what came before, everything is rendered and fed again. */
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "generate.h"

static const char about[] =
    "Talks with a model. Its chat template is recognised from the file or named with --template. "
    "At a terminal a `> ` asks for the next turn; from a pipe each line is one user turn. Ctrl-C "
    "stops the answer, Ctrl-D leaves.\n"
    "Lines that start with / are commands (/help lists them); // starts a turn with a slash. "
    "Answers go to standard output, everything else to stderr. From a pipe, the exit code is 1 if "
    "a turn failed.";

static const char commands_help[] =
    "/undo forgets the last turn, /retry answers it again, /reset starts anew, /stats tells "
    "speed and memory, /quit leaves; // starts a turn with a slash";

/* Where the last turns lie in the session, so that they can be taken back. */
typedef struct {
    size_t start, answer; /* tokens before the turn, tokens before its answer */
    bool known;           /* false once the session was rebuilt from the messages */
} turn;

typedef struct {
    engine e;
    generation g;
    const char *model_path, *wanted_template, *system, *template;
    linnet_model *model;
    linnet_session *session;
    linnet_message *messages; /* owned texts; [system,] user, assistant, user, ... */
    size_t n_messages, messages_cap;
    turn *turns;
    size_t n_turns, turns_cap;
    bool stale; /* the session does not follow the messages: feed them all again */
    bool terminal;
    int code; /* what a pipe's caller learns */
    uint64_t retries;
} chat;

/* ---- messages ----------------------------------------------------------------------------- */

static bool push_message(chat *c, const char *role, const char *content) {
    if (c->n_messages == c->messages_cap) {
        size_t cap = c->messages_cap * 2 + 16;
        linnet_message *grown = realloc(c->messages, cap * sizeof *grown);
        if (!grown) return failed("out of memory"), false;
        c->messages = grown;
        c->messages_cap = cap;
    }
    char *copy = strdup(content);
    if (!copy) return failed("out of memory"), false;
    c->messages[c->n_messages++] = (linnet_message){.role = role, .content = copy};
    return true;
}

static void pop_message(chat *c) {
    free((char *)c->messages[--c->n_messages].content);
}

static bool push_turn(chat *c, size_t start, size_t answer) {
    if (c->n_turns == c->turns_cap) {
        size_t cap = c->turns_cap * 2 + 16;
        turn *grown = realloc(c->turns, cap * sizeof *grown);
        if (!grown) return failed("out of memory"), false;
        c->turns = grown;
        c->turns_cap = cap;
    }
    c->turns[c->n_turns++] = (turn){.start = start, .answer = answer, .known = true};
    return true;
}

static bool reset(chat *c) {
    while (c->n_messages)
        pop_message(c);
    c->n_turns = 0;
    c->stale = false;
    linnet_session_reset(c->session);
    return !c->system || push_message(c, "system", c->system);
}

static size_t n_tokens(const chat *c) {
    size_t n;
    linnet_session_tokens(c->session, &n);
    return n;
}

/* ---- ids of the next turn ----------------------------------------------------------------- */

static size_t common_suffix(const id_buffer *a, const id_buffer *b) {
    size_t n = 0;
    while (n < a->n && n < b->n && a->at[a->n - 1 - n] == b->at[b->n - 1 - n])
        n++;
    return n;
}

/* What the template writes after an answer (`<|im_end|>` and a newline, say): the end that two
 * conversations have in common whose last answers differ. The last message is an answer. */
static int ids_after_answer(chat *c, size_t n_messages, id_buffer *out) {
    id_buffer other = {0};
    linnet_message *last = &c->messages[n_messages - 1];
    linnet_message kept = *last;
    last->content = "a";
    int code = chat_to_ids(c->model, c->template, c->messages, n_messages, false, out);
    last->content = "7";
    if (!code) code = chat_to_ids(c->model, c->template, c->messages, n_messages, false, &other);
    *last = kept;
    if (!code) {
        size_t n = common_suffix(out, &other);
        memmove(out->at, out->at + out->n - n, n * sizeof *out->at);
        out->n = n;
    }
    free(other.at);
    return code;
}

/* The ids that continue the session so that the last message, a user's, can be answered. *anew:
 * they are the whole conversation instead, for an empty session. */
static int next_ids(chat *c, id_buffer *out, bool *anew) {
    id_buffer all = {0}, before = {0};
    size_t n = c->n_messages;
    bool first = !c->n_turns;
    *anew = true;
    out->n = 0;
    int code = chat_to_ids(c->model, c->template, c->messages, n, true, &all);
    if (!code && !first && !c->stale) {
        code = chat_to_ids(c->model, c->template, c->messages, n - 1, false, &before);
        bool extends =
            !code && before.n <= all.n && !memcmp(before.at, all.at, before.n * sizeof *all.at);
        if (extends) code = ids_after_answer(c, n - 1, out);
        if (extends && !code && out->n <= before.n &&
            !memcmp(out->at, before.at + before.n - out->n, out->n * sizeof *out->at)) {
            *anew = false;
            if (!ids_append(out, all.at + before.n, all.n - before.n)) code = EXIT_FAILED;
        }
    }
    if (!code && *anew) {
        out->n = 0;
        if (!ids_append(out, all.at, all.n)) code = EXIT_FAILED;
    }
    free(all.at);
    free(before.at);
    return code;
}

/* ---- turns -------------------------------------------------------------------------------- */

/* Answers the last message from the session's logits. */
static int answer(chat *c) {
    generation g = c->g;
    text_buffer text = {0};
    linnet_generated result;
    size_t before = n_tokens(c);
    g.options.sampling.seed += c->retries;
    int code =
        text_append(&text, "", 0) ? generate(&c->e, c->session, &g, &text, &result) : EXIT_FAILED;
    /* The session may hold less or more than the text that was shown: it cannot be continued. */
    if (code || result.end == LINNET_END_STOP || n_tokens(c) - before != result.n_tokens)
        c->stale = true;
    if (!code && result.end == LINNET_END_CONTEXT)
        say("the context of %d tokens is full: /reset starts a new conversation, /undo takes back "
            "this turn",
            linnet_session_ctx(c->session));
    /* What was shown was said, also where an error cut it short. */
    if (!push_message(c, "assistant", text.at ? text.at : "")) {
        pop_message(c);
        c->n_turns--;
        c->stale = true;
        code = EXIT_FAILED;
    }
    free(text.at);
    return code;
}

static int take_turn(chat *c, const char *text, size_t n) {
    if (!check_utf8(text, n, "the turn")) return EXIT_FAILED;
    if (strlen(text) != n) return failed("the turn holds a NUL character");
    if (!push_message(c, "user", text)) return EXIT_FAILED;
    id_buffer ids = {0};
    bool anew;
    c->retries = 0;
    int code = next_ids(c, &ids, &anew);
    size_t held = anew ? 0 : n_tokens(c), room = (size_t)linnet_session_ctx(c->session);
    if (!code && ids.n > room - held)
        code = failed("this turn needs %zu tokens and the context of %zu has room for %zu: it was "
                      "dropped; /reset starts a new conversation",
                      ids.n, room, room - held);
    if (!code && anew) {
        for (size_t i = 0; i < c->n_turns; i++)
            c->turns[i].known = false;
        c->stale = true; /* until the feed below has worked */
        linnet_session_reset(c->session);
    }
    if (!code) code = engine_feed(&c->e, c->session, ids.at, ids.n, LINNET_LOGITS_LAST, NULL, NULL);
    if (!code && !push_turn(c, held, n_tokens(c))) {
        c->stale = true;
        code = EXIT_FAILED;
    }
    free(ids.at);
    if (code) {
        pop_message(c);
        return code;
    }
    c->stale = false;
    return answer(c);
}

/* Takes the session back to its first n tokens. */
static int rewind_to(chat *c, size_t n, linnet_want want) {
    id_buffer ids = {0};
    size_t held;
    const int32_t *tokens = linnet_session_tokens(c->session, &held);
    int code = ids_append(&ids, tokens, n) ? EXIT_WORKED : EXIT_FAILED;
    if (!code) linnet_session_reset(c->session);
    if (!code && n) code = engine_feed(&c->e, c->session, ids.at, n, want, NULL, NULL);
    free(ids.at);
    if (code) c->stale = true;
    return code;
}

static int undo(chat *c) {
    if (!c->n_turns) return failed("there is no turn to take back");
    turn last = c->turns[--c->n_turns];
    pop_message(c);
    pop_message(c);
    if (!last.known || last.start > n_tokens(c)) {
        c->stale = true; /* the next turn feeds what is left */
    } else {
        int code = rewind_to(c, last.start, LINNET_LOGITS_NONE);
        if (code) return code;
        c->stale = false;
    }
    say("the last turn is forgotten; %zu remain%s", c->n_turns, c->n_turns == 1 ? "s" : "");
    return EXIT_WORKED;
}

static int retry(chat *c) {
    if (!c->n_turns) return failed("there is no answer to try again");
    if (c->g.options.sampling.temperature == 0)
        say("sampling is greedy (--temp 0): the answer will be the same");
    turn last = c->turns[c->n_turns - 1];
    uint64_t retries = c->retries + 1;
    int code;
    if (last.known && last.answer <= n_tokens(c)) {
        if ((code = rewind_to(c, last.answer, LINNET_LOGITS_LAST))) return code;
        pop_message(c);
        c->stale = false;
        c->retries = retries;
        return answer(c);
    }
    return failed("the last answer can no longer be tried again: /undo and ask anew");
}

/* ---- lines -------------------------------------------------------------------------------- */

static void print_chat_stats(const chat *c) {
    engine e = c->e;
    e.stats = true; /* asked for here and now */
    engine_print_stats(&e, c->model, c->session);
    complain("turns: %zu, tokens: %zu of %d", c->n_turns, n_tokens(c),
             linnet_session_ctx(c->session));
}

static bool is_command(const char *line, const char *name) {
    size_t n = strlen(name);
    return !strncmp(line, name, n) && (!line[n] || line[n] == ' ');
}

/* False when the conversation ends. */
static bool obey(chat *c, const char *line) {
    static const char *const later[] = {"/save", "/load", "/fork", "/switch"};
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
    } else {
        for (size_t i = 0; i < sizeof later / sizeof *later; i++)
            if (is_command(line, later[i])) {
                complain("%s is not in this version: saved and forked states come with a later one",
                         later[i]);
                return true;
            }
        complain("unknown command %.*s: /help lists them; // starts a turn with a slash",
                 (int)strcspn(line, " "), line);
    }
    return true;
}

static int converse(chat *c) {
    line_reader r;
    if (!lines_open(&r, NULL)) return EXIT_FAILED;
    for (bool going = true; going;) {
        if (c->terminal && !c->e.quiet) fprintf(stderr, "> ");
        int got = lines_next(&r);
        if (got < 0 && interrupted() && c->terminal) {
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
    if (!code) code = engine_session(&c->e, c->model, &c->session);
    if (!code && c->system && !check_utf8(c->system, strlen(c->system), "--system"))
        code = EXIT_FAILED;
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
            if (c.terminal)
                say("%s, template %s, %d tokens of context; /help lists the commands",
                    *info->name ? info->name : c.model_path,
                    c.template ? c.template : info->chat_template, linnet_session_ctx(c.session));
            code = converse(&c);
            engine_print_stats(&c.e, c.model, c.session);
        }
    }
    while (c.n_messages)
        pop_message(&c);
    free(c.messages);
    free(c.turns);
    linnet_session_free(c.session);
    linnet_model_close(c.model);
    generation_free(&c.g);
    return code;
}
