"""Asks one question of many text files, on all machines of a Ray cluster.

    pip install ray ./python
    python3 examples/batch_ray.py MODEL.gguf OUT.jsonl FILE... --ask "Summarize this text in one sentence."

Each actor has the model open, and the state of what all prompts begin with: a file goes on from a fork of it, and
--batch files are decoded together. OUT.jsonl gets a line per file when its answer is there; the same command again
goes on with the files that have none. MODEL and the files must be readable at every machine."""
import argparse
import json
import os

import linnet
import ray.util


@ray.remote
class Reader:
    def __init__(self, model, threads, ask, most):
        self.model, self.ask, self.most = linnet.Model(model, threads=threads), ask, most
        self.base = self.model.session()
        self.base.feed(os.path.commonprefix([self.prompt("a"), self.prompt("7")]))

    def prompt(self, text):
        if self.model.info.chat_template == "none":
            return self.model.tokenize(f"{self.ask}\n\n{text}\n\n")
        return self.model.chat([("user", f"{self.ask}\n\n{text}")])

    def read(self, path):
        """A session that holds the prompt. A text is cut where the context ends."""
        with open(path, encoding="utf-8") as f:
            text = f.read()
        while len(ids := self.prompt(text)) + self.most > self.base.ctx and text:
            text = text[:len(text) * (self.base.ctx - self.most) // (len(ids) + 1)]
        n = len(self.base)
        session = self.base.fork() if ids[:n] == list(self.base.tokens) else self.model.session()
        session.feed(ids[len(session):])
        return session

    def answer(self, paths):
        rows, sessions = [{"file": path} for path in paths], {}
        for i, path in enumerate(paths):
            try:
                sessions[i] = self.read(path)
                rows[i]["prompt_tokens"] = len(sessions[i])
            except (OSError, UnicodeDecodeError, linnet.LinnetError) as error:
                rows[i]["error"] = str(error)
        texts = self.model.batch_generate(sessions.values(), batch=len(paths), max_tokens=self.most)
        for i, text in zip(sessions, texts):
            rows[i].update(tokens=len(text.tokens), end=text.end, answer=text.text)
        return rows


def answered(out):
    """The files that have an answer. A line that a crash cut short is taken away."""
    with open(out, "ab+") as f:
        f.seek(0)
        whole = f.read().rpartition(b"\n")[0]
        f.truncate(len(whole) + bool(whole))
    return {row["file"] for row in map(json.loads, whole.splitlines()) if "answer" in row}


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model")
p.add_argument("out")
p.add_argument("files", nargs="+")
p.add_argument("--ask", default="Summarize this text in one sentence.")
p.add_argument("--most", type=int, default=100, help="tokens of an answer (default 100)")
p.add_argument("--threads", type=int, default=1, help="of an actor")
p.add_argument("--batch", type=int, default=8, help="files decoded together (default 8)")
a = p.parse_args()
todo = sorted({os.path.abspath(f) for f in a.files} - answered(a.out))
parts = [todo[i:i + a.batch] for i in range(0, len(todo), a.batch)]
ray.init()  # the cluster of RAY_ADDRESS, or a small one on this machine
n = max(1, min(int(ray.cluster_resources()["CPU"]) // a.threads, len(parts)))
pool = ray.util.ActorPool([Reader.options(num_cpus=a.threads).remote(os.path.abspath(a.model), a.threads, a.ask, a.most)
                           for _ in range(n)])
with open(a.out, "a", encoding="utf-8", buffering=1) as out:
    for rows in pool.map_unordered(lambda reader, part: reader.answer.remote(part), parts):
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
