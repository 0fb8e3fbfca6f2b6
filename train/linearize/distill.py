"""Stage 2: LoRA and the maps learn the teacher's next-token distribution (KL), or the text (CE); both
are measured."""
import os

import numpy as np
import torch

from ..config import TrainError
from .data import held

ROWS = {"cpu": 128, "cuda": 4096}  # positions whose logits exist at a time


def sums_of_rows(h, t, E, labels, learn):
    """-> KL, CE, summed over rows, and the gradient of the one that `learn` names, None of none"""
    ours, theirs = h @ E.t(), t @ E.t()
    ours.sub_(ours.logsumexp(-1, keepdim=True))
    theirs.sub_(theirs.logsumexp(-1, keepdim=True))
    labelled, at = labels >= 0, labels.clamp(min=0)[:, None]
    ce = -(ours.gather(1, at)[:, 0] * labelled).double().sum()
    p = theirs.exp()
    kl = theirs.sub_(ours).mul_(p).sum().double()
    if learn is None:
        return kl, ce, None
    ours.exp_()
    if learn == "kl":
        ours.sub_(p)
    else:
        ours.scatter_add_(1, at, -torch.ones_like(ours[:, :1])).mul_(labelled[:, None])
    return kl, ce, ours @ E


class Divergence(torch.autograd.Function):
    """-> mean KL(teacher || student) and mean CE of h and t [n, d] through the output matrix E; labels
    -100 have no CE. Differentiable in h: of the KL, or of the CE. `part`: sums_of_rows, perhaps compiled."""

    @staticmethod
    def forward(ctx, h, t, E, labels, learn, part):
        grad, kl, ce = torch.empty_like(h), 0.0, 0.0
        n, m, rows = len(h), int((labels >= 0).sum()), ROWS[h.device.type]
        for at in range(0, n, rows):
            s = slice(at, at + rows)
            a, b, g = part(h[s], t[s], E, labels[s], learn if ctx.needs_input_grad[0] else None)
            kl, ce = kl + a, ce + b
            if g is not None:
                grad[s] = g
        ctx.save_for_backward(grad.div_(n if learn == "kl" else m))
        kl, ce = (kl / n).to(h.dtype), (ce / m).to(h.dtype)
        ctx.mark_non_differentiable(ce if learn == "kl" else kl)
        return kl, ce

    @staticmethod
    def backward(ctx, of_kl, of_ce):
        grad, = ctx.saved_tensors
        return grad * (of_kl + of_ce), None, None, None, None, None


def shifted(ids):
    """The next token of each position, -100 at the ends."""
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1).flatten()


class Hidden:
    """The teacher's last hidden states of training sequences, kept in float16: in memory, or in a file
    that runs on the same data share. Those of a step are computed when they are first wanted."""

    def __init__(self, llama, sequences, where):
        self.llama, self.sequences, self.kept, self.file = llama, sequences, None, None
        shape = (len(sequences.train), sequences.length, llama.dim)
        if where == "memory":
            try:
                self.kept = torch.empty(shape, dtype=torch.float16, device=llama.device)
            except RuntimeError:
                raise TrainError(f"--cache memory: {2 * np.prod(shape) / 1e9:.1f} GB do not fit into that of {llama.device}")
            self.have = np.zeros(shape[0], np.uint8)
        elif where:
            os.makedirs(where, exist_ok=True)
            path = os.path.join(where, f"hidden-{sequences.info['train']['sha256'][:16]}-{llama.fingerprint()}-{str(llama.dtype)[6:]}")
            self.file = self.open(path + ".f16", np.float16, shape)
            self.have = self.open(path + ".have", np.uint8, shape[:1])
            self.kept = torch.from_numpy(self.file)

    @staticmethod
    def open(path, dtype, shape):
        with open(path, "ab") as f:
            f.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)  # sparse: zeros cost nothing
        return np.memmap(path, dtype, "r+", shape=shape)

    def of(self, numbers):
        """-> [len(numbers) * T, d]"""
        if self.kept is None:
            return self.compute(numbers).flatten(0, 1)
        new = [n for n in numbers if not self.have[n]]
        # In a file each alone, the same for any size of a step; a whole step where a size is compiled for.
        parts = [[n] for n in new] if self.file is not None else [numbers] if new else []
        for some in parts:
            h = self.compute(some)
            for n, states in zip(some, h):
                if not self.have[n]:
                    self.kept[n] = states.to(self.kept.device, torch.float16)
        if self.file is not None:
            self.file.flush()
        self.have[new] = 1
        return self.kept[numbers].to(self.llama.device).float().flatten(0, 1)

    def compute(self, numbers):
        with torch.no_grad():
            return self.llama.hidden(self.sequences.rows("train", numbers).to(self.llama.device))


class Distill:
    measures = ("loss", "kl", "ce")

    def __init__(self, student, sequences, options, cache=None, recompute=False, compile=False):
        self.student, self.sequences, self.options = student, sequences, options
        self.part = torch.compile(sums_of_rows, dynamic=False) if compile else sums_of_rows
        self.recompute = recompute
        self.hidden = Hidden(student.llama, sequences, cache)

    def learn(self, numbers, first):
        ids = self.sequences.rows("train", numbers).to(self.student.llama.device)
        t = self.hidden.of(numbers)
        h = self.student.hidden(ids, self.recompute, first).flatten(0, 1)
        kl, ce = Divergence.apply(h, t, self.student.llama.head, shifted(ids), self.options["loss"], self.part)
        loss = kl if self.options["loss"] == "kl" else ce
        loss.backward()
        return {"loss": loss.item(), "kl": kl.item(), "ce": ce.item()}

    def validate(self, numbers):
        llama, rows = self.student.llama, []
        for some, first in held(numbers, self.options, self.sequences.length):
            ids = self.sequences.rows("validation", some).to(llama.device)
            with torch.no_grad():
                t, h = llama.hidden(ids).flatten(0, 1), self.student.hidden(ids, first=first).flatten(0, 1)
                kl, ce = Divergence.apply(h, t, llama.head, shifted(ids), "kl", self.part)
                _, teacher_ce = Divergence.apply(t, t, llama.head, shifted(ids), "kl", self.part)
            rows += [(kl.item(), ce.item(), teacher_ce.item())] * len(some)
        kl, ce, teacher_ce = (sum(c) / len(rows) for c in zip(*rows))
        return {"kl": kl, "ce": ce, "teacher ce": teacher_ce}
