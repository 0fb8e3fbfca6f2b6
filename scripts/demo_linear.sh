#!/bin/bash
# SmolLM2-135M-Instruct and a linearization of it side by side: what they answer, how fast, with how much
# state.
#   scripts/demo_linear.sh [DELTA [QUESTION...]]    DELTA of models/smollm2-DELTA.pt; default sinks
# as-lolcats holds for about 1,500 tokens, the others on (docs/linearize.md).
set -euo pipefail
cd "$(dirname "$0")/.."
delta=${1:-sinks}
shift $(($# > 0))
if [ $# -eq 0 ]; then
    set -- "Give me three tips for sleeping well." "Write a short story about a linnet who learns to sing." \
        "What is the capital of France, and what is it known for?"
fi
# Not in a command's arguments, where a failure would go unseen.
paths=$(scripts/linear_model.sh original "$delta")
mapfile -t models <<<"$paths"
answers=$(mktemp -d)
trap 'rm -rf "$answers"' EXIT
width=$(tput cols 2>/dev/null || echo 120)
half=$(((width < 60 ? 60 : width > 160 ? 160 : width) / 2 - 2))

for question in "$@"; do
    printf '\n> %s\n\n' "$question"
    for i in 0 1; do
        [ $i = 0 ] && echo "ORIGINAL" >"$answers/$i" || echo "LINEARIZED ($delta)" >"$answers/$i"
        ./linnet chat "${models[$i]}" -n 200 --temp 0 --quiet <<<"${question//$'\n'/ }" | fold -s -w "$half" >>"$answers/$i"
    done
    pr -m -t -w $((2 * half + 2)) "$answers/0" "$answers/1" | expand
done
printf '\nSpeed of decoding and state of one sequence, original and linearized:\n\n'
./linnet bench -m "${models[0]}" -m "${models[1]}" -p 0 -n 32 -r 3 -d 0,2048,8192 -o md --quiet
