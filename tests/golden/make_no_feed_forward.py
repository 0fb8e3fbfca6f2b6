#!/usr/bin/env python3
"""Remakes tests/data/models/no_feed_forward: a tiny random model of mixers alone, without positions and
feed-forwards, in the layout of train/, and its logits by the formulas in float64.

    python3 tests/golden/make_no_feed_forward.py      (needs numpy, gguf, safetensors)

The file is written by train.export; the mixers are those of make_based.py and make_delta.py, which are
written from the papers, and Hedgehog's below."""
import json
import os
import sys
import tempfile

import numpy as np

from make_based import OUT, ROOT, attention, base_conv, linear_attention, rms, stream
from make_delta import delta_layer

sys.path.insert(0, ROOT)
from train.export import export  # noqa: E402

NAME, D, V, T, EPS = "no_feed_forward", 24, 56, 130, 1e-5
LAYERS = [{"mixer": "short_conv", "taps": 3, "inner": 20},
          {"mixer": "based_taylor", "heads": 2, "features": 5},
          {"mixer": "softmax", "heads": 2, "window": 9},
          {"mixer": "gated_delta_net", "heads": 2, "key_dim": 10, "value_dim": 6, "gate": True},
          {"mixer": "hedgehog", "heads": 2, "features": 7}]
PARTS = [{"inp.weight": (40, D), "inp.bias": (40,), "conv": (20, 3), "conv_bias": (20,),
          "out.weight": (D, 20)},
         {"q.weight": (10, D), "k.weight": (10, D), "v.weight": (D, D), "o.weight": (D, D)},
         {x + ".weight": (D, D) for x in "qkvo"},
         {"qkv.weight": (52, D), "conv": (52, 4), "beta.weight": (2, D), "alpha.weight": (2, D),
          "A_log": (2,), "dt": (2,), "gate.weight": (12, D), "norm": (6,), "o.weight": (D, 12)},
         {**{x + ".weight": (D, D) for x in "qkvo"}, "map_q": (2, 12, 7), "map_k": (2, 12, 7)}]


def weights():
    shapes = {"embed.weight": (V, D), "norm.weight": (D,)}
    for i, parts in enumerate(PARTS):
        shapes[f"layers.{i}.norm.weight"] = (D,)
        shapes.update({f"layers.{i}.mixer.{n}": s for n, s in parts.items()})
    w = {}
    for name, shape in shapes.items():
        x = stream(NAME, name).standard_normal(shape)
        if "norm" in name:
            x = 1 + 0.3 * x
        elif len(shape) == 1 or "conv" in name:
            x = 0.5 * x
        else:
            x = (0.4 if "embed" in name else 1.3 * shape[-1] ** -0.5) * x
        w[name] = x.astype(np.float16).astype(np.float32)
    return w


def hedgehog(w, x):
    n = len(x)
    q, k, v = (np.moveaxis((x @ w[p + ".weight"].T).reshape(n, 2, 12), 1, 0) for p in "qkv")

    def features(y, m):
        e = [np.exp(u) for u in (y @ m, -(y @ m))]
        return np.concatenate([p / p.sum(-1, keepdims=True) for p in e], -1)

    a = np.tril(features(q, w["map_q"]) @ np.swapaxes(features(k, w["map_k"]), 1, 2))
    y = a @ v / (a.sum(-1, keepdims=True) + 1e-12)
    return np.moveaxis(y, 0, 1).reshape(n, -1) @ w["o.weight"].T


def mix(i, w, x):
    if i == 0:
        upstream = {"in_proj.weight": w["inp.weight"], "in_proj.bias": w["inp.bias"],
                    "conv.conv.weight": w["conv"][:, None], "conv.conv.bias": w["conv_bias"],
                    "out_proj.weight": w["out.weight"]}
        return base_conv(None, upstream, x, [])
    if i == 1:
        upstream = {f"proj_{p}.weight": w[p + ".weight"] for p in "qkv"}
        upstream["out_proj.weight"] = w["o.weight"]
        return linear_attention(dict(num_heads=2, feature_dim=5), upstream, x, [])
    if i == 2:
        upstream = {"Wqkv.weight": np.concatenate([w[p + ".weight"] for p in "qkv"]),
                    "out_proj.weight": w["o.weight"]}
        return attention(dict(n_head=2, n_embd=D, rotary_emb_fraction=0, scale_attn_weights=True,
                              scale_attn_by_inverse_layer_idx=False),
                         dict(window_size=16), i, upstream, x)
    if i == 3:
        upstream = {f"{n}_proj.weight": w[m + ".weight"]
                    for n, m in (("b", "beta"), ("a", "alpha"), ("g", "gate"), ("o", "o"))}
        for p, rows in (("q", slice(0, 20)), ("k", slice(20, 40)), ("v", slice(40, 52))):
            upstream[p + "_proj.weight"] = w["qkv.weight"][rows]
            upstream[p + "_conv1d.weight"] = w["conv"][rows][:, None]
        upstream.update({"A_log": w["A_log"], "dt_bias": w["dt"], "o_norm.weight": w["norm"]})
        c = dict(model_type="gated_deltanet", num_heads=2, num_v_heads=2, head_dim=10, expand_v=0.6,
                 use_short_conv=True, allow_neg_eigval=False, use_gate=True, norm_eps=EPS,
                 output_gate_activation="swish")
        return delta_layer(c, upstream, x)
    return hedgehog(w, x)


def logits_of(w, ids):
    w = {n: a.astype(np.float64) for n, a in w.items()}
    x = w["embed.weight"][ids]
    for i in range(len(LAYERS)):
        at = f"layers.{i}.mixer."
        part = {n[len(at):]: a for n, a in w.items() if n.startswith(at)}
        x = x + mix(i, part, rms(x, w[f"layers.{i}.norm.weight"], EPS))
    return rms(x, w["norm.weight"], EPS) @ w["embed.weight"].T


if __name__ == "__main__":
    w, path = weights(), os.path.join(OUT, NAME)
    with tempfile.TemporaryDirectory() as run:
        np.savez(os.path.join(run, "weights.npz"), **w)
        with open(os.path.join(run, "config.json"), "w") as f:
            json.dump(dict(name=NAME, dtype="f16", model=dict(
                vocab=V, dim=D, feed_forward=0, context=256, layers=LAYERS)), f)
        export(run, path + ".gguf")
    ids = stream(NAME, "ids").integers(0, V, T)
    logits = logits_of(w, ids)
    with open(path + ".ids", "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    np.save(path + ".logits.npy", logits.astype(np.float32))
    print(f"{NAME} T {T} rms {np.sqrt((logits ** 2).mean()):.2f} {os.path.getsize(path + '.gguf')} bytes")
