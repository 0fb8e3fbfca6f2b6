"""flash-linear-attention's delta_net and gated_deltanet, pure or with softmax layers (`attn`)."""
import math
from functools import partial

import numpy as np

from ..errors import ExportError
from .base import (
    COMMON_IGNORABLE,
    Out,
    Plan,
    choose_prefix,
    refuse_foreign_options,
    refuse_present,
    write_windows,
)
from .llama import embedding
from .qwen_hybrid import minus_exp

KINDS = ("delta_net", "gated_deltanet")


def recognise(config, names):
    return config.values.get("model_type") in KINDS


def join_rows(*parts):
    return np.concatenate(parts, axis=0)


def join_conv(*parts):
    """[C, 1, W] of q, k, v to [channels, W]."""
    return np.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=0)


def rows(first, last, w):
    return w[first:last]


def width(config, key, default, base):
    """base * expand, as an integer: flash-linear-attention 0.5 cut it, 0.6 wants it whole."""
    exact = base * config.number(key, default=default)
    n = round(exact) if math.isclose(exact, round(exact)) else int(exact)
    if n < 1:
        raise ExportError(f"{config.path}: {key} leaves no dimensions of {base}")
    return n


def feed_forward(config, D):
    n = config.int("intermediate_size", default=None)
    if n is None:
        n = int(D * config.number("hidden_ratio", default=4) * 2 / 3)
        n = 256 * -(-n // 256)
    return n


def choice(config, key, default, *allowed):
    v = config.str(key, default=default)
    if v not in allowed:
        raise ExportError(f"{config.path}: {key} = {v!r:.60} is not supported, expected "
                          f"{' or '.join(repr(a) for a in allowed)}")
    return v


class Softmax:
    """The `attn` of a hybrid: a dict, or a list of them, each with its own layers."""

    def __init__(self, config, n_layers, D):
        self.window = [0] * n_layers
        self.layers = {}  # layer: (num_heads, num_kv_heads, rope_theta, qkv_bias)
        v = config.values.get("attn")
        entries = v if isinstance(v, list) else [] if v is None else [v]
        for e in entries:
            if not isinstance(e, dict):
                raise ExportError(f"{config.path}: attn is {e!r:.60}, expected an object or a list "
                                  "of objects")
            self.add(type(config)(e, f"{config.path}: attn"), n_layers, D)

    def add(self, entry, n_layers, D):
        layers = entry.values.get("layers")
        if not isinstance(layers, list) or not all(type(i) is int and 0 <= i < n_layers
                                                   for i in layers):
            raise ExportError(f"{entry.path}: layers is {layers!r:.60}, expected a list of layer "
                              f"numbers below {n_layers}")
        twice = self.layers.keys() & set(layers)
        if twice:
            raise ExportError(f"{entry.path}: layer {min(twice)} is in two entries")
        heads = entry.int("num_heads")
        kv = entry.int("num_kv_heads", default=None) or heads
        theta = entry.number("rope_theta", default=10000.0)
        if D % heads or D // heads % 2 or heads % kv:
            raise ExportError(f"{entry.path}: num_heads {heads} must cut hidden_size {D} into even "
                              f"parts and be a multiple of num_kv_heads {kv}")
        window = entry.int("window_size", default=None) or 0
        bias = entry.bool("qkv_bias", default=False)
        for i in layers:
            self.window[i] = window
            self.layers[i] = heads, kv, theta, bias

    def write(self, p):
        """One number for all layers, or one for each where softmax layers differ; the others get
        that of the first softmax layer."""
        if not self.layers:
            return
        first = self.layers[min(self.layers)]
        keys = (("attention.head_count", p.u32, "u32s"), ("attention.head_count_kv", p.u32, "u32s"),
                ("rope.freq_base", p.f32, "f32s"))
        for n, (key, one, array) in enumerate(keys):
            each = [self.layers.get(i, first)[n] for i in range(len(self.window))]
            if len(set(each)) == 1:
                one(key, each[0])
            else:
                p.metadata.append((f"{p.arch}.{key}", array, each))
        write_windows(p, self.window)


def plan(config, names):
    gated = config.str("model_type") == "gated_deltanet"
    p = Plan("linnet", config.int("vocab_size", default=32000))
    refuse_foreign_options(config)
    act = choice(config, "hidden_act", "swish", "swish", "silu", "powlu")
    refuse_present(config, "attnres_block_size")
    for key in ("share_conv_kernel", "use_rope", "use_elu", "use_residual"):  # of spring 2024
        config.only(key, False)

    n_layers = config.int("num_hidden_layers", default=21 if gated else 24, high=1 << 16)
    D = config.int("hidden_size", default=2048)
    H = config.int("num_heads", default=6 if gated else 16)
    if gated:
        HV = config.int("num_v_heads", default=None) or H
        K = config.int("head_dim", default=256)
        V = width(config, "expand_v", 2.0, K)
        if HV % H:
            raise ExportError(f"{config.path}: num_v_heads {HV} is not a multiple of num_heads {H}")
        activation, norm = "silu", "l2"
        gate = choice(config, "output_gate_activation", "swish", "swish", "silu", "sigmoid")
    else:
        HV = H
        key, value = (width(config, e, 1.0, D) for e in ("expand_k", "expand_v"))
        if key % H or value % H:
            raise ExportError(f"{config.path}: key and value dimensions {key} and {value} are not "
                              f"multiples of num_heads {H}")
        K, V = key // H, value // H
        activation = choice(config, "qk_activation", "silu", "silu", "relu", "elu", "identity")
        norm = choice(config, "qk_norm", "l2", "l2", "sum")
        gate = "silu"
    has_beta = gated or config.bool("use_beta", default=True)
    has_gate = config.bool("use_gate", default=gated)
    has_conv = config.bool("use_short_conv", default=True)
    W = config.int("conv_size", default=4)
    eps = config.number("norm_eps", default=1e-6)
    I = feed_forward(config, D)
    softmax = Softmax(config, n_layers, D)

    p.u32("format_version", 1)
    p.u32("block_count", n_layers)
    p.u32("context_length", config.int("max_position_embeddings", default=2048))
    p.u32("embedding_length", D)
    p.u32("feed_forward_length", I)
    if act == "powlu":
        p.str("feed_forward.activation", act)
    p.f32("attention.layer_norm_rms_epsilon", eps)
    mixer = "gated_delta_net" if gated else "delta_net"
    p.metadata.append(("linnet.mixers", "array",
                       ["softmax" if i in softmax.layers else mixer for i in range(n_layers)]))
    p.u32("delta.head_count", H)
    p.u32("delta.value_head_count", HV)
    p.u32("delta.key_length", K)
    p.u32("delta.value_length", V)
    if has_conv:
        p.u32("delta.conv_kernel", W)
    p.str("delta.qk_activation", activation)
    p.str("delta.qk_norm", norm)
    p.f32("delta.beta_scale", 2.0 if config.bool("allow_neg_eigval", default=False) else 1.0)
    p.f32("delta.norm_epsilon", eps)
    p.str("delta.gate_activation", "sigmoid" if gate == "sigmoid" else "silu")
    softmax.write(p)

    at = choose_prefix(names, "model.", "embeddings.weight")
    embedding(config, p, names, at + "embeddings.weight", D, default_tied=False)
    p.vector("output_norm.weight", at + "norm.weight", D)
    for i in range(n_layers):
        src, dst = f"{at}layers.{i}.", f"blk.{i}."
        for old, new, ours in (("attn.norm", "attn_norm", "attn_norm"),
                               ("mlp.norm", "mlp_norm", "ffn_norm")):
            # `old` was the name of norm_first=true, until February 2025
            name = new if f"{src}{old}.weight" not in names else old
            p.vector(f"{dst}{ours}.weight", f"{src}{name}.weight", D)
        src += "attn."
        if i in softmax.layers:
            heads, kv, _, bias = softmax.layers[i]
            attention(p, src, dst, D, heads, kv, bias)
        else:
            delta(p, names, src, dst, D, gated, (H * K, H * K, HV * V), HV, V,
                  W if has_conv else 0, has_beta, has_gate)
        mlp(p, names, f"{at}layers.{i}.mlp.", dst, D, I)
    p.ignorable += COMMON_IGNORABLE + [r".*\.attn\.rotary\.inv_freq"]
    if gated:
        p.ignorable.append(r".*\.attn\.D")  # in early checkpoints, never used
    return p


def attention(p, src, dst, D, heads, kv, bias):
    d = D // heads
    for x, n in (("q", heads * d), ("k", kv * d), ("v", kv * d)):
        p.matrix(f"{dst}attn_{x}.weight", f"{src}{x}_proj.weight", (n, D))
        if bias:
            p.vector(f"{dst}attn_{x}.bias", f"{src}{x}_proj.bias", n)
    p.matrix(dst + "attn_output.weight", src + "o_proj.weight", (D, D))


def delta(p, names, src, dst, D, gated, parts, HV, V, W, has_beta, has_gate):
    def joined(name, suffix, shapes, make, f32=False):
        p.tensors.append(Out(dst + name, tuple(f"{src}{x}_{suffix}" for x in "qkv"),
                             tuple(shapes), make, f32=f32))

    def small(name, source):  # a few rows that steer the whole state: never quantized
        p.matrix(dst + name, src + source, (HV, D))
        p.tensors[-1].f32 = True

    joined("attn_qkv.weight", "proj.weight", [(n, D) for n in parts], join_rows)
    if W:
        joined("ssm_conv1d.weight", "conv1d.weight", [(n, 1, W) for n in parts], join_conv,
               f32=True)
        if any(f"{src}{x}_conv1d.bias" in names for x in "qkv"):  # conv_bias, not in any config
            joined("ssm_conv1d.bias", "conv1d.bias", [(n,) for n in parts], join_rows, f32=True)
    if has_beta:
        small("ssm_beta.weight", "b_proj.weight")
    if gated:
        small("ssm_alpha.weight", "a_proj.weight")
        p.vector(dst + "ssm_a", src + "A_log", HV, minus_exp)
        p.tensors[-1].computes = True
        p.vector(dst + "ssm_dt.bias", src + "dt_bias", HV)
    if has_gate:
        p.matrix(dst + "attn_gate.weight", src + "g_proj.weight", (HV * V, D))
    p.vector(dst + "ssm_norm.weight", src + "o_norm.weight", V)
    p.matrix(dst + "ssm_out.weight", src + "o_proj.weight", (D, HV * V))


def mlp(p, names, src, dst, D, I):
    both = src + "gate_proj.weight"
    if src + "up_proj.weight" in names or names.get(both) != (2 * I, D):
        p.matrix(dst + "ffn_gate.weight", src + "gate_proj.weight", (I, D))
        p.matrix(dst + "ffn_up.weight", src + "up_proj.weight", (I, D))
    else:  # until February 2025 one matrix: gate above up
        p.matrix(dst + "ffn_gate.weight", both, (2 * I, D), partial(rows, 0, I))
        p.matrix(dst + "ffn_up.weight", both, (2 * I, D), partial(rows, I, 2 * I))
    p.matrix(dst + "ffn_down.weight", src + "down_proj.weight", (D, I))
