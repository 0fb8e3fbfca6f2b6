#!/usr/bin/env python3
"""Remakes the models qwen35_*, qwen3next_* and olmo_hybrid_* of tests/data/models with upstream's
logits.

    python3 tests/golden/make_qwen_hybrid.py [NAME ...]      (needs torch, transformers 5, gguf)

As make_models.py: tiny models with NumPy's weights, saved by transformers, exported by this
repository's `export`; logits from transformers' own classes in float64 on a CPU, eager attention.
Its delta rule computes in float32 even then, so it is replaced by the same rule, token by token, in
float64; logits with upstream's own must agree within 1e-4 of their RMS (`noise`).
The folders are also rewritten to other layouts that upstream's loader reads: a text model inside
an image+text checkpoint, OLMo-hybrid files as published (`relayout`).
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import (
    OlmoHybridConfig,
    OlmoHybridForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.models.olmo_hybrid import modeling_olmo_hybrid
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_next import modeling_qwen3_next

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_models import OUT, ROOT, rope, stream

QWEN = dict(vocab_size=56, hidden_size=24, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            head_dim=16, linear_key_head_dim=12, linear_value_head_dim=12,
            linear_num_key_heads=2, linear_num_value_heads=4, rms_norm_eps=1e-5,
            full_attention_interval=3, bos_token_id=1, eos_token_id=2,
            attn_implementation="eager", tie_word_embeddings=False)
NEXT = {**QWEN, "num_experts": 0}
OLMO = dict(vocab_size=56, hidden_size=24, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-5,
            attn_implementation="eager", tie_word_embeddings=False)


def partial(theta, part, **more):
    return rope(theta=theta, partial_rotary_factor=part, **more)


# name: (model class, config, number of ids, layout)
MODELS = {
    "qwen35_r2": (Qwen3_5ForCausalLM, Qwen3_5TextConfig(
        **QWEN, rope_parameters=partial(1e4, 0.25)), 130, "image+text"),
    "qwen35_tied": (Qwen3_5ForCausalLM, Qwen3_5TextConfig(
        **{**QWEN, "linear_num_key_heads": 3, "linear_num_value_heads": 3, "head_dim": 12,
           "linear_value_head_dim": 20, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True},
        layer_types=["full_attention", "linear_attention", "full_attention"],
        rope_parameters=partial(1e6, 0.5)), 140, "nextn"),
    "qwen35_r3_yarn": (Qwen3_5ForCausalLM, Qwen3_5TextConfig(
        **{**QWEN, "linear_num_value_heads": 6, "linear_key_head_dim": 8, "num_hidden_layers": 2,
           "linear_value_head_dim": 36, "num_attention_heads": 6, "head_dim": 8,
           "full_attention_interval": 2}, attention_bias=True, rope_parameters=partial(
            1e4, 0.75, kind="yarn", factor=4.0, original_max_position_embeddings=32)), 130, None),
    "qwen3next_r2": (Qwen3NextForCausalLM, Qwen3NextConfig(
        **NEXT, rope_parameters=partial(1e4, 0.25)), 130, None),
    "qwen3next_r3_tied": (Qwen3NextForCausalLM, Qwen3NextConfig(
        **{**NEXT, "linear_num_value_heads": 6, "linear_value_head_dim": 8,
           "tie_word_embeddings": True, "num_key_value_heads": 1},
        rope_parameters=partial(1e5, 1.0)), 100, None),
    "olmo_hybrid_nope": (OlmoHybridForCausalLM, OlmoHybridConfig(
        **OLMO, rope_parameters={"rope_type": "default", "rope_theta": None}), 130, "published"),
    "olmo_hybrid_rope": (OlmoHybridForCausalLM, OlmoHybridConfig(
        **{**OLMO, "num_key_value_heads": 2}, linear_num_key_heads=2, linear_key_head_dim=6,
        linear_value_head_dim=10, linear_allow_neg_eigval=False, linear_conv_kernel_dim=5,
        layer_types=["linear_attention", "full_attention", "full_attention"],
        rope_parameters=rope(theta=500.0)), 130, None),
}


def delta_rule(query, key, value, g, beta, **_):
    """S = e^g S; S += k (beta (v - S^T k))^T; o = S^T q / sqrt(K), q and k l2-normalized; the value
    heads of a group share them."""
    q, k = (x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    r = value.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(r, dim=2) for x in (q, k))
    s = torch.zeros(*value.shape[:1], value.shape[2], q.shape[3], value.shape[3], dtype=q.dtype)
    out = torch.zeros_like(value)
    for t in range(q.shape[1]):
        s = s * torch.exp(g[:, t])[..., None, None]
        d = beta[:, t, :, None] * (value[:, t] - torch.einsum("bhkv,bhk->bhv", s, k[:, t]))
        s = s + torch.einsum("bhk,bhv->bhkv", k[:, t], d)
        out[:, t] = torch.einsum("bhkv,bhk->bhv", s, q[:, t]) * q.shape[3] ** -0.5
    return out, None


MODULES = (modeling_olmo_hybrid, modeling_qwen3_5, modeling_qwen3_next)
UPSTREAM = [m.torch_chunk_gated_delta_rule for m in MODULES]
for each in MODULES:
    each.torch_chunk_gated_delta_rule = delta_rule


def fill(model, name):
    for tensor, p in model.named_parameters():
        x = stream(name, tensor).standard_normal(tuple(p.shape))
        zero_centred = not isinstance(model, OlmoHybridForCausalLM) and "linear_attn" not in tensor
        if tensor.endswith("A_log"):
            x = 0.7 * x
        elif tensor.endswith("dt_bias"):
            x = x - 2
        elif "norm" in tensor and tensor.endswith("weight"):
            x = 0.3 * x + (0 if zero_centred else 1)
        elif p.ndim == 1:
            x = 0.3 * x
        elif "embed" in tensor:
            x = 0.25 * x
        elif "conv1d" in tensor:
            x = 0.8 * x
        else:
            x = 1.3 * x / np.sqrt(p.shape[1])
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.asarray(x, np.float32)))
    return model.eval()


def logits_of(model, ids):
    """In float64; the rotary angles too, which upstream would round to float32."""
    model = model.double()
    rotary = model.model.rotary_emb
    if rotary is not None:
        frequency, scale = rotary.inv_freq.double(), rotary.attention_scaling

        def angles(x, position_ids):
            position_ids = position_ids[0] if position_ids.ndim == 3 else position_ids
            a = position_ids[..., None].double() * frequency
            a = torch.cat((a, a), dim=-1)
            return a.cos() * scale, a.sin() * scale
        rotary.forward = angles
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


def relayout(folder, layout):
    """Other layouts of the same weights."""
    weights, config = (os.path.join(folder, n) for n in ("model.safetensors", "config.json"))
    tensors = load_file(weights)
    with open(config) as f:
        values = json.load(f)
    if layout == "image+text":
        tensors = {n.replace("model.", "model.language_model.", 1): t for n, t in tensors.items()}
        tensors["model.visual.patch_embed.proj.weight"] = torch.zeros(4, 4)
        tensors["mtp.fc.weight"] = torch.zeros(4, 4)
        values["rope_parameters"].update(mrope_section=[1, 1, 0], mrope_interleaved=True)
        values = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"],
                  "text_config": values, "tie_word_embeddings": False}
    elif layout == "published":
        for i, kind in enumerate(values["layer_types"]):
            at = f"model.layers.{i}."
            if kind == "full_attention":
                tensors[at + "post_attention_layernorm.weight"] = tensors.pop(
                    at + "feedforward_layer_norm.weight")
                continue
            names = [f"{at}linear_attn.{x}_conv1d.weight" for x in "qkv"]
            sizes = [tensors[n.replace("conv1d", "proj")].shape[0] for n in names]
            joined = torch.cat([tensors[n] for n in names])
            for n, part in zip(names, torch.split(joined, sizes)):
                tensors[n] = part.contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    with open(config, "w") as f:
        json.dump(values, f)


def add_nextn(path):
    """The block for multi-token prediction that llama.cpp's converter adds behind the layers; nothing
    uses it."""
    r = GGUFReader(path)
    w = GGUFWriter(path + ".new", "qwen35")
    for key, field in r.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = field.contents()
        sub = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        if key == "qwen35.block_count":
            value += 1
            last = value - 1
            w.add_uint32("qwen35.nextn_predict_layers", 1)
        elif key == "qwen35.attention.recurrent_layers":
            value = value + [False]
        w.add_key_value(key, value, field.types[0], sub_type=sub)
    for t in r.tensors:
        w.add_tensor(t.name, t.data)
        if t.name.startswith(f"blk.{last - 1}."):
            w.add_tensor(t.name.replace(str(last - 1), str(last), 1), t.data)
    D = len(next(t for t in r.tensors if t.name == "output_norm.weight").data)
    w.add_tensor(f"blk.{last}.nextn.eh_proj.weight", np.ones((D, 2 * D), np.float32))
    for x in ("enorm", "hnorm", "shared_head_norm"):
        w.add_tensor(f"blk.{last}.nextn.{x}.weight", np.ones(D, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(path + ".new", path)


def build(name):
    make, config, n_ids, layout = MODELS[name]
    model = fill(make(config), name)
    path = os.path.join(OUT, name + ".gguf")
    ids = stream(name, "ids").integers(0, config.vocab_size, n_ids).tolist()
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, name)
        model.save_pretrained(source)
        if layout in ("image+text", "published"):
            relayout(source, layout)
        subprocess.run([sys.executable, "-m", "export", source, "-o", path], cwd=ROOT, check=True,
                       stderr=subprocess.DEVNULL)
    if layout == "nextn":
        add_nextn(path)
    logits = logits_of(model, ids)
    rms = np.sqrt((logits ** 2).mean())
    for module, rule in zip(MODULES, UPSTREAM):
        module.torch_chunk_gated_delta_rule = rule
    noise = np.abs(logits_of(model, ids) - logits).max() / rms
    for module in MODULES:
        module.torch_chunk_gated_delta_rule = delta_rule
    assert noise < 1e-4, (name, noise)
    with open(os.path.join(OUT, name + ".ids"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    np.save(os.path.join(OUT, name + ".logits.npy"), logits.astype(np.float32))
    print(f"{name:24s} T {n_ids:3d}  rms {rms:.2f}  noise {noise:.1e}  "
          f"{os.path.getsize(path) >> 10} KiB", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:] or MODELS:
        build(each)
