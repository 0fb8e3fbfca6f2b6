"""What every family needs: a checked view of config.json and the plan that the writer follows."""
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..errors import ExportError

REQUIRED = object()
F32_LEAST, F32_MOST = 1.2e-38, 3.4e38


class Config:
    """config.json with typed, range-checked reads. Several keys = spellings, first present wins;
    null counts as absent."""

    def __init__(self, values, path):
        self.values, self.path = values, path

    def find(self, keys, default):
        for key in keys:
            if self.values.get(key) is not None:
                return key, self.values[key]
        if default is REQUIRED:
            raise ExportError(f"{self.path} has no {keys[0]}")
        return keys[0], default

    def int(self, *keys, default=REQUIRED, low=1, high=1 << 31):
        key, v = self.find(keys, default)
        if v is default:
            return v
        if type(v) is float and v.is_integer():
            v = int(v)
        if type(v) is not int or not low <= v < high:
            bound = f"at most {high - 1}" if type(v) is int and v >= high else f"at least {low}"
            raise ExportError(f"{self.path}: {key} is {v!r:.60}, expected an integer of {bound}")
        return v

    def number(self, *keys, default=REQUIRED, low=0.0):
        key, v = self.find(keys, default)
        if v is default:
            return v
        if type(v) not in (int, float) or not low < v < F32_MOST or 0 < abs(v) < F32_LEAST:
            raise ExportError(f"{self.path}: {key} is {v!r:.60}, expected a number above {low:g} "
                              "that float32 holds")
        return float(v)

    def bool(self, *keys, default=REQUIRED):
        key, v = self.find(keys, default)
        if type(v) is not bool:
            raise ExportError(f"{self.path}: {key} is {v!r:.60}, expected true or false")
        return v

    def str(self, *keys, default=REQUIRED):
        key, v = self.find(keys, default)
        if v is not default and not isinstance(v, str):
            raise ExportError(f"{self.path}: {key} is {v!r:.60}, expected a string")
        return v

    def sub(self, key):
        """A nested object, {} where it is absent."""
        _, v = self.find((key,), {})
        if not isinstance(v, dict):
            raise ExportError(f"{self.path}: {key} is {v!r:.60}, expected an object")
        return Config(v, f"{self.path}: {key}")

    def only(self, key, *allowed):
        """Refuses an option whose other values would change the numbers. Absent is allowed."""
        v = self.values.get(key)
        if v is not None and v not in allowed:
            raise ExportError(f"{self.path}: {key} = {v!r:.60} is not supported, expected "
                              f"{' or '.join(repr(a) for a in allowed)}")


@dataclass
class Out:
    """One tensor of the model file: made from `sources` (names) of `shapes` by `make`, which may
    only move numbers about, so that it works on the raw bits of any dtype, unless it `computes`:
    then it gets float32 arrays and gives one."""
    name: str
    sources: tuple
    shapes: tuple
    make: Callable | None = None
    f32: bool = False              # norms, biases, positions: never anything else
    value: np.ndarray | None = None  # a constant of this file instead of a source
    computes: bool = False

    @property
    def shape(self):
        """Of the result, without reading anything."""
        if self.value is not None:
            return self.value.shape
        if self.make is None:
            return self.shapes[0]
        return self.make(*[np.empty(s, np.bool_) for s in self.shapes]).shape


@dataclass
class Plan:
    arch: str
    n_rows: int  # of the embedding: the vocabulary is padded to it
    metadata: list = field(default_factory=list)  # (key, "u32" | "f32" | "str" | "u32s" | "f32s", value)
    tensors: list = field(default_factory=list)
    ignorable: list = field(default_factory=list)  # regular expressions for full names
    notes: list = field(default_factory=list)
    tied: bool = False
    twin: tuple | None = None   # tied by name (embedding, head), but both are in the file

    def u32(self, key, value):
        self.metadata.append((f"{self.arch}.{key}", "u32", value))

    def f32(self, key, value):
        self.metadata.append((f"{self.arch}.{key}", "f32", value))

    def str(self, key, value):
        self.metadata.append((f"{self.arch}.{key}", "str", value))

    def matrix(self, name, source, shape, make=None):
        self.tensors.append(Out(name, (source,), (tuple(shape),), make))

    def vector(self, name, source, n, make=None):
        self.tensors.append(Out(name, (source,), ((n,),), make, f32=True))

    def constant(self, name, value):
        self.tensors.append(Out(name, (), (), f32=True, value=value))


# Saved by old versions of transformers or by other parts of a larger model: no weights of ours.
COMMON_IGNORABLE = [r".*rotary_emb\.(inv_freq|cos_cached|sin_cached|original_inv_freq)",
                    r"(model\.)?visual\..*", r"mtp\..*", r".*\.masked_bias"]

# Options that other families share and that change the numbers; (key, values that do not).
NEUTRAL = [("quantization_config", {}), ("embedding_multiplier", 1, 1.0),
           ("residual_multiplier", 1, 1.0), ("logits_scaling", 1, 1.0),
           ("attention_multiplier",), ("final_logit_softcapping",), ("attn_logit_softcapping",),
           ("clip_qkv",), ("num_experts", 0), ("num_local_experts", 0), ("no_rope_layers",),
           ("is_encoder_decoder", False), ("add_cross_attention", False), ("use_mrope", False)]


def refuse_foreign_options(config):
    for key, *neutral in NEUTRAL:
        config.only(key, *neutral) if neutral else refuse_present(config, key)


def refuse_present(config, key):
    if config.values.get(key) is not None:
        raise ExportError(f"{config.path}: {key} = {config.values[key]!r:.60} is not supported")


def choose_prefix(names, prefix, probe):
    """"model." for a whole causal model, "" for a bare trunk."""
    return prefix if prefix + probe in names or probe not in names else ""


def rope(config, plan, head_dim):
    """rope_parameters (transformers 5) or rope_theta + rope_scaling (older), as GGUF keys and,
    for llama3, the tensor rope_freqs.weight: factors by which each pair's frequency is divided."""
    new = config.values.get("rope_parameters") is not None
    params = config.sub("rope_parameters" if new else "rope_scaling")
    if any(isinstance(v, dict) for v in params.values.values()):
        raise ExportError(f"{params.path} differs by kind of layer, which is not supported")
    theta = params.number("rope_theta", default=None) or config.number("rope_theta", default=10000.0)
    plan.f32("rope.freq_base", theta)
    plan.u32("rope.dimension_count", head_dim)
    for c in (params, config):
        c.only("partial_rotary_factor", 1, 1.0)
    refuse_present(params, "mrope_section")

    kind = params.str("rope_type", "type", default="default")
    if kind == "default":
        return
    if kind not in ("linear", "yarn", "llama3"):
        raise ExportError(f"{params.path}: rope_type {kind!r} is not supported, expected default, "
                          "linear, yarn or llama3")
    factor = params.number("factor")
    original = None
    if kind != "linear":
        original = (config.int("original_max_position_embeddings", default=None) or
                    params.int("original_max_position_embeddings", default=None) or
                    config.int("max_position_embeddings"))
    if kind == "llama3":
        plan.constant("rope_freqs.weight", llama3_factors(params, theta, head_dim, factor, original))
        return
    plan.str("rope.scaling.type", kind)
    plan.f32("rope.scaling.factor", factor)
    if kind == "yarn":
        params.only("truncate", True)
        params.only("extrapolation_factor", 1, 1.0)
        plan.u32("rope.scaling.original_context_length", original)
        # cos and sin are scaled by 1 + 0.1 ln(factor) in both worlds; what the checkpoint wants
        # beyond that goes to attn_factor, as llama.cpp reads it
        usual = yarn_mscale(factor, 1.0)
        wanted = params.number("attention_factor", default=None)
        if wanted is None:
            m, m_all = (params.number(k, default=None, low=-1.0) for k in ("mscale", "mscale_all_dim"))
            wanted = yarn_mscale(factor, m) / yarn_mscale(factor, m_all) if m and m_all else usual
        if wanted != usual:
            plan.f32("rope.scaling.attn_factor", wanted / usual)
        plan.f32("rope.scaling.yarn_beta_fast", params.number("beta_fast", default=32.0))
        plan.f32("rope.scaling.yarn_beta_slow", params.number("beta_slow", default=1.0))


def yarn_mscale(factor, m):
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def llama3_factors(params, theta, head_dim, factor, original):
    """Llama 3.1: wavelengths above original/low are stretched by `factor`, those below
    original/high are kept, and in between 1/factor and 1 are blended linearly."""
    low = params.number("low_freq_factor", default=1.0)
    high = params.number("high_freq_factor", default=4.0)
    if not high > low:
        raise ExportError(f"{params.path}: high_freq_factor {high:g} is not above low_freq_factor "
                          f"{low:g}")
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original * frequency / (2 * np.pi)  # over the original context
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (blend + (1.0 - blend) / factor)).astype(np.float32)


def given_layer_types(config, types, n_layers, other):
    """layer_types as the file has them. Per layer: is it `other` than full_attention?"""
    if not isinstance(types, list) or len(types) != n_layers:
        raise ExportError(f"{config.path}: layer_types is not a list of {n_layers} entries")
    for t in types:
        if t not in ("full_attention", other):
            raise ExportError(f"{config.path}: layer type {t!r:.60} is not supported, expected "
                              f"full_attention or {other}")
    return [t == other for t in types]


def windows(config, n_layers):
    """Per layer the window in tokens, 0 = whole context; from layer_types where the file has them,
    else use_sliding_window and max_window_layers (Qwen)."""
    window = config.int("sliding_window", default=None)
    types = config.values.get("layer_types")
    if types is not None:
        slide = given_layer_types(config, types, n_layers, "sliding_attention")
    elif config.bool("use_sliding_window", default=False) and window:
        start = config.int("max_window_layers", default=28, low=0)
        slide = [i >= start for i in range(n_layers)]
    else:
        slide = [False] * n_layers
    if any(slide) and (not window or not config.bool("use_sliding_window", default=True)):
        raise ExportError(f"{config.path}: layer_types wants sliding_attention but sliding_window "
                          "is not set")
    return [window if s else 0 for s in slide]


def write_windows(plan, per_layer):
    """One window for all: the usual key. Only some layers: a linnet key beside it."""
    window = max(per_layer, default=0)
    if not window:
        return
    plan.u32("attention.sliding_window", window)
    if min(per_layer) != window:
        plan.metadata.append(("linnet.attention.window_layers", "u32s", per_layer))
