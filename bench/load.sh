#!/usr/bin/env bash
# linnet on a machine that is not its own: two processes at once, more threads than cores, all of
# them on one core, a smaller instruction set. Every run must end with the same logits, bit for bit;
# the table shows what each costs beside the model alone on the machine.
#
#   bench/load.sh MODEL.gguf [TOKENS]      prints Markdown; exit 1 if some logits differ
set -euo pipefail
linnet=$(dirname "$0")/../linnet
[ $# -ge 1 ] && [ -x "$linnet" ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 tokens=${2:-128} cores=$(nproc)
out=$(mktemp -d)
trap 'rm -r "$out"' EXIT
seq -s ' ' 1 400 >"$out/prompt"

run() { # NAME FLAGS...: the last line of --stats; behind $pin
    local name=$1
    shift
    ${pin:-} "$linnet" run "$model" "$@" -f "$out/prompt" -n "$tokens" --temp 0 --stats 2>&1 >/dev/null |
        grep 'tok/s' >"$out/$name"
}
field() { sed -E "s|.*$2|\\1|" "$out/$1"; }
row() { # NAME WHAT
    local prefill decode hash base
    prefill=$(field "$1" 'prefill ([0-9.]+) tok.*') decode=$(field "$1" 'decode ([0-9.]+) tok.*')
    hash=$(field "$1" 'logits ([0-9a-f]+).*') base=$(field alone 'logits ([0-9a-f]+).*')
    awk -v w="$2" -v p="$prefill" -v d="$decode" -v h="$hash" -v same="$base" \
        -v P="$(field alone 'prefill ([0-9.]+) tok.*')" -v D="$(field alone 'decode ([0-9.]+) tok.*')" \
        'BEGIN { printf "| %s | %.0f | %.2f | %.0f | %.2f | %s |\n", w, p, p / P, d, d / D, h == same ? "same" : "DIFFERENT" }'
    [ "$hash" = "$base" ] || touch "$out/different"
}

run warm -t "$cores"
run alone -t "$cores"
echo "| $(basename "$model") | prefill tok/s | of alone | decode tok/s | of alone | logits |"
echo '|---|---|---|---|---|---|'
row alone "alone, $cores threads"
run first -t "$cores" & first=$!
run second -t "$cores"
wait $first
row first "two processes at once, $cores threads each: one"
row second 'the other'
for threads in $((2 * cores)) $((4 * cores)); do
    run many -t "$threads"
    row many "$threads threads on $cores cores"
done
pin="taskset -c 0" run pinned -t "$cores"
row pinned "$cores threads on one core (taskset)"
run one -t 1
row one 'one thread'
for isa in avx2 generic; do
    [ "$isa" = generic ] || grep -q "$isa" /proc/cpuinfo || continue
    run isa -t "$cores" --isa "$isa"
    row isa "--isa $isa"
done
[ ! -e "$out/different" ]
