#!/bin/bash
# Runs the tests and closes with one line that counts them.
#   scripts/test.sh             everything: C tests, the command line, the exporter, bench/
#   scripts/test.sh --c FILE... the C tests named and the command line
# EMULATOR=program: what runs the C tests of another machine.
set -u
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0 tests=()

# $1: a name; the rest: a command whose output has cmocka's or our own counts.
run() {
    local name=$1 log status start
    shift
    log=$(mktemp)
    start=$SECONDS
    "$@" >"$log" 2>&1
    status=$?
    local ok bad
    ok=$(grep -cE '^\[       OK \]|^ok |\.\.\. ok$' "$log")
    bad=$(grep -cE '^\[  FAILED  \] [a-zA-Z_0-9]+$|^not ok |\.\.\. (FAIL|ERROR)$' "$log")
    if [ $status -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    passed=$((passed + ok)) failed=$((failed + bad))
    if [ $status -ne 0 ] || [ "$bad" -ne 0 ]; then
        cat "$log"
        echo "FAIL $name (exit $status)"
    else
        echo "ok   $name: $ok checks, $((SECONDS - start)) s"
    fi
    rm -f "$log"
}

if [ "${1:-}" = --c ]; then
    shift
    tests=("$@")
else
    for t in tests/test_*.c tests/test_*.cu; do
        t=$(basename "$t")
        tests+=("build/tests/${t%.*}")
    done
    make -s -j"$(nproc)" "${tests[@]}" bench linnet || { echo "0 passed, 1 failed"; exit 1; }
    all=1
fi
for t in "${tests[@]}"; do run "$(basename "$t")" ${EMULATOR:+"$EMULATOR"} "$t"; done
[ -f tests/test_cli.sh ] && run test_cli bash tests/test_cli.sh
if [ -n "${all:-}" ]; then
    for t in tests/test_*.py; do
        t=$(basename "$t" .py)
        run "$t" .venv/bin/python -m unittest -v "tests.$t"
    done
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
