"""OLMo-hybrid: gated delta net layers with norms in front, softmax layers whose outputs are
normalized instead (OLMo 2), q and k normalized over all heads at once; most have no positions.
No architecture of llama.cpp's: `linnet` (docs/format.md)."""
import numpy as np

from ..errors import ExportError
from .base import (COMMON_IGNORABLE, Out, Plan, choose_prefix, given_layer_types, refuse_foreign_options,
                   rope)
from .llama import embedding
from .qwen_hybrid import minus_exp

GATE_NORM_EPS = 1e-5  # of the mixers' output norm, fixed upstream whatever rms_norm_eps is


def recognise(config, names):
    return config.values.get("model_type") == "olmo_hybrid"


def layer_types(config, n_layers):
    """Per layer: is it a linear one?"""
    types = config.values.get("layer_types")
    if types is None:
        linear = [i % 4 != 3 for i in range(n_layers)]
        linear[-1] = linear[-1] and not all(linear)
        return linear
    return given_layer_types(config, types, n_layers, "linear_attention")


def positions(config, p, head_dim):
    """Rotary positions unless rope_theta, wherever it is given, is null."""
    key = "rope_parameters" if config.values.get("rope_parameters") is not None else "rope_scaling"
    params = config.sub(key)
    where = next((c.values for c in (params, config) if "rope_theta" in c.values), None)
    if where is not None and where["rope_theta"] is None:
        p.metadata.append(("linnet.rope.pairing", "str", "none"))
        return
    rope(config, p, head_dim)


def plan(config, names):
    n_layers = config.int("num_hidden_layers", default=32, high=1 << 16)
    p = Plan("linnet", config.int("vocab_size", default=100352))
    refuse_foreign_options(config)
    config.only("hidden_act", "silu")

    D = config.int("hidden_size", default=3840)
    I = config.int("intermediate_size", default=11008)
    Nh = config.int("num_attention_heads", default=30)
    Nkv = config.int("num_key_value_heads", default=None) or Nh
    d = config.int("head_dim", default=None) or D // Nh
    H = config.int("linear_num_key_heads", default=None) or Nh
    HV = config.int("linear_num_value_heads", default=None) or Nh
    K = config.int("linear_key_head_dim", default=None) or int(0.75 * D / H)
    V = config.int("linear_value_head_dim", default=None) or 2 * K
    W = config.int("linear_conv_kernel_dim", default=4)
    if d % 2 or Nh % Nkv:
        raise ExportError(f"{config.path}: head_dim {d} must be even and num_attention_heads {Nh} a "
                          f"multiple of num_key_value_heads {Nkv}")
    if HV % H:
        raise ExportError(f"{config.path}: linear_num_value_heads {HV} is not a multiple of "
                          f"linear_num_key_heads {H}")
    linear = layer_types(config, n_layers)
    bias = config.bool("attention_bias", default=False)

    p.u32("format_version", 1)
    p.u32("block_count", n_layers)
    p.u32("context_length", config.int("max_position_embeddings", default=65536))
    p.u32("embedding_length", D)
    p.u32("feed_forward_length", I)
    p.u32("attention.head_count", Nh)
    p.u32("attention.head_count_kv", Nkv)
    p.u32("attention.key_length", d)
    p.u32("attention.value_length", d)
    p.f32("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", default=1e-6))
    p.metadata.append(("linnet.mixers", "array",
                       ["gated_delta_net" if x else "softmax" for x in linear]))
    p.u32("delta.head_count", H)
    p.u32("delta.value_head_count", HV)
    p.u32("delta.key_length", K)
    p.u32("delta.value_length", V)
    p.u32("delta.conv_kernel", W)
    negative = config.bool("linear_allow_neg_eigval", default=True)
    p.f32("delta.beta_scale", 2.0 if negative else 1.0)
    p.f32("delta.norm_epsilon", GATE_NORM_EPS)
    positions(config, p, d)

    at = choose_prefix(names, "model.", "embed_tokens.weight")
    embedding(config, p, names, at + "embed_tokens.weight", D, default_tied=False)
    p.vector("output_norm.weight", at + "norm.weight", D)

    def either(*spellings):
        return next((s for s in spellings if s in names), spellings[0])

    for i in range(n_layers):
        src, dst = f"{at}layers.{i}.", f"blk.{i}."
        if linear[i]:
            p.vector(dst + "attn_norm.weight", either(src + "attention_layer_norm.weight",
                                                      src + "input_layernorm.weight"), D)
            delta_layer(p, names, src + "linear_attn.", dst, D, H, HV, K, V, W)
            p.vector(dst + "ffn_norm.weight", either(src + "feedforward_layer_norm.weight",
                                                     src + "post_attention_layernorm.weight"), D)
        else:
            # transformers 5.23 saves the first of them as feedforward_layer_norm
            p.vector(dst + "post_attention_norm.weight",
                     either(src + "post_attention_layernorm.weight",
                            src + "feedforward_layer_norm.weight"), D)
            p.vector(dst + "post_ffw_norm.weight", src + "post_feedforward_layernorm.weight", D)
            for x, rows in (("q", Nh * d), ("k", Nkv * d), ("v", Nkv * d)):
                p.matrix(f"{dst}attn_{x}.weight", f"{src}self_attn.{x}_proj.weight", (rows, D))
                if bias:
                    p.vector(f"{dst}attn_{x}.bias", f"{src}self_attn.{x}_proj.bias", rows)
                if x != "v":
                    p.vector(f"{dst}attn_{x}_norm.weight", f"{src}self_attn.{x}_norm.weight", rows)
            p.matrix(dst + "attn_output.weight", src + "self_attn.o_proj.weight", (D, Nh * d))
            if bias:
                p.vector(dst + "attn_output.bias", src + "self_attn.o_proj.bias", D)
        for x, rows, cols in (("gate", I, D), ("up", I, D), ("down", D, I)):
            p.matrix(f"{dst}ffn_{x}.weight", f"{src}mlp.{x}_proj.weight", (rows, cols))
    p.ignorable += COMMON_IGNORABLE
    return p


def delta_layer(p, names, src, dst, D, H, HV, K, V, W):
    KD, VD = H * K, HV * V
    channels = 2 * KD + VD
    p.tensors.append(Out(dst + "attn_qkv.weight",
                         tuple(f"{src}{x}_proj.weight" for x in "qkv"),
                         ((KD, D), (KD, D), (VD, D)), lambda *w: np.concatenate(w)))
    p.matrix(dst + "attn_gate.weight", src + "g_proj.weight", (VD, D))
    p.matrix(dst + "ssm_beta.weight", src + "b_proj.weight", (HV, D))
    p.matrix(dst + "ssm_alpha.weight", src + "a_proj.weight", (HV, D))
    taps = Out(dst + "ssm_conv1d.weight", (), (), f32=True)
    if src + "conv1d.weight" in names:
        taps.sources, taps.shapes = (src + "conv1d.weight",), ((channels, 1, W),)
    else:
        taps.sources = tuple(f"{src}{x}_conv1d.weight" for x in "qkv")
        taps.shapes = ((KD, 1, W), (KD, 1, W), (VD, 1, W))
        pieces = thirds(channels, W)
        if tuple(names.get(n) for n in taps.sources) == pieces:
            taps.shapes = pieces
    taps.make = lambda *w: np.concatenate(w).reshape(channels, W)
    p.tensors.append(taps)
    p.tensors.append(Out(dst + "ssm_a", (src + "A_log",), ((HV,),), minus_exp, f32=True,
                         computes=True))
    p.vector(dst + "ssm_dt.bias", src + "dt_bias", HV)
    p.vector(dst + "ssm_norm.weight", src + "o_norm.weight", V)
    p.matrix(dst + "ssm_out.weight", src + "o_proj.weight", (D, VD))


def thirds(channels, W):
    """transformers 5.23 saves the joined convolution in three nearly equal pieces."""
    part = -(-channels // 3)
    cuts = [min(part * i, channels) for i in range(4)]
    return tuple((b - a, 1, W) for a, b in zip(cuts, cuts[1:]))
