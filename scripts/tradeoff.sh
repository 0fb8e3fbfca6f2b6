#!/bin/bash
# The recall-throughput trade-off of the committed models, joined into one table, charts and a report:
#   mqar-*  MQAR from 64 tokens with 4 pairs to 1,024 with 256
#   lm-*    copies, pass keys, phone books and the Factbook at three lengths, the last beyond what was
#           trained; text that no model learned: its perplexity, and its pairs of tokens seen before
# and of all the state that they keep, and their speed at a depth of 1,024, one sequence and 16.
#   scripts/tradeoff.sh [FOLDER [QUESTIONS [QUESTIONS]]]    default build/tradeoff, 1000 sequences of MQAR and
#                                                           200 questions of each task of language, a length
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/tradeoff} n=${2:-1000} m=${3:-200}
mkdir -p "$out"
flags=(-t 1 --backend cpu -o md)

# What models/$1-*.gguf answer to the rest, and how fast they say $2 tokens.
measure() {
    local kind=$1 said=$2 models=() file
    shift 2
    for file in models/"$kind"-*.gguf; do
        [ -e "$file" ] || { echo "tradeoff.sh: models/ has no $kind-*.gguf (docs/train.md makes them)" >&2; exit 1; }
        models+=(-m "$file")
    done
    ./linnet recall "${models[@]}" "$@" "${flags[@]}" --save "$out/$kind-recall.jsonl" >"$out/$kind-recall.md"
    ./linnet bench "${models[@]}" -p 0 -n "$said" -d 1024 -b 1,16 -r 9 "${flags[@]}" --save "$out/$kind-bench.jsonl" \
        >"$out/$kind-bench.md"
}

tasks=()
for lk in 64,K=4 64,K=8 64,K=16 128,K=32 256,K=64 512,K=128 1024,K=256; do
    tasks+=(--task "mqar:L=$lk,n=$n")
done
measure mqar 512 "${tasks[@]}"
asked=copy,passkey,phonebook,factbook
# A copy has hundreds of answers: fewer of them do.
measure lm 128 --task "copy:n=$(((m + 3) / 4))" --task "passkey:n=$m" --task "phonebook:n=$m" --task "factbook:n=$m" \
    --len 256,512,1024 --task ar:data/heldout.txt

# Everything is joined every time, so that a family has one colour in all charts.
chart() {
    ./linnet pareto "$out"/{mqar,lm}-{recall,bench}.jsonl -o "$out/$1" "${@:2}"
}
speed=(--x tg_ts --depth 1024 --batch 16)
chart state.svg --task mqar
chart speed.svg --task mqar "${speed[@]}"
chart language-state.svg --task ar:heldout.txt --title "Language models: pairs of tokens seen before, against state bytes"
chart language-tasks.svg --task "$asked" --title "Language models: questions on the prompt, against state bytes"
chart language-speed.svg --task ar:heldout.txt --y perplexity "${speed[@]}" --title "Language models: perplexity against decode speed"
chart table.md --batch 16
chart table.csv --batch 16
chart report.html
echo "tradeoff.sh: $out/report.html, table.md, table.csv, state.svg, speed.svg, language-{state,tasks,speed}.svg"
