"""Stage 1, attention transfer: on the teacher's own inputs of every layer, the linearized attention
learns the output of softmax attention. Layers do not depend on each other; one pass of the teacher
serves them all, and only one layer's graph exists at a time."""
import torch

from . import attention
from .data import held


def layer_error(student, weights, own, x):
    """-> squared error / squared target over the positions that have a linear part; rotated q, k and v
    are constants, so the window's sums are too."""
    W = student.window
    with torch.no_grad():
        q, k, v = student.llama.qkv(weights, x)
        y = student.llama.softmax(q, k, v)
        num, den = attention.window_sums(q, k, v, W, student.sinks)
    num, den = student.behind_window(own["maps"], q, k, v, num[:, :, W:], den[:, :, W:])
    want = y[:, :, W:]
    return (num / den - want).square().sum() / want.square().sum(), y


def errors(student, ids, first, learn, error_of, after):
    """-> [layers] errors, their gradients added where `learn`; by layer_error and Llama.after, or these
    compiled"""
    llama, found = student.llama, []
    with torch.no_grad():
        x = student.start(ids, first)
        for i, weights in enumerate(llama.layers):
            with torch.set_grad_enabled(learn):
                error, y = error_of(student, weights, student.own(i), x)
                if learn:
                    error.backward()
            found.append(error.detach())
            x = after(weights, x, y)
    return torch.stack(found).cpu()


class Transfer:
    """What the loop (run.py) asks of a stage."""
    measures = ("loss",)

    def __init__(self, student, sequences, options, compile=False):
        if sequences.length <= student.window or sequences.length % student.window:
            from ..config import TrainError
            raise TrainError(f"sequences of {sequences.length} tokens do not divide into windows of "
                             f"{student.window}")
        self.student, self.sequences, self.options = student, sequences, options
        self.how = layer_error, student.llama.after
        if compile:
            self.how = [torch.compile(f, dynamic=False) for f in self.how]

    def errors(self, name, numbers, first):
        ids = self.sequences.rows(name, numbers).to(self.student.llama.device)
        return errors(self.student, ids, first, name == "train", *self.how)

    def learn(self, numbers, first):
        return {"loss": self.errors("train", numbers, first).mean().item()}

    def validate(self, numbers):
        found = sum(self.errors("validation", part, first) * len(part)
                    for part, first in held(numbers, self.options, self.sequences.length)) / len(numbers)
        return {"loss": found.mean().item(), "layers": [round(e, 5) for e in found.tolist()]}
