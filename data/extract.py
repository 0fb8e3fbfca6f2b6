"""Makes haystack.txt and factbook.jsonl, the texts inside the linnet binary (README.md here).

python3 data/extract.py AUSTEN.txt FACTBOOK.jsonl"""
import json
import os
import sys

HAYSTACK_BYTES, LONGEST_VALUE, LEAST_PAIRS = 300_000, 100, 100
HERE = os.path.dirname(os.path.abspath(__file__))


def haystack(text):
    """The beginning of a book, whole paragraphs, from the first of its first chapter on."""
    start = text.index("\nCHAPTER I\n") + len("\nCHAPTER I\n")
    end = text.rindex("\n\n", start, start + HAYSTACK_BYTES)
    return text[start:end].strip("\n") + "\n"


def factbook(lines):
    """Countries 4, 14, 24, ... in order of their ids, without oceans and other short ones: their short values."""
    countries = sorted((json.loads(line) for line in lines), key=lambda c: c["id"])
    for c in countries[4::10]:
        pairs = [[k, v] for k, v in c["pairs"] if len(v) <= LONGEST_VALUE]
        if len(pairs) >= LEAST_PAIRS:
            yield json.dumps({"id": c["id"], "pairs": pairs}, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f, open(os.path.join(HERE, "haystack.txt"), "w", encoding="utf-8") as out:
        out.write(haystack(f.read()))
    with open(sys.argv[2], encoding="utf-8") as f, open(os.path.join(HERE, "factbook.jsonl"), "w", encoding="utf-8") as out:
        out.writelines(line + "\n" for line in factbook(f))
