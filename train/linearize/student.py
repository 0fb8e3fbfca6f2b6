"""The linearized model: the teacher's frozen weights, feature maps and window factors per layer, LoRA.
Parameters have upstream LoLCATs' names, so that a delta is a dict of them."""
import math

import torch
from torch import nn
from torch.nn.functional import pad

from . import attention

EPS = 1e-12
PARTS = "qkv"


def map_names(i):
    at = f"model.layers.{i}.self_attn."
    return at + "feature_map_q.mlp.layer", at + "feature_map_k.mlp.layer", at + "window_factors"


def lora_names(i, part):
    at = f"base_model.model.model.layers.{i}.self_attn.{part}_proj.lora_"
    return at + "A.default.weight", at + "B.default.weight"


def group_of(name):
    """What learning rates are given for."""
    return "lora" if ".lora_" in name else "factors" if name.endswith("window_factors") else "maps"


class Student:
    def __init__(self, llama, options, lora=None):
        """`options`: the config's `student`; `lora`: rank and alpha, None for none."""
        self.llama, self.options = llama, options
        self.window, self.sinks = options["window"], options["n_sink"]
        self.softmax = set(options["softmax_layers"])
        self.linear, self.affine = options["linear"], options["affine"]
        self.scale = lora["alpha"] / lora["rank"] if lora else 0
        self.parameters = {}
        n, D = llama.n_layers, llama.head_dim
        for i in range(n):
            if self.linear and i not in self.softmax:
                q, k, factor = map_names(i)
                eye = torch.eye(D).mul(options["init_scale"]).repeat(llama.heads, 1, 1)
                self.add(q, eye)
                self.add(k, eye.clone())
                self.add(factor, torch.full((1, llama.heads, 1, 1), float(options["init_factor"])))
            for part in PARTS + "o" if lora else "":
                rows, cols = self.shape(part)
                a, b = lora_names(i, part)
                self.add(a, torch.empty(lora["rank"], cols).uniform_(-1, 1) / math.sqrt(cols))
                self.add(b, torch.zeros(rows, lora["rank"]))

    def shape(self, part):
        d, D = self.llama.dim, self.llama.head_dim
        wide, narrow = self.llama.heads * D, self.llama.kv_heads * D
        return {"q": (wide, d), "k": (narrow, d), "v": (narrow, d), "o": (d, wide)}[part]

    def add(self, name, value):
        self.parameters[name] = nn.Parameter(value.to(self.llama.device))

    def load(self, values):
        """Takes over what both have."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                if name in values:
                    p.copy_(values[name])

    def state(self):
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def groups(self, rates):
        """-> optimizer groups, each with its own `rate`"""
        found = {}
        for name, p in self.parameters.items():
            found.setdefault(group_of(name), []).append(p)
        return [{"params": params, "rate": rates[kind]} for kind, params in found.items()]

    # ---- Forward

    def lora(self, i, parts):
        """-> a function from the inputs of the `parts`' matrices to what LoRA adds to their outputs"""
        if not self.scale:
            return None
        pairs = [[self.parameters[n] for n in lora_names(i, part)] for part in parts]

        def add(x):
            t = (x @ torch.cat([a for a, _ in pairs]).t() * self.scale).split(pairs[0][0].shape[0], 1)
            return torch.cat([y @ b.t() for y, (_, b) in zip(t, pairs)], 1)
        return add

    def attend(self, i, q, k, v):
        """-> attention's output [B, H, T, D]"""
        if i in self.softmax:
            return attention.softmax_attention(q, k, v)
        T, W = q.shape[2], self.window
        if T % W:
            q, k, v = (pad(x, (0, 0, 0, -T % W)) for x in (q, k, v))
        num, den = attention.window_sums(q, k, v, W, min(self.sinks, q.shape[2]))
        if self.linear and T > W:
            num, den = self.add_linear(i, q, k, v, num, den)
        return (num / den)[:, :, :T]

    def add_linear(self, i, q, k, v, num, den):
        """What attends to the keys that no window holds; before them only the window counts."""
        W = self.window
        gamma, far = self.far(i, q, k, v)
        return (torch.cat([num[:, :, :W], num[:, :, W:] * gamma + far[..., :-1]], 2),
                torch.cat([den[:, :, :W], den[:, :, W:] * gamma + far[..., -1:]], 2))

    def far(self, i, q, k, v):
        """-> gamma [H, 1, 1]; lambda times the linear sums [B, H, T - W, D + 1]"""
        map_q, map_k, factor = (self.parameters[n] for n in map_names(i))
        gamma = factor[0].sigmoid()
        fq, fk = attention.features(q, k, map_q, map_k, EPS)
        far = attention.far_sums(fq, fk, v, self.window, self.sinks)
        return gamma, far * (1 - gamma) if self.affine else far

    def layer(self, i, x):
        q, k, v = self.llama.qkv(i, x, self.lora(i, PARTS))
        return self.llama.after(i, x, self.attend(i, q, k, v), self.lora(i, "o"))

    def hidden(self, ids, recompute=False):
        """[B, T] -> [B, T, d]; `recompute`: keep only layers' inputs for the backward pass."""
        x = self.llama.start(ids)
        for i in range(self.llama.n_layers):
            if recompute and torch.is_grad_enabled():
                from torch.utils.checkpoint import checkpoint
                x = checkpoint(self.layer, i, x.requires_grad_(), preserve_rng_state=False)
            else:
                x = self.layer(i, x)
        return self.llama.end(x)


def teacher_layer(llama, i, x):
    q, k, v = llama.qkv(i, x)
    return llama.after(i, x, attention.softmax_attention(q, k, v))


def teacher_hidden(llama, ids):
    x = llama.start(ids)
    for i in range(llama.n_layers):
        x = teacher_layer(llama, i, x)
    return llama.end(x)
