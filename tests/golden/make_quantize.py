#!/usr/bin/env python3
"""Remakes tests/data/quantize/*.gguf: a small model file, and what the `gguf` Python package's
quantizers make of it.

    python3 tests/golden/make_quantize.py       (needs numpy and gguf; made with gguf 0.19.0)

in.gguf has matrices of several types, tied embeddings, vectors, and metadata of every kind.
q8_0.gguf, q4_0.gguf and q4_1.gguf are what `quantize --pure` must write, byte for byte in the data:
the package's quantizer over its own dequantized source.
"""
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

OUT = Path(__file__).parent.parent / "data" / "quantize"
rng = np.random.default_rng(7)


def normal(rows, cols):
    return (rng.standard_normal((rows, cols)) * 0.1).astype(np.float32)


# name, type in in.gguf, values
TENSORS = [
    ("token_embd.weight", T.F32, normal(40, 64)),
    ("position_embd.weight", T.F32, normal(8, 64)),
    ("blk.0.attn_norm.weight", T.F32, normal(1, 64)[0]),
    ("blk.0.attn_q.weight", T.F16, normal(64, 64)),
    ("blk.0.attn_q.bias", T.F32, normal(1, 64)[0]),
    ("blk.0.attn_k.weight", T.BF16, normal(16, 64)),
    ("blk.0.attn_v.weight", T.Q8_0, normal(16, 64)),
    ("blk.0.ffn_up.weight", T.Q4_1, normal(20, 64)),
    ("blk.0.ffn_down.weight", T.F32, normal(9, 256)),
    ("blk.0.odd.weight", T.F32, normal(6, 20)),
    ("blk.0.ssm_conv1d.weight", T.F32, normal(32, 4)),
    ("blk.0.maps.weight", T.F32, rng.standard_normal((2, 3, 32)).astype(np.float32)),
    ("output_norm.weight", T.F32, normal(1, 64)[0]),
]
KEPT = ("norm", "bias", "position_embd", "conv1d", "maps")


def write(name, file_type, tensors):
    w = gguf.GGUFWriter(OUT / name, "llama")
    w.add_name("quantize test")
    w.add_custom_alignment(64)
    if file_type is not None:
        w.add_file_type(file_type)
    w.add_block_count(1)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_add_bos_token(True)
    w.add_token_list(["<s>", "", "a\nb", "\u00e9"] + [f"t{i}" for i in range(36)])
    w.add_token_scores([float(-i) for i in range(40)])
    w.add_key_value("linnet.test.i64", -(2**40), gguf.GGUFValueType.INT64)
    w.add_array("linnet.test.i32", [1, -2, 3])
    w.add_key_value("linnet.test.f64", 0.1, gguf.GGUFValueType.FLOAT64)
    if name != "in.gguf":
        w.add_quantization_version(2)
    for tensor, qtype, data in tensors:
        w.add_tensor(tensor, data, raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    stored = [(n, t, np.asarray(quants.quantize(x, t))) for n, t, x in TENSORS]
    write("in.gguf", 0, stored)
    for qtype, file_type in ((T.Q8_0, 7), (T.Q4_0, 2), (T.Q4_1, 3)):
        made = []
        for name, t, data in stored:
            if any(k in name for k in KEPT) or t == qtype:
                made.append((name, t, data))
                continue
            x = np.asarray(quants.dequantize(data, t)).astype(np.float32)
            to = qtype if x.shape[-1] % 32 == 0 else T.F16
            made.append((name, to, np.asarray(quants.quantize(x, to))))
        write(f"{qtype.name.lower()}.gguf", file_type, made)


main()
