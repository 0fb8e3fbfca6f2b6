#!/usr/bin/env python3
"""What a turn of a chat costs once the conversation is long: linnet serve and llama-server in turns.

    bench/turns.py [flags] MODEL.gguf...        rounds of all scenarios, then their table
    bench/turns.py --table FILE                 only the table of what FILE holds
    bench/turns.py --vocabulary FROM.gguf RANDOM.gguf OUT.gguf
                                                gives a file of build/bench/random_model a tokenizer

Scenarios: `turns` (ten turns; the first asks about a long text), `edited` (the last turn again, with
another question), `back` (a new question after turn 1), `four` (four conversations taking turns, one
slot), `restart` (the conversation goes on in a new process: linnet --cache-dir, llama-server's slot
saved and restored by its API). A turn's row: tokens of the prompt, tokens that were computed, time to
the first token. Answers are greedy and, with --force-token, that token alone, so that a model with
random weights says what both can tokenize again. Standard library alone (--vocabulary: gguf)."""
import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FIRST_TOKENS, ANSWER_TOKENS, TURNS = 3700, 32, 10
QUESTIONS = ["Who speaks in this passage, and of what? Name the people and the place, in one sentence.",
             "Now say the same as a child would say it to a friend on the way home from school.",
             "Which of its words would a reader of today find strange? Give two and explain them shortly.",
             "What happens just before the end? Quote a few words if you can, then say what they mean.",
             "Compare the first paragraph with the last one: what has changed between the two?"]
OTHER = "Forget that question. How many people are named, and which of them is the oldest, do you think?"


class TurnsError(Exception):
    pass


# ---- Servers --------------------------------------------------------------------------------

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server process and its chat API."""

    def __init__(self, args, kind, model, folder):
        self.kind, self.port = kind, free_port()
        if kind == "linnet":
            command = [args.linnet, "serve", model, "--port", str(self.port), "-t", str(args.threads),
                       "--slots", "1", "--ctx", str(args.ctx), "--backend", "cpu", "--cache-dir", folder]
        else:
            command = [args.llama_server, "-m", model, "--port", str(self.port), "-t", str(args.threads),
                       "-np", "1", "-c", str(args.ctx), "--no-webui", "--slot-save-path", folder]
        self.log = open(os.path.join(folder, f"{kind}.log"), "a")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        end = time.time() + 120
        while True:
            try:
                if self.call("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.time() > end:
                self.stop()
                with open(self.log.name) as f:
                    last = (f.read().strip().splitlines() or ["nothing in its log"])[-1]
                raise TurnsError(f"{' '.join(command)}: does not answer: {last}")
            time.sleep(0.05)

    def call(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            c.request(method, path, json.dumps(body) if body is not None else None,
                      {"Content-Type": "application/json"})
            r = c.getresponse()
            return r.status, r.read()
        finally:
            c.close()

    def chat(self, messages, args):
        """-> (answer, prompt tokens, of them computed, seconds to the first token)"""
        body = {"messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}
        if args.force_token is not None:
            body["logit_bias"] = {str(args.force_token): 100}
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start = time.perf_counter()
        c.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        r = c.getresponse()
        if r.status != 200:
            raise TurnsError(f"{self.kind}: {r.status}: {r.read()[:300].decode(errors='replace')}")
        text, first, usage = "", None, None
        for line in r:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            data = json.loads(line[6:])
            for choice in data.get("choices", []):
                piece = choice.get("delta", {}).get("content")
                if piece:
                    first = first or time.perf_counter() - start
                    text += piece
            usage = data.get("usage") or usage
        c.close()
        if not usage or first is None:
            raise TurnsError(f"{self.kind}: the stream ended without text or usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return text, usage["prompt_tokens"], usage["prompt_tokens"] - cached, first

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS"))

    def slot(self, action, name):
        status, body = self.call("POST", f"/slots/0?action={action}", {"filename": name})
        if status != 200:
            raise TurnsError(f"llama-server: slot {action}: {status}: {body[:200]}")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


# ---- Scenarios --------------------------------------------------------------------------------

class Talk:
    """A conversation with a server."""

    def __init__(self, args, first):
        self.args, self.messages = args, [{"role": "user", "content": first}]

    def turn(self, server, question=None):
        if question:
            self.messages.append({"role": "user", "content": question})
        answer, total, computed, ttft = server.chat(self.messages, self.args)
        self.messages.append({"role": "assistant", "content": answer})
        return {"prompt": total, "computed": computed, "ttft": ttft}


def passage(args, number, tokens):
    """About so many tokens of the book: the first text of conversation `number`."""
    n = int(tokens * 3.7)
    text = args.book[number * 12000:][:n]
    return f"Read this.\n\n{text}\n\n{QUESTIONS[0]}"


def scenario(args, name, kind, model, folder):
    rows = []

    def note(turn, row, server):
        row.update(scenario=name, turn=turn, rss=server.rss())
        rows.append(row)

    server = Server(args, kind, model, folder)
    try:
        if name == "four":
            talks = [Talk(args, passage(args, i, 1500)) for i in range(4)]
            for turn in range(3):
                for t in talks:
                    note(turn + 1, t.turn(server, QUESTIONS[turn + 1] if turn else None), server)
            return rows
        talk = Talk(args, passage(args, 0, FIRST_TOKENS))
        turns = TURNS if name == "turns" else 5
        for turn in range(turns):
            row = talk.turn(server, QUESTIONS[turn % len(QUESTIONS)] if turn else None)
            if name == "turns":
                note(turn + 1, row, server)
        if name == "edited":
            talk.messages = talk.messages[:-2]
            note(turns, talk.turn(server, OTHER), server)
        elif name == "back":
            talk.messages = talk.messages[:2]
            note(2, talk.turn(server, OTHER), server)
        elif name == "restart":
            if kind == "llama":
                server.slot("save", "conversation.bin")
            server.stop()
            server = Server(args, kind, model, folder)
            if kind == "llama":
                server.slot("restore", "conversation.bin")
            note(turns + 1, talk.turn(server, OTHER), server)
        return rows
    finally:
        server.stop()


def read_rows(path):
    rows = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                r = json.loads(line)
                rows.append({k: r[k] for k in ("model", "who", "round", "scenario", "turn", "prompt", "computed", "ttft")})
            except (ValueError, KeyError, TypeError):
                raise TurnsError(f"{path}: line {number} is no row of turns.py")
    return rows


def measure(args):
    done = set()
    if os.path.exists(args.out):
        done = {(r["model"], r["scenario"], r["who"], r["round"]) for r in read_rows(args.out)}
    whos = ["linnet"] + (["llama"] if args.llama_server else [])
    for number in range(args.rounds):
        for model in args.model:
            for name in args.scenarios.split():
                for who in whos if number % 2 == 0 else reversed(whos):
                    if (model, name, who, number) in done:
                        continue
                    folder = tempfile.mkdtemp(prefix="turns-")
                    try:
                        rows = scenario(args, name, who, model, folder)
                    finally:
                        shutil.rmtree(folder)
                    with open(args.out, "a") as f:
                        for r in rows:
                            f.write(json.dumps({"model": model, "who": who, "round": number, **r}) + "\n")
                    print(f"round {number + 1}: {os.path.basename(model)}, {name}, {who}: "
                          f"{rows[-1]['computed']} of {rows[-1]['prompt']} computed, "
                          f"{1000 * rows[-1]['ttft']:.0f} ms", file=sys.stderr)


# ---- The table --------------------------------------------------------------------------------

def cell(rows):
    if not rows:
        return "-"
    computed = sorted({r["computed"] for r in rows})
    span = f"{computed[0]}" if len(computed) == 1 else f"{computed[0]}-{computed[-1]}"
    return f"{span} of {rows[-1]['prompt']}, {1000 * statistics.median(r['ttft'] for r in rows):.0f} ms"


def table(rows):
    out = []
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == model]
        out += [f"**{os.path.basename(model)}**: tokens computed of the prompt's, median time to the first token", "",
                "| | linnet | llama-server | time |", "|---|---|---|---|"]
        for name in dict.fromkeys(r["scenario"] for r in mine):
            kinds = [("", lambda r: True)] if name not in ("turns", "four") else \
                [(", first turn", lambda r: r["turn"] == 1), (", later turns", lambda r: r["turn"] > 1)]
            for label, wanted in kinds:
                some = {who: [r for r in mine if r["scenario"] == name and r["who"] == who and wanted(r)]
                        for who in ("linnet", "llama")}
                ratio = "-"
                if some["linnet"] and some["llama"]:
                    a, b = (statistics.median(r["ttft"] for r in some[w]) for w in ("linnet", "llama"))
                    ratio = f"{a / b:.2f}"
                out.append(f"| {name}{label} | {cell(some['linnet'])} | {cell(some['llama'])} | {ratio} |")
        out.append("")
    return "\n".join(out)


# ---- A tokenizer for a random model -------------------------------------------------------------

def add_vocabulary(source, random, out):
    import gguf
    have, shape = gguf.GGUFReader(source), gguf.GGUFReader(random)
    arch = shape.fields["general.architecture"].contents()
    w = gguf.GGUFWriter(out, arch)
    fields = [(k, f) for k, f in shape.fields.items() if not k.startswith(("GGUF.", "general.architecture", "tokenizer."))]
    fields += [(k, f) for k, f in have.fields.items() if k.startswith("tokenizer.")]
    for key, f in fields:
        sub = f.types[1] if f.types[0] == gguf.GGUFValueType.ARRAY else None
        w.add_key_value(key, f.contents(), f.types[0], sub)
    for t in shape.tensors:
        w.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="*")
    p.add_argument("--linnet", default=os.path.join(HERE, "..", "linnet"))
    p.add_argument("--llama-server", help="its program; without it linnet alone")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--ctx", type=int, default=8192)
    p.add_argument("--scenarios", default="turns edited back four restart")
    p.add_argument("--force-token", type=int, help="answers consist of this token")
    p.add_argument("--out", default="turns.jsonl", help="where rows go; goes on where it was cut off")
    p.add_argument("--table", metavar="FILE")
    p.add_argument("--vocabulary", action="store_true")
    args = p.parse_args()
    try:
        if args.vocabulary:
            if len(args.model) != 3:
                raise TurnsError("--vocabulary: expected FROM.gguf RANDOM.gguf OUT.gguf")
            return add_vocabulary(*args.model)
        if not args.table:
            if not args.model:
                p.error("expected a model file")
            with open(os.path.join(HERE, "..", "data", "haystack.txt")) as f:
                args.book = f.read()
            measure(args)
        print(table(read_rows(args.table or args.out)))
    except (TurnsError, OSError) as e:
        sys.exit(f"turns.py: {e}")


if __name__ == "__main__":
    main()
