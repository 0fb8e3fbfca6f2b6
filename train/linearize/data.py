"""Packed sequences of token ids, made by `linnet tokenize`. Needs NumPy, not PyTorch."""
import hashlib
import json
import os
import random
import subprocess
import tempfile

import numpy as np

from .. import mqar
from ..config import TrainError, read_json, write_json
from ..text import cut, read_sources


def linnet(program, *args, text=None):
    try:
        # Sampled text may end inside a character.
        done = subprocess.run([program, *args], input=text, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as e:
        raise TrainError(f"{program}: {e.strerror}")
    if done.returncode:
        raise TrainError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else
                         f"{program} {args[0]}: exit {done.returncode}")
    return done.stdout


def read_texts(paths, chunk):
    """-> (pieces for training, for validation), hashes. Of books the last twentieth is for
    validation, of sampled documents and of profiles one of 19. A book's pieces are of about `chunk`
    characters: what is to be recalled must lie within one."""
    books, hashes = [p for p in paths if not p.endswith(".jsonl")], {}
    training, validation = [], []
    if books:
        sources, _, hashes = read_sources(books)
        for a, b in sources:
            training += cut(a, chunk)
            validation += cut(b, chunk)
    for path in paths:
        if not path.endswith(".jsonl"):
            continue
        try:
            with open(path, "rb") as f:
                raw = f.read()
            for at, line in enumerate(raw.decode().splitlines()):
                d = json.loads(line)
                text = "\n".join(f"{k}: {v}" for k, v in d["pairs"]) if "pairs" in d else str(d["text"])
                (validation if d.get("number", at) % 19 == 17 else training).append(text)
        except OSError as e:
            raise TrainError(f"{path}: {e.strerror}")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TrainError(f"{path}: expected objects with text, as sample writes them, or with pairs")
        hashes[os.path.basename(path)] = hashlib.sha256(raw).hexdigest()
    return training, validation, hashes


def tokenize(program, model, texts):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in texts)
        f.flush()
        out = linnet(program, "tokenize", model, "--lines", f.name, "--parse-special", "--no-bos")
    return [[int(i) for i in line.split()] for line in out.splitlines()]


def repeats(pieces, n, most, rng):
    """n documents that say a passage of the pieces twice: what is far behind must be recalled."""
    out = []
    for _ in range(n):
        piece = rng.choice(pieces)
        at = rng.randrange(max(1, len(piece) - most))
        passage = piece[at:at + rng.randint(most // 4, most)].strip()
        out.append(f"{passage}\n\n{passage}")
    return out


def pack(pieces, length, separator):
    ids = [i for piece in pieces for i in piece + [separator]]
    n = len(ids) // length
    return np.array(ids[:n * length], np.uint32).reshape(n, length)


def prepare(program, model, paths, out, length, separator, seed, again=0):
    """-> what data.json says"""
    if length < 2:
        raise TrainError(f"--length is {length}, expected at least 2: a token and the one after it")
    if again < 0:
        raise TrainError(f"--repeats is {again}, expected at least 0")
    vocabulary = json.loads(linnet(program, "info", model, "--json")).get("vocabulary", 0)
    if not vocabulary:
        raise TrainError(f"{model} has no vocabulary")
    if not 0 <= separator < vocabulary:
        raise TrainError(f"--separator is {separator}, expected an id of the vocabulary, 0 to {vocabulary - 1}")
    training, validation, hashes = read_texts(paths, 16 * length)
    rng = random.Random(seed)
    training += repeats(training, again, 2 * length, rng) if training else []
    rng.shuffle(training)
    rng.shuffle(validation)
    os.makedirs(out, exist_ok=True)
    info = {"texts": [os.path.basename(p) for p in paths], "files": hashes, "repeats": again, "length": length, "separator": separator, "seed": seed}
    for name, texts in (("train", training), ("validation", validation)):
        array = pack(tokenize(program, model, texts), length, separator)
        if not len(array):
            raise TrainError(f"the {name} text is shorter than one sequence of {length} tokens")
        np.save(os.path.join(out, name + ".npy"), array)
        info[name] = {"sequences": len(array), "tokens": array.size,
                      "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    write_json(os.path.join(out, "data.json"), info)
    return info


def first_positions(options, length):
    """-> how many a sequence may begin at: 1, unless a stage's `positions` leave more"""
    return max(1, options.get("positions", 0) - length + 1)


def held(numbers, options, length):
    """-> held-out sequences in lists as large as a step's, each with its first position, from 0 to the last"""
    parts = [numbers[i:i + options["batch"]] for i in range(0, len(numbers), options["batch"])]
    most = first_positions(options, length) - 1
    return [(part, i * most // max(1, len(parts) - 1)) for i, part in enumerate(parts)]


class Sequences:
    """The prepared folder. Training goes through all sequences in an order of the seed's, then again
    in another."""

    def __init__(self, folder, seed, vocab):
        try:
            self.info = read_json(os.path.join(folder, "data.json"))
            self.train, self.validation = (np.load(os.path.join(folder, n + ".npy"), mmap_mode="r")
                                           for n in ("train", "validation"))
        except (OSError, ValueError) as e:
            raise TrainError(f"{folder}: no prepared text ({e}); python3 -m train.linearize tokens makes it")
        self.seed, self.length = seed, self.train.shape[1]
        most = max(int(a.max()) for a in (self.train, self.validation))
        if most >= vocab:
            raise TrainError(f"{folder} has a token {most}, the base has {vocab}: it was prepared for another model")

    def numbers(self, step, batch):
        """Of the training sequences of a step."""
        n = len(self.train)
        at = range(step * batch, (step + 1) * batch)
        return [int(self.order(a // n)[a % n]) for a in at]

    def first(self, step, options):
        """The position at which the sequences of a step begin, any that `positions` leave."""
        return random.Random(f"{self.seed} {step}").randrange(first_positions(options, self.length))

    def order(self, epoch):
        s = np.array([self.seed], mqar.U)
        with np.errstate(over="ignore"):
            s = mqar.mix((s ^ mqar.U(epoch)) + mqar.U(mqar.GAMMA))
            keys = mqar.mix(np.arange(len(self.train), dtype=mqar.U) * mqar.U(mqar.GAMMA) + s)
        return np.argsort(keys, kind="stable")

    def rows(self, name, numbers):
        import torch
        return torch.from_numpy(np.stack([getattr(self, name)[i] for i in numbers]).astype(np.int64))
