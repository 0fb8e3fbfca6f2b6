"""Tests of `linnet pareto`: python3 -m unittest tests.test_pareto (needs a built linnet; LINNET=path).

Rows are made up here in the shape of `linnet recall` and `linnet bench`; the frontier, the means and
their intervals are computed again from their definitions."""
import csv
import html.parser
import io
import itertools
import json
import math
import os
import random
import re
import shlex
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as xml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINNET = os.environ.get("LINNET", os.path.join(ROOT, "linnet"))
SVG = "{http://www.w3.org/2000/svg}"
FAMILIES = {"softmax": (["short_conv", "softmax"], [0, 0], "f16+f32"), "swa": (["short_conv", "softmax"], [0, 64], "f16+f32"),
            "based": (["short_conv", "based_taylor"], [0, 0], "f32"), "delta": (["delta_net", "delta_net"], [0, 0], "f32"),
            "gdn": (["gated_delta_net"], [0], "f32"), "hedgehog": (["hedgehog"], [0], "f32")}


def wilson(hits, n, z=1.959963984540054):
    p = hits / n
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def model(name, family="delta", params=300_000, **more):
    mixers, windows, dtype = FAMILIES[family]
    return {"model_filename": f"models/{name}.gguf", "model_hash": format(abs(hash(name)) % 2**64, "016x"), "mixers": mixers,
            "model_type": "linnet 0M f16", "model_n_params": params, "model_size": 2 * params, "windows": windows,
            "dtype_state": dtype, "activations": "auto", **more}


def recall(m, hits, n=1000, state=1000, L=64, K=4, **more):
    low, high = wilson(hits, n)
    return {**m, "task": "mqar", "preset": None, "params": f"V=8192,L={L},K={K},a=0.01,P=1,fill=random", "len": L,
            "depth": None, "twice": False, "cut": "none", "max_ctx": None, "data_hash": f"{L:016x}", "seed": 0,
            "view": "chunk", "n_items": 100, "n": n, "hits": hits, "acc": hits / n, "acc_low": low, "acc_high": high,
            "ppl_recall": None, "state_bytes_model": state, "state_bytes_alloc": 2 * state, **more}


def bench(m, speed, depth=0, batch=1, threads=2, gen=32, **more):
    return {**m, "build_commit": "abc1234", "cpu_info": "A CPU", "gpu_info": "", "backends": "CPU", "isa": "avx2",
            "n_threads": threads, "n_prompt": 0, "n_gen": gen, "n_depth": depth, "n_seqs": batch, "median_ts": speed,
            "avg_ts": speed and speed + 1, "samples_ns": [1, 2, 3], "ttft_ns": None, "peak_rss_bytes": 5_000_000, "oom": False, **more}


def prefill(m, ttft_ms, **more):
    return {**bench(m, 1000.0), "n_prompt": 64, "n_gen": 0, "ttft_ns": int(ttft_ms * 1e6), **more}


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, rows, name="rows.jsonl"):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as f:
            if name.endswith("l"):
                f.writelines(json.dumps(r) + "\n" for r in rows)
            else:
                json.dump(rows, f, indent=1)
        return path

    def run_pareto(self, rows, ending, *flags):
        """-> exit code, the output's text or None, stderr"""
        files = rows if isinstance(rows, tuple) else (self.write(rows),)
        out = os.path.join(self.folder, "out" + ending)
        if os.path.exists(out):
            os.unlink(out)
        done = subprocess.run([LINNET, "pareto", *files, "-o", out, *flags], capture_output=True, text=True)
        self.assertEqual(done.stdout, "")
        text = None
        if os.path.exists(out):
            with open(out, encoding="utf-8", newline="") as f:
                text = f.read()
        return done.returncode, text, done.stderr

    def make(self, rows, ending, *flags):
        code, text, err = self.run_pareto(rows, ending, *flags)
        self.assertEqual((code, text is None), (0, False), err)
        return text

    def refused(self, words, rows, *flags, ending=".svg"):
        code, text, err = self.run_pareto(rows, ending, "--quiet", *flags)
        self.assertEqual((code, text), (1, None), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertRegex(err, r"\Alinnet: ")
        for w in [words] if isinstance(words, str) else words:
            self.assertIn(w, err)

    def table(self, rows, *flags):
        return list(csv.DictReader(io.StringIO(self.make(rows, ".csv", *flags))))

    def points(self, rows, *flags):
        return {r["model"]: r for r in self.table(rows, *flags) if r["segment"] in ("mean", "")}

    def svg(self, rows, *flags):
        root = xml.fromstring(self.make(rows, ".svg", *flags))
        self.assertEqual(root.tag, SVG + "svg")
        return root


def words_of(root):
    return [t.text or "" for t in root.iter(SVG + "text")]


def markers(root):
    """[(title's lines, filled)] of the points."""
    found = [g for g in root.iter(SVG + "g") if g.get("class") == "point"]
    return [(g.find(SVG + "title").text.split("\n"), "open" not in g.find(SVG + "path").get("class").split()) for g in found]


class Frontier(Case):
    def test_against_its_definition(self):
        r = random.Random(7)
        for trial in range(12):
            rows, values = [], {}
            for i in range(r.choice([1, 2, 5, 17])):
                m = model(f"m{i}", r.choice(sorted(FAMILIES)))
                hits, state, speed = r.randrange(0, 11) * 100, 2 ** r.randrange(8, 13), r.choice([5.0, 50.0, 55.5, 500.0])
                rows += [recall(m, hits, state=state), bench(m, speed)]
                values[f"m{i}"] = (hits, -state, -2 * state, speed)
            for flags, x in (((), 1), (("--accounting", "alloc"), 2), (("--x", "tg_ts"), 3)):
                best = {a for a, v in values.items() if not any(
                    w[0] >= v[0] and w[x] >= v[x] and (w[0] > v[0] or w[x] > v[x]) for w in values.values())}
                with self.subTest(trial=trial, flags=flags):
                    points = self.points(rows, *flags)
                    self.assertEqual(set(points), set(values))
                    self.assertEqual({a for a, p in points.items() if p["frontier"] == "true"}, best)
                    drawn = markers(self.svg(rows, *flags))
                    self.assertEqual(sorted(t[0] for t, _ in drawn), sorted(values))
                    self.assertEqual({t[0] for t, filled in drawn if filled}, best)

    def test_less_perplexity_is_better(self):
        rows = [recall(model(n), 5, state=s, task="ar", params="file=a.txt", ppl=q, ppl_recall=p)
                for n, s, p, q in (("a", 100, 9.0, 20.0), ("b", 200, 8.0, 21.0), ("c", 300, 8.5, 19.0))]
        for y, best, words in (("perplexity", ["true", "false", "true"], "perplexity"),
                               ("ppl_recall", ["true", "true", "false"], "perplexity of what is to be recalled")):
            points = self.points(rows, "--y", y)
            self.assertEqual([points[n]["frontier"] for n in "abc"], best)
            self.assertEqual([points["a"][k] for k in ("perplexity", "ppl_recall")], ["20.0", "9.0"])
            text = words_of(self.svg(rows, "--y", y))
            self.assertIn(f"{words} (← less is better)", " ".join(text))
            self.assertIn(f"ar:a.txt: {words} against state bytes", text)
        for r in rows:  # what says only perplexity
            r["perplexity"] = r.pop("ppl")
        self.assertEqual(self.points(rows, "--y", "perplexity")["c"]["perplexity"], "19.0")

    def test_time_to_first_token_and_memory(self):
        rows = []
        for n, hits, ttft, rss in (("a", 900, 50.0, 9_000_000), ("b", 800, 60.0, 7_000_000), ("c", 700, 40.0, 8_000_000)):
            m = model(n)
            rows += [recall(m, hits), prefill(m, ttft), bench(m, 10.0, peak_rss_bytes=rss)]
        best = lambda *flags: [n for n, p in self.points(rows, *flags).items() if p["frontier"] == "true"]
        self.assertCountEqual(best("--x", "ttft"), ["a", "c"])
        self.assertCountEqual(best("--x", "peak_rss"), ["a", "b"])
        self.assertIn("time to first token (log scale; ← less is better)", words_of(self.svg(rows, "--x", "ttft")))


class Joins(Case):
    def test_means_of_segments(self):
        a, hits = model("a"), {(64, 4): 990, (128, 8): 700, (1024, 256): 10}
        rows = [recall(a, h, L=L, K=K, state=L) for (L, K), h in reversed(hits.items())]
        table = self.table(rows)
        self.assertEqual([r["segment"] for r in table], ["mean", "L=64 K=4", "L=128 K=8", "L=1024 K=256"])
        mean = table[0]
        accs = [h / 1000 for h in hits.values()]
        self.assertAlmostEqual(float(mean["acc"]), sum(accs) / 3, 9)
        self.assertEqual((mean["n"], mean["hits"], mean["state_bytes_model"], mean["state_bytes_alloc"]),
                         ("3000", "1700", "1024", "2048"))
        # MOVER: the squares of the distances to each segment's limit add up.
        low = sum(accs) / 3 - math.sqrt(sum((p - wilson(p * 1000, 1000)[0]) ** 2 for p in accs)) / 3
        high = sum(accs) / 3 + math.sqrt(sum((wilson(p * 1000, 1000)[1] - p) ** 2 for p in accs)) / 3
        self.assertAlmostEqual(float(mean["acc_low"]), low, 9)
        self.assertAlmostEqual(float(mean["acc_high"]), high, 9)
        self.assertEqual((table[1]["acc"], table[1]["frontier"], table[3]["state_bytes_model"]), ("0.99", "", "1024"))
        text = " ".join(words_of(self.svg(rows)))
        self.assertIn("mean of 3 segments: L 64–1024, K 4–256; V 8192", text)
        self.assertIn("n = 1000 in each segment; seed 0", text)

    def test_by_hash_else_by_name(self):
        a = model("a")
        moved = bench({**a, "model_filename": "/elsewhere/copy.gguf"}, 7.0)
        self.assertEqual(self.points([recall(a, 500), moved])["a"]["tg_ts"], "7")
        no_hash = bench({**a, "model_filename": "other/a.gguf"}, 8.0)
        del no_hash["model_hash"]
        self.assertEqual(self.points([recall(a, 500), no_hash])["a"]["tg_ts"], "8")
        self.assertEqual(self.points([no_hash, recall(a, 500)])["a"]["tg_ts"], "8")

    def test_two_files_of_one_name(self):
        a = model("a")
        for key, value in (("model_hash", "f" * 16), ("model_n_params", 5), ("model_size", 5), ("mixers", ["softmax"]),
                           ("model_type", "linnet 0M q8_0")):
            other = {**a, "model_filename": "b/a.gguf", key: value}
            if key != "model_hash":
                del other["model_hash"]
            self.refused(["two different models under the name a.gguf", key, "line 1", "line 2"], [recall(a, 500), bench(other, 9.0)])
        rows = [recall(a, 500), recall({**a, "model_filename": "b/a.gguf", "model_hash": "f" * 16}, 600)]
        self.assertEqual(set(self.points(rows, "--force")), {"a", "a #2"})
        self.assertIn("two different models are called a.gguf", " ".join(words_of(self.svg(rows, "--force"))))

    def test_both_formats_of_files(self):
        a, b = model("a"), model("b")
        one = self.write([recall(a, 1), bench(a, 3.0)], "one.json")
        two = self.write([bench(b, 4.0), recall(b, 2)], "two.jsonl")
        points = self.points((one, two))
        self.assertEqual([points[n]["tg_ts"] for n in "ab"], ["3", "4"])

    def test_pipes_are_read_once(self):
        """Either format, from a named pipe; blank lines before an array count in what is wrong with it."""
        a, b = model("a"), model("b")
        for name, rows in (("one.json", [recall(a, 1), bench(a, 3.0)]), ("two.jsonl", [bench(b, 4.0), recall(b, 2)])):
            path, pipe = self.write(rows, name), os.path.join(self.folder, "pipe")
            os.mkfifo(pipe)
            feeding = subprocess.Popen(["cp", path, pipe])
            self.assertEqual(len(self.points((pipe,))), 1)
            feeding.wait()
            os.unlink(pipe)
        with open(path, "w") as f:
            f.write("\n\n[\n}")
        self.refused("line 4: not JSON", (path,))

    def test_cell(self):
        a, b = model("a"), model("b")
        rows = [recall(a, 500), recall(b, 600)]
        rows += [bench(m, 1000.0 * (m is a) + d + bt, d, bt) for m in (a, b) for d in (0, 512) for bt in (2, 8)]
        rows += [bench(a, 9.0, 4096, 2)]  # b was not measured there
        p = self.points(rows)
        self.assertEqual([(p[n]["n_depth"], p[n]["n_seqs"], p[n]["tg_ts"]) for n in "ab"], [("512", "2", "1514"), ("512", "2", "514")])
        p = self.points(rows, "--depth", "0", "--batch", "8")
        self.assertEqual([(p[n]["n_depth"], p[n]["n_seqs"], p[n]["tg_ts"]) for n in "ab"], [("0", "8", "1008"), ("0", "8", "8")])
        root = self.svg(rows, "--x", "tg_ts", "--depth", "4096")
        self.assertEqual([t[0] for t, _ in markers(root)], ["a"])
        self.assertIn("b (no row of bench at this depth and batch)", " ".join(words_of(root)))
        self.refused(["nothing to join", "no row of bench at this depth"], rows, "--x", "tg_ts", "--depth", "7")

    def test_the_longest_test_and_the_last_measurement(self):
        a = model("a")
        rows = [recall(a, 5), bench(a, 1.0, gen=64), bench(a, 2.0, gen=64), bench(a, 3.0, gen=8)]
        self.assertEqual(self.points(rows)["a"]["tg_ts"], "2")

    def test_out_of_memory_is_said(self):
        a, b = model("a"), model("b")
        rows = [recall(a, 5), recall(b, 5), bench(a, 9.0), bench(b, None, oom=True)]
        self.assertIn("b (out of memory)", " ".join(words_of(self.svg(rows, "--x", "tg_ts"))))
        self.assertEqual(self.points(rows)["b"]["note"], "out of memory")

    def test_speed_of_the_same_activations(self):
        a = model("a")
        rows = [recall(a, 5), bench({**a, "activations": "q8"}, 9.0)]
        self.refused(["nothing to join", "other activations"], rows, "--x", "tg_ts")
        self.assertEqual(self.points(rows)["a"]["tg_ts"], "")
        self.assertIn("a: quality and speed under different activations", " ".join(words_of(self.svg(rows, "--x", "tg_ts", "--force"))))
        rows.append(bench(a, 5.0))
        self.assertEqual(self.points(rows)["a"]["tg_ts"], "5")
        self.assertEqual(self.points(rows, "--force")["a"]["tg_ts"], "5")

    def test_a_repeated_row_counts_once(self):
        a = model("a")
        self.assertEqual(self.points([recall(a, 5), recall(a, 5, view="recurrent")])["a"]["n"], "1000")
        self.refused("two results of a for the same test", [recall(a, 5), recall(a, 6)])
        self.assertEqual(self.points([recall(a, 5), recall(a, 6)], "--force")["a"]["hits"], "6")

    def test_files_of_a_task_are_tasks(self):
        a = model("a")
        rows = [recall(a, h, task="jsonl", params=f"file={f}", preset="jrt", len=None) for f, h in (("x.jsonl", 1), ("y.jsonl", 2))]
        self.refused(["one task", "jsonl:x.jsonl, jsonl:y.jsonl", "--task"], rows)
        self.assertEqual(self.points(rows, "--task", "jsonl:y.jsonl")["a"]["hits"], "2")
        self.assertEqual(len(self.table(rows)), 2)


class SeveralTasks(Case):
    def rows(self):
        made = []
        for i, name in enumerate("abc"):
            for k, task in enumerate(("copy", "passkey", "niah1")):
                for length in (256, 512):
                    made.append(recall(model(name), 100 * i + 10 * k + length // 256, 500 * (k + 1), task=task, params="",
                                       len=length, state=length * (i + 1)))
        return made

    def test_mean_of_all_segments(self):
        rows = self.rows()
        points = self.points(rows, "--task", "copy,passkey")
        for i, name in enumerate("abc"):
            mine = [r for r in rows if r["task"] != "niah1" and r["model_filename"] == f"models/{name}.gguf"]
            self.assertEqual(len(mine), 4)
            self.assertAlmostEqual(float(points[name]["acc"]), sum(r["acc"] for r in mine) / 4)
            low = points[name]["acc_low"]
            self.assertAlmostEqual(float(low), sum(r["acc"] for r in mine) / 4 -
                                   math.sqrt(sum((r["acc"] - r["acc_low"]) ** 2 for r in mine)) / 4)
            self.assertEqual(points[name]["state_bytes_model"], str(512 * (i + 1)))
        segments = [r["segment"] for r in self.table(rows, "--task", "copy,passkey") if r["model"] == "a"]
        self.assertEqual(segments, ["mean", "task=copy len=256", "task=copy len=512", "task=passkey len=256", "task=passkey len=512"])

    def test_what_the_chart_says(self):
        text = words_of(self.svg(self.rows(), "--task", "passkey,niah1"))
        self.assertIn("mean of tasks: recall against state bytes", text)
        self.assertTrue(any("tasks passkey, niah1, preset none; mean of 4 segments: len 256–512" in t for t in text), text)

    def test_the_axis_ends_where_a_reader_sees_something(self):
        text = words_of(self.svg([recall(model("a"), 120), recall(model("b"), 60, state=2000)]))
        self.assertIn("accuracy (more is better →; the axis ends at 0.20)", text)
        self.assertNotIn("0.4", text)
        self.assertIn("accuracy (more is better →)", words_of(self.svg([recall(model("a"), 450)])))

    def test_one_of_them_is_still_alone(self):
        rows = self.rows()
        self.assertEqual({r["segment"] for r in self.table(rows, "--task", "copy")}, {"mean", "len=256", "len=512"})
        self.assertEqual(len(self.table(rows, "--task", "copy,niah1")), 3 * 5)

    def test_refusals(self):
        rows = self.rows()
        self.refused("no row of task sing; there are copy, passkey, niah1", rows, "--task", "copy,sing")
        self.refused("no row of task ; there are", rows, "--task", "copy,,niah1")
        self.refused("another number of tests", rows[:-1], "--task", "copy,niah1")
        self.refused("seed", rows + [recall(model("d"), 5, task="copy", params="", len=256, seed=9)], "--task", "copy,passkey")

    def test_a_file_with_a_comma_is_one_task(self):
        rows = [recall(model("a"), h, task="jsonl", params=f"file={f}", len=None) for f, h in (("x,y.jsonl", 1), ("x", 2))]
        self.assertEqual(self.points(rows, "--task", "jsonl:x,y.jsonl")["a"]["hits"], "1")


class Mixtures(Case):
    def test_settings(self):
        a, b = model("a"), model("b")
        softmax, other = model("c", "softmax"), model("d", "softmax", dtype_state="f32")
        cases = [("seed (0, 1)", [recall(a, 5), recall(b, 5, seed=1)]),
                 ("activations (auto, exact)", [recall(a, 5), recall({**b, "activations": "exact"}, 5)]),
                 ("weights (f16, q8_0)", [recall(a, 5), recall({**b, "model_type": "linnet 0M q8_0"}, 5)]),
                 ("keys and values (f16, f32)", [recall(softmax, 5), recall(a, 5), recall(other, 5)]),
                 ("preset (jrt, jrt-twice)", [recall(a, 5, preset="jrt"), recall(b, 5, preset="jrt-twice")]),
                 ("cut rule (none, answer)", [recall(a, 5), recall(b, 5, cut="answer")]),
                 ("longest context (512, 1024)", [recall(a, 5, max_ctx=512), recall(b, 5, max_ctx=1024)]),
                 ("window mode (sliding, terrace)",
                  [recall(softmax, 5, window_mode=None), recall(a, 5, window_mode="sliding"), recall(b, 5, window_mode="terrace")]),
                 ("twice (false, true)", [recall(a, 5), recall(b, 5, twice=True)]),
                 ("another number of tests", [recall(a, 5), recall(b, 5), recall(b, 5, L=128)]),
                 ("other tests", [recall(a, 5), recall(b, 5, L=128)]),
                 ("another number of questions", [recall(a, 5), recall(b, 5, n=500)]),
                 ("other items (data_hash)", [recall(a, 5), recall(b, 5, data_hash="0")]),
                 ("seed", [recall(a, 5), recall(a, 5, seed=1)])]
        for words, rows in cases:
            with self.subTest(words):
                self.refused([words, "--force"], rows)
                if not words.startswith("preset"):
                    self.refused(words, rows, ending=".html")
                text = " ".join(words_of(self.svg(rows, "--force")))
                self.assertIn("Not a fair comparison", text)
                key = words.split(" (")[0]
                self.assertIn(key, text)
                for value in re.findall(r"\((.*)\)", words):
                    if value != "data_hash":
                        self.assertIn(f"{key} {value.replace(', ', ' and ')}", text)

    def test_other_tokenizers_are_said(self):
        rows = [recall(model(n), 5, task="copy", params="N=64", data_hash=n) for n in "ab"]
        self.assertIn("not the same ids for all models", " ".join(words_of(self.svg(rows))))
        rows[1]["data_hash"] = "a"
        self.assertNotIn("not the same ids", " ".join(words_of(self.svg(rows))))

    def test_speeds(self):
        a, b = model("a"), model("b")
        both = [recall(a, 5), recall(b, 6), bench(a, 1.0)]
        for words, more in (("threads (2, 4)", {"n_threads": 4}), ("processor (A CPU, B CPU)", {"cpu_info": "B CPU"}),
                            ("instruction set (avx2, neon)", {"isa": "neon"}), ("backend (CPU, CUDA)", {"backends": "CUDA"}),
                            ("tokens of the test (32, 64)", {"n_gen": 64})):
            rows = both + [bench(b, 2.0, **more)]
            with self.subTest(words):
                self.refused(words, rows, "--x", "tg_ts")
                self.refused(words, rows, ending=".md")
                self.assertIn(words.split(" (")[0], " ".join(words_of(self.svg(rows, "--x", "tg_ts", "--force"))))
                self.svg(rows)  # of state alone
        rows = both + [bench(b, 2.0)] + [bench(m, 9.0, threads=4) for m in (a, b)]
        self.refused("threads (2, 4)", rows, "--x", "tg_ts")
        self.assertEqual(self.points(rows, "--threads", "4")["a"]["tg_ts"], "9")

    def test_tasks(self):
        a = model("a")
        rows = [recall(a, 5), recall(a, 6, task="passkey", params="", len=512)]
        self.refused(["one task", "mqar, passkey"], rows)
        self.refused("one task", rows, "--force")
        self.refused("no row of task niah1; there are mqar, passkey", rows, "--task", "niah1")
        rows = [recall(a, h, preset=p) for h, p in ((5, "jrt"), (6, "lmeval-v1"))]
        self.refused("no row of preset none; there are jrt, lmeval-v1", rows, "--preset", "none")
        self.assertEqual(self.points(rows, "--preset", "jrt")["a"]["hits"], "5")
        self.assertEqual([r["preset"] for r in self.table(rows)], ["jrt", "lmeval-v1"])


class BadInput(Case):
    def test_rows(self):
        a = model("a")
        good = recall(a, 5)
        for words, row in (("neither a row of bench", {"x": 1}), ("model_filename is missing", {"task": "mqar", "acc": 1}),
                           ("fraction from 0 to 1", {**good, "acc": 1.5}), ("enclose acc", {**good, "acc_low": 0.9}),
                           ("0 <= hits <= n", {**good, "hits": 2000}), ("perplexity must be above 0", {**good, "ppl_recall": 0}),
                           ("from 0 to 1000000000", bench(a, 1.0, depth=-1)), ("expected a JSON object", [1])):
            with self.subTest(words):
                self.refused([words, "rows.jsonl, line 2"], [good, row])
                self.refused([words, "rows.json, row 2"] if words != "expected a JSON object" else words,
                             (self.write([good, row], "rows.json"),))

    def test_files(self):
        path = self.write([recall(model("a"), 5)])
        for text, words in (("{}\n{]\n", "bad, line 1"), (json.dumps(recall(model("a"), 5)) + "\n\n{]\n", "bad, line 3: not JSON"),
                            ("[\n{\n", "bad, line "), ("", "holds no rows"), ("[]", "holds no rows"), ("  \n", "holds no rows"),
                            ("nonsense", "bad, line 1: not JSON"), ("[1]", "expected a JSON object")):
            bad = os.path.join(self.folder, "bad")
            with open(bad, "w") as f:
                f.write(text)
            with self.subTest(text):
                self.refused(words, (path, bad))
        with open(bad, "wb") as f:
            f.write(b'["\xff"]')
        self.refused("not valid UTF-8", (bad,))

    def test_nothing_to_draw(self):
        a = model("a")
        self.refused("nothing to join: no row of recall among 1 rows", [bench(a, 1.0)])
        self.refused(["nothing to join", "no row of bench"], [recall(a, 5)], "--x", "tg_ts")
        self.refused(["nothing to join", "no zero"], [recall(a, 5, state=0)])
        bare = recall(a, 5)
        del bare["state_bytes_model"]
        self.refused(["nothing to join", "not measured"], [bare])
        self.assertEqual(self.points([bare, recall(model("b"), 5)])["a"]["state_bytes_model"], "")
        self.assertEqual(len(markers(self.svg([bare], "--accounting", "alloc"))), 1)
        self.refused(["nothing to join", "perplexity"], [recall(a, 5)], "--y", "perplexity")

    def test_an_output_stays_until_the_next_is_whole(self):
        a = model("a")
        out = os.path.join(self.folder, "keep.svg")
        with open(out, "w") as f:
            f.write("old")
        subprocess.run([LINNET, "pareto", self.write([bench(a, 1.0)]), "-o", out], capture_output=True)
        with open(out) as f:
            self.assertEqual(f.read(), "old")
        self.assertCountEqual(os.listdir(self.folder), ["keep.svg", "rows.jsonl"])


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


class Drawing(Case):
    def many(self, n, name="model-{}"):
        r = random.Random(3)
        kinds = sorted(FAMILIES)
        return [recall(model(name.format(i), kinds[i % 6], 300_000 + i), r.randrange(300, 1000), state=int(4000 * 2 ** (r.random() * 7)))
                for i in range(n)]

    def test_labels_do_not_overlap_and_stay_inside(self):
        for n, name in ((1, "m{}"), (3, "m{}"), (14, "model-{}"), (40, "a-rather-long-name-of-a-model-{}-with-a-tail"), (60, "模型-{}")):
            with self.subTest(n=n):
                root = self.svg(self.many(n, name))
                width, height = map(float, root.get("viewBox").split()[2:])
                boxes, shown = [], 0
                for t in root.iter(SVG + "text"):
                    if t.get("transform"):
                        continue
                    size = {"title": 17, "sub": 12.5, "axis": 12.5, "key": 12}.get(t.get("class").split()[0], 11)
                    # DejaVu Sans is about 0.6 em wide on average, Chinese 1 em.
                    w = sum(1.0 if ord(c) > 0x2e80 else 0.56 for c in t.text) * size
                    x, y = float(t.get("x")), float(t.get("y"))
                    x -= {"start": 0, "middle": w / 2, "end": w}[t.get("text-anchor")]
                    boxes.append((x, y - 0.75 * size, x + w, y))
                    shown += t.get("class").startswith("label")
                    self.assertTrue(x >= 0 and x + w <= width and y <= height, (t.text, x, w))
                for g in root.iter(SVG + "g"):
                    x, y = map(float, re.findall(r"[\d.]+", g.find(SVG + "path").get("transform")))
                    self.assertTrue(0 < x < width and 0 < y < height)
                for a, b in itertools.combinations(boxes, 2):
                    self.assertFalse(overlap(a, b), (n, a, b))
                note = [t for t in words_of(root) if "left out" in t]
                self.assertEqual(len(markers(root)), n)
                self.assertEqual(note, [] if shown == n else
                                 [f"{n - shown} name{' was' if n - shown == 1 else 's were'} left out for want of room; the table has "
                                  f"{'it' if n - shown == 1 else 'them'}."])

    def test_families_have_a_colour_and_a_marker_each(self):
        root = self.svg(self.many(12))
        styles = {}
        for g in root.iter(SVG + "g"):
            family = g.find(SVG + "title").text.split("\n")[1].split(",")[0]
            path = g.find(SVG + "path")
            styles.setdefault(family, set()).add((path.get("class").split()[1], path.get("d")))
        self.assertEqual(set(styles), {"softmax", "sliding window", "BASED", "DeltaNet", "Gated DeltaNet", "Hedgehog"})
        self.assertTrue(all(len(s) == 1 for s in styles.values()))
        self.assertEqual(len({c for s in styles.values() for c, _ in s}), 6)
        self.assertEqual(len({d for s in styles.values() for _, d in s}), 6)
        for family in styles:
            self.assertIn(family, words_of(root))
        self.assertIn("prefers-color-scheme:dark", root.find(SVG + "style").text)

    def test_points_at_one_place(self):
        rows = [recall(model(n, f), 700, state=4096) for n, f in (("a", "delta"), ("b", "delta"), ("c", "softmax"))]
        root = self.svg(rows)
        self.assertEqual([filled for _, filled in markers(root)], [True] * 3)
        self.assertIn("At one place: a = b = c.", words_of(root))
        self.assertEqual(len({g.find(SVG + "path").get("d") for g in root.iter(SVG + "g")}), 3)
        for n in "abc":
            self.assertIn(n, words_of(root))

    def test_the_step_line_promises_nothing_between(self):
        rows = []
        for n, hits, state, speed in (("a", 200, 1000, 90.0), ("b", 500, 4000, 50.0), ("c", 900, 9000, 20.0), ("d", 100, 8000, 10.0)):
            m = model(n)
            rows += [recall(m, hits, state=state), bench(m, speed)]
        for flags, order, end in (((), "abc", max), (("--x", "tg_ts"), "abc", min)):
            root = self.svg(rows, *flags)
            at = {g.find(SVG + "title").text.split("\n")[0]: tuple(map(float, re.findall(r"[\d.]+", g.find(SVG + "path").get("transform"))))
                  for g in root.iter(SVG + "g")}
            x, y = at[order[0]]
            want = [("M", x, y)]
            for n in order[1:]:  # at the quality that is paid for, to where the next one begins, then up
                want += [("H", at[n][0]), ("V", at[n][1])]
            frame = [p for p in root.iter(SVG + "path") if p.get("class") == "frame"][0].get("d")
            ends = [float(v) for v in re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", frame)[0]]
            want.append(("H", end(ends)))
            steps = [p.get("d") for p in root.iter(SVG + "path") if p.get("class") == "step"][-1]
            got = [(k, *map(float, v.split())) for k, v in re.findall(r"([MHV])([\d. ]+)", steps)]
            self.assertEqual(got, want)

    def test_bars_are_the_intervals(self):
        root = self.svg([recall(model("a"), 10, n=20), recall(model("b"), 0, n=20, state=2000)])
        bars = [p for p in root.iter(SVG + "path") if p.get("class", "").startswith("bar")]
        y = {t.text: float(t.get("y")) - 4 for t in root.iter(SVG + "text") if t.get("class").startswith("tick") and t.get("text-anchor") == "end"}
        to_value = lambda v: (y["0"] - v) / (y["0"] - y["1"])
        ends = [re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", p.get("d")).groups() for p in bars]
        got = sorted(tuple(to_value(float(e)) for e in pair) for pair in ends)
        for pair, want in zip(got, sorted([wilson(10, 20), wilson(0, 20)])):
            for value, w in zip(pair, want):
                self.assertAlmostEqual(value, w, 3)

    def test_byte_ticks(self):
        rows = [recall(model(n), h, state=s) for n, h, s in (("a", 100, 4000), ("b", 200, 2_000_000))]
        ticks = [t.text for t in self.svg(rows).iter(SVG + "text") if t.get("class").startswith("tick") and t.get("text-anchor") == "middle"]
        for want in ("4 kB", "256 kB", "512 kB", "1 MB", "2 MB"):
            self.assertIn(want, ticks)

    def test_every_tick_of_speed_has_its_number(self):
        for low, high in ((2000.0, 14000.0), (30000.0, 60000.0), (100.0, 3000.0), (5.0, 6.0)):
            root = self.svg([r for n, v in (("a", low), ("b", high)) for r in (recall(model(n), 5), bench(model(n), v))], "--x", "tg_ts")
            lines = [p for p in root.iter(SVG + "path") if p.get("class") == "grid" and "V" in p.get("d")]
            ticks = [t.text for t in root.iter(SVG + "text") if t.get("class").startswith("tick") and t.get("text-anchor") == "middle"]
            self.assertEqual(len(lines), len(ticks), ticks)

    def test_title(self):
        rows = [recall(model("a"), 5, preset="jrt", task="jsonl", params="file=swde.jsonl"), bench(model("a"), 9.0, 512, 4)]
        words = words_of(self.svg(rows, "--title", "My <title>"))
        self.assertIn("My <title>", words)
        self.assertIn("task jsonl:swde.jsonl, preset jrt", " ".join(words))
        words = words_of(self.svg(rows, "--x", "tg_ts"))
        self.assertIn("jsonl:swde.jsonl: recall against decode speed at depth 512, batch 4", words)
        self.assertIn("A CPU, 2 threads, avx2, build abc1234", " ".join(words))


class Page(html.parser.HTMLParser):
    VOID = {"meta", "br", "link", "img", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


class Report(Case):
    def rows(self):
        rows = []
        for i, f in enumerate(FAMILIES):
            m = model(f"m-{f}", f)
            rows += [recall(m, 900 - 100 * i + L // 128, L=L, state=1000 * (i + 1)) for L in (64, 128)]
            rows += [bench(m, 100.0 + i, d, b) for d in (0, 512) for b in (1, 4)]
        return rows

    def test_asks_nothing_of_the_network(self):
        text = self.make(self.rows(), ".html")
        page = Page(text)
        self.assertEqual(page.open, [])
        for tag, attributes in page.found:
            self.assertNotIn(tag, ("link", "img", "iframe", "object", "embed", "base"))
            for key in ("src", "href", "xlink:href", "action", "data"):
                self.assertNotIn(key, attributes)
        self.assertEqual(re.findall(r"https?:[^\s\"']*", text.replace("http://www.w3.org/2000/svg", "")), [])
        self.assertNotRegex(text, r"url\(|@import|fetch\(|XMLHttp")

    def test_several_tasks_have_contents(self):
        one = self.rows()
        both = one + [{**r, "task": "a<b", "params": ""} for r in one if r.get("L") or "task" in r and r["len"] == 64]
        page = Page(self.make(both, ".html"))
        names = [a["id"] for _, a in page.found if "id" in a]
        self.assertEqual(len(names), len(set(names)))
        links = [a["href"] for tag, a in page.found if tag == "a"]
        self.assertEqual(links, ["#task-1", "#task-2", "#limits", "#commands"])
        self.assertTrue({link[1:] for link in links} <= set(names))
        self.assertNotIn("a", [tag for tag, _ in Page(self.make(one, ".html")).found])

    def test_charts_tables_and_words(self):
        text = self.make(self.rows(), ".html")
        page = Page(text)
        charts = [xml.fromstring(s) for s in re.findall(r"<svg.*?</svg>", text, re.S)]
        self.assertEqual([c.find(SVG + "title").text for c in charts],
                         ["mqar: recall against state bytes", "mqar: recall against decode speed at depth 512, batch 1",
                          "mqar: recall against decode speed at depth 512, batch 4"])
        self.assertTrue(all(len(markers(c)) == 6 for c in charts))
        title = markers(charts[0])[0][0]
        self.assertTrue(any(t.startswith("accuracy 0.") for t in title) and any(t.startswith("decodes 1") for t in title), title)
        words = " ".join(page.text)
        for want in ("What this shows, and what not", "A fair comparison", "Every segment (12 rows)", "linnet pareto "):
            self.assertIn(want, words)
        self.assertEqual(sum(tag == "tr" for tag, _ in page.found), 6 + 12 + 2)

    def test_perplexity_against_speed(self):
        rows = self.rows()
        for r in rows:
            if "task" in r:
                r.update(task="ar", params="file=t.txt", ppl=9.0 + r["hits"] / 1000, ppl_recall=8.0)
        titles = re.findall(r"<svg[^>]*>\s*<title>(.*?)</title>", self.make(rows, ".html"))
        self.assertEqual(titles[3:], [f"ar:t.txt: {y} against {x}" for y in ("perplexity", "perplexity of what is to be recalled")
                                      for x in ("state bytes", "decode speed at depth 512, batch 1")])

    def test_without_bench(self):
        text = self.make([r for r in self.rows() if "task" in r], ".html")
        self.assertIn("No chart of speed", text)
        self.assertEqual(text.count("<svg"), 1)

    def test_the_commands_of_every_kind_of_task(self):
        path = os.path.join(ROOT, "tests", "data", "models", "text.gguf")
        with open(os.path.join(self.folder, "text.txt"), "w") as f:
            f.write("the cat sat on the mat and the cat sat on the mat " * 6)
        with open(os.path.join(self.folder, "it's.jsonl"), "w") as f:
            f.write(json.dumps({"text": "The key is red. The key:", "key": "key", "question": "The key?", "value": "red"}) + "\n")
        kept = ("model_hash", "task", "preset", "params", "len", "depth", "twice", "seed", "data_hash", "n", "hits", "activations", "kv")
        for flags in (["mqar:V=32,L=32,K=2,n=3", "--kv", "f32", "--twice"], ["copy:N=5,n=2"], ["copy:n=2", "--len", "24"],
                      ["passkey:n=2", "--len", "700", "--ctx", "700", "--depths", "50", "--seed", "3"], ["phonebook:N=4,n=2", "--activations", "exact"],
                      ["ar:text.txt", "--max-ctx", "64"], ["jsonl:it's.jsonl", "--preset", "jrt-twice", "--max-ctx", "200"],
                      ["jsonl:it's.jsonl", "--preset", "lmeval-v0", "--max-ctx", "200"]):
            with self.subTest(flags=flags):
                run = lambda words: subprocess.run([LINNET, *words, "--quiet"], cwd=self.folder, capture_output=True, text=True)
                done = run(["recall", "-m", path, "--task", *flags, "-o", "jsonl"])
                self.assertEqual(done.returncode, 0, done.stderr)
                want = json.loads(done.stdout)
                text = self.make((self.write([want]),), ".html")
                line = html.unescape(re.search(r"<pre>(.*?)\n", text, re.S).group(1))
                done = run(shlex.split(line)[1:-1])
                self.assertEqual(done.returncode, 0, (line, done.stderr))
                got = json.loads(done.stdout)
                self.assertEqual([got[k] for k in kept], [want[k] for k in kept], line)

    def test_its_commands_make_its_rows(self):
        models = [os.path.join("tests", "data", "models", m) for m in ("text.gguf", "llama_f16.gguf")]
        flags = [x for m in models[:1] for x in ("-m", m)]
        first = subprocess.run([LINNET, "recall", *flags, "--task", "mqar:V=64,L=64,K=4,n=8", "--task", "mqar:V=64,L=32,K=2,n=8", "--seed",
                                "5", "--view", "both", "-o", "json", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        speed = subprocess.run([LINNET, "bench", *flags, "-p", "4", "-n", "2", "-d", "0,8", "-b", "1,2", "-r", "2", "-t", "1", "-o",
                                "json", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        want = json.loads(first)
        text = self.make(want + json.loads(speed), ".html")
        block = html.unescape(re.search(r"<pre>(.*?)</pre>", text, re.S).group(1))
        lines = block.strip().split("\n")
        self.assertEqual([shlex.split(line)[:2] for line in lines], [["linnet", "recall"]] * 2 + [["linnet", "bench"], ["linnet", "pareto"]])
        got = []
        for line in lines[:2]:
            words = shlex.split(line)
            self.assertEqual(words.pop(), ">>recall.jsonl")
            out = subprocess.run([LINNET, *words[1:], "--quiet"], cwd=ROOT, capture_output=True, text=True)
            self.assertEqual(out.returncode, 0, (line, out.stderr))
            got += [json.loads(row) for row in out.stdout.splitlines()]
        kept = ("model_hash", "params", "n", "hits", "seed", "data_hash", "view", "activations")
        key = lambda row: [row[k] for k in kept]
        self.assertEqual(sorted(map(key, got)), sorted(map(key, want)))
        save = os.path.join(self.folder, "bench.jsonl")
        words = [save if w == "bench.jsonl" else w for w in shlex.split(lines[2])]
        subprocess.run([LINNET, *words[1:], "--quiet"], cwd=ROOT, capture_output=True, check=True)
        with open(save) as f:
            again = [json.loads(line) for line in f]
        kept = ("n_prompt", "n_gen", "n_depth", "n_seqs", "n_threads", "activations")
        self.assertEqual(sorted(map(key, again)), sorted(map(key, json.loads(speed))))
        self.assertEqual({len(r["samples_ns"]) for r in again}, {2})


class Hostile(Case):
    NAMES = ["<script>alert(1)<script>", "a\"b'c&d", "x]]><y", "|pipe|`tick`*star*", "модель 模型 é", "new\nline\ttab\x01\x1b[31m",
             "](http:", "‮right", "$(rm -rf ~);", "--force", "￾￿", "a" * 300]

    def rows(self):
        rows = []
        for i, n in enumerate(self.NAMES):
            m = {**model(str(i)), "model_filename": n + ".gguf", "mixers": [n[:9]]}
            rows += [recall(m, 500 + i, state=1000 + i, task=self.NAMES[0]), bench(m, 9.0 + i)]
        return rows

    def test_svg(self):
        root = self.svg(self.rows())
        self.assertEqual(len(markers(root)), len(self.NAMES))
        titles = [t[0] for t, _ in markers(root)]
        for n in self.NAMES[:5]:
            self.assertIn(n, titles)
        self.assertIn("￾￿".replace("￾", "�").replace("￿", "�"), titles)

    def test_html(self):
        text = self.make(self.rows(), ".html", "--title", "</title><script>x()</script>")
        page = Page(text)
        self.assertEqual(page.open, [])
        self.assertEqual(sum(tag == "script" for tag, _ in page.found), 1)
        self.assertNotIn("<script>alert", text)
        for tag, attributes in page.found:
            self.assertFalse([k for k in attributes if k.startswith("on")])
        block = html.unescape(re.search(r"<pre>(.*?)</pre>", text, re.S).group(1))
        words = shlex.split(block)
        for n in self.NAMES:
            if "\x01" not in n and "\uffff" not in n:
                self.assertIn(n + ".gguf", words)

    def test_csv(self):
        names = [r["model"] for r in self.table(self.rows())]
        self.assertEqual(names, self.NAMES)

    def test_markdown(self):
        text = self.make(self.rows(), ".md")
        self.assertNotIn("<", text)
        lines = [line for line in text.split("\n") if line.startswith("|")]
        self.assertEqual(len(lines), len(self.NAMES) + 2)
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        self.assertEqual(len(cells), 1, lines)


if __name__ == "__main__":
    unittest.main()
