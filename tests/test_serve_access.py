"""Who may ask: API keys, Host, origins; and what the log tells."""
import os
import re
import tempfile
import unittest

from tests.asking import ask, post, raw, split, user, wait_until
from tests.serving import CHAT, Serving

KEYS = ["sk-first-key", "x", "a key with spaces and $igns"]
HI = {"messages": user("hi"), "max_tokens": 1}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


class Keys(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.NamedTemporaryFile("w", delete=False) as f:
            f.write("# staff\n" + "\n".join(KEYS) + "\n\n")
        cls.file = f.name
        os.chmod(cls.file, 0o600)
        cls.server = Serving(CHAT, "--api-key-file", cls.file)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.server.file.close()
        os.unlink(cls.file)

    def status(self, headers, path="/v1/models"):
        return ask(self.server, "GET", path, headers=headers)[0]

    def test_good(self):
        for key in KEYS:
            for headers in (bearer(key), {"X-Api-Key": key}, {"Authorization": f"bearer {key}"}, {"x-api-key": key}):
                self.assertEqual(self.status(headers), 200, headers)

    def test_bad(self):
        for key in ("", " ", "sk-first-ke", "sk-first-key2", "SK-FIRST-KEY", "y", "# staff", "x" * 600, "sk-first-key,x", "*"):
            for headers in (bearer(key), {"X-Api-Key": key}, {"Authorization": f"Basic {key}"}, {"Authorization": key}):
                status, got, body = ask(self.server, "GET", "/v1/models", headers=headers)
                self.assertEqual(status, 401, headers)
                self.assertEqual(got["WWW-Authenticate"], "Bearer")
                self.assertEqual(body["error"]["code"], "invalid_api_key")

    def test_what_is_open(self):
        for path in ("/health", "/", "/page/app.js"):
            self.assertEqual(self.status({}, path), 200, path)
        for path in ("/v1/models", "/metrics", "/tokenizer_info", "/v1/models/chat", "/nothing"):
            self.assertEqual(self.status({}, path), 401, path)
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/states/save", "/v1/embeddings"):
            self.assertEqual(ask(self.server, "POST", path, HI)[0], 401, path)

    def test_works(self):
        self.assertEqual(ask(self.server, "POST", "/v1/chat/completions", HI, headers=bearer(KEYS[0]))[0], 200)

    def test_never_logged(self):
        self.status(bearer("wrong-secret"))
        self.status(bearer(KEYS[0]), "/v1/models?api_key=query-secret")
        for secret in ("wrong-secret", "query-secret", *[k for k in KEYS if len(k) > 1], "first-key"):
            self.assertNotIn(secret, self.server.log())

    def test_files(self):
        for text, wanted in (("", "found none"), ("# only\n\n", "found none"), ("k" * 600 + "\n", "longer"),
                             ("key # mine\n", "a line of its own"),
                             ("# a long comment" + "x" * 1100 + " end\n", "found none"), (" " * 1100 + "\n", "longer"), (None, "No such file")):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "keys")
                if text is not None:
                    with open(path, "w") as f:
                        f.write(text)
                with self.assertRaisesRegex(RuntimeError, wanted):
                    Serving(CHAT, "--api-key-file", path)

    def test_readable_by_all(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "keys")
            with open(path, "w") as f:
                f.write("k\n")
            os.chmod(path, 0o644)
            with Serving(CHAT, "--api-key-file", path) as s:
                self.assertIn("can be read by everybody", s.log())


class Names(unittest.TestCase):
    def status(self, server, host, path="/health"):
        return split(raw(server, b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path.encode(), host.encode())))[0]

    def test_loopback(self):
        with Serving(CHAT) as s:
            for host in ("localhost", f"localhost:{s.port}", "LocalHost", "127.0.0.1", f"127.0.0.1:{s.port}", "[::1]:80", "10.0.0.7"):
                self.assertEqual(self.status(s, host), 200, host)
            for host in ("evil.example", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example", "0x7f000001", "2130706433"):
                self.assertEqual(self.status(s, host), 403, host)
            for host in ("", "a b", "localhost:x", "localhost:", "[::1", "localhost:99999999", "a@localhost"):
                self.assertEqual(self.status(s, host), 400, host)
            inside = raw(s, b"GET http://evil.example:%d/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % s.port)
            self.assertEqual(split(inside)[0], 403)

    def test_allowed(self):
        with Serving(CHAT, "--allow-host", "llm.example", "--allow-host", "other.example") as s:
            for host, wanted in (("llm.example", 200), ("LLM.example:443", 200), ("other.example", 200), ("a.llm.example", 403)):
                self.assertEqual(self.status(s, host), wanted, host)
        with Serving(CHAT, "--allow-host", "*") as s:
            self.assertEqual(self.status(s, "anything.example"), 200)


class Origins(unittest.TestCase):
    ASK = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}

    def test_off(self):
        with Serving(CHAT) as s:
            for method in ("GET", "OPTIONS", "POST"):
                status, headers, _ = ask(s, method, "/v1/models" if method == "GET" else "/tokenize", b"{}" if method == "POST" else None,
                                         {"Origin": "http://evil.example", **self.ASK})
                self.assertEqual(status, 403, method)
                self.assertNotIn("Access-Control-Allow-Origin", headers)
            status, headers, _ = ask(s, "GET", "/v1/models", headers={"Origin": f"http://127.0.0.1:{s.port}"})  # its own page
            self.assertEqual(status, 200)
            self.assertNotIn("Access-Control-Allow-Origin", headers)
            self.assertEqual(ask(s, "OPTIONS", "/tokenize")[0], 204)

    def test_on(self):
        with Serving(CHAT, "--cors", "https://app.example", "--cors", "http://localhost:3000") as s:
            for origin in ("https://app.example", "http://localhost:3000"):
                status, headers, _ = ask(s, "OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **self.ASK})
                self.assertEqual(status, 204)
                self.assertEqual(headers["Access-Control-Allow-Origin"], origin)
                self.assertIn("POST", headers["Access-Control-Allow-Methods"])
                self.assertEqual(headers["Access-Control-Allow-Headers"], self.ASK["Access-Control-Request-Headers"])
                self.assertNotIn("Access-Control-Allow-Credentials", headers)
                status, headers, _ = ask(s, "POST", "/v1/chat/completions", HI, {"Origin": origin})
                self.assertEqual((status, headers["Access-Control-Allow-Origin"], headers["Vary"]), (200, origin, "Origin"))
                status, headers, _ = ask(s, "POST", "/v1/chat/completions", {}, {"Origin": origin})
                self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (400, origin))
            for origin in ("https://app.example.evil", "https://app.exampl", "http://app.example", "null", "https://APP.example"):
                self.assertEqual(ask(s, "GET", "/v1/models", headers={"Origin": origin})[0], 403, origin)

    def test_all(self):
        with Serving(CHAT, "--cors", "*") as s:
            _, headers, _ = ask(s, "GET", "/v1/models", headers={"Origin": "https://any.example"})
            self.assertEqual(headers["Access-Control-Allow-Origin"], "*")


class Log(unittest.TestCase):
    def test_lines(self):
        with Serving(CHAT) as s:
            post(s, "/v1/chat/completions", {"messages": user("a private matter"), "max_tokens": 2})
            ask(s, "GET", "/v1/models?secret=1")
            raw(s, b"GET /%0alinnet:%20forged%1b[31m HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            raw(s, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            wait_until(lambda: "POST" in s.log() and "/aaa" in s.log())  # lines follow their answers
            log = s.log()
        self.assertRegex(log, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ 200 POST /v1/chat/completions \d+\.\d+ s; \d+ \+ \d tokens")
        self.assertNotIn("private", log)
        self.assertNotIn("secret", log)
        self.assertNotIn("\x1b", log)
        self.assertFalse(re.search("^linnet: forged", log, re.M))
        self.assertLess(max(map(len, log.splitlines())), 600)


if __name__ == "__main__":
    unittest.main()
