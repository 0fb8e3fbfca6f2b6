#!/usr/bin/env python3
"""Remakes tests/data/models/{delta,gated_delta}_*: tiny random delta-rule models in the layout of
flash-linear-attention, and their logits.

    python3 tests/golden/make_delta.py [NAME ...]      (needs numpy, safetensors, gguf)

NAME.gguf       exported by this repository's `export` as bf16 (the weights are bf16 numbers)
NAME.ids        token ids
NAME.logits.npy float32 [T, vocab], computed in float64 by the code below, one token at a time. It
                follows fla/layers/delta_net.py, gated_deltanet.py and attn.py of version 0.6 and
                agrees with logits of that package within its float32 noise (1e-5 of their RMS).
NAME.npy        (in tests/data/delta_states) float32 [delta layers, heads * K * V]: the state after
                4,096 tokens of `long_ids`, in float64 as well
Weights come from NumPy's PCG64, one stream per tensor. They are large enough that attention and
decay are far from uniform and logits have RMS near 2.
"""
import json
import os
import subprocess
import sys
import tempfile
import zlib

import numpy as np
from safetensors.numpy import save_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "tests", "data", "models")

DELTA = dict(model_type="delta_net", hidden_size=32, num_hidden_layers=2, num_heads=2,
             expand_k=1.0, expand_v=1.0, use_short_conv=True, conv_size=4, use_beta=True,
             allow_neg_eigval=False, use_gate=False, qk_norm="l2", qk_activation="silu",
             norm_eps=1e-6, intermediate_size=48, hidden_act="swish", vocab_size=80, attn=None,
             tie_word_embeddings=False, max_position_embeddings=512)
GATED = {**DELTA, "model_type": "gated_deltanet", "head_dim": 16, "num_v_heads": None,
         "expand_v": 2.0, "use_gate": True, "output_gate_activation": "swish"}
WINDOW = dict(layers=[1], num_heads=4, num_kv_heads=2, window_size=13, rope_theta=500.0)

MODELS = {
    "delta_relu_sum_no_conv": {**DELTA, "qk_activation": "relu", "qk_norm": "sum",
                               "use_short_conv": False, "allow_neg_eigval": True},
    "delta_identity_sum_wide": {**DELTA, "qk_activation": "identity", "qk_norm": "sum",
                                "use_beta": False, "expand_v": 2.0, "conv_size": 3,
                                "use_gate": True, "norm_eps": 1e-5},
    "delta_elu_twice_beta": {**DELTA, "qk_activation": "elu", "use_beta": False, "conv_size": 2,
                             "allow_neg_eigval": True, "tie_word_embeddings": True},
    "delta_odd_heads": {**DELTA, "hidden_size": 42, "num_heads": 3, "expand_k": 0.5,
                        "expand_v": 1.5, "qk_activation": "identity", "use_gate": True},
    "delta_hybrid_list": {**DELTA, "num_hidden_layers": 3, "attn": [
        WINDOW, {**WINDOW, "layers": [2], "window_size": None, "qkv_bias": True}]},
    "delta_hybrid_shapes": {**DELTA, "hidden_size": 48, "num_hidden_layers": 4, "attn": [
        {**WINDOW, "layers": [3]}, {"layers": [0], "num_heads": 2, "num_kv_heads": 1,
                                    "qkv_bias": True, "window_size": 70},
        {**WINDOW, "layers": [1], "num_heads": 8, "num_kv_heads": 8, "window_size": None}]},
    "delta_conv_bias_powlu": {**DELTA, "conv_bias": True, "hidden_act": "powlu",
                              "qk_activation": "relu"},
    "gated_delta_groups": {**GATED, "num_v_heads": 6, "head_dim": 11, "expand_v": 1.75,
                           "output_gate_activation": "sigmoid", "allow_neg_eigval": True},
    "gated_delta_hybrid": {**GATED, "num_hidden_layers": 3, "use_gate": False, "head_dim": 20,
                           "expand_v": 1.0, "use_short_conv": False,
                           "attn": {**WINDOW, "layers": [0, 2]}},
}
T, LONG = 130, 4096


def long_ids(vocab):
    """As tests/test_delta.c makes them."""
    return np.array([(t * t * 7 + t * 3 + t // 11) % vocab for t in range(LONG)])


def stream(name, tensor):
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()),
                                                zlib.crc32(tensor.encode())]))


def bf16(x):
    """The nearest numbers that bf16 can hold."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000
    return bits.astype(np.uint32).view(np.float32)


def dims(c):
    if c["model_type"] == "gated_deltanet":
        K = c["head_dim"]
        return c["num_heads"], c["num_v_heads"] or c["num_heads"], K, int(K * c["expand_v"])
    H = c["num_heads"]
    return (H, H, round(c["hidden_size"] * c["expand_k"]) // H,
            round(c["hidden_size"] * c["expand_v"]) // H)


def entry_of(c, i):
    attn = c["attn"] or []
    for e in attn if isinstance(attn, list) else [attn]:
        if i in e["layers"]:
            return e
    return None


def shapes(c):
    D, I, (H, HV, K, V), W = c["hidden_size"], c["intermediate_size"], dims(c), c["conv_size"]
    out = {"model.embeddings.weight": (c["vocab_size"], D), "model.norm.weight": (D,)}
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (c["vocab_size"], D)
    for i in range(c["num_hidden_layers"]):
        at, e = f"model.layers.{i}.", entry_of(c, i)
        out[at + "attn_norm.weight"] = out[at + "mlp_norm.weight"] = (D,)
        out[at + "mlp.gate_proj.weight"] = out[at + "mlp.up_proj.weight"] = (I, D)
        out[at + "mlp.down_proj.weight"] = (D, I)
        at += "attn."
        if e:
            kv = D // e["num_heads"] * (e.get("num_kv_heads") or e["num_heads"])
            for x, n in (("q", D), ("k", kv), ("v", kv)):
                out[f"{at}{x}_proj.weight"] = (n, D)
                if e.get("qkv_bias"):
                    out[f"{at}{x}_proj.bias"] = (n,)
            out[at + "o_proj.weight"] = (D, D)
            continue
        for x, n in (("q", H * K), ("k", H * K), ("v", HV * V)):
            out[f"{at}{x}_proj.weight"] = (n, D)
            if c["use_short_conv"]:
                out[f"{at}{x}_conv1d.weight"] = (n, 1, W)
                if c.get("conv_bias"):  # an argument of upstream's layers, which no config sets
                    out[f"{at}{x}_conv1d.bias"] = (n,)
        gated = c["model_type"] == "gated_deltanet"
        if gated or c["use_beta"]:
            out[at + "b_proj.weight"] = (HV, D)
        if gated:
            out[at + "a_proj.weight"] = (HV, D)
            out[at + "A_log"] = out[at + "dt_bias"] = (HV,)
        if c["use_gate"]:
            out[at + "g_proj.weight"] = (HV * V, D)
        out[at + "o_norm.weight"] = (V,)
        out[at + "o_proj.weight"] = (D, HV * V)
    return out


def random_weights(name, c):
    w = {}
    for tensor, shape in shapes(c).items():
        x = stream(name, tensor).standard_normal(shape)
        if "norm" in tensor:
            x = 1 + 0.3 * x
        elif tensor.endswith("A_log"):
            x = 0.7 * x
        elif tensor.endswith("dt_bias"):
            x = -3 + x
        elif "conv1d" in tensor:
            x = 0.8 * x
        elif "embeddings" in tensor:
            x = (0.3 if c["tie_word_embeddings"] else 1.0) * x
        elif x.ndim == 1:
            x = 0.3 * x
        else:
            x = 1.5 * x / np.sqrt(shape[-1])
        w[tensor] = bf16(x)
    return w


# ---- The reference ------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def powlu(x):
    p = np.where(x > 0, 3 / (np.sqrt(np.maximum(x, 0)) + 1), 1)
    return np.where(x > 0, np.maximum(x, 1e-300) ** p, x) * sigmoid(x)


def convolve(x, w):
    """x [T, C], w [C, 1, W]: the last tap is the current token."""
    W = w.shape[2]
    padded = np.concatenate([np.zeros((W - 1, x.shape[1])), x])
    return sum(padded[j:j + len(x)] * w[:, 0, j] for j in range(W))


def delta_layer(c, w, x, states=None):
    H, HV, K, V = dims(c)
    gated = c["model_type"] == "gated_deltanet"
    activation = "silu" if gated else c["qk_activation"]
    n = len(x)
    parts = []
    for part in "qkv":
        y = x @ w[part + "_proj.weight"].T
        if c["use_short_conv"]:
            y = convolve(y, w[part + "_conv1d.weight"]) + w.get(part + "_conv1d.bias", 0)
        parts.append(silu(y) if part == "v" or activation == "silu" else y)
    q, k = (y.reshape(n, H, K) for y in parts[:2])
    v = parts[2].reshape(n, HV, V)
    if activation == "relu":
        q, k = np.maximum(q, 0), np.maximum(k, 0)
    elif activation == "elu":
        q, k = (np.where(y > 0, y + 1, np.exp(np.minimum(y, 0))) for y in (q, k))
    if not gated and c["qk_norm"] == "sum":
        q, k = (y / np.maximum(np.abs(y).sum(-1, keepdims=True), 1e-6) for y in (q, k))
    else:
        q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
    q = q / np.sqrt(K)
    beta, decay = np.ones((n, HV)), np.ones((n, HV))
    if gated or c["use_beta"]:
        beta = sigmoid(x @ w["b_proj.weight"].T)
    if c["allow_neg_eigval"]:
        beta = 2 * beta
    if gated:
        softplus = np.logaddexp(0, x @ w["a_proj.weight"].T + w["dt_bias"])
        decay = np.exp(-np.exp(w["A_log"]) * softplus)
    o, state = np.zeros((n, HV, V)), np.zeros((HV, K, V))
    if states is not None:
        states.append(state)
    for j in range(HV):
        S, h = state[j], j // (HV // H)
        for t in range(n):
            S *= decay[t, j]
            d = beta[t, j] * (v[t, j] - S.T @ k[t, h])
            S += np.outer(k[t, h], d)
            o[t, j] = S.T @ q[t, h]
    o = rms(o, w["o_norm.weight"], c["norm_eps"])
    if c["use_gate"]:
        gate = (x @ w["g_proj.weight"].T).reshape(n, HV, V)
        o *= sigmoid(gate) if gated and c["output_gate_activation"] == "sigmoid" else silu(gate)
    return o.reshape(n, HV * V) @ w["o_proj.weight"].T


def rotate(x, theta):
    n, _, d = x.shape
    angle = np.arange(n)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def softmax_layer(e, w, x):
    n, D = x.shape
    H = e["num_heads"]
    KV, d = e.get("num_kv_heads") or H, D // H
    q, k, v = (x @ w[p + "_proj.weight"].T + w.get(p + "_proj.bias", 0) for p in "qkv")
    theta = e.get("rope_theta", 10000.0)
    q, k = rotate(q.reshape(n, H, d), theta), rotate(k.reshape(n, KV, d), theta)
    v = v.reshape(n, KV, d)
    back = np.arange(n)[:, None] - np.arange(n)[None]
    seen = (back >= 0) & (back < (e.get("window_size") or n))
    o = np.empty((n, H, d))
    for h in range(H):
        g = h // (H // KV)
        s = np.where(seen, q[:, h] @ k[:, g].T / np.sqrt(d), -np.inf)
        s = np.exp(s - s.max(-1, keepdims=True))
        o[:, h] = s / s.sum(-1, keepdims=True) @ v[:, g]
    return o.reshape(n, D) @ w["o_proj.weight"].T


def logits_of(c, weights, ids, states=None):
    w = {n: np.asarray(x, np.float64) for n, x in weights.items()}
    h = w["model.embeddings.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        at, e = f"model.layers.{i}.", entry_of(c, i)
        layer = {n[len(at) + 5:]: x for n, x in w.items() if n.startswith(at + "attn.")}
        x = rms(h, w[at + "attn_norm.weight"], c["norm_eps"])
        h = h + (softmax_layer(e, layer, x) if e else delta_layer(c, layer, x, states))
        x = rms(h, w[at + "mlp_norm.weight"], c["norm_eps"])
        gate, up = (x @ w[f"{at}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        act = powlu if c["hidden_act"] == "powlu" else silu
        h = h + (act(gate) * up) @ w[at + "mlp.down_proj.weight"].T
    head = "model.embeddings.weight" if c["tie_word_embeddings"] else "lm_head.weight"
    return rms(h, w["model.norm.weight"], c["norm_eps"]) @ w[head].T


def build(name):
    c = MODELS[name]
    weights = random_weights(name, c)
    ids = stream(name, "ids").integers(0, c["vocab_size"], T)
    path = os.path.join(OUT, name + ".gguf")
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, name)
        os.mkdir(source)
        save_file(weights, os.path.join(source, "model.safetensors"))
        with open(os.path.join(source, "config.json"), "w") as f:
            json.dump(c, f)
        subprocess.run([sys.executable, "-m", "export", source, "-o", path, "--type", "bf16"],
                       cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    logits = logits_of(c, weights, ids)
    with open(os.path.join(OUT, name + ".ids"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    np.save(os.path.join(OUT, name + ".logits.npy"), logits.astype(np.float32))
    states = []
    logits_of(c, weights, long_ids(c["vocab_size"]), states)
    states = np.array([s.ravel() for s in states], np.float32)
    np.save(os.path.join(ROOT, "tests", "data", "delta_states", name + ".npy"), states)
    print(f"{name:24s} T {T}  rms {np.sqrt((logits ** 2).mean()):.2f}  "
          f"{os.path.getsize(path) >> 10} KiB", flush=True)


if __name__ == "__main__":
    unknown = [n for n in sys.argv[1:] if n not in MODELS]
    if unknown:
        sys.exit(f"no model {' '.join(unknown)}; there are {' '.join(MODELS)}")
    for n in sys.argv[1:] or MODELS:
        build(n)
