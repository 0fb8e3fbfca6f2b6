"""The exported model in linnet against PyTorch: the same logits."""
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

from ..config import TrainError
from .data import Sequences, linnet
from .delta import load_student, write
from .llama import Llama

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def export(base, maps, options, out, kind="f32"):
    path = os.pathsep.join(p for p in (ROOT, os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run([sys.executable, "-m", "export", base, "--lolcats", maps, "--lolcats-config",
                           options, "-o", out, "--type", kind], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=path))
    if done.returncode:
        raise TrainError(done.stderr.strip())
    return done.stderr


def compare(folder, base, data, program, length):
    """-> the largest difference of a logit over the RMS of all, on 512 tokens of validation text,
    or on twice the trained length"""
    llama = Llama(base)
    _, student = load_student(llama, folder)
    student.length = length
    n = max(512, 2 * length)
    ids = Sequences(data, 0, llama.vocab).rows("validation", [0])[:, :n]
    with torch.no_grad():
        want = (student.hidden(ids)[0] @ llama.head.t()).numpy()
    with tempfile.TemporaryDirectory() as d:
        maps, options = write(folder, os.path.join(d, "delta"), length)
        gguf, npy = os.path.join(d, "model.gguf"), os.path.join(d, "logits.npy")
        export(base, maps, options, gguf)
        linnet(program, "logits", gguf, "--ids", "-", "-o", npy, "--activations", "exact", "--quiet",
               text=" ".join(map(str, ids[0].tolist())))
        got = np.load(npy)
    if got.shape != want.shape:
        raise TrainError(f"{program} gives logits of shape {got.shape}, expected {want.shape}")
    return float(np.abs(got - want).max() / np.sqrt(np.square(want.astype(np.float64)).mean()))
