"""Compares linnet with the trainer on one model file: logits, hits, held-out perplexity, greedy text. Needs
NumPy and a built linnet."""
import hashlib
import json
import os
import subprocess
import tempfile

import numpy as np

from . import mqar
from .config import TrainError, read_json
from .text import MEASURED, validation_rows

PROMPT, SAID = "It was", 32  # tokens


def call(linnet, *args, text=None):
    done = subprocess.run([linnet, *args, "-t", "1", "--quiet"], capture_output=True, input=text, text=True,
                          errors="replace")
    if done.returncode:
        raise TrainError(f"{linnet} {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def logits(linnet, model, ids, *more):
    with tempfile.TemporaryDirectory() as folder:
        source, out = os.path.join(folder, "ids"), os.path.join(folder, "out.npy")
        with open(source, "w") as f:
            f.write(" ".join(map(str, ids)))
        call(linnet, "logits", model, "--ids", source, "-o", out, "--backend", "cpu", *more)
        return np.load(out)


def check(linnet, model, folder, sequences):
    """Logits of two sequences, and the hits of the fixed ones. -> largest difference in units of the logits' RMS,
    linnet's hits, the trainer's (of the first `sequences`; the trainer's None where those are not all; no hits
    of other tasks)"""
    saved = np.load(os.path.join(folder, "logits.npz"))
    got = np.stack([logits(linnet, model, ids) for ids in saved["ids"]]).astype(np.float64)
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
        hits += int((logits(linnet, model, ids)[at].argmax(1) == labels[at]).sum())
    return error, hits, fixed["hits"] if n == fixed["sequences"] else None


def held_out_rows(folder, data):
    """The windows of which a run's result is, from the folder of prepared text `data`."""
    config, info = (read_json(os.path.join(folder, n)) for n in ("config.json", "data.json"))
    path = os.path.join(data, "validation.npy")
    try:
        ids = np.load(path)
    except OSError as e:
        raise TrainError(f"{path}: {e.strerror}: expected the text that {folder} was trained on (--data)")
    if hashlib.sha256(ids.tobytes()).hexdigest() != info["validation"]["sha256"]:
        raise TrainError(f"{path}: not the text that {folder} was trained on (--data)")
    return validation_rows(ids, config["task"].get("length", 512), MEASURED)


def held_out_loss(linnet, model, rows):
    """As the trainer's: the mean over all labels of all windows."""
    total = 0.0
    for row in rows:
        z = logits(linnet, model, row[:-1]).astype(np.float64)
        z -= z.max(1, keepdims=True)
        total += float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), row[1:]]).sum())
    return total / rows[:, 1:].size


def greedy(linnet, model):
    """How the model goes on from PROMPT: by `run`, and by the largest logit of each step."""
    said = call(linnet, "run", model, "-p", PROMPT, "-n", str(SAID), "--activations", "exact", "--backend", "cpu")
    ids = call(linnet, "tokenize", model, text=PROMPT).split()
    for _ in range(SAID):
        ids.append(str(logits(linnet, model, ids, "--last")[0].argmax()))
    spelled = json.loads(call(linnet, "detokenize", model, "--ids", "-", text=" ".join(ids)))["text"]
    return PROMPT + said[:-1], spelled  # run ends with a newline
