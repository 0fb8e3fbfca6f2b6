"""Conversations, many after each other and many at once: python3 -m tests.soak_serve [--sequential 1000] [--concurrent 200]

Each has four codewords: pairs of ids of which the first recalls the second (docs/mqar.md, on models/). A turn shows a
key and reads a value from the model's answer, so what comes back comes from the conversation's own state. No value is
in two conversations that run at the same time; every answer has to be the one that the conversation gets alone, bit
for bit by its logprob, and never somebody else's codeword. Memory and descriptors have to stay where they were."""
import argparse
import concurrent.futures
import http.client
import json
import os
import random
import sys
import time

from tests.serving import ROOT, Serving

MODELS = ("mqar-softmax-d64", "mqar-swa-d64-w32", "mqar-delta-d64-h4", "mqar-hedgehog-d64-f64", "mqar-based-d64-f16")
PAIRS, VALUES = 4, 4096


class Conversation:
    def __init__(self, number, of):
        self.rng = random.Random(number)
        step = (8192 - VALUES) // PAIRS // of  # values of its own among `of` conversations
        mine = range(VALUES + number % of * step * PAIRS, VALUES + (number % of + 1) * step * PAIRS)
        self.pairs = list(zip(self.rng.sample(range(1, VALUES), PAIRS), self.rng.sample(mine, PAIRS)))
        self.prompt = [i for pair in self.pairs for i in pair]

    def run(self, port, pause=0.0):
        """-> [(token, logprob), ...], tokens of prompts, of them computed"""
        answers, n, computed = [], 0, 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        prompt = list(self.prompt)
        for key, value in self.rng.sample(self.pairs, PAIRS):
            prompt.append(key)
            connection.request("POST", "/v1/completions", json.dumps(
                {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 0}))
            answer = connection.getresponse()
            body = json.loads(answer.read())
            assert answer.status == 200, body
            made = body["choices"][0]["logprobs"]
            answers.append((int(made["tokens"][0].removeprefix("token_id:")), made["token_logprobs"][0], value))
            prompt.append(value)
            usage = body["usage"]
            n += usage["prompt_tokens"]
            computed += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
            time.sleep(pause * self.rng.random())
        connection.close()
        return answers, n, computed


def footprint(server):
    """Resident bytes, open descriptors"""
    time.sleep(0.3)  # for the last connection to be closed
    pid = server.process.pid
    with open(f"/proc/{pid}/statm") as f:
        pages = int(f.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


def judge(numbers, of, alone, got):
    """-> share of right codewords; fails at a wrong text"""
    right = 0
    for number, answers in zip(numbers, got):
        own = {v for _, v in Conversation(number, of).pairs}
        for (token, logprob, value), (token_alone, logprob_alone, _) in zip(answers, alone[number]):
            assert token in own or token == token_alone, f"conversation {number}: {token} is not of it"
            assert (token, logprob) == (token_alone, logprob_alone), \
                f"conversation {number}: {token} ({logprob}), alone {token_alone} ({logprob_alone})"
            right += token == value
    return right / (PAIRS * len(numbers))


def soak(model, sequential, concurrent, slots=8):
    path = os.path.join(ROOT, "models", model + ".gguf")
    # Alone: a slot, and no snapshot is kept long enough to be found again.
    with Serving(path, "--slots", "1", "--cache-bytes", "1") as s:
        alone = {i: Conversation(i, concurrent).run(s.port)[0] for i in range(concurrent)}
    with Serving(path, "--slots", str(slots), "--max-queue", str(concurrent), "--max-connections", str(concurrent + 20),
                 "--cache-bytes", "8M") as s:
        n = computed = 0
        got, marks = [], []
        for i in range(sequential):
            answers, tokens, fed = Conversation(i % concurrent, concurrent).run(s.port)
            n, computed = n + tokens, computed + fed
            got.append(answers)
            if i in (sequential // 2, sequential - 1):
                marks.append(footprint(s))
        share = judge([i % concurrent for i in range(sequential)], concurrent, alone, got)
        start = time.time()
        with concurrent_pool(concurrent) as pool:
            results = list(pool.map(lambda i: Conversation(i, concurrent).run(s.port, 0.2), range(concurrent)))
        judge(range(concurrent), concurrent, alone, [r[0] for r in results])
        seconds = time.time() - start
        with concurrent_pool(concurrent) as pool:  # once more: what the first time costs is paid
            list(pool.map(lambda i: Conversation(i, concurrent).run(s.port), range(concurrent)))
        marks.append(footprint(s))
        status = s.stop()
    assert status == 0, status
    (rss, fds), (rss_later, fds_later), (_, fds_last) = marks
    if sequential >= 500:  # until then the cache may still fill up
        assert rss_later <= rss * 1.05 + (1 << 20), f"memory grew from {rss} to {rss_later} bytes"
    assert fds_later == fds, f"descriptors grew from {fds} to {fds_later}"
    assert fds_last <= fds + 2, f"descriptors after the rush: {fds_last}, before {fds}"
    return (f"{model}: {sequential} after each other, {concurrent} at once in {seconds:.1f} s: {share:.1%} codewords right, none "
            f"of another's; {computed / n:.1%} of the prompts' tokens computed; {rss_later >> 20} MB, {fds_later} descriptors")


def concurrent_pool(n):
    return concurrent.futures.ThreadPoolExecutor(n)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sequential", type=int, default=1000)
    p.add_argument("--concurrent", type=int, default=200)
    p.add_argument("models", nargs="*", default=MODELS)
    o = p.parse_args()
    for model in o.models:
        print(soak(model, o.sequential, o.concurrent), flush=True)


if __name__ == "__main__":
    sys.exit(main())
