/* The web page: the files of server/page/, which the assembler puts into the program as they are.
 * PAGE_FILES lists them (Makefile). */
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "routes.h"

#define INCLUDE_FILE(i, name)                                                                      \
    __asm__(".pushsection .rodata\n"                                                               \
            ".globl page_" #i ", page_" #i "_end\n"                                                \
            "page_" #i ":\n.incbin \"server/page/" name "\"\npage_" #i "_end:\n"                   \
            ".popsection\n");                                                                      \
    extern const char page_##i[], page_##i##_end[];
PAGE_FILES(INCLUDE_FILE)

typedef struct {
    const char *name, *start, *end;
} page_file;

#define TABLE_ENTRY(i, name) {name, page_##i, page_##i##_end},
static const page_file files[] = {PAGE_FILES(TABLE_ENTRY)};

static const char *content_type(const char *name) {
    static const char *const types[][2] = {{".html", "text/html; charset=utf-8"},
                                           {".css", "text/css; charset=utf-8"},
                                           {".js", "text/javascript; charset=utf-8"},
                                           {".svg", "image/svg+xml"},
                                           {".png", "image/png"}};
    const char *end = strrchr(name, '.');
    for (size_t i = 0; end && i < sizeof types / sizeof *types; i++)
        if (!strcmp(end, types[i][0])) return types[i][1];
    return "text/plain; charset=utf-8";
}

/* Nothing but what comes from here, and no way to make a page of text: what a model says is shown
 * beside what is worth stealing. */
static void add_headers(request *r, const char *tag) {
    respond_header(r, "Content-Security-Policy",
                   "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                   "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors "
                   "'none'; require-trusted-types-for 'script'; trusted-types 'none'");
    respond_header(r, "Referrer-Policy", "no-referrer");
    respond_header(r, "Cross-Origin-Opener-Policy", "same-origin");
    respond_header(r, "Cache-Control", "no-cache");
    respond_header(r, "ETag", tag);
}

void handle_page(server *s, request *r) {
    const char *name = *request_rest(r) ? request_rest(r) : "index.html";
    (void)s;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const page_file *f = &files[i];
        if (strcmp(f->name, name)) continue;
        size_t n = (size_t)(f->end - f->start);
        unsigned char hash[crypto_generichash_BYTES_MIN];
        char hex[2 * sizeof hash + 1], tag[sizeof hex + 2];
        crypto_generichash(hash, sizeof hash, (const unsigned char *)f->start, n, NULL, 0);
        snprintf(tag, sizeof tag, "\"%s\"", sodium_bin2hex(hex, sizeof hex, hash, sizeof hash));
        const char *known = request_header(r, "If-None-Match");
        add_headers(r, tag);
        if (known && strstr(known, tag))
            respond_bytes(r, 304, NULL, NULL, 0);
        else
            respond_bytes(r, 200, content_type(name), f->start, n);
        return;
    }
    respond_error(r, 404, "invalid_request_error", NULL, "not_found",
                  "there is nothing at this path");
}
