"""What a model learns. A task gives the batch of any step, from the step's number alone, so that a
run can go on from anywhere, and measures a model on data that training never sees."""
import numpy as np
import torch

from . import mqar
from .config import TrainError

TEST_SEED = 0
TEST = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]  # zoology's


def make_task(config):
    kinds = {"mqar": Mqar}
    kind = config["task"].get("kind")
    if kind == "text":
        from .text import Text
        return Text(config)
    if kind not in kinds:
        raise TrainError(f"{config['name']}: task kind is {kind!r:.40}, expected mqar or text")
    return kinds[kind](config)


class Mqar:
    """task: segments: [[length, pairs, weight, start], ...], start (default 0) the part of the
    steps before the first one of the segment; validation: sequences of each segment."""

    def __init__(self, config):
        options, self.seed, self.tokens = config["task"], config["seed"], config["batch_tokens"]
        vocab = config["model"]["vocab"]
        try:
            self.tasks = [mqar.Task(s[0], s[1], vocab) for s in options["segments"]]
            self.weights = np.array([s[2] for s in options["segments"]], np.int64)
            self.starts = np.array([(s + [0])[3] for s in options["segments"]]) * config["steps"]
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise TrainError(f"{config['name']}: task.segments: {e}")
        self.n_validation = options.get("validation", 200)
        self.vocab = vocab

    def batch(self, step):
        """One segment a step, batch_tokens tokens of it, never the same twice."""
        s = mqar.states(self.tasks[0], self.seed + (1 << 32), "train", np.array([step], mqar.U))
        weights = np.where(self.starts <= step, self.weights, 0)
        r = int(mqar.below(s, 0, int(weights.sum()))[0])
        task = self.tasks[int((weights.cumsum() <= r).sum())]
        n = max(1, self.tokens // task.length)
        x, y = mqar.sequences(task, self.seed, "train", (step << 20) + np.arange(n))
        return torch.from_numpy(x).long(), torch.from_numpy(y).long()

    def validate(self, model, few):
        """-> {"64:4": accuracy, ..., "mean": of them}: what learning rates are chosen by."""
        n = min(self.n_validation, 32) if few else self.n_validation
        out = {f"{t.length}:{t.pairs}": accuracy(model, t, self.seed, "validation", n)[0]
               for t in self.tasks}
        return {**out, "mean": float(np.mean(list(out.values())))}

    @staticmethod
    def score(values):
        return values["mean"]


def predict(model, x, y):
    """The largest logit's id at each labelled position. -> int64 [n], row by row"""
    device = model.embed.weight.device
    x, y = torch.from_numpy(x).long().to(device), torch.from_numpy(y)
    with torch.no_grad():
        h = model.hidden(x)[(y != mqar.IGNORED).to(device)]
        return torch.cat([(p @ model.embed.weight.t()).argmax(-1) for p in h.split(2048)]).cpu()


def accuracy(model, task, seed, split, n, tokens=16384):
    """-> accuracy as docs/mqar.md defines it, the predicted ids of all sequences"""
    at_once, found = max(1, tokens // task.length), []
    hits = 0
    for at in range(0, n, at_once):
        x, y = mqar.sequences(task, seed, split, np.arange(at, min(n, at + at_once)))
        ids = predict(model, x, y).numpy()
        hits += int((ids == y[y != mqar.IGNORED]).sum())
        found.append(ids)
    return hits / (n * task.pairs), np.concatenate(found)
