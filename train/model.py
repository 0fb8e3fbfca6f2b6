"""The model: embedding, layers of norm + mixer and norm + gated feed-forward, norm, output."""
import torch
import torch.nn.functional as F
from torch import nn

from .mixers import Linear, make_mixer

NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt() * self.weight


class FeedForward(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.gate, self.up, self.down = Linear(dim, inner), Linear(dim, inner), Linear(inner, dim)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self, dim, options, inner):
        super().__init__()
        self.norm, self.mixer = RMSNorm(dim), make_mixer(dim, options)
        self.ff_norm = RMSNorm(dim) if inner else None
        self.ff = FeedForward(dim, inner) if inner else None

    def forward(self, x):
        x = x + self.mixer(self.norm(x))
        return x + self.ff(self.ff_norm(x)) if self.ff is not None else x


class Model(nn.Module):
    """`options` is the config's `model`: vocab, dim, feed_forward (0: none), layers."""

    def __init__(self, options):
        super().__init__()
        dim = options["dim"]
        self.embed = nn.Embedding(options["vocab"], dim)
        self.layers = nn.ModuleList(Layer(dim, dict(o), options.get("feed_forward", 0))
                                    for o in options["layers"])
        self.norm = RMSNorm(dim)
        nn.init.normal_(self.embed.weight, std=0.02)

    def hidden(self, ids):
        """[B, T] -> [B, T, dim], normalized: what the output matrix (the embedding) multiplies."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward(self, ids):
        return self.hidden(ids) @ self.embed.weight.t()


def is_matrix(name, array):
    """Rounded to the file's type; vectors, convolution taps and feature maps stay float32."""
    return array.ndim == 2 and not name.endswith(".conv")
