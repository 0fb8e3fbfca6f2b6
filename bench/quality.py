#!/usr/bin/env python3
"""What --activations auto and q8 cost, against exact, for every type a file can be quantized to.

    python3 bench/quality.py MODEL.gguf TEXT [--text-name WORDS] [-t N] [--types f32,q4_0,...]
                             [--linnet ./linnet] >bench/quality.md      (needs numpy)

Each type is made from MODEL by `linnet quantize`. Perplexity: `linnet perplexity` of TEXT's first
CHARS characters. KL(exact || mode): of the logits that `linnet logits` writes, at every position of
the prompts below and of tests/reference/smollm2.py. Markdown on stdout; exit status 1 if auto is
beyond the bounds. linnet computes the same bits on every machine, so these numbers do not depend
on it."""
import argparse
import os
import re
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "reference"))
from smollm2 import CTX, PROMPTS, kl

TYPES = "f32,f16,bf16,q8_0,q4_0,q4_1,q4_K,q6_K"
MODES = ("auto", "q8")
CHARS = 20000
KL_BOUND, PERPLEXITY_BOUND = 2e-3, 1e-3
TEXTS = {
    "prose": "The river had been rising since Tuesday. By the time the ferryman came down to look, "
             "the lower landing was gone and the upper one stood in a brown lake where fence posts "
             "turned slowly like the hands of a clock. He lit his pipe, counted what was left",
    "digits": "3.14159265358979 2.71828182845904 1.41421356237309 1.73205080756887 0 1 1 2 3 5 8 13 "
              "21 34 55 89 144 233 377 610 987 1597 2584 4181 6765 10946",
    "repetition": "la la la " * 60,
    "symbols": "{\"a\": [1, 2, {\"b\": null}], \"c\": \"\\u00e9\"}\n\t<p class='x'>&amp;</p>\n$$$ !!! ???",
    "chinese_russian": "今天天气很好，我们去公园散步吧。Вчера мы ходили в театр, и пьеса была очень длинной.",
    **PROMPTS,
}


def linnet(args, *command, text=None):
    try:
        r = subprocess.run([args.linnet, *command, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           input=text)
    except OSError as e:
        sys.exit(f"quality.py: {args.linnet}: {e.strerror}")
    if r.returncode:
        sys.exit(f"quality.py: linnet {command[0]}: {r.stderr.decode(errors='replace').strip()}")
    return r.stdout.decode()


def perplexity(args, model, mode):
    out = linnet(args, "perplexity", model, args.text, "--ctx", str(CTX), "--chars", str(CHARS), "-t",
                 args.t, "--activations", mode)
    p, error, scored = re.search(r"perplexity (\S+) \+- (\S+) \((\d+) scored\)", out).groups()
    return float(p), float(error), int(scored)


def logits(args, model, ids, mode, folder):
    path = os.path.join(folder, mode + ".npy")
    linnet(args, "logits", model, "--ids", "-", "-o", path, "-t", args.t, "--activations", mode,
           text=ids.encode())
    return np.load(path, mmap_mode="r")


def compare(exact, other):
    """KL(exact || other) at every position, a few at a time: rows are wide."""
    return np.concatenate([kl(exact[i:i + 32], other[i:i + 32]) for i in range(0, len(exact), 32)])


def measure(args, type_name, folder):
    model = os.path.join(folder, type_name + ".gguf")
    linnet(args, "quantize", args.model, model, type_name)
    found = {"exact": perplexity(args, model, "exact")}
    for mode in MODES:
        found[mode] = {"perplexity": perplexity(args, model, mode)[0], "kl": {}}
    for name, text in TEXTS.items():
        ids = linnet(args, "tokenize", model, "--parse-special", text=text.encode())
        exact = logits(args, model, ids, "exact", folder)
        for mode in MODES:
            found[mode]["kl"][name] = compare(exact, logits(args, model, ids, mode, folder))
    os.remove(model)
    return found


def change(found, mode):
    return found[mode]["perplexity"] / found["exact"][0] - 1


def summary(kls):
    """The largest of all positions, their mean, and the largest last position of a prompt."""
    every = np.concatenate(list(kls.values()))
    return every.max(), every.mean(), max(k[-1] for k in kls.values())


def report(results, model_name, text_name):
    scored = next(iter(results.values()))["exact"][2]
    tokens = {n: len(k) for n, k in next(iter(results.values()))["auto"]["kl"].items()}
    out = ["# What fast activations cost", "",
           f"{model_name}, made into each type by `linnet quantize`, and `--activations auto` and `q8`",
           f"compared with `exact` on the same file. Perplexity: the first {CHARS:,} characters of {text_name},",
           f"windows of {CTX}, {scored} tokens scored. KL(exact || mode), in nats: of {len(tokens)} prompts,",
           f"{sum(tokens.values())} positions: the largest, the mean, and the worst last position of a prompt. auto and",
           "q8 keep keys and values in f16, exact in f32; with f32 and f16 weights that is the whole difference, and",
           "with bf16 ones in auto; q8 rounds the activations that they are multiplied with to bf16.",
           "All types are made from that one file's weights, so their perplexities do not rank them.",
           "Made by `bench/quality.py`; the numbers are the same on every machine.", "",
           "| type | perplexity, exact | auto | q8 | KL auto: max | mean | last | KL q8: max | mean | last |",
           "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, found in results.items():
        p, error, _ = found["exact"]
        out.append(f"| {name} | {p:.4f} +- {error:.2f} | " +
                   " | ".join(f"{100 * change(found, m):+.4f} %" for m in MODES) + " | " +
                   " | ".join(f"{v:.1e}" for m in MODES for v in summary(found[m]["kl"])) + " |")
    good = all(summary(f["auto"]["kl"])[0] <= KL_BOUND and abs(change(f, "auto")) <= PERPLEXITY_BOUND
               for f in results.values())
    out += ["", f"Bounds of auto: KL at most {KL_BOUND:g} at every position, perplexity within "
            f"{100 * PERPLEXITY_BOUND:g} % of exact: {'kept' if good else '**broken**'}.", "",
            "The largest KL of each prompt, over all types:", "",
            "| prompt | tokens | auto | q8 |", "|---|---:|---:|---:|"]
    for name, n in tokens.items():
        worst = [max((f[m]["kl"][name].max(), t) for t, f in results.items()) for m in MODES]
        out.append(f"| {name} | {n} | " + " | ".join(f"{k:.1e} ({t})" for k, t in worst) + " |")
    return "\n".join(out), good


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("--text-name", help="what the document calls TEXT; default: its file name")
    p.add_argument("-t", default="1")
    p.add_argument("--types", default=TYPES)
    p.add_argument("--linnet", default="./linnet")
    args = p.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.types.split(","):
            results[name] = measure(args, name, folder)
            print(f"quality.py: {name}: KL auto {summary(results[name]['auto']['kl'])[0]:.1e}", file=sys.stderr)
    text, good = report(results, os.path.basename(args.model), args.text_name or os.path.basename(args.text))
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
