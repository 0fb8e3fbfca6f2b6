"""train/: MQAR sequences against docs/mqar.md written out token by token; where a Python with PyTorch is at
hand (this one, $TORCH_PYTHON or /usr/bin/python3), mixers, training, resuming and what linnet makes of
the exported models."""
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

from train import cards, collect, compare, mqar, text as books
from train.config import TrainError, load

ROOT = Path(__file__).resolve().parent.parent
M = (1 << 64) - 1


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & M
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & M
    return z ^ (z >> 31)


def plain_sequence(task, seed, split, index):
    """docs/mqar.md, line by line, in Python's integers."""
    V, L, K, P = task.vocab, task.length, task.pairs, task.passes
    s = 0
    for word in (seed, split, V, L, K, index):
        s = mix((s ^ word) + 0x9E3779B97F4A7C15 & M)

    def below(i, n):
        return mix(s + (i + 1) * 0x9E3779B97F4A7C15 & M) * n >> 64

    H, C = V // 2, 2 * K * P
    x, y = [None] * L, [-100] * L
    a, b = list(range(1, H)), list(range(H, V))
    for i in range(K):
        j = i + below(i, H - 1 - i)
        a[i], a[j] = a[j], a[i]
    for i in range(K):
        j = i + below(K + i, H - i)
        b[i], b[j] = b[j], b[i]
    for p in range(P):
        for i in range(K):
            x[2 * K * p + 2 * i], x[2 * K * p + 2 * i + 1] = a[i], b[i]
    free = {g: int(2**32 * (g + 1) ** (task.power - 1) + 0.5) for g in range((L - C) // 2)}
    for i in range(K):
        r, total = below(2 * K + i, sum(free.values())), 0
        for g in sorted(free):
            total += free[g]
            if total > r:
                break
        del free[g]
        x[C + 2 * g], y[C + 2 * g] = a[i], b[i]
    for p in range(C, L):
        if x[p] is None:
            x[p] = below(3 * K + p, V) if task.random_fill else 0
    return x, y


class Mqar(unittest.TestCase):
    def test_hashes_of_the_documentation(self):
        rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| (\w+) \| `(\w+)`",
                          (ROOT / "docs/mqar.md").read_text(), re.M)
        self.assertEqual(len(rows), 5)
        for V, L, K, P, a, fill, want in rows:
            with self.subTest(L=L, K=K, P=P):
                task = mqar.Task(int(L), int(K), int(V), int(P), float(a), fill == "random")
                x, y = mqar.sequences(task, 0, "test", np.arange(64))
                self.assertEqual(f"{mqar.fingerprint(x, y):016x}", want)

    def test_equals_the_text_token_by_token(self):
        for task in (mqar.Task(64, 4), mqar.Task(128, 32), mqar.Task(96, 8, 512, 3, 0.7, False)):
            for split in mqar.SPLITS:
                x, y = mqar.sequences(task, 2**63 + 5, split, [0, 7, 2**40])
                for row, index in enumerate([0, 7, 2**40]):
                    want = plain_sequence(task, 2**63 + 5, mqar.SPLITS[split], index)
                    self.assertEqual((x[row].tolist(), y[row].tolist()), want)

    def test_has_the_distribution(self):
        """Slots follow (g + 1)^(a - 1), keys and values are distinct and answered once."""
        task = mqar.Task(64, 4)
        x, y = mqar.sequences(task, 1, "train", np.arange(20000))
        self.assertTrue(((y != -100).sum(1) == 4).all())
        keys, values = x[:, 0:8:2], x[:, 1:8:2]
        self.assertTrue(((keys > 0) & (keys < 4096)).all() and (values >= 4096).all())
        self.assertTrue(all(len(set(r)) == 8 for r in x[:2000, :8].tolist()))
        first = (x[:, 8::2] == keys[:, :1]) & (y[:, 8::2] == values[:, :1])
        self.assertTrue((first.sum(1) == 1).all())
        w = np.arange(1, 29) ** -0.99
        expected = len(x) * w / w.sum()
        chi2 = ((first.sum(0) - expected) ** 2 / expected).sum()
        self.assertLess(chi2, 55)  # 27 degrees of freedom: 0.1 % of all seeds exceed it

    def test_refuses_what_does_not_fit(self):
        for wrong, part in ((dict(length=62, pairs=16), "64 for 16 pairs"),
                            (dict(length=64, pairs=0), "0 pairs"),
                            (dict(length=64, pairs=4, vocab=7), "vocab is 7"),
                            (dict(length=64, pairs=4, power=0), "power")):
            with self.assertRaisesRegex(ValueError, part):
                mqar.Task(**wrong)


# ---- With PyTorch ----------------------------------------

def torch_python():
    for python in (os.environ.get("TORCH_PYTHON"), sys.executable, "/usr/bin/python3"):
        if python and shutil.which(python) and not subprocess.run(
                [python, "-c", "import torch, yaml"], capture_output=True).returncode:
            return python
    return None


PYTHON = torch_python()
LINNET = os.environ.get("LINNET", str(ROOT / "linnet"))
COMMON = """
name: {name}
seed: 3
steps: {steps}
batch_tokens: 512
lr: [0.01, 0.003]
weight_decay: 0.1
warmup: 5
log_every: 5
evaluate_every: 10
checkpoint_every: 10
model: {{vocab: 256, dim: 32, feed_forward: {ff}, context: 512, layers: [{layers}]}}
task: {{kind: mqar, segments: [[32, 4, 1], [64, 8, 2, 0.3]], validation: 8, test: [[64, 8]]}}
"""
CONV = "{mixer: short_conv, taps: 3}"
MODELS = {
    "softmax": (0, CONV + ", {mixer: softmax, heads: 2, kv_heads: 1, window: 20}, {mixer: softmax, "
                "heads: 2, kv_heads: 1}"),
    "rope": (40, "{mixer: softmax, heads: 2, rope: 10000, window: 20}, {mixer: lolcats, heads: 2, "
             "rope: 10000, window: 11}"),
    "hedgehog": (0, CONV + ", {mixer: hedgehog, heads: 2, features: 12}"),
    "based": (40, CONV + ", {mixer: based_taylor, heads: 2, features: 6}"),
    "delta": (0, CONV + ", {mixer: delta_net, heads: 1, key_dim: 24}"),
    "gdn": (40, "{mixer: gated_delta_net, heads: 2, value_dim: 20, gate: true}, {mixer: softmax, "
            "heads: 4, window: 5}"),
}


def run(*args):
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    return subprocess.run([PYTHON, *args], cwd=ROOT, env=environment, capture_output=True, text=True)


@unittest.skipUnless(PYTHON, "no PyTorch")
class Training(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def config(self, name, steps=20):
        path = os.path.join(self.folder, name + ".yaml")
        ff, layers = MODELS[name]
        with open(path, "w") as f:
            f.write(COMMON.format(name=name, steps=steps, ff=ff, layers=layers))
        return path

    def train(self, *args):
        done = run("-m", "train", *args)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_mixers_equal_their_recurrences(self):
        done = run("tests/train_forms.py")
        self.assertEqual(done.returncode, 0, done.stderr)

    def curve(self, out):
        with open(os.path.join(self.folder, out, "softmax", "lr-0.01", "curve.jsonl")) as f:
            rows = [json.loads(line) for line in f]
        return [{k: v for k, v in row.items() if k != "cpu_seconds"} for row in rows]

    def test_goes_on_where_it_was_killed(self):
        """Stopped in time, and killed between checkpoints: the same curve and weights."""
        config = self.config("softmax")
        at = [os.path.join(self.folder, x) for x in ("whole", "cut")]
        self.train(config, "--lr", "0.01", "-o", at[0])
        self.train(config, "--lr", "0.01", "-o", at[1], "--until", "13")
        # as a run leaves it that is killed after step 15, while it writes a row
        folder = os.path.join(at[1], "softmax", "lr-0.01")
        self.assertEqual([r["step"] for r in self.curve("cut")], [5, 10])
        with open(os.path.join(folder, "curve.jsonl"), "a") as f:
            f.write('{"step": 15, "loss": 99}\n{"step": 2')
        self.train(config, "--lr", "0.01", "-o", at[1], "--data", "for text only")
        self.assertEqual(self.curve("cut"), self.curve("whole"))
        self.assertEqual([r["step"] for r in self.curve("whole")], [5, 10, 15, 20])
        a, b = (np.load(os.path.join(x, "softmax", "lr-0.01", "weights.npz")) for x in at)
        for name in a.files:
            self.assertTrue(np.array_equal(a[name], b[name]), name)

    def test_refuses_another_config_in_its_folder(self):
        config = self.config("softmax")
        self.train(config, "--lr", "0.01", "-o", self.folder, "--until", "1")
        self.config("softmax", steps=30)
        done = run("-m", "train", config, "--lr", "0.01", "-o", self.folder)
        self.assertEqual(done.returncode, 1)
        self.assertIn("has a run of another config", done.stderr)

    def collect(self, runs, *args):
        return subprocess.run([sys.executable, "-m", "train.collect", runs, *args, "-o",
                               os.path.join(self.folder, "models")], cwd=ROOT, capture_output=True, text=True)

    def collected(self, runs, text):
        """Cards, files and the table of two language models, linnet's perplexity in them."""
        done = self.collect(runs, "--linnet", LINNET)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for name in "ab":
            self.assertRegex(done.stdout, f"{name}.gguf validation .* of their RMS, perplexity of the trainer")
            gguf = os.path.join(self.folder, "models", name + ".gguf")
            with open(gguf.replace(".gguf", ".json")) as f:
                card = json.load(f)
            held = card["held-out"]
            trainer = held["perplexity of the trainer"]
            self.assertEqual(held["type of this file"], "q8_0")
            self.assertLess(abs(held["perplexity of linnet, f16"] / trainer - 1), 1e-4)
            self.assertLess(abs(held["perplexity of this file"] / trainer - 1), 2e-3)
            self.assertEqual(set(card["data"]["files"]), {"book.txt", "profiles.jsonl"})
            self.assertEqual(card["config"]["task"]["data"], os.path.basename(text))
            self.assertTrue(card["greedy"].startswith(compare.PROMPT))
            self.assertEqual(card["sha256"], cards.sha256(gguf))
            self.assertEqual(len(card["curve"]), 3)
            info = subprocess.run([LINNET, "info", gguf], capture_output=True, text=True).stdout
            self.assertIn("q8_0", info)
        table = Path(self.folder, "models", "README.md").read_text()
        self.assertRegex(table, r"\| b \| lolcats 9 \| [\d,]+ \| [\d,]+ \| 12 after a \| 0.003 \|")
        self.assertNotIn("## MQAR", table)

    @unittest.skipUnless(os.path.exists(LINNET), "no linnet")
    def test_language_models_from_text(self):
        """Text prepared, a softmax model trained, linearized from there, both run by linnet."""
        if run("-c", "import sentencepiece").returncode:
            self.skipTest("no SentencePiece module")
        book, profiles = (os.path.join(self.folder, n) for n in ("book.txt", "profiles.jsonl"))
        with open(book, "w") as f:
            f.write("".join(p.read_text() for p in sorted((ROOT / "docs").glob("*.md"))))
        with open(profiles, "w") as f:
            for i in range(10):
                f.write(json.dumps({"pairs": [[f"Field {j}", f"value {i * j}"] for j in range(9)]}))
                f.write("\n")
        text = os.path.join(self.folder, "text")
        for again in (text + "2", text):
            done = run("-m", "train.text", book, profiles, "-o", again, "--vocab", "400")
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(cards.sha256(text + "/train.npy"), cards.sha256(text + "2/train.npy"))
        common = ("seed: 1\nsteps: 12\nbatch_tokens: 256\nlr: [0.003]\nweight_decay: 0.1\nwarmup: 2\n"
                  "log_every: 4\nmodel: {vocab: 400, dim: 32, feed_forward: 40, context: 256, layers: "
                  "[{mixer: %s, heads: 2, rope: 10000}]}\ntask: {kind: text, length: 64}\nname: %s\n")
        out = os.path.join(self.folder, "runs")
        for name, mixer, more in (("a", "softmax", ""),
                                  ("b", "lolcats, window: 9", "start_from: a\ntransfer: 8\n")):
            config = os.path.join(self.folder, name + ".yaml")
            with open(config, "w") as f:
                f.write(common % (mixer, name) + more)
            self.train(config, "-o", out, "--data", text, "--test")
        self.collected(out, text)
        # the trainer's numbers are of these tokens, and no others
        wrong = self.collect(out, "b", "--linnet", LINNET, "--data", text + "3")
        self.assertIn(text + "3/validation.npy: No such file or directory", wrong.stderr)
        shutil.copytree(text, text + "4")
        ids = np.load(text + "4/validation.npy")
        np.save(text + "4/validation.npy", ids[::-1])
        self.assertIn("not the text that", self.collect(out, "b", "--linnet", LINNET, "--data", text + "4").stderr)
        self.assertIn("has no finished c; there are a, b", self.collect(out, "c").stderr)
        path = Path(out, "b", "lr-0.003", "result.json")
        result = json.loads(path.read_text())
        result["validation"]["perplexity"] *= 1.001
        path.write_text(json.dumps(result))
        done = self.collect(out, "b", "--linnet", LINNET)
        self.assertEqual(done.returncode, 1)
        self.assertIn("1 models give other results", done.stderr)
        tried = collect.finished(out)
        # attention's mean square difference, then the text's cross-entropy
        with open(os.path.join(tried["b"][0][2], "curve.jsonl")) as f:
            first, second, last = (json.loads(line)["loss"] for line in f)
        self.assertLess(max(first, second), 1)
        self.assertGreater(last, 3)

    @unittest.skipUnless(os.path.exists(LINNET), "no linnet")
    def test_linnet_gives_the_same(self):
        """Every mixer, through the queue: logits within 1e-4 of their RMS, equal hits. A config that
        cannot be trained is reported, and holds up nothing."""
        out, models = os.path.join(self.folder, "runs"), os.path.join(self.folder, "models")
        wrong = self.config("softmax")
        with open(wrong) as f:
            text = f.read().replace("name: softmax", "name: wrong").replace("[[32, 4,", "[[30, 14,")
        wrong = os.path.join(self.folder, "wrong.yaml")
        with open(wrong, "w") as f:
            f.write(text)
        done = run("-m", "train.queue", wrong, *map(self.config, MODELS), "-o", out)
        self.assertEqual(done.returncode, 1)
        self.assertIn("3 failed: wrong lr", done.stderr)
        with open(os.path.join(out, "queue.log")) as f:
            self.assertIn("expected an even number of at least 56 for 14 pairs", f.read())
        for name, tried in collect.finished(out).items():
            with self.subTest(name):
                os.makedirs(models, exist_ok=True)
                gguf = os.path.join(models, name + ".gguf")
                collect.export(tried[0][2], gguf)
                error, hits, expected = compare.check(LINNET, gguf, tried[0][2], 200)
                self.assertLess(error, 1e-4)
                self.assertEqual(hits, expected)
                card = collect.card(name, tried, gguf)
                self.assertEqual(card["lr"], max(tried)[1])
                self.assertEqual(set(card["validation"]), {"lr 0.003", "lr 0.01"})
        self.assertEqual(set(collect.finished(out)), set(MODELS))


class Programs(unittest.TestCase):
    """What they cannot do is one sentence, and a status of 1."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def refused(self, sentence, *args, python=sys.executable):
        done = subprocess.run([python, "-m", *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
        self.assertIn(sentence, done.stderr)

    def test_a_queue_without_workers(self):
        configs, runs = ROOT / "train" / "configs", self.folder / "runs"
        for jobs in ("0", "-2"):
            self.refused(f"train.queue: --jobs is {jobs}, expected at least 1", "train.queue",
                         configs / "mqar-softmax-d32.yaml", "-o", runs, "--jobs", jobs)
        self.refused("train.linearize: --jobs is 0, expected at least 1", "train.linearize", "queue",
                     configs / "linearize-sinks.yaml", "--base", "x", "--data", "x", "-o", runs, "--jobs", "0")

    @unittest.skipUnless(PYTHON, "no PyTorch")
    def test_a_device_that_is_not_there(self):
        config, runs = ROOT / "train" / "configs" / "mqar-softmax-d32.yaml", self.folder / "runs"
        for device in ("foo", "", "cuda:99", "meta"):
            self.refused(f"train: --device is {device}: PyTorch finds no such device", "train", config, "-o", runs,
                         "--device", device, python=PYTHON)
        self.assertFalse(runs.exists())

    def test_folders_that_cannot_be_made(self):
        file = self.folder / "file"
        file.touch()
        out, config = file / "runs", ROOT / "train" / "configs" / "mqar-softmax-d32.yaml"
        self.refused(f"train.queue: {out}: Not a directory", "train.queue", config, "-o", out)
        if PYTHON:
            self.refused(f"train: {file}", "train", config, "--lr", "1", "-o", out, python=PYTHON)
        if PYTHON and not run("-c", "import sentencepiece").returncode:
            self.refused(f"train.text: {out}: Not a directory", "train.text", *(ROOT / "docs").glob("*.md"), "-o", out,
                         python=PYTHON)

    @unittest.skipUnless(PYTHON, "no PyTorch")
    def test_a_disk_that_is_full(self):
        """An error that can be caught, and the file of before."""
        path = self.folder / "checkpoint.pt"
        path.write_text("before")
        done = run("-c", "import resource, sys, torch\nfrom train.run import save\n"
                   "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
                   "try: save(sys.argv[1], torch.zeros(1000))\nexcept OSError: print('caught')", path)
        self.assertEqual((done.stdout, done.stderr, path.read_text()), ("caught\n", "", "before"))


class Text(unittest.TestCase):
    def test_what_is_held_out_is_not_learned(self):
        """No line of the last twentieth, and none of the last profiles, in any document to train on."""
        word = re.compile(r"[a-z]{3,8}").findall((ROOT / "docs/mixers.md").read_text())
        book = "".join(f"Line {i} of {word[i % len(word)]}, {word[-i % len(word)].capitalize()}.\n"
                       for i in range(4000))
        trained, held = books.split_book(book)
        self.assertEqual(trained + held, book)
        self.assertAlmostEqual(len(held) / len(book), 0.05, 2)
        self.assertTrue(held.startswith("Line "))
        profiles = [[(f"Field {j}", f"value {i} {j}") for j in range(9)] for i in range(11)]
        learned, asked = books.split_profiles(profiles)
        self.assertEqual((learned, asked), (profiles[:9], profiles[9:]))
        documents = "\n".join(books.documents([trained], learned, 0.5, random.Random(1)))
        lines = set(documents.splitlines())
        self.assertFalse(lines & set(held.splitlines()))
        self.assertEqual(lines & set(trained.splitlines()), set(trained.splitlines()))
        found = set(re.findall(r"value (\d+) \d", documents))
        self.assertTrue(found and found <= set(map(str, range(9))), found)

    def test_validation_rows_follow_each_other(self):
        rows = books.validation_rows(np.arange(1000, dtype=np.uint16), 10, 20)
        self.assertEqual(rows.shape, (25, 11))
        self.assertEqual(rows[:, 0].tolist(), list(range(0, 1000 - 10, 40)))
        self.assertTrue((np.diff(rows) == 1).all())


class Configs(unittest.TestCase):
    def test_all_are_valid_and_in_the_order(self):
        names = set()
        for path in sorted((ROOT / "train/configs").glob("*-*.yaml")):
            if path.stem.startswith("linearize-"):
                continue  # tests/test_linearize.py
            config = load(str(path))
            self.assertEqual(config["name"], path.stem)
            names.add(path.stem)
        order = (ROOT / "train/configs/order.txt").read_text().split()
        self.assertEqual(sorted(order), sorted(names))

    def test_refusals(self):
        base = COMMON.format(name="x", steps=20, ff=0, layers=CONV)
        for text, part in (("seed: [", "not YAML"), (base + "speed: 1", "speed is not an option"),
                           (base.replace("steps: 20", "steps: many"), "steps is 'many'"),
                           (base.replace("steps: 20", "steps: 0"), "at least 1"),
                           (base.replace("seed: 3\n", ""), "has no seed"),
                           (base.replace("[0.01, 0.003]", "[-1]"), "numbers above 0"),
                           (base.replace("dim: 32, ", ""), "model has no dim")):
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
                f.write(text)
                f.flush()
                with self.assertRaisesRegex(TrainError, re.escape(part)):
                    load(f.name)

    def test_files_that_are_no_config(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, content, part in (("bytes", b"name: \xe9\n", "bytes.yaml: byte 6 is not UTF-8"),
                                        ("own", b"base: own.yaml", "own.yaml is its own base"),
                                        ("a", b"base: b.yaml", "a.yaml is its own base"),
                                        ("number", b"base: 7", "base is 7, expected the name of a file")):
                Path(folder, name + ".yaml").write_bytes(content)
                Path(folder, "b.yaml").write_bytes(b"base: a.yaml")
                with self.assertRaisesRegex(TrainError, re.escape(part)):
                    load(os.path.join(folder, name + ".yaml"))

    def test_state_bytes_are_zoologys(self):
        """As zoology's state_size methods count, in float32."""
        def of(dim, **o):
            return collect.state_bytes(dict(dim=dim, layers=[dict(mixer="short_conv", taps=3), o]), 1024)
        for want, dim, o in ((525056, 64, dict(mixer="softmax")),
                             (40548, 64, dict(mixer="based_taylor", features=16)),
                             (85268, 64, dict(mixer="based_taylor", features=24)),
                             (34304, 128, dict(mixer="softmax", window=32)),
                             (8960, 64, dict(mixer="delta_net")),
                             (34304, 128, dict(mixer="gated_delta_net"))):
            self.assertEqual(of(dim, **o), want)


if __name__ == "__main__":
    unittest.main()
