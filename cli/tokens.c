/* linnet tokenize, linnet detokenize: text to ids and back. */
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "engine.h"

static bool print_ids(const id_buffer *ids) {
    char text[16];
    for (size_t i = 0; i < ids->n; i++) {
        int n = snprintf(text, sizeof text, i ? " %d" : "%d", ids->at[i]);
        if (!put(text, (size_t)n)) return false;
    }
    return put("\n", 1);
}

/* ---- tokenize ----------------------------------------------------------------------------- */

static const char tokenize_about[] =
    "Prints the token ids of a text, separated by spaces: one line for each line of a JSON Lines "
    "file, or one line for all of standard input. Text must be valid UTF-8. BOS comes first where "
    "the model file asks for it. Reads no weights.\n"
    "--lines: objects {\"text\": \"...\"}. --messages: objects {\"messages\": [{\"role\": ..., "
    "\"content\": ...}, ...], \"add_generation_prompt\": true}, rendered with the chat template.";

typedef struct {
    engine e;
    const char *model, *lines, *messages, *template;
    bool no_bos, parse_special;
} tokenize_options;

static unsigned tokenize_flags(const tokenize_options *o) {
    return (o->no_bos ? 0 : LINNET_ADD_BOS) | (o->parse_special ? LINNET_PARSE_SPECIAL : 0);
}

static int line_failed(const line_reader *r, const char *what) {
    return failed("%s, line %zu: %s", r->path, r->number, what);
}

static int tokenize_line(const tokenize_options *o, const linnet_model *model, const line_reader *r,
                         json_t *object, id_buffer *ids) {
    json_t *text = json_object_get(object, "text");
    if (!json_is_string(text)) return line_failed(r, "expected {\"text\": \"...\"}");
    return text_to_ids(model, json_string_value(text), json_string_length(text), tokenize_flags(o),
                       ids);
}

static int tokenize_messages(const char *template, const linnet_model *model, const line_reader *r,
                             json_t *object, id_buffer *ids) {
    json_t *list = json_object_get(object, "messages");
    json_t *open = json_object_get(object, "add_generation_prompt");
    size_t n = json_array_size(list);
    if (!json_is_array(list)) return line_failed(r, "expected {\"messages\": [...]}");
    if (open && !json_is_boolean(open))
        return line_failed(r, "expected \"add_generation_prompt\" to be true or false");
    linnet_message *messages = calloc(n ? n : 1, sizeof *messages);
    if (!messages) return failed("out of memory for %zu messages", n);
    int code = EXIT_WORKED;
    for (size_t i = 0; i < n && !code; i++) {
        json_t *role = json_object_get(json_array_get(list, i), "role");
        json_t *content = json_object_get(json_array_get(list, i), "content");
        if (!json_is_string(role) || !json_is_string(content))
            code = failed("%s, line %zu: expected a \"role\" and a \"content\" text in message %zu",
                          r->path, r->number, i + 1);
        else if (strlen(json_string_value(content)) != json_string_length(content) ||
                 strlen(json_string_value(role)) != json_string_length(role))
            code = failed("%s, line %zu: message %zu holds a NUL character", r->path, r->number,
                          i + 1);
        else
            messages[i] = (linnet_message){json_string_value(role), json_string_value(content)};
    }
    if (!code) code = chat_to_ids(model, template, messages, n, json_is_true(open), ids);
    free(messages);
    return code;
}

static int tokenize_file(const tokenize_options *o, const linnet_model *model) {
    const char *template = NULL;
    line_reader r;
    json_t *object;
    id_buffer ids = {0};
    int code = EXIT_WORKED, got = 0;
    if (o->messages) code = choose_template(&o->e, model, o->model, o->template, &template);
    if (code) return code;
    if (!lines_open(&r, o->lines ? o->lines : o->messages)) return EXIT_FAILED;
    while (!code && (got = lines_next_json(&r, &object)) == 1) {
        ids.n = 0;
        code = o->lines ? tokenize_line(o, model, &r, object, &ids)
                        : tokenize_messages(template, model, &r, object, &ids);
        json_decref(object);
        if (!code && !print_ids(&ids)) break; /* finish_stdout says why */
        if (!code && interrupted()) code = interrupt_code();
    }
    if (got < 0) code = interrupted() ? interrupt_code() : EXIT_FAILED;
    free(ids.at);
    lines_close(&r);
    return code;
}

static int tokenize_stdin(const tokenize_options *o, const linnet_model *model) {
    text_buffer text = {0};
    id_buffer ids = {0};
    int code = read_text(&text, NULL) ? EXIT_WORKED : EXIT_FAILED;
    if (!code) code = text_to_ids(model, text.at, text.n, tokenize_flags(o), &ids);
    if (!code) print_ids(&ids);
    free(text.at);
    free(ids.at);
    return interrupted() ? interrupt_code() : code;
}

int command_tokenize(int argc, char **argv) {
    tokenize_options o = {0};
    flag_table f;
    flags_begin(&f, "tokenize", "MODEL [--lines FILE.jsonl | --messages FILE.jsonl | < TEXT]",
                tokenize_about);
    flags_argument(&f, "MODEL", &o.model);
    flags_title(&f, "Input");
    flag_text(&f, "--lines", "FILE", &o.lines, "a text on each line, as JSON");
    flag_text(&f, "--messages", "FILE", &o.messages, "a conversation on each line, as JSON");
    flag_text(&f, "--template", "NAME", &o.template,
              "the chat template for --messages; default: the file's");
    flag_switch(&f, "--no-bos", &o.no_bos, "never put BOS first");
    flag_switch(&f, "--parse-special", &o.parse_special,
                "spellings of special tokens become those tokens");
    engine_flags(&f, &o.e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    if (o.lines && o.messages)
        return misused("tokenize", "--lines and --messages exclude each other");
    if (o.messages && (o.no_bos || o.parse_special))
        return misused("tokenize", "%s does not go with --messages, whose template decides",
                       o.no_bos ? "--no-bos" : "--parse-special");
    if (o.template && !o.messages) return misused("tokenize", "--template is only for --messages");
    linnet_model *model = NULL;
    catch_interrupts(false);
    code = engine_open(&o.e, o.model, true, &model);
    if (!code) code = o.lines || o.messages ? tokenize_file(&o, model) : tokenize_stdin(&o, model);
    linnet_model_close(model);
    int out = finish_stdout();
    return code ? code : out;
}

/* ---- detokenize --------------------------------------------------------------------------- */

static const char detokenize_about[] =
    "Prints the text of token ids: one line {\"text\": \"...\"} for each line of ids. Special "
    "tokens give no text unless --parse-special is given. Reads no weights.";

static int print_text(const linnet_model *model, const id_buffer *ids, unsigned flags,
                      const line_reader *r) {
    linnet_error err;
    char *text = NULL;
    size_t n = 0;
    for (size_t cap = ids->n * 8 + 64;; cap = n) {
        char *grown = realloc(text, cap);
        if (!grown) {
            free(text);
            return failed("out of memory for %zu bytes", cap);
        }
        text = grown;
        if (linnet_detokenize(model, ids->at, ids->n, flags, text, cap, &n, &err)) {
            free(text);
            return failed_with(&err);
        }
        if (n <= cap) break;
    }
    json_t *value = json_stringn(text, n);
    json_t *object = value ? json_pack("{s:o}", "text", value) : NULL;
    /* ASCII only: some readers split lines at U+2028 and its like. */
    char *line = object ? json_dumps(object, JSON_ENSURE_ASCII) : NULL;
    int code = EXIT_WORKED;
    if (!line)
        code = failed("%s, line %zu: the text of these ids is not valid UTF-8", r->path, r->number);
    else if (put(line, strlen(line)))
        put("\n", 1);
    free(line);
    json_decref(object);
    free(text);
    return code;
}

static int detokenize(const linnet_model *model, const char *path, unsigned flags) {
    line_reader r;
    id_buffer ids = {0};
    int code = EXIT_WORKED, got = 0;
    int n_vocab = linnet_model_get_info(model)->n_vocab;
    if (!n_vocab) { /* the library's sentence */
        linnet_error err;
        size_t n;
        if (linnet_detokenize(model, NULL, 0, flags, NULL, 0, &n, &err)) return failed_with(&err);
    }
    if (!lines_open(&r, path)) return EXIT_FAILED;
    while (!code && stdout_alive() && (got = lines_next(&r)) == 1) {
        ids.n = 0;
        if (!parse_ids(&ids, r.line, r.n, path, r.number, n_vocab))
            code = EXIT_FAILED;
        else
            code = print_text(model, &ids, flags, &r);
    }
    if (got < 0) code = EXIT_FAILED;
    if (interrupted()) code = interrupt_code();
    free(ids.at);
    lines_close(&r);
    return code;
}

int command_detokenize(int argc, char **argv) {
    engine e = {0};
    const char *path = NULL, *ids = NULL;
    bool special = false;
    flag_table f;
    flags_begin(&f, "detokenize", "MODEL --ids FILE", detokenize_about);
    flags_argument(&f, "MODEL", &path);
    flags_title(&f, "Input");
    flag_text(&f, "--ids", "FILE", &ids, "lines of ids separated by spaces; - is standard input");
    flag_switch(&f, "--parse-special", &special, "special tokens give their spelling");
    engine_flags(&f, &e);

    int code = flags_parse(&f, argc, argv);
    if (code != KEEP_GOING) return code;
    if (!ids) return misused("detokenize", "--ids FILE is missing");
    linnet_model *model = NULL;
    catch_interrupts(false);
    code = engine_open(&e, path, true, &model);
    if (!code) code = detokenize(model, ids, special ? LINNET_PARSE_SPECIAL : 0);
    linnet_model_close(model);
    int out = finish_stdout();
    return code ? code : out;
}
