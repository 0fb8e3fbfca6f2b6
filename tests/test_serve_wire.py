"""Requests that are none: each is answered with a 4xx and an error in OpenAI's shape, and the server goes on."""
import json
import socket
import time
import unittest

from tests.asking import ask, raw, split
from tests.serving import CHAT as CHAT_MODEL
from tests.serving import Serving

HOST = b"Host: 127.0.0.1\r\n"
CLOSE = b"Connection: close\r\n"


def get(path=b"/health", more=b""):
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + more + b"\r\n"


def post(body, path=b"/tokenize", more=b"", length=None):
    n = str(len(body) if length is None else length).encode()
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + b"Content-Length: " + n + b"\r\n" + more + b"\r\n" + body


def headed(more, body=b"", path=b"/tokenize"):
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + CLOSE + more + b"\r\n" + body


CHAT, COMPLETE = b"/v1/chat/completions", b"/v1/completions"
HI = b'"messages":[{"role":"user","content":"hi"}]'

# what, bytes, the status expected
WIRE = [
    ("empty line first", b"\r\n\r\n", 400),
    ("no version", b"GET /health\r\n\r\n", 400),
    ("no target", b"GET HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("unknown method", b"BREW /health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("lower-case method", b"get /health HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("a version that is none", b"GET /health HTTX/1.1\r\n" + HOST + b"\r\n", 400),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("a NUL in the target", b"GET /hea\0lth HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("a NUL in a header", get(more=b"X: a\0b\r\n"), 400),
    ("a control character in a header", get(more=b"X: a\x01b\r\n"), 400),
    ("a header without colon", get(more=b"X\r\n"), 400),
    ("a header without name", get(more=b": x\r\n"), 400),
    ("a space before the colon", headed(b"Content-Length : 2\r\n", b"{}"), 400),
    ("a folded header", headed(b"X: a\r\n b\r\nContent-Length: 2\r\n", b"{}"), 400),
    ("bare carriage return", get(more=b"X: a\rY: b\r\n"), 400),
    ("a head of 40 kB", get(more=b"X: " + b"a" * 40000 + b"\r\n"), 431),
    ("70 headers", get(more=b"X: a\r\n" * 70), 431),
    ("a target of 10 kB", get(b"/" + b"a" * 10000), 414),
    ("no Host", b"GET /health HTTP/1.1\r\n" + CLOSE + b"\r\n", 400),
    ("two Hosts", get(more=b"Host: localhost\r\n"), 400),
    ("a Host that is none", b"GET /health HTTP/1.1\r\nHost: a b\r\n" + CLOSE + b"\r\n", 400),
    ("a Host with a path", b"GET /health HTTP/1.1\r\nHost: localhost/x\r\n" + CLOSE + b"\r\n", 400),
    ("a Host of someone else", b"GET /health HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE + b"\r\n", 403),
    ("a Host that begins like ours", b"GET /health HTTP/1.1\r\nHost: localhost.evil.example\r\n" + CLOSE + b"\r\n", 403),
    ("a target elsewhere", b"GET http://evil.example/health HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 400),
    ("another scheme", b"GET gopher://127.0.0.1/ HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 400),
    ("an asterisk", b"OPTIONS * HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 400),
    ("CONNECT", b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 400),
    ("dots to the root", get(b"/../../etc/passwd"), 404),
    ("encoded dots", get(b"/page/%2e%2e/%2e%2e/README.md"), 404),
    ("an encoded slash", get(b"/page/..%2f..%2fMakefile"), 404),
    ("an encoded NUL", get(b"/health%00"), 400),
    ("a cut percent sign", get(b"/health%4"), 400),
    ("a percent sign with letters", get(b"/health%zz"), 400),
    ("nothing there", get(b"/v2/models"), 404),
    ("another model", get(b"/v1/models/gpt-4"), 404),
    ("GET where POST is meant", get(CHAT), 405),
    ("POST where GET is meant", post(b"{}", b"/v1/models"), 405),
    ("PUT", b"PUT /tokenize HTTP/1.1\r\n" + HOST + CLOSE + b"Content-Length: 0\r\n\r\n", 405),
    ("DELETE", b"DELETE /v1/models HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n", 405),
    ("two lengths", headed(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}"), 400),
    ("a length with a sign", headed(b"Content-Length: +2\r\n", b"{}"), 400),
    ("a negative length", headed(b"Content-Length: -2\r\n", b"{}"), 400),
    ("a list of lengths", headed(b"Content-Length: 2, 2\r\n", b"{}"), 400),
    ("a hexadecimal length", headed(b"Content-Length: 0x2\r\n", b"{}"), 400),
    ("a length beyond 64 bits", headed(b"Content-Length: 99999999999999999999\r\n", b"{}"), 400),
    ("no length", headed(b"Content-Length: \r\n", b"{}"), 400),
    ("length and chunks", headed(b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    ("chunks and length", headed(b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", b"0\r\n\r\n"), 400),
    ("another encoding", headed(b"Transfer-Encoding: gzip\r\n", b"0\r\n\r\n"), 400),
    ("an encoding twice", headed(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    ("an encoding in a list", headed(b"Transfer-Encoding: identity, chunked\r\n", b"0\r\n\r\n"), 400),
    ("identity and length", headed(b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n", b"{}"), 400),
    ("chunks in HTTP/1.0", b"POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("a chunk's size that is none", headed(b"Transfer-Encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    ("a negative chunk", headed(b"Transfer-Encoding: chunked\r\n", b"-2\r\n{}\r\n0\r\n\r\n"), 400),
    ("a chunk beyond 64 bits", headed(b"Transfer-Encoding: chunked\r\n", b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n"), 400),
    ("a chunk without its line end", headed(b"Transfer-Encoding: chunked\r\n", b"2\r\n{}0\r\n\r\n"), 400),
    ("too large a body", headed(b"Content-Length: 2000000\r\n", b"x" * 100000), 413),
    ("too large in chunks", headed(b"Transfer-Encoding: chunked\r\n", (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 20), 413),
    ("an expectation", post(b"{}", more=b"Expect: the-unexpected\r\n"), 417),
    ("a page of another origin", get(more=b"Origin: http://evil.example\r\n"), 403),
    ("origin null", get(more=b"Origin: null\r\n"), 403),
    ("an origin that begins like ours", get(more=b"Origin: http://127.0.0.1.evil.example\r\n"), 403),
]

# JSON that is none, or not what is asked for
BODIES = [
    ("no body", b"/tokenize", b""),
    ("not JSON", b"/tokenize", b"hello"),
    ("cut", b"/tokenize", b'{"content": "a'),
    ("two values", b"/tokenize", b'{"content": "a"} {}'),
    ("an array", b"/tokenize", b'["content"]'),
    ("a text", b"/tokenize", b'"content"'),
    ("a comma too many", b"/tokenize", b'{"content": "a",}'),
    ("single quotes", b"/tokenize", b"{'content': 'a'}"),
    ("a key twice", b"/tokenize", b'{"content": "a", "content": "b"}'),
    ("100,000 brackets", b"/tokenize", b"[" * 100000),
    ("100,000 objects", b"/tokenize", b'{"a":' * 100000),
    ("150,000 objects side by side", b"/tokenize", b'{"content": "a", "x": [{}' + b",{}" * 149999 + b"]}"),
    ("65 deep", b"/tokenize", b'{"content": ' + b"[" * 64 + b"]" * 64 + b"}"),
    ("invalid UTF-8", b"/tokenize", b'{"content": "\xff"}'),
    ("an overlong character", b"/tokenize", b'{"content": "\xc0\xaf"}'),
    ("half a surrogate pair", b"/tokenize", b'{"content": "\\ud800"}'),
    ("NUL in a text", b"/tokenize", b'{"content": "a\\u0000b"}'),
    ("a raw NUL", b"/tokenize", b'{"content": "a\0b"}'),
    ("a raw line feed", b"/tokenize", b'{"content": "a\nb"}'),
    ("NaN", CHAT, b"{" + HI + b', "temperature": NaN}'),
    ("beyond a double", CHAT, b"{" + HI + b', "temperature": 1e999}'),
    ("beyond 64 bits", CHAT, b"{" + HI + b', "seed": 99999999999999999999}'),
    ("no content", b"/tokenize", b"{}"),
    ("content that is a number", b"/tokenize", b'{"content": 1}'),
    ("ids that are texts", b"/detokenize", b'{"tokens": ["a"]}'),
    ("ids beyond the vocabulary", b"/detokenize", b'{"tokens": [1000000]}'),
    ("negative ids", b"/detokenize", b'{"tokens": [-1]}'),
    ("no messages", CHAT, b"{}"),
    ("empty messages", CHAT, b'{"messages": []}'),
    ("messages that are a text", CHAT, b'{"messages": "hi"}'),
    ("a message that is a text", CHAT, b'{"messages": ["hi"]}'),
    ("no role", CHAT, b'{"messages": [{"content": "hi"}]}'),
    ("an unknown role", CHAT, b'{"messages": [{"role": "tool", "content": "hi"}]}'),
    ("no content in a message", CHAT, b'{"messages": [{"role": "user"}]}'),
    ("an image", CHAT, b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}'),
    ("temperature below 0", CHAT, b"{" + HI + b', "temperature": -1}'),
    ("temperature as text", CHAT, b"{" + HI + b', "temperature": "1"}'),
    ("top_p above 1", CHAT, b"{" + HI + b', "top_p": 1.5}'),
    ("min_p below 0", CHAT, b"{" + HI + b', "min_p": -0.1}'),
    ("repeat_penalty 0", CHAT, b"{" + HI + b', "repeat_penalty": 0}'),
    ("max_tokens 0", CHAT, b"{" + HI + b', "max_tokens": 0}'),
    ("max_tokens -1", CHAT, b"{" + HI + b', "max_tokens": -1}'),
    ("max_tokens 1.5", CHAT, b"{" + HI + b', "max_tokens": 1.5}'),
    ("n 0", CHAT, b"{" + HI + b', "n": 0}'),
    ("n 9", CHAT, b"{" + HI + b', "n": 9}'),
    ("n 2^63", CHAT, b"{" + HI + b', "n": 9223372036854775808}'),
    ("a seed of letters", CHAT, b"{" + HI + b', "seed": "x"}'),
    ("17 stops", CHAT, b"{" + HI + b', "stop": ["a"' + b',"a"' * 16 + b"]}"),
    ("an empty stop", CHAT, b"{" + HI + b', "stop": ""}'),
    ("a stop of 5 kB", CHAT, b"{" + HI + b', "stop": "' + b"x" * 5000 + b'"}'),
    ("a stop that is a number", CHAT, b"{" + HI + b', "stop": [1]}'),
    ("logit_bias of no token", CHAT, b"{" + HI + b', "logit_bias": {"x": 1}}'),
    ("logit_bias beyond 100", CHAT, b"{" + HI + b', "logit_bias": {"5": 101}}'),
    ("logit_bias as a list", CHAT, b"{" + HI + b', "logit_bias": [1]}'),
    ("top_logprobs without logprobs", CHAT, b"{" + HI + b', "top_logprobs": 2}'),
    ("top_logprobs 21", CHAT, b"{" + HI + b', "logprobs": true, "top_logprobs": 21}'),
    ("stream as a text", CHAT, b"{" + HI + b', "stream": "yes"}'),
    ("stream_options as a text", CHAT, b"{" + HI + b', "stream_options": "x"}'),
    ("a JSON schema", CHAT, b"{" + HI + b', "response_format": {"type": "json_schema"}}'),
    ("no format's type", CHAT, b"{" + HI + b', "response_format": {}}'),
    ("a tool", CHAT, b"{" + HI + b', "tools": [{"type": "function"}]}'),
    ("a choice of tools", CHAT, b"{" + HI + b', "tool_choice": "required"}'),
    ("frequency_penalty", CHAT, b"{" + HI + b', "frequency_penalty": 0.5}'),
    ("presence_penalty", CHAT, b"{" + HI + b', "presence_penalty": -1}'),
    ("a conversation outside", CHAT, b"{" + HI + b', "conversation": "../x"}'),
    ("a conversation of 129", CHAT, b"{" + HI + b', "conversation": "' + b"a" * 129 + b'"}'),
    ("a conversation of a slash", CHAT, b"{" + HI + b', "conversation": "a/b"}'),
    ("a model that is a number", CHAT, b"{" + HI + b', "model": 4}'),
    ("more than the context", CHAT, b'{"messages": [{"role": "user", "content": "' + b"a b " * 1000 + b'"}]}'),
    ("no prompt", COMPLETE, b"{}"),
    ("a prompt that is a number", COMPLETE, b'{"prompt": 3}'),
    ("an empty list of prompts", COMPLETE, b'{"prompt": []}'),
    ("an empty list of ids", COMPLETE, b'{"prompt": [[]]}'),
    ("texts and ids", COMPLETE, b'{"prompt": ["a", 3]}'),
    ("an id beyond the vocabulary", COMPLETE, b'{"prompt": [100000]}'),
    ("a prompt beyond the context", COMPLETE, b'{"prompt": "' + b"a b " * 1000 + b'"}'),
    ("more prompts than wait", COMPLETE, b'{"n": 8, "prompt": ["a"' + b',"a"' * 99 + b"]}"),
    ("a suffix", COMPLETE, b'{"prompt": "a", "suffix": "b"}'),
    ("logprobs 21", COMPLETE, b'{"prompt": "a", "logprobs": 21}'),
    ("best_of 2", COMPLETE, b'{"prompt": "a", "best_of": 2}'),
    ("echo as a text", COMPLETE, b'{"prompt": "a", "echo": "yes"}'),
]


class Malformed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Serving(CHAT_MODEL, "--max-body", "1M")

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        cls.server.file.close()
        assert status == 0, status

    def check(self, answer, status):
        self.assertTrue(answer, "closed without an answer")
        got, headers, body = split(answer)
        self.assertEqual(got, status)
        error = json.loads(body)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertTrue(error["message"])
        self.assertNotIn("/", error["type"])
        self.assertEqual(headers["content-type"], "application/json")
        self.assertEqual(int(headers["content-length"]), len(body))

    def test_wire(self):
        for what, data, status in WIRE:
            with self.subTest(what):
                self.check(raw(self.server, data), status)
                self.assertEqual(ask(self.server, "GET", "/health")[0], 200)

    def test_bodies(self):
        for what, path, body in BODIES:
            with self.subTest(what):
                self.check(raw(self.server, post(body, path)), 400)
        self.assertEqual(ask(self.server, "GET", "/health")[0], 200)

    def test_unknown_model(self):
        self.check(raw(self.server, post(b'{"model": "gpt-4", ' + HI + b"}", CHAT)), 404)

    def test_embeddings(self):
        self.check(raw(self.server, post(b'{"input": "a"}', b"/v1/embeddings")), 501)

    def test_version(self):
        self.check(raw(self.server, b"GET /health HTTP/3.0\r\n" + HOST + b"\r\n"), 505)

    def test_smuggled(self):
        """What follows a refused head is never taken for a request."""
        for head in (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"X: a\r\n b\r\nContent-Length: 60\r\n",
                     b"Content-Length: 4\r\nContent-Length: 60\r\n"):
            data = b"POST /tokenize HTTP/1.1\r\n" + HOST + head + b"\r\n" + get()
            answer = raw(self.server, data)
            self.assertEqual(answer.count(b"HTTP/1.1 "), 1, answer)
            self.assertNotIn(b'"ok"', answer)

    def test_unharmed(self):
        """Odd, but right."""
        lower = b"POST /tokenize HTTP/1.1\r\nhost: LOCALHOST\r\ncontent-length: 16\r\nconnection: close\r\n\r\n"
        for what, data in [
                ("header names of any case", lower + b'{"content": "a"}'),
                ("chunks", headed(b"Transfer-Encoding: chunked\r\n", b'5\r\n{"con\r\nB\r\ntent": "a"}\r\n0\r\n\r\n')),
                ("100-continue", post(b'{"content": "a"}', more=b"Expect: 100-continue\r\n")),
                ("a query", post(b'{"content": "a"}', b"/tokenize?x=1")),
                ("an absolute target", b"GET http://127.0.0.1:%d/health HTTP/1.1\r\n" % self.server.port + HOST + CLOSE + b"\r\n"),
                ("HTTP/1.0", b"GET /health HTTP/1.0\r\n\r\n"),
                ("an encoded letter", get(b"/%68ealth")),
                ("pipelined", get().replace(CLOSE, b"") + get())]:
            with self.subTest(what):
                answer = raw(self.server, data)
                if what == "100-continue":
                    self.assertTrue(answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"))
                    answer = answer[25:]
                self.assertEqual(split(answer)[0], 200, answer)
                self.assertEqual(answer.count(b"HTTP/1.1 200 OK"), 2 if what == "pipelined" else 1)

    def test_head(self):
        answer = raw(self.server, get().replace(b"GET", b"HEAD", 1))
        status, headers, body = split(answer)
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(headers["content-length"], "15")

    def test_keeps_alive(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as s:
            for _ in range(20):
                s.sendall(get().replace(CLOSE, b""))
                answer = s.recv(65536)
                self.assertEqual(split(answer)[0], 200)
                self.assertEqual(split(answer)[1]["connection"], "keep-alive")


class Slow(unittest.TestCase):
    """Clients that take their time, and those that leave, with deadlines of a second."""

    @classmethod
    def setUpClass(cls):
        cls.server = Serving(CHAT_MODEL, "--timeout", "1", "--max-connections", "40")

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.file.close()

    def trickle(self, data, pause, most=6):
        start = time.time()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=most) as s:
            s.settimeout(pause)
            out = b""
            for i in range(len(data)):
                try:
                    s.sendall(data[i:i + 1])
                    out += s.recv(65536)
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break
            return out, time.time() - start

    def test_slow_head(self):
        out, seconds = self.trickle(get() * 9, 0.1)
        self.assertEqual(split(out)[0], 408)
        self.assertLess(seconds, 4)

    def test_slow_body(self):
        out, seconds = self.trickle(post(b"x" * 10000), 0.005)
        self.assertEqual(split(out)[0], 408)
        self.assertLess(seconds, 4)

    def test_slow_chunks(self):
        out, seconds = self.trickle(headed(b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 2000), 0.005)
        self.assertEqual(split(out)[0], 408)
        self.assertLess(seconds, 4)

    def test_many_that_say_nothing(self):
        """30 half requests do not keep others waiting."""
        idle = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(30)]
        try:
            for s in idle:
                s.sendall(b"POST /tokenize HTTP/1.1\r\nHo")
            start = time.time()
            self.assertEqual(ask(self.server, "GET", "/health")[0], 200)
            self.assertLess(time.time() - start, 0.5)
        finally:
            for s in idle:
                s.close()

    def test_too_many(self):
        idle = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(40)]
        try:
            for s in idle:
                s.sendall(b"GET /health HTTP/1.1\r\nHo")
            time.sleep(0.2)
            status, headers, _ = ask(self.server, "GET", "/health")
            self.assertEqual(status, 503)
            self.assertEqual(headers["Retry-After"], "1")
        finally:
            for s in idle:
                s.close()

    def test_vanishing(self):
        for data in (b"", b"G", get()[:-2], post(b"{}", length=10), headed(b"Transfer-Encoding: chunked\r\n", b"5\r\nab")):
            with socket.create_connection(("127.0.0.1", self.server.port)) as s:
                s.sendall(data)
        self.assertEqual(ask(self.server, "GET", "/health")[0], 200)
