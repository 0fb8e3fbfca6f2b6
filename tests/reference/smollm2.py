#!/usr/bin/env python3
"""Compares linnet with PyTorch on a real Llama-type GGUF (SmolLM2-135M-Instruct).

    python3 tests/reference/smollm2.py MODEL.gguf [--cache FOLDER] [--text FILE] [--linnet ./linnet]
                                       [--only exact|auto|q8|greedy|perplexity] [--prefill]

The reference is transformers' float32 forward on the weights as the gguf package dequantizes them.
Checked, on prompts of all kinds (chat, code, French, emoji, 600 tokens):
  exact        max |difference| of all logits <= 1e-3, in one prefill, in chunks of 7, token by token
  auto         KL(reference || linnet) <= 1e-2 at every position
  greedy       64 tokens of `run --temp 0` equal the reference's, but for near-ties
  perplexity   of --text: exact within 0.01 %, auto within 0.3 % of the reference
--cache keeps the reference's answers (they depend on the model file alone); --prefill only fills it.
Exit status 0 only if every check passed. `q8` is printed for comparison and has no limit.
"""
import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

CHAT = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")
WINDS = ["a northerly wind", "hardly any wind", "a storm from the west", "fog until noon"]
SEEN = ["two herring boats", "a steamer bound for Oslo", "eleven gulls", "a whale far out", "no ship"]
DONE = ["oiled the lamp", "painted the stairs", "mended the radio", "baked bread", "wrote a letter"]
LONG = "The lighthouse keeper wrote in his book every evening.\n" + "".join(
    f"March {d}: {WINDS[d * 3 % 4]}, {SEEN[d * 2 % 5]}. I {DONE[d * 4 % 5]} and "
    f"{DONE[(d * 3 + 1) % 5]}; the sea stood at {d * 37 % 101 / 10} feet.\n" for d in range(1, 32))
PROMPTS = {
    "chat": CHAT.format("What is the capital of France, and why is it famous?"),
    "chat_list": CHAT.format("List three uses of a paper clip."),
    "code": "def quicksort(items):\n    \"\"\"Sort a list.\"\"\"\n    if len(items) <= 1:\n        "
            "return items\n    pivot = items[0]\n",
    "french": "Il était une fois, dans un petit village de Bretagne, une vieille dame qui",
    "emoji": "Best breakfast ever 🥐☕️👩‍🍳! Tomorrow we go to 🇯🇵 and then",
    "story": "Once upon a time",
    "table": "| name | 2019 | 2020 |\n|---|---|---|\n| apples | 12 | 15 |\n| pears | 7 |",
    "one_token": "The",
    "long": LONG,
}
MAX_LONG = 600
GREEDY = 64
NEAR_TIE = 2e-3
CTX = 512


class Reference:
    def __init__(self, path, cache):
        self.path, self.cache, self.model = path, cache, None
        with open(path, "rb") as f:
            self.digest = hashlib.sha256(f.read()).hexdigest()[:16]

    def load(self):
        if self.model is None:
            import llama_gguf
            self.model = llama_gguf.load(self.path)
        return self.model

    def cached(self, name, compute):
        path = self.cache and os.path.join(self.cache, f"{self.digest}-{name}.npy")
        if path and os.path.exists(path):
            return np.load(path)
        value = compute()
        if path:
            np.save(path + ".part.npy", value)
            os.replace(path + ".part.npy", path)
        return value

    def logits(self, name, ids):
        def compute():
            import torch
            with torch.no_grad():
                return self.load()(torch.tensor([ids])).logits[0].numpy()
        key = hashlib.sha256(repr(ids).encode()).hexdigest()[:8]
        return self.cached(f"{name}-{key}", compute)

    def greedy(self, name, ids):
        """[GREEDY, 2]: the token and how far it was ahead of the second."""
        def compute():
            import torch
            model, out, past, feed = self.load(), [], None, torch.tensor([ids])
            for _ in range(GREEDY):
                with torch.no_grad():
                    r = model(feed, past_key_values=past, use_cache=True)
                past, last = r.past_key_values, r.logits[0, -1]
                best = torch.topk(last, 2)
                out.append((int(best.indices[0]), float(best.values[0] - best.values[1])))
                feed = best.indices[:1].view(1, 1)
            return np.array(out)
        key = hashlib.sha256(repr(ids).encode()).hexdigest()[:8]
        return self.cached(f"greedy-{name}-{key}", compute)

    def perplexity(self, ids):
        """Windows of CTX ids in order, a last shorter one if it has 2 or more; all positions but a
        window's first are scored. -> sum of -log p, number scored"""
        def compute():
            import torch
            total, n = 0.0, 0
            for at in range(0, len(ids), CTX):
                window = ids[at:at + CTX]
                if len(window) < 2:
                    break
                with torch.no_grad():
                    logits = self.load()(torch.tensor([window])).logits[0, :-1].double()
                p = torch.log_softmax(logits, -1)
                total -= float(p[torch.arange(len(window) - 1), torch.tensor(window[1:])].sum())
                n += len(window) - 1
            return np.array([total, n])
        key = hashlib.sha256(repr(ids).encode()).hexdigest()[:8]
        total, n = self.cached(f"perplexity-{key}", compute)
        return float(np.exp(total / n)), int(n)


class Tokens:
    """Byte-level BPE as the file says, by the tokenizers package, special tokens parsed."""

    def __init__(self, path):
        from gguf import GGUFReader
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        fields = GGUFReader(path).fields
        get = lambda k: fields["tokenizer.ggml." + k].contents()
        assert get("model") == "gpt2" and get("pre") == "smollm", "made for SmolLM's tokenizer"
        tokens, types = get("tokens"), get("token_type")
        self.bpe = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)},
                                        [tuple(m.split(" ")) for m in get("merges")]))
        self.bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self.bpe.decoder = decoders.ByteLevel()
        self.bpe.add_special_tokens([AddedToken(t, normalized=False)
                                     for t, k in zip(tokens, types) if k == 3])

    def encode(self, text):
        return self.bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.bpe.decode(ids, skip_special_tokens=True)


def linnet(args, *command):
    r = subprocess.run([args.linnet, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if r.returncode:
        sys.exit(f"{' '.join(command)}: exit {r.returncode}: {r.stderr.decode(errors='replace')}")
    return r.stdout


def linnet_logits(args, ids, *flags):
    with tempfile.TemporaryDirectory() as d:
        with open(f"{d}/ids", "w") as f:
            f.write(" ".join(map(str, ids)))
        linnet(args, "logits", args.model, "--ids", f"{d}/ids", "-o", f"{d}/out.npy", *flags)
        return np.load(f"{d}/out.npy")


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(reference, ours):
    p, q = log_softmax(reference), log_softmax(ours)
    return (np.exp(p) * (p - q)).sum(-1)


class Checks:
    def __init__(self):
        self.failed = 0

    def line(self, ok, text):
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def check_logits(args, ref, checks, name, ids):
    want = ref.logits(name, ids)
    if args.prefill:
        return
    if "exact" in args.only:
        for how, flags in (("prefill", ()), ("chunk 7", ("--chunk", "7")), ("chunk 1", ("--chunk", "1"))):
            got = linnet_logits(args, ids, "--activations", "exact", *flags)
            diff = np.abs(got - want).max() if got.shape == want.shape else np.inf
            checks.line(diff <= 1e-3, f"exact {name:10s} T {len(ids):3d} {how:8s} max|diff| {diff:.2e}")
    for mode in ("auto", "q8"):
        if mode in args.only:
            got = linnet_logits(args, ids, "--activations", mode)
            d = kl(want, got)
            checks.line(mode != "auto" or d.max() <= 1e-2,
                        f"{mode:5s} {name:10s} T {len(ids):3d} KL max {d.max():.2e} median "
                        f"{np.median(d):.2e} last {d[-1]:.2e}")


def check_greedy(args, ref, checks, tokens, name, text, ids):
    want = ref.greedy(name, ids)
    if args.prefill:
        return
    stop = [i for i, t in enumerate(want[:, 0]) if int(t) in (0, 2)]
    n = stop[0] if stop else GREEDY
    got = linnet(args, "run", args.model, "-p", text, "--parse-special", "-n", str(GREEDY), "--temp",
                 "0", "--activations", "exact").decode("utf-8", "replace")
    expected = tokens.decode([int(t) for t in want[:n, 0]])
    got, expected = got.rstrip("\n"), expected.rstrip("\n")
    # the first near-tie ends what can be expected
    ties = np.flatnonzero(want[:n, 1] < NEAR_TIE)
    sure = tokens.decode([int(t) for t in want[:ties[0], 0]]) if len(ties) else expected
    ok = got == expected or (len(ties) > 0 and got.startswith(sure.rstrip("\ufffd")))
    checks.line(ok, f"greedy {name:10s} {n} tokens, smallest lead {want[:n, 1].min():.3f}" +
                ("" if ok else f"\n   reference {expected!r}\n   linnet    {got!r}"))


def check_perplexity(args, ref, checks, tokens):
    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read()[:args.chars]
    want, n = ref.perplexity(tokens.encode(text))
    print(f"     perplexity of the reference {want:.4f} ({n} scored)")
    if args.prefill:
        return
    for mode, limit in (("exact", 1e-4), ("auto", 3e-3), ("q8", np.inf)):
        out = linnet(args, "perplexity", args.model, args.text, "--ctx", str(CTX), "--chars",
                     str(args.chars), "--activations", mode).decode()
        m = re.search(r"perplexity ([0-9.]+) \+- ([0-9.]+) \((\d+) scored\)", out)
        got, scored = (float(m[1]), int(m[3])) if m else (np.nan, 0)
        off = got / want - 1
        checks.line(abs(off) <= limit and scored == n,
                    f"perplexity {mode:5s} {got:.4f} ({scored} scored), {off:+.4%} from the reference")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--cache", help="folder for the reference's answers")
    p.add_argument("--text", help="a UTF-8 text for the perplexity")
    p.add_argument("--chars", type=int, default=20000, help="how much of it (20000)")
    p.add_argument("--linnet", default="./linnet")
    p.add_argument("--only", action="append", choices=("exact", "auto", "q8", "greedy", "perplexity"))
    p.add_argument("--prompt", action="append", choices=sorted(PROMPTS), help="only these prompts")
    p.add_argument("--prefill", action="store_true", help="only fill the cache")
    args = p.parse_args()
    args.only = args.only or ["exact", "auto", "q8", "greedy", "perplexity"]
    if args.cache:
        os.makedirs(args.cache, exist_ok=True)
    ref, tokens, checks = Reference(args.model, args.cache), Tokens(args.model), Checks()
    for name, text in PROMPTS.items():
        if args.prompt and name not in args.prompt:
            continue
        ids = tokens.encode(text)[:MAX_LONG]
        check_logits(args, ref, checks, name, ids)
        if "greedy" in args.only and name != "long":
            check_greedy(args, ref, checks, tokens, name, text, ids)
    if args.text and "perplexity" in args.only:
        check_perplexity(args, ref, checks, tokens)
    print("filled" if args.prefill else f"{checks.failed} checks failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
