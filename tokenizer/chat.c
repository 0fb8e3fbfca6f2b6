/* Chat templates. What each family writes follows its published Jinja template; the golden test
 * renders those with transformers and compares. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

typedef enum {
    FAMILY_CHATML,
    FAMILY_QWEN,
    FAMILY_QWEN3,
    FAMILY_QWEN35,
    FAMILY_LLAMA2,
    FAMILY_LLAMA3,
    FAMILY_LLAMA31,
    FAMILY_MISTRAL1,
    FAMILY_MISTRAL3,
    FAMILY_ZEPHYR,
    FAMILY_PLAIN,
    N_FAMILIES
} family;

struct chat_template {
    const char *name;
};

static const chat_template templates[N_FAMILIES] = {
    [FAMILY_CHATML] = {"chatml"},       /* SmolLM2, Hermes, Qwen2, ... */
    [FAMILY_QWEN] = {"qwen"},           /* Qwen2.5 */
    [FAMILY_QWEN3] = {"qwen3"},         /* Qwen3 */
    [FAMILY_QWEN35] = {"qwen3.5"},      /* Qwen3.5 */
    [FAMILY_LLAMA2] = {"llama2"},       /* Llama-2-chat */
    [FAMILY_LLAMA3] = {"llama3"},       /* Llama-3-Instruct */
    [FAMILY_LLAMA31] = {"llama3.1"},    /* Llama-3.1 to 3.3 */
    [FAMILY_MISTRAL1] = {"mistral-v1"}, /* Mistral-7B-Instruct-v0.1, v0.2 */
    [FAMILY_MISTRAL3] = {"mistral-v3"}, /* Mistral-7B-Instruct-v0.3 */
    [FAMILY_ZEPHYR] = {"zephyr"},       /* Zephyr, TinyLlama */
    [FAMILY_PLAIN] = {"plain"},         /* the contents, one after the other */
};

const char *chat_template_name(size_t i) {
    return i < N_FAMILIES ? templates[i].name : NULL;
}

const char *chat_template_list(void) {
    return "chatml qwen qwen3 qwen3.5 llama2 llama3 llama3.1 mistral-v1 mistral-v3 zephyr plain";
}

const chat_template *chat_template_by_name(const char *name) {
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (!strcmp(templates[i].name, name)) return &templates[i];
    return NULL;
}

const char *chat_template_get_name(const chat_template *c) {
    return c->name;
}

/* ---- Growing text ------------------------------------------------------------------------ */

typedef struct {
    char *p; /* NUL-terminated once something was added */
    size_t n, cap;
    bool failed; /* no memory: later additions are ignored */
} text;

static void text_add(text *s, const char *p, size_t n) {
    if (s->failed) return;
    if (s->cap - s->n < n + 1) {
        size_t cap = max_size(s->cap * 2, s->n + n + 64);
        char *bigger = realloc(s->p, cap);
        if (!bigger) {
            s->failed = true;
            return;
        }
        s->p = bigger;
        s->cap = cap;
    }
    memcpy(s->p + s->n, p, n);
    s->n += n;
    s->p[s->n] = 0;
}

static bool text_ends(const text *s, const char *with) {
    size_t n = strlen(with);
    return s->n >= n && !memcmp(s->p + s->n - n, with, n);
}

/* ---- A template in one spelling ---------------------------------------------------------- */

/* Templates that mean the same differ in spacing, quotes and line breaks. This writes one with
 * blanks only between words, literals in single quotes, unescaped and joined ('a' + 'b' is 'ab'),
 * x['role'] for x.role, no comments and no dashes; text outside of tags is what Jinja would print,
 * with trim_blocks and lstrip_blocks as transformers sets them. */

static bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* A literal from its opening quote on; returns what follows it. */
static const char *canonical_literal(text *out, const char *p, const char *end,
                                     size_t *literal_end) {
    char quote = *p++;
    if (*literal_end && *literal_end + 1 == out->n && text_ends(out, "+"))
        out->n -= 2; /* join: drop the '+ */
    else
        text_add(out, "'", 1);
    for (; p < end && *p != quote; p++) {
        char c = *p;
        if (c == '\\' && p + 1 < end) {
            c = *++p;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        text_add(out, &c, 1);
    }
    text_add(out, "'", 1);
    *literal_end = out->n;
    return p < end ? p + 1 : end;
}

/* A tag from behind its opening mark to its closing mark, which it returns. */
static const char *canonical_tag(text *out, const char *p, const char *end, char close) {
    size_t literal_end = 0;
    bool space = false;
    while (p < end && !(p[0] == close && p + 1 < end && p[1] == '}')) {
        if (is_blank(*p)) {
            space = true;
            p++;
            continue;
        }
        if ((*p == '-' || *p == '+') && p + 2 < end && p[1] == close && p[2] == '}') {
            p++;
            continue;
        }
        if (*p == '\'' || *p == '"') {
            p = canonical_literal(out, p, end, &literal_end);
        } else {
            static const char *const fields[] = {"role", "content"};
            bool done = false;
            for (size_t i = 0; *p == '.' && i < 2 && !done; i++) {
                size_t n = strlen(fields[i]);
                done =
                    (size_t)(end - p) > n + 1 && !memcmp(p + 1, fields[i], n) && !is_word(p[n + 1]);
                if (!done) continue;
                text_add(out, "['", 2);
                text_add(out, fields[i], n);
                text_add(out, "']", 2);
                p += n + 1;
            }
            if (!done) {
                if (space && is_word(*p) && out->n && is_word(out->p[out->n - 1]))
                    text_add(out, " ", 1);
                text_add(out, p++, 1);
            }
        }
        space = false;
    }
    return p;
}

static const char *next_tag(const char *p, const char *end) {
    for (; p + 1 < end; p++)
        if (*p == '{' && (p[1] == '{' || p[1] == '%' || p[1] == '#')) return p;
    return end;
}

static void canonical(text *out, const char *p, size_t n) {
    const char *end = p + n;
    if (n && end[-1] == '\n') end--;
    bool strip_left = false, line_start = true;
    text_add(out, "", 0);
    while (p < end) {
        const char *tag = next_tag(p, end), *last = tag;
        char kind = tag < end ? tag[1] : 0;
        if (strip_left)
            while (p < last && is_blank(*p))
                p++;
        if (kind && tag + 2 < end && tag[2] == '-') {
            while (last > p && is_blank(last[-1]))
                last--;
        } else if (kind == '%' || kind == '#') {
            const char *edge = last;
            while (edge > p && (edge[-1] == ' ' || edge[-1] == '\t'))
                edge--;
            if (edge > p ? edge[-1] == '\n' : line_start) last = edge;
        }
        text_add(out, p, (size_t)(last - p));
        if (!kind) return;
        p = tag + 2;
        if (p < end && (*p == '-' || *p == '+')) p++;
        if (kind == '#') {
            while (p + 1 < end && !(p[0] == '#' && p[1] == '}'))
                p++;
        } else {
            char close = kind == '{' ? '}' : '%', mark[2] = {'{', kind};
            text_add(out, mark, 2);
            p = canonical_tag(out, p, end, close);
            mark[0] = close;
            mark[1] = '}';
            text_add(out, mark, 2);
        }
        strip_left = p > tag + 2 && p[-1] == '-';
        p = end - p > 2 ? p + 2 : end;
        line_start = false;
        if (!strip_left && kind != '{' && p < end && *p == '\n') {
            p++;
            line_start = true;
        }
    }
}

/* ---- Recognition ------------------------------------------------------------------------- */

typedef enum { SYSTEM_REFUSED, SYSTEM_IN_FIRST_USER, SYSTEM_IN_LAST_USER } system_place;

/* A family's usual details, or those of one template. */
typedef struct {
    family family;
    bool bos;                                 /* BOS first (ChatML, plain) */
    bool prompt_if_asked, prompt_always;      /* the assistant's header at the end */
    text default_system;                      /* p NULL: none */
    const char *open, *close;                 /* Mistral: around a user's content */
    const char *before_answer, *after_answer; /* Mistral: around content and EOS */
    bool trim_answer;
    system_place system;
} details;

static details usual_details(family f) {
    details d = {.family = f, .prompt_if_asked = true};
    bool v1 = f == FAMILY_MISTRAL1;
    d.open = "[INST] ";
    d.close = v1 ? " [/INST]" : "[/INST]";
    d.before_answer = v1 ? "" : " ";
    d.after_answer = "";
    d.system = v1 ? SYSTEM_IN_FIRST_USER : SYSTEM_IN_LAST_USER;
    return d;
}

#define ROLE "message['role']"
#define CONTENT "message['content']"

static bool has(const text *c, const char *part) {
    return strstr(c->p, part) != NULL;
}

static bool has_any(const text *c, const char *const *parts) {
    for (; *parts; parts++)
        if (has(c, *parts)) return true;
    return false;
}

/* The text between `before` and `after`; false when it is not there or holds a quote. */
static bool between(const text *c, const char *before, const char *after, text *out) {
    const char *p = strstr(c->p, before);
    if (!p) return false;
    p += strlen(before);
    const char *end = strstr(p, after);
    if (!end || memchr(p, '\'', (size_t)(end - p))) return false;
    text_add(out, p, (size_t)(end - p));
    return true;
}

static bool is_chatml(const text *c, details *d) {
    /* Each of these does something that is not plain ChatML. */
    static const char *const others[] = {"tool",     "think",  "macro",    "namespace",
                                         "strftime", "im_sep", "document", "trim",
                                         "strip",    "raise_", "image",    NULL};
    if (has_any(c, others)) return false;
    if (!has(c, "{{'<|im_start|>'+" ROLE "+'\n'+" CONTENT "+'<|im_end|>\n'}}")) return false;
    d->prompt_if_asked = has(c, "add_generation_prompt%}{{'<|im_start|>assistant\n'}}");
    if (!d->prompt_if_asked && has(c, "{{'<|im_start|>assistant")) return false;
    d->bos = !strncmp(c->p, "{{bos_token}}", 13);
    if (!d->bos && has(c, "bos_token")) return false;
    if (!has(c, "'system'")) return true;
    return between(c, "messages[0]['role']!='system'%}{{'<|im_start|>system\n", "<|im_end|>\n'}}",
                   &d->default_system);
}

static bool is_qwen(const text *c, details *d) {
    static const char *const others[] = {"think", "macro", "namespace", "raise_", NULL};
    if (has_any(c, others)) return false;
    if (!has(c, "<tool_call>") || !has(c, "(" ROLE "=='system'and not loop.first)") ||
        !has(c, "{{'<|im_start|>'+" ROLE "+'\n'+" CONTENT "+'<|im_end|>\n'}}") ||
        !has(c, "{{'<|im_start|>system\n'+messages[0]['content']+'<|im_end|>\n'}}") ||
        !has(c, "{%if add_generation_prompt%}{{'<|im_start|>assistant\n'}}"))
        return false;
    between(c, "{%else%}{{'<|im_start|>system\n", "<|im_end|>\n'}}{%endif%}", &d->default_system);
    return true;
}

static bool is_qwen3(const text *c) {
    return has(c, "ns.last_query_index") && has(c, "<tool_response>") && !has(c, "macro") &&
           has(c, "'\n<think>\n'+reasoning_content.strip('\n')+'\n</"
                  "think>\n\n'+content.lstrip('\n')") &&
           has(c, "{%if loop.last or(not loop.last and reasoning_content)%}") &&
           has(c,
               "{{'<|im_start|>assistant\n'}}{%if enable_thinking is defined and enable_thinking "
               "is false%}{{'<think>\n\n</think>\n\n'}}{%endif%}{%endif%}");
}

static bool is_qwen35(const text *c) {
    return has(c, "ns.last_query_index") && has(c, "macro render_content(") &&
           has(c, "'\n<think>\n'+reasoning_content+'\n</think>\n\n'+content}}") &&
           has(c, "No user query found in messages.") &&
           has(c,
               "{{'<|im_start|>assistant\n'}}{%if enable_thinking is defined and enable_thinking "
               "is false%}{{'<think>\n\n</think>\n\n'}}{%else%}{{'<think>\n'}}");
}

static bool is_llama3(const text *c, details *d) {
    if (!has(c, "'<|start_header_id|>'+" ROLE "+'<|end_header_id|>\n\n'+" CONTENT
                "|trim+'<|eot_id|>'") ||
        !has(c, "{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}"))
        return false;
    if (has(c, "tool")) {
        d->family = FAMILY_LLAMA31;
        return has(c, "{{'<|start_header_id|>system<|end_header_id|>\n\n'}}") &&
               has(c, "{{'Cutting Knowledge Date: December 2023\n'}}"
                      "{{'Today Date: '+date_string+'\n\n'}}") &&
               has(c, "date_string='26 Jul 2024'") && !strncmp(c->p, "{{bos_token}}", 13);
    }
    d->family = FAMILY_LLAMA3;
    d->prompt_always = !has(c, "add_generation_prompt");
    return has(c, "{%if loop.index0==0%}{%set content=bos_token+content%}{%endif%}") &&
           !has(c, "'system'");
}

static bool is_llama2(const text *c) {
    return has(c, "'<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+" CONTENT) &&
           has(c, "{{bos_token+'[INST] '+content.strip()+' [/INST]'}}") &&
           has(c, "{{' '+content.strip()+' '+eos_token}}") && has(c, "raise_exception") &&
           has(c, "{%set system_message=false%}") && !has(c, ROLE "=='system'%}");
}

static bool is_mistral(const text *c, details *d) {
    static const char *const others[] = {"SYSTEM_PROMPT", "macro", "today", "chunk", "block", NULL};
    if (has_any(c, others) || !has(c, "{{bos_token}}") || !has(c, "raise_exception")) return false;
    bool v1 = has(c, "'+" CONTENT "+' [/INST]'}}");
    if (v1 == has(c, "'+" CONTENT "+'[/INST]'}}")) return false;
    *d = usual_details(v1 ? FAMILY_MISTRAL1 : FAMILY_MISTRAL3);
    if (has(c, "{{' [INST] '+" CONTENT))
        d->open = " [INST] ";
    else if (has(c, "{{'[INST] '+" CONTENT))
        d->open = "[INST] ";
    else if (has(c, "{{'[INST]'+" CONTENT))
        d->open = "[INST]";
    else
        return false;
    if (has(c, "{%if loop.first and system_message is defined%}"))
        d->system = SYSTEM_IN_FIRST_USER;
    else if (has(c, "{%if loop.last and system_message is defined%}"))
        d->system = SYSTEM_IN_LAST_USER;
    else if (!has(c, "system"))
        d->system = SYSTEM_REFUSED;
    else
        return false;
    d->before_answer = has(c, "{{' '+" CONTENT) ? " " : "";
    d->trim_answer = has(c, CONTENT "|trim+eos_token");
    d->after_answer = has(c, "+eos_token+' '}}") ? " " : "";
    return has(c, CONTENT "+eos_token") || d->trim_answer;
}

static bool is_zephyr(const text *c) {
    return has(c, "{{'<|user|>\n'+" CONTENT "+eos_token}}\n{%") &&
           has(c, "{{'<|system|>\n'+" CONTENT "+eos_token}}\n{%") &&
           has(c, "{{'<|assistant|>\n'+" CONTENT "+eos_token}}\n{%") &&
           has(c, "{%if loop.last and add_generation_prompt%}{{'<|assistant|>'}}\n{%endif%}");
}

/* Finds the family of a template and its details; false when there is none. */
static bool recognise(const text *c, details *d) {
    *d = usual_details(FAMILY_CHATML);
    if (has(c, "<|im_start|>")) {
        if (is_qwen35(c)) {
            d->family = FAMILY_QWEN35;
            return true;
        }
        if (is_qwen3(c)) {
            d->family = FAMILY_QWEN3;
            return true;
        }
        if (is_qwen(c, d)) {
            d->family = FAMILY_QWEN;
            return true;
        }
        return is_chatml(c, d);
    }
    if (has(c, "<|start_header_id|>")) return is_llama3(c, d);
    if (has(c, "<<SYS>>")) {
        d->family = FAMILY_LLAMA2;
        return is_llama2(c);
    }
    if (has(c, "[INST]")) return is_mistral(c, d);
    if (is_zephyr(c)) {
        d->family = FAMILY_ZEPHYR;
        return true;
    }
    d->family = FAMILY_PLAIN;
    return !strcmp(c->p, "{%for message in messages%}{{" CONTENT "}}{%endfor%}");
}

/* *known: the file has a template and it was recognised; then the caller frees
 * d->default_system.p. */
static linnet_status details_of(const gguf *g, details *d, bool *present, bool *known,
                                linnet_error *err) {
    gguf_str source = {NULL, 0};
    *present = *known = false;
    linnet_status status = gguf_get_str(g, "tokenizer.chat_template", false, &source, err);
    if (status || !source.n) return status;
    *present = true;
    text c = {0};
    canonical(&c, source.p, source.n);
    if (!c.failed && !memchr(c.p, 0, c.n)) *known = recognise(&c, d);
    bool failed = c.failed || (*known && d->default_system.failed);
    free(c.p);
    if (!*known || failed) free(d->default_system.p);
    if (!failed) return LINNET_OK;
    *known = false;
    return fail(err, LINNET_ERR_MEMORY, "%s: no memory for the chat template", gguf_path(g));
}

linnet_status chat_template_of(const gguf *g, const chat_template **out, bool *present,
                               linnet_error *err) {
    details d = {0};
    bool known;
    *out = NULL;
    linnet_status status = details_of(g, &d, present, &known, err);
    if (!known) return status;
    free(d.default_system.p);
    *out = &templates[d.family];
    return LINNET_OK;
}

linnet_status chat_template_unknown(const gguf *g, bool present, linnet_error *err) {
    return fail(err, LINNET_ERR_UNSUPPORTED, "%s: the file %s; choose one by name: %s",
                gguf_path(g),
                present ? "has a chat template that is not recognised" : "has no chat template",
                chat_template_list());
}

/* ---- Writing a conversation -------------------------------------------------------------- */

typedef struct {
    const tokenizer *t;
    id_list *out;
    size_t before;   /* ids that were in `out` */
    bool first_only; /* the dummy prefix only where nothing came before */
    text run;        /* since the last special token */
    linnet_status status;
    linnet_error *err;
} writer;

static void end_run(writer *w) {
    if (w->status || w->run.failed || !w->run.n) return;
    bool continues = w->first_only && w->out->n > w->before;
    w->status = tokenizer_encode_plain(w->t, w->run.p, w->run.n, continues, w->out, w->err);
    w->run.n = 0;
}

static void write_id(writer *w, int32_t id) {
    if (id < 0) return;
    end_run(w);
    if (!w->status) w->status = ids_push(w->out, id, w->err);
}

/* Contents: never special tokens. */
static void write_plain(writer *w, const char *p, size_t n) {
    text_add(&w->run, p, n);
}
static void write_text(writer *w, const char *p) {
    write_plain(w, p, strlen(p));
}

/* Framing: spellings of special tokens become those tokens. */
static void write_frame(writer *w, const char *p) {
    size_t n = strlen(p), at, length;
    for (int32_t id; (id = tokenizer_next_special(w->t, p, n, &at, &length)) >= 0;) {
        write_plain(w, p, at);
        write_id(w, id);
        p += at + length;
        n -= at + length;
    }
    write_plain(w, p, n);
}

static void write_bos(writer *w) {
    write_id(w, tokenizer_bos(w->t));
}
static void write_eos(writer *w) {
    write_id(w, tokenizer_eos(w->t));
}

/* A part of a content. */
typedef struct {
    const char *p;
    size_t n;
} part;

static part whole(const char *p) {
    return (part){p, strlen(p)};
}

/* The bytes of the character at p if Python's str.strip() removes it, else 0. */
static size_t blank_length(const unsigned char *p, size_t n) {
    if (n && ((p[0] >= 0x09 && p[0] <= 0x0D) || (p[0] >= 0x1C && p[0] <= 0x20))) return 1;
    if (n >= 2 && p[0] == 0xC2 && (p[1] == 0x85 || p[1] == 0xA0)) return 2;
    if (n < 3) return 0;
    unsigned c = (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    bool is_three = p[0] >> 4 == 0xE && p[1] >> 6 == 2 && p[2] >> 6 == 2;
    bool is_space = c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                    c == 0x202F || c == 0x205F || c == 0x3000;
    return is_three && is_space ? 3 : 0;
}

/* str.strip(), Jinja's trim. */
static part strip(part s) {
    const unsigned char *p = (const unsigned char *)s.p;
    size_t k, low = 0, high = s.n;
    while ((k = blank_length(p + low, high - low)))
        low += k;
    for (bool more = true; more && high > low;) {
        more = false;
        for (k = 1; k <= 3 && k <= high - low && !more; k++)
            if (blank_length(p + high - k, k) == k) {
                high -= k;
                more = true;
            }
    }
    return (part){s.p + low, high - low};
}

static part lstrip_newlines(part s) {
    while (s.n && s.p[0] == '\n')
        s.p++, s.n--;
    return s;
}

static part rstrip_newlines(part s) {
    while (s.n && s.p[s.n - 1] == '\n')
        s.n--;
    return s;
}

static void write_part(writer *w, part s) {
    write_plain(w, s.p, s.n);
}

static bool is_role(const linnet_message *m, const char *role) {
    return !strcmp(m->role, role);
}

static linnet_status refuse(const details *d, size_t i, const linnet_message *m, const char *want,
                            linnet_error *err) {
    return fail(err, LINNET_ERR_ARGUMENT,
                "message %zu has role \"%.40s\", but the %s chat template wants %s", i + 1, m->role,
                templates[d->family].name, want);
}

/* <|im_start|>role\ncontent<|im_end|>\n */
static void write_im(writer *w, const char *role, part content) {
    write_frame(w, "<|im_start|>");
    write_text(w, role);
    write_frame(w, "\n");
    write_part(w, content);
    write_frame(w, "<|im_end|>\n");
}

static void render_chatml(writer *w, const details *d, const linnet_message *m, size_t n) {
    if (d->bos) write_bos(w);
    if (n && d->default_system.p && !is_role(&m[0], "system"))
        write_im(w, "system", (part){d->default_system.p, d->default_system.n});
    for (size_t i = 0; i < n; i++) {
        bool known =
            is_role(&m[i], "system") || is_role(&m[i], "user") || is_role(&m[i], "assistant");
        if (known || d->family == FAMILY_CHATML) write_im(w, m[i].role, whole(m[i].content));
    }
}

/* The first or last place of `what` in s, -1 when there is none. */
static ptrdiff_t find(part s, const char *what, bool last) {
    size_t n = strlen(what);
    ptrdiff_t found = -1;
    for (size_t i = 0; i + n <= s.n && (last || found < 0); i++)
        if (!memcmp(s.p + i, what, n)) found = (ptrdiff_t)i;
    return found;
}

/* Cuts an assistant's content at </think>, as the templates of Qwen3 do. */
static void split_thought(part *content, part *thought) {
    static const char open[] = "<think>", close[] = "</think>";
    ptrdiff_t first = find(*content, close, false), last = find(*content, close, true);
    *thought = (part){"", 0};
    if (first < 0) return;
    part before = rstrip_newlines((part){content->p, (size_t)first});
    ptrdiff_t at = find(before, open, true);
    if (at >= 0) {
        before.p += at + (ptrdiff_t)strlen(open);
        before.n -= (size_t)at + strlen(open);
    }
    *thought = lstrip_newlines(before);
    size_t skip = (size_t)last + strlen(close);
    *content = lstrip_newlines((part){content->p + skip, content->n - skip});
}

/* Is this a user's message that is not a tool's answer? */
static bool is_query(const linnet_message *m, bool trim) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    part s = whole(m->content);
    if (!is_role(m, "user")) return false;
    if (trim) s = strip(s);
    bool starts = s.n >= strlen(open) && !memcmp(s.p, open, strlen(open));
    bool ends = s.n >= strlen(close) && !memcmp(s.p + s.n - strlen(close), close, strlen(close));
    return !(starts && ends);
}

/* Thoughts are shown for the answers behind the last question only. */
static linnet_status render_qwen3(writer *w, const details *d, const linnet_message *m, size_t n) {
    bool trim = d->family == FAMILY_QWEN35;
    size_t last_query = n - 1;
    bool found = false;
    for (size_t i = n; i-- > 0 && !found;) {
        found = is_query(&m[i], trim);
        if (found) last_query = i;
    }
    if (trim && !found)
        return fail(w->err, LINNET_ERR_ARGUMENT,
                    "no message has role \"user\", but the %s chat template wants one",
                    templates[d->family].name);
    for (size_t i = 0; i < n; i++) {
        part content = whole(m[i].content), thought = {"", 0};
        if (trim) content = strip(content);
        if (is_role(&m[i], "system") && trim && i)
            return refuse(d, i, &m[i], "a system message only at the beginning", w->err);
        if (is_role(&m[i], "user") || is_role(&m[i], "system")) {
            write_im(w, m[i].role, content);
            continue;
        }
        if (!is_role(&m[i], "assistant")) {
            if (trim || is_role(&m[i], "tool"))
                return refuse(d, i, &m[i], "system, user or assistant", w->err);
            continue; /* Qwen3's template ignores it */
        }
        split_thought(&content, &thought);
        if (trim) thought = strip(thought);
        write_frame(w, "<|im_start|>assistant\n");
        if (i > last_query && (trim || i + 1 == n || thought.n)) {
            write_frame(w, "<think>\n");
            write_part(w, trim ? thought : rstrip_newlines(lstrip_newlines(thought)));
            write_frame(w, "\n</think>\n\n");
            if (!trim) content = lstrip_newlines(content);
        }
        write_part(w, content);
        write_frame(w, "<|im_end|>\n");
    }
    return LINNET_OK;
}

static void write_header(writer *w, const char *role) {
    write_frame(w, "<|start_header_id|>");
    write_text(w, role);
    write_frame(w, "<|end_header_id|>\n\n");
}

static void render_llama3(writer *w, const details *d, const linnet_message *m, size_t n) {
    size_t i = 0;
    if (n) write_bos(w);
    if (d->family == FAMILY_LLAMA31) {
        write_header(w, "system");
        write_frame(w, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
        if (is_role(&m[0], "system")) write_part(w, strip(whole(m[i++].content)));
        write_frame(w, "<|eot_id|>");
    }
    for (; i < n; i++) {
        write_header(w, m[i].role);
        write_part(w, strip(whole(m[i].content)));
        write_frame(w, "<|eot_id|>");
    }
}

static const char alternate[] =
    "user and assistant to take turns, after an optional system message";

static linnet_status render_llama2(writer *w, const details *d, const linnet_message *m, size_t n) {
    size_t first = is_role(&m[0], "system");
    text joined = {0};
    linnet_status status = LINNET_OK;
    for (size_t i = first; i < n && !status; i++) {
        part content = whole(m[i].content);
        if (is_role(&m[i], "user") != ((i - first) % 2 == 0)) {
            status = refuse(d, i, &m[i], alternate, w->err);
            break;
        }
        if (is_role(&m[i], "user")) {
            write_bos(w);
            write_frame(w, "[INST] ");
            if (i == first && first) {
                text_add(&joined, "<<SYS>>\n", 8);
                text_add(&joined, m[0].content, strlen(m[0].content));
                text_add(&joined, "\n<</SYS>>\n\n", 11);
                text_add(&joined, content.p, content.n);
                if (joined.failed) {
                    w->run.failed = true;
                    break;
                }
                content = (part){joined.p, joined.n};
            }
            write_part(w, strip(content));
            write_frame(w, " [/INST]");
        } else if (is_role(&m[i], "assistant")) {
            write_frame(w, " ");
            write_part(w, strip(content));
            write_frame(w, " ");
            write_eos(w);
        }
    }
    free(joined.p);
    return status;
}

static linnet_status render_mistral(writer *w, const details *d, const linnet_message *m,
                                    size_t n) {
    size_t first = d->system != SYSTEM_REFUSED && n && is_role(&m[0], "system");
    write_bos(w);
    for (size_t i = first; i < n; i++) {
        bool user = is_role(&m[i], "user");
        if (user != ((i - first) % 2 == 0) || (!user && !is_role(&m[i], "assistant")))
            return refuse(d, i, &m[i],
                          d->system == SYSTEM_REFUSED ? "user and assistant to take turns"
                                                      : alternate,
                          w->err);
        if (user) {
            bool here = d->system == SYSTEM_IN_FIRST_USER ? i == first : i + 1 == n;
            write_frame(w, d->open);
            if (first && here) {
                write_text(w, m[0].content);
                write_frame(w, "\n\n");
            }
            write_text(w, m[i].content);
            write_frame(w, d->close);
        } else {
            part content = whole(m[i].content);
            write_frame(w, d->before_answer);
            write_part(w, d->trim_answer ? strip(content) : content);
            write_eos(w);
            write_frame(w, d->after_answer);
        }
    }
    return LINNET_OK;
}

static void render_zephyr(writer *w, const linnet_message *m, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!is_role(&m[i], "user") && !is_role(&m[i], "system") && !is_role(&m[i], "assistant"))
            continue;
        write_frame(w, is_role(&m[i], "user")     ? "<|user|>\n"
                       : is_role(&m[i], "system") ? "<|system|>\n"
                                                  : "<|assistant|>\n");
        write_text(w, m[i].content);
        write_eos(w);
        write_frame(w, "\n");
    }
}

static linnet_status render(writer *w, const details *d, const linnet_message *m, size_t n,
                            bool prompt) {
    static const bool needs_message[N_FAMILIES] = {
        [FAMILY_QWEN] = true,   [FAMILY_QWEN3] = true,   [FAMILY_QWEN35] = true,
        [FAMILY_LLAMA2] = true, [FAMILY_LLAMA31] = true,
    };
    linnet_status status = LINNET_OK;
    if (!n &&
        (needs_message[d->family] || (d->family >= FAMILY_MISTRAL1 &&
                                      d->family <= FAMILY_MISTRAL3 && d->system != SYSTEM_REFUSED)))
        return fail(w->err, LINNET_ERR_ARGUMENT,
                    "there are no messages, but the %s chat template wants at least one",
                    templates[d->family].name);
    prompt = d->prompt_always || (prompt && d->prompt_if_asked);
    switch (d->family) {
    case FAMILY_QWEN:
        for (size_t i = 0; i < n; i++)
            if (is_role(&m[i], "tool"))
                return refuse(d, i, &m[i], "system, user or assistant", w->err);
        /* fall through */
    case FAMILY_CHATML:
        render_chatml(w, d, m, n);
        if (prompt) write_frame(w, "<|im_start|>assistant\n");
        break;
    case FAMILY_QWEN3:
    case FAMILY_QWEN35:
        status = render_qwen3(w, d, m, n);
        if (prompt) write_frame(w, "<|im_start|>assistant\n");
        if (prompt && d->family == FAMILY_QWEN35) write_frame(w, "<think>\n");
        break;
    case FAMILY_LLAMA2:
        status = render_llama2(w, d, m, n);
        break;
    case FAMILY_LLAMA3:
    case FAMILY_LLAMA31:
        render_llama3(w, d, m, n);
        if (prompt) write_header(w, "assistant");
        break;
    case FAMILY_MISTRAL1:
    case FAMILY_MISTRAL3:
        status = render_mistral(w, d, m, n);
        break;
    case FAMILY_ZEPHYR:
        render_zephyr(w, m, n);
        if (prompt && n) write_frame(w, "<|assistant|>\n");
        break;
    case FAMILY_PLAIN:
    case N_FAMILIES:
        if (d->bos) write_bos(w);
        for (size_t i = 0; i < n; i++)
            write_text(w, m[i].content);
        break;
    }
    return status;
}

linnet_status chat_render(const chat_template *c, const gguf *g, const tokenizer *t,
                          const linnet_message *messages, size_t n, bool add_generation_prompt,
                          id_list *out, linnet_error *err) {
    family wanted = (family)(c - templates);
    details d = {0};
    bool present, known;
    linnet_status status = details_of(g, &d, &present, &known, err);
    if (status) return status;
    if (!known || d.family != wanted) {
        if (known) free(d.default_system.p);
        d = usual_details(wanted);
        if (wanted == FAMILY_PLAIN) d.bos = tokenizer_add_bos(t);
    }
    writer w = {
        .t = t, .out = out, .before = out->n, .first_only = wanted == FAMILY_MISTRAL3, .err = err};
    status = render(&w, &d, messages, n, add_generation_prompt);
    if (!status) {
        end_run(&w);
        status = w.status;
    }
    if (!status && w.run.failed)
        status = fail(err, LINNET_ERR_MEMORY, "no memory for a conversation of %zu messages", n);
    free(w.run.p);
    free(d.default_system.p);
    if (status) out->n = w.before;
    return status;
}
