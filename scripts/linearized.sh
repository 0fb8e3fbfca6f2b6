#!/bin/bash
# What linearizing SmolLM2-135M-Instruct costs: the original, controls without a linear part, and every
# delta of models/smollm2-*.pt, asked the same and timed: build/linearized/{table.md,quality.svg,report.html}.
#   scripts/linearized.sh [-o FOLDER] [--wikitext FILE] [--xquad FILE] [QUESTIONS]
# --wikitext: WikiText-2's validation split as a text; --xquad: XQuAD's English file. Neither may be
# shipped; without them their columns stay empty. QUESTIONS of a kind, default 100. A model and a kind
# of question have a file each; what is there is not measured again, with however many questions.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/linearized wikitext="" xquad="" n=100
while [ $# -gt 0 ]; do
    case $1 in
    -o) out=$2 && shift 2 ;;
    --wikitext) wikitext=$2 && shift 2 ;;
    --xquad) xquad=$2 && shift 2 ;;
    *) n=$1 && shift ;;
    esac
done
mkdir -p "$out"
texts=(data/novel.txt)
if [ -n "$wikitext" ]; then
    head -c 150000 "$wikitext" | sed '$d' >"$out/wikitext.txt"
    texts+=("$out/wikitext.txt")
fi
[ -z "$xquad" ] || .venv/bin/python bench/linearized.py questions "$xquad" $((3 * n)) >"$out/xquad.jsonl"

names=(original)
"${TORCH_PYTHON:-python3}" -c 'import torch' 2>/dev/null && names+=(swap) ||
    echo "linearized.sh: no PyTorch (docs/linearize.md): the row of the untrained maps is left out" >&2
names+=(window window-sinks)
for name in control-window control control-softmax as-lolcats as-lolcats-held sinks sinks-softmax; do
    [ ! -f "models/smollm2-${name%-held}.pt" ] || names+=("$name")
done

# $1: file of rows; the rest: what recall or bench is to do.
measure() {
    [ -f "$1" ] && return
    ./linnet "${@:2}" --backend cpu --quiet -o md --save "$1"
}

models=()
for name in "${names[@]}"; do
    path=$(realpath "$(scripts/linear_model.sh "$name")")
    model=$out/$name.gguf rows=$out/$name
    if [ "$(readlink "$model")" != "$path" ]; then # another delta: nothing that was measured holds
        rm -rf "$rows" "$out/bench.jsonl"
        ln -sf "$path" "$model"
    fi
    mkdir -p "$rows"
    for text in "${texts[@]}"; do
        for context in 1024 4096 8192; do
            measure "$rows/$(basename "$text" .txt)-$context.jsonl" recall -m "$model" --task "ar:$text" --max-ctx $context
        done
    done
    copies=()
    for N in 32 64 128 256 512; do copies+=(--task "copy:n=$(((n + 4) / 5)),N=$N"); done
    measure "$rows/copy.jsonl" recall -m "$model" "${copies[@]}"
    measure "$rows/passkey.jsonl" recall -m "$model" --task "passkey:n=$(((n + 3) / 4))" --len 256,1024,4096
    measure "$rows/factbook.jsonl" recall -m "$model" --task "factbook:n=$n" --len 512,1024
    [ -z "$xquad" ] || measure "$rows/xquad.jsonl" recall -m "$model" --task "jsonl:$out/xquad.jsonl"
    case $name in original | window-sinks | as-lolcats | sinks | sinks-softmax) models+=(-m "$model") ;; esac
done
measure "$out/bench.jsonl" bench "${models[@]}" -p 0 -n 32 -r 5 -t 1 \
    -d 0,128,256,384,512,768,1024,1536,2048,8192,32768

.venv/bin/python bench/linearized.py table "$out" >"$out/table.md"
# One context, the trained one. The untrained maps and the bare window are far off any scale of the picture.
recalls=("$out"/*/{novel-1024,copy,passkey,factbook}.jsonl)
[ -z "$wikitext" ] || recalls+=("$out"/*/wikitext-1024.jsonl)
[ -z "$xquad" ] || recalls+=("$out"/*/xquad.jsonl)
near=()
for name in "${names[@]}"; do
    case $name in swap | window) ;; *) near+=("$out/$name/novel-1024.jsonl") ;; esac
done
./linnet pareto "${near[@]}" -o "$out/quality.svg" --quiet --task ar:novel.txt --y perplexity \
    --title "SmolLM2-135M linearized: perplexity of an unseen novel"
./linnet pareto "${recalls[@]}" "$out/bench.jsonl" -o "$out/report.html" --quiet
cat "$out/table.md"
