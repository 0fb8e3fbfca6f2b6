"""Stage 1, attention transfer: on the teacher's own inputs of every layer, the linearized attention
learns the output of softmax attention. Layers do not depend on each other; one pass of the teacher
serves them all, and only one layer's graph exists at a time."""
import torch

from . import attention
from .student import teacher_layer


def layer_error(student, i, x):
    """-> squared error / squared target over the positions that have a linear part; rotated q, k and v
    are constants, so the window's sums are too."""
    W = student.window
    with torch.no_grad():
        q, k, v = student.llama.qkv(i, x)
        y = attention.softmax_attention(q, k, v)
        num, den = attention.window_sums(q, k, v, W, student.sinks)
    gamma, far = student.far(i, q, k, v)
    predicted = (num[:, :, W:] * gamma + far[..., :-1]) / (den[:, :, W:] * gamma + far[..., -1:])
    want = y[:, :, W:]
    return (predicted - want).square().sum() / want.square().sum(), y


def errors(student, ids, learn):
    """-> [layers] errors (0: left softmax), their gradients added where `learn`"""
    llama, found = student.llama, torch.zeros(student.llama.n_layers)
    with torch.no_grad():
        x = llama.start(ids)
        for i in range(llama.n_layers):
            if i in student.softmax:
                x = teacher_layer(llama, i, x)
                continue
            with torch.set_grad_enabled(learn):
                error, y = layer_error(student, i, x)
                if learn:
                    error.backward()
            found[i] = error.item()
            x = llama.after(i, x, y)
    return found


class Transfer:
    """What the loop (run.py) asks of a stage."""
    measures = ("loss",)

    def __init__(self, student, sequences, options):
        if sequences.length <= student.window or sequences.length % student.window:
            from ..config import TrainError
            raise TrainError(f"sequences of {sequences.length} tokens do not divide into windows of "
                             f"{student.window}")
        self.student, self.sequences, self.options = student, sequences, options
        self.count = student.llama.n_layers - len(student.softmax)

    def learn(self, numbers):
        ids = self.sequences.rows("train", numbers).to(self.student.llama.device)
        return {"loss": errors(self.student, ids, True).sum().item() / self.count}

    def validate(self, numbers):
        found = torch.stack([errors(self.student, self.sequences.rows("validation", [n]).to(
            self.student.llama.device), False) for n in numbers]).mean(0)
        return {"loss": found.sum().item() / self.count, "layers": [round(e, 5) for e in found.tolist()]}
