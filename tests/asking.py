"""HTTP for tests of the server: plain requests, streams, bytes as they are."""
import http.client
import json
import socket
import time


def ask(server, method, path, body=None, headers=None, timeout=60):
    """-> status, headers, the body (JSON if it is)"""
    c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        c.request(method, path, data, headers or {})
        answer = c.getresponse()
        text = answer.read()
    finally:
        c.close()
    is_json = (answer.getheader("Content-Type") or "").startswith("application/json")
    return answer.status, answer.headers, json.loads(text) if is_json and text else text.decode()


def post(server, path, body, **more):
    status, _, answer = ask(server, "POST", path, body, **more)
    if status != 200:
        raise AssertionError(f"{path}: {status} {answer}")
    return answer


def user(text):
    return [{"role": "user", "content": text}]


def chat(server, messages, **fields):
    messages = user(messages) if isinstance(messages, str) else messages
    return post(server, "/v1/chat/completions", {"messages": messages, **fields})


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


class Stream:
    """Server-sent events of a POST: iterate for the JSON of each; comments, done."""

    def __init__(self, server, path, body, timeout=60):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
        self.connection.request("POST", path, json.dumps({**body, "stream": True}).encode())
        self.answer = self.connection.getresponse()
        self.comments, self.done = [], False

    def __iter__(self):
        while line := self.answer.readline():
            line = line.decode().rstrip("\n")
            if line == "data: [DONE]":
                self.done = True
            elif line.startswith("data: "):
                yield json.loads(line[6:])
            elif line.startswith(":"):
                self.comments.append(line)
        self.close()

    def close(self):
        self.connection.sock and self.connection.sock.close()
        self.answer.close()
        self.connection.close()


def stream_text(chunks, index=0):
    """The text of a choice from the chunks of a chat's or a completion's stream."""
    out = ""
    for chunk in chunks:
        for c in chunk["choices"]:
            if c["index"] == index:
                out += c["delta"].get("content", "") if "delta" in c else c["text"]
    return out


def raw(server, data, timeout=10, half_close=False):
    """Bytes out, bytes in until the server closes; b"" if it says nothing."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as s:
        try:
            s.sendall(data)
            if half_close:
                s.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered and closed already
        out = b""
        try:
            while piece := s.recv(65536):
                out += piece
        except ConnectionResetError:
            pass
        return out


def split(answer):
    """Bytes of one answer -> status, headers by lower-case name, body"""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def metrics(server):
    out = {}
    for line in ask(server, "GET", "/metrics")[2].splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            out[name] = float(value)
    return out


def wait_until(condition, seconds=10):
    """-> seconds it took"""
    start = time.time()
    while not condition():
        if time.time() - start > seconds:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.01)
    return time.time() - start
