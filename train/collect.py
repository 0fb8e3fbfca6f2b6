"""python3 -m train.collect RUNS -o models: for every finished config the better run as NAME.gguf, and
beside it NAME.json, its card: recipe, seed, learning rates tried, curve, results, hashes. Of MQAR models
and of language models README.md in the same folder has a table. Language models are compared with
linnet in the trainer's own precision, then written in --type. Needs NumPy and gguf, not PyTorch."""
import argparse
import hashlib
import json
import math
import os
import sys

import numpy as np

from export.errors import ExportError

from . import compare, mqar
from .config import TrainError, read_json
from .export import export

LOGITS, PERPLEXITY, TYPE = 1e-4, 1e-4, 1e-3  # most that linnet may differ: of the logits' RMS, and relative;
#                                              and most that the file's type may add to the perplexity
STATE = "state bytes at 1024 (zoology's rule, float32)"


def finished(runs):
    """-> {name: [(score, lr, folder), best first]}, only of configs all of whose rates are done"""
    out = {}
    for name in sorted(os.listdir(runs)):
        found, wanted = [], None
        folder = os.path.join(runs, name)
        for run in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, run)
            if os.path.exists(os.path.join(path, "config.json")):
                wanted = len(read_json(os.path.join(path, "config.json"))["lr"])
            if os.path.exists(os.path.join(path, "result.json")):
                result = read_json(os.path.join(path, "result.json"))
                found.append((result["score"], result["lr"], path))
        if wanted and len(found) == wanted:
            out[name] = sorted(found, reverse=True)
        elif wanted:
            print(f"{name}: {len(found)} of {wanted} runs are done, left out", file=sys.stderr)
    return out


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            h.update(piece)
    return h.hexdigest()


def state_elements(o, dim, length):
    """Numbers of state of a layer by zoology's rule, at this length."""
    heads = o.get("heads") or (2 if "delta" in o["mixer"] else 1)
    D = o.get("head_dim") or dim // heads
    kv = 2 * (o.get("kv_heads") or heads) * D
    if o["mixer"] == "short_conv":
        return (o.get("inner") or dim) * o.get("taps", 3)
    if o["mixer"] == "softmax":
        return kv * min(length, o.get("window") or length)
    if o["mixer"] == "based_taylor":
        f = o.get("features", 16)
        return heads * (D + 1) * (1 + f + f * (f + 1) // 2)
    if o["mixer"] in ("hedgehog", "lolcats"):
        return heads * (D + 1) * 2 * (o.get("features") or D) + kv * o.get("window", 0)
    return heads * (o.get("key_dim") or D) * (o.get("value_dim") or D)


def state_bytes(model, length):
    return 4 * sum(state_elements(o, model["dim"], length) for o in model["layers"])


def card(name, tried, gguf, more=None):
    """`more`: what linnet says of a language model."""
    folder = tried[0][2]
    config, result = (read_json(os.path.join(folder, n)) for n in ("config.json", "result.json"))
    about = {"about": config["about"]} if "about" in config else {}
    out = {"name": name, **about, "parameters": result["parameters"],
           "sha256": sha256(gguf), "seed": config["seed"], "steps": config["steps"],
           "lr": result["lr"],
           "validation": {f"lr {lr:g}": score for score, lr, _ in sorted(tried, key=lambda t: t[1])},
           "result": result["validation"], STATE: state_bytes(config["model"], 1024), **(more or {})}
    if config["task"]["kind"] == "mqar":
        tasks = [mqar.Task(s[0], s[1], config["model"]["vocab"]) for s in config["task"]["segments"]]
        first = [mqar.fingerprint(*mqar.sequences(t, config["seed"], "train", np.arange(16)))
                 for t in tasks]
        out["data"] = {"generator": "docs/mqar.md, split train, counter from the step",
                       "hash of the first 16 of each segment": [f"{h:016x}" for h in first]}
    elif os.path.exists(os.path.join(folder, "data.json")):
        out["data"] = read_json(os.path.join(folder, "data.json"))
        config["task"]["data"] = os.path.basename(config["task"].get("data", "text"))
    test = os.path.join(folder, "test.json")
    if os.path.exists(test):
        out["test"] = read_json(test)
    with open(os.path.join(folder, "curve.jsonl")) as f:
        out["curve"] = [rounded(json.loads(line)) for line in f]
    out["torch"], out["cpu_seconds"], out["config"] = result["torch"], result["cpu_seconds"], config
    return out


def rounded(row):
    return {k: rounded(v) if isinstance(v, dict) else round(v, 5) if isinstance(v, float) else v
            for k, v in row.items()}


def write_card(path, values):
    """A line for each key, and for each row of the curve."""
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items() if k != "curve"]
    rows = ",\n  ".join(json.dumps(row) for row in values["curve"])
    with open(path + ".part", "w") as f:
        f.write("{\n " + ",\n ".join(lines + [f'"curve": [\n  {rows}]']) + "\n}\n")
    os.replace(path + ".part", path)


HEAD = """# Models for comparison
Written by `python3 -m train.collect` ([docs/train.md](../docs/train.md)); NAME.json has the recipe and the
curve of each. State: zoology's rule, float32, all layers, length 1,024.
"""


def mqar_table(cards):
    """Of the MQAR models that were tested, by state."""
    rows = [c for c in cards if "test" in c]
    if not rows:
        return ""
    tasks = list(rows[0]["test"]["accuracy"])
    lines = ["| model | parameters | state bytes | lr | " + " | ".join(tasks) + " | mean |",
             "|---" * (5 + len(tasks)) + "|"]
    for c in sorted(rows, key=lambda c: c[STATE]):
        numbers = [f"{c['test']['accuracy'][t]:.3f}" for t in tasks]
        lines.append(f"| {c['name']} | {c['parameters']:,} | {c[STATE]:,} | {c['lr']:g} | " +
                     " | ".join(numbers) + f" | {c['test']['mean']:.3f} |")
    first = rows[0]
    longest = max(s[0] for s in first["config"]["task"]["segments"])
    return f"""
## MQAR
[The task](../docs/mqar.md): accuracy on {first['test']['n']} test sequences (seed {first['test']['seed']}) of each
length:pairs, after {first['steps']} steps of {first['config']['batch_tokens']} tokens up to length {longest};
what is longer is extrapolation. The learning rate was chosen on validation sequences.

""" + "\n".join(lines) + "\n"


def layers_of(c):
    """"2 x (delta_net, delta_net, softmax 64)": the smallest part that repeats, windows behind names."""
    names = [o["mixer"] + (f" {o['window']}" if o.get("window") else "") for o in c["config"]["model"]["layers"]]
    n = next(n for n in range(1, len(names) + 1) if names[:n] * (len(names) // n) == names)
    part = ", ".join(names[:n])
    return part if n == len(names) else f"{len(names) // n} x ({part})"


def text_table(cards):
    """Of the language models that linnet was compared with, by state."""
    rows = [c for c in cards if "held-out" in c]
    if not rows:
        return ""
    lines = ["| model | layers (and their windows) | parameters | state bytes | steps | lr | perplexity | as written | "
             "bits per character |", "|---" * 9 + "|"]
    for c in sorted(rows, key=lambda c: c[STATE]):
        h = c["held-out"]
        lines.append(f"| {c['name']} | {layers_of(c)} | {c['parameters']:,} | {c[STATE]:,} | {c['steps']:,}" +
                     (f" after {c['config']['start_from']}" if "start_from" in c["config"] else "") +
                     f" | {c['lr']:g} | {h['perplexity of the trainer']:.3f} | {h['perplexity of this file']:.3f} | "
                     f"{c['result']['bits per character']:.3f} |")
    data, config = rows[0]["data"], rows[0]["config"]
    return f"""
## Language
From {', '.join(data['files'])}, {data['recall share']:.0%} of it synthetic text with something to look up
([docs/train.md](../docs/train.md)); {data['vocab']:,} SentencePiece pieces, in the files. Steps of
{config['batch_tokens']:,} tokens in sequences of {config['task']['length']}; one learning rate, one seed.
Perplexity on {rows[0]['held-out']['tokens']:,} held-out tokens: the trainer's, which linnet's equals in f16, and of the file,
whose matrices are {rows[0]['held-out']['type of this file']}.

""" + "\n".join(lines) + "\n"


def compare_text(args, folder, config, gguf):
    """Writes a language model in args.type. -> what its card says, and sentences about what is wrong"""
    rows = compare.held_out_rows(folder, args.data or config["task"].get("data", "text"))
    want = read_json(os.path.join(folder, "result.json"))["validation"]["perplexity"]
    full = math.exp(compare.held_out_loss(args.linnet, gguf, rows))
    export(folder, gguf, args.type)
    written = math.exp(compare.held_out_loss(args.linnet, gguf, rows))
    said, spelled = compare.greedy(args.linnet, gguf)
    wrong = []
    if abs(full / want - 1) > PERPLEXITY:
        wrong.append(f"perplexity {full:.5f}, the trainer's {want:.5f}")
    if abs(written / full - 1) > TYPE:
        wrong.append(f"perplexity {written:.4f} in {args.type}, {full:.4f} in {config['dtype']}: use --type")
    if said != spelled:
        wrong.append(f"run says {said!r:.200}, the largest logits {spelled!r:.200}")
    return {"held-out": {"tokens": rows[:, 1:].size, "perplexity of the trainer": want,
                         f"perplexity of linnet, {config['dtype']}": full, "type of this file": args.type,
                         "perplexity of this file": written}, "greedy": said}, wrong


def collect(name, tried, args):
    """Writes a config's better run and its card; a line about it. -> whether linnet gives the same"""
    folder, gguf = tried[0][2], os.path.join(args.out, name + ".gguf")
    config, more, wrong = export(folder, gguf), None, []
    line = f"{gguf} validation {tried[0][0]:.4f}"
    if args.linnet and os.path.exists(os.path.join(folder, "logits.npz")):
        error, hits, expected = compare.check(args.linnet, gguf, folder, args.sequences)
        line += f", logits within {error:.1e} of their RMS" + ("" if hits is None else f", {hits} hits")
        line += "" if expected is None else f", the trainer {expected}"
        if error > LOGITS or expected not in (None, hits):
            wrong.append("other logits or hits")
    elif args.linnet:
        line += ", logits not compared: the run is not tested yet"
    if config["task"]["kind"] == "text" and args.linnet:
        more, found = compare_text(args, folder, config, gguf)
        wrong += found
        line += "".join(f", {k} {v:.5g}" for k, v in more["held-out"].items() if k.startswith("perplexity"))
    elif config["task"]["kind"] == "text":
        export(folder, gguf, args.type)
    write_card(os.path.join(args.out, name + ".json"), card(name, tried, gguf, more))
    print("; ".join([f"{line}, {os.path.getsize(gguf):,} bytes"] + wrong), flush=True)
    return not wrong


def main():
    parser = argparse.ArgumentParser(prog="python3 -m train.collect",
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("runs")
    parser.add_argument("name", nargs="*", help="configs to collect (default: all that are finished)")
    parser.add_argument("-o", "--out", default="models")
    parser.add_argument("--linnet", help="compare with this program too")
    parser.add_argument("--sequences", type=int, default=200, help="of the comparison (200)")
    parser.add_argument("--data", help="where the language models' text lies now")
    parser.add_argument("--type", default="q8_0", choices=("f32", "f16", "bf16", "q8_0"),
                        help="of language models' matrices (q8_0)")
    args = parser.parse_args()
    try:
        if not os.path.isdir(args.runs):
            raise TrainError(f"{args.runs}: no folder")
        os.makedirs(args.out, exist_ok=True)
        done = finished(args.runs)
        for name in args.name:
            if name not in done:
                raise TrainError(f"{args.runs} has no finished {name}; there are {', '.join(done) or 'none'}")
        bad = sum(not collect(name, done[name], args) for name in args.name or done)
        cards = [read_json(os.path.join(args.out, n)) for n in sorted(os.listdir(args.out))
                 if n.endswith(".json")]
        text = mqar_table(cards) + text_table(cards)
        if text:
            with open(os.path.join(args.out, "README.md"), "w") as f:
                f.write(HEAD + text)
        if bad:
            raise TrainError(f"{bad} models give other results in {args.linnet}")
    except (TrainError, ExportError, OSError) as e:
        sys.exit(f"train.collect: {e}")


if __name__ == "__main__":
    main()
