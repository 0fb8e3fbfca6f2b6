"""Tests of bench/'s Python: python3 -m unittest tests.test_bench (quality.py needs numpy).

The programs that peers.py runs are stand-ins here; the samples are made up."""
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINNET = os.environ.get("LINNET", os.path.join(ROOT, "linnet"))
sys.path.insert(0, os.path.join(ROOT, "bench"))
import peers
import picture

SETUP = {"who": "setup", "cpu": "Some CPU", "processors": 2, "system": "Linux 6", "linnet": "abc", "llama": "llama.cpp X",
         "date": "2026-01-02"}


def sample(who, model, test, threads, round_, value, type_="q4_0", mixers=("softmax",), weights=100_000_000):
    row = {"model_type": f"llama 1M {type_}", "mixers": list(mixers), "weight_bytes_read_per_token": weights}
    return {"who": who, "model": model, "test": test, "threads": threads, "round": round_, "value": value, "row": row}


def samples():
    out = []
    for r, (ours, theirs, memory) in enumerate([(200.0, 100.0, 40.0), (300.0, 150.0, 60.0), (100.0, 110.0, 40.0)], 1):
        out += [sample("linnet", "a.gguf", "tg128", 1, r, ours), sample("llama", "a.gguf", "tg128", 1, r, theirs),
                sample("probe", "a.gguf", "tg128", 1, r, memory)]
    out += [sample("linnet", "a.gguf", "batch8", 1, 1, 800.0), sample("llama", "a.gguf", "batch8", 1, 1, 80.0),
            sample("probe", "a.gguf", "batch8", 1, 1, 50.0), sample("linnet", "a.gguf", "pp512", 1, 1, 5000.0),
            sample("llama", "a.gguf", "pp512", 1, 1, 1000.0)]
    for d, ours, theirs in ((256, 190.0, 95.0), (4096, 90.0, 20.0)):
        out += [sample("linnet", "a.gguf", f"tg32@{d}", 1, 1, ours), sample("llama", "a.gguf", f"tg32@{d}", 1, 1, theirs),
                sample("linnet", "d.gguf", f"tg32@{d}", 1, 1, 180.0, mixers=["delta_net"])]
    return out + [sample("llama", "d.gguf", "tg32@256", 1, 1, None)]


class Table(unittest.TestCase):
    def rows(self, against=None):
        text = peers.table(SETUP, samples(), against)
        return text, [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()
                      if line.startswith("| ") and not line.startswith("| test")]

    def test_medians_ratios_and_shares_of_the_same_round(self):
        rows = self.rows()[1]
        # Shares by hand: 200 * 0.1 GB / 40 = 50 %, 30 / 60 = 50 %, 10 / 40 = 25 %; llama 25, 25, 28.
        self.assertEqual(rows[0], ["decode, 128 tokens at depth 0", "1", "200.0 (100.0-300.0)", "110.0 (100.0-150.0)",
                                   "1.82", "50 %", "25 %"])
        # Eight sequences share one reading of the weights: 800 / 8 * 0.1 / 50.
        self.assertEqual(rows[1], ["decode, 8 sequences", "1", "800.0 (800.0-800.0)", "80.0 (80.0-80.0)", "10.00",
                                   "20 %", "2 %"])
        self.assertEqual(rows[2], ["prefill, 512 tokens", "1", "5000 (5000-5000)", "1000 (1000-1000)", "5.00", "-", "-"])

    def test_a_model_that_llama_does_not_load(self):
        self.assertEqual(self.rows()[1][-1][2:5], ["180.0 (180.0-180.0)", "-", "-"])
        text, rows = self.rows("a.gguf")
        self.assertEqual(rows[-1], ["decode, 32 tokens at depth 4096", "1", "180.0 (180.0-180.0)", "20.0 (20.0-20.0)",
                                    "9.00", "-", "-"])
        self.assertIn("llama.cpp, a.gguf", text)
        with self.assertRaisesRegex(peers.PeersError, "--against d.gguf"):
            peers.table(SETUP, samples(), "d.gguf")

    def test_words(self):
        for word in ("tg", "tg0", "pp5@", "batch", "xx5", "tg5@x", "batch4@2"):
            with self.assertRaisesRegex(peers.PeersError, re.escape(f"'{word}'")):
                peers.Test(word)
        t = peers.Test("pp64@128")
        self.assertEqual((t.kind, t.n, t.depth, t.decodes), ("pp", 64, 128, False))


class Picture(unittest.TestCase):
    def draw(self, s):
        root = xml.fromstring(picture.draw(SETUP, s))
        space = "{http://www.w3.org/2000/svg}"
        size = [float(v) for v in root.get("viewBox").split()[2:]]
        return root, space, size, [t.text for t in root.iter(space + "text")]

    def test_bars_and_curves(self):
        root, space, (width, height), texts = self.draw(samples())
        for words in ("By type of weights, 1 thread", "q4_0", "200", "110", "Over depth, 1 thread", "linnet, softmax: 90",
                      "llama.cpp, softmax: 20", "linnet, delta net: 180", "tokens per second"):
            self.assertIn(words, texts)
        # The bars stand as 200 : 110, and the limit is 40 GB/s / 0.1 GB = 400, twice as high.
        bars = [float(r.get("height")) for r in root.iter(space + "rect") if r.get("fill") in (picture.LINNET, picture.LLAMA)
                and float(r.get("height")) > 20]
        self.assertAlmostEqual(bars[0] / bars[1], 200 / 110, places=1)
        base = picture.TOP + picture.HEIGHT
        limit = [float(r.get("y1")) for r in root.iter(space + "line") if r.get("stroke") == picture.INK and
                 r.get("stroke-width") == "2.0" and float(r.get("y1")) > picture.TOP]
        self.assertAlmostEqual((base - limit[0]) / bars[0], 2, places=1)
        for t in root.iter(space + "text"):
            if not t.get("transform"):
                self.assertTrue(0 <= float(t.get("x")) <= width and 0 < float(t.get("y")) < height, t.text)

    def test_labels_keep_apart(self):
        for wanted in ([50, 50, 50.5, 49], [10, 300], [0, 1, 2, 3, 200]):
            at = picture.apart(wanted, 15)
            order = sorted(range(len(wanted)), key=lambda i: wanted[i])
            self.assertTrue(all(at[b] - at[a] > 14.5 for a, b in zip(order, order[1:])), at)

    def test_two_models_of_a_type_and_a_single_thing(self):
        texts = self.draw(samples() + [sample("linnet", "b.gguf", "tg128", 1, 1, 50.0)])[3]
        self.assertEqual({"a", "b"} - set(texts), set())
        self.assertNotIn("Over depth, 1 thread", self.draw([sample("linnet", "b.gguf", "tg128", 2, 1, 50.0)])[3])
        with self.assertRaisesRegex(peers.PeersError, "nothing to draw"):
            picture.draw(SETUP, [sample("linnet", "b.gguf", "pp5", 2, 1, 50.0)])


class Run(unittest.TestCase):
    """peers.py as a program, with stand-ins that note in a log how they were called."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.log = self.path("log")
        row = '[{"build_commit": "abc", "median_ts": 10.5, "model_type": "llama 1M q4_0", "mixers": ["softmax"], \
               "weight_bytes_read_per_token": 100}]'
        self.program("linnet", f"echo '{row}'")
        self.program("bandwidth", """echo '{"gb_per_s": 50.0}'""")
        refuse = 'case "$*" in *own.gguf*) echo "error: failed to load model" >&2; exit 1 ;; esac; '
        self.program("llama-bench", refuse + """echo '[{"avg_ts": 5.25}]'""")
        self.program("llama-batched-bench", refuse +
                     """echo noise; echo '{"pl": 4, "speed_tg": 7.0}'; echo '{"pl": 1, "speed_tg": 1.0}'""")
        for name in ("a.gguf", "own.gguf"):
            open(self.path(name), "w").close()

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def program(self, name, body):
        with open(self.path(name), "w") as f:
            f.write(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{body}\n')
        os.chmod(self.path(name), stat.S_IRWXU)

    def run_it(self, *flags):
        open(self.log, "w").close()
        r = subprocess.run([sys.executable, os.path.join(ROOT, "bench", "peers.py"), "--threads", "2", "--rounds", "2",
                            *(w for n in ("linnet", "bandwidth", "llama-bench", "llama-batched-bench")
                              for w in (f"--{n}", self.path(n))), "--out", self.path("out.jsonl"), *flags,
                            self.path("a.gguf"), self.path("own.gguf")],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with open(self.log) as f:
            return r, f.read().replace(self.folder.name + "/", "").splitlines()[1:]  # the first asks for the version

    def test_rounds_in_turns_and_what_is_asked_for(self):
        r, calls = self.run_it("--tests", "tg128 pp5 tg2@9 batch4")
        self.assertEqual(r.returncode, 0, r.stderr)
        mine = [c for c in calls if "own.gguf" not in c]
        same = "-t 2 -r 1 -o json"
        self.assertEqual([c for c in mine if "bandwidth" not in c][:8], [
            f"linnet bench -m a.gguf -p 0 -n 128 -d 0 -b 1 {same} --no-pin --quiet",
            f"llama-bench -m a.gguf -p 0 -n 128 -d 0 {same}",
            f"linnet bench -m a.gguf -p 5 -n 0 -d 0 -b 1 {same} --no-pin --quiet",
            f"llama-bench -m a.gguf -p 5 -n 0 -d 0 {same}",
            f"linnet bench -m a.gguf -p 0 -n 2 -d 9 -b 1 {same} --no-pin --quiet",
            f"llama-bench -m a.gguf -p 0 -n 2 -d 9 {same}",
            f"linnet bench -m a.gguf -p 0 -n 64 -d 128 -b 4 {same} --no-pin --quiet",
            "llama-batched-bench -m a.gguf -npp 128 -ntg 64 -npl 4,1 -c 1024 -t 2 -tb 2 --output-format jsonl"])
        names = [c.split()[0] for c in mine]
        self.assertEqual(names[:5], ["linnet", "bandwidth", "llama-bench", "linnet", "llama-bench"])
        second = names.index("llama-bench", names.index("llama-batched-bench"))
        self.assertEqual(names[second:second + 3], ["llama-bench", "bandwidth", "linnet"])
        # A model that llama.cpp refuses is offered to it once.
        self.assertEqual(sum("own.gguf" in c and c.startswith("llama") for c in calls), 1)
        self.assertIn("| decode, 4 sequences | 2 | 10.5 (10.5-10.5) | 7.0 (7.0-7.0) | 1.50 |", r.stdout)

    def test_goes_on_where_it_was_cut_off(self):
        first, calls = self.run_it("--tests", "tg128 pp5")
        with open(self.path("out.jsonl")) as f:
            whole = f.read()
        lines = whole.splitlines(keepends=True)
        with open(self.path("out.jsonl"), "w") as f:
            f.write("".join(lines[:5]) + lines[5][:20])
        second, again = self.run_it("--tests", "tg128 pp5")
        self.assertEqual(second.returncode, 0, second.stderr)
        self.assertEqual(len(calls) - len(again), 4)
        self.assertEqual(second.stdout, first.stdout)
        with open(self.path("out.jsonl")) as f:
            self.assertEqual(f.read(), whole)
        self.assertEqual(self.run_it("--tests", "tg128 pp5")[1], [])
        with open(self.path("out.jsonl"), "w") as f:
            f.write(json.dumps({**json.loads(lines[0]), "linnet": "another"}) + "\n")
        r = self.run_it("--tests", "tg128")[0]
        self.assertEqual((r.returncode, r.stdout), (1, ""))
        self.assertIn("was measured with linnet 'another'", r.stderr)

    def test_refusals_are_one_sentence(self):
        self.program("llama-bench", "echo broken >&2; exit 3")
        for flags, words in ((("--tests", "tg128"), "exit 3: broken"), (("--tests", "tg"), "test 'tg'"),
                             (("--tests", "tg7", "--linnet", "/none/linnet"), "/none/linnet: No such file")):
            r = self.run_it(*flags)[0]
            self.assertEqual(r.returncode, 1)
            self.assertRegex(r.stderr.splitlines()[-1], "^peers: .*" + re.escape(words))
        with open(self.path("out.jsonl"), "w") as f:
            f.write("{}\n")
        self.assertIn("line 1 is no measurement", self.run_it("--tests", "tg1")[0].stderr)


class Refusals(unittest.TestCase):
    """One sentence, and a status of 1."""

    def refused(self, sentence, program, *args):
        r = subprocess.run([sys.executable, os.path.join(ROOT, "bench", program), *args], capture_output=True, text=True)
        self.assertEqual((r.returncode, r.stderr), (1, sentence + "\n"))

    def test_a_program_that_is_not_there(self):
        self.refused("quality.py: /none/linnet: No such file or directory", "quality.py", "a.gguf", "a.txt", "--linnet",
                     "/none/linnet")
        import cuda
        with self.assertRaisesRegex(SystemExit, "^cuda.py: /none/linnet: No such file or directory$"):
            cuda.run(["/none/linnet", "bench"])

    def test_a_table_of_another_file(self):
        text = os.path.join(ROOT, "README.md")
        self.refused(f"turns.py: {text}: line 1 is no row of turns.py", "turns.py", "--table", text)
        row = {"model": "a.gguf", "who": "linnet", "round": 0, "scenario": "back", "turn": 2, "prompt": 90, "computed": 9,
               "ttft": 0.5}
        with tempfile.NamedTemporaryFile("w") as f:
            f.write(json.dumps(row) + "\n" + json.dumps({**row, "ttft": 0.7}) + "\n")
            f.flush()
            r = subprocess.run([sys.executable, os.path.join(ROOT, "bench", "turns.py"), "--table", f.name],
                               capture_output=True, text=True)
            self.assertIn("| back | 9 of 90, 600 ms | - | - |", r.stdout)
            f.write("[1]\n")
            f.flush()
            self.refused(f"turns.py: {f.name}: line 3 is no row of turns.py", "turns.py", "--table", f.name)


class Quality(unittest.TestCase):
    def test_table_and_bounds(self):
        import numpy as np
        import quality
        exact = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], np.float32))
        other = np.log(np.array([[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]], np.float32)) + 7
        d = quality.compare(exact, other)  # 0.5 log 2 - 0.25 log 2
        np.testing.assert_allclose(d, [0.25 * np.log(2), 0], atol=1e-7)
        small = {"p": np.array([1e-4, 2e-4]), "q": np.array([3e-4, 1e-5])}
        self.assertEqual(quality.summary(small)[0::2], (3e-4, 2e-4))
        found = {"exact": (20.0, 0.5, 100), "auto": {"perplexity": 20.01, "kl": small},
                 "q8": {"perplexity": 20.4, "kl": {"p": d, "q": d}}}
        text, good = quality.report({"q4_0": found}, "m.gguf", "a text")
        self.assertTrue(good)
        self.assertIn("| q4_0 | 20.0000 +- 0.50 | +0.0500 % | +2.0000 % | 3.0e-04 | 1.5e-04 | 2.0e-04 | 1.7e-01 |", text)
        found["auto"] = {"perplexity": 20.03, "kl": small}
        self.assertFalse(quality.report({"q4_0": found}, "m.gguf", "a text")[1])
        found["auto"] = {"perplexity": 20.0, "kl": {**small, "q": np.array([3e-3])}}
        self.assertFalse(quality.report({"q4_0": found}, "m.gguf", "a text")[1])


class Linearized(unittest.TestCase):
    """The table of scripts/linearized.sh from rows of linnet's own on a small model, and made-up speeds."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def table(self):
        return subprocess.run([sys.executable, os.path.join(ROOT, "bench", "linearized.py"), "table", self.folder],
                              capture_output=True, text=True)

    def test_ratios_and_break_even(self):
        with open(self.path("novel.txt"), "w") as f:
            f.write("One two three four five six seven eight nine ten. " * 20)
        perplexity = {}
        for name, model in (("original", "lm-softmax"), ("sinks", "lm-lolcats")):
            os.mkdir(self.path(name))
            os.symlink(os.path.join(ROOT, "models", model + ".gguf"), self.path(name + ".gguf"))
            done = subprocess.run([LINNET, "recall", "-m", self.path(name + ".gguf"), "--quiet", "--task",
                                   "ar:" + self.path("novel.txt"), "--max-ctx", "128", "--task", "copy:n=1,N=32", "--task",
                                   "passkey:n=2", "--len", "300", "--save", self.path(name, "recall.jsonl")],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(self.path(name, "recall.jsonl")) as f:
                perplexity[name] = json.loads(f.readline())["ppl"]
        with open(self.path("bench.jsonl"), "w") as f:
            for name, speeds in (("original", {0: 100, 100: 50}), ("sinks", {0: 50, 100: 100})):
                for depth, speed in speeds.items():
                    f.write(json.dumps({"model_filename": name + ".gguf", "n_depth": depth, "median_ts": speed,
                                        "state_bytes_alloc": 2_000_000}) + "\n")
        done = self.table()
        self.assertEqual(done.returncode, 0, done.stderr)
        ours, theirs = perplexity["sinks"], perplexity["original"]
        self.assertIn(f"| **with sinks** | {ours:.2f} | {ours / theirs:.3f} |", done.stdout)
        self.assertIn("| copy 32 | passkey 300 |", done.stdout)
        self.assertIn("| 100 (2.0 MB) | - |", done.stdout)
        # 10 ms more at 0 and 10 less at 100: halfway.
        self.assertIn("with sinks**: as fast as the original at 50 tokens", done.stdout)
        with open(self.path("bench.jsonl"), "w") as f:
            f.write("{")
        done = self.table()
        self.assertEqual(done.returncode, 1)
        self.assertIn("linearized.py: ", done.stderr)


if __name__ == "__main__":
    unittest.main()
