"""jsonl prompts of `linnet recall`, presets jrt and jrt-twice, against the rules written again:
python3 -m unittest tests.test_recall (needs a built linnet; nothing else).

The rules are docs/recall.md's, on documents made of what strips, cuts and repeats go wrong on. Tokens
of the model here are bytes, so that windows are counted in bytes."""
import json
import os
import random
import re
import subprocess
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINNET = os.environ.get("LINNET", os.path.join(ROOT, "linnet"))
MODEL = os.path.join(ROOT, "tests", "data", "cli", "chat.gguf")
SUMMARY = "Summary of information above..."
PIECES = ["alpha", "Beta", " ", " ", "\n", ".", ". ", "key:", "Maker:", "maker", "  ", "é", "x1", "\t"]


def words(rng, n):
    return "".join(rng.choice(PIECES) for _ in range(n))


def document(rng, i):
    kind, key, value = rng.choice(["swde", "fda", "squad", "qa"]), rng.choice(["maker", "Key", "name of x"]), f"V{i:04d}"
    text = words(rng, rng.randint(0, 60)) + " " + value + words(rng, rng.randint(0, 60))
    if kind == "swde":
        return kind, {"text": f"{text}\n\n{SUMMARY}\nyear: 1\n{key}:", "key": key, "value": value}
    if kind == "fda":
        return kind, {"text": text + rng.choice(["", key + ":", 2 * (key + ":"), key.upper() + ":"]), "key": key, "value": value}
    if kind == "squad":
        return kind, {"text": "  " + text, "context": words(rng, 9) + rng.choice(["Question: q", ""]), "question": "Who?",
                      "value": value}
    return kind, {"context": text + rng.choice(["", " Q now:"]), "question": " Q now: ", "orig_question": "Orig:",
                  "answers": [value, "zz"], "tok_pos": 3}


def cut(text, answers, window):
    text, places = text.strip(), []
    for answer in answers:
        match = re.search(re.escape(answer), text, re.IGNORECASE)
        places += [match.start()] if match else []
    tokens, at = text.encode(), len(text[:min(places)].encode())
    start = max(0, at - window // 2)
    return tokens[start:min(len(tokens), at + window - (at - start))].decode(errors="replace")


def drop_end(text, end):
    while text.lower().endswith(end.lower()):
        text = text[:-len(end)]
    return text


def prompt(kind, d, twice, window):
    if kind in ("swde", "fda"):
        text = drop_end(cut(d["text"].split(SUMMARY)[0], [d["key"], d["value"]], window), d["key"] + ":")
        key = d["key"][0].upper() + d["key"][1:]
        if kind == "fda":
            text = text.strip("\n").strip(".")
        else:
            text = text.strip("\n").strip(".").strip() if twice else text.strip().strip(".")
        text += "" if text.endswith(".") else "."
        return f"Information about {key}. {text}\n{text} {key}:" if twice else f"{text} {key}:"
    if kind == "squad":
        text = cut(d["text"], [d["value"]], window).strip()
        return f"{d['question']} {d['context'].split('Question:')[0]}\n{text}" if twice else text
    question = d["question"].strip()
    text = drop_end(cut(d["context"], d["answers"][:1], window).strip(), question).strip().strip(".")
    if not twice:
        return f"{text}. {question}"
    text = text.strip() + "."
    return f"{d['orig_question'].strip(':')} {text}\n{text} {question}"


class Prompts(unittest.TestCase):
    def check(self, twice, window):
        rng = random.Random(window + twice)
        documents = [document(rng, i) for i in range(80)]
        with tempfile.TemporaryDirectory() as folder:
            source, dump = os.path.join(folder, "in.jsonl"), os.path.join(folder, "dump.jsonl")
            with open(source, "w", encoding="utf-8") as f:
                f.writelines(json.dumps(d) + "\n" for _, d in documents)
            subprocess.run([LINNET, "recall", "-m", MODEL, "--task", "jsonl:" + source, "--preset",
                            "jrt-twice" if twice else "jrt", "--max-ctx", str(window + 50), "--ctx", "20000", "--dump", dump,
                            "--quiet", "-t", "1"], check=True, stdout=subprocess.DEVNULL)
            with open(dump, encoding="utf-8") as f:
                found = [json.loads(line)["prompt"] for line in f]
        self.assertEqual(len(found), len(documents))
        for (kind, d), text in zip(documents, found):
            self.assertEqual(text, prompt(kind, d, twice, window), d)

    def test_jrt(self):
        for window in (30, 101, 5000):
            self.check(False, window)

    def test_jrt_twice(self):
        for window in (30, 101, 5000):
            self.check(True, window)


if __name__ == "__main__":
    unittest.main()
