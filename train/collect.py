"""python3 -m train.collect RUNS -o models: for every finished config the better run as NAME.gguf, and
beside it NAME.json, its card: recipe, seed, learning rates tried, curve, results, hashes. Of MQAR models
and of language models README.md in the same folder has a table. Language models are compared with
linnet in the trainer's own precision, then written in --type. Needs NumPy and gguf, not PyTorch."""
import argparse
import json
import math
import os
import sys

import numpy as np

from export.errors import ExportError

from . import compare, mqar
from .cards import STATE, rounded, sha256, write_card, write_readme
from .config import TrainError, read_json
from .export import export

LOGITS, PERPLEXITY, TYPE = 1e-4, 1e-4, 1e-3  # most that linnet may differ: of the logits' RMS, and relative;
#                                              and most that the file's type may add to the perplexity


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
        write_readme(args.out)
        if bad:
            raise TrainError(f"{bad} models give other results in {args.linnet}")
    except (TrainError, ExportError, OSError) as e:
        sys.exit(f"train.collect: {e}")


if __name__ == "__main__":
    main()
