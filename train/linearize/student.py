"""The linearized model: the teacher's frozen weights, feature maps and window factors per layer, LoRA.
Parameters have upstream LoLCATs' names, so that a delta is a dict of them."""
import math

import torch
from torch import nn
from torch.nn.functional import pad

from . import attention
from .llama import rotate

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
        self.llama = llama
        self.window, self.sinks = options["window"], options["n_sink"]
        self.softmax = set(options["softmax_layers"])
        self.linear, self.affine = options["linear"], options["affine"]
        self.length, self.turns = options.get("trained_length", 0), None
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

    def own(self, i):
        """-> layer i's: its maps and factor if it is linearized, and for each matrix its LoRA"""
        def of(names):
            return tuple(self.parameters[n] for n in names)

        out = {part: of(lora_names(i, part)) for part in PARTS + "o"} if self.scale else {}
        out["softmax"] = i in self.softmax
        if self.linear and not out["softmax"]:
            out["maps"] = of(map_names(i))
        return out

    def lora(self, own, parts):
        """-> a function from the inputs of the `parts`' matrices to what LoRA adds to their outputs"""
        if not self.scale:
            return None
        pairs = [own[part] for part in parts]

        def add(x):
            t = (x @ torch.cat([a for a, _ in pairs]).t() * self.scale).split(pairs[0][0].shape[0], 1)
            return torch.cat([y @ b.t() for y, (_, b) in zip(t, pairs)], 1)
        return add

    def attend(self, own, q, k, v):
        """-> attention's output [B, H, T, D]"""
        if own["softmax"]:
            return self.llama.softmax(q, k, v)
        T, W = q.shape[2], self.window
        if T % W:
            q, k, v = (pad(x, (0, 0, 0, -T % W)) for x in (q, k, v))
        num, den = attention.window_sums(q, k, v, W, min(self.sinks, q.shape[2]))
        if self.linear and T > W:
            # Before the first key that no window holds, only the window counts.
            near, far = self.behind_window(own["maps"], q, k, v, num[:, :, W:], den[:, :, W:])
            num, den = torch.cat([num[:, :, :W], near], 2), torch.cat([den[:, :, :W], far], 2)
        return (num / den)[:, :, :T]

    def behind_window(self, maps, q, k, v, num, den):
        """The window's sums with the linear ones, of positions from `window` on."""
        map_q, map_k, factor = maps
        gamma = factor[0].sigmoid()
        if self.turns:
            q, k = (rotate(x, cos[:x.shape[2]], sin[:x.shape[2]]) for x, (cos, sin) in zip((q, k), self.turns))
        fq, fk = attention.features(q, k, map_q, map_k, EPS)
        far = attention.far_sums(fq, fk, v, self.window, self.sinks)
        if self.length:
            n = torch.arange(1, far[0].shape[2] + 1, device=q.device) - self.sinks
            share = (self.length / n.clamp(min=self.length))[:, None]
            far = [x * share for x in far]
        num_far, den_far = (x * (1 - gamma) for x in far) if self.affine else far
        return num * gamma + num_far, den * gamma + den_far

    def start(self, ids, first):
        """As Llama.start. With a trained length L, maps see queries at L - 1 and keys at L/2 - 1 at most: later
        ones are turned back to these."""
        x = self.llama.start(ids, first)
        if self.length:
            at = torch.arange(first, first + ids.shape[1] + self.window, device=x.device)
            cos, sin = self.llama.table
            back = [(at - last).clamp(0, len(cos) - 1) for last in (self.length - 1, self.length // 2 - 1)]
            self.turns = [(cos[d], -sin[d]) for d in back]
        return x

    def layer(self, weights, own, x):
        q, k, v = self.llama.qkv(weights, x, self.lora(own, PARTS))
        return self.llama.after(weights, x, self.attend(own, q, k, v), self.lora(own, "o"))

    def hidden(self, ids, recompute=False, first=0):
        """[B, T], at positions `first` and on -> [B, T, d]; `recompute`: keep only layers' inputs for the backward pass."""
        x, learning = self.start(ids, first), torch.is_grad_enabled()
        # Checkpoints need a gradient of their inputs, and layers of one kind are compiled once.
        x.requires_grad_(learning)
        for i, weights in enumerate(self.llama.layers):
            if recompute and learning:
                from torch.utils.checkpoint import checkpoint
                x = checkpoint(self.layer, weights, self.own(i), x, use_reentrant=True, preserve_rng_state=False)
            else:
                x = self.layer(weights, self.own(i), x)
        return self.llama.end(x)
