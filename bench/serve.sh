#!/usr/bin/env bash
# What the server costs beside the library: `linnet serve` on one core with clients on another,
# against `linnet bench`, the same batch on the same core, in turns.
#
#   bench/serve.sh MODEL.gguf [CLIENTS=16] [TOKENS=128] [ROUNDS=5] [WORDS=16]
#
# Prints a row a round and the medians: decoding in tokens per second over HTTP and in the library,
# their ratio, what a step of all clients costs more over HTTP, times to the first and between texts. The library's
# figure has no sampling and no text; the server's is greedy (drawing from a large vocabulary at a
# temperature costs more: serve_load -t 1), taken while every client receives.
set -euo pipefail
cd "$(dirname "$0")/.."
linnet=${LINNET:-./linnet} load=build/bench/serve_load
[ $# -ge 1 ] && [ -x "$linnet" ] && [ -x "$load" ] ||
    { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; echo "needs: make linnet $load" >&2; exit 2; }
model=$1 clients=${2:-16} tokens=${3:-128} rounds=${4:-5} words=${5:-16}
out=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server"; rm -r "$out"' EXIT

taskset -c 0 "$linnet" serve "$model" --port 0 -t 1 --slots "$clients" 2>"$out/log" >/dev/null &
server=$!
for _ in $(seq 600); do
    address=$(sed -nE 's|.*http://([^/ ]+:[0-9]+).*|\1|p' "$out/log" | head -1)
    [ -n "$address" ] && break
    kill -0 "$server" || { cat "$out/log" >&2; exit 1; }
    sleep 0.1
done
taskset -c 1 "$load" -c "$clients" -n 8 -p "$words" "$address" >/dev/null # to warm up

echo '| round | HTTP decode tok/s | library tok/s | ratio | ms a step more | HTTP tok/s, prefill too | TTFT p50 ms | ITL p50 ms | p99 | errors |'
echo '|---|---|---|---|---|---|---|---|---|---|'
for round in $(seq "$rounds"); do
    taskset -c 1 "$load" -c "$clients" -n "$tokens" -p "$words" -o json "$address" >"$out/http" || true
    # A prompt of so many hexadecimal words is about three tokens a word; the server is idle now.
    taskset -c 0 "$linnet" bench -m "$model" -p 0 -n "$tokens" -b "$clients" -d $((3 * words)) -t 1 -r 1 \
        --no-pin -o json >"$out/bench" 2>/dev/null
    python3 - "$round" "$clients" "$out/http" "$out/bench" "$out/rows" <<'EOF'
import json, sys
number, clients, http, bench, rows = sys.argv[1:]
h, b = json.load(open(http)), json.load(open(bench))[0]["median_ts"]
row = [h["decode_tok_s"], b, h["decode_tok_s"] / b, 1000 * (int(clients) / h["decode_tok_s"] - int(clients) / b) if h["decode_tok_s"] else 0,
       h["tok_s"], h["ttft_ms"]["p50"], h["itl_ms"]["p50"], h["itl_ms"]["p99"], h["errors"]]
print("|", number, "|", " | ".join(f"{x:.2f}" for x in row), "|")
open(rows, "a").write(json.dumps(row) + "\n")
EOF
done
python3 - "$out/rows" <<'EOF'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
print("| median |", " | ".join(f"{statistics.median(c):.2f}" for c in zip(*rows)), "|")
EOF
