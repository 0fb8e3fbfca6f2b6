"""Stage 2: LoRA and the maps learn the teacher's next-token distribution (KL), or the text (CE); both
are measured."""
import os

import numpy as np
import torch

from .student import teacher_hidden

ROWS = 128  # positions whose logits exist at a time


class Divergence(torch.autograd.Function):
    """-> mean KL(teacher || student) and mean CE of h and t [n, d] through the output matrix E; labels
    -100 have no CE. Differentiable in h: of the KL, or of the CE."""

    @staticmethod
    def forward(ctx, h, t, E, labels, kind):
        grad, kl, ce = torch.empty_like(h), 0.0, 0.0
        labelled = labels >= 0
        n, m = len(h), int(labelled.sum())
        for at in range(0, n, ROWS):
            s = slice(at, at + ROWS)
            ours, theirs = h[s] @ E.t(), t[s] @ E.t()
            ours.sub_(ours.logsumexp(-1, keepdim=True))
            theirs.sub_(theirs.logsumexp(-1, keepdim=True))
            own = ours.gather(1, labels[s].clamp(min=0)[:, None])[:, 0]
            ce -= own[labelled[s]].double().sum()
            p = theirs.exp()
            kl += (theirs.sub_(ours).mul_(p)).sum().double()
            if not ctx.needs_input_grad[0]:
                continue
            ours.exp_()
            if kind == "kl":
                ours.sub_(p)
            else:
                ours[torch.arange(len(own), device=h.device), labels[s].clamp(min=0)] -= 1
                ours[~labelled[s]] = 0
            grad[s] = ours @ E
        ctx.save_for_backward(grad.div_(n if kind == "kl" else m))
        kl, ce = (kl / n).to(h.dtype), (ce / m).to(h.dtype)
        ctx.mark_non_differentiable(ce if kind == "kl" else kl)
        return kl, ce

    @staticmethod
    def backward(ctx, of_kl, of_ce):
        grad, = ctx.saved_tensors
        return grad * (of_kl + of_ce), None, None, None, None


def shifted(ids):
    """The next token of each position, -100 at the ends."""
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1).flatten()


class Hidden:
    """The teacher's last hidden states of training sequences, kept in float16 in a file that runs on
    the same data share; a sequence is computed when it is first wanted."""

    def __init__(self, llama, sequences, folder):
        self.llama, self.sequences, self.kept = llama, sequences, None
        if folder:
            shape = (len(sequences.train), sequences.length, llama.dim)
            os.makedirs(folder, exist_ok=True)
            path = os.path.join(folder, "hidden-" + sequences.info["train"]["sha256"][:16])
            self.kept = self.open(path + ".f16", np.float16, shape)
            self.have = self.open(path + ".have", np.uint8, shape[:1])

    @staticmethod
    def open(path, dtype, shape):
        with open(path, "ab") as f:
            f.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)  # sparse: zeros cost nothing
        return np.memmap(path, dtype, "r+", shape=shape)

    def of(self, number):
        if self.kept is not None and self.have[number]:
            return torch.from_numpy(self.kept[number].astype(np.float32)).to(self.llama.device)
        with torch.no_grad():
            h = teacher_hidden(self.llama, self.sequences.rows("train", [number]).to(self.llama.device))[0]
        if self.kept is None:
            return h
        self.kept[number] = h.cpu().half().numpy()
        self.kept.flush()
        self.have[number] = 1
        return h.half().float()  # the same the first time and later


class Distill:
    measures = ("loss", "kl", "ce")

    def __init__(self, student, sequences, options, cache=None, recompute=False):
        self.student, self.sequences, self.options = student, sequences, options
        self.recompute = recompute
        self.hidden = Hidden(student.llama, sequences, cache)
        self.labels = None

    def learn(self, numbers):
        ids = self.sequences.rows("train", numbers).to(self.student.llama.device)
        t = torch.cat([self.hidden.of(n) for n in numbers])
        h = self.student.hidden(ids, self.recompute).flatten(0, 1)
        kl, ce = Divergence.apply(h, t, self.student.llama.head, shifted(ids), self.options["loss"])
        loss = kl if self.options["loss"] == "kl" else ce
        loss.backward()
        return {"loss": loss.item(), "kl": kl.item(), "ce": ce.item()}

    def validate(self, numbers):
        llama, rows = self.student.llama, []
        for n in numbers:
            ids = self.sequences.rows("validation", [n]).to(llama.device)
            with torch.no_grad():
                t = teacher_hidden(llama, ids)[0]
                h = self.student.hidden(ids)[0]
                kl, ce = Divergence.apply(h, t, llama.head, shifted(ids), "kl")
                _, own = Divergence.apply(t, t, llama.head, shifted(ids), "kl")
            rows.append((kl.item(), ce.item(), own.item()))
        kl, ce, own = (sum(c) / len(rows) for c in zip(*rows))
        return {"kl": kl, "ce": ce, "teacher ce": own}
