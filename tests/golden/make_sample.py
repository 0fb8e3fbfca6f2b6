#!/usr/bin/env python3
"""Remakes tests/data/sample/transformers.bin: distributions after transformers' own processors.

    python3 tests/golden/make_sample.py        # needs numpy, torch, transformers

Every case draws logits and settings, runs SequenceBias, RepetitionPenalty, Temperature, TopK, TopP
and MinP in the order of generate(), in float64, and stores the softmax of what is left. A case
whose kept set differs in float32 lies on a threshold and is drawn again.

File, little-endian: "LNSP", u32 number of cases; each case: u32 n_vocab, n_history, n_bias; f32
temperature; u32 top_k; f32 top_p, min_p, repeat_penalty; u32 repeat_last; f32 logits[n_vocab]; i32
history[n_history]; (i32 token, f32 bias)[n_bias]; f32 probabilities[n_vocab].
"""
import os
import struct

import numpy as np
import torch
from transformers.generation import logits_process as lp

CASES = 240
OUT = os.path.join(os.path.dirname(__file__), "..", "data", "sample", "transformers.bin")


def f32(x):
    return float(np.float32(x))


def distribution(c, dtype):
    scores = torch.tensor(c["logits"][None], dtype=dtype)
    history = c["history"][len(c["history"]) - min(len(c["history"]), c["repeat_last"]):]
    ids = torch.tensor(history[None], dtype=torch.long)
    steps = []
    if c["bias"]:
        steps.append(lp.SequenceBiasLogitsProcessor([[[t], b] for t, b in c["bias"]]))
    if c["repeat_penalty"] != 1 and len(history):
        steps.append(lp.RepetitionPenaltyLogitsProcessor(c["repeat_penalty"]))
    if c["temperature"] != 1:
        steps.append(lp.TemperatureLogitsWarper(c["temperature"]))
    if c["top_k"]:
        steps.append(lp.TopKLogitsWarper(c["top_k"]))
    if c["top_p"] < 1:
        steps.append(lp.TopPLogitsWarper(c["top_p"]))
    if c["min_p"] > 0:
        steps.append(lp.MinPLogitsWarper(c["min_p"]))
    for step in steps:
        scores = step(ids, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


def main():
    rng = np.random.default_rng(20111112)
    out = [b"LNSP", struct.pack("<I", CASES)]
    kept_counts, done = [], 0
    while done < CASES:
        n = int(rng.choice([3, 17, 64, 257, 400], p=[0.1, 0.3, 0.4, 0.1, 0.1]))
        n_history = int(rng.integers(0, 60))
        n_bias = int(rng.choice([0, 0, 1, 3]))
        c = {
            "logits": (rng.standard_normal(n) * rng.choice([0.5, 1.5, 4])).astype(np.float32),
            "history": rng.integers(0, n, n_history).astype(np.int32),
            "bias": [(int(t), f32(rng.choice([-np.inf, rng.normal() * 4], p=[0.3, 0.7])))
                     for t in rng.choice(n, min(n_bias, n - 1), replace=False)],
            "temperature": f32(rng.choice([1.0, rng.uniform(0.3, 3)], p=[0.3, 0.7])),
            "top_k": int(rng.choice([0, rng.integers(1, 60), rng.integers(10, 60), 2 * n])),
            "top_p": f32(rng.choice([1.0, rng.uniform(0.3, 0.999)], p=[0.4, 0.6])),
            "min_p": f32(rng.choice([0.0, rng.uniform(0.001, 0.3)], p=[0.6, 0.4])),
            "repeat_penalty": f32(rng.choice([1.0, rng.uniform(0.6, 2)], p=[0.4, 0.6])),
            "repeat_last": int(rng.choice([0, 8, 64, 10**6])),
        }
        if len(np.unique(c["logits"])) != n:
            continue
        p, q = distribution(c, torch.float64), distribution(c, torch.float32)
        if not np.array_equal(p > 0, q > 0):
            continue
        kept_counts.append(int((p > 0).sum()))
        out.append(struct.pack("<IIIfIfffI", n, n_history, len(c["bias"]), c["temperature"],
                               c["top_k"], c["top_p"], c["min_p"], c["repeat_penalty"],
                               c["repeat_last"]))
        out.append(c["logits"].astype("<f4").tobytes() + c["history"].astype("<i4").tobytes())
        out += [struct.pack("<if", t, b) for t, b in c["bias"]]
        out.append(p.astype("<f4").tobytes())
        done += 1
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "wb") as f:
        f.write(b"".join(out))
    print(f"{CASES} cases; kept tokens: median {np.median(kept_counts):.0f}, "
          f"1 in {sum(k == 1 for k in kept_counts)} cases, most {max(kept_counts)}")


main()
