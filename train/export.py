"""python3 -m train.export RUN -o OUT.gguf: a run's weights as a model file. Needs NumPy and gguf, not
PyTorch. docs/format.md has the names."""
import argparse
import os
import sys

import numpy as np

from export.errors import ExportError
from export.families.base import Plan
from export.tokenizer import load_tokenizer
from export.writer import write_model

from .config import TrainError, read_json

EPS = 1e-5


class Array:
    """A tensor of the run, as the writer wants it."""
    dtype = "F32"

    def __init__(self, value):
        self.value, self.shape = value, value.shape

    def read(self):
        return self.value


def options_of(layers, kind, keys):
    """One of a mixer's options for all its layers: a model file has no more."""
    found = [{k: o.get(k) for k in keys} for o in layers if o["mixer"] in kind]
    if any(f != found[0] for f in found):
        raise TrainError(f"{kind[0]} layers with different options ({', '.join(keys)}) cannot be "
                         "written to one model file")
    return found[0] if found else None


class Export:
    def __init__(self, config, weights):
        self.model, self.weights = config["model"], weights
        self.plan = p = Plan("linnet", self.model["vocab"], tied=True)
        layers, self.dim = self.model["layers"], self.model["dim"]
        ff = self.model["feed_forward"]
        p.u32("format_version", 1)
        p.u32("block_count", len(layers))
        p.u32("context_length", self.model["context"])
        p.u32("embedding_length", self.dim)
        p.u32("feed_forward_length", ff)
        p.f32("attention.layer_norm_rms_epsilon", EPS)
        p.metadata.append(("linnet.mixers", "array", [o["mixer"] for o in layers]))
        self.attention(layers)
        self.delta(layers)
        self.based(layers)
        self.lolcats(layers)
        p.matrix("token_embd.weight", "embed.weight", self.shape("embed.weight"))
        self.vector("output_norm.weight", "norm.weight")
        add = {"softmax": self.add_softmax, "hedgehog": self.add_hedgehog,
               "lolcats": self.add_hedgehog, "based_taylor": self.add_attention,
               "delta_net": self.add_delta, "gated_delta_net": self.add_delta,
               "short_conv": self.add_conv}
        for i, o in enumerate(layers):
            at, dst = f"layers.{i}.", f"blk.{i}."
            self.vector(dst + "attn_norm.weight", at + "norm.weight")
            add[o["mixer"]](at + "mixer.", dst, o)
            if ff:
                self.vector(dst + "ffn_norm.weight", at + "ff_norm.weight")
                for x in ("gate", "up", "down"):
                    self.matrix(f"{dst}ffn_{x}.weight", f"{at}ff.{x}.weight")

    def shape(self, name):
        return self.weights[name].shape

    def matrix(self, name, source):
        self.plan.matrix(name, source, self.shape(source))

    def vector(self, name, source):
        self.plan.vector(name, source, self.shape(source)[0])

    def constant(self, name, value):
        self.plan.constant(name, np.ascontiguousarray(value, np.float32))

    # ---- Options

    def attention(self, layers):
        kinds, p = ("softmax", "lolcats", "hedgehog"), self.plan
        o = options_of(layers, kinds, ("heads", "kv_heads", "head_dim", "rope"))
        windows = [o.get("window", 0) for o in layers]
        if any(windows):
            p.metadata.append(("linnet.attention.window_layers", "u32s", windows))
        if not o or not o["rope"]:
            p.str("rope.pairing", "none")
        if not o:
            return
        heads = o["heads"] or 1
        p.u32("attention.head_count", heads)
        p.u32("attention.head_count_kv", o["kv_heads"] or heads)
        D = o["head_dim"] or self.dim // heads
        p.u32("attention.key_length", D)
        p.u32("attention.value_length", D)
        if o["rope"]:
            p.u32("rope.dimension_count", D)
            p.f32("rope.freq_base", float(o["rope"]))

    def delta(self, layers):
        o = options_of(layers, ("delta_net", "gated_delta_net"),
                       ("heads", "key_dim", "value_dim", "taps", "gate"))
        if not o:
            return
        heads, p = o["heads"] or 2, self.plan
        p.u32("delta.head_count", heads)
        p.u32("delta.key_length", o["key_dim"] or self.dim // heads)
        p.u32("delta.value_length", o["value_dim"] or self.dim // heads)
        p.u32("delta.conv_kernel", o["taps"] or 4)
        p.f32("delta.norm_epsilon", EPS)

    def based(self, layers):
        o, p = options_of(layers, ("based_taylor",), ("heads", "features", "head_dim")), self.plan
        if o:
            heads = o["heads"] or 1
            p.u32("based.head_count", heads)
            p.u32("based.feature_length", o["features"] or 16)
            p.u32("based.value_length", o["head_dim"] or self.dim // heads)
        o = options_of(layers, ("short_conv",), ("taps", "inner"))
        if o:
            p.u32("shortconv.l_cache", o["taps"] or 3)
            p.u32("shortconv.inner_length", o["inner"] or self.dim)

    def lolcats(self, layers):
        o = options_of(layers, ("hedgehog", "lolcats"), ("features", "head_dim", "heads"))
        if not o:
            return
        D = o["head_dim"] or self.dim // (o["heads"] or 1)
        self.plan.str("lolcats.feature_map", "softmax_dim")
        self.plan.u32("lolcats.feature_dim", o["features"] or D)

    # ---- Tensors of a layer

    def add_attention(self, at, dst, o):
        for x, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
            self.matrix(f"{dst}{name}.weight", f"{at}{x}.weight")

    add_softmax = add_attention

    def add_hedgehog(self, at, dst, o):
        self.add_attention(at, dst, o)
        for x in ("q", "k"):
            self.constant(f"{dst}attn_feature_{x}.weight", self.weights[f"{at}map_{x}"])
        if o["mixer"] == "lolcats":
            factor = np.float64(self.weights[at + "window_factor"])
            self.constant(dst + "attn_window_factor.weight", 1 / (1 + np.exp(-factor)))

    def add_delta(self, at, dst, o):
        self.matrix(dst + "attn_qkv.weight", at + "qkv.weight")
        self.constant(dst + "ssm_conv1d.weight", self.weights[at + "conv"])
        self.matrix(dst + "ssm_beta.weight", at + "beta.weight")
        if o["mixer"] == "gated_delta_net":
            self.matrix(dst + "ssm_alpha.weight", at + "alpha.weight")
            self.constant(dst + "ssm_a", -np.exp(np.float64(self.weights[at + "A_log"])))
            self.vector(dst + "ssm_dt.bias", at + "dt")
        if o.get("gate"):
            self.matrix(dst + "attn_gate.weight", at + "gate.weight")
        self.vector(dst + "ssm_norm.weight", at + "norm")
        self.matrix(dst + "ssm_out.weight", at + "o.weight")

    def add_conv(self, at, dst, o):
        dst += "shortconv."
        self.matrix(dst + "in_proj.weight", at + "inp.weight")
        self.vector(dst + "in_proj.bias", at + "inp.bias")
        self.constant(dst + "conv.weight", self.weights[at + "conv"])
        self.vector(dst + "conv.bias", at + "conv_bias")
        self.matrix(dst + "out_proj.weight", at + "out.weight")


def export(folder, out, dtype=None):
    """Writes the model of a finished run. `dtype`: default the config's."""
    try:
        config = read_json(os.path.join(folder, "config.json"))
        arrays = np.load(os.path.join(folder, "weights.npz"))
    except OSError as e:
        raise TrainError(f"{folder}: not a finished run: {e.strerror or e}: {e.filename}")
    weights = {name: arrays[name] for name in arrays.files}
    made = Export(config, weights)
    tokenizer = None
    model = os.path.join(folder, "tokenizer.model")
    if os.path.exists(model):
        tokenizer = load_tokenizer(model, {}, config["model"]["vocab"], True)
    write_model(out, made.plan, {n: Array(w) for n, w in weights.items()}, tokenizer,
                dtype or config["dtype"], config["name"])
    return config


def main():
    parser = argparse.ArgumentParser(prog="python3 -m train.export")
    parser.add_argument("run", help="a run's folder: FOLDER/NAME/lr-X")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--type", choices=("f32", "f16", "bf16", "q8_0"), help="of matrices")
    args = parser.parse_args()
    try:
        export(args.run, args.out, args.type)
    except (TrainError, ExportError) as e:
        sys.exit(f"train.export: {e}")


if __name__ == "__main__":
    main()
