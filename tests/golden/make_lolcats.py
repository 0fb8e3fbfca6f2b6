#!/usr/bin/env python3
"""Remakes tests/data/models/{lolcats,hedgehog,t2r,window_sinks}_* and tests/data/window_modes: tiny
random models with logits of a float64 evaluation of LoLCATs' formulas, every key's weight computed
directly from the index sets (no state, no recurrence); and for some of them tests/data/lolcats_states:
what the next position's linear part would hold after 4,096 tokens, the sums over its index set.

    python3 tests/golden/make_lolcats.py [NAME ...]      (needs torch, safetensors, gguf, pyyaml)

Checkpoints are written in upstream's layouts (HazyResearch/lolcats: a transformers folder, *.pt with
maps, *.pt with LoRA, a yaml) and exported by this repository's `export`.
Weights come from NumPy's PCG64, one stream per tensor."""
import json
import os
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import torch
import yaml
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import save_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "tests", "data", "models")
MODES = os.path.join(ROOT, "tests", "data", "window_modes")
STATES = os.path.join(ROOT, "tests", "data", "lolcats_states")
V = 48

# Defaults, then what each model changes. "softmax": layers left; "lora": (rank, alpha).
BASE = dict(type="llama", dim=32, H=4, KV=2, D=8, I=16, layers=2, theta=10000.0, T=130,
            kind="lolcats_llama_window_sw", W=7, map="softmax_dim", full=True, F=6, adapter=0,
            skip=False, bias=False, tied=False, affine=False, sinks=0, softmax=(), lora=None,
            trained=0, dtype="float32", untrained=False, layout="two", scaling=None, decode=0)
MODELS = {
    "lolcats_softmax_full": dict(lora=(3, 12), W=7, dtype="bfloat16",
                                 scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
                                              high_freq_factor=4.0,
                                              original_max_position_embeddings=64)),
    "lolcats_softmax_half": dict(full=False, F=5, W=64, KV=1, affine=True, tied=True, layout="flat",
                                 lora=(2, None)),
    "lolcats_exp_sinks": dict(map="exp_dim", layers=3, softmax=(1,), sinks=4, W=7, F=4, KV=4, T=150,
                              skip=False),
    "lolcats_exp_half_long": dict(map="exp_dim", full=False, F=8, skip=True, W=100, type="mistral",
                                  untrained=True),
    "lolcats_elu_adapter": dict(map="pos_elu", adapter=5, F=8, W=1, T=90),
    "lolcats_relu_bias": dict(map="relu", bias=True, skip=True, F=8, W=64, sinks=70, T=150, KV=4,
                              affine=True),
    "hedgehog_softmax": dict(kind="lolcats_llama", H=6, KV=2, F=7, lora=(2, None), layout="full"),
    "hedgehog_exp_adapter": dict(kind="lolcats_llama", map="exp_dim", full=False, adapter=3, F=8,
                                 layers=2, softmax=(0,)),
    "lolcats_trained_length": dict(layers=3, softmax=(1,), sinks=3, W=9, H=6, F=8, affine=True, T=150, trained=30,
                                   lora=(2, None)),
    "hedgehog_trained_length": dict(kind="lolcats_llama", F=5, T=120, trained=25),
    "t2r_relu": dict(kind="lolcats_llama", map="relu", F=10, bias=True, KV=1, tied=True),
}
WITH_STATES = ("lolcats_softmax_full", "lolcats_exp_sinks", "lolcats_trained_length", "hedgehog_softmax",
               "t2r_relu")
TERRACE = dict(kind="lolcats_llama_window_tk", W=16, F=6, T=64)
TERRACE_SINKS = dict(kind="lolcats_llama_window_tk", W=13, F=4, sinks=3, T=64, bias=True,
                     map="relu")


def stream(name, tensor):
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()),
                                                zlib.crc32(tensor.encode())]))


def make(name, o):
    """-> (base tensors, maps, LoRA) in upstream's names, float32."""
    def t(tensor, *shape, scale=1.0, shift=0.0):
        return (shift + scale * stream(name, tensor).standard_normal(shape)).astype(np.float32)
    H, KV, D, F, d, I = o["H"], o["KV"], o["D"], o["F"], o["dim"], o["I"]
    base = {"model.embed_tokens.weight": t("embed", V, d, scale=0.5),
            "lm_head.weight": t("head", V, d, scale=1.3 / d ** 0.5),
            "model.norm.weight": t("norm", d, scale=0.3, shift=1)}
    maps, lora = {}, {}
    for i in range(o["layers"]):
        at = f"model.layers.{i}."
        for x, rows, cols in (("q", H * D, d), ("k", KV * D, d), ("v", KV * D, d), ("o", d, H * D)):
            n = f"{at}self_attn.{x}_proj"
            base[n + ".weight"] = t(n, rows, cols, scale=1.2 / cols ** 0.5)
            if o["lora"]:
                r = o["lora"][0]
                lora[f"base_model.model.{n}.lora_A.default.weight"] = t(n + "A", r, cols,
                                                                         scale=0.5 / cols ** 0.5)
                lora[f"base_model.model.{n}.lora_B.default.weight"] = t(n + "B", rows, r, scale=0.4)
        for x, rows, cols in (("gate", I, d), ("up", I, d), ("down", d, I)):
            base[f"{at}mlp.{x}_proj.weight"] = t(at + x, rows, cols, scale=1.3 / cols ** 0.5)
        for x in ("input", "post_attention"):
            base[f"{at}{x}_layernorm.weight"] = t(at + x, d, scale=0.3, shift=1)
        if i in o["softmax"]:
            continue
        for x in "q" if o["tied"] else "qk":
            n = f"{at}self_attn.feature_map_{x}.mlp."
            if o["adapter"]:
                R = o["adapter"]
                maps[n + "layer0"] = t(n + "0", H, D, R, scale=0.6)
                maps[n + "bias0"] = t(n + "b0", 1, H, 1, R, scale=0.3)
                maps[n + "layer1"] = t(n + "1", H, R, F, scale=0.6)
                maps[n + "bias1"] = t(n + "b1", 1, H, 1, F, scale=0.3)
            else:
                maps[n + "layer"] = t(n, H, D, F, scale=1.2 / D ** 0.5)
                if o["bias"]:
                    maps[n + "bias"] = t(n + "b", 1, H, 1, 1, scale=0.5)
        if "window" in o["kind"] and not o["untrained"]:
            maps[f"{at}self_attn.window_factors"] = t(at + "gamma", 1, H, 1, 1, shift=-1.0)
    return base, maps, lora


def save(folder, o, base, maps, lora):
    """-> arguments of the export"""
    config = dict(model_type=o["type"], vocab_size=V, hidden_size=o["dim"],
                  intermediate_size=o["I"], num_hidden_layers=o["layers"],
                  num_attention_heads=o["H"], num_key_value_heads=o["KV"], rms_norm_eps=1e-5,
                  max_position_embeddings=512, hidden_act="silu", rope_theta=123.0,
                  tie_word_embeddings=False, head_dim=o["D"])
    if o["type"] == "mistral":
        config["sliding_window"] = 9  # never applied
    os.makedirs(os.path.join(folder, "base"))
    json.dump(config, open(os.path.join(folder, "base", "config.json"), "w"))
    save_file(base, os.path.join(folder, "base", "model.safetensors"))
    attention = dict(attention_type=o["kind"], feature_map=o["map"],
                     feature_map_kwargs=dict(eps=1e-12, fullspace=o["full"]),
                     learned_kernel="untied_head_" + ("adapter" if o["adapter"] else "einsum"),
                     learned_kernel_kwargs=dict(feature_dim=o["F"], skip_connection=o["skip"],
                                                bias=o["bias"], zero_init=False),
                     tie_qk_kernels=o["tied"], train_qk=False)
    if "window" in o["kind"]:
        attention.update(window_size=o["W"], affine_attention_factors=o["affine"],
                         init_window_factor=-2.1972245773362196)
        if o["untrained"]:
            attention["train_window_factor"] = False
    if o["softmax"]:
        attention["softmax_attentions"] = list(o["softmax"])
    run = dict(model=dict(rope_theta=o["theta"], torch_dtype=o["dtype"]), attention=attention)
    if o["scaling"]:
        run["model"]["rope_scaling"] = o["scaling"]
    yaml.safe_dump(run, open(os.path.join(folder, "run.yaml"), "w"))
    args = ["base", "--lolcats", "maps.pt", "--lolcats-config", "run.yaml"]
    tensors = {n: torch.from_numpy(x) for n, x in maps.items()}
    updates = {n: torch.from_numpy(x) for n, x in lora.items()}
    if o["layout"] == "two":
        torch.save(dict(model_state_dict=tensors, step=7), os.path.join(folder, "maps.pt"))
        if updates:
            torch.save(dict(model_state_dict=updates, step=9), os.path.join(folder, "lora.pt"))
            args += ["--lora", "lora.pt"]
    else:
        every = {"base_model.model." + n: x for n, x in tensors.items()} | updates
        if o["layout"] == "full":
            for n, x in base.items():
                if n.split(".")[-2].endswith("_proj") and "self_attn" in n:
                    n = n.replace(".weight", ".base_layer.weight")
                every["base_model.model." + n] = torch.from_numpy(x)
            every = {"model": every}
            zeros = {n: np.zeros_like(x) for n, x in base.items()}
            save_file(zeros, os.path.join(folder, "base", "model.safetensors"))
        torch.save(every, os.path.join(folder, "maps.pt"))
    if o["lora"] and o["lora"][1]:
        yaml.safe_dump(dict(finetune=dict(method="lora", kwargs=dict(r=o["lora"][0],
                                                                     lora_alpha=o["lora"][1]))),
                       open(os.path.join(folder, "ft.yaml"), "w"))
        args += ["--lora-config", "ft.yaml"]
    if o["sinks"]:
        args += ["--set", f"n_sink={o['sinks']}"]
    if o["trained"]:
        args += ["--set", f"trained_length={o['trained']}"]
    return args


# ---- the evaluation ------------------------------------------------------------------------------


def rms(x, w):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * w


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def frequencies(o):
    w = o["theta"] ** -(np.arange(0, o["D"], 2) / o["D"])
    s = o["scaling"]
    if s:
        length = 2 * np.pi / w
        original, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], \
            s["high_freq_factor"]
        smooth = (original / length - low) / (high - low)
        between = (1 - smooth) * w / s["factor"] + smooth * w
        w = np.where(length < original / high, w,
                     np.where(length > original / low, w / s["factor"], between))
    return w


def rotate(x, w, last=None):  # [heads, T, D]; positions as if no later than `last`
    at = np.arange(x.shape[1])
    angle = (at if last is None else np.minimum(at, last))[:, None] * w
    c, s = np.cos(angle), np.sin(angle)
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def features(o, maps, at, which, x):  # [H, T, D] -> [H, T, f]
    n = f"{at}self_attn.feature_map_{'q' if o['tied'] else which}.mlp."
    m = {k[len(n):]: v.astype(np.float64) for k, v in maps.items() if k.startswith(n)}
    if o["adapter"]:
        inner = np.maximum(np.einsum("htd,hdr->htr", x, m["layer0"]) + m["bias0"][0], 0)
        u = x + np.einsum("htr,hrf->htf", inner, m["layer1"]) + m["bias1"][0]
    else:
        u = np.einsum("htd,hdf->htf", x, m["layer"])
        if o["bias"]:
            u = u + m["bias"][0]
        if o["skip"]:
            u = u + x
    if o["map"] == "softmax_dim":
        phi = np.concatenate([softmax(u), softmax(-u)], -1) if o["full"] else softmax(u)
    elif o["map"] == "exp_dim":
        phi = np.exp(u - u.max(-1, keepdims=True))
        if o["full"]:
            phi = np.concatenate([phi, np.exp(u.min(-1, keepdims=True) - u)], -1)
    elif o["map"] == "pos_elu":
        phi = np.where(u > 0, 1 + u, np.exp(np.minimum(u, 0)))
    else:
        phi = np.maximum(u, 0)
    return np.maximum(phi, 1e-12)


def sliding(o, i):
    """-> the keys in the softmax part and in the linear part of query i"""
    first = max(0, i - o["W"] + 1)
    sinks = range(min(o["sinks"], first))
    return [*sinks, *range(first, i + 1)], range(min(o["sinks"], first), first)


def terrace(o, i):
    first = max(0, (i // o["W"] - 1) * o["W"])
    sinks = range(min(o["sinks"], first))
    return [*sinks, *range(first, i + 1)], range(min(o["sinks"], first), first)


def then_sliding(L):
    """A prompt of L under a terrace, then sampled tokens."""
    return lambda o, i: terrace(o, i) if i < L else sliding(o, i)


def terrace_hf(L):
    def sets(o, i):
        W = o["W"]
        if i >= L:
            return sliding(o, i)
        if L <= W:
            return range(i + 1), range(min(o["sinks"], i + 1), i + 1)
        off = -(-L // W) * W - L
        first = max([0] + [j + 1 for j in range(i) if (i + off) // W - (j + off) // W >= 2])
        return [*range(min(o["sinks"], first)), *range(first, i + 1)], \
            range(min(o["sinks"], first), first)
    return sets


def factors(o, maps, at):
    dtype = dict(float32=torch.float32, bfloat16=torch.bfloat16)[o["dtype"]]
    raw = maps.get(f"{at}self_attn.window_factors",
                   np.full((1, o["H"], 1, 1), -2.1972245773362196, np.float32))
    gamma = torch.sigmoid(torch.from_numpy(raw).to(dtype))
    lam = 1 - gamma if o["affine"] else torch.ones_like(gamma)
    return gamma.double().numpy().reshape(-1), lam.double().numpy().reshape(-1)


def evaluate(o, base, maps, lora, ids, rule=sliding, states=None):
    """-> logits; `states` receives S [H, f, D] and z [H, f] of every linear layer"""
    w = {n: x.astype(np.float64) for n, x in base.items()}
    for n in list(w):
        a = "base_model.model." + n.replace(".weight", ".lora_A.default.weight")
        if a in lora:
            r, alpha = o["lora"]
            merged = (alpha or 2 * r) / r * lora[a.replace("lora_A", "lora_B")].astype(np.float64)
            w[n] = w[n] + merged @ lora[a].astype(np.float64)
    H, KV, D, T = o["H"], o["KV"], o["D"], len(ids)
    x = w["model.embed_tokens.weight"][ids]
    for i in range(o["layers"]):
        at = f"model.layers.{i}."
        h = rms(x, w[at + "input_layernorm.weight"])

        def heads(which, n):
            y = h @ w[f"{at}self_attn.{which}_proj.weight"].T
            return y.reshape(T, n, D).transpose(1, 0, 2)
        def rotated(which, n, last=None):
            return np.repeat(rotate(heads(which, n), frequencies(o), last), H // n, 0)
        q, k = rotated("q", H), rotated("k", KV)
        L = o["trained"]
        of_maps = (rotated("q", H, L - 1), rotated("k", KV, L // 2 - 1)) if L else (q, k)
        v = np.repeat(heads("v", KV), H // KV, 0)
        y = np.zeros((H, T, D))
        linear, windowed = i not in o["softmax"], "window" in o["kind"]
        if linear:
            phi_q, phi_k = (features(o, maps, at, which, x) for which, x in zip("qk", of_maps))
        if linear and states is not None:
            N = np.array(rule(o, T)[1] if windowed else range(T), int)
            states += [phi_k[:, N].transpose(0, 2, 1) @ v[:, N], phi_k[:, N].sum(1)]
        if linear and windowed:
            gamma, lam = factors(o, maps, at)
        for t in range(T):
            scores = np.einsum("hd,hjd->hj", q[:, t], k[:, :t + 1]) / D ** 0.5
            if not linear:
                y[:, t] = np.einsum("hj,hjd->hd", softmax(scores), v[:, :t + 1])
                continue
            a, mass = np.zeros((H, t + 1)), np.einsum("hf,hjf->hj", phi_q[:, t], phi_k[:, :t + 1])
            if windowed:
                S, N = (np.array(s, int) for s in rule(o, t))
                s = scores[:, S]
                a[:, S] = gamma[:, None] * np.exp(s - s.max(-1, keepdims=True))
                share = L / max(L, len(N)) if L else 1
                a[:, N] += share * lam[:, None] * mass[:, N]
                den = a.sum(-1)
            else:
                a = mass * (L / max(L, t + 1) if L else 1)
                den = a.sum(-1) + 1e-12
            y[:, t] = np.einsum("hj,hjd->hd", a, v[:, :t + 1]) / den[:, None]
        x = x + y.transpose(1, 0, 2).reshape(T, H * D) @ w[at + "self_attn.o_proj.weight"].T
        h = rms(x, w[at + "post_attention_layernorm.weight"])
        gate = h @ w[at + "mlp.gate_proj.weight"].T
        up = h @ w[at + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    return (rms(x, w["model.norm.weight"]) @ w["lm_head.weight"].T).astype(np.float32)


def export(folder, out, args):
    paths = [os.path.join(folder, a) if a == "base" or a.endswith((".pt", ".yaml")) else a
             for a in args]
    subprocess.run([sys.executable, "-m", "export", *paths, "-o", out, "--type", "f32"], cwd=ROOT,
                   check=True, stderr=subprocess.DEVNULL)


def save_states(name, changes, rule):
    """float32 [1, n]: per linear layer S, then z, after 4,096 tokens."""
    o = {**BASE, **changes}
    t = np.arange(4096)
    states = []
    evaluate(o, *make(name, o), (t * t * 7 + t * 3 + t // 11) % V, rule, states)
    os.makedirs(STATES, exist_ok=True)
    np.save(os.path.join(STATES, name + ".npy"),
            np.concatenate([x.ravel() for x in states]).astype(np.float32)[None])


def build(name, changes, path):
    o = {**BASE, **changes}
    base, maps, lora = make(name, o)
    with tempfile.TemporaryDirectory() as folder:
        export(folder, path + ".gguf", save(folder, o, base, maps, lora))
    ids = stream(name, "ids").integers(0, V, o["T"])
    with open(path + ".ids", "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    return o, lambda rule, n=None: evaluate(o, base, maps, lora, ids[:n], rule)


def window_sinks(path):
    """Softmax attention with a window and pinned first keys: an exported Mistral whose file gains
    linnet.attention.n_sink."""
    o = {**BASE, "type": "mistral", "T": 150, "W": 9, "sinks": 3, "theta": 123.0,
         "kind": "lolcats_llama_window_sw"}
    base, _, _ = make("window_sinks", o)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, o, base, {}, {})
        export(folder, os.path.join(folder, "x.gguf"), ["base"])
        r = GGUFReader(os.path.join(folder, "x.gguf"))
        w = GGUFWriter(path + ".gguf", "llama")
        for key, f in r.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                w.add_key_value(key, f.contents(), f.types[0])
        w.add_uint32("linnet.attention.n_sink", o["sinks"])
        for t in r.tensors:
            w.add_tensor(t.name, np.array(t.data))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    ids = stream("window_sinks", "ids").integers(0, V, o["T"])
    with open(path + ".ids", "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    no_maps = {**o, "map": None}

    def only_softmax(o, i):
        return sliding(o, i)[0], range(0)
    # gamma cancels where there is no linear part
    zero = {f"model.layers.{i}.self_attn.feature_map_{x}.mlp.layer": np.zeros((4, 8, 6), np.float32)
            for i in range(o["layers"]) for x in "qk"}
    return evaluate({**no_maps, "map": "relu"}, base, zero, {}, ids, only_softmax)


def main():
    chosen = sys.argv[1:]
    for name, changes in MODELS.items():
        if not chosen or name in chosen:
            path = os.path.join(OUT, name)
            o, logits = build(name, changes, path)
            np.save(path + ".logits.npy", logits(sliding))
            if name in WITH_STATES:
                save_states(name, changes, sliding)
            print(name, f"rms {np.sqrt(np.mean(logits(sliding) ** 2)):.2f}")
    if not chosen or "window_sinks" in chosen:
        path = os.path.join(OUT, "window_sinks")
        np.save(path + ".logits.npy", window_sinks(path))
    os.makedirs(MODES, exist_ok=True)
    for name, changes in (("terrace", TERRACE), ("terrace_sinks", TERRACE_SINKS)):
        if not chosen or name in chosen:
            path = os.path.join(MODES, name)
            o, logits = build(name, changes, path)
            W = o["W"]
            save_states(name, changes, terrace)
            np.save(path + ".terrace.npy", logits(terrace))
            np.save(path + ".sliding.npy", logits(sliding))
            np.save(path + ".terrace_41.npy", logits(then_sliding(41)))
            # a prompt of L under upstream's own prefill, then sliding to the end
            for L in (1, W, 2 * W + 3) if o["sinks"] else (W - 1, W, W + 1, 2 * W, 3 * W + 2):
                np.save(f"{path}.hf_{L}.npy", logits(terrace_hf(L)))


if __name__ == "__main__":
    main()
