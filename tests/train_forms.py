"""The mixers of train/ against their definitions, token by token, in float64. Run by tests/test_train.py
with a Python that has PyTorch."""
import math
import sys
import unittest
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from forms import Case, random  # noqa: E402
from train import mixers  # noqa: E402
from train.model import Model  # noqa: E402
from train.run import Loss, set_transfer  # noqa: E402


class Forms(Case):
    def delta_by_token(self, q, k, v, beta, decay):
        B, H, T, K = q.shape
        S, out = torch.zeros(B, H, K, v.shape[-1], dtype=q.dtype), []
        for t in range(T):
            S = S * decay[:, :, t, None, None].exp()
            d = beta[:, :, t, None] * (v[:, :, t] - (S * k[:, :, t, :, None]).sum(2))
            S = S + k[:, :, t, :, None] * d[:, :, None]
            out.append((S * q[:, :, t, :, None]).sum(2))
        return torch.stack(out, 2)

    def test_delta_rule(self):
        for T in (1, 63, 64, 150):
            q, k, v = random(2, 3, T, 16), random(2, 3, T, 16), random(2, 3, T, 8)
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            beta, decay = random(2, 3, T).sigmoid() * 2, -random(2, 3, T).exp()
            self.near(mixers.chunked_delta_rule(q, k, v, beta, decay),
                      self.delta_by_token(q, k, v, beta, decay))
            self.near(mixers.chunked_delta_rule(q, k, v, beta),
                      self.delta_by_token(q, k, v, beta, torch.zeros_like(decay)))
            singles = [x.float() for x in (q, k, v, beta, decay)]
            self.near(mixers.chunked_delta_rule(*singles).double(),
                      self.delta_by_token(q, k, v, beta, decay), 1e-5)

    def test_delta_rule_of_keys_that_are_alike(self):
        q, k, v = random(1, 2, 200, 32), random(1, 2, 1, 32) + 0.1 * random(1, 2, 200, 32), random(1, 2, 200, 8)
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        beta, none = 0.6 + 0.1 * random(1, 2, 200).sigmoid(), torch.zeros(1, 2, 200)
        self.near(mixers.chunked_delta_rule(*(x.float() for x in (q, k, v, beta))).double(),
                  self.delta_by_token(q, k, v, beta, none.double()), 1e-4)

    def linear_by_token(self, fq, fk, v, eps):
        S, z, out = 0, 0, []
        for t in range(v.shape[2]):
            S = S + fk[:, :, t, :, None] * v[:, :, t, None]
            z = z + fk[:, :, t]
            out.append((fq[:, :, t, :, None] * S).sum(2) /
                       ((fq[:, :, t] * z).sum(-1, keepdim=True) + eps))
        return torch.stack(out, 2)

    def test_taylor(self):
        layer, x = mixers.Taylor(24, heads=3, features=5).double(), random(2, 300, 24)
        q, k, v = (mixers.split(w(x), 3) for w in (layer.q, layer.k, layer.v))
        want = torch.zeros_like(v)
        for t in range(300):
            s = (q[:, :, t:t + 1] * k[:, :, :t + 1]).sum(-1) / math.sqrt(5)
            w = 1 + s + s * s / 2
            want[:, :, t] = (w[..., None] * v[:, :, :t + 1]).sum(2) / w.sum(-1, keepdim=True)
        self.near(layer(x), layer.o(mixers.join(want)))
        self.near(mixers.join(want), mixers.join(self.linear_by_token(
            layer.feature(q), layer.feature(k), v, layer.eps)))

    def test_hedgehog(self):
        layer, x = mixers.Hedgehog(16, heads=2, features=12).double(), random(1, 300, 16)
        q, k, v = layer.qkv(x)
        fq, fk = layer.feature(q, layer.map_q), layer.feature(k, layer.map_k)
        self.near(fq.sum(-1), torch.full_like(fq[..., 0], 2.0))
        self.near(layer(x), layer.o(mixers.join(self.linear_by_token(fq, fk, v, 1e-12))))

    def test_softmax_and_lolcats_windows(self):
        for kind in (mixers.Softmax, mixers.Hedgehog):
            layer = kind(16, heads=4, kv_heads=2, window=5, rope=1e4).double()
            x = random(1, 23, 16)
            q, k, v = layer.qkv(x)
            want = torch.zeros_like(v)
            for t in range(23):
                first = max(0, t - 4)
                s = (q[:, :, t:t + 1] * k[:, :, first:t + 1]).sum(-1) / 2
                w = (s - s.amax(-1, keepdim=True)).exp()
                if kind is mixers.Hedgehog:
                    fq = layer.feature(q[:, :, t:t + 1], layer.map_q)
                    fk = layer.feature(k[:, :, :first], layer.map_k)
                    gamma = layer.window_factor.sigmoid().view(1, -1, 1)
                    w = torch.cat([(fq * fk).sum(-1), w * gamma], -1)
                    first = 0
                w = w / w.sum(-1, keepdim=True)
                want[:, :, t] = (w[..., None] * v[:, :, first:t + 1]).sum(2)
            self.near(layer.attend(q, k, v), want)

    def test_attention_transfer(self):
        """The model computes softmax attention, and only maps and factors get gradients."""
        options = dict(vocab=40, dim=16, feed_forward=8)
        layer = dict(heads=4, kv_heads=2, rope=1e4)
        model = Model({**options, "layers": [dict(layer, mixer="lolcats", window=3)] * 2}).double()
        teacher = Model({**options, "layers": [dict(layer, mixer="softmax")] * 2}).double()
        teacher.load_state_dict(model.state_dict(), strict=False)
        mixers_ = set_transfer(model, True)
        ids = torch.randint(40, (2, 30))
        self.near(model(ids), teacher(ids))
        sum(m.difference for m in mixers_).backward()
        got = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.grad is not None}
        self.assertEqual(got, {"map_q", "map_k", "window_factor"})
        set_transfer(model, False)
        self.assertGreater((model(ids) - teacher(ids)).abs().max().item(), 1e-3)
        self.assertTrue(all(p.requires_grad for p in model.parameters()))

    def test_rope(self):
        x, y = random(1, 1, 7, 6), torch.zeros(1, 1, 7, 6, dtype=torch.float64)
        for t in range(7):
            for i in range(3):
                a = t * 100.0 ** (-2 * i / 6)
                y[0, 0, t, i] = x[0, 0, t, i] * math.cos(a) - x[0, 0, t, i + 3] * math.sin(a)
                y[0, 0, t, i + 3] = x[0, 0, t, i] * math.sin(a) + x[0, 0, t, i + 3] * math.cos(a)
        self.near(mixers.rope(x, 100.0), y)

    def test_convolution(self):
        x, taps, bias = random(2, 9, 4), random(4, 3), random(4)
        want = bias.repeat(2, 9, 1)
        for t in range(9):
            for j in range(3):
                if t - 2 + j >= 0:
                    want[:, t] += taps[:, j] * x[:, t - 2 + j]
        self.near(mixers.causal_conv(x, taps, bias), want)

    def test_loss(self):
        h, E = random(20, 8).requires_grad_(), random(50, 8).requires_grad_()
        labels = torch.randint(50, (20,))
        loss, hits = Loss.apply(h, E, labels)
        loss.backward()
        mine, h.grad, E.grad = (h.grad, E.grad), None, None
        logits = h @ E.t()
        want = torch.nn.functional.cross_entropy(logits, labels)
        want.backward()
        self.near(loss, want)
        self.near(mine[0], h.grad)
        self.near(mine[1], E.grad)
        self.assertEqual(int(hits), int((logits.argmax(-1) == labels).sum()))


if __name__ == "__main__":
    unittest.main()
