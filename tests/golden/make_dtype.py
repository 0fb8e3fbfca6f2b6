#!/usr/bin/env python3
"""Remakes tests/data/dtype_golden.bin: what the `gguf` Python package makes of random blocks.

    python3 tests/golden/make_dtype.py          (needs numpy and gguf; made with gguf 0.19.0)

Records until the end of the file, little-endian: u32 kind, u32 type, u64 number of elements, then
  kind 0 (dequantize): the blocks, the float32 values
  kind 1 (quantize):   the float32 values, the blocks
  kind 2, 3 (the same in bulk): u64 seed, u64 hash of the result; the C test makes the same input
      from splitmix64 (`blocks`, `floats` below) and hashes its own result.
"""
import struct
import warnings
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

warnings.simplefilter("ignore")
OUT = Path(__file__).parent.parent / "data" / "dtype_golden.bin"
ALL = [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K]
QUANTIZED = [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]
# Byte offsets of the f16 scales in a block.
SCALES = {T.F16: [0], T.BF16: [0], T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0],
          T.Q5_1: [0, 2], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
M = np.uint64


def splitmix64(seed, n):
    """The first n outputs of the generator (Steele, Lea & Flood 2014)."""
    z = M(seed) + np.arange(1, n + 1, dtype=M) * M(0x9E3779B97F4A7C15)
    z = (z ^ (z >> M(30))) * M(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> M(27))) * M(0x94D049BB133111EB)
    return z ^ (z >> M(31))


def hash64(data):
    """Sum of (byte + 1) * odd numbers that depend on the place, modulo 2^64."""
    place = np.arange(len(data), dtype=M) * M(0x9E3779B97F4A7C15) | M(1)
    return int(np.sum((data.astype(M) + M(1)) * place, dtype=M))


def blocks(seed, qtype, n):
    """Random blocks with finite scales of either sign: every bit random, but bit 14 of a scale 0."""
    size = gguf.GGML_QUANT_SIZES[qtype][1]
    count = (n * size + 7) // 8
    data = splitmix64(seed, count).view(np.uint8)[: n * size].copy().reshape(n, size)
    for at in SCALES[qtype]:
        data[:, at + 1] &= 0xBF
    return data


def floats(seed, n):
    """Integers of 24 bits times a power of two that is the same for 64 neighbours."""
    r = splitmix64(seed, n)
    mantissa = (r >> M(40)).astype(np.int64) - (1 << 23)
    exponent = (r[::64] & M(31)).astype(np.int64).repeat(64)[:n] - 44
    return np.ldexp(mantissa.astype(np.float64), exponent).astype(np.float32)


def special():
    """Blocks of zeros, equal numbers, one spike, ties, subnormals, tiny and large numbers."""
    x = np.zeros((16, 256), np.float32)
    ramp = np.arange(256, dtype=np.float32)
    x[1] = 3.25
    x[2] = -7
    x[3, ::32] = -1e-3
    x[4] = ramp % 16 - 8  # ties of magnitude do not occur: -8 is alone
    x[5] = np.where(ramp % 2 == 0, 5, -5)  # they do: the first one decides
    x[6] = (ramp - 128) / 127  # many products end in exactly one half
    x[7] = (ramp % 32 - 16) * 0.5
    x[8] = ramp * 1e-41 + 1e-41  # float32 subnormals
    x[9] = (ramp + 1) * 1e-7  # scales below the smallest f16
    x[10] = (ramp + 1) * 5e-6  # f16 subnormal scales
    x[11] = -(ramp + 1) * 200
    x[12] = 60000 - ramp * 400
    x[13, 200] = 1
    x[14] = 1 + ramp / 1024
    x[15] = -1 - ramp / 1024
    return x


def main():
    out = bytearray()

    def record(kind, qtype, n, *parts):
        out.extend(struct.pack("<IIQ", kind, int(qtype), n))
        for part in parts:
            out.extend(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())

    for seed, qtype in enumerate(ALL, 1):
        block = gguf.GGML_QUANT_SIZES[qtype][0]
        data = blocks(seed, qtype, {1: 512, 32: 40, 256: 12}[block])
        values = quants.dequantize(data.reshape(1, -1), qtype)
        record(0, qtype, values.size, data, values.astype(np.float32))
        n = 2_000_000 // block
        values = quants.dequantize(blocks(100 + seed, qtype, n).reshape(1, -1), qtype)
        record(2, qtype, n * block, struct.pack("<QQ", 100 + seed, hash64(
            values.astype(np.float32).ravel().view(np.uint8))))
    for seed, qtype in enumerate(QUANTIZED, 50):
        x = np.concatenate([special().ravel(), floats(seed, 1024)]).reshape(1, -1)
        record(1, qtype, x.size, x, np.asarray(quants.quantize(x, qtype)))
        x = floats(200 + seed, 1 << 20).reshape(1, -1)
        record(3, qtype, x.size, struct.pack("<QQ", 200 + seed, hash64(
            np.asarray(quants.quantize(x, qtype)).view(np.uint8).ravel())))
    OUT.write_bytes(out)
    print(OUT, len(out), "bytes")


main()
