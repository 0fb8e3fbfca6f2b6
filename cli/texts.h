/* Texts inside the program (data/README.md): a book's beginning, and countries as JSON lines. */
#ifndef CLI_TEXTS_H
#define CLI_TEXTS_H

extern const char haystack_text[], haystack_end[], factbook_text[], factbook_end[];

#endif
