"""Two replicas of `linnet serve` behind Debian's nginx with deploy/nginx.conf, states in Debian's
redis-server: any replica continues any conversation, and any of the parts may die."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from tests.clients.scripted import write
from tests.serving import CHAT, ROOT, Serving

MISSING = [p for p in ("redis-server", "nginx") if not shutil.which(p, path=os.environ["PATH"] + ":/usr/sbin")]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, process, what):
    for _ in range(500):
        if process.poll() is not None:
            break
        with socket.socket() as s:
            if not s.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.02)
    raise RuntimeError(f"{what} does not come up at port {port}")


CHAT_PATH = "/v1/chat/completions"


def begin(port, path, body=None):
    """-> connection, answer to be read"""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if body is None:
        c.request("GET", path)
    else:
        c.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return c, c.getresponse()


def ask(port, path, body=None):
    """-> status, answer: JSON, or the text of what is none"""
    c, r = begin(port, path, body)
    try:
        text = r.read().decode()
    finally:
        c.close()
    return r.status, json.loads(text) if "json" in r.getheader("Content-Type", "") else text


def busy(replica):
    return bool(re.search(r"^linnet_slots_busy [1-9]", ask(replica.port, "/metrics")[1], re.M))


class Talk:
    """A conversation that is held at any port."""

    def __init__(self, first="Hello there", **fields):
        self.messages = [{"role": "user", "content": first}]
        self.fields = {"max_tokens": 12, "temperature": 0.9, "seed": 5, **fields}
        self.held = 0  # tokens of the timeline after the last answer

    def turn(self, port):
        """-> tokens that were not reused, beyond those of the turn itself"""
        status, a = ask(port, CHAT_PATH, {"messages": self.messages, **self.fields})
        assert status == 200, a
        usage = a["usage"]
        repeated = self.held - usage["prompt_tokens_details"]["cached_tokens"]
        self.held = usage["prompt_tokens"] + usage["completion_tokens"]
        self.messages += [a["choices"][0]["message"], {"role": "user", "content": f"And {len(self.messages)}?"}]
        return repeated


@unittest.skipIf(MISSING, f"{' and '.join(MISSING)} not installed: make test-clients does")
class Cluster(unittest.TestCase):
    """Starts the parts; the tests are below."""
    model, flags = CHAT, ("--ctx", "4096")

    def setUp(self):
        self.work = tempfile.TemporaryDirectory()
        self.addCleanup(self.work.cleanup)
        self.redis_port = free_port()
        self.redis = self.start_redis()
        self.replicas = [self.start_replica() for _ in range(2)]
        self.port = free_port()
        self.start_nginx()

    def end(self, process):
        if process.poll() is None:
            process.kill()
        process.wait()

    def start_redis(self):
        p = subprocess.Popen(["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "",
                              "--appendonly", "no", "--dir", self.work.name],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.end, p)
        wait_for(self.redis_port, p, "redis-server")
        return p

    def start_replica(self, *flags):
        s = Serving(self.model, "--redis", f"127.0.0.1:{self.redis_port}", *self.flags, *flags)
        self.addCleanup(s.__exit__)
        return s

    def start_nginx(self):
        """deploy/nginx.conf as it is, with this test's ports."""
        with open(os.path.join(ROOT, "deploy", "nginx.conf")) as f:
            site = f.read()
        for old, new in [("listen 80;", f"listen 127.0.0.1:{self.port};"),
                         ("server_name chat.example.org;", "server_name 127.0.0.1;"),
                         ("127.0.0.1:8081", f"127.0.0.1:{self.replicas[0].port}"),
                         ("127.0.0.1:8082", f"127.0.0.1:{self.replicas[1].port}")]:
            self.assertEqual(site.count(old), 1)
            site = site.replace(old, new)
        with open(os.path.join(self.work.name, "site.conf"), "w") as f:
            f.write(site)
        paths = "".join(f"{kind}_temp_path {self.work.name}/{kind}; "
                        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        with open(os.path.join(self.work.name, "nginx.conf"), "w") as f:
            # Beside it a site as Debian's nginx comes with one.
            f.write(f"daemon off; worker_processes 2; pid {self.work.name}/pid; error_log {self.work.name}/error;"
                    f"events {{}} http {{ access_log off; {paths} include {self.work.name}/site.conf; server {{"
                    f"listen 127.0.0.1:{self.port} default_server; server_name _; return 404; }} }}")
        p = subprocess.Popen([shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"), "-c",
                              f"{self.work.name}/nginx.conf", "-e", f"{self.work.name}/error"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (p.terminate(), p.wait()))
        wait_for(self.port, p, "nginx")


class Replicas(Cluster):
    def answered(self, replica):
        return len(re.findall(r" 200 POST /v1/chat/completions", replica.log()))

    def test_any_replica_goes_on(self):
        talk, alone = Talk(), Talk()
        for i in range(6):  # taking turns, also without nginx's choice
            self.assertEqual(talk.turn(self.replicas[i % 2].port), 0 if i == 0 else -1)
        for _ in range(6):
            self.assertEqual(talk.turn(self.port), -1)  # the end token of a cut answer is in place, too
        self.assertGreater(self.answered(self.replicas[0]), 3)
        self.assertGreater(self.answered(self.replicas[1]), 3)
        # What one server says that nothing interrupts.
        with Serving(self.model, *self.flags) as one:
            for _ in range(12):
                alone.turn(one.port)
        self.assertEqual(alone.messages, talk.messages)

    def test_one_is_killed(self):
        talks = [Talk(f"Conversation {i}") for i in range(4)]
        for talk in talks:
            talk.turn(self.port)
            talk.turn(self.port)
        self.replicas[0].process.send_signal(signal.SIGKILL)
        for talk in talks:
            self.assertEqual(talk.turn(self.port), -1)  # at the other, and nobody noticed
        self.replicas[1].process.send_signal(signal.SIGKILL)
        self.assertEqual(ask(self.port, CHAT_PATH, {"messages": talks[0].messages})[0], 502)

    def test_one_stops(self):
        self.assertEqual(self.replicas[0].stop(), 0)
        talk = Talk()
        talk.turn(self.port)
        self.assertEqual(talk.turn(self.port), -1)

    def test_redis_dies_and_comes_back(self):
        talk = Talk()
        talk.turn(self.replicas[0].port)
        self.end(self.redis)
        for i in range(4):
            self.assertEqual(talk.turn(self.replicas[0].port), -1)  # its own memory serves
        self.assertGreater(talk.turn(self.replicas[1].port), 0)  # the other tokenizes and computes anew
        for r in self.replicas:
            told = [line for line in r.log().splitlines() if "conversations go on without it" in line]
            self.assertIn(len(told), (1, 2), r.log())  # reading, writing
        self.redis = self.start_redis()
        for _ in range(100):  # it is left alone for 10 s at most
            talk.turn(self.replicas[1].port)
            if "works again" in self.replicas[1].log():
                break
            time.sleep(0.2)
        self.assertEqual(talk.turn(self.replicas[0].port), -1)

    def test_states_by_name_travel(self):
        talk = Talk(conversation="alice")
        talk.turn(self.replicas[0].port)
        status, saved = ask(self.replicas[0].port, "/v1/states/save", {"id": "alice", "to": "monday"})
        self.assertEqual(status, 200, saved)
        status, restored = ask(self.replicas[1].port, "/v1/states/restore", {"id": "monday", "to": "tuesday"})
        self.assertEqual(status, 200, restored)
        self.assertEqual((restored["bytes"], restored["tokens"]), (saved["bytes"], talk.held + 1))
        status, forked = ask(self.replicas[1].port, "/v1/states/fork", {"id": "tuesday", "to": "other"})
        self.assertEqual((status, forked["tokens"]), (200, talk.held + 1))
        for body, want in [({"id": "nobody", "to": "x"}, 404), ({"id": "../x", "to": "x"}, 400),
                           ({"id": "alice", "to": "/etc/x"}, 400), ({"id": 1, "to": "x"}, 400), ({}, 400),
                           ({"id": "a" * 129, "to": "x"}, 400)]:
            self.assertEqual(ask(self.replicas[1].port, "/v1/states/restore", body)[0], want, body)
        self.assertEqual(ask(self.replicas[1].port, "/v1/states/fork", {"id": "tuesday"})[0], 400)
        self.assertEqual(ask(self.replicas[1].port, "/v1/states/eat", {"id": "tuesday"})[0], 404)


class SlowReplicas(Cluster):
    """A model that talks for ever, slowly, and whose state does not grow; one slot, no queue."""
    flags = ("--slots", "1", "--max-queue", "0")

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = os.path.join(folder.name, "ticks.gguf")
        write(self.model, ["tick tock "], endless=True, mixer="delta_net", feed=8192)
        super().setUp()

    def stream(self, port, messages):
        """A stream whose first tokens have come -> connection, answer, what came"""
        c, r = begin(port, CHAT_PATH, {"messages": messages, "max_tokens": 5000, "stream": True, "temperature": 0})
        self.addCleanup(c.close)
        self.assertEqual(r.status, 200)
        self.assertIn("text/event-stream", r.getheader("Content-Type"))
        seen = b""
        while seen.count(b"tick") < 3:
            more = r.read1(4096)
            self.assertTrue(more, seen)
            seen += more
        return c, r, seen

    def test_killed_while_it_streams(self):
        talk = Talk("Start", temperature=0)
        talk.turn(self.port)
        _, r, seen = self.stream(self.port, talk.messages)
        at = [s for s in self.replicas if busy(s)]
        self.assertEqual(len(at), 1)
        at[0].process.send_signal(signal.SIGKILL)
        with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
            while True:
                more = r.read1(4096)
                seen += more
                if not more:  # the last chunk came: that would be a complete answer
                    break
        self.assertNotIn(b"[DONE]", seen)
        self.assertEqual(talk.turn(self.port), -1)  # again: nothing is computed twice

    def test_killed_before_it_says_anything(self):
        answers = []
        body = {"messages": [{"role": "user", "content": "Start"}], "max_tokens": 300, "temperature": 0}
        thread = threading.Thread(target=lambda: answers.append(ask(self.port, CHAT_PATH, body)))
        thread.start()
        at = []
        while not at:
            at = [s for s in self.replicas if busy(s)]
        at[0].process.send_signal(signal.SIGKILL)
        thread.join()
        self.assertEqual(answers[0][0], 200)  # nginx asked the other one
        self.assertEqual(answers[0][1]["usage"]["completion_tokens"], 300)

    def test_a_full_one_is_passed_over(self):
        c, _, _ = self.stream(self.replicas[0].port, [{"role": "user", "content": "Start"}])
        self.assertEqual(ask(self.replicas[0].port, CHAT_PATH, {"messages": Talk().messages})[0], 503)
        talk = Talk(temperature=0)
        talk.turn(self.port)
        for _ in range(3):
            self.assertEqual(talk.turn(self.port), -1)
        c.close()


if __name__ == "__main__":
    unittest.main()
