"""Makes haystack.txt and factbook.jsonl, the texts inside the linnet binary, heldout.txt and novel.txt (README.md
here). Needs NumPy.

python3 data/extract.py AUSTEN.txt FACTBOOK.jsonl SHAKESPEARE.txt MANSFIELD_PARK.txt"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from train.text import split_book, split_profiles

HAYSTACK_BYTES, NOVEL_BYTES, LONGEST_VALUE, LEAST_PAIRS, HELD_OUT_CHARACTERS = 300_000, 150_000, 100, 100, 50_000


def beginning(text, length):
    """The beginning of a book, whole paragraphs, from the first of its first chapter on."""
    start = text.index("\nCHAPTER I\n") + len("\nCHAPTER I\n")
    end = text.rindex("\n\n", start, start + length)
    return text[start:end].strip("\n") + "\n"


def factbook(lines):
    """Every second country of those that no model of train/ learns, without oceans and other short ones: their
    short values."""
    _, countries = split_profiles([json.loads(line) for line in lines])
    short = [(c["id"], [[k, v] for k, v in c["pairs"] if len(v) <= LONGEST_VALUE]) for c in countries]
    for country, pairs in [c for c in short if len(c[1]) >= LEAST_PAIRS][1::2]:
        yield json.dumps({"id": country, "pairs": pairs}, ensure_ascii=False, separators=(",", ":"))


def held_out(books):
    """Of the part of each book that no model of train/ learns, the end, whole paragraphs."""
    for text in books:
        held = split_book(text)[1]
        yield held[held.index("\n\n", max(0, len(held) - HELD_OUT_CHARACTERS)):].strip("\n") + "\n"


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def write(name, lines):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        f.writelines(lines)


if __name__ == "__main__":
    austen, facts, shakespeare, mansfield_park = map(read, sys.argv[1:5])
    write("haystack.txt", [beginning(austen, HAYSTACK_BYTES)])
    write("novel.txt", [beginning(mansfield_park, NOVEL_BYTES)])
    write("factbook.jsonl", [line + "\n" for line in factbook(facts.splitlines())])
    write("heldout.txt", ["\n".join(held_out([austen, shakespeare]))])
