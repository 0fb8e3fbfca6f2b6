#!/bin/bash
# The CUDA backend on a real GPU: the device layer's own tests, parity with the CPU on all golden models, then compute-sanitizer's
# memcheck and racecheck on some. Closes with one line that counts.
#   scripts/test_cuda.sh TEST_SIMT TEST_CUDA     (make test-cuda)
set -u
cd "$(dirname "$0")/.." || exit 1
device=$1 program=$2 passed=0 failed=0
checked="llama_q4_0 lolcats_softmax_full based_hybrid delta_hybrid_list gated_delta_groups"

count() { # LOG STATUS NAME
    local ok bad
    ok=$(grep -cE '^\[       OK \]' "$1")
    bad=$(grep -cE '^\[  FAILED  \] [a-zA-Z_0-9]+$' "$1")
    [ "$2" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    passed=$((passed + ok)) failed=$((failed + bad))
    [ "$bad" -eq 0 ] || cat "$1"
    echo "$3: $ok passed, $bad failed"
}

# From the toolkit, else from PyPI into a folder of its own.
sanitizer() {
    local tool
    for tool in "$(command -v compute-sanitizer)" /usr/local/cuda/bin/compute-sanitizer; do
        [ -x "$tool" ] && { echo "$tool"; return; }
    done
    local folder=build/sanitizer
    [ -d "$folder" ] || python3 -m pip install -q --target "$folder" nvidia-cuda-sanitizer-api >&2 || return
    find "$folder" -name compute-sanitizer -type f | head -1
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$device" >"$log" 2>&1
count "$log" $? 'device layer'
"$program" >"$log" 2>&1
count "$log" $? parity
tool=$(sanitizer)
if [ -n "$tool" ]; then
    for check in memcheck racecheck; do
        # shellcheck disable=SC2086
        "$tool" --tool $check --error-exitcode 99 "$program" $checked >"$log" 2>&1
        count "$log" $? "$check"
    done
else
    echo "compute-sanitizer is not there: memcheck and racecheck were not run"
    failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
