"""The options of LoLCATs as its YAML files and flags spell them."""
import os

import numpy as np

from ..checkpoint import read_json
from ..errors import ExportError

# Every option upstream's classes take, by its place in the file. Those that inference never reads
# are here so that a misspelt one is not silently passed over.
OPTIONS = {
    ("attention",): (
        "attention_type", "window_size", "decode_window_size", "state_chunk_len",
        "affine_attention_factors", "init_window_factor", "train_window_factor", "feature_map",
        "feature_map_kwargs", "learned_kernel", "learned_kernel_kwargs", "tie_qk_kernels",
        "softmax_attentions", "num_feature_maps", "n_sink", "trained_length",
        # without effect on inference
        "layer_idx", "max_layer_idx", "train_qk", "train_attention", "remove_base_attn", "mask_value",
        "fp32_attention", "track_state_grads", "state_grad_enabled", "rank", "attention_dropout",
        "peft", "peft_config", "train_attention_weights",
        # only with the value that has none
        "eps", "rotary_config"),
    ("attention", "feature_map_kwargs"): ("eps", "fullspace", "head_dim_idx"),
    ("attention", "learned_kernel_kwargs"): (
        "feature_dim", "skip_connection", "bias", "hidden_dim", "zero_init", "normal_init",
        "num_heads", "head_dim", "dtype", "device"),
    ("model",): ("rope_theta", "rope_scaling", "torch_dtype"),
    ("finetune", "kwargs"): ("lora_alpha", "r"),
}
# Command-line flags of upstream's scripts that override their yaml
ALIASES = {"lk_skip_connection": "skip_connection", "lk_zero_init": "zero_init",
           "alpha": "lora_alpha", "fmap": "feature_map"}


def need_file(path):
    if not os.path.isfile(path):
        raise ExportError(f"{path} {'is not a file' if os.path.exists(path) else 'does not exist'}")


def load_config(path):
    """A yaml or json file as a dict."""
    need_file(path)
    if path.endswith(".json"):
        return read_json(path)
    import yaml
    try:
        with open(path, encoding="utf-8") as f:
            value = yaml.safe_load(f)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise ExportError(f"{path} is not valid YAML: {' '.join(str(e).split())[:200]}")
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a {type(value).__name__}, expected a mapping")
    return value


def level(values, place, path):
    """The mapping at `place`, made where it is missing."""
    for key in place:
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ExportError(f"{path}: {key} is {inner!r:.60}, expected a mapping")
        values, path = inner, f"{path}: {key}"
    return values


def apply_settings(values, settings, path):
    """--set key=value, by the option's own name or with its place in front."""
    import yaml
    for text in settings or ():
        name, equals, value = text.partition("=")
        *place, key = name.strip().split(".")
        key = ALIASES.get(key, key)
        found = [p for p, keys in OPTIONS.items()
                 if key in keys and (not place or list(p[-len(place):]) == place)]
        if key == "eps" and not place:
            found = [("attention", "feature_map_kwargs")]
        if not equals or not value.strip() or not found:
            raise ExportError(f"--set {text!s:.80}: expected key=value with an option of LoLCATs such "
                              "as window_size, feature_map, feature_dim, n_sink or lora_alpha")
        try:
            level(values, found[0], path)[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ExportError(f"--set {text!s:.80}: the value is not readable")


def number(values, key, default, path):
    """A float that YAML 1.1 may have left a string: `1e-12` has no point."""
    v = values.get(key)
    if v is None:
        return default
    try:
        if isinstance(v, bool):
            raise ValueError
        v = float(v)
    except (TypeError, ValueError):
        raise ExportError(f"{path}: {key} is {values[key]!r:.60}, expected a number")
    if not np.isfinite(v):
        raise ExportError(f"{path}: {key} is {v}, expected a finite number")
    return v
