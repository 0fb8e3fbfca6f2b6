"""python3 -m train.text FILE... -o FOLDER: text for language models. Books (*.txt) and profiles (*.jsonl
with "pairs": [[key, value], ...]) become a SentencePiece vocabulary and two streams of tokens; a part of the
tokens is synthetic: phone books, pass keys, needles, profiles and copies, in the words of `linnet recall`.
The last twentieth of each book, the last fifth of the profiles and other names and numbers are validation
data. Needs SentencePiece's Python module (Debian: python3-sentencepiece)."""
import argparse
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import sys

import numpy as np

from . import mqar
from .config import TrainError, read_json, reason, write_json

CHUNK = 6000  # characters of a book that make a document
GRASS = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
         "There and back again.")


# ---- Preparing ----------------------------------------

class Recall:
    """Synthetic documents with something to look up, of at most about `room` characters."""

    def __init__(self, rng, prose, profiles, room):
        self.rng, self.prose, self.profiles, self.room = rng, prose, profiles, room
        words = set(re.findall(r"\b[A-Z][a-z]{2,9}\b", " ".join(prose)))
        self.names = sorted(words)
        self.words = sorted(set(re.findall(r"\b[a-z]{3,8}\b", " ".join(prose))))

    def document(self):
        kinds = [self.phone_book, self.pass_key, self.needle, self.copy]
        return self.rng.choice(kinds + [self.profile] if self.profiles else kinds)()

    def name(self):
        return f"{self.rng.choice(self.names)} {self.rng.choice(self.names)}"

    def phone_book(self):
        rng = self.rng
        book = {self.name(): str(rng.randint(6 * 10**9, 10**10 - 1))
                for _ in range(rng.randint(4, max(5, self.room // 30)))}
        asked = rng.sample(sorted(book), 4)
        lines = [f"{n}: {p}" for n, p in book.items()]
        return "\n".join(lines + [""] + [f"{n}: {book[n]}" for n in asked[:2]] + [""] +
                         [f"{n}: {book[n]}" for n in asked[2:]])

    def filler(self, share):
        """Sentences of a book, or the grass that grows in pass keys' prompts."""
        sentences, left = [], int(self.room * share)
        if self.rng.random() < 0.3:
            return list(GRASS) * max(1, left // 100)
        text = re.split(r"(?<=[.!?]) ", " ".join(self.rng.choice(self.prose).split()))
        start = self.rng.randrange(len(text))
        for s in text[start:]:
            left -= len(s)
            if left < 0:
                break
            sentences.append(s)
        return sentences or [GRASS[0]]

    def pass_key(self):
        key = self.rng.randint(1, 50000)
        lines = self.filler(self.rng.uniform(0.1, 0.8))
        lines.insert(self.rng.randint(0, len(lines)),
                     f"The pass key is {key}. Remember it. {key} is the pass key.")
        return ("There is an important info hidden inside a lot of irrelevant text. Find it and "
                "memorize them. I will quiz you about the important information there. " +
                " ".join(lines) + f" What is the pass key? The pass key is {key}.")

    def needle(self):
        rng = self.rng
        needles = {f"{rng.choice(self.words)}-{rng.choice(self.words)}":
                   rng.randint(10**6, 10**7 - 1) for _ in range(rng.choice((1, 1, 2, 4)))}
        lines = self.filler(rng.uniform(0.1, 0.7))
        for key, value in needles.items():
            lines.insert(rng.randint(0, len(lines)),
                         f"One of the special magic numbers for {key} is: {value}.")
        key, value = rng.choice(sorted(needles.items()))
        return ("A special magic number is hidden within the following text. Make sure to memorize "
                "it. I will quiz you about the number afterwards.\n" + " ".join(lines) +
                f"\nWhat is the special magic number for {key} mentioned in the provided text? The "
                f"special magic number for {key} mentioned in the provided text is {value}.")

    def profile(self):
        pairs = [(k, v) for k, v in self.rng.choice(self.profiles) if len(k) + len(v) < 200]
        self.rng.shuffle(pairs)
        lines, length = {}, 0
        for key, value in pairs:
            if length > self.room * 0.8:
                break
            lines.setdefault(key, value)
            length += len(key) + len(value)
        asked = [k for k, v in lines.items() if 3 <= len(v) <= 40] or sorted(lines)
        asked = self.rng.sample(asked, min(3, len(asked)))
        return "\n".join([f"{k}: {v}" for k, v in lines.items()] + [""] +
                         [f"{k[:1].upper()}{k[1:]}: {lines[k]}" for k in asked])

    def copy(self):
        words = self.rng.sample(self.words, self.rng.randint(4, max(5, min(self.room // 14, 120, len(self.words)))))
        return " ".join(words) + "\n" + " ".join(words)


def documents(books, profiles, share, rng):
    """Pieces of the books and synthetic documents, `share` of all characters, shuffled."""
    pieces = [p for text in books for p in cut(text)]
    made, left = [], share / (1 - share) * sum(map(len, pieces))
    recall = Recall(rng, pieces, profiles, 1400)
    while left > 0:
        made.append(recall.document())
        left -= len(made[-1])
    all_documents = pieces + made
    rng.shuffle(all_documents)
    return all_documents


def cut(text, chunk=CHUNK):
    """At ends of lines, about `chunk` characters each."""
    pieces, at = [], 0
    while at < len(text):
        end = text.find("\n", at + chunk)
        end = len(text) if end < 0 else end
        pieces.append(text[at:end].strip("\n"))
        at = end
    return [p for p in pieces if p]


def split_book(text):
    """-> what is trained on, and the last twentieth, which is not"""
    at = text.rfind("\n", 0, len(text) * 19 // 20) + 1
    return text[:at], text[at:]


def split_profiles(profiles):
    """-> what is trained on, and the last fifth, which is not"""
    at = len(profiles) - len(profiles) // 5
    return profiles[:at], profiles[at:]


def read_sources(paths):
    """-> [(book, its validation part)], [pairs of a profile], {file name: sha256}"""
    books, profiles, hashes = [], [], {}
    for path in paths:
        try:
            with open(path, "rb") as f:
                raw = f.read()
            text = raw.decode()
        except OSError as e:
            raise TrainError(f"{path}: {e.strerror}")
        except UnicodeDecodeError as e:
            raise TrainError(f"{path}: byte {e.start} is not UTF-8")
        hashes[os.path.basename(path)] = hashlib.sha256(raw).hexdigest()
        if not path.endswith(".jsonl"):
            books.append(split_book(text))
            continue
        for number, line in enumerate(text.splitlines(), 1):
            try:
                profiles.append([(str(k), str(v)) for k, v in json.loads(line)["pairs"]])
            except (ValueError, KeyError, TypeError):
                raise TrainError(f"{path}: line {number}: expected an object with pairs")
    if not books:
        raise TrainError("no book among the files: expected at least one text")
    return books, profiles, hashes


def prepare(paths, out, vocab, share, seed):
    try:
        import sentencepiece
    except ImportError:
        raise TrainError("preparing text needs SentencePiece's Python module (Debian: "
                         "python3-sentencepiece)")
    books, profiles, hashes = read_sources(paths)
    trained, held = split_profiles(profiles)
    rng = random.Random(seed)
    training = documents([a for a, _ in books], trained, share, rng)
    validation = documents([b for _, b in books], held, share, rng)
    os.makedirs(out, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for d in training for line in d.split("\n") if line]),
        model_writer=model, model_type="bpe", vocab_size=vocab, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.9995, num_threads=1, minloglevel=1)
    path = os.path.join(out, "tokenizer.model")
    with open(path, "wb") as f:
        f.write(model.getvalue())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
    info = {"files": hashes, "vocab": vocab, "recall share": share, "seed": seed}
    for name, texts in (("train", training), ("validation", validation)):
        ids = [i for text in texts for i in [tokenizer.bos_id()] + tokenizer.encode(text + "\n")]
        array = np.array(ids, np.uint16)
        np.save(os.path.join(out, name + ".npy"), array)
        info[name] = {"tokens": len(ids), "characters": sum(map(len, texts)) + len(texts),
                      "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    write_json(os.path.join(out, "data.json"), info)
    return info


# ---- Training ----------------------------------------

def validation_rows(data, length, most):
    """About `most` windows from all over the validation tokens: ids, and one more to be the last label."""
    starts = range(0, len(data) - length, length)
    starts = list(starts)[::max(1, len(starts) // most)]
    return np.stack([data[s:s + length + 1] for s in starts]).astype(np.int64)


MEASURED = 128  # windows of a finished run's result


class Text:
    """task: data: the folder that was prepared; length of a sequence."""

    def __init__(self, config):
        options, self.seed = config["task"], config["seed"]
        folder = self.folder = options.get("data", "text")
        self.length = options.get("length", 512)
        self.n = max(1, config["batch_tokens"] // self.length)
        try:
            self.data = {s: np.load(os.path.join(folder, s + ".npy"), mmap_mode="r")
                         for s in ("train", "validation")}
            info = read_json(os.path.join(folder, "data.json"))
        except (OSError, ValueError) as e:
            raise TrainError(f"{folder}: no prepared text ({e}); python3 -m train.text makes it")
        for name, array in self.data.items():
            if len(array) <= self.length:
                raise TrainError(f"{folder}: {len(array)} tokens of {name} data, expected more than "
                                 f"a sequence of {self.length}")
        if info["vocab"] != config["model"]["vocab"]:
            raise TrainError(f"{folder}: a vocabulary of {info['vocab']}, but the model's is "
                             f"{config['model']['vocab']}")
        self.characters = info["validation"]["characters"] / info["validation"]["tokens"]

    def attach(self, run):
        """What the model file and the card need of the data."""
        for name in ("tokenizer.model", "data.json"):
            shutil.copyfile(os.path.join(self.folder, name), os.path.join(run, name))

    def windows(self, name, starts):
        import torch
        rows = np.stack([self.data[name][s:s + self.length + 1] for s in starts]).astype(np.int64)
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def batch(self, step):
        s = np.array([self.seed], mqar.U)
        with np.errstate(over="ignore"):
            s = mqar.mix((s ^ mqar.U(step)) + mqar.U(mqar.GAMMA))
        return self.windows("train", mqar.below(s, np.arange(self.n),
                                                len(self.data["train"]) - self.length))

    def validate(self, model, few):
        import torch
        import torch.nn.functional as F
        rows = validation_rows(self.data["validation"], self.length, 16 if few else MEASURED)
        device, total, hits, n = model.embed.weight.device, 0.0, 0, 0
        with torch.no_grad():
            for at in range(0, len(rows), 8):
                ids = torch.from_numpy(rows[at:at + 8]).to(device)
                x, y = ids[:, :-1], ids[:, 1:]
                logits = model(x).flatten(0, 1)
                total += F.cross_entropy(logits, y.flatten(), reduction="sum").item()
                hits += int((logits.argmax(-1) == y.flatten()).sum())
                n += y.numel()
        loss = total / n
        return {"loss": loss, "perplexity": math.exp(loss), "accuracy": hits / n,
                "bits per character": loss / math.log(2) / self.characters}

    @staticmethod
    def score(values):
        return -values["loss"]


def main():
    parser = argparse.ArgumentParser(prog="python3 -m train.text",
                                     description=__doc__.split(": ", 1)[1])
    parser.add_argument("file", nargs="+")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--recall", type=float, default=0.2, help="share of synthetic text (0.2)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        if not 0 <= args.recall < 1 or not 300 <= args.vocab <= 65536:
            raise TrainError("expected --recall from 0 to below 1, --vocab from 300 to 65536")
        info = prepare(args.file, args.out, args.vocab, args.recall, args.seed)
    except TrainError as e:
        sys.exit(f"train.text: {e}")
    except OSError as e:
        sys.exit(f"train.text: {reason(e)}")
    print(json.dumps(info, indent=1))


if __name__ == "__main__":
    main()
