"""MQAR sequences as docs/mqar.md defines them; NumPy, a batch at a time.

python3 -m train.mqar V L K [n] prints the hash of n sequences and the first one."""
import sys
from dataclasses import dataclass

import numpy as np

U = np.uint64
GAMMA, LOW = 0x9E3779B97F4A7C15, U(0xFFFFFFFF)
IGNORED = -100
SPLITS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Task:
    length: int
    pairs: int
    vocab: int = 8192
    passes: int = 1
    power: float = 0.01
    random_fill: bool = True

    def __post_init__(self):
        if self.vocab % 2 or not 4 <= self.vocab <= 1 << 31:
            raise ValueError(f"vocab is {self.vocab}, expected an even number from 4 to 2^31")
        if not 1 <= self.pairs <= self.vocab // 2 - 1:
            raise ValueError(f"{self.pairs} pairs, expected 1 to {self.vocab // 2 - 1} with a "
                             f"vocabulary of {self.vocab}")
        if self.passes < 1 or not 0 < self.power <= 1:
            raise ValueError("expected passes of at least 1 and a power above 0, at most 1")
        if self.length % 2 or self.length < 2 * self.pairs * (self.passes + 1):
            raise ValueError(f"length is {self.length}, expected an even number of at least "
                             f"{2 * self.pairs * (self.passes + 1)} for {self.pairs} pairs")


def mix(z):
    z = (z ^ (z >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return z ^ (z >> U(31))


def high_product(a, b):
    """The high 64 bits of a * b."""
    a1, a0, b1, b0 = a >> U(32), a & LOW, b >> U(32), b & LOW
    middle = a1 * b0 + (a0 * b0 >> U(32))
    return a1 * b1 + (middle >> U(32)) + ((middle & LOW) + a0 * b1 >> U(32))


def states(task, seed, split, indices):
    """-> [n] the state of each sequence"""
    s = np.zeros(len(indices), U)
    for word in (seed, SPLITS[split], task.vocab, task.length, task.pairs, indices):
        s = mix((s ^ np.asarray(word, U)) + U(GAMMA))
    return s


def below(s, i, n):
    """The i-th integer below n of each state: s [n] and i a number, or s [n, 1] and i [m]."""
    with np.errstate(over="ignore"):
        u = mix(s + (np.asarray(i, U) + U(1)) * U(GAMMA))
    return high_product(u, np.asarray(n, U)).astype(np.int64)


def draw(ids, count, s, first):
    """`count` of ids for each state, without replacement, in order of drawing. -> [n, count]"""
    rows, n = np.arange(len(s)), len(ids)
    a = np.repeat(ids[None], len(s), 0)
    for i in range(count):
        j = i + below(s, first + i, n - i)
        a[rows, i], a[rows, j] = a[rows, j], a[rows, i].copy()
    return a[:, :count]


def sequences(task, seed, split, indices):
    """-> x, y int32 [n, length]"""
    indices = np.asarray(indices, U)
    n, L, K, half = len(indices), task.length, task.pairs, task.vocab // 2
    context = 2 * K * task.passes
    slots = (L - context) // 2
    s, rows = states(task, seed, split, indices), np.arange(n)
    keys = draw(np.arange(1, half), K, s, 0)
    values = draw(np.arange(half, task.vocab), K, s, K)
    if task.random_fill:
        x = below(s[:, None], 3 * K + np.arange(L), task.vocab)
    else:
        x = np.zeros((n, L), np.int64)
    y = np.full((n, L), IGNORED, np.int64)
    x[:, 0:context:2] = np.tile(keys, task.passes)
    x[:, 1:context:2] = np.tile(values, task.passes)
    w = np.floor(2.0**32 * np.arange(1, slots + 1) ** (task.power - 1) + 0.5).astype(np.int64)
    free = np.repeat(w[None], n, 0)
    for i in range(K):
        sums = free.cumsum(1)
        r = below(s, 2 * K + i, sums[:, -1])
        g = (sums <= r[:, None]).sum(1)
        free[rows, g] = 0
        x[rows, context + 2 * g] = keys[:, i]
        y[rows, context + 2 * g] = values[:, i]
    return x.astype(np.int32), y.astype(np.int32)


def fnv1a(data, h=14695981039346656037):
    for byte in data:
        h = (h ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return h


def fingerprint(x, y):
    """The hash of docs/mqar.md over all sequences."""
    return fnv1a(np.stack([x, y], 1).astype("<i4").tobytes())


if __name__ == "__main__":
    vocab, length, pairs, count = ([int(a) for a in sys.argv[1:]] + [64])[:4]
    xs, ys = sequences(Task(length, pairs, vocab), 0, "test", np.arange(count))
    print(f"{fingerprint(xs, ys):016x}", xs[0].tolist(), ys[0].tolist(), sep="\n")
