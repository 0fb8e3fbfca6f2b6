"""Text of the teacher's own, by `linnet serve`: many documents at once share each reading of the
weights. Needs neither NumPy nor PyTorch."""
import concurrent.futures
import contextlib
import json
import os
import random
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from ..config import TrainError
from ..text import cut, read_sources

OPEN = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
CLOSE, ANSWER = "<|im_end|>\n", "<|im_start|>assistant\n"
BEGIN = '{"number": '  # of a line of the file


@contextlib.contextmanager
def serving(program, model, at_once, threads):
    """-> the URL of a server that ends with the block"""
    with tempfile.TemporaryFile("w+b") as log:
        def said():
            return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
        try:
            server = subprocess.Popen(
                [program, "serve", model, "--port", "0", "--slots", str(at_once), "-t", str(threads), "--timeout", "0"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        except OSError as e:
            raise TrainError(f"{program}: {e.strerror}")
        try:
            # Its line comes a piece at a time: the port is whole once the slash is there.
            while not (url := re.search(r"(http://[^\s/]+:\d+)/", said())):
                if server.poll() is not None:
                    last = said().strip().splitlines()[-1:]
                    raise TrainError(last[0] if last else "linnet serve ended without a word")
                time.sleep(0.02)
            yield url[1]
        finally:
            server.terminate()
            server.wait()


class Sampler:
    """Documents of three kinds, each from its number alone: a conversation whose questions the model
    asks itself, the continuation of a piece of a book, an article about a word of the books."""

    def __init__(self, url, paths, seed, tokens):
        self.pieces = [p for book, _ in read_sources(paths)[0] for p in cut(book)]
        self.names = sorted(set(re.findall(r"\b[A-Z][a-z]{3,11}\b", " ".join(self.pieces))))
        self.words = sorted(set(re.findall(r"\b[a-z]{5,12}\b", " ".join(self.pieces))))
        self.url, self.seed, self.tokens = url, seed, tokens

    def ask(self, path, **fields):
        request = urllib.request.Request(self.url + path, json.dumps(fields).encode())
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            raise TrainError(json.load(e)["error"]["message"])
        except OSError as e:
            raise TrainError(f"linnet serve no longer answers: {e}")

    def more(self, prompt, n, seed):
        ids = self.ask("/tokenize", prompt=prompt)["tokens"]
        answer = self.ask("/v1/completions", prompt=ids, max_tokens=n, seed=seed, temperature=0.8, top_p=0.95)
        return answer["choices"][0]["text"].rstrip("\n")

    def document(self, number):
        rng = random.Random(f"{self.seed} {number}")
        seed = rng.randrange(1 << 31)
        kind = ("chat", "continue", "article", "chat")[number % 4]
        if kind == "continue":
            piece = rng.choice(self.pieces)
            start = piece[:piece.find(" ", 300)]
            return start + self.more(start, self.tokens, seed)
        if kind == "article":
            topic = rng.choice(self.names if rng.random() < 0.3 else self.words)
            start = f"{topic.capitalize()}\n\n{topic.capitalize()} is"
            return start + self.more(start, self.tokens, seed)
        text = OPEN
        for turn in range(rng.choice((1, 1, 2, 3))):
            text += ("<|im_start|>user\n" if turn else "")
            text += self.more(text, 120, seed + 2 * turn) + CLOSE + ANSWER
            text += self.more(text, self.tokens, seed + 2 * turn + 1) + CLOSE
        return text


def sample(sampler, out, numbers, at_once, say=print):
    """Appends documents to a JSON Lines file as they end; those it holds already are not made again.
    In the end they are in the order of their numbers."""
    lines = {}
    if os.path.exists(out):
        try:
            with open(out) as f:
                *whole, last = f.read().split("\n")  # the last one is empty, or was cut short
            lines = {int(json.loads(line)["number"]): line + "\n" for line in whole}
            if last[:len(BEGIN)] != BEGIN[:len(last)]:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise TrainError(f"{out} is not a file that sample wrote: choose another with -o")
        with open(out, "w") as f:
            f.writelines(lines.values())
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool, open(out, "a") as f:
        waiting = {pool.submit(sampler.document, n): n for n in numbers if n not in lines}
        try:
            for done in concurrent.futures.as_completed(waiting):
                number, text = waiting[done], done.result()
                lines[number] = json.dumps({"number": number, "text": text}) + "\n"
                f.write(lines[number])
                f.flush()
                say(f"document {number}: {len(text)} characters")
        finally:
            pool.shutdown(cancel_futures=True)
    ordered = out + ".tmp"
    with open(ordered, "w") as f:
        f.writelines(lines[n] for n in sorted(lines))
    os.replace(ordered, out)
