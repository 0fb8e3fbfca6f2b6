#!/bin/bash
# The demo's model, SmolLM2-135M-Instruct, linearized, as a model file in the cache; prints where each lies.
#   scripts/linear_model.sh NAME...    original: as it is, in the same type of weights, q8_0
#                                      window: softmax over the last 64 keys alone, untrained
#                                      window-sinks: and the first four, untrained
#                                      swap: the window and untrained maps (needs PyTorch: docs/linearize.md)
#                                      a delta of models/: sinks is models/smollm2-sinks.pt
#                                      DELTA-held: with trained_length=1024, without training for it
# LINNET_CACHE (default ~/.cache/linnet): where they lie. TORCH_PYTHON (default python3): who makes `swap`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

teacher=$(scripts/demo.sh --path)
case $teacher in
models/*)
    echo "linear_model.sh: this needs SmolLM2-135M itself, which could not be fetched" >&2
    exit 1
    ;;
esac
folder=$(dirname "$teacher")/linear
mkdir -p "$folder"
part=$(mktemp -d "$folder/part.XXXXXX")
trap 'rm -rf "$part"' EXIT

# A file's first letters of its sha256, so that another delta makes another model.
sum() { cat "$@" | sha256sum | cut -c1-12; }

export_as() {
    [ -f "$1" ] && return
    $python -m export "$folder/base" "${@:2}" --type q8_0 -o "$part/model.gguf" >&2
    mv "$part/model.gguf" "$1"
}

if [ ! -f "$folder/base/config.json" ]; then
    $python -m train.linearize base "$teacher" -o "$part/base" >&2
    mv "$part/base" "$folder/base"
fi
for name in "$@"; do
    delta=models/smollm2-${name%-held} options=()
    [ "$name" = "${name%-held}" ] || options=(--set trained_length=1024)
    case $name in
    original)
        model=$folder/original.gguf
        export_as "$model"
        ;;
    window | window-sinks)
        model=$folder/$name.gguf
        [ "$name" = window ] && sinks=0 || sinks=4
        echo "attention: {attention_type: window_softmax, window_size: 64, n_sink: $sinks}" >"$part/window.yaml"
        export_as "$model" --lolcats-config "$part/window.yaml"
        ;;
    swap)
        model=$folder/swap.gguf
        if [ ! -f "$model" ]; then
            "${TORCH_PYTHON:-python3}" -m train.linearize untrained train/configs/linearize-as-lolcats.yaml \
                --base "$folder/base" -o "$part/swap" >&2
            export_as "$model" --lolcats "$part/swap.pt" --lolcats-config "$part/swap.yaml"
        fi
        ;;
    *)
        if [ ! -f "$delta.pt" ]; then
            deltas=$(find models -name "smollm2-*.pt" -printf "%f\n" | sed "s/^smollm2-//; s/\.pt$//" | sort | tr "\n" " ")
            echo "linear_model.sh: there is no $delta.pt; there are original window window-sinks swap $deltas" >&2
            exit 1
        fi
        model=$folder/$name-$(sum "$delta.pt" "$delta.yaml").gguf
        export_as "$model" --lolcats "$delta.pt" --lolcats-config "$delta.yaml" "${options[@]}"
        ;;
    esac
    echo "$model"
done
