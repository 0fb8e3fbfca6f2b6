"""The SwiGLU Transformers with rotary positions: llama (Llama 1-3, TinyLlama, SmolLM2), mistral,
qwen2, qwen3. One skeleton; each differs by biases, q/k norms, windows and the row order of q/k."""
from functools import partial

import numpy as np

from ..errors import ExportError
from .base import (
    COMMON_IGNORABLE,
    Plan,
    choose_prefix,
    refuse_foreign_options,
    rope,
    windows,
    write_windows,
)

KINDS = ("llama", "mistral", "qwen2", "qwen3")


def recognise(config, names):
    return config.values.get("model_type") in KINDS


def interleave(heads, w):
    """Rows of each head from [first halves | second halves] to alternating pairs: GGUF's `llama`
    rotates neighbours (2j, 2j+1) where transformers rotates (j, j + d/2)."""
    pairs = w.reshape(heads, 2, w.shape[0] // (2 * heads), -1)
    return np.swapaxes(pairs, 1, 2).reshape(w.shape)


def plan(config, names):
    kind = config.str("model_type")
    llama = kind in ("llama", "mistral")
    p = Plan("llama" if llama else kind, config.int("vocab_size"))
    refuse_foreign_options(config)
    config.only("hidden_act", "silu")

    n_layers = config.int("num_hidden_layers", high=1 << 16)
    D = config.int("hidden_size")
    H = config.int("num_attention_heads")
    KV = config.int("num_key_value_heads", default=None) or H
    I = config.int("intermediate_size")
    d = config.int("head_dim", default=None)
    if d is None:
        d = 128 if kind == "qwen3" else D // H  # qwen3's class default
        if kind != "qwen3" and D % H:
            raise ExportError(f"{config.path}: hidden_size {D} is not a multiple of "
                              f"num_attention_heads {H}")
    if d % 2 or H % KV:
        raise ExportError(f"{config.path}: head_dim {d} must be even and num_attention_heads {H} a "
                          f"multiple of num_key_value_heads {KV}")

    p.u32("block_count", n_layers)
    p.u32("context_length", config.int("max_position_embeddings"))
    p.u32("embedding_length", D)
    p.u32("feed_forward_length", I)
    p.u32("attention.head_count", H)
    p.u32("attention.head_count_kv", KV)
    p.f32("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", default=1e-6))
    if config.int("head_dim", default=None) is not None or d * H != D:
        p.u32("attention.key_length", d)
        p.u32("attention.value_length", d)
    if llama:
        p.u32("vocab_size", p.n_rows)
    rope(config, p, d)
    if kind == "mistral":
        write_windows(p, [config.int("sliding_window", default=0)] * n_layers)
    elif kind != "llama":
        write_windows(p, windows(config, n_layers))

    qkv_bias = kind == "qwen2" or config.bool("attention_bias", default=False)
    o_bias = kind != "qwen2" and qkv_bias
    if kind == "mistral" and qkv_bias:
        raise ExportError(f"{config.path}: attention_bias in a mistral model is not supported")
    mlp_bias = kind == "llama" and config.bool("mlp_bias", default=False)
    order = {"q": partial(interleave, H), "k": partial(interleave, KV)} if llama else {}
    at = choose_prefix(names, "model.", "embed_tokens.weight")

    embedding(config, p, names, at + "embed_tokens.weight", D, default_tied=False)
    p.vector("output_norm.weight", at + "norm.weight", D)
    for i in range(n_layers):
        src, dst = f"{at}layers.{i}.", f"blk.{i}."
        p.vector(dst + "attn_norm.weight", src + "input_layernorm.weight", D)
        for x, rows in (("q", H * d), ("k", KV * d), ("v", KV * d)):
            p.matrix(f"{dst}attn_{x}.weight", f"{src}self_attn.{x}_proj.weight", (rows, D),
                     order.get(x))
            if qkv_bias:
                p.vector(f"{dst}attn_{x}.bias", f"{src}self_attn.{x}_proj.bias", rows, order.get(x))
        p.matrix(dst + "attn_output.weight", src + "self_attn.o_proj.weight", (D, H * d))
        if o_bias:
            p.vector(dst + "attn_output.bias", src + "self_attn.o_proj.bias", D)
        if kind == "qwen3":
            p.vector(dst + "attn_q_norm.weight", src + "self_attn.q_norm.weight", d)
            p.vector(dst + "attn_k_norm.weight", src + "self_attn.k_norm.weight", d)
        p.vector(dst + "ffn_norm.weight", src + "post_attention_layernorm.weight", D)
        for x, rows, cols in (("gate", I, D), ("up", I, D), ("down", D, I)):
            p.matrix(f"{dst}ffn_{x}.weight", f"{src}mlp.{x}_proj.weight", (rows, cols))
            if mlp_bias:
                p.vector(f"{dst}ffn_{x}.bias", f"{src}mlp.{x}_proj.bias", rows)
    p.ignorable += COMMON_IGNORABLE
    return p


def embedding(config, p, names, source, D, default_tied):
    """token_embd and, untied, output. As transformers 5 reads it: tied, the one that exists serves
    both; both there and different means not tied after all (decided when they are read)."""
    head = "lm_head.weight"
    p.tied = config.bool("tie_word_embeddings", default=default_tied)
    if p.tied and source not in names and head in names:
        source = head
    p.matrix("token_embd.weight", source, (p.n_rows, D))
    if not p.tied:
        p.matrix("output.weight", head, (p.n_rows, D))
    elif source != head and head in names:
        p.twin = (source, head)
