"""A config's best run on the test sequences, which neither training nor the choice of the learning
rate ever saw."""
import os

import numpy as np
import torch

from . import mqar
from .config import read_json, write_json
from .run import load_run, run_folder
from .tasks import TEST, TEST_SEED, accuracy, make_task, predict

FIXED = mqar.Task(256, 64), 200  # the sequences on which linnet must give the same ids
LOGITS = mqar.Task(64, 8), 2     # and the same logits


def finished_runs(config, out):
    """-> [(score on validation data, lr, folder)], best first"""
    runs = []
    for lr in config["lr"]:
        folder = run_folder(out, config, lr)
        path = os.path.join(folder, "result.json")
        if os.path.exists(path):
            runs.append((read_json(path)["score"], lr, folder))
    return sorted(runs, reverse=True)


def test(config, out, n=1000):
    """Writes logits.npz, and of MQAR models test.json, into the best run's folder. -> its folder, None
    without runs"""
    runs = finished_runs(config, out)
    if not runs:
        return None
    folder = runs[0][2]
    if os.path.exists(os.path.join(folder, "logits.npz")):
        return folder
    if config["task"]["kind"] == "mqar":
        test_mqar(config, folder, n)
        vocab = config["model"]["vocab"]
        ids, _ = mqar.sequences(mqar.Task(LOGITS[0].length, LOGITS[0].pairs, vocab), TEST_SEED,
                                "test", np.arange(LOGITS[1]))
    else:
        ids = make_task(config).windows("validation", [0, 1000])[0].numpy()
    _, model = load_run(folder, double=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids).long()).numpy().astype(np.float32)
    part = os.path.join(folder, ".logits.part.npz")
    np.savez(part, ids=ids, logits=logits)
    os.replace(part, os.path.join(folder, "logits.npz"))
    return folder


def test_mqar(config, folder, n):
    """Accuracy on n sequences of each test task, and what float64 predicts on the fixed ones."""
    _, model = load_run(folder)
    vocab, rows = config["model"]["vocab"], {}
    for L, K in config["task"].get("test", TEST):
        rows[f"{L}:{K}"] = accuracy(model, mqar.Task(L, K, vocab), TEST_SEED, "test", n)[0]
    task = mqar.Task(FIXED[0].length, FIXED[0].pairs, vocab)
    _, model = load_run(folder, double=True)
    x, y = mqar.sequences(task, TEST_SEED, "test", np.arange(FIXED[1]))
    ids = np.concatenate([predict(model, x[i:i + 20], y[i:i + 20]).numpy()
                          for i in range(0, FIXED[1], 20)]).astype("<i4")
    labels = y[y != mqar.IGNORED]
    write_json(os.path.join(folder, "test.json"), {
        "seed": TEST_SEED, "n": n, "accuracy": rows, "mean": float(np.mean(list(rows.values()))),
        "fixed": {"task": f"{task.length}:{task.pairs}", "sequences": FIXED[1],
                  "hits": int((ids == labels).sum()), "labels": len(labels),
                  "predictions": f"{mqar.fnv1a(ids.tobytes()):016x}"}})
