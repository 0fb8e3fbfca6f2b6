#!/usr/bin/env python3
"""The files of scripts/linearized.sh.

    python3 bench/linearized.py questions XQUAD.json N     N questions as JSON lines for `linnet recall`
    python3 bench/linearized.py table FOLDER               what it measured, as Markdown

Standard library alone."""
import glob
import json
import os
import sys

NAMES = {"original": "original, softmax", "swap": "untrained maps", "window": "window alone, untrained",
         "window-sinks": "window and sinks, untrained", "control-window": "window, LoRA, no linear part",
         "control": "window, sinks, LoRA, no linear part",
         "control-softmax": "window, sinks, 8 softmax layers, LoRA, no linear part",
         "as-lolcats": "**as LoLCATs specifies**", "as-lolcats-held": "the same, trained length 1,024, no more training",
         "sinks": "**with sinks**", "sinks-softmax": "**with sinks and 8 softmax layers**"}


def questions(path, n):
    """Evenly over all paragraphs."""
    with open(path, encoding="utf-8") as f:
        articles = json.load(f)["data"]
    asked = [(p["context"], q) for a in articles for p in a["paragraphs"] for q in p["qas"]]
    for i in range(min(n, len(asked))):
        context, q = asked[i * len(asked) // min(n, len(asked))]
        print(json.dumps({"prompt": f"{context}\nQuestion: {q['question']}\nAnswer:",
                          "answers": [a["text"] for a in q["answers"]]}, ensure_ascii=False))


class Rows:
    """Of a folder: recall's by (model, task or text, its length), bench's by (model, depth)."""

    def __init__(self, folder):
        self.recall, self.bench = {}, {}
        for path in sorted(glob.glob(os.path.join(folder, "*", "*.jsonl"))) + [os.path.join(folder, "bench.jsonl")]:
            with open(path, encoding="utf-8") as f:
                rows = [json.loads(line) for line in f]
            for row in rows:
                name = os.path.basename(row["model_filename"]).removesuffix(".gguf")
                if "task" not in row:
                    self.bench[name, row["n_depth"]] = row
                    continue
                task, what = row["task"], dict(p.split("=", 1) for p in (row["params"] or "").split(",") if "=" in p)
                if task == "ar":
                    task = os.path.basename(what["file"])
                self.recall[name, task, int(what["N"]) if task == "copy" else row["len"] or 0] = row

    def columns(self, task):
        return sorted({k[2] for k in self.recall if k[1] == task})

    def names(self):
        have = {k[0] for k in self.recall}
        return [n for n in NAMES if n in have]


def table(heads, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines]) + "\n"


def perplexities(rows, text, title):
    contexts = rows.columns(text)
    heads = [title] + [head for c in contexts for head in (f"{c:,} tokens", "x")]
    lines = []
    for name in rows.names():
        line = [NAMES[name]]
        for c in contexts:
            ours, theirs = (rows.recall.get((n, text, c)) for n in (name, "original"))
            line += [f"{ours['ppl']:.2f}", f"{ours['ppl'] / theirs['ppl']:.3f}"] if ours and theirs else ["-", "-"]
        lines.append(line)
    return table(heads, lines)


def recalls(rows):
    columns = [(task, c, said if task == "jsonl" else f"{said} {c:,}") for task, said in (
        ("copy", "copy"), ("passkey", "passkey"), ("factbook", "factbook"), ("jsonl", "XQuAD"))
        for c in rows.columns(task)]
    lines = []
    for name in rows.names():
        found = [rows.recall.get((name, task, c)) for task, c, _ in columns]
        lines.append([NAMES[name]] + ["-" if r is None else f"{r['acc']:.2f}" for r in found])
    return table(["right answers"] + [said for *_, said in columns], lines)


def speeds(rows, shown=(0, 2048, 8192, 32768)):
    lines = []
    for name in dict.fromkeys(n for n, _ in rows.bench):
        found = [rows.bench.get((name, d)) for d in shown]
        lines.append([NAMES.get(name, name)] + ["-" if r is None or r.get("median_ts") is None else
                     f"{r['median_ts']:.0f} ({r['state_bytes_alloc'] / 1e6:.1f} MB)" for r in found])
    return table(["tokens/s (state), one thread"] + [f"at {d:,}" for d in shown], lines)


def break_even(rows):
    """The first depth, between those measured on a straight line, where a model is as fast as the original."""
    out = []
    for name in dict.fromkeys(n for n, _ in rows.bench if n != "original"):
        points = sorted((d, 1 / r["median_ts"] - 1 / rows.bench["original", d]["median_ts"])
                        for (n, d), r in rows.bench.items()
                        if n == name and r.get("median_ts") and rows.bench.get(("original", d), {}).get("median_ts"))
        slower = [p for p in points if p[1] > 0]
        if not slower:
            said = f"faster at every depth measured, from {points[0][0]:,} on"
        elif slower[-1] == points[-1]:
            said = f"slower still at {points[-1][0]:,}"
        else:
            (a, x), (b, y) = slower[-1], points[points.index(slower[-1]) + 1]
            said = f"as fast as the original at {a + (b - a) * x / (x - y):,.0f} tokens"
        out.append(f"- {NAMES.get(name, name)}: {said}\n")
    return "".join(out)


def main():
    try:
        if sys.argv[1] == "questions":
            questions(sys.argv[2], int(sys.argv[3]))
            return
        rows = Rows(sys.argv[2])
        for text in sorted({k[1] for k in rows.recall if k[1].endswith(".txt")}, reverse=True):
            print(perplexities(rows, text, f"perplexity, {text.removesuffix('.txt')}"))
        print(recalls(rows))
        print(speeds(rows) + "\n" + break_even(rows), end="")
    except (OSError, ValueError, KeyError, IndexError) as e:
        sys.exit(f"linearized.py: {type(e).__name__}: {e}")


if __name__ == "__main__":
    main()
