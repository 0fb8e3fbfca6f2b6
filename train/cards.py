"""Cards of models, NAME.json beside NAME.gguf or NAME.pt, and the README.md of a folder of them."""
import hashlib
import json
import os

from .config import read_json

STATE = "state bytes at 1024 (zoology's rule, float32)"


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            h.update(piece)
    return h.hexdigest()


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


def table(heads, rows):
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|",
                      *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def mqar_table(cards):
    """Of the MQAR models that were tested, by state."""
    rows = [c for c in cards if "test" in c]
    if not rows:
        return ""
    tasks = list(rows[0]["test"]["accuracy"])
    lines = [[c["name"], f"{c['parameters']:,}", f"{c[STATE]:,}", f"{c['lr']:g}",
              *(f"{c['test']['accuracy'][t]:.3f}" for t in tasks), f"{c['test']['mean']:.3f}"]
             for c in sorted(rows, key=lambda c: c[STATE])]
    first = rows[0]
    longest = max(s[0] for s in first["config"]["task"]["segments"])
    return f"""
## MQAR
[The task](../docs/mqar.md): accuracy on {first['test']['n']} test sequences (seed {first['test']['seed']}) of each
length:pairs, after {first['steps']} steps of {first['config']['batch_tokens']} tokens up to length {longest};
what is longer is extrapolation. The learning rate was chosen on validation sequences.

""" + table(["model", "parameters", "state bytes", "lr", *tasks, "mean"], lines)


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
    heads = ["model", "layers (and their windows)", "parameters", "state bytes", "steps", "lr", "perplexity", "as written",
             "bits per character"]
    lines = []
    for c in sorted(rows, key=lambda c: c[STATE]):
        h = c["held-out"]
        after = f" after {c['config']['start_from']}" if "start_from" in c["config"] else ""
        lines.append([c["name"], layers_of(c), f"{c['parameters']:,}", f"{c[STATE]:,}", f"{c['steps']:,}{after}",
                      f"{c['lr']:g}", f"{h['perplexity of the trainer']:.3f}", f"{h['perplexity of this file']:.3f}",
                      f"{c['result']['bits per character']:.3f}"])
    data, config = rows[0]["data"], rows[0]["config"]
    return f"""
## Language
From {', '.join(data['files'])}, {data['recall share']:.0%} of it synthetic text with something to look up
([docs/train.md](../docs/train.md)); {data['vocab']:,} SentencePiece pieces, in the files. Steps of
{config['batch_tokens']:,} tokens in sequences of {config['task']['length']}; one learning rate, one seed.
Perplexity on {rows[0]['held-out']['tokens']:,} held-out tokens: the trainer's, which linnet's equals in f16, and of the file,
whose matrices are {rows[0]['held-out']['type of this file']}.

""" + table(heads, lines)


def tokens(c, *stages):
    return f"{sum(c[s]['tokens'] for s in stages if s in c):,}"


def delta_table(cards):
    """Of the linearizations, by name."""
    rows = [c for c in cards if "distill" in c]
    if not rows:
        return ""
    heads = ["delta", "parameters", "sinks", "softmax layers", "linear part", "tokens, stage 1", "stage 2",
             "positions", "held out: KL to the teacher", "CE", "the teacher's"]
    lines = []
    for c in rows:
        held = c["distill"]["held out"]
        positions = max(c["data"]["length"], c["distill"].get("positions", 0))
        lines.append([c["name"], f"{c['parameters']:,}", str(c["student"]["n_sink"]),
                      ", ".join(map(str, c["softmax layers"])) or "-", "yes" if c["student"]["linear"] else "no",
                      tokens(c, "transfer"), tokens(c, "distill before", "distill"),
                      f"{positions:,}", f"{held['kl']:.4f}", f"{held['ce']:.4f}", f"{held['teacher ce']:.4f}"])
    return """
## Linearized SmolLM2-135M-Instruct
Deltas, made by `python3 -m train.linearize` ([docs/linearize.md](../docs/linearize.md)); `make demo-linear` joins
them with the model of `make demo`. A window of """ + str(rows[0]["student"]["window"]) + """ keys in every linearized layer.
Held out: sequences of those positions, so rows of one number of positions compare.

""" + table(heads, lines)


def write_readme(folder):
    cards = [read_json(os.path.join(folder, n)) for n in sorted(os.listdir(folder)) if n.endswith(".json")]
    text = mqar_table(cards) + text_table(cards) + delta_table(cards)
    if text:
        with open(os.path.join(folder, "README.md"), "w") as f:
            f.write(HEAD + text)


def refresh_readme(folder):
    """If there is one of ours."""
    try:
        with open(os.path.join(folder, "README.md")) as f:
            ours = f.read(len(HEAD)) == HEAD
    except OSError:
        return
    if ours:
        write_readme(folder)
