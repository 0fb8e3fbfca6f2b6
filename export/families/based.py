"""HazyResearch/based: hybrids of gated short convolutions, Taylor linear attention and sliding
windows, and the attention models of the same papers (attn-360m, attn-1b). Their config.json went
through GPT2Config, so it says model_type gpt2: they are known by their keys and tensor names."""
import re
from functools import partial

import numpy as np

from ..errors import ExportError
from .base import COMMON_IGNORABLE, Out, Plan, refuse_foreign_options, refuse_present, write_windows

LAYER = re.compile(r"(model\.)?transformer\.layers\.\d+\.mixer\.")
CLASSES = {"BaseConv": "short_conv", "LinearAttention": "based_taylor",
           "SlidingAttention": "sliding", "MHA": "full"}
# tensors by which a layer tells its mixer where the config does not
SIGNS = (("in_proj.weight", "short_conv"), ("proj_q.weight", "based_taylor"),
         ("Wqkv.weight", "sliding"))
ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}  # of the gate

# Options of upstream's two GPT classes that change the numbers; (key, values that do not).
NEUTRAL = [("prenorm", True), ("parallel_block", False), ("use_alibi", False),
           ("attn_dwconv", False), ("lm_head_bias", False), ("norm_head", False),
           ("mup_scale_qk_dot_by_d", False), ("mup_attn_multiplier", 1, 1.0),
           ("mup_embeddings_multiplier", 1, 1.0), ("mup_output_multiplier", 1, 1.0),
           ("mup_width_scale", 1, 1.0), ("window_size", [-1, -1]), ("fused_mlp", False),
           ("fused_dense_sqrelu_dense", False)]


def recognise(config, names):
    keys = ("mixer", "alt_mixer", "alt_mixer_2")
    return any(isinstance(config.values.get(k), dict) for k in keys) or any(map(LAYER.match, names))


class Source:
    """Tensor names with or without the `model.` that some trainers leave in front."""

    def __init__(self, names):
        self.names = names

    def __call__(self, name):
        return "model." + name if "model." + name in self.names else name

    def has(self, name):
        return self(name) in self.names


def plan(config, names):
    refuse_foreign_options(config)
    for key, *values in NEUTRAL:
        config.only(key, *values)
    for key in ("rotary_emb_scale_base", "word_embed_proj_dim"):
        refuse_present(config, key)
    if not config.bool("rms_norm", default=False):  # upstream's default is LayerNorm
        raise ExportError(f"{config.path} has no rms_norm, so its norms are LayerNorms, which are "
                          "not supported")
    src = Source(names)
    positions = src("transformer.embeddings.position_embeddings.weight")
    if positions in names:
        raise ExportError(f"{config.path}: learned positions ({positions}) are not supported")
    multiple = config.int("pad_vocab_size_multiple", default=1)
    p = Plan("linnet", -(-config.int("vocab_size") // multiple) * multiple)
    n_layers = config.int("n_layer", "num_hidden_layers", high=1 << 10)
    D = config.int("n_embd", "hidden_size")
    slots = [slot_of(config, i) for i in range(n_layers)]
    kinds = [kind_of(config, s, src, i) for i, s in enumerate(slots)]

    p.u32("format_version", 1)
    p.u32("block_count", n_layers)
    p.u32("context_length", context_length(config))
    p.u32("embedding_length", D)
    p.f32("attention.layer_norm_rms_epsilon", config.number("layer_norm_epsilon", default=1e-5))
    p.metadata.append(("linnet.mixers", "array",
                       [k if k in ("short_conv", "based_taylor") else "softmax" for k in kinds]))
    attention = Attention(config, p, D, {"sliding", "full"} & set(kinds))
    write_windows(p, [window(config, s) if k == "sliding" else 0 for s, k in zip(slots, kinds)])
    taylor = one_of(config, slots, kinds, "based_taylor", partial(taylor_options, D=D))
    conv = one_of(config, slots, kinds, "short_conv", partial(conv_options, D=D))
    if taylor:
        p.u32("based.head_count", taylor["heads"])
        p.u32("based.feature_length", taylor["features"])
        p.u32("based.value_length", taylor["values"])
        p.f32("based.epsilon", taylor["eps"])
    if conv:
        p.u32("shortconv.l_cache", conv["kernel"])
        p.u32("shortconv.inner_length", conv["inner"])

    embedding(config, p, src, D)
    p.vector("output_norm.weight", src("transformer.ln_f.weight"), D)
    ff = FeedForward(config, p, src, D)
    for i, kind in enumerate(kinds):
        at, dst = f"transformer.layers.{i}.", f"blk.{i}."
        p.vector(dst + "attn_norm.weight", src(at + "norm1.weight"), D)
        if kind == "short_conv":
            add_conv(p, src, at + "mixer.", dst + "shortconv.", D, conv)
        elif kind == "based_taylor":
            add_taylor(p, src, at + "mixer.", dst, D, taylor)
        else:
            attention.add(src, at + "mixer.", dst, i)
        p.vector(dst + "ffn_norm.weight", src(at + "norm2.weight"), D)
        ff.add(at + "mlp.", dst)
    p.ignorable += COMMON_IGNORABLE + [r".*metrics.*", r"(model\.)?transformer\.decay\.decay"]
    return p


def context_length(config):
    """n_positions, which is 0 where max_position_embeddings, its alias, switched positions off."""
    lengths = [config.int("n_positions", default=0, low=0)]
    lengths += [config.sub(k).int("l_max", default=0, low=0)
                for k in ("mixer", "alt_mixer", "alt_mixer_2")]
    return next((n for n in lengths if n), 2048)


# ---- Which mixer where ----------------------------------------

def layer_list(config, key):
    layers = config.values.get(key)
    if layers is None:
        return ()
    if not isinstance(layers, list) or any(type(i) is not int for i in layers):
        raise ExportError(f"{config.path}: {key} is {layers!r:.60}, expected a list of layer numbers")
    return layers


def slot_of(config, layer):
    """The key of the layer's mixer, None for plain attention: the second list wins."""
    slot = "mixer"
    if layer in layer_list(config, "alt_mixer_2_layers"):
        slot = "alt_mixer_2"
    elif layer in layer_list(config, "alt_mixer_layers"):
        slot = "alt_mixer"
    return slot if config.values.get(slot) is not None else None


def kind_of(config, slot, src, layer):
    if slot is None:
        return "full"
    target = config.sub(slot).str("_target_", default=None)
    if target is None:
        for sign, kind in SIGNS:
            if src.has(f"transformer.layers.{layer}.mixer.{sign}"):
                return kind
        raise ExportError(f"{config.path}: {slot} has no _target_, and the tensors of layer {layer} "
                          "do not tell its mixer")
    name = target.rpartition(".")[2]
    if name not in CLASSES:
        raise ExportError(f"{config.path}: {slot} is {target!r:.80}, expected a BaseConv, "
                          "LinearAttention or SlidingAttention")
    return CLASSES[name]


def one_of(config, slots, kinds, kind, read):
    """The options of a mixer, which are one for all its layers in a model file."""
    found = {}
    for slot in {s for s, k in zip(slots, kinds) if k == kind}:
        found[slot] = read(config.sub(slot))
    if len({tuple(v.items()) for v in found.values()}) > 1:
        raise ExportError(f"{config.path}: {' and '.join(sorted(found))} are {kind} mixers with "
                          "different options, which is not supported")
    return next(iter(found.values()), None)


# ---- Mixers ----------------------------------------

def window(config, slot):
    """Upstream asks flash-attn for window_size // 2 keys to the left, besides the query's own."""
    return config.sub(slot).int("window_size", default=128, low=0) // 2 + 1


def taylor_options(c, D):
    heads = c.int("num_heads", default=16)
    features = c.int("feature_dim", default=16, high=65)
    feature_map = c.sub("feature_map")
    name = feature_map.str("_target_", default="TaylorExp").rpartition(".")[2]
    if name != "TaylorExp":
        raise ExportError(f"{feature_map.path} is a {name:.40}, expected TaylorExp")
    if feature_map.int("input_dim", default=features) != features:
        raise ExportError(f"{feature_map.path}: input_dim {feature_map.values['input_dim']} differs "
                          f"from feature_dim {features}, which is not supported")
    how = c.str("parallel_implementation", default="quadratic")
    if how not in ("quadratic", "linear", "fla_parallel", "fla_chunk"):
        raise ExportError(f"{c.path}: parallel_implementation {how!r:.40} is not supported, expected "
                          "quadratic, linear, fla_parallel or fla_chunk")
    values = c.int("head_dim", default=None) or D // heads
    eps = c.number("eps", default=1e-12, low=-1e-30)
    return dict(heads=heads, features=features, values=values,
                eps=1e-6 if how.startswith("fla") else eps)  # fla's own, whatever the config says


def add_taylor(p, src, at, dst, D, o):
    qk, v = o["heads"] * o["features"], o["heads"] * o["values"]
    for x, rows in (("q", qk), ("k", qk), ("v", v)):
        p.matrix(f"{dst}attn_{x}.weight", src(f"{at}proj_{x}.weight"), (rows, D))
    p.matrix(dst + "attn_output.weight", src(at + "out_proj.weight"), (D, v))


def conv_options(c, D):
    inner = c.int("expand_proj", default=2) * D // 2
    # kernel_size is the argument's name; the `kernel_sizes` of upstream's configs is not read
    return dict(inner=inner, kernel=c.int("kernel_size", default=3, high=65),
                bias=c.bool("use_bias", default=True))


def add_conv(p, src, at, dst, D, o):
    e, kernel = o["inner"], o["kernel"]
    p.matrix(dst + "in_proj.weight", src(at + "in_proj.weight"), (2 * e, D))
    p.matrix(dst + "out_proj.weight", src(at + "out_proj.weight"), (D, e))
    if o["bias"]:
        p.vector(dst + "in_proj.bias", src(at + "in_proj.bias"), 2 * e)
        p.vector(dst + "out_proj.bias", src(at + "out_proj.bias"), D)
    p.tensors.append(Out(dst + "conv.weight", (src(at + "conv.conv.weight"),), ((e, 1, kernel),),
                         lambda w: w[:, 0, :], f32=True))
    if src.has(at + "conv.conv.bias"):  # where it was trained with the CUDA convolution
        p.vector(dst + "conv.bias", src(at + "conv.conv.bias"), e)


class Attention:
    """Softmax layers, with a window or without: one geometry for the whole model."""

    def __init__(self, config, p, D, used):
        self.plan, self.D = p, D
        H = self.heads = config.int("n_head", "num_attention_heads")
        KV = self.kv_heads = config.int("n_head_kv", default=None) or H
        d = self.head_dim = D // H
        if used and (D % H or H % KV or d % 2 or d > 512):
            raise ExportError(f"{config.path}: n_embd {D} with n_head {H} and n_head_kv {KV}: "
                              "expected equal heads of an even size up to 512")
        if used and config.int("head_dim", default=d) != d:
            raise ExportError(f"{config.path}: head_dim {config.values['head_dim']} is not n_embd "
                              f"{D} / n_head {H}")
        p.u32("attention.head_count", H)
        p.u32("attention.head_count_kv", KV if used else H)
        if not used:  # heads that no layer has, of a size that a reader takes
            d = max(2, min(d, 512) // 2 * 2)
        p.u32("attention.key_length", d)
        p.u32("attention.value_length", d)
        self.scale_by_layer = config.bool("scale_attn_by_inverse_layer_idx", default=False)
        self.scale = 1.0 if config.bool("scale_attn_weights", default=True) else d ** 0.5
        self.qkv_bias = config.bool("qkv_proj_bias", default=True)
        self.out_bias = config.bool("out_proj_bias", default=True)
        self.rope(config, p, used)

    def rope(self, config, p, used):
        fraction = config.number("rotary_emb_fraction", default=0.0, low=-1e-9)
        if fraction > 1:
            raise ExportError(f"{config.path}: rotary_emb_fraction is {fraction:g}, expected at most "
                              "1")
        width = int(fraction * self.head_dim)
        self.interleaved = config.bool("rotary_emb_interleaved", default=False)
        self.rotated = width + width % 2  # an odd width has (width + 1) / 2 frequencies
        if not used or not width:
            p.str("rope.pairing", "none")
            return
        base = config.number("rotary_emb_base", default=10000.0, low=1.0)
        # frequency m is base^(-2m / width), also of an odd width; a reader divides by `rotated`
        p.f32("rope.freq_base", base ** (self.rotated / width))
        p.u32("rope.dimension_count", self.rotated)

    def rows(self, first, heads, rotates, factor, w):
        w = w[first:first + heads * self.head_dim]
        if rotates and self.interleaved and self.rotated:  # pairs (2i, 2i+1) to (i, i + half)
            order = np.arange(self.head_dim)
            order[:self.rotated] = np.r_[0:self.rotated:2, 1:self.rotated:2]
            w = w.reshape(heads, self.head_dim, -1)[:, order].reshape(w.shape)
        return np.ascontiguousarray(w if factor == 1.0 else w * np.float32(factor))

    def add(self, src, at, dst, layer):
        p, D = self.plan, self.D
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        factor = self.scale / (layer + 1) if self.scale_by_layer else self.scale
        for x, first, heads, rotates, f in (("q", 0, self.heads, True, factor),
                                            ("k", q, self.kv_heads, True, 1.0),
                                            ("v", q + kv, self.kv_heads, False, 1.0)):
            make = partial(self.rows, first, heads, rotates, f)
            p.matrix(f"{dst}attn_{x}.weight", src(at + "Wqkv.weight"), (q + 2 * kv, D), make)
            p.tensors[-1].computes = f != 1.0
            if self.qkv_bias:
                p.vector(f"{dst}attn_{x}.bias", src(at + "Wqkv.bias"), q + 2 * kv, make)
                p.tensors[-1].computes = f != 1.0
        p.matrix(dst + "attn_output.weight", src(at + "out_proj.weight"), (D, q))
        if self.out_bias:
            p.vector(dst + "attn_output.bias", src(at + "out_proj.bias"), D)


# ---- The rest ----------------------------------------

class FeedForward:
    """Gated: fc1 gives the value's rows, then the gate's. Its width is read from the tensor, since
    upstream rounded it up differently over time."""

    def __init__(self, config, p, src, D):
        self.plan, self.src, self.D = p, src, D
        activation = config.str("activation_function", default="gelu_new")
        if activation not in ACTIVATIONS:
            raise ExportError(f"{config.path}: activation_function {activation!r:.40} is not "
                              f"supported, expected {', '.join(ACTIVATIONS)}")
        self.alt = config.str("mlp_type", default="base") == "alt"
        config.only("mlp_type", "base", "alt")
        if self.alt:
            config.only("activation_function", "swiglu")
        self.bias1 = config.bool("mlp_fc1_bias", default=True)
        self.bias2 = config.bool("mlp_fc2_bias", default=True)
        shape = src.names.get(src("transformer.layers.0.mlp.fc1.weight"))
        if shape is None:
            raise ExportError(f"{config.path}: tensor transformer.layers.0.mlp.fc1.weight is missing")
        self.width = shape[0] if self.alt else shape[0] // 2
        p.u32("feed_forward_length", self.width)
        if ACTIVATIONS[activation] != "silu":
            p.str("feed_forward.activation", ACTIVATIONS[activation])

    def add(self, at, dst):
        p, src, h = self.plan, self.src, self.width
        if self.alt:
            halves = (("gate", "fc1", h, None), ("up", "fc3", h, None))
        else:
            halves = (("up", "fc1", 2 * h, lambda w: np.ascontiguousarray(w[:h])),
                      ("gate", "fc1", 2 * h, lambda w: np.ascontiguousarray(w[h:])))
        for x, fc, rows, make in halves:
            p.matrix(f"{dst}ffn_{x}.weight", src(f"{at}{fc}.weight"), (rows, self.D), make)
            if self.bias1:
                p.vector(f"{dst}ffn_{x}.bias", src(f"{at}{fc}.bias"), rows, make)
        p.matrix(dst + "ffn_down.weight", src(at + "fc2.weight"), (self.D, h))
        if self.bias2:
            p.vector(dst + "ffn_down.bias", src(at + "fc2.bias"), self.D)


def embedding(config, p, src, D):
    """One matrix under two names; files may hold either or both."""
    table, head = src("transformer.embeddings.word_embeddings.weight"), src("lm_head.weight")
    p.tied = config.bool("tie_word_embeddings", default=True)
    if p.tied and table not in src.names:
        table, head = head, None
    p.matrix("token_embd.weight", table, (p.n_rows, D))
    if not p.tied:
        p.matrix("output.weight", head, (p.n_rows, D))
    elif head in src.names:
        p.twin = (table, head)
