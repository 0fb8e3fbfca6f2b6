"""The Python package, built as a wheel and installed into a virtual environment of its own:
python3 -m unittest tests.test_python (needs cffi, numpy, setuptools, wheel)."""
import dataclasses
import importlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import zipfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODELS = os.path.join(ROOT, "tests", "data", "models")
CHAT = os.path.join(ROOT, "tests", "data", "cli", "chat.gguf")
TEXT = os.path.join(MODELS, "text.gguf")
LINNET = os.path.abspath(os.environ.get("LINNET", os.path.join(ROOT, "linnet")))
# One of each kind of state: pages, a ring of taps, linear states, both.
GOLDEN = ["llama_q4_0", "gpt2", "based_hybrid", "delta_hybrid_list", "gated_delta_hybrid", "lolcats_softmax_full"]
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "LINNET_", "PYTHONPATH"))}
linnet = native = place = None


def run(*words, **options):
    options.setdefault("env", ENV)
    return subprocess.run(words, capture_output=True, text=True, **options)


def good(*words, **options):
    done = run(*words, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def setUpModule():
    global linnet, native, place
    place = tempfile.mkdtemp()
    unittest.addModuleCleanup(shutil.rmtree, place)
    # Packages of this environment are seen from the new one: nothing is downloaded.
    good(sys.executable, "-m", "venv", "--without-pip", place + "/venv")
    python = place + "/venv/bin/python"
    site = good(python, "-c", "import site; print(site.getsitepackages()[0])").strip()
    with open(site + "/here.pth", "w") as f:
        f.write(os.path.dirname(os.path.dirname(np.__file__)) + "\n")
    good(sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps", "-w", place,
         ROOT + "/python")
    good(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel())
    sys.path.insert(0, site)
    os.environ.pop("LINNET_LIBRARY", None)
    linnet = importlib.import_module("linnet")
    native = importlib.import_module("linnet._native")
    assert linnet.__file__.startswith(site)


def wheel():
    return os.path.join(place, next(f for f in os.listdir(place) if f.endswith(".whl")))


def python(code, *words, **options):
    return run(place + "/venv/bin/python", "-c", textwrap.dedent(code), *words, **options)


def fields(name):
    """Of a struct, [] if it is opaque. Its size is asked for first: cffi fills the list in then."""
    try:
        native.ffi.sizeof(name)
    except (ValueError, TypeError, native.ffi.error):
        return []
    return native.ffi.typeof(name).fields or []


def path_of(name):
    return os.path.join(MODELS, name + ".gguf")


def ids_of(name):
    with open(os.path.join(MODELS, name + ".ids")) as f:
        return [int(word) for word in f.read().split()]


class Package(unittest.TestCase):
    def test_wheel(self):
        name = os.path.basename(wheel())
        self.assertRegex(name, r"^linnet-[\d.]+-py3-none-linux_\w+\.whl$")
        inside = zipfile.ZipFile(wheel()).namelist()
        for file in ("linnet/py.typed", "linnet/liblinnet.so.0", "linnet/_declarations.py"):
            self.assertIn(file, inside)
        with open(ROOT + "/linnet.h") as f:
            self.assertIn(f'LINNET_VERSION "{linnet.__version__}"', f.read())

    def test_structs_and_constants_are_the_compilers(self):
        """Size and offsets of every struct, and every constant, as cffi and as the C compiler have them."""
        ffi = native.ffi
        lines, mine = [], []
        for name in ffi.list_types()[0]:
            kind = ffi.typeof(name)
            if kind.kind == "struct" and fields(name):
                lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
                mine.append(f"{name} {ffi.sizeof(name)}")
                for field, about in fields(name):
                    lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
                    mine.append(f"{name}.{field} {about.offset}")
            if kind.kind == "enum":
                for constant, value in kind.relements.items():
                    lines.append(f'printf("{constant} %d\\n", {constant});')
                    mine.append(f"{constant} {value}")
        self.assertGreater(len(mine), 100)
        source = os.path.join(place, "layout.c")
        with open(source, "w") as f:
            f.write('#include "linnet_tools.h"\n#include <stdio.h>\nint main(void) {\n' + "\n".join(lines) + "\n}\n")
        good("cc", "-I" + ROOT, source, "-o", source + ".out")
        self.assertEqual(good(source + ".out").split("\n")[:-1], mine)

    def test_what_python_repeats_of_the_header(self):
        status = native.ffi.typeof("linnet_status").relements
        self.assertEqual({"LINNET_" + s.name: s.value for s in linnet.Status}, dict(status))
        for ours, theirs in ((linnet.ModelInfo, "linnet_model_info"), (linnet.CacheStats, "linnet_cache_stats"),
                             (linnet.Reuse, "linnet_reuse")):
            self.assertEqual([f.name for f in dataclasses.fields(ours)],
                             [name for name, _ in fields(theirs)])
        source = os.path.join(place, "defaults.c")
        with open(source, "w") as f:
            f.write('#include "linnet_tools.h"\n#include <stdio.h>\nint main(void) {\n'
                    "linnet_sampling s = LINNET_SAMPLING_DEFAULT;\nfwrite(&s, 1, sizeof s, stdout);\n}\n")
        good("cc", "-I" + ROOT, source, "-o", source + ".out")
        defaults = subprocess.run([source + ".out"], capture_output=True, check=True).stdout
        sampling = importlib.import_module("linnet.sampling").Sampling(10, {})
        self.assertEqual(bytes(native.ffi.buffer(sampling.c)), defaults)
        self.assertEqual(set(linnet.SamplingOptions.__annotations__),
                         {name for name, _ in fields("linnet_sampling")} - {"n_bias", "bias"}
                         | {"logit_bias"})

    def test_library_from_elsewhere(self):
        code = "import linnet._native as n, linnet; print(linnet.Model(__import__('sys').argv[1]).info.name)"
        other = shutil.copy(ROOT + "/build/liblinnet.so", place + "/other.so")
        done = python(code, CHAT, env=dict(ENV, LINNET_LIBRARY=other))
        self.assertEqual((done.returncode, done.stdout), (0, "tiny chat\n"), done.stderr)
        done = python(code, CHAT, env=dict(ENV, LINNET_LIBRARY="/nowhere/liblinnet.so.0"))
        self.assertIn("ImportError: linnet's shared library was not found (LINNET_LIBRARY=path says where it is)",
                      done.stderr)
        good("cc", "-shared", "-x", "c", "-", "-o", place + "/old.so",
             input='const char *linnet_version(void) { return "0.0.1"; }')
        done = python(code, CHAT, env=dict(ENV, LINNET_LIBRARY=place + "/old.so"))
        self.assertIn("old.so is linnet 0.0.1, but this package was built for " + linnet.__version__, done.stderr)

    def test_a_wheel_without_the_library(self):
        out = tempfile.mkdtemp(dir=place)
        good(sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps", "-w", out,
             ROOT + "/python", env=dict(ENV, LINNET_LIBRARY=ROOT + "/build/liblinnet.so"))
        self.assertEqual(os.listdir(out), [f"linnet-{linnet.__version__}-py3-none-any.whl"])
        self.assertNotIn(".so", " ".join(zipfile.ZipFile(os.path.join(out, os.listdir(out)[0])).namelist()))

    def test_types(self):
        if importlib.util.find_spec("mypy") is None:
            self.skipTest("mypy is not installed here")
        done = run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", place + "/mypy", "linnet",
                   cwd=ROOT + "/python")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_examples_of_the_readme(self):
        with open(ROOT + "/python/README.md") as f:
            lines = re.findall(r"(?m)^(?:    (?!pip ).*)?\n", f.read())
        code = textwrap.dedent("".join(lines))
        self.assertIn("input(", code)
        code = code.replace("\nsession, said", "\nmodel = linnet.Model('model.gguf')\nsession, said")
        work = tempfile.mkdtemp(dir=place)
        os.symlink(CHAT, work + "/model.gguf")
        done = run(place + "/venv/bin/python", "-c", code, cwd=work, input="Hi\nok\n")
        self.assertIn("EOFError", done.stderr.strip().split("\n")[-1], done.stderr)  # the chat's end


class Numbers(unittest.TestCase):
    def test_logits_are_those_of_the_command(self):
        for name in GOLDEN:
            with self.subTest(name), linnet.Model(path_of(name), activations="exact", backend="cpu") as model:
                ids = ids_of(name)
                out = place + "/logits.npy"
                good(LINNET, "logits", path_of(name), "--ids", os.path.join(MODELS, name + ".ids"), "-o", out, "--quiet")
                wanted = np.load(out)
                session = model.session()
                found = session.forward(ids[:9])
                found = np.concatenate([found, session.forward(np.array(ids[9:], np.int64))])
                self.assertEqual(found.dtype, np.float32)
                np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))
                session.reset()
                session.feed(ids)
                np.testing.assert_array_equal(session.logits, wanted[-1])
                np.testing.assert_array_equal(session.tokens, ids)
                kept = session.logits
                session.feed(ids[:1])  # what was handed out does not change
                np.testing.assert_array_equal(kept, wanted[-1])

    def test_state_goes_on_in_another_process(self):
        for name in GOLDEN:
            with self.subTest(name), linnet.Model(path_of(name), backend="cpu") as model:
                ids = ids_of(name)
                session = model.session()
                session.feed(ids[:-5])
                state = session.save()
                self.assertIsInstance(state, bytes)
                with open(place + "/state", "wb") as f:
                    f.write(state)
                session.feed(ids[-5:])
                done = python("""
                    import linnet, sys
                    session = linnet.Model(sys.argv[1], threads=1, backend="cpu").session()
                    session.load(open(sys.argv[2], "rb").read())
                    session.feed([int(i) for i in sys.argv[3:]])
                    print(session.logits.tobytes().hex(), len(session))
                    """, path_of(name), place + "/state", *map(str, ids[-5:]))
                self.assertEqual(done.stdout, f"{session.logits.tobytes().hex()} {len(ids)}\n", done.stderr)

    def test_forks_and_files(self):
        model = linnet.Model(CHAT)
        session = model.session()
        session.feed("Hello")
        fork = session.fork()
        self.assertEqual(fork.generate(max_tokens=9).text(), session.generate(max_tokens=9).text())
        fork.feed("x")
        self.assertNotEqual(len(fork), len(session))
        session.save_file(place + "/a.state")
        other = model.session()
        other.load_file(place + "/a.state")
        np.testing.assert_array_equal(other.logits, session.logits)
        said = good(LINNET, "run", CHAT, "-p", "", "-n", "8", "--load-state", place + "/a.state", "--quiet", "--isa",
                    "auto")
        self.assertEqual(said, other.generate(max_tokens=8).text() + "\n")
        damaged = bytearray(session.save())
        damaged[100] ^= 1
        before = other.logits
        with self.assertRaises(linnet.LinnetError) as caught:
            other.load(damaged)
        self.assertEqual(caught.exception.code, linnet.Status.ERR_FORMAT)
        np.testing.assert_array_equal(other.logits, before)


class Generation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = linnet.Model(TEXT, backend="cpu")

    def test_the_text_of_the_command(self):
        for options, flags in (({}, []), ({"temperature": 0.9, "seed": 7}, ["--temp", "0.9", "--seed", "7"]),
                               ({"temperature": 1.5, "top_k": 20, "top_p": 0.8, "min_p": 0.02, "seed": 2**63 + 1,
                                 "repeat_penalty": 1.3, "logit_bias": {256: 2.0, 97: float("-inf")}},
                                ["--temp", "1.5", "--top-k", "20", "--top-p", "0.8", "--min-p", "0.02", "--seed",
                                 str(2**63 + 1), "--repeat-penalty", "1.3", "--logit-bias", "256=2", "--logit-bias",
                                 "97=-inf"])):
            said = subprocess.run([LINNET, "run", TEXT, "-p", "the", "-n", "60", "--quiet", "--backend", "cpu", *flags],
                                  capture_output=True, check=True, env=ENV).stdout.decode()
            with self.model.session() as session:
                generation = session.generate("the", max_tokens=60, **options)
                pieces = list(generation)
            self.assertEqual("".join(pieces) + "\n", said)
            self.assertGreater(len(pieces), 10)
            self.assertTrue(all(pieces))

    def test_ends(self):
        whole = self.model.session().generate("the", max_tokens=40)
        text = whole.text()
        self.assertEqual((whole.end, whole.stop, len(whole.tokens)), ("length", None, 40))
        stop = text[10:13]
        for stops in (stop, [stop], ("no such text", stop)):
            cut = self.model.session().generate("the", max_tokens=40, stop=stops)
            self.assertEqual(cut.text(), text[:text.index(stop)])
            self.assertEqual((cut.end, cut.stop), ("stop", stop))
        full = self.model.session(ctx=20).generate("the")
        full.text()
        self.assertEqual(full.end, "context")
        eos = self.model.info.eos
        for feed_end in (False, True):
            session = self.model.session()
            ended = session.generate("the", logit_bias={eos: 1000.0}, feed_end=feed_end)
            self.assertEqual((list(ended), ended.end, ended.tokens), ([], "token", []))
            self.assertEqual(session.tokens[-1] == eos, feed_end)

    def test_leaving_the_loop(self):
        session, prompt = self.model.session(), self.model.tokenize("the")
        whole = self.model.session().generate("the", max_tokens=30, temperature=1.0, seed=3)
        wanted = whole.text()
        generation = session.generate("the", temperature=1.0, seed=3)
        shown = ""
        for piece in generation:
            shown += piece
            if len(generation.tokens) >= 12:
                break
        generation.close()
        self.assertEqual((list(generation), generation.end), ([], "cancelled"))
        # What was sampled is in the session, and it goes on as if nothing had been.
        self.assertEqual(list(session.tokens), prompt + generation.tokens)
        self.assertTrue(wanted.startswith(shown))
        rest = session.generate(max_tokens=30 - len(generation.tokens), temperature=1.0, seed=3)
        rest.text()
        self.assertEqual(generation.tokens + rest.tokens, whole.tokens)

    def test_masks(self):
        allowed = np.zeros(self.model.info.n_vocab, bool)
        allowed[[65, 66]] = True
        session = self.model.session()
        generation = session.generate("the", max_tokens=20, temperature=1.0, allowed=allowed)
        for _ in generation:
            if len(generation.tokens) == 10:
                break
        self.assertLessEqual(set(generation.tokens), {65, 66})
        allowed[66] = False
        generation.allow(allowed)
        generation.text()
        self.assertEqual(set(generation.tokens[10:]), {65})
        self.assertEqual(session.sample(allowed=allowed), 65)
        self.assertEqual(session.sample(logit_bias={70: 1e4}), 70)
        with self.assertRaisesRegex(ValueError, "allowed: expected 300 truth values"):
            session.sample(allowed=allowed[:-1])
        with self.assertRaisesRegex(TypeError, "unknown sampling option 'temprature'"):
            session.generate(temprature=1.0)

    def test_batches_say_what_each_says_alone(self):
        prompts = ["the", "and", "in the", "on", "the and", "er", "xyx", "st on", "re"]
        for options in ({"max_tokens": 25}, {"max_tokens": 40, "temperature": 1.2, "seed": 5, "stop": ["e", "\n"]},
                        {"temperature": 1.0, "seed": 1, "logit_bias": {297: 3.0}}):
            alone = []
            for prompt in prompts:
                g = self.model.session().generate(prompt, **options)
                alone.append((g.text(), g.tokens, g.end, g.stop))
            self.assertGreater(len({len(tokens) for _, tokens, _, _ in alone}), 0 if "stop" not in options else 2)
            for batch in (1, 3, 16):
                found = self.model.batch_generate(iter(prompts), batch=batch, **options)
                self.assertEqual([(g.text, g.tokens, g.end, g.stop) for g in found], alone)
            cache = self.model.cache(every=2)
            for _ in range(2):
                found = self.model.batch_generate(prompts, batch=3, cache=cache, **options)
                self.assertEqual([(g.text, g.tokens, g.end, g.stop) for g in found], alone)
            self.assertGreater(cache.stats.hits, 0)

    def test_batches_of_sessions_and_ids(self):
        model, session = self.model, self.model.session()
        session.feed("the")
        texts = model.batch_generate([session, model.tokenize("the"), "x" * 300], max_tokens=10)
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(len(session), len(model.tokenize("the")) + 10)
        self.assertEqual((texts[2].text, texts[2].end), ("", "context"))
        self.assertEqual(model.batch_generate([]), [])
        with self.assertRaisesRegex(ValueError, "batch: expected at least 1, found 0"):
            model.batch_generate(["a"], batch=0)


class Text(unittest.TestCase):
    def setUp(self):
        self.model = linnet.Model(CHAT)

    def test_tokens(self):
        ids = self.model.tokenize("hello <|im_end|> é€")
        self.assertEqual(ids[0], self.model.info.bos)
        self.assertEqual(self.model.detokenize(ids), "hello <|im_end|> é€")
        self.assertIn(261, self.model.tokenize("<|im_end|>", parse_special=True))
        self.assertEqual(self.model.detokenize([261], parse_special=True), "<|im_end|>")
        self.assertNotIn(self.model.info.bos, self.model.tokenize("hello", bos=False))
        self.assertEqual((self.model.tokenize("", bos=False), self.model.detokenize([])), ([], ""))
        self.assertTrue(self.model.is_end(261) and not self.model.is_end(65))

    def test_a_chat_feeds_new_tokens_only(self):
        said, session, fed = [], self.model.session(), []
        for line in ("Hi", "ok"):
            said.append(("user", line))
            fed.append(len(self.model.chat(said, after=len(said) - 1)))
            session.feed(self.model.chat(said, after=len(said) - 1))
            said.append({"role": "assistant", "content": "".join(session.generate(feed_end=True))})
        wanted = good(LINNET, "chat", CHAT, "--quiet", input="Hi\nok\n")
        self.assertEqual(said[1]["content"] + "\n" + said[3]["content"] + "\n", wanted)
        self.assertLess(fed[1], 30)
        with self.assertRaises(linnet.LinnetError) as caught:
            self.model.chat([("user", "a")], template="martian")
        self.assertIn("martian", str(caught.exception))

    def test_sync_reports_what_it_reused(self):
        ids = self.model.tokenize("hello, hello, hello")
        with self.model.cache() as cache, self.model.session() as a, self.model.session() as b:
            first = a.sync(ids, cache)
            self.assertEqual((first.n_reused, first.n_fed), (0, len(ids)))
            again = b.sync(ids + [65, 66], cache)
            self.assertEqual((again.n_reused, again.n_fed), (len(ids), 2))
            self.assertTrue(again.text)
            c = self.model.session()
            c.feed(ids + [65, 66])
            np.testing.assert_array_equal(b.logits, c.logits)
            self.assertEqual(b.sync(ids + [65]).n_fed, 1)  # no cache: truncation
            self.assertGreaterEqual(cache.stats.hits, 1)

    def test_cache_survives_a_restart(self):
        ids, folder = self.model.tokenize("hello, hello"), tempfile.mkdtemp(dir=place)
        with self.model.cache(dir=folder) as cache:
            self.model.session().sync(ids, cache)
        with self.model.cache(dir=folder) as cache:
            self.assertEqual(self.model.session().sync(ids + [65], cache).n_reused, len(ids))

    def test_facts(self):
        model = linnet.Model(path_of("based_hybrid"), metadata_only=True)
        info = __import__("json").loads(good(LINNET, "info", path_of("based_hybrid"), "--json"))
        self.assertEqual([m.name for m in model.mixers], [m["name"] if isinstance(m, dict) else m for m in info["mixers"]])
        self.assertEqual(model.state_bytes(1024), info["state_bytes"]["1024"])
        self.assertEqual((model.info.architecture, model.info.n_params), (info["architecture"], info["params"]))
        self.assertEqual(model.metadata["general.architecture"], "linnet")
        self.assertEqual((self.model.metadata["general.name"], self.model.info.name), ("tiny chat", "tiny chat"))
        self.model.check()


class Trouble(unittest.TestCase):
    def refuses(self, code, sentence, function, *words, **options):
        with self.assertRaises(linnet.LinnetError) as caught:
            function(*words, **options)
        self.assertEqual(caught.exception.code, code)
        self.assertIn(sentence, str(caught.exception))
        return caught.exception

    def test_errors_are_sentences_with_codes(self):
        status = linnet.Status
        error = self.refuses(status.ERR_IO, "nowhere.gguf", linnet.Model, "nowhere.gguf")
        again = pickle.loads(pickle.dumps(error))  # they cross process boundaries
        self.assertEqual((again.code, str(again)), (error.code, str(error)))
        self.refuses(status.ERR_FORMAT, "test_python", linnet.Model, __file__)
        self.refuses(status.ERR_ARGUMENT, "backend 'tpu'", linnet.Model, CHAT, backend="tpu")
        model = linnet.Model(CHAT)
        session = model.session(ctx=8)
        self.refuses(status.ERR_CONTEXT, "8", session.feed, [1] * 9)
        self.refuses(status.ERR_ARGUMENT, "262", session.feed, [262])
        self.refuses(status.ERR_ARGUMENT, "holds no logits", lambda: session.logits)
        self.refuses(status.ERR_ARGUMENT, "empty", session.generate, "a", stop="")
        self.refuses(status.ERR_TOKENIZER, "vocabulary", linnet.Model(path_of("gpt2")).tokenize, "a")
        self.assertRaisesRegex(ValueError, "kv: expected one of f16, f32, q8_0, found 'f8'", model.session, kv="f8")
        self.assertRaisesRegex(ValueError, "without NUL", session.generate, "a", stop="\0")
        self.assertRaisesRegex(TypeError, "flat sequence of whole numbers", session.feed, [0.5])
        self.assertRaisesRegex(TypeError, "flat sequence of whole numbers", session.feed, [[1]])
        self.assertRaisesRegex(ValueError, "32 bits", session.feed, [2**31])

    def test_closed_things_say_so(self):
        model = linnet.Model(CHAT)
        session, cache = model.session(), model.cache()
        session.feed("a")
        generation = session.generate()
        session.close()
        session.close()
        self.refuses(linnet.Status.ERR_ARGUMENT, "the session is closed", session.feed, "a")
        self.refuses(linnet.Status.ERR_ARGUMENT, "the session is closed", next, generation)
        self.assertIn("closed", repr(session))
        left = model.session()
        left.feed("a")
        model.close()
        self.refuses(linnet.Status.ERR_ARGUMENT, "the model is closed", left.feed, "a")
        self.refuses(linnet.Status.ERR_ARGUMENT, "the model is closed", model.session)
        left.close()
        cache.close()

    def test_everything_is_freed_in_any_order(self):
        done = python("""
            import gc, linnet, sys
            def resident():
                return int(open("/proc/self/statm").read().split()[1]) * 4096
            for i in range(60):
                model = linnet.Model(sys.argv[1])
                session, cache = model.session(), model.cache()
                session.sync(model.tokenize("hello"), cache)
                generation = session.fork().generate(max_tokens=3)
                next(generation)
                model.me, session.me = session, model  # a cycle
                del model, session, cache, generation
                gc.collect()
                if i == 20: before = resident()
            assert resident() - before < 8 << 20, resident() - before
            model = linnet.Model(sys.argv[1])
            session, cache = model.session(), model.cache()  # left for the end of the process
            """, CHAT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_session_is_for_one_thread_at_a_time(self):
        model, sentences = linnet.Model(CHAT), []
        session = model.session()

        def progress(what, done, total):
            for function in (lambda: session.logits, session.close, model.close, lambda: session.feed("b")):
                try:
                    function()
                except linnet.LinnetError as error:
                    sentences.append(str(error))

        session.feed("a" * 100, progress=progress)
        self.assertIn("the session is in use by another thread, or by a callback's caller", sentences)
        self.assertIn("the session cannot be closed: a call uses it", sentences)
        self.assertIn("the model cannot be closed: a call uses it", sentences)
        self.assertEqual(len(session), len(model.tokenize("a" * 100)))

    def test_threads(self):
        model = linnet.Model(TEXT, threads=2, backend="cpu")
        wanted = [model.session().generate("the", max_tokens=50, temperature=1.0, seed=i).text() for i in range(6)]
        found = [None] * 6

        def work(i):
            found[i] = model.session().generate("the", max_tokens=50, temperature=1.0, seed=i).text()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, wanted)

    def long_work(self):
        model = linnet.Model(path_of("delta_hybrid_list"), threads=1, backend="cpu")
        return model.session(ctx=1 << 20), [1, 2, 3, 4] * 4000

    def test_other_threads_run_meanwhile(self):
        session, ids = self.long_work()
        ticks, on = 0, True

        def tick():
            nonlocal ticks
            while on:
                ticks += 1
                time.sleep(0.001)

        thread = threading.Thread(target=tick)
        thread.start()
        start = time.monotonic()
        session.feed(ids[:400])  # one piece: no callback in between
        session.feed(ids[:400])
        seconds, on = time.monotonic() - start, False
        thread.join()
        self.assertGreater(ticks, min(3, seconds * 50))

    def test_cancelling(self):
        session, ids = self.long_work()
        session.feed(ids[:10])
        seen = []

        def stop(what, done, total):
            seen.append((what, done, total))
            return len(seen) < 3

        self.refuses(linnet.Status.ERR_CANCELLED, "", session.feed, ids, progress=stop)
        self.assertEqual((len(seen), seen[0][2]), (3, len(ids)))
        self.assertEqual(len(session), 10)

        def breaks(what, done, total):
            raise KeyError("mine")

        self.assertRaises(KeyError, session.feed, ids, progress=breaks)
        self.assertRaises(KeyError, linnet.Model, CHAT, progress=breaks)

    def test_ctrl_c(self):
        session, ids = self.long_work()
        old = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with self.assertRaises(KeyboardInterrupt):
                session.feed(ids * 4)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        self.assertEqual(len(session), 0)
        session.reset()
        session.feed(ids[:4])


if __name__ == "__main__":
    unittest.main()
