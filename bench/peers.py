#!/usr/bin/env python3
"""linnet and llama.cpp on the same files, in turns: rounds of measurements and their table.

    bench/peers.sh [flags] MODEL.gguf...      builds llama.cpp first if need be; README.md has more
    python3 bench/peers.py --table FILE       only the table of what FILE holds

Tests are words: tg128 (128 steps of one token), pp512 (a prompt), tg32@8192 (with 8192 tokens
before), batch32 (32 sequences with a prompt of 128 each, 64 steps: the steps are timed). Every
measurement is a process of its own and a line in --out; the same command with the same --out goes
on where it was cut off. Standard library alone."""
import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys

BATCH_PROMPT, BATCH_STEPS = 128, 64
NOT_LOADED = ("failed to load model", "unable to load model")


class PeersError(Exception):
    pass


# ---- One measurement each ---------------------------------------------------------------------

class Test:
    """kind pp, tg or batch; n tokens (batch: sequences); depth tokens before."""

    def __init__(self, word):
        m = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:@(\d+))?|batch([1-9]\d*)", word)
        if not m:
            raise PeersError(f"test '{word}': expected a word like tg128, tg32@8192, pp512 or batch32")
        self.word, self.kind = word, m[1] or "batch"
        self.n, self.depth = int(m[2] or m[4]), int(m[3] or 0)
        self.decodes = self.kind != "pp"

    def __str__(self):
        depth = f" at depth {self.depth}" if self.depth or self.kind == "tg" else ""
        return {"pp": f"prefill, {self.n} tokens", "tg": f"decode, {self.n} tokens",
                "batch": f"decode, {self.n} sequences"}[self.kind] + depth


def output_of(command):
    try:
        r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as e:
        raise PeersError(f"{command[0]}: {e.strerror}")
    if r.returncode and any(s in r.stderr + r.stdout for s in NOT_LOADED):
        return None
    if r.returncode:
        last = (r.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise PeersError(f"{' '.join(command)}: exit {r.returncode}: {last}")
    return r.stdout


def linnet(args, model, test, threads):
    p, n, d, b = {"pp": (test.n, 0, test.depth, 1), "tg": (0, test.n, test.depth, 1),
                  "batch": (0, BATCH_STEPS, BATCH_PROMPT, test.n)}[test.kind]
    out = output_of([args.linnet, "bench", "-m", model, "-p", str(p), "-n", str(n), "-d", str(d), "-b", str(b),
                     "-t", str(threads), "-r", "1", "-o", "json", "--no-pin", "--quiet"])
    row = json.loads(out or "[{}]")[0]
    if row.get("median_ts") is None:
        raise PeersError(f"linnet bench of {model}, {test.word}: {row.get('error') or 'no result'}")
    return row["median_ts"], row


def llama(args, model, test, threads):
    if test.kind == "batch":
        # It may lose what it prints last (its log is a thread), so a single sequence comes after.
        out = output_of([args.llama_batched_bench, "-m", model, "-npp", str(BATCH_PROMPT), "-ntg", str(BATCH_STEPS),
                         "-npl", f"{test.n},1", "-c", str(256 * test.n), "-t", str(threads), "-tb", str(threads),
                         "--output-format", "jsonl"])
        rows = [json.loads(line) for line in (out or "").splitlines() if line.startswith("{")]
        speed = rows and rows[0]["pl"] == test.n and rows[0]["speed_tg"]
    else:
        p, n = (test.n, 0) if test.kind == "pp" else (0, test.n)
        out = output_of([args.llama_bench, "-m", model, "-p", str(p), "-n", str(n), "-d", str(test.depth),
                         "-t", str(threads), "-r", "1", "-o", "json"])
        rows = json.loads(out or "[]")
        speed = rows and rows[0]["avg_ts"]
    if out is None:
        return None, {"error": "llama.cpp does not load it"}
    if not speed:
        raise PeersError(f"llama.cpp gave no result for {model}, {test.word}")
    return speed, rows[0]


def probe(args, model, test, threads):
    row = json.loads(output_of([args.bandwidth, str(threads), str(args.probe_mb)]))
    return row["gb_per_s"], row


# ---- Rounds, and the file that remembers them --------------------------------------------------

def read_samples(path):
    """-> setup or None, samples. A last line that was cut off is left out, here and in the file."""
    setup, samples, end = None, [], 0
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                if not line.endswith(b"\n"):
                    break
                s = json.loads(line)
                if s["who"] == "setup":
                    setup = s
                else:
                    samples.append({k: s[k] for k in ("who", "model", "test", "threads", "round", "value", "row")})
            except (ValueError, KeyError, TypeError):
                raise PeersError(f"{path}: line {number} is no measurement of peers.py")
            end += len(line)
    if os.path.getsize(path) > end:
        os.truncate(path, end)
    return setup, samples


def describe(args):
    cpu = ""
    try:
        with open("/proc/cpuinfo") as f:
            cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    except OSError:
        pass
    _, row = linnet(args, args.models[0], Test("pp1"), 1)  # which says what it was built of
    return {"who": "setup", "cpu": cpu or platform.machine(), "processors": os.cpu_count(), "linnet": row["build_commit"],
            "system": f"{platform.system()} {platform.release()}", "llama": args.llama_name,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat()}


def measure(args):
    tests = [Test(w) for w in args.tests.split()]
    threads = [int(t) for t in args.threads.split()]
    names = [os.path.basename(m) for m in args.models]
    if len(set(names)) < len(names):
        raise PeersError("two models have the same file name, which is what the table calls them")
    for m in args.models:
        if not os.path.isfile(m):
            raise PeersError(f"{m}: no such file")
    setup, samples = read_samples(args.out) if os.path.exists(args.out) else (None, [])
    here = describe(args)
    for key in ("cpu", "linnet", "llama"):
        if setup and setup[key] != here[key]:
            raise PeersError(f"{args.out} was measured with {key} '{setup[key]}', this is '{here[key]}': "
                             "choose another --out")
    done = {(s["round"], s["model"], s["threads"], s["test"], s["who"]) for s in samples}
    foreign = {s["model"] for s in samples if s["who"] == "llama" and s["value"] is None}
    with open(args.out, "a") as out:
        def write(line):
            out.write(json.dumps(line) + "\n")
            out.flush()
        if not setup:
            write(here)
        for number in range(1, args.rounds + 1):
            for model, name in zip(args.models, names):
                for t in threads:
                    for test in tests:
                        # Who goes first changes with each round; the memory is measured in between.
                        order = [("linnet", linnet), ("probe", probe), ("llama", llama)]
                        for who, run in order if number % 2 else order[::-1]:
                            if ((number, name, t, test.word, who) in done or (who == "probe" and not test.decodes) or
                                    (who == "llama" and name in foreign)):
                                continue
                            value, row = run(args, model, test, t)
                            if value is None:
                                foreign.add(name)
                            write({"who": who, "model": name, "test": test.word, "threads": t, "round": number,
                                   "value": value, "row": row})
                            print(f"peers: round {number}: {name}, {test.word}, {t} threads: {who} "
                                  f"{'does not load it' if value is None else format(value, '.1f')}", file=sys.stderr)


# ---- The table ---------------------------------------------------------------------------------

class Samples:
    """What rounds gave, by program, model, test and threads."""

    def __init__(self, samples):
        self.by = {}
        for s in samples:
            if s["value"] is not None:
                self.by.setdefault((s["who"], s["model"], s["test"], s["threads"]), {})[s["round"]] = s
        # in the order of measurement; models, tests and threads that linnet ran
        self.rows = list(dict.fromkeys((k[1], k[2], k[3]) for k in self.by if k[0] == "linnet"))
        self.models = list(dict.fromkeys(r[0] for r in self.rows))

    def values(self, who, model, test, threads):
        return [s["value"] for s in self.by.get((who, model, test, threads), {}).values()]

    def median(self, who, model, test, threads):
        v = self.values(who, model, test, threads)
        return statistics.median(v) if v else None

    def linnet_row(self, model, test, threads):
        """A row of linnet bench: what a step moves, the model's type and mixers."""
        return next(iter(self.by[("linnet", model, test, threads)].values()))["row"]

    def share(self, who, model, test, threads):
        """The median, over rounds, of weights read per second / the memory's speed in that round."""
        weights = self.linnet_row(model, test, threads)["weight_bytes_read_per_token"]
        sequences = Test(test).n if Test(test).kind == "batch" else 1
        memory = self.by.get(("probe", model, test, threads), {})
        shares = [s["value"] / sequences * weights * 1e-9 / memory[r]["value"]
                  for r, s in self.by.get((who, model, test, threads), {}).items() if r in memory]
        return statistics.median(shares) if shares else None


def spread(values):
    if not values:
        return "-"
    digits = 0 if min(values) >= 1000 else 1
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def percent(x):
    return "-" if x is None else f"{100 * x:.0f} %"


def table(setup, samples, against=None):
    s = Samples(samples)
    if not s.rows:
        raise PeersError("nothing was measured yet")
    if against and not any(k[:2] == ("llama", against) for k in s.by):
        raise PeersError(f"--against {against}: llama.cpp has no result for a model of that name")
    rounds = [len(s.values("linnet", *r)) for r in s.rows]
    out = [f"{setup['cpu']}, {setup['processors']} processors, {setup['system']}; {setup['date']}; linnet "
           f"{setup['linnet']}, {setup['llama']};",
           f"medians of {min(rounds)}{'' if min(rounds) == max(rounds) else f'-{max(rounds)}'} interleaved rounds "
           "(lowest-highest), tok/s. Memory: what reads the weights once per",
           "step, as a share of the speed at which the same threads read memory within the same seconds."]
    for model in s.models:
        own = any(k[:2] == ("llama", model) for k in s.by)
        peer = model if own else against
        other = "llama.cpp" if own or not against else f"llama.cpp, {against}"
        out += ["", f"### {model}", "",
                f"| test | threads | linnet | {other} | ratio | memory, linnet | llama.cpp |",
                "|---|---:|---:|---:|---:|---:|---:|"]
        for _, test, t in (r for r in s.rows if r[0] == model):
            a = s.median("linnet", model, test, t)
            b = peer and s.median("llama", peer, test, t)
            theirs = s.share("llama", model, test, t) if own else None
            out.append(f"| {Test(test)} | {t} | {spread(s.values('linnet', model, test, t))} | "
                       f"{spread(s.values('llama', peer, test, t)) if peer else '-'} | "
                       f"{f'{a / b:.2f}' if b else '-'} | {percent(s.share('linnet', model, test, t))} | "
                       f"{percent(theirs)} |")
    return "\n".join(out)


def positive(text):
    n = int(text)
    if n < 1:
        raise ValueError
    return n


def main():
    p = argparse.ArgumentParser(prog="peers", description=__doc__.split("\n")[0])
    p.add_argument("models", nargs="*", metavar="MODEL.gguf")
    p.add_argument("--tests", default="tg128 pp512", help="words, default '%(default)s'")
    p.add_argument("--threads", default="1 2", help="default '%(default)s'")
    p.add_argument("--rounds", type=positive, default=5)
    p.add_argument("--out", default="peers.jsonl", metavar="FILE", help="the samples, default %(default)s")
    p.add_argument("--against", metavar="NAME",
                   help="a model (file name) whose llama.cpp results stand beside models that llama.cpp does not load")
    p.add_argument("--probe-mb", type=positive, default=512, help="size of the memory read, default %(default)s")
    p.add_argument("--table", metavar="FILE", help="measure nothing")
    p.add_argument("--linnet", default="./linnet")
    p.add_argument("--bandwidth", default="build/bench/bandwidth")
    p.add_argument("--llama-bench", default="llama-bench")
    p.add_argument("--llama-batched-bench", default="llama-batched-bench")
    p.add_argument("--llama-name", default="llama.cpp", help=argparse.SUPPRESS)
    args = p.parse_args()
    if bool(args.models) == bool(args.table):
        p.error("expected MODEL.gguf..., or --table FILE")
    if not all(t.isdigit() and int(t) for t in args.threads.split()):
        p.error(f"--threads '{args.threads}': expected whole numbers from 1")
    try:
        if args.models:
            measure(args)
        setup, samples = read_samples(args.table or args.out)
        if not setup:
            raise PeersError(f"{args.table}: no setup line")
        print(table(setup, samples, args.against))
    except PeersError as e:
        print(f"peers: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"peers: {e.filename}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
