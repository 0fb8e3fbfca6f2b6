#!/bin/bash
# The recall-throughput trade-off of the committed models: what each finds again (MQAR from 64 tokens
# with 4 pairs to 1,024 with 256), the state that it keeps, and its speed at a depth of 1,024, for one
# sequence and for 16; then the charts, the table and the report.
#   scripts/tradeoff.sh [FOLDER [QUESTIONS]]     default build/tradeoff, 1000 sequences a length
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/tradeoff} n=${2:-1000}
models=() tasks=()
for m in models/mqar-*.gguf; do
    [ -e "$m" ] || { echo "tradeoff.sh: models/ has no mqar-*.gguf (docs/train.md makes them)" >&2; exit 1; }
    models+=(-m "$m")
done
for lk in 64,K=4 64,K=8 64,K=16 128,K=32 256,K=64 512,K=128 1024,K=256; do
    tasks+=(--task "mqar:L=$lk,n=$n")
done
mkdir -p "$out"
./linnet recall "${models[@]}" "${tasks[@]}" -t 1 --backend cpu -o md --save "$out/recall.jsonl" >"$out/recall.md"
./linnet bench "${models[@]}" -p 0 -n 128 -d 1024 -b 1,16 -t 1 -r 3 --backend cpu -o md \
    --save "$out/bench.jsonl" >"$out/bench.md"
rows=("$out/recall.jsonl" "$out/bench.jsonl")
./linnet pareto "${rows[@]}" -o "$out/state.svg"
./linnet pareto "${rows[@]}" -o "$out/speed.svg" --x tg_ts --depth 1024 --batch 16
./linnet pareto "${rows[@]}" -o "$out/table.md"
./linnet pareto "${rows[@]}" -o "$out/table.csv"
./linnet pareto "${rows[@]}" -o "$out/report.html"
echo "tradeoff.sh: $out/report.html, state.svg, speed.svg, table.md, table.csv"
