/* The assembler puts the files of data/ into the program as they are. */
#include "texts.h"

#define INCLUDE_TEXT(name, file)                                                                   \
    __asm__(".pushsection .rodata\n"                                                               \
            ".globl " #name "_text, " #name "_end\n" #name "_text:\n"                              \
            ".incbin \"" file "\"\n" #name "_end:\n"                                               \
            ".byte 0\n"                                                                            \
            ".popsection\n")

INCLUDE_TEXT(haystack, "data/haystack.txt");
INCLUDE_TEXT(factbook, "data/factbook.jsonl");
