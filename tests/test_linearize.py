"""train/linearize: a tiny Llama with random weights through both stages, its exports in linnet, and the
text it is trained on. Needs a Python with PyTorch (this one, $TORCH_PYTHON or /usr/bin/python3)."""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
from gguf import GGUFReader

from tests import test_export as common
from tests.test_train import LINNET, PYTHON, ROOT, run

from train.config import TrainError
from train.linearize import base, curves, data, jobs, settings
from train.linearize.sample import Sampler, sample, serving

D, H, KV, LAYERS, LENGTH = 32, 4, 2, 3, 48
SPECIAL = ("<|im_start|>", "<|im_end|>")


def bytes_as_text():
    """GPT-2's characters for the 256 bytes."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) if b in keep else chr(256 + rest.index(b)) for b in range(256)]


CHARACTERS = bytes_as_text()
FIRST = 257  # of the special tokens: bytes, one merge
V = FIRST + len(SPECIAL)
LLAMA = dict(common.LLAMA, vocab_size=V, hidden_size=D, intermediate_size=40, num_hidden_layers=LAYERS,
             num_attention_heads=H, num_key_value_heads=KV, tie_word_embeddings=True, bos_token_id=FIRST,
             eos_token_id=FIRST + 1, rope_theta=1000.0, max_position_embeddings=2048)
CONFIG = """
name: {name}
seed: 3
student: {{window: 8, n_sink: {sinks}, {more}}}
{transfer}
distill: {{steps: 6, batch: 2, warmup: 1, rank: 2, alpha: 4, lr: {{maps: 0.01, factors: 0.01, lora: 0.01}}}}
log_every: 2
evaluate_every: 4
checkpoint_every: 3
validation: 2
"""
TRANSFER = "transfer: {steps: 8, batch: 1, warmup: 2, lr: {maps: 0.02, factors: 0.02}}"


def tensors():
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        for x, s in (("q", (D, D)), ("k", (D // 2, D)), ("v", (D // 2, D)), ("o", (D, D))):
            shapes[f"{at}self_attn.{x}_proj.weight"] = s
        for x, s in (("gate", (40, D)), ("up", (40, D)), ("down", (D, 40))):
            shapes[f"{at}mlp.{x}_proj.weight"] = s
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (D,)
    return {n: common.random(k, *s) * (0.3 if len(s) > 1 else 1) for k, (n, s) in enumerate(shapes.items())}


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.base = self.path("base")
        os.makedirs(self.base)
        with open(self.path("base", "config.json"), "w") as f:
            json.dump(LLAMA, f)
        # .bin, so that the other Python needs no safetensors
        common.save_torch(self.path("base", "pytorch_model.bin"), tensors())
        tokenizer = common.tokenizer_json(
            base.PRE["smollm"], {c: i for i, c in enumerate(CHARACTERS)}, merges=("t h",),
            added=[common.special(FIRST + i, t) for i, t in enumerate(SPECIAL)])
        settings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "add_bos_token": False}
        for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
            with open(self.path("base", name), "w") as f:
                json.dump(value, f)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def export(self, source, out, *more):
        done = subprocess.run([sys.executable, "-m", "export", source, "-o", out, *more], cwd=ROOT,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out


@unittest.skipUnless(PYTHON, "no PyTorch")
class Stages(Folder):
    def setUp(self):
        super().setUp()
        self.data = self.path("data")
        os.makedirs(self.data)
        for name, n in (("train", 5), ("validation", 3)):
            ids = np.random.default_rng(n).integers(0, V, (n, LENGTH)).astype(np.uint32)
            np.save(os.path.join(self.data, name + ".npy"), ids)
        with open(os.path.join(self.data, "data.json"), "w") as f:
            json.dump({"length": LENGTH, "train": {"sha256": "0123456789abcdef"}}, f)
        self.where = ["--base", self.base, "--data", self.data]

    def config(self, name, sinks=2, more="", transfer=TRANSFER):
        with open(self.path(name + ".yaml"), "w") as f:
            f.write(CONFIG.format(name=name, sinks=sinks, more=more, transfer=transfer))
        return self.path(name + ".yaml")

    def linearize(self, *args, fails=None):
        done = run("-m", "train.linearize", *args)
        if fails:
            self.assertEqual(done.returncode, 1)
            self.assertIn(fails, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)
        else:
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def curve(self, runs, name, stage):
        with open(os.path.join(runs, name, stage, "curve.jsonl")) as f:
            return [{k: v for k, v in json.loads(line).items() if k != "cpu_seconds"} for line in f]

    def same_weights(self, *folders):
        done = run("-c", "import sys, torch\na, b = (torch.load(f + '/weights.pt') for f in sys.argv[1:])\n"
                   "assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)", *folders)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_equal_their_definitions(self):
        done = run("tests/linearize_forms.py")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_goes_on_where_it_was_killed(self):
        """Both stages, stopped between checkpoints: the same curve and weights; with the teacher's states
        kept in a file or not, with layers computed twice or not, nearly the same."""
        config = self.config("a")
        whole, cut = self.path("whole"), self.path("cut")
        for stage, until in (("transfer", "4"), ("distill", "4")):
            self.linearize(stage, config, *self.where, "-o", whole)
            self.linearize(stage, config, *self.where, "-o", cut, "--until", "1")
            os.unlink(os.path.join(cut, "a", stage, "checkpoint.pt"))
            self.linearize(stage, config, *self.where, "-o", cut, "--until", until)
            with open(os.path.join(cut, "a", stage, "curve.jsonl"), "a") as f:
                f.write('{"step": 6, "loss": 99}\n{"step": 6')
            self.linearize(stage, config, *self.where, "-o", cut)
            self.assertEqual(self.curve(cut, "a", stage), self.curve(whole, "a", stage))
            self.same_weights(os.path.join(whole, "a", stage), os.path.join(cut, "a", stage))
        rows = self.curve(whole, "a", "transfer")
        self.assertEqual([r["step"] for r in rows], [0, 2, 4, 6, 8])
        self.assertLess(rows[-1]["validation"]["loss"], rows[0]["validation"]["loss"])
        self.assertEqual(len(rows[0]["validation"]["layers"]), LAYERS)
        rows = self.curve(whole, "a", "distill")
        self.assertLess(rows[-1]["validation"]["kl"], rows[0]["validation"]["kl"])
        shutil.rmtree(os.path.join(cut, "a", "distill"))
        self.linearize("distill", config, *self.where, "-o", cut, "--cache", self.path("c"), "--recompute")
        for ours, theirs in zip(self.curve(cut, "a", "distill"), rows):
            if "kl" in ours:
                self.assertAlmostEqual(ours["kl"], theirs["kl"], delta=1e-3 * theirs["kl"])
        self.config("a", sinks=3)
        self.linearize("transfer", config, *self.where, "-o", whole)  # finished: left as it is
        self.linearize("curves", os.path.join(whole, "a", "transfer"), os.path.join(whole, "a", "distill"),
                       "-o", self.path("curves.svg"))
        self.assertEqual((Path(self.path("curves.svg")).read_text()).count("<polyline"), 6)

    @unittest.skipUnless(os.path.exists(LINNET), "no linnet")
    def test_linnet_gives_the_same(self):
        """Through the queue: sinks, softmax layers chosen by what was measured, lambda, the control without
        a linear part; logits within 1e-3 of their RMS (here 1e-4), and untrained ones run too."""
        runs = self.path("runs")
        from_a = "transfer_from: a"
        configs = [self.config("a"), self.config("b", 2, "softmax_layers: {most_sensitive: 1}", from_a),
                   self.config("c", 0, "affine: true"),
                   self.config("d", 2, "linear: false, softmax_layers: [1]", ""),
                   self.config("e", 2, "", "distill_from: a"),
                   self.config("f", 2, "trained_length: 20", "distill_from: a")]
        self.linearize("queue", *configs, *self.where, "-o", runs, "--jobs", "2", "--cache", self.path("kept"))
        with open(os.path.join(runs, "a", "transfer", "sensitivity.json")) as f:
            first = json.load(f)["order"][0]
        for name in ("a/transfer", "a/distill", "b/distill", "c/distill", "d/distill", "e/distill", "f/distill"):
            with self.subTest(name):
                self.linearize("check", os.path.join(runs, name), *self.where, "--linnet", LINNET,
                               "--limit", "1e-4")
        self.linearize("delta", os.path.join(runs, "b", "distill"), "-o", self.path("new", "b.pt"))
        card = json.loads(Path(self.path("new", "b.json")).read_text())
        self.assertEqual((card["softmax layers"], card["transfer"]["run"], card["distill"]["run"]), ([first], "a", "b"))
        self.assertEqual([r["stage"] for r in card["curve"] if r["step"] == 0], ["transfer", "distill"])
        ends, begins = (self.curve(runs, name, "distill")[at]["validation"]["kl"] for name, at in (("a", -1), ("e", 0)))
        self.assertAlmostEqual(ends, begins, delta=1e-6)
        self.assertNotAlmostEqual(ends, self.curve(runs, "f", "distill")[0]["validation"]["kl"], delta=1e-5)
        self.linearize("delta", os.path.join(runs, "e", "distill"), "-o", self.path("new", "e.pt"))
        card = json.loads(Path(self.path("new", "e.json")).read_text())
        self.assertEqual([card[k]["run"] for k in ("transfer", "distill before", "distill")], ["a", "a", "e"])
        gguf = self.export(self.base, self.path("b.gguf"), "--lolcats", self.path("new", "b.pt"),
                           "--lolcats-config", self.path("new", "b.yaml"))
        fields = GGUFReader(gguf).fields
        self.assertEqual(fields["linnet.lolcats.trained_length"].contents(), LENGTH)
        self.linearize("delta", os.path.join(runs, "b", "distill"), "-o", self.path("new", "b0.pt"), "--trained-length", "0")
        self.assertNotIn("trained_length", Path(self.path("new", "b0.yaml")).read_text())
        mixers = fields["linnet.mixers"].contents()
        self.assertEqual([i for i, m in enumerate(mixers) if m == "softmax"], [first])
        self.linearize("check", os.path.join(runs, "a/transfer"), *self.where, "--linnet", LINNET, "--limit", "0",
                       fails="differ by")

    def test_compiled_layers_learn_the_same(self):
        config, runs = self.config("a"), self.path("runs")
        if run("-c", "import torch; torch.compile").returncode:
            self.linearize("transfer", config, *self.where, "-o", runs, "--compile", fails="--compile needs PyTorch 2")
            self.assertFalse(os.path.exists(runs))
            return
        for name, flags in (("plain", ()), ("compiled", ("--compile", "--cache", "memory"))):
            for stage in ("transfer", "distill"):
                self.linearize(stage, config, *self.where, "-o", os.path.join(runs, name), *flags)
        for stage in ("transfer", "distill"):
            rows = [self.curve(os.path.join(runs, name), "a", stage) for name in ("plain", "compiled")]
            for ours, theirs in zip(*rows):
                self.assertAlmostEqual(ours.get("loss", 0), theirs.get("loss", 0), delta=1e-3)

    @unittest.skipUnless(os.path.exists(LINNET), "no linnet")
    def test_untrained_windows_need_no_file(self):
        with open(self.path("w.yaml"), "w") as f:
            f.write("attention: {attention_type: window_softmax, window_size: 8, n_sink: 2}\n")
        gguf = self.export(self.base, self.path("w.gguf"), "--lolcats-config", self.path("w.yaml"))
        done = subprocess.run([LINNET, "info", gguf], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.linearize("untrained", self.config("u"), "--base", self.base, "-o", self.path("new", "u.pt"))
        self.assertEqual(sorted(os.listdir(self.path("new"))), ["u.pt", "u.yaml"])
        self.export(self.base, self.path("u.gguf"), "--lolcats", self.path("new", "u.pt"), "--lolcats-config",
                    self.path("new", "u.yaml"))

    def test_refusals(self):
        config = self.config("a")
        self.linearize("distill", config, *self.where, "-o", self.path("r"), fails="not a finished run")
        self.linearize("transfer", config, "--base", self.folder, "--data", self.data, fails="config.json is missing")
        self.linearize("transfer", config, "--base", self.base, "--data", self.base, fails="no prepared text")
        self.linearize("delta", self.folder, "-o", self.path("x"), fails="not a run")
        self.linearize("sensitivity", config, *self.where, "--sequences", "0", fails="--sequences is 0")
        train = np.load(os.path.join(self.data, "train.npy"))
        train[0, 0] = V
        np.save(os.path.join(self.data, "train.npy"), train)
        self.linearize("transfer", config, *self.where, "-o", self.path("r"), fails=f"has a token {V}, the base has {V}")
        self.linearize("transfer", config, *self.where, "--device", "foo", fails="--device is foo: PyTorch finds no")
        with open(self.path("base", "config.json"), "w") as f:
            json.dump({**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2}}, f)
        self.linearize("transfer", config, *self.where, fails="scaled rotary positions")


@unittest.skipUnless(os.path.exists(LINNET), "no linnet")
class Text(Folder):
    def test_from_gguf_and_back(self):
        """base undoes export: the same tensors and the same ids."""
        first = self.export(self.base, self.path("a.gguf"))
        base.write(first, self.path("back"))
        second = self.export(self.path("back"), self.path("b.gguf"))
        a, b = GGUFReader(first), GGUFReader(second)
        self.assertEqual([t.name for t in a.tensors], [t.name for t in b.tensors])
        for x, y in zip(a.tensors, b.tensors):
            np.testing.assert_array_equal(np.array(x.data), np.array(y.data))
        for key in a.fields:
            if key.startswith(("tokenizer.", "llama.")):
                self.assertEqual(a.fields[key].contents(), b.fields[key].contents(), key)
        with self.assertRaisesRegex(TrainError, "cannot be read as GGUF"):
            base.write(self.path("base", "config.json"), self.path("x"))
        with self.assertRaisesRegex(TrainError, "has no vocabulary"):
            base.write(os.path.join(ROOT, "tests", "data", "models", "llama_q4_0.gguf"), self.path("x"))
        for package in ("gguf", "safetensors.numpy"):
            with mock.patch.dict(sys.modules, {package: None}), \
                    self.assertRaisesRegex(TrainError, f"a.gguf: reading it needs the Python package {package}"):
                base.write(first, self.path("x"))

    def test_models_of_train_are_bases_too(self):
        """What train.collect wrote, with SentencePiece pieces: the same numbers in another architecture."""
        path = os.path.join(ROOT, "models", "lm-softmax.gguf")
        base.write(path, self.path("lm"))
        a, b = GGUFReader(path), GGUFReader(self.export(self.path("lm"), self.path("lm.gguf"), "--type", "q8_0"))
        self.assertEqual(a.get_field("linnet.tokenizer.sentencepiece_model").contents(),
                         b.get_field("linnet.tokenizer.sentencepiece_model").contents())
        found = []
        for model in (path, self.path("lm.gguf")):
            data.linnet(LINNET, "logits", model, "--ids", "-", "-o", self.path("l.npy"), "--activations", "exact",
                        "--quiet", text=" ".join(map(str, range(3, 60))))
            found.append(np.load(self.path("l.npy")))
        want, got = found
        np.testing.assert_allclose(got, want, atol=1e-5 * np.sqrt(np.square(want).mean()), rtol=0)
        for name, fails in (("lm-based", "in every layer"), ("mqar-softmax-d64", "in every layer")):
            with self.assertRaisesRegex(TrainError, fails):
                base.write(os.path.join(ROOT, "models", name + ".gguf"), self.path("x"))

    def test_sampled_and_packed(self):
        """The same documents whether cut off or not; books keep their last twentieth for validation."""
        model, book = self.export(self.base, self.path("a.gguf")), self.path("book.txt")
        with open(book, "w") as f:
            f.write("".join(f"Line {i} of a Book with words enough\n" for i in range(900)))
        out, again = self.path("s.jsonl"), self.path("t.jsonl")
        with serving(LINNET, model, 4, 1) as url:
            sampler = Sampler(url, [book], 5, 12)
            sample(sampler, out, range(20), 4, say=lambda text: None)
            sample(sampler, again, range(3), 1, say=lambda text: None)
            with open(again, "a") as f:
                f.write('{"number": 3, "te')
            sample(sampler, again, range(20), 2, say=lambda text: None)
        with self.assertRaisesRegex(TrainError, "no longer answers"):
            sampler.document(0)
        with self.assertRaisesRegex(TrainError, "nothere.gguf"), serving(LINNET, self.path("nothere.gguf"), 1, 1):
            pass
        self.assertEqual(Path(out).read_text(), Path(again).read_text())
        info = data.prepare(LINNET, model, [book, out], self.path("packed"), 64, FIRST + 1, 1)
        self.assertEqual(set(info["files"]), {"book.txt", "s.jsonl"})
        with open(self.path("facts.jsonl"), "w") as f:
            f.writelines(json.dumps({"pairs": [["Area", f"{i} km"], ["Coast", "none"]]}) + "\n" for i in range(19))
        training, validation, _ = data.read_texts([self.path("facts.jsonl")], 100)
        self.assertEqual((len(training), validation), (18, ["Area: 17 km\nCoast: none"]))
        more = data.prepare(LINNET, model, [book, book, out], self.path("more"), 64, FIRST + 1, 1, 10)
        self.assertEqual((more["texts"], more["repeats"]), (["book.txt", "book.txt", "s.jsonl"], 10))
        self.assertGreater(more["train"]["tokens"], info["train"]["tokens"] * 1.5)
        first, second = data.repeats(["What is said once"], 1, 8, random.Random(2))[0].split("\n\n")
        self.assertEqual(first, second)
        self.assertIn(first, "What is said once")
        with self.assertRaisesRegex(TrainError, "--repeats is -1"):
            data.prepare(LINNET, model, [book], self.path("wrong"), 64, 0, 1, -1)
        train, held = (np.load(self.path("packed", n + ".npy")) for n in ("train", "validation"))
        self.assertEqual(train.shape, (info["train"]["sequences"], 64))
        parts = [["".join(CHARACTERS[i] for i in ids.flatten() if i < 256)] for ids in (train, held)]
        self.assertIn("Line\u0120880\u0120of", parts[1][0])
        self.assertNotIn("Line\u0120880\u0120of", parts[0][0])
        for length, separator, fails in ((1, 0, "--length is 1"), (0, 0, "--length is 0"), (64, -1, "--separator is -1"),
                                         (64, V, f"--separator is {V}, expected .* 0 to {V - 1}$")):
            with self.assertRaisesRegex(TrainError, fails):
                data.prepare(LINNET, model, [book], self.path("wrong"), length, separator, 1)
        with self.assertRaisesRegex(TrainError, "has no vocabulary"):
            data.prepare(LINNET, os.path.join(ROOT, "models", "mqar-softmax-d64.gguf"), [book], self.path("wrong"), 64, 0, 1)
        s = data.Sequences(self.path("packed"), 1, V)
        n = len(train)
        once = [s.numbers(i, 1)[0] for i in range(2 * n)]
        self.assertEqual(sorted(once[:n]), list(range(n)))
        self.assertEqual(sorted(once[n:]), list(range(n)))
        self.assertNotEqual(once[:n], once[n:])
        self.assertEqual(s.numbers(3, 2), once[6:8])
        anywhere = {"batch": 2, "positions": 70}
        self.assertEqual({s.first(step, anywhere) for step in range(99)}, set(range(7)))
        self.assertEqual(s.first(3, {"batch": 2}), 0)
        self.assertEqual(data.held([4, 5, 6], anywhere, 64), [([4, 5], 0), ([6], 6)])
        self.assertEqual(data.held([4, 5, 6], {"batch": 2}, 64), [([4, 5], 0), ([6], 0)])


class Curves(unittest.TestCase):
    def test_other_rows(self):
        with tempfile.TemporaryDirectory() as folder:
            for row in ('{"step": 5, "loss": 4.5, "accuracy": 0.1}', "[1]", "3"):
                Path(folder, "curve.jsonl").write_text(row + "\n")
                with self.assertRaisesRegex(TrainError, "curve.jsonl: expected rows with tokens"):
                    curves.draw([folder])


class Sampling(unittest.TestCase):
    """Servers that are stand-ins, and files that sample did not write."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def program(self, body):
        path = self.folder / "program"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o700)
        return str(path)

    def test_a_port_that_comes_in_pieces(self):
        program = self.program("printf 'at http://127.0.0.1:4' >&2; sleep 0.3; echo 321/ >&2; exec sleep 60")
        with serving(program, "x.gguf", 1, 1) as url:
            self.assertEqual(url, "http://127.0.0.1:4321")

    def test_a_server_that_ends(self):
        for body, said in (("exit 0", "ended without a word"), ("echo; echo no model >&2", "^no model$")):
            with self.assertRaisesRegex(TrainError, said), serving(self.program(body), "x.gguf", 1, 1):
                pass

    def test_leaves_files_of_others_alone(self):
        out = self.folder / "out.jsonl"
        for content in (b"A book.\n", b"A line without an end", b'{"pairs": []}\n', b"[1]\n", b'{"number": []}\n',
                        b"\xff\n"):
            out.write_bytes(content)
            with self.assertRaisesRegex(TrainError, "out.jsonl is not a file that sample wrote"):
                sample(None, str(out), range(1), 1)
            self.assertEqual(out.read_bytes(), content)


class Configs(unittest.TestCase):
    def test_all_are_valid(self):
        paths = sorted(str(p) for p in (ROOT / "train/configs").glob("linearize-*.yaml"))
        for path in paths:
            self.assertEqual(settings.load(path)["name"], Path(path).stem)
        names = [name for name, _, _ in jobs.jobs_of(paths, "runs", [])]
        self.assertLess(names.index("linearize-sinks sensitivity"), names.index("linearize-sinks-softmax distill"))

    def test_refusals(self):
        text = CONFIG.format(name="x", sinks=2, more="", transfer=TRANSFER)
        for wrong, part in ((text.replace("sinks: 2", "sinks: -1").replace("n_sink: 2", "n_sink: -1"), "at least 0"),
                            (text + "speed: 1", "speed is not an option"),
                            (text.replace("rank: 2", "rank: two"), "rank is 'two', expected int"),
                            (text.replace("n_sink: 2", "linear: 1"), "linear is 1, expected bool"),
                            (text.replace("name: x", ""), "has no name"),
                            (text + "transfer_from: y", "one of transfer, transfer_from and distill_from"),
                            (text.replace("steps: 8, ", ""), "transfer has no steps"),
                            (text.replace("{maps: 0.02, factors: 0.02}", "{maps: 0.02}"), "transfer: lr has no factors"),
                            (text.replace(", lora: 0.01", ""), "distill: lr has no lora"),
                            (text.replace("{maps: 0.01, ", "{"), "distill: lr has no maps"),
                            (text.replace("n_sink: 2", "softmax_layers: {most: 2}"), "most_sensitive")):
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
                f.write(wrong)
                f.flush()
                with self.assertRaisesRegex(TrainError, part):
                    settings.load(f.name)
