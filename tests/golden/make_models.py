#!/usr/bin/env python3
"""Remakes tests/data/models: tiny random models of each architecture with upstream's own logits.

    python3 tests/golden/make_models.py [NAME ...]      (needs torch, transformers 5, gguf)

NAME.gguf       the checkpoint, saved by transformers and exported by this repository's `export`
NAME.ids        token ids
NAME.logits.npy float32 [T, vocab]: transformers' full forward, eager attention, in float64 (norms
                and softmax round to float32 inside, as upstream does; angles of the rotary
                positions are float64 products of upstream's float32 frequencies)
Weights come from NumPy's PCG64, one stream per tensor, so they do not depend on torch's version.
They are large enough that attention is far from uniform and logits have RMS 1 to 3.
The quantized files' logits are those of their dequantized weights. The K-quant file is made of
random bytes with sane scales: every bit pattern of a block occurs.
"""
import os
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "tests", "data", "models")
sys.path.insert(0, os.path.join(ROOT, "tests", "reference"))
import llama_gguf

SMALL = dict(vocab_size=144, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
             bos_token_id=1, eos_token_id=2, attn_implementation="eager")


def rope(kind="default", theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


# name: (model class, config, number of ids)
MODELS = {
    "llama_gqa_tied_llama3": (LlamaForCausalLM, LlamaConfig(
        **SMALL, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters=rope("llama3", 500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=64)), 150),
    "llama_mqa_linear": (LlamaForCausalLM, LlamaConfig(
        **{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 48},
        head_dim=16, tie_word_embeddings=False, rope_parameters=rope("linear", factor=2.5)), 80),
    "llama_bias_yarn": (LlamaForCausalLM, LlamaConfig(
        **SMALL, head_dim=8, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
        rope_parameters=rope("yarn", 1000.0, factor=4.0, original_max_position_embeddings=64,
                             attention_factor=1.25, beta_fast=16.0, beta_slow=2.0)), 90),
    "mistral_window": (MistralForCausalLM, MistralConfig(
        **SMALL, head_dim=8, tie_word_embeddings=False, sliding_window=13, rms_norm_eps=1e-5,
        rope_parameters=rope()), 150),
    "qwen2_windows": (Qwen2ForCausalLM, Qwen2Config(
        **{**SMALL, "num_hidden_layers": 3, "intermediate_size": 64}, tie_word_embeddings=True,
        use_sliding_window=True, sliding_window=20, max_window_layers=1,
        rope_parameters=rope(theta=1e6)), 140),
    "qwen3_yarn": (Qwen3ForCausalLM, Qwen3Config(
        **{**SMALL, "intermediate_size": 48}, head_dim=12, tie_word_embeddings=False,
        rope_parameters=rope("yarn", 1e4, factor=4.0, original_max_position_embeddings=32)), 80),
    "gpt2": (GPT2LMHeadModel, GPT2Config(
        vocab_size=144, n_embd=48, n_head=3, n_layer=2, n_positions=160, n_inner=100,
        bos_token_id=1, eos_token_id=2, attn_implementation="eager"), 150),
}
BLOCKS = LlamaConfig(**{**SMALL, "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
                        "num_attention_heads": 4}, head_dim=16, tie_word_embeddings=False,
                     rope_parameters=rope())
TIED = LlamaConfig(**{**SMALL, "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
                      "num_attention_heads": 4}, head_dim=16, tie_word_embeddings=True,
                   rope_parameters=rope())
KQUANT = LlamaConfig(**{**SMALL, "vocab_size": 48, "hidden_size": 256, "intermediate_size": 256,
                        "num_hidden_layers": 1, "num_attention_heads": 4}, head_dim=32,
                     tie_word_embeddings=False, rope_parameters=rope())


def stream(name, tensor):
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()),
                                                zlib.crc32(tensor.encode())]))


def fill(model, name):
    for tensor, p in model.named_parameters():
        x = stream(name, tensor).standard_normal(tuple(p.shape))
        norm = "norm" in tensor or "ln_" in tensor
        if norm and tensor.endswith("weight"):
            x = 1.0 + 0.3 * x
        elif p.ndim == 1:
            x = 0.3 * x
        elif "embed" in tensor or "wte" in tensor:
            x = 0.25 * x
        elif "wpe" in tensor:
            x = 0.1 * x
        else:
            fan_in = p.shape[0] if "Conv1D" in type(owner(model, tensor)).__name__ else p.shape[1]
            x = 1.3 * x / np.sqrt(fan_in)
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.asarray(x, np.float32)))
    return model.eval()


def owner(model, tensor):
    return model.get_submodule(tensor.rpartition(".")[0])


def logits_of(model, ids):
    """In float64; the rotary angles too, which upstream would round to float32."""
    model = model.double()
    rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
    if rotary is not None:
        frequency, scale = rotary.inv_freq.double(), rotary.attention_scaling

        def angles(x, position_ids):
            a = position_ids[..., None].double() * frequency
            a = torch.cat((a, a), dim=-1)
            return a.cos() * scale, a.sin() * scale
        rotary.forward = angles
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def save(name, model, n_ids, vocab, export_type="f32", edit=None):
    path = os.path.join(OUT, name + ".gguf")
    ids = stream(name, "ids").integers(0, vocab, n_ids).tolist()
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, name)
        model.save_pretrained(source)
        subprocess.run([sys.executable, "-m", "export", source, "-o", path, "--type", export_type],
                       cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    if edit is not None:
        edit(path)
    if edit is not None or export_type != "f32":
        model = llama_gguf.load(path)
    logits = logits_of(model, ids)
    with open(os.path.join(OUT, name + ".ids"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    np.save(os.path.join(OUT, name + ".logits.npy"), logits.astype(np.float32))
    print(f"{name:24s} T {n_ids:3d}  rms {np.sqrt((logits ** 2).mean()):.2f}  "
          f"{os.path.getsize(path) >> 10} KiB", flush=True)


def rewrite(path, change):
    """Replaces tensors: change(name, float32 array) -> (bytes or floats, type) or None."""
    r = GGUFReader(path)
    w = GGUFWriter(path + ".new", r.fields["general.architecture"].contents())
    for key, field in r.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            w.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for t in r.tensors:
        new = change(t.name, np.array(dequantize(t.data, t.tensor_type)))
        data, kind = new if new else (np.array(t.data), t.tensor_type)
        w.add_tensor(t.name, data, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(path + ".new", path)


def to_q4_1(path):
    rewrite(path, lambda name, x: (quantize(x, Q.Q4_1), Q.Q4_1) if x.ndim == 2 else None)


# type: bytes per 256 values, where d and dmin (f16) are
K_LAYOUT = {Q.Q4_K: (144, 0, 2), Q.Q5_K: (176, 0, 2), Q.Q6_K: (210, 208, None)}


def random_k_blocks(name, shape, kind, std):
    n_bytes, at_d, at_min = K_LAYOUT[kind]
    rng = stream("llama_kquants", name)
    n = shape[0] * shape[1] // 256
    raw = rng.integers(0, 256, (n, n_bytes), dtype=np.uint8)

    def set_scales(size):
        def put(at, values):
            raw[:, at:at + 2] = values.astype(np.float16).view(np.uint8).reshape(n, 2)
        put(at_d, size)
        if at_min is not None:
            middle = 7.5 if kind == Q.Q4_K else 15.5  # of the quants, so that the mean is near 0
            put(at_min, size * middle)
        return dequantize(raw.reshape(shape[0], -1), kind)
    size = rng.uniform(0.5, 1.5, n)
    size *= std / set_scales(size * 0.01).std() * 0.01
    set_scales(size)
    return raw.reshape(shape[0], -1)


def to_k_quants(path):
    kinds = {"token_embd": Q.Q6_K, "output": Q.Q4_K, "attn_q": Q.Q4_K, "attn_k": Q.Q5_K,
             "attn_v": Q.Q6_K, "attn_output": Q.Q5_1, "ffn_gate": Q.Q5_0, "ffn_up": Q.Q5_K,
             "ffn_down": Q.Q6_K}

    def change(name, x):
        if x.ndim != 2:
            return None
        kind = kinds[name.split(".")[-2]]
        if kind in K_LAYOUT:
            return random_k_blocks(name, x.shape, kind, x.std()), kind
        return quantize(x, kind), kind
    rewrite(path, change)


def build(name):
    if name in MODELS:
        make, config, n_ids = MODELS[name]
        save(name, fill(make(config), name), n_ids, config.vocab_size)
    elif name == "llama_kquants":
        save(name, fill(LlamaForCausalLM(KQUANT), name), 40, KQUANT.vocab_size, edit=to_k_quants)
    else:
        kind = name.removeprefix("llama_")
        config = TIED if kind == "q4_0" else BLOCKS
        config.num_hidden_layers = 1 if kind in ("f16", "bf16") else 2
        model = fill(LlamaForCausalLM(config), name)
        save(name, model, 40, config.vocab_size, "f32" if kind == "q4_1" else kind,
             to_q4_1 if kind == "q4_1" else None)


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    torch.set_num_threads(1)
    for each in sys.argv[1:] or [*MODELS, "llama_f16", "llama_bf16", "llama_q8_0", "llama_q4_0",
                                 "llama_q4_1", "llama_kquants"]:
        build(each)
