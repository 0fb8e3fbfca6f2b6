#!/usr/bin/env python3
"""What linnet's CUDA backend reaches on this machine's GPU, beside what the GPU can do at most.

    make bench-cuda                       everything, into bench/results/
    python3 bench/cuda.py [--only PART] [--models FOLDER] [--out FOLDER] [--linnet PROGRAM]

Random models of the right shapes are written (bench/random_model), and stay but for the largest. Every
row is one of `linnet bench`; the limits are bench/cuda_limits's. Decoding is
compared with the memory's bandwidth: a step reads all weights once and every session's state (half
way through the steps); recurrent states are written as well. Prefill is compared with the
tensor cores: 2 operations for every weight of a matrix and token; attention is not counted.
"""
import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent

# name: shape, pattern, type
MODELS = {
    "8B-softmax": ("llama8b", "softmax", "bf16"),
    "1.3B-softmax": ("delta1b", "softmax", "bf16"),
    "1.3B-delta_net": ("delta1b", "delta_net", "bf16"),
    "1.3B-gated_delta_net": ("delta1b", "gated_delta_net", "bf16"),
    "1.3B-based_taylor": ("delta1b", "based_taylor", "bf16"),
    "1.3B-lolcats": ("delta1b", "lolcats", "bf16"),
    "1.1B-softmax-q4_0": ("tiny1b", "softmax", "q4_0"),
    "135M-softmax": ("smol135", "softmax", "bf16"),
    "135M-softmax-q4_0": ("smol135", "softmax", "q4_0"),
    "135M-delta_net": ("smol135", "delta_net", "bf16"),
    "135M-lolcats": ("smol135", "lolcats", "bf16"),
}
# The embedding, looked up, and the output matrix, for the last token alone (smol135: one matrix).
PARAMS_OF_ROWS = {"smol135": 49152 * 576, "delta1b": 2 * 32000 * 2048, "tiny1b": 2 * 32000 * 2048,
                  "llama8b": 2 * 128256 * 4096}
MIXERS = ["softmax", "delta_net", "gated_delta_net", "based_taylor", "lolcats"]

# part: rows (model, flags of linnet bench, sizes of a batch to try, the target's share of the bound)
PARTS = {
    "decode": [(m, ["-p", "0", "-n", "64", "-r", "3"], [1], target) for m, target in
               [("8B-softmax", 0.90), ("1.1B-softmax-q4_0", None), ("135M-softmax", None),
                ("135M-softmax-q4_0", None), ("135M-delta_net", None), ("135M-lolcats", None)]
               + [(f"1.3B-{x}", 0.80) for x in MIXERS]],
    "prefill": [(m, ["-p", "4096", "-n", "0", "-r", "3"], [1], 0.5) for m in
                [f"1.3B-{x}" for x in MIXERS] + ["8B-softmax"]],
    "batch": [(f"1.3B-{x}", ["-p", "0", "-n", "16", "-r", "1", "-d", str(d)],
               [128, 96, 64, 48, 32, 24, 16], 0.6)
              for x in MIXERS for d in (1024, 4096, 16384)],
}


def die(sentence):
    sys.exit(f"cuda.py: {sentence}")


def run(command):
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    except OSError as e:
        die(f"{command[0]}: {e.strerror}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it gave no reason"]
        die(f"{pathlib.Path(command[0]).name} failed: {lines[-1]}")
    return done.stdout


def limits():
    return json.loads(run([ROOT / "build/bench/cuda_limits"]))


def make_model(name, folder):
    path = folder / f"{name}.gguf"
    if not path.exists():
        print(f"  writing {path.name}", file=sys.stderr, flush=True)
        part = path.with_suffix(".part")
        run([ROOT / "build/bench/random_model", *MODELS[name], part])
        part.rename(path)
    return path


def bench(args, model, flags, batch):
    out = run([args.linnet, "bench", "--backend", args.backend, "-m", model, *flags, "-b", batch,
               "-o", "jsonl", "--quiet"])
    return json.loads(out.splitlines()[0])


def judge(row, limit, target):
    """Adds the bound (tokens per second) and the share of it that was reached."""
    bandwidth, n = limit["copy_bytes_per_s"], row["n_seqs"]
    if row["n_gen"]:
        moved = row["bytes_per_step"]
        if row["recurrent"]:
            moved += n * row["state_bytes_alloc"]  # written, too
        bound = n * bandwidth / moved
    else:
        flops = 2 * (row["model_n_params"] - row["params_of_rows"])
        bound = limit["paper_bf16_flops"] / flops
    row.update(bound_ts=bound, share=row["median_ts"] / bound, target=target)


def measure(args, part, folder, done):
    for name, flags, batches, target in PARTS[part]:
        model = make_model(name, folder)
        for batch in batches:
            row = bench(args, model, flags, batch)
            if not row["oom"]:
                break
        done["commit"] = row["build_commit"]
        row["name"], row["part"], row["model_filename"] = name, part, model.name
        row["recurrent"] = MODELS[name][1] != "softmax"
        row["params_of_rows"] = PARAMS_OF_ROWS[MODELS[name][0]]
        if row["oom"]:
            row.update(bound_ts=None, share=None, target=target)
        else:
            judge(row, done["limits"], target)
        done["rows"].append(row)
        print(line(row), file=sys.stderr, flush=True)
        later = [m for p in args.parts for m, *_ in PARTS[p]]
        if name == "8B-softmax" and later.count(name) <= sum(r["name"] == name
                                                             for r in done["rows"]):
            model.unlink()  # 16 GB


def line(r):
    test = f"tg{r['n_gen']}" if r["n_gen"] else f"pp{r['n_prompt']}"
    if r["share"] is None:
        return f"| {r['name']} | {test} | {r['n_depth']} | {r['n_seqs']} | out of memory | - | - | - |"
    mark = "" if r["target"] is None else f" ({r['target']:.2f})"
    return (f"| {r['name']} | {test} | {r['n_depth']} | {r['n_seqs']} | {r['median_ts']:,.0f} | "
            f"{r['bound_ts']:,.0f} | {r['share']:.2f}{mark} | {r['peak_vram_bytes'] / 1e9:.1f} |")


def table(done):
    l = done["limits"]
    out = [f"# CUDA, {l['gpu']}, {done['date']}", "",
           f"Commit {done['commit']}; driver for CUDA {l['driver'] // 1000}.{l['driver'] % 1000 // 10}, "
           f"built with {l['runtime'] // 1000}.{l['runtime'] % 1000 // 10}; {l['sm_count']} SMs at "
           f"{l['clock_mhz']} MHz. Memory copied at {l['copy_bytes_per_s'] / 1e12:.2f} TB/s "
           f"(on paper {l['paper_bytes_per_s'] / 1e12:.2f}); bf16 tensor cores on paper "
           f"{l['paper_bf16_flops'] / 1e12:.0f} TFLOP/s. `make bench-cuda`; what the columns mean is "
           "at the top of bench/cuda.py.", "",
           "| model | test | depth | sessions | tokens/s | bound | share (target) | GB of GPU memory |",
           "|---|---|---:|---:|---:|---:|---:|---:|"]
    out += [line(r) for r in done["rows"]]
    batch = {(r["name"], r["n_depth"]): r for r in done["rows"] if r["part"] == "batch"}
    ratios = []
    for (name, depth), r in batch.items():
        base = batch.get(("1.3B-softmax", depth))
        if name != "1.3B-softmax" and base and r["share"] and base["share"]:
            ratios.append(f"| {name} | {depth} | {r['n_seqs']} | {base['n_seqs']} | "
                          f"{r['median_ts'] / base['median_ts']:.1f} |")
    if ratios:
        out += ["", "Recurrent over softmax, each with the largest batch up to 128 that fits "
                "(BASED's paper: 24 against FlashAttention-2 in PyTorch, 1,024 tokens generated):", "",
                "| model | depth | sessions | softmax's | ratio |", "|---|---:|---:|---:|---:|", *ratios]
    return "\n".join(out) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--only", choices=list(PARTS), action="append", help="this part alone")
    p.add_argument("--models", default=str(ROOT / "build/bench/models"), help="where models lie")
    p.add_argument("--out", default=str(HERE / "results"), help="where results go")
    p.add_argument("--linnet", default=str(ROOT / "linnet"))
    p.add_argument("--backend", default="cuda")
    args = p.parse_args()
    args.parts = args.only or list(PARTS)
    folder = pathlib.Path(args.models)
    folder.mkdir(parents=True, exist_ok=True)
    done = {"date": datetime.date.today().isoformat(), "commit": "unknown", "limits": limits(),
            "rows": []}
    name = done["limits"]["gpu"].replace("NVIDIA ", "").replace(" ", "-").lower()
    out = pathlib.Path(args.out) / f"{done['date']}-cuda-{'-'.join([name, *(args.only or [])])}"
    os.makedirs(args.out, exist_ok=True)
    try:
        for part in args.parts:
            measure(args, part, folder, done)
    finally:  # what was measured is kept, whatever ended the run
        if done["rows"]:
            out.with_suffix(".json").write_text(json.dumps(done, indent=1) + "\n")
            out.with_suffix(".md").write_text(table(done))
            print(f"wrote {out}.md and .json", file=sys.stderr)


if __name__ == "__main__":
    main()
