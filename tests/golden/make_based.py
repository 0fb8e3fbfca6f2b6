#!/usr/bin/env python3
"""Remakes the BASED models of tests/data/models: tiny random checkpoints in upstream's layout, their
export, and logits by the formulas in float64 (HazyResearch/based, arXiv 2402.18668).

    python3 tests/golden/make_based.py [NAME ...]      (needs numpy, gguf, safetensors; torch for .bin)

NAME.gguf       the checkpoint exported by this repository's `export`
NAME.ids        token ids
NAME.logits.npy float32 [T, rows]
../based_states/NAME.npy  float32 [1, n]: the states of all layers after the 4,096 ids of long_ids, as
                docs/mixers.md lays them out
Upstream itself is no oracle here: its sliding layers round to bfloat16. Everything below is written
from the definitions (quadratic attention, explicit sums over the taps), not as the engine computes.
Frequencies of the rotary positions are upstream's float32, their angles float64.
"""
import json
import os
import subprocess
import sys
import tempfile
import zlib

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "tests", "data", "models")
STATES = os.path.join(ROOT, "tests", "data", "based_states")
T, LONG = 130, 4096

BASE = dict(model_type="gpt2", vocab_size=61, pad_vocab_size_multiple=8, n_positions=0,
            layer_norm_epsilon=1e-5, rms_norm=True, activation_function="swiglu",
            rotary_emb_fraction=1, qkv_proj_bias=False, out_proj_bias=False, mlp_fc1_bias=False,
            mlp_fc2_bias=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
MIXERS = "based.models.mixers."


def conv(**more):
    """`kernel_sizes` is upstream's typo, which nothing reads; kernel_size counts."""
    return {**dict(_target_=MIXERS + "convolution.BaseConv", l_max=2048, use_bias=True,
                   expand_proj=4, kernel_sizes=9), **more}


def taylor(heads, features=16, **more):
    return dict(_target_=MIXERS + "linear_attention.LinearAttention", l_max=2048,
                feature_map=dict(_target_=MIXERS + "linear_attention.TaylorExp", input_dim=features),
                num_heads=heads, feature_dim=features, **more)


def slide(window):
    return dict(_target_=MIXERS + "slide_attention.SlidingAttention", window_size=window,
                num_heads=99, causal=True)


# name: (config, extra: "h" the feed-forward's width, "dtype", "file", "prefix", "conv_bias")
MODELS = {
    "based_hybrid": (dict(BASE, n_embd=32, n_layer=5, n_head=2, mixer=conv(), alt_mixer=taylor(
        2, parallel_implementation="fla_chunk"), alt_mixer_2=slide(14), alt_mixer_layers=[1, 2, 4],
        alt_mixer_2_layers=[2], fixed_decay=True), dict(h=48, dtype="float16", prefix="model.",
                                                        file="bin")),
    "based_conv_4": (dict(BASE, n_embd=20, n_layer=2, n_head=3, mixer=conv(
        expand_proj=2, kernel_size=4, use_bias=False, use_cuda=True)), dict(h=40, conv_bias=True)),
    "based_conv_wide": (dict(BASE, n_embd=24, n_layer=2, n_head=4, mixer=conv(
        expand_proj=6, kernel_size=2, use_bias=True)), dict(h=32, dtype="float16")),
    "based_taylor_8": (dict(BASE, n_embd=36, n_layer=2, n_head=3, tie_word_embeddings=False,
                            mixer=taylor(3, 8)), dict(h=40, dtype="float16")),
    "based_taylor_16": (dict(BASE, n_embd=32, n_layer=2, n_head=2, mixer=taylor(
        2, head_dim=20, eps=0.01, parallel_implementation="linear")), dict(h=40)),
    "based_slide_gqa": (dict(BASE, n_embd=28, n_layer=2, n_head=2, n_head_kv=1, mixer=slide(33),
                             rotary_emb_fraction=0.5, rotary_emb_interleaved=True,
                             rotary_emb_base=1000.0, qkv_proj_bias=True, out_proj_bias=True,
                             mlp_fc1_bias=True, mlp_fc2_bias=True, activation_function="geglu"),
                        dict(h=40)),
    "based_slide_112": (dict(BASE, n_embd=112, n_layer=1, n_head=1, mixer=None,
                             alt_mixer_2=slide(2), alt_mixer_2_layers=[0],
                             activation_function="glu"), dict(h=24, dtype="float16")),
    "attn_odd_rotary": (dict(BASE, n_embd=70, n_layer=2, n_head=1, rotary_emb_fraction=0.5,
                             pad_vocab_size_multiple=16), dict(h=40, dtype="float16", file="bin")),
    "based_alt_scaled": (dict(BASE, n_embd=32, n_layer=3, n_head=2, alt_mixer=taylor(4, 5),
                              alt_mixer_layers=[1], mlp_type="alt", scale_attn_weights=False,
                              scale_attn_by_inverse_layer_idx=True, rotary_emb_fraction=0.0,
                              layer_norm_epsilon=1e-3), dict(h=32, gain=0.7)),
}


def stream(name, tensor):
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()),
                                                zlib.crc32(tensor.encode())]))


def slot(c, i):
    key = ("alt_mixer_2" if i in c.get("alt_mixer_2_layers", ()) else
           "alt_mixer" if i in c.get("alt_mixer_layers", ()) else "mixer")
    return c.get(key)


def kind(m):
    return m["_target_"].rpartition(".")[2] if m else "MHA"


def shapes(c, x):
    D, h = c["n_embd"], x["h"]
    rows = -(-c["vocab_size"] // c["pad_vocab_size_multiple"]) * c["pad_vocab_size_multiple"]
    out = {"transformer.embeddings.word_embeddings.weight": (rows, D)}
    for i in range(c["n_layer"]):
        m, at = slot(c, i), f"transformer.layers.{i}."
        mixer = {}
        if kind(m) == "BaseConv":
            e, k = m["expand_proj"] * D // 2, m.get("kernel_size", 3)
            mixer = {"in_proj.weight": (2 * e, D), "out_proj.weight": (D, e),
                     "conv.conv.weight": (e, 1, k)}
            if m["use_bias"]:
                mixer.update({"in_proj.bias": (2 * e,), "out_proj.bias": (D,)})
            if x.get("conv_bias"):
                mixer["conv.conv.bias"] = (e,)
        elif kind(m) == "LinearAttention":
            H, f = m["num_heads"], m["feature_dim"]
            v = H * m.get("head_dim", D // H)
            mixer = {"proj_q.weight": (H * f, D), "proj_k.weight": (H * f, D),
                     "proj_v.weight": (v, D), "out_proj.weight": (D, v)}
        else:
            H, KV = c["n_head"], c.get("n_head_kv", c["n_head"])
            mixer = {"Wqkv.weight": ((H + 2 * KV) * (D // H), D), "out_proj.weight": (D, D)}
            if c["qkv_proj_bias"]:
                mixer.update({"Wqkv.bias": ((H + 2 * KV) * (D // H),), "out_proj.bias": (D,)})
        alt = c.get("mlp_type") == "alt"
        mlp = {"fc1.weight": (h if alt else 2 * h, D), "fc2.weight": (D, h)}
        if alt:
            mlp["fc3.weight"] = (h, D)
        if c["mlp_fc1_bias"]:
            mlp.update({"fc1.bias": (2 * h,), "fc2.bias": (D,)})
        out.update({f"{at}mixer.{n}": s for n, s in mixer.items()})
        out.update({f"{at}mlp.{n}": s for n, s in mlp.items()})
        out[at + "norm1.weight"] = out[at + "norm2.weight"] = (D,)
    out["transformer.ln_f.weight"] = (D,)
    if not c.get("tie_word_embeddings", True):
        out["lm_head.weight"] = (rows, D)
    return out


def weights(name, c, x):
    w = {}
    for tensor, shape in shapes(c, x).items():
        v = stream(name, tensor).standard_normal(shape)
        if "norm" in tensor or "ln_f" in tensor:
            v = 1.0 + 0.3 * v
        elif len(shape) == 1:
            v = 0.3 * v
        elif len(shape) == 3:
            v = 0.7 * v
        elif "word_embeddings" in tensor or "lm_head" in tensor:
            v = 0.4 * v
        else:
            gain = 2.0 if "proj_q" in tensor or "proj_k" in tensor else x.get("gain", 1.3)
            v = gain * v / np.sqrt(shape[1])
        w[tensor] = v.astype(x.get("dtype", "float32"))
    return w


# ---- The formulas, float64 ----------------------------------------

def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    from math import erf, sqrt
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def rms(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def base_conv(m, w, x, states):
    z = x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0)
    a, gate = np.split(z, 2, axis=1)
    taps = w["conv.conv.weight"][:, 0, :]
    K = taps.shape[1]
    states.append(a[len(a) - (K - 1):])
    c = np.zeros_like(a) + w.get("conv.conv.bias", 0)
    for j in range(K):  # tap j multiplies the input K - 1 - j tokens back
        back = K - 1 - j
        c[back:] += taps[:, j] * a[:len(a) - back]
    return (silu(c) * gate) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0)


def linear_attention(m, w, x, states):
    H, f, n = m["num_heads"], m["feature_dim"], len(x)
    eps = 1e-6 if m.get("parallel_implementation", "").startswith("fla") else m.get("eps", 1e-12)
    q, k, v = (np.moveaxis((x @ w[f"proj_{p}.weight"].T).reshape(n, H, -1), 1, 0) for p in "qkv")
    y = np.empty_like(v)
    for i in range(0, n, 256):  # rows of the quadratic form
        s = q[:, i:i + 256] @ np.swapaxes(k, 1, 2) / np.sqrt(f)
        a = np.tril(1 + s + s * s / 2, i)
        y[:, i:i + 256] = a @ v / (a.sum(-1, keepdims=True) + eps)
    pairs = [k[:, :, a] * k[:, :, b] for a in range(f) for b in range(a, f)]
    psi = np.concatenate([np.ones((H, n, 1)), k, np.stack(pairs, -1)], -1)
    states += [np.swapaxes(psi, 1, 2) @ v, psi.sum(1)]
    return np.moveaxis(y, 0, 1).reshape(n, -1) @ w["out_proj.weight"].T


def rotate(c, x):
    """x [T, heads, head_dim]; the first dimensions of a head turn, one pair per frequency."""
    width = int(c["rotary_emb_fraction"] * x.shape[2])
    if not width:
        return x
    base = np.float32(c.get("rotary_emb_base", 10000.0))
    freq = 1 / base ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    assert freq.dtype == np.float32
    angle = np.arange(len(x))[:, None, None] * freq.astype(np.float64)
    cos, sin, half = np.cos(angle), np.sin(angle), len(freq)
    first, second = slice(0, half), slice(half, 2 * half)
    if c.get("rotary_emb_interleaved"):
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    y = x.copy()
    y[:, :, first] = x[:, :, first] * cos - x[:, :, second] * sin
    y[:, :, second] = x[:, :, first] * sin + x[:, :, second] * cos
    return y


def attention(c, m, layer, w, x):
    H, KV, n = c["n_head"], c.get("n_head_kv", c["n_head"]), len(x)
    d = c["n_embd"] // H
    z = x @ w["Wqkv.weight"].T + w.get("Wqkv.bias", 0)
    q, k, v = (z[:, i * d:j * d].reshape(n, -1, d)
               for i, j in ((0, H), (H, H + KV), (H + KV, H + 2 * KV)))
    q, k = rotate(c, q), rotate(c, k)
    k, v = np.repeat(k, H // KV, axis=1), np.repeat(v, H // KV, axis=1)
    scale = d ** -0.5 if c["scale_attn_weights"] else 1.0
    if c["scale_attn_by_inverse_layer_idx"]:
        scale /= layer + 1
    left = m["window_size"] // 2 if m else n  # flash-attn's left bound is inclusive
    y = np.empty_like(q)
    for first in range(0, n, 256):
        s = np.einsum("ihd,jhd->hij", q[first:first + 256], k) * scale
        i, j = first + np.arange(s.shape[1])[:, None], np.arange(n)
        s = np.where((j <= i) & (j >= i - left), s, -np.inf)
        a = np.exp(s - s.max(-1, keepdims=True))
        a /= a.sum(-1, keepdims=True)
        y[first:first + 256] = np.einsum("hij,jhd->ihd", a, v)
    return y.reshape(n, -1) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0)


def mlp(c, w, x):
    z = x @ w["fc1.weight"].T + w.get("fc1.bias", 0)
    if c.get("mlp_type") == "alt":
        return (silu(z) * (x @ w["fc3.weight"].T)) @ w["fc2.weight"].T
    value, gate = np.split(z, 2, axis=1)
    gate = {"swiglu": silu, "geglu": gelu,
            "glu": lambda g: 1 / (1 + np.exp(-g))}[c["activation_function"]](gate)
    return (value * gate) @ w["fc2.weight"].T + w.get("fc2.bias", 0)


def logits_of(c, w, ids, states):
    """Appends the layers' states after the last token to `states`."""
    w = {n: a.astype(np.float64) for n, a in w.items()}
    eps = c["layer_norm_epsilon"]
    table = w["transformer.embeddings.word_embeddings.weight"]
    x = table[ids]
    for i in range(c["n_layer"]):
        at, m = f"transformer.layers.{i}.", slot(c, i)
        part = {n[len(at) + 6:]: a for n, a in w.items() if n.startswith(at + "mixer.")}
        h = rms(x, w[at + "norm1.weight"], eps)
        if kind(m) == "BaseConv":
            x = x + base_conv(m, part, h, states)
        elif kind(m) == "LinearAttention":
            x = x + linear_attention(m, part, h, states)
        else:
            x = x + attention(c, m, i, part, h)
        part = {n[len(at) + 4:]: a for n, a in w.items() if n.startswith(at + "mlp.")}
        x = x + mlp(c, part, rms(x, w[at + "norm2.weight"], eps))
    return rms(x, w["transformer.ln_f.weight"], eps) @ w.get("lm_head.weight", table).T


# ---- Files ----------------------------------------

def save_checkpoint(folder, c, x, w):
    files = dict(w)
    if x.get("file") == "bin":
        import torch
        prefix = x.get("prefix", "")
        files = {prefix + n: torch.from_numpy(a) for n, a in files.items()}
        files[prefix + "lm_head.weight"] = \
            files[prefix + "transformer.embeddings.word_embeddings.weight"]
        files["train_metrics.num-tokens.count"] = torch.tensor(7)
        if c.get("fixed_decay"):
            heads = torch.arange(c["n_head"], dtype=torch.float)
            files[prefix + "transformer.decay.decay"] = torch.log(1 - 2 ** (-3 - heads))
        torch.save(files, os.path.join(folder, "pytorch_model.bin"))
    else:
        from safetensors.numpy import save_file
        save_file(files, os.path.join(folder, "model.safetensors"))
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(c, f)


def long_ids(rows):
    t = np.arange(LONG)
    return (t * t * 7 + t * 3 + t // 11) % rows


def build(name):
    c, x = MODELS[name]
    w = weights(name, c, x)
    ids = stream(name, "ids").integers(0, c["vocab_size"], T)
    path = os.path.join(OUT, name + ".gguf")
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, name)
        os.mkdir(source)
        save_checkpoint(source, c, x, w)
        subprocess.run([sys.executable, "-m", "export", source, "-o", path], cwd=ROOT, check=True,
                       stderr=subprocess.DEVNULL)
    logits = logits_of(c, w, ids, [])
    with open(os.path.join(OUT, name + ".ids"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    np.save(os.path.join(OUT, name + ".logits.npy"), logits.astype(np.float32))
    if name in ("based_hybrid", "based_conv_4", "based_taylor_8", "based_taylor_16"):
        os.makedirs(STATES, exist_ok=True)
        states = []
        logits_of(c, w, long_ids(logits.shape[1]), states)
        flat = np.concatenate([s.ravel() for s in states])[None]
        np.save(os.path.join(STATES, name + ".npy"), flat.astype(np.float32))
    print(f"{name:24s} T {T}  rms {np.sqrt((logits ** 2).mean()):.2f}  "
          f"{os.path.getsize(path) >> 10} KiB", flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or MODELS:
        build(each)
