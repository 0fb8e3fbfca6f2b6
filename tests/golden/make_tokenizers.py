#!/usr/bin/env python3
"""Remakes tests/data/tokenizer/: small vocabularies, strings, and what the reference tokenizers make
of them, for tests/test_tokenizer.c and tests/test_chat.c.

    python3 tests/golden/make_tokenizers.py TEXT_FILE...

TEXT_FILEs are English prose to train on (the committed files used Jane Austen's novels, from
Debian's r-cran-janeaustenr). Made with Python 3.11 (Unicode 14), tokenizers 0.23.3, sentencepiece
0.2.3, transformers 5.23.0, gguf, jinja2. The vocabularies are kept when they exist, so that the
goldens can be remade without the text; delete them to train anew.

  bpe.gguf       2500 byte-level BPE tokens whose merges ignore word boundaries, so that every wrong
                 cut shows; some byte tokens are missing, some tokens only ignore_merges can reach
  sp.gguf        2000 SentencePiece BPE pieces with byte fallback
  sp_raw.gguf    the same as linnet.tokenizer.sentencepiece_model
  sp_v3.gguf     the same with the control tokens [INST] and [/INST], as Mistral v0.3
  strings.bin    20,000 strings: u16 length, bytes
  ids.bin        per reference: name (16 bytes), one 64-bit FNV-1a of the ids per block of 8 strings
  ids.txt        all ids of some strings, for people
  long.txt       number and hash of the ids of all strings as one text, joined by "" and by " ", and
                 of "soups": SOUP_UNITS units, drawn from one of SOUPS
  invalid.txt    bytes that are not UTF-8 (hex) and the ids of bytes.decode(errors="replace")
  chat.txt       published chat templates, conversations, and ids from apply_chat_template
"""
import json
import os
import random
import struct
import sys
import tempfile
import unicodedata

import gguf
import sentencepiece as spm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "tokenizer")
N_STRINGS, BLOCK = 20000, 8

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
           "<|end_header_id|>", "<|eot_id|>", "<|im", "<s>", "</s>", "[INST]", "[/INST]"]
USER = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>"]
MISSING_BYTES = [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)]

SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x370), (0x370, 0x400), (0x400, 0x530),
           (0x530, 0x590), (0x590, 0x600), (0x600, 0x700), (0x700, 0x7C0), (0x900, 0xA00),
           (0xA00, 0xC00), (0xC00, 0xE00), (0xE00, 0x1000), (0x1000, 0x10A0), (0x10A0, 0x1200),
           (0x1200, 0x1400), (0x1780, 0x1880), (0x1E00, 0x2000), (0x2000, 0x2070),
           (0x2070, 0x2200), (0x2200, 0x2400), (0x2500, 0x2800), (0x3000, 0x3100),
           (0x3100, 0x3400), (0x4E00, 0x5200), (0xAC00, 0xAE00), (0xFB00, 0xFE00),
           (0xFE00, 0xFF00), (0xFF00, 0xFFF0), (0x10000, 0x10100), (0x10300, 0x10400),
           (0x1D400, 0x1D800), (0x1F000, 0x1F100), (0x1F300, 0x1F700), (0x20000, 0x20100),
           (0xE000, 0xE010), (0xE0000, 0xE0080), (0xF0000, 0xF0010)]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0",
          "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028", "\u2029",
          "\u202f", "\u205f", "\u3000", "\ufeff", "\n\n", "\t\t", " \n", "\n "]
BITS = ["def f(x):\n    return x", "int main(void) {\n\treturn 0;\n}", "http://a.b/c?d=e&f=%20",
        "x_1+y2==3.14e-5", "e\u0301", "I\u0307", "\u1e9e", "\ufb01", "\u00bd", "\u2167",
        "\u0663\u0664", "\u09e6", "\u4e09", "HelloWorld", "camelCaseABCdef", "\u01c5\u01c6",
        "\u02b0\u02b1", "\u0e01\u0e33", "\u3042\u30a2", "a\u0300\u0301b", "\u2581", "<0x41>"]


def is_assigned(c):
    return unicodedata.category(chr(c)) not in ("Cn", "Cs")


def make_strings(n, seed, words, specials):
    r = random.Random(seed)
    every = [c for a, b in SCRIPTS for c in range(a, b) if is_assigned(c)]
    emoji = [chr(c) for c in range(0x1F300, 0x1F650)]

    def atom():
        k = r.randrange(15)
        if k < 4:
            return (" " if r.random() < 0.7 else "") + r.choice(words)
        if k == 4:
            return "".join(chr(r.choice(every)) for _ in range(r.randint(1, 4)))
        if k == 5:
            a, b = r.choice(SCRIPTS)
            return "".join(chr(c) for c in (r.randrange(a, b) for _ in range(r.randint(1, 6)))
                           if is_assigned(c))
        if k == 6:
            return "".join(r.choice(SPACES) for _ in range(r.randint(1, 4)))
        if k == 7:
            return str(r.randrange(10 ** r.randint(1, 12)))
        if k == 8:
            return "".join(chr(r.randrange(0, 0x80)) for _ in range(r.randint(1, 6)))
        if k == 9:
            return r.choice(["'s", "'S", "'LL", "'re", "n't", "'VE", "'\u017f", "'d", "'T",
                             "\u2019s", "'m"])
        if k == 10:
            return (r.choice(emoji) + r.choice(["\u200d", "\ufe0f", "\U0001f3fd", ""]) +
                    r.choice(emoji))
        if k == 11:
            return r.choice(list("(){}\"';<>|#$\\/") + ["=>", "!=", "::", "//", "/*", "*/", "->",
                                                       "...", "--", "__"]) * r.choice([1, 1, 2, 3])
        if k == 12:
            return r.choice("aA1 .\n\u0301\u4e2d-=") * r.choice([2, 3, 5, 17, 40])
        if k == 13:
            s = r.choice(specials)
            return s if r.random() < 0.5 else s[:r.randint(1, 12)]
        return r.choice(BITS)

    out = ["", "a", " ", "\0", "\n", "  ", " a", "a ", "\u2581", " \u2581 "]
    out += [c * k for c in "aA 1.\n\u00e9\u4e2d\u0301" for k in (1000, 1023, 4001)]
    while len(out) < n:
        out.append("".join(atom() for _ in range(r.randint(1, 4))))
    return out


# tests/test_tokenizer.c has the same list and the same generator.
SOUPS = [["a"], ["a", "b"], [" ", "a", "b"], ["e", "\u00e9", "\u4e2d"], [" "], ["\u2581", " ", "a"],
         ["\U0001f642", "\u00e9", "q"], ["<tool>", "<tool_call>", "<tool", ">", "th", "e "],
         ["\ufffd", " ", "th", "e ", "\u00e9", "<tool>"]]
SOUP_UNITS = 40000


def soup(units):
    state, out = 1, []
    for _ in range(SOUP_UNITS):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append(units[(state >> 33) % len(units)])
    return "".join(out)


# ---- Vocabularies ---------------------------------------------------------------------------

def write_gguf(path, fields):
    w = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        if isinstance(value, bytes):
            w.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
        elif isinstance(value, bool):
            w.add_bool(key, value)
        elif isinstance(value, int):
            w.add_uint32(key, value)
        elif isinstance(value, str):
            w.add_string(key, value)
        else:
            w.add_array(key, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def byte_letters():
    """GPT-2's letter for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {b: chr(b) for b in kept}, 0
    for b in range(256):
        if b not in letters:
            letters[b] = chr(256 + extra)
            extra += 1
    return letters


def train_bpe(lines):
    t = Tokenizer(models.BPE())
    # Cut at line ends only, so that tokens run across every kind of boundary.
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r".{1,24}\n?|\n+"), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=2400, show_progress=False,
        initial_alphabet=list(byte_letters().values())))
    model = json.loads(t.to_str())["model"]
    gone = {byte_letters()[b] for b in MISSING_BYTES}
    tokens = [s for s, _ in sorted(model["vocab"].items(), key=lambda x: x[1])
              if not set(s) & gone and s not in CONTROL + USER]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    merges = [m for m in merges if {*m, "".join(m)} <= set(tokens)]
    # Reachable only where merges are ignored for whole pieces.
    unmergeable = [s for s in ["ĠEmma", "Knightley", "Ġdrawing", "ĠBertram", "123", "Ġcouldn",
                               "Ġ...", "ĠPrice", "éĢĻ"] if s not in tokens]
    tokens = CONTROL + tokens + unmergeable + USER
    types = [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL) - len(USER)) + [4] * len(USER)
    write_gguf(os.path.join(OUT, "bpe.gguf"), {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin_of_text|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|endoftext|>")})


def train_sp(lines):
    with tempfile.TemporaryDirectory() as d:
        with open(d + "/text", "w") as f:
            f.write("\n".join(s.replace("\0", "").replace("\n", " ") for s in lines))
        spm.SentencePieceTrainer.train(
            input=d + "/text", model_prefix=d + "/m", vocab_size=2000, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=True,
            remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
            character_coverage=0.99, user_defined_symbols=["<tool>", "<tool_call>"],
            minloglevel=2)
        raw = open(d + "/m.model", "rb").read()
    p = spm.SentencePieceProcessor(model_proto=raw)
    n = range(p.get_piece_size())
    types = [2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else
             4 if p.id_to_piece(i) in ("<tool>", "<tool_call>") else 1 for i in n]
    pieces, scores = [p.id_to_piece(i) for i in n], [p.get_score(i) for i in n]
    ids = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
           "tokenizer.ggml.unknown_token_id": 0}

    def write(name, extra, more):
        write_gguf(os.path.join(OUT, name), {
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces + extra,
            "tokenizer.ggml.scores": scores + [0.0] * len(extra),
            "tokenizer.ggml.token_type": types + [3] * len(extra), **ids, **more})
    write("sp.gguf", [], {})
    write("sp_v3.gguf", ["[INST]", "[/INST]"], {})
    write_gguf(os.path.join(OUT, "sp_raw.gguf"), {
        "tokenizer.ggml.model": "llama", "linnet.tokenizer.sentencepiece_model": raw})


def read_gguf(name):
    r = gguf.GGUFReader(os.path.join(OUT, name))
    return {k: f.contents() for k, f in r.fields.items() if not k.startswith("GGUF.")}


# ---- References -----------------------------------------------------------------------------

GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = CL100K.replace("{1,3}", "")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
          r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
EDGE = r"[^\r\n\p{L}\p{N}]?"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = EDGE + UPPER + "*" + LOWER + "+|" + EDGE + UPPER + "+" + LOWER + r"*|\p{N}" + TAIL
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (EDGE + UPPER + "*" + LOWER + "+" + SUFFIX + "|" + EDGE + UPPER + "+" + LOWER + "*" +
         SUFFIX + r"|\p{N}{1,3}" + TAIL)
DEEPSEEK3 = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
             r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
             r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(*expressions):
    return [pre_tokenizers.Split(Regex(e), "isolated") for e in expressions]


# name: cutting steps (None: as published, with HF's own classes), ignore_merges
BPE = {
    "gpt-2": ([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)], False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)], False),
    "llama-bpe": (split(CL100K), True),
    "dbrx": (split(CL100K), False),
    "qwen2": (split(QWEN2), False),
    "qwen35": (split(QWEN35), False),
    "tekken": (split(TEKKEN), True),
    "gpt-4o": (split(GPT4O), False),
    "deepseek-v3": (split(*DEEPSEEK3), False),
}


def bpe_reference(vocab, pre, special):
    tokens, types = vocab["tokenizer.ggml.tokens"], vocab["tokenizer.ggml.token_type"]
    steps, ignore = BPE[pre]
    if steps[-1].__class__ is not pre_tokenizers.ByteLevel:
        steps = steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    t = Tokenizer(models.BPE(
        vocab={s: i for i, s in enumerate(tokens)}, ignore_merges=ignore,
        merges=[tuple(m.split(" ")) for m in vocab["tokenizer.ggml.merges"]]))
    t.pre_tokenizer = pre_tokenizers.Sequence(steps)
    t.decoder = decoders.ByteLevel()
    t.add_tokens([AddedToken(s, normalized=False, special=False)
                  for s, k in zip(tokens, types) if k == 4])
    if special:
        t.add_special_tokens([AddedToken(s, normalized=False, special=True)
                              for s, k in zip(tokens, types) if k == 3])
    return t


def sp_fragments(text, specials):
    """Text cut at special tokens, leftmost and longest."""
    out, start, i = [], 0, 0
    while i < len(text):
        hit = max((s for s in specials if text.startswith(s, i)), key=len, default=None)
        if hit is None:
            i += 1
            continue
        out += [text[start:i], hit]
        i += len(hit)
        start = i
    return out + [text[start:]]


def sp_encode(p, text, specials, legacy=True):
    """Every text between special tokens with its own dummy prefix, or only a first one."""
    ids = []
    for k, s in enumerate(sp_fragments(text, specials)):
        if k % 2:
            ids.append(specials[s])
        elif legacy or not ids:
            ids += p.encode(s)
        elif s:
            # Behind a first line of one token, whose id is then dropped.
            line = p.encode("\n" + s)
            assert line[:2] == p.encode("\n")
            ids += line[2:]
    return ids


def fnv(blocks):
    h = 0xCBF29CE484222325
    for ids in blocks:
        for i in [*ids, 0xFFFFFFFF]:
            h = (h ^ i) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def main():
    os.makedirs(OUT, exist_ok=True)
    have = os.path.exists(os.path.join(OUT, "bpe.gguf"))
    if have:
        strings, data = [], open(os.path.join(OUT, "strings.bin"), "rb").read()
        at = 0
        while at < len(data):
            n = struct.unpack_from("<H", data, at)[0]
            strings.append(data[at + 2:at + 2 + n].decode())
            at += 2 + n
    else:
        lines = [s for f in sys.argv[1:] for s in open(f, encoding="utf-8", errors="replace")]
        assert lines, "give text files to train on"
        words = list(dict.fromkeys(" ".join(lines[:20000]).split()))[:5000]
        mixed = make_strings(6000, 7, words, CONTROL + USER)
        train_bpe(lines[:12000] + mixed)
        train_sp([s.rstrip("\n") for s in lines[:12000]] + [s for s in mixed if len(s) < 900])
        strings = make_strings(N_STRINGS, 1, words, CONTROL + USER + ["<unk>", "<tool>"])
        with open(os.path.join(OUT, "strings.bin"), "wb") as f:
            for s in strings:
                f.write(struct.pack("<H", len(s.encode())) + s.encode())

    vocab = read_gguf("bpe.gguf")
    sp = spm.SentencePieceProcessor(
        model_proto=bytes(read_gguf("sp_raw.gguf")["linnet.tokenizer.sentencepiece_model"]))
    results = {}
    for pre in BPE:
        results[pre] = [e.ids for e in bpe_reference(vocab, pre, False).encode_batch(
            strings, add_special_tokens=False)]
    results["smollm+special"] = [e.ids for e in bpe_reference(vocab, "smollm", True).encode_batch(
        strings, add_special_tokens=False)]
    results["sp"] = [sp.encode(s) for s in strings]
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2}
    results["sp+special"] = [sp_encode(sp, s, specials) for s in strings]
    with open(os.path.join(OUT, "ids.bin"), "wb") as f:
        for name, ids in results.items():
            f.write(name.encode().ljust(16, b"\0"))
            for k in range(0, len(ids), BLOCK):
                f.write(struct.pack("<Q", fnv(ids[k:k + BLOCK])))
    with open(os.path.join(OUT, "ids.txt"), "w") as f:
        for name, ids in results.items():
            for k in [*range(0, 10), *range(100, 108)]:
                f.write(f"{name} {k} {' '.join(map(str, ids[k]))}\n")

    with open(os.path.join(OUT, "long.txt"), "w") as f:
        for joint in ("", " "):
            text = joint.join(strings)
            for name, ids in (("sp", sp.encode(text)),
                              ("smollm", bpe_reference(vocab, "smollm", False).encode(
                                  text, add_special_tokens=False).ids)):
                f.write(f"{name} {len(joint)} {len(ids)} {fnv([ids]):016x}\n")
        for k, units in enumerate(SOUPS):
            ids = sp.encode(soup(units))
            f.write(f"sp {10 + k} {len(ids)} {fnv([ids]):016x}\n")

    bad = [b"\xff", b"a\xffb", b"\xe4\xb8", b"\xe4\xb8a", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80\x80",
           b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80 \x80", b"\xe0\x80\x80",
           b" \xf8\x88\x80\x80\x80 ", b"ok \xc3", b"\xc3\xc3\xa9", b"<|im_\xffstart|>"]
    r = random.Random(3)
    bad += [bytes(r.choice([r.randrange(256), 0xE4, 0xB8, 0x80, 0x20, 0xF0, 0x9F]) for _ in
                  range(r.randint(1, 12))) for _ in range(300)]
    t = bpe_reference(vocab, "gpt-2", False)
    with open(os.path.join(OUT, "invalid.txt"), "w") as f:
        for b in bad:
            ids = t.encode(b.decode("utf-8", "replace"), add_special_tokens=False).ids
            f.write(f"bpe {b.hex()} {' '.join(map(str, ids))}\n")
            f.write(f"sp {b.hex()} {' '.join(map(str, sp.encode(b)))}\n")
    print("strings", len(strings), {k: sum(map(len, v)) for k, v in results.items()})


if __name__ == "__main__":
    main()
