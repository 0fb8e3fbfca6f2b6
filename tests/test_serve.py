"""linnet serve as its clients see it. Models: a tiny one of tests/data with random weights, and two that say known
texts (tests/clients/scripted.py), softmax and DeltaNet."""
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
import unittest

import numpy as np

from tests import soak_serve
from tests.asking import Stream, ask, chat, metrics, post, stream_text, text_of, user, wait_until
from tests.clients import scripted
from tests.serving import CHAT, LINNET, Serving

SAID = "Grüße aus dem Süden! The stop is near, and then it ends."
LINEAR = os.path.join(os.path.dirname(__file__), "..", "models", "mqar-delta-d64-h1.gguf")


def setUpModule():
    global folder, SOFTMAX, DELTA, ENDLESS
    folder = tempfile.TemporaryDirectory()
    SOFTMAX, DELTA, ENDLESS = (os.path.join(folder.name, n + ".gguf") for n in ("softmax", "delta", "endless"))
    scripted.write(SOFTMAX, [SAID])
    scripted.write(DELTA, [SAID], mixer="delta_net")
    scripted.write(ENDLESS, ["on and on it goes "], endless=True, mixer="delta_net", context=1 << 20)


def tearDownModule():
    folder.cleanup()


class With(unittest.TestCase):
    """A server for a class of tests."""
    model, flags = CHAT, ()

    @classmethod
    def setUpClass(cls):
        model = globals()[cls.model] if cls.model in globals() else cls.model
        cls.server = Serving(model, *cls.flags)

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        cls.server.file.close()
        assert status == 0, status


class Chat(With):
    def test_shape(self):
        a = chat(self.server, "hi", max_tokens=5, seed=1)
        self.assertEqual(a["object"], "chat.completion")
        self.assertEqual(a["model"], "chat")
        self.assertTrue(a["id"].startswith("chatcmpl-"))
        self.assertLess(abs(a["created"] - time.time()), 60)
        self.assertEqual(a["choices"][0]["message"]["role"], "assistant")
        self.assertIn(a["choices"][0]["finish_reason"], ("stop", "length"))
        u = a["usage"]
        self.assertEqual(u["total_tokens"], u["prompt_tokens"] + u["completion_tokens"])
        self.assertLessEqual(u["completion_tokens"], 5)
        self.assertEqual(a["linnet"]["seed"], 1)
        self.assertGreater(a["linnet"]["state_bytes"], 0)

    def test_stream_is_the_same(self):
        for fields in ({"seed": 3}, {"temperature": 0}, {"seed": 4, "n": 3}, {"seed": 5, "temperature": 0.7, "top_p": 0.9,
                       "top_k": 20, "min_p": 0.01, "repeat_penalty": 1.1}, {"seed": 6, "stop": ["a", "e "]}):
            with self.subTest(fields):
                fields = {"messages": user("hello there"), "max_tokens": 30, **fields}
                whole = post(self.server, "/v1/chat/completions", fields)
                s = Stream(self.server, "/v1/chat/completions", {**fields, "stream_options": {"include_usage": True}})
                chunks = list(s)
                self.assertTrue(s.done)
                self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
                for c in whole["choices"]:
                    self.assertEqual(stream_text(chunks, c["index"]), c["message"]["content"])
                    ends = [x["finish_reason"] for k in chunks for x in k["choices"] if x["index"] == c["index"]]
                    self.assertEqual(ends[-1], c["finish_reason"])
                    self.assertTrue(all(e is None for e in ends[:-1]))
                self.assertEqual(chunks[-1]["choices"], [])
                self.assertEqual(chunks[-1]["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])
                self.assertTrue(all(k["usage"] is None for k in chunks[:-1]))
                self.assertEqual(len({k["id"] for k in chunks}), 1)

    def test_no_usage_unless_asked(self):
        chunks = list(Stream(self.server, "/v1/chat/completions", {"messages": user("a"), "max_tokens": 3}))
        self.assertTrue(all("usage" not in k for k in chunks))

    def test_seeds(self):
        texts = [text_of(chat(self.server, "tell", max_tokens=30, seed=s)) for s in (1, 1, 2)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])
        free = [chat(self.server, "tell", max_tokens=30) for _ in range(2)]
        self.assertNotEqual(free[0]["linnet"]["seed"], free[1]["linnet"]["seed"])
        again = chat(self.server, "tell", max_tokens=30, seed=free[0]["linnet"]["seed"])
        self.assertEqual(text_of(again), text_of(free[0]))

    def test_n_is_seeds_in_a_row(self):
        several = chat(self.server, "tell", max_tokens=20, seed=10, n=4)
        self.assertEqual([c["index"] for c in several["choices"]], [0, 1, 2, 3])
        for i, c in enumerate(several["choices"]):
            alone = chat(self.server, "tell", max_tokens=20, seed=10 + i)
            self.assertEqual(c["message"]["content"], text_of(alone))

    def test_as_linnet_chat(self):
        """The command at temperature 0 says the same."""
        out = subprocess.run([LINNET, "chat", CHAT, "--quiet", "-n", "30", "--backend", "cpu"], input="hello\n", text=True,
                             capture_output=True, check=True).stdout
        self.assertEqual(text_of(chat(self.server, "hello", max_tokens=30, temperature=0)).strip(), out.strip())

    def test_content_parts_and_roles(self):
        plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two"}]
        parts = [{"role": "developer", "content": "Be brief."},
                 {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]
        a, b = (chat(self.server, m, max_tokens=9, temperature=0) for m in (plain, parts))
        self.assertEqual(text_of(a), text_of(b))

    def test_unknown_fields_are_ignored(self):
        chat(self.server, "hi", max_tokens=1, user="me", metadata={}, service_tier="auto", frequency_penalty=0, tools=[],
             tool_choice="none", model="chat", top_logprobs=0, logit_bias={}, stop=None, response_format={"type": "text"})
        for name in ("chat.gguf", "some/folder/chat", "x/chat.gguf"):
            chat(self.server, "hi", max_tokens=1, model=name)

    def test_logit_bias(self):
        bias = {str(i): -100 for i in range(262) if i != 65}
        a = chat(self.server, "hi", max_tokens=4, logit_bias=bias, logprobs=True)
        self.assertEqual(len({t["token"] for t in a["choices"][0]["logprobs"]["content"]}), 1)

    def test_logprobs(self):
        a = chat(self.server, "hi", max_tokens=6, temperature=0, logprobs=True, top_logprobs=4, ignore_eos=True)
        content = a["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(content), 6)
        for t in content:
            self.assertEqual(len(t["top_logprobs"]), 4)
            values = [x["logprob"] for x in t["top_logprobs"]]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertEqual(t["token"], t["top_logprobs"][0]["token"])
            self.assertEqual(t["logprob"], values[0])
        chunks = list(Stream(self.server, "/v1/chat/completions", {
            "messages": user("hi"), "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 4, "ignore_eos": True}))
        streamed = [t for k in chunks for c in k["choices"] if c["logprobs"] for t in c["logprobs"]["content"]]
        self.assertEqual(streamed, content)

    def test_json_mode(self):
        for seed in range(8):
            a = chat(self.server, "say", max_tokens=200, seed=seed, response_format={"type": "json_object"})
            if a["choices"][0]["finish_reason"] == "stop":
                json.loads(text_of(a))

    def test_progress(self):
        chunks = list(Stream(self.server, "/v1/chat/completions", {
            "messages": user("new words " * 9), "max_tokens": 1, "return_progress": True}))
        progress = [k["prompt_progress"] for k in chunks if "prompt_progress" in k]
        self.assertTrue(progress)
        self.assertEqual(set(progress[-1]), {"total", "processed", "cached", "seconds"})
        self.assertEqual(progress[-1]["processed"], progress[-1]["total"])


class NoCache(With):
    flags = ("--cache-bytes", "0")

    def test_nothing_is_kept(self):
        a, b = (chat(self.server, "hi", max_tokens=5, seed=1) for _ in range(2))
        self.assertEqual(text_of(a), text_of(b))
        self.assertEqual(b["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertIn("there is no cache", b["linnet"]["reuse"])


class Completions(With):
    def logits(self, model, ids):
        out = os.path.join(folder.name, "l.npy")
        subprocess.run([LINNET, "logits", model, "--ids", "-", "-o", out, "--activations", "auto", "--quiet", "--backend", "cpu",
                        "-t", "1"], input=" ".join(map(str, ids)), text=True, check=True)
        x = np.load(out).astype(np.float64)
        return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))

    def check_logprobs(self, server, model, ids, rows):
        a = post(server, "/v1/completions", {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 3})
        l = a["choices"][0]["logprobs"]
        wanted = self.logits(model, ids)[:, :rows]
        self.assertEqual(len(l["token_logprobs"]), len(ids))
        self.assertIsNone(l["token_logprobs"][0])
        self.assertIsNone(l["top_logprobs"][0])
        for i in range(1, len(ids)):
            # The command's logits are the server's; the sum here is a float64's, the server's its own.
            self.assertAlmostEqual(l["token_logprobs"][i], wanted[i - 1, ids[i]], delta=2e-6 * max(1, -wanted[i - 1, ids[i]]))
            best = sorted(l["top_logprobs"][i].values(), reverse=True)[:3]
            for got, want in zip(best, np.sort(wanted[i - 1])[::-1]):
                self.assertAlmostEqual(got, want, delta=2e-6 * max(1, -want))
        self.assertEqual(a["usage"]["completion_tokens"], 0)

    def test_logprobs_are_those_of_the_command(self):
        ids = [259, 84, 104, 101, 32, 115, 107, 121, 32, 105, 115]
        self.check_logprobs(self.server, CHAT, ids, 262)
        with Serving(LINEAR) as s:
            self.check_logprobs(s, LINEAR, [5, 900, 17, 4000, 5, 900, 17, 3, 8000], None)

    def test_scoring_as_lm_eval_does(self):
        """Generated one by one or scored at once: the same numbers."""
        free = post(self.server, "/v1/completions", {"prompt": "The sky", "max_tokens": 8, "temperature": 0, "logprobs": 1,
                                                     "ignore_eos": True})
        made = free["choices"][0]
        ids = post(self.server, "/tokenize", {"prompt": "The sky", "add_special_tokens": True})["tokens"]
        spelled = dict(map(reversed, enumerate(self.pieces())))
        more = [spelled[t] for t in made["logprobs"]["tokens"]]
        scored = post(self.server, "/v1/completions", {"prompt": [ids + more], "max_tokens": 1, "temperature": 0, "logprobs": 1,
                                                       "echo": True})["choices"][0]["logprobs"]
        self.assertEqual(len(scored["tokens"]), len(ids) + 9)
        for got, want in zip(scored["token_logprobs"][len(ids):-1], made["logprobs"]["token_logprobs"]):
            self.assertAlmostEqual(got, want, delta=1e-4)
        for got, top in zip(scored["token_logprobs"][len(ids):-1], scored["top_logprobs"][len(ids):-1]):
            self.assertEqual(got, max(top.values()))

    def pieces(self):
        out = []
        for i in range(262):
            l = post(self.server, "/v1/completions", {"prompt": [i], "max_tokens": 0, "echo": True, "logprobs": 0})
            out.append(l["choices"][0]["logprobs"]["tokens"][0])
        return out

    def test_prompts(self):
        texts = ["One", "Two words", "Three"]
        several = post(self.server, "/v1/completions", {"prompt": texts, "n": 2, "seed": 5, "max_tokens": 6})
        self.assertEqual([c["index"] for c in several["choices"]], list(range(6)))
        ids = [post(self.server, "/tokenize", {"prompt": t})["tokens"] for t in texts]
        by_ids = post(self.server, "/v1/completions", {"prompt": ids, "n": 2, "seed": 5, "max_tokens": 6})
        for i in range(6):
            alone = post(self.server, "/v1/completions", {"prompt": texts[i // 2], "seed": 5 + i % 2, "max_tokens": 6})
            self.assertEqual(several["choices"][i]["text"], alone["choices"][0]["text"])
            self.assertEqual(by_ids["choices"][i]["text"], alone["choices"][0]["text"])
        self.assertEqual(several["usage"]["prompt_tokens"], sum(map(len, ids)))

    def test_stream_is_the_same(self):
        body = {"prompt": ["One", "Two"], "seed": 2, "max_tokens": 9, "echo": True, "logprobs": 2}
        whole = post(self.server, "/v1/completions", body)
        chunks = list(Stream(self.server, "/v1/completions", body))
        for c in whole["choices"]:
            self.assertTrue(c["text"].startswith(body["prompt"][c["index"]]))
            self.assertEqual(stream_text(chunks, c["index"]), c["text"])
            for key in ("tokens", "token_logprobs", "text_offset"):
                streamed = [v for k in chunks for x in k["choices"] if x["index"] == c["index"] and x["logprobs"]
                            for v in x["logprobs"][key]]
                self.assertEqual(streamed, c["logprobs"][key])

    def test_scores_in_a_stream(self):
        """The prompt's logprobs come with the end where no token does."""
        body = {"prompt": "The sky", "max_tokens": 0, "echo": True, "logprobs": 1}
        whole = post(self.server, "/v1/completions", body)["choices"][0]["logprobs"]
        streamed = [x["logprobs"] for k in Stream(self.server, "/v1/completions", body) for x in k["choices"] if x["logprobs"]]
        self.assertEqual(streamed, [whole])

    def test_text_offsets(self):
        for echo in (True, False):
            c = post(self.server, "/v1/completions", {"prompt": "Größe: ", "max_tokens": 4, "temperature": 0, "echo": echo,
                                                      "logprobs": 0})["choices"][0]
            l = c["logprobs"]
            text = c["text"] if echo else "Größe: " + c["text"]
            for token, at in zip(l["tokens"], l["text_offset"]):
                if not token.startswith(("bytes:", "<|")) and "\ufffd" not in text:
                    self.assertEqual(text[at:at + len(token)], token)


class Tokens(With):
    def test_tokenize(self):
        text = "Grüße, 世界 <|im_end|>"
        for body in ({"content": text}, {"prompt": text, "add_special_tokens": False}):
            ids = post(self.server, "/tokenize", body)["tokens"]
            self.assertEqual(post(self.server, "/detokenize", {"tokens": ids}), {"prompt": text, "content": text})
        plain = post(self.server, "/tokenize", {"content": text, "parse_special": False})
        self.assertGreater(plain["count"], len(ids))
        out = subprocess.run([LINNET, "tokenize", CHAT, "--no-bos"], input=text, text=True, capture_output=True, check=True)
        self.assertEqual(plain["tokens"], list(map(int, out.stdout.split())))
        self.assertEqual(post(self.server, "/tokenize", {"prompt": "a"})["tokens"][0], 259)  # BOS
        pieces = post(self.server, "/tokenize", {"content": "ab", "with_pieces": True})["tokens"]
        self.assertEqual("".join(p["piece"] for p in pieces), "ab")
        self.assertEqual(post(self.server, "/tokenize", {"content": "ab", "return_token_strs": True})["token_strs"], ["a", "b"])

    def test_pieces_of_much_text(self):
        before = metrics(self.server)["linnet_peak_resident_bytes"]
        answer = post(self.server, "/tokenize", {"content": "ab " * 100000, "with_pieces": True, "return_token_strs": True})
        self.assertEqual(answer["count"], 300000)
        self.assertEqual(answer["tokens"][4], {"id": ord("b"), "piece": "b"})
        self.assertEqual(answer["token_strs"][:3], ["a", "b", " "])
        self.assertLess(metrics(self.server)["linnet_peak_resident_bytes"] - before, 80e6)

    def test_messages(self):
        ids = post(self.server, "/tokenize", {"messages": user("hi")})["tokens"]
        usage = chat(self.server, "hi", max_tokens=1)["usage"]
        self.assertEqual(len(ids), usage["prompt_tokens"])

    def test_tokenizer_info(self):
        info = ask(self.server, "GET", "/tokenizer_info")[2]
        self.assertEqual(post(self.server, "/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False})["tokens"],
                         [261])
        self.assertIn("messages", info["chat_template"])

    def test_models(self):
        m = ask(self.server, "GET", "/v1/models")[2]
        self.assertEqual(m["data"][0]["id"], "chat")
        self.assertEqual(m["data"][0]["linnet"]["mixers"], ["softmax", "softmax"])
        self.assertEqual(m["data"][0]["linnet"]["context"], 256)
        self.assertEqual(ask(self.server, "GET", "/v1/models/chat")[2], m["data"][0])

    def test_metrics(self):
        chat(self.server, "count me", max_tokens=3)
        text = ask(self.server, "GET", "/metrics")[2]
        values = metrics(self.server)
        self.assertEqual(values["linnet_slots_busy"], 0)
        self.assertGreaterEqual(values["linnet_jobs_total"], 1)
        for name in {n.split("{")[0] for n in values}:
            base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            self.assertTrue(f"# TYPE {name} " in text or f"# TYPE {base} histogram" in text, name)
        buckets = [v for n, v in values.items() if n.startswith("linnet_http_request_seconds_bucket")]
        self.assertEqual(buckets, sorted(buckets))
        self.assertEqual(buckets[-1], values["linnet_http_request_seconds_count"])

    def test_page(self):
        status, headers, text = ask(self.server, "GET", "/")
        self.assertEqual(status, 200)
        self.assertTrue(headers["Content-Type"].startswith("text/html"))
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        status, _, _ = ask(self.server, "GET", "/", headers={"If-None-Match": headers["ETag"]})
        self.assertEqual(status, 304)
        self.assertEqual(ask(self.server, "GET", "/page/app.js")[1]["Content-Type"], "text/javascript; charset=utf-8")


class Turns(unittest.TestCase):
    """What is said again is not computed again, and a text that was cut is cut where it should be."""

    def test_turns_cost_their_own_tokens(self):
        for model in (SOFTMAX, DELTA):
            with self.subTest(model), Serving(model) as s:
                messages = user("Where from? " * 20)
                for turn in range(5):
                    a = chat(s, messages, temperature=0)
                    self.assertEqual(text_of(a), SAID)
                    self.assertEqual(a["choices"][0]["finish_reason"], "stop")
                    u = a["usage"]
                    if turn:
                        self.assertLess(u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"], 30, a["linnet"])
                    messages += [{"role": "assistant", "content": text_of(a)}, {"role": "user", "content": f"And {turn}?"}]

    def test_stops(self):
        for model in (SOFTMAX, DELTA):
            with self.subTest(model), Serving(model) as s:
                for stop in ("stop", ["near", "stop"], "The s", "ü", "!", "Grüße aus"):
                    first = min(stop if isinstance(stop, list) else [stop], key=SAID.find)
                    wanted = SAID[:SAID.find(first)]
                    messages = user(f"until {first}")
                    a = chat(s, messages, temperature=0, stop=stop)
                    self.assertEqual((text_of(a), a["choices"][0]["finish_reason"]), (wanted, "stop"))
                    body = {"messages": messages, "temperature": 0, "stop": stop}
                    self.assertEqual(stream_text(Stream(s, "/v1/chat/completions", body)), wanted)
                    more = messages + [{"role": "assistant", "content": wanted}, {"role": "user", "content": "go on"}]
                    self.assertEqual(text_of(chat(s, more, temperature=0)), SAID)


class Leaving(With):
    """Clients that leave, full queues, and the end."""
    model, flags = "ENDLESS", ("--slots", "2", "--max-queue", "1")

    def long(self, **fields):
        return Stream(self.server, "/v1/chat/completions", {"messages": user("go"), "max_tokens": 1000000, **fields})

    def busy(self):
        return metrics(self.server)["linnet_slots_busy"]

    def test_cancel_in_a_stream(self):
        s, other = self.long(), self.long()
        mine = iter(other)
        next(iter(s))
        wait_until(lambda: self.busy() == 2)
        s.close()
        self.assertLess(wait_until(lambda: self.busy() == 1), 1)
        before = stream_text([next(mine) for _ in range(50)])  # the other one goes on, unharmed
        self.assertIn(before, "on and on it goes " * 100)
        other.close()
        self.assertLess(wait_until(lambda: self.busy() == 0), 1)

    def test_cancel_without_a_stream(self):
        body = json.dumps({"messages": user("go"), "max_tokens": 1000000}).encode()
        c = socket.create_connection(("127.0.0.1", self.server.port))
        c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: self.busy() == 1)
        c.close()
        self.assertLess(wait_until(lambda: self.busy() == 0), 1)

    def test_half_close_is_leaving(self):
        body = json.dumps({"messages": user("go"), "max_tokens": 1000000}).encode()
        with socket.create_connection(("127.0.0.1", self.server.port)) as c:
            c.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: self.busy() == 1)
            c.shutdown(socket.SHUT_WR)
            self.assertLess(wait_until(lambda: self.busy() == 0), 1)

    def test_full_queue(self):
        running = [self.long() for _ in range(2)]
        wait_until(lambda: self.busy() == 2)
        waiting = self.long()
        wait_until(lambda: metrics(self.server)["linnet_jobs_queued"] == 1)
        status, headers, answer = ask(self.server, "POST", "/v1/chat/completions", {"messages": user("me too")})
        self.assertEqual((status, answer["error"]["code"]), (503, "overloaded"))
        self.assertEqual(headers["Retry-After"], "1")
        waiting.close()  # one that waits and leaves takes nobody along
        wait_until(lambda: metrics(self.server)["linnet_jobs_queued"] == 0)
        self.assertEqual(self.busy(), 2)
        for s in running:
            s.close()
        self.assertLess(wait_until(lambda: self.busy() == 0), 1)
        self.assertEqual(len(text_of(chat(self.server, "again", max_tokens=5))) > 0, True)

    def test_more_than_all_room(self):
        status, _, answer = ask(self.server, "POST", "/v1/chat/completions", {"messages": user("go"), "max_tokens": 1, "n": 4})
        self.assertEqual((status, answer["error"]["code"]), (400, "too_many_answers"))
        chat(self.server, "go", max_tokens=1, n=3)

    def test_who_does_not_read(self):
        """Answers to somebody who does not read keep nobody else waiting."""
        s = self.long()
        time.sleep(0.3)
        start = time.time()
        chat(self.server, "hi", max_tokens=3)
        self.assertLess(time.time() - start, 1)
        s.close()
        wait_until(lambda: self.busy() == 0)


class Stopping(unittest.TestCase):
    def test_drain(self):
        """What runs comes to its end; new requests are refused meanwhile; exit 0."""
        with Serving(ENDLESS, "--drain", "300") as s:
            stream = Stream(s, "/v1/chat/completions", {"messages": user("go"), "max_tokens": 2000})
            chunks = iter(stream)
            next(chunks)
            keep = http.client.HTTPConnection("127.0.0.1", s.port)
            keep.request("GET", "/health")
            self.assertEqual(keep.getresponse().read(), b'{"status":"ok"}')
            s.process.terminate()
            wait_until(lambda: "stopping" in s.log())
            keep.request("POST", "/v1/chat/completions", json.dumps({"messages": user("late")}))
            answer = keep.getresponse()
            self.assertEqual(answer.status, 503)
            self.assertEqual(answer.getheader("Connection"), "close")
            self.assertTrue(answer.getheader("Retry-After"))
            rest = list(chunks)
            self.assertTrue(stream.done)
            self.assertEqual(rest[-1]["choices"][0]["finish_reason"], "length")
            self.assertEqual(s.process.wait(10), 0)

    def test_drain_has_an_end(self):
        with Serving(ENDLESS, "--drain", "1") as s:
            stream = Stream(s, "/v1/chat/completions", {"messages": user("go"), "max_tokens": 1000000})
            chunks = iter(stream)
            next(chunks)
            start = time.time()
            s.process.terminate()
            self.assertIn("error", list(chunks)[-1])
            self.assertEqual(s.process.wait(10), 0)
            self.assertLess(time.time() - start, 20)

    def test_second_signal(self):
        with Serving(ENDLESS) as s:
            stream = Stream(s, "/v1/chat/completions", {"messages": user("go"), "max_tokens": 1000000})
            next(iter(stream))
            s.process.terminate()
            wait_until(lambda: "stopping" in s.log())
            s.process.terminate()
            self.assertNotEqual(s.process.wait(5), 0)

    def test_deadline(self):
        with Serving(ENDLESS, "--timeout", "1") as s:
            a = chat(s, "go", max_tokens=1000000)
            self.assertEqual(a["choices"][0]["finish_reason"], "length")
            self.assertEqual(a["linnet"]["end"], "deadline")
            self.assertIn("on and on", text_of(a))

    def test_port_taken(self):
        with Serving() as s:
            out = subprocess.run([LINNET, "serve", CHAT, "--port", str(s.port)], capture_output=True, text=True, timeout=30)
            self.assertEqual(out.returncode, 1)
            self.assertIn("cannot listen", out.stderr)
            self.assertIn("Address already in use", out.stderr)


class Soak(unittest.TestCase):
    def test_short(self):
        """A few seconds of make soak."""
        for model in ("mqar-softmax-d64", "mqar-delta-d64-h4"):
            soak_serve.soak(model, 40, 24)


if __name__ == "__main__":
    unittest.main()
