"""Qwen3-Next and Qwen3.5, dense: gated delta net layers between gated softmax layers, as llama.cpp's
architectures qwen3next and qwen35 (conversion/qwen.py there). 1 is added to zero-centred norms,
A_log is stored as -exp(A_log), and qwen35 orders value heads by their place in the group first:
value head j uses q/k head j mod H, where checkpoints have j / (HV / H)."""
from functools import partial

import numpy as np

from ..errors import ExportError
from .base import (COMMON_IGNORABLE, Config, Out, Plan, given_layer_types, refuse_foreign_options,
                   rope)
from .llama import embedding

KINDS = ("qwen3_next", "qwen3_5", "qwen3_5_text")
MOE = ("qwen3_5_moe", "qwen3_5_moe_text")
DEFAULT_SECTIONS = [11, 11, 10, 0]  # of the upstream class; any do for text


def recognise(config, names):
    return config.values.get("model_type") in KINDS + MOE


def text_config(config):
    """The language model's part of an image+text config, with the outer word on tying."""
    text = config.sub("text_config")
    if not text.values:
        return config
    values = dict(text.values)
    if config.values.get("tie_word_embeddings") is not None:
        values["tie_word_embeddings"] = config.values["tie_word_embeddings"]
    return Config(values, text.path)


def layer_types(config, n_layers):
    """Per layer: is it a linear one?"""
    interval = config.int("full_attention_interval", default=4)
    types = config.values.get("layer_types")
    if types is None:
        return [(i + 1) % interval != 0 for i in range(n_layers)]
    return given_layer_types(config, types, n_layers, "linear_attention")


def refuse_experts(config, kind, n_layers):
    """A layer of qwen3_next is sparse unless it is listed or skipped by the step."""
    if kind in MOE:
        raise ExportError(f"{config.path}: model_type {kind!r} is a mixture of experts, which is "
                          "not supported")
    if kind != "qwen3_next":
        return
    experts = config.int("num_experts", default=512, low=0)
    step = config.int("decoder_sparse_step", default=1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ExportError(f"{config.path}: mlp_only_layers is {dense!r:.60}, expected a list")
    sparse = [i for i in range(n_layers) if experts and i not in dense and (i + 1) % step == 0]
    if sparse:
        raise ExportError(f"{config.path}: layer {sparse[0]} is a mixture of {experts} experts, "
                          "which is not supported (only num_experts 0 or mlp_only_layers)")


def rotary(config, p, head_dim):
    """The leading part of each head rotates. The three sections of positions (time, height, width)
    are all the same for text."""
    key = "rope_parameters" if config.values.get("rope_parameters") is not None else "rope_scaling"
    params = config.sub(key)
    factor = (params.number("partial_rotary_factor", default=None)
              or config.number("partial_rotary_factor", default=0.25))
    dim = int(head_dim * factor)
    if dim < 2 or dim % 2 or dim > head_dim:
        raise ExportError(f"{params.path}: partial_rotary_factor {factor:g} of head_dim {head_dim} "
                          f"is {dim} dimensions, expected an even number up to {head_dim}")
    rest = {k: v for k, v in params.values.items()
            if k not in ("partial_rotary_factor", "mrope_section", "mrope_interleaved")}
    values = {k: v for k, v in config.values.items() if k != "partial_rotary_factor"}
    rope(Config({**values, key: rest}, config.path), p, dim)
    sections = params.values.get("mrope_section") or DEFAULT_SECTIONS
    if not isinstance(sections, list) or not all(type(s) is int and s >= 0 for s in sections):
        raise ExportError(f"{params.path}: mrope_section is {sections!r:.60}, expected integers")
    if p.arch == "qwen35":
        p.metadata.append(("qwen35.rope.dimension_sections", "array", (sections + [0] * 4)[:4]))


def plus_one(w):
    return w + np.float32(1)


def minus_exp(w):
    with np.errstate(over="ignore"):  # infinite then, which `info --check` finds
        return -np.exp(w.astype(np.float64)).astype(np.float32)


def tile_heads(H, r, w, axis=0, skip=0):
    """Value heads along `axis`, after `skip` entries, from [group][place] to [place][group]."""
    head, tail = np.split(w, [skip], axis)
    shape = tail.shape
    split = shape[:axis] + (H, r, shape[axis] // (H * r)) + shape[axis + 1:]
    tail = np.swapaxes(tail.reshape(split), axis, axis + 1).reshape(shape)
    return np.concatenate([head, tail], axis)


def ungroup(H, sizes, parts, w):
    """Rows [q K | k K | v r V | z r V] per q/k head to the `parts` of them, each for all heads."""
    groups = np.split(w.reshape(H, sum(sizes), w.shape[1]), np.cumsum(sizes)[:-1], 1)
    return np.concatenate([groups[i].reshape(-1, w.shape[1]) for i in parts])


def plan(config, names):
    kind = config.str("model_type")
    config = text_config(config)
    n_layers = config.int("num_hidden_layers", default=48 if kind == "qwen3_next" else 32,
                          high=1 << 16)
    refuse_experts(config, kind, n_layers)
    new = kind == "qwen3_next"
    p = Plan("qwen3next" if new else "qwen35",
             config.int("vocab_size", default=151936 if new else 248320))
    refuse_foreign_options(Config({k: v for k, v in config.values.items() if k != "num_experts"},
                                  config.path))
    config.only("hidden_act", "silu")

    # what is absent has the value of the upstream class
    D = config.int("hidden_size", default=2048 if new else 4096)
    I = config.int("intermediate_size", default=5632 if new else 12288)
    Nh = config.int("num_attention_heads", default=16)
    Nkv = config.int("num_key_value_heads", default=2 if new else 4)
    d = config.int("head_dim", default=256)
    H = config.int("linear_num_key_heads", default=16)
    HV = config.int("linear_num_value_heads", default=32)
    K = config.int("linear_key_head_dim", default=128)
    V = config.int("linear_value_head_dim", default=128)
    W = config.int("linear_conv_kernel_dim", default=4)
    if d % 2 or Nh % Nkv:
        raise ExportError(f"{config.path}: head_dim {d} must be even and num_attention_heads {Nh} a "
                          f"multiple of num_key_value_heads {Nkv}")
    if HV % H:
        raise ExportError(f"{config.path}: linear_num_value_heads {HV} is not a multiple of "
                          f"linear_num_key_heads {H}")
    linear = layer_types(config, n_layers)
    bias = config.bool("attention_bias", default=False)

    p.u32("block_count", n_layers)
    p.u32("context_length", config.int("max_position_embeddings", default=32768))
    p.u32("embedding_length", D)
    p.u32("feed_forward_length", I)
    p.u32("attention.head_count", Nh)
    p.u32("attention.head_count_kv", Nkv)
    p.u32("attention.key_length", d)
    p.u32("attention.value_length", d)
    p.f32("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", default=1e-6))
    p.u32("ssm.conv_kernel", W)
    p.u32("ssm.state_size", K)
    p.u32("ssm.group_count", H)
    p.u32("ssm.time_step_rank", HV)
    p.u32("ssm.inner_size", HV * V)
    p.metadata.append((f"{p.arch}.attention.recurrent_layers", "array", linear))
    p.u32("full_attention_interval", config.int("full_attention_interval", default=4))
    rotary(config, p, d)
    p.u32("vocab_size", p.n_rows)

    at = next((a for a in ("model.", "model.language_model.", "language_model.model.",
                           "language_model.", "")
               if a + "embed_tokens.weight" in names), "model.")
    if "lm_head.weight" in names and at + "embed_tokens.weight" not in names:
        at = next((a for a in ("model.language_model.", "model.")
                   if a + "norm.weight" in names), at)
    embedding(config, p, names, at + "embed_tokens.weight", D, default_tied=False)

    def norm(name, source, n):
        p.tensors.append(Out(name, (source,), ((n,),), plus_one, f32=True, computes=True))

    norm("output_norm.weight", at + "norm.weight", D)
    for i in range(n_layers):
        src, dst = f"{at}layers.{i}.", f"blk.{i}."
        norm(dst + "attn_norm.weight", src + "input_layernorm.weight", D)
        norm(dst + "post_attention_norm.weight", src + "post_attention_layernorm.weight", D)
        if linear[i]:
            delta_layer(p, src + "linear_attn.", dst, D, H, HV, K, V, W)
        else:
            for x, rows in (("q", 2 * Nh * d), ("k", Nkv * d), ("v", Nkv * d)):
                p.matrix(f"{dst}attn_{x}.weight", f"{src}self_attn.{x}_proj.weight", (rows, D))
                if bias:
                    p.vector(f"{dst}attn_{x}.bias", f"{src}self_attn.{x}_proj.bias", rows)
            p.matrix(dst + "attn_output.weight", src + "self_attn.o_proj.weight", (D, Nh * d))
            if bias:
                p.vector(dst + "attn_output.bias", src + "self_attn.o_proj.bias", D)
            norm(dst + "attn_q_norm.weight", src + "self_attn.q_norm.weight", d)
            norm(dst + "attn_k_norm.weight", src + "self_attn.k_norm.weight", d)
        for x, rows, cols in (("gate", I, D), ("up", I, D), ("down", D, I)):
            p.matrix(f"{dst}ffn_{x}.weight", f"{src}mlp.{x}_proj.weight", (rows, cols))
    p.ignorable += COMMON_IGNORABLE + [r"model\.mtp\..*"]
    return p


def delta_layer(p, src, dst, D, H, HV, K, V, W):
    r, KD, VD = HV // H, H * K, HV * V
    if p.arch == "qwen3next":  # its value heads stay in the checkpoint's order
        def tile(*_, **__):
            return None
        sizes = (K, K, r * V, r * V)
        qkvz = src + "in_proj_qkvz.weight"
        p.matrix(dst + "attn_qkv.weight", qkvz, (2 * KD + 2 * VD, D),
                 partial(ungroup, H, sizes, (0, 1, 2)))
        p.matrix(dst + "attn_gate.weight", qkvz, (2 * KD + 2 * VD, D),
                 partial(ungroup, H, sizes, (3,)))
        p.matrix(dst + "ssm_ba.weight", src + "in_proj_ba.weight", (2 * HV, D))
    else:
        def tile(**where):
            return partial(tile_heads, H, r, **where) if r > 1 else None
        p.matrix(dst + "attn_qkv.weight", src + "in_proj_qkv.weight", (2 * KD + VD, D),
                 tile(skip=2 * KD))
        p.matrix(dst + "attn_gate.weight", src + "in_proj_z.weight", (VD, D), tile())
        p.matrix(dst + "ssm_beta.weight", src + "in_proj_b.weight", (HV, D), tile())
        p.matrix(dst + "ssm_alpha.weight", src + "in_proj_a.weight", (HV, D), tile())

    rows = tile(skip=2 * KD) or (lambda w: w)
    p.tensors.append(Out(dst + "ssm_conv1d.weight", (src + "conv1d.weight",),
                         ((2 * KD + VD, 1, W),), lambda w: rows(w.reshape(2 * KD + VD, W)),
                         f32=True))
    heads = tile() or (lambda w: w)
    p.tensors.append(Out(dst + "ssm_a", (src + "A_log",), ((HV,),),
                         lambda w: minus_exp(heads(w)), f32=True, computes=True))
    p.vector(dst + "ssm_dt.bias", src + "dt_bias", HV, tile())
    p.vector(dst + "ssm_norm.weight", src + "norm.weight", V)
    p.matrix(dst + "ssm_out.weight", src + "out_proj.weight", (D, VD), tile(axis=1))
