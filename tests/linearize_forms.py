"""The attention and losses of train/linearize against their definitions, in float64. Run by
tests/test_linearize.py with a Python that has PyTorch."""
import math
import sys
import types
import unittest
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from forms import Case, random  # noqa: E402
from train.linearize import attention, distill, student, transfer  # noqa: E402

H, KV, D = 4, 2, 6


def make(**options):
    llama = types.SimpleNamespace(n_layers=1, heads=H, kv_heads=KV, head_dim=D, dim=H * D,
                                  device=torch.device("cpu"))
    given = dict(window=8, n_sink=0, softmax_layers=[], affine=False, linear=True, init_scale=1.0,
                 init_factor=0.0)
    s = student.Student(llama, {**given, **options})
    for name, p in s.parameters.items():
        s.parameters[name] = torch.nn.Parameter(random(*p.shape))
    return s


def plain(s, q, k, v):
    """docs/mixers.md, position by position."""
    B, _, T, _ = q.shape
    out = torch.zeros_like(q)
    names = student.map_names(0)
    for b in range(B):
        for h in range(H):
            key, value = k[b, h * KV // H], v[b, h * KV // H]
            for i in range(T):
                near = [j for j in range(i + 1) if j < s.sinks or j > i - s.window]
                far = [j for j in range(i + 1) if j not in near] if s.linear else []
                e = torch.stack([q[b, h, i] @ key[j] / math.sqrt(D) for j in near])
                w = (e - e.max()).exp()
                num, den = w @ value[near], w.sum()
                if s.linear:
                    map_q, map_k, factor = (s.parameters[n] for n in names)
                    gamma = factor[0, h, 0, 0].sigmoid()
                    num, den = num * gamma, den * gamma

                    def phi(x, m):
                        return torch.cat([(x @ m[h]).softmax(-1), (-x @ m[h]).softmax(-1)])
                    for j in far:
                        a = phi(q[b, h, i], map_q) @ phi(key[j], map_k) * (1 - gamma if s.affine else 1)
                        num, den = num + a * value[j], den + a
                out[b, h, i] = num / den
    return out


class Forms(Case):
    def qkv(self, T, B=2):
        return random(B, H, T, D), random(B, KV, T, D), random(B, KV, T, D)

    def test_softmax(self):
        for T in (1, 63, 64, 150):
            q, k, v = self.qkv(T)
            s = q @ k.repeat_interleave(H // KV, 1).transpose(2, 3) / math.sqrt(D)
            want = s.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
            self.near(attention.softmax_attention(q, k, v), want @ v.repeat_interleave(H // KV, 1))

    def test_linearized(self):
        for T in (1, 7, 8, 9, 40, 83):
            for options in ({}, {"n_sink": 3}, {"n_sink": 13}, {"n_sink": 2, "affine": True},
                            {"n_sink": 2, "linear": False}, {"window": 1}):
                s = make(**options)
                q, k, v = self.qkv(T)
                with torch.no_grad():
                    self.near(s.attend(s.own(0), q, k, v), plain(s, q, k, v))

    def test_gradients(self):
        s = make(n_sink=2)
        q, k, v = (x.requires_grad_() for x in self.qkv(21, 1))
        weights = random(1, H, 21, D)
        inputs = [q, k, v, *s.parameters.values()]
        got = torch.autograd.grad((s.attend(s.own(0), q, k, v) * weights).sum(), inputs)
        want = torch.autograd.grad((plain(s, q, k, v) * weights).sum(), inputs)
        for a, b in zip(got, want):
            self.near(a, b)

    def test_transfer_is_of_attention(self):
        """Stage 1's shortcut is what the student computes where it has a linear part."""
        s = make(n_sink=2)
        q, k, v = self.qkv(32, 1)
        s.llama.qkv, s.llama.softmax = lambda layer, x: (q, k, v), attention.softmax_attention
        error, y = transfer.layer_error(s, None, s.own(0), None)
        want = y[:, :, 8:]
        self.near(error, (s.attend(s.own(0), q, k, v)[:, :, 8:] - want).square().sum() / want.square().sum())

    def test_divergence(self):
        n, d, V = 300, 5, 11
        E, h, t = random(V, d), random(n, d).requires_grad_(), random(n, d)
        labels = torch.randint(0, V, (n,))
        labels[::7] = -100
        p, q = (t @ E.t()).softmax(-1), (h @ E.t()).log_softmax(-1)
        kl = (p * (p.log() - q)).sum(-1).mean()
        ce = torch.nn.functional.cross_entropy(h @ E.t(), labels)
        for kind, want in (("kl", kl), ("ce", ce)):
            got = distill.Divergence.apply(h, t, E, labels, kind, distill.sums_of_rows)
            self.near(got[0], kl)
            self.near(got[1], ce)
            self.near(torch.autograd.grad(got[kind == "ce"], h)[0],
                      torch.autograd.grad(want, h, retain_graph=True)[0])


if __name__ == "__main__":
    unittest.main()
