"""python3 -m train.collect RUNS -o models: for every finished config the better run as NAME.gguf, and
beside it NAME.json, its card: recipe, seed, learning rates tried, curve, results, hashes. Of MQAR models
README.md in the same folder has a table. Needs NumPy and gguf, not PyTorch."""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from export.errors import ExportError

from . import mqar
from .config import TrainError, read_json
from .export import export

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
        return dim * o.get("taps", 3)
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


def card(name, tried, gguf):
    folder = tried[0][2]
    config, result = (read_json(os.path.join(folder, n)) for n in ("config.json", "result.json"))
    about = {"about": config["about"]} if "about" in config else {}
    out = {"name": name, **about, "parameters": result["parameters"],
           "sha256": sha256(gguf), "seed": config["seed"], "steps": config["steps"],
           "lr": result["lr"],
           "validation": {f"lr {lr:g}": score for score, lr, _ in sorted(tried, key=lambda t: t[1])},
           "result": result["validation"]}
    if config["task"]["kind"] == "mqar":
        tasks = [mqar.Task(s[0], s[1], config["model"]["vocab"]) for s in config["task"]["segments"]]
        first = [mqar.fingerprint(*mqar.sequences(t, config["seed"], "train", np.arange(16)))
                 for t in tasks]
        out["data"] = {"generator": "docs/mqar.md, split train, counter from the step",
                       "hash of the first 16 of each segment": [f"{h:016x}" for h in first]}
        out["state bytes at 1024 (zoology's rule, float32)"] = state_bytes(config["model"], 1024)
    elif os.path.exists(os.path.join(folder, "data.json")):
        out["data"] = read_json(os.path.join(folder, "data.json"))
    test = os.path.join(folder, "test.json")
    if os.path.exists(test):
        out["test"] = read_json(test)
    with open(os.path.join(folder, "curve.jsonl")) as f:
        out["curve"] = [{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
                        for row in map(json.loads, f)]
    out["torch"], out["cpu_seconds"], out["config"] = result["torch"], result["cpu_seconds"], config
    return out


def write_card(path, values):
    """A line for each key, and for each row of the curve."""
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items() if k != "curve"]
    rows = ",\n  ".join(json.dumps(row) for row in values["curve"])
    with open(path + ".part", "w") as f:
        f.write("{\n " + ",\n ".join(lines + [f'"curve": [\n  {rows}]']) + "\n}\n")
    os.replace(path + ".part", path)


def table(cards):
    """Of the MQAR models that were tested, by state."""
    rows = [c for c in cards if "test" in c]
    if not rows:
        return ""
    key = "state bytes at 1024 (zoology's rule, float32)"
    tasks = list(rows[0]["test"]["accuracy"])
    lines = ["| model | parameters | state bytes | lr | " + " | ".join(tasks) + " | mean |",
             "|---" * (5 + len(tasks)) + "|"]
    for c in sorted(rows, key=lambda c: c[key]):
        numbers = [f"{c['test']['accuracy'][t]:.3f}" for t in tasks]
        lines.append(f"| {c['name']} | {c['parameters']:,} | {c[key]:,} | {c['lr']:g} | " +
                     " | ".join(numbers) + f" | {c['test']['mean']:.3f} |")
    first = rows[0]
    longest = max(s[0] for s in first["config"]["task"]["segments"])
    return f"""# Models for comparison
Written by `python3 -m train.collect` ([docs/train.md](../docs/train.md)); NAME.json has the recipe and the
curve of each.

[MQAR](../docs/mqar.md): accuracy on {first['test']['n']} test sequences (seed {first['test']['seed']}) of each
length:pairs, after {first['steps']} steps of {first['config']['batch_tokens']} tokens up to length {longest};
what is longer is extrapolation. The learning rate was chosen on validation sequences. State: zoology's
rule, float32, both layers, length 1,024.

""" + "\n".join(lines) + "\n"


def linnet_logits(linnet, model, ids):
    with tempfile.TemporaryDirectory() as folder:
        source, out = os.path.join(folder, "ids"), os.path.join(folder, "out.npy")
        with open(source, "w") as f:
            f.write(" ".join(map(str, ids)))
        done = subprocess.run([linnet, "logits", model, "--ids", source, "-o", out, "--quiet",
                               "--backend", "cpu"], capture_output=True, text=True)
        if done.returncode:
            raise TrainError(f"{linnet} logits {model}: {done.stderr.strip()}")
        return np.load(out)


def check(linnet, model, folder, sequences):
    """Compares linnet with the trainer: logits of two sequences, and the hits of the fixed ones.
    -> largest difference in units of the logits' RMS, linnet's hits, the trainer's (of the first
    `sequences`; the trainer's None where those are not all; no hits of other tasks)"""
    saved = np.load(os.path.join(folder, "logits.npz"))
    got = np.stack([linnet_logits(linnet, model, ids) for ids in saved["ids"]]).astype(np.float64)
    want = saved["logits"].astype(np.float64)
    error = float(np.abs(got - want).max() / np.sqrt((want * want).mean()))
    if not os.path.exists(os.path.join(folder, "test.json")):
        return error, None, None
    fixed = read_json(os.path.join(folder, "test.json"))["fixed"]
    L, K = map(int, fixed["task"].split(":"))
    n = min(sequences, fixed["sequences"])
    x, y = mqar.sequences(mqar.Task(L, K, want.shape[2]), 0, "test", np.arange(n))
    hits = 0
    for ids, labels in zip(x, y):
        at = labels != mqar.IGNORED
        hits += int((linnet_logits(linnet, model, ids)[at].argmax(1) == labels[at]).sum())
    return error, hits, fixed["hits"] if n == fixed["sequences"] else None


def main():
    parser = argparse.ArgumentParser(prog="python3 -m train.collect",
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("runs")
    parser.add_argument("-o", "--out", default="models")
    parser.add_argument("--linnet", help="compare with this program too")
    parser.add_argument("--sequences", type=int, default=200, help="of the comparison (200)")
    args = parser.parse_args()
    try:
        if not os.path.isdir(args.runs):
            raise TrainError(f"{args.runs}: no folder")
        os.makedirs(args.out, exist_ok=True)
        bad = 0
        for name, tried in finished(args.runs).items():
            folder, gguf = tried[0][2], os.path.join(args.out, name + ".gguf")
            export(folder, gguf)
            write_card(os.path.join(args.out, name + ".json"), card(name, tried, gguf))
            line = f"{gguf} {os.path.getsize(gguf):,} bytes, validation {tried[0][0]:.4f}"
            if args.linnet and os.path.exists(os.path.join(folder, "logits.npz")):
                error, hits, expected = check(args.linnet, gguf, folder, args.sequences)
                line += f", logits within {error:.1e} of their RMS"
                line += "" if hits is None else f", {hits} hits"
                if expected is not None:
                    line += f", the trainer {expected}"
                bad += error > 1e-4 or expected not in (None, hits)
            print(line, flush=True)
        cards = [read_json(os.path.join(args.out, n)) for n in sorted(os.listdir(args.out))
                 if n.endswith(".json")]
        text = table(cards)
        if text:
            with open(os.path.join(args.out, "README.md"), "w") as f:
                f.write(text)
        if bad:
            raise TrainError(f"{bad} models give other results in {args.linnet}")
    except (TrainError, ExportError, OSError) as e:
        sys.exit(f"train.collect: {e}")


if __name__ == "__main__":
    main()
