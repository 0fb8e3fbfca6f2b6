#!/bin/bash
# Runs the tests and closes with one line that counts them.
#   scripts/test.sh             everything: C tests, the command line, the exporter, bench/
#   scripts/test.sh --c FILE... the C tests named and the command line
#   scripts/test.sh --clients   tests/clients: the server with a browser and other people's clients
# EMULATOR=program: what runs the C tests of another machine. The tests of the emulated GPU take
# longest, one core, and run beside the others.
set -u
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0 skipped=0 tests=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# $1: a name; the rest: a command. Leaves its output, exit status and seconds.
execute() {
    local name=$1 start=$SECONDS
    shift
    "$@" >"$logs/$name.log" 2>&1
    echo "$? $((SECONDS - start))" >"$logs/$name.end"
}

# Counts what a finished test says of itself, in cmocka's words or ours.
report() {
    local name=$1 log=$logs/$1.log status seconds ok bad left
    read -r status seconds <"$logs/$name.end"
    ok=$(grep -cE '^\[       OK \]|^ok |\.\.\. ok$' "$log")
    bad=$(grep -cE '^\[  FAILED  \] [a-zA-Z_0-9]+$|^not ok |\.\.\. (FAIL|ERROR)$' "$log")
    left=$(grep -cE '\.\.\. skipped ' "$log")
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + left))
    if [ "$status" -ne 0 ] || [ "$bad" -ne 0 ]; then
        cat "$log"
        echo "FAIL $name (exit $status)"
    else
        echo "ok   $name: $ok checks, $seconds s$([ "$left" -eq 0 ] || echo ", $left skipped")"
    fi
}

run() {
    execute "$@"
    report "$1"
}

if [ "${1:-}" = --c ]; then
    shift
    tests=("$@")
elif [ "${1:-}" = --clients ]; then
    clients=1
else
    for t in tests/test_*.c tests/test_*.cu; do
        t=$(basename "$t")
        tests+=("build/tests/${t%.*}")
    done
    make -s -j"$(nproc)" "${tests[@]}" bench build/linnet || { echo "0 passed, 1 failed"; exit 1; }
    export LINNET=$PWD/build/linnet # has no CUDA library beside it: what is tested does not depend on a GPU
    all=1
fi
beside=()
for t in "${tests[@]}"; do
    case $t in */test_cuda*) beside+=("$t") ;; esac
done
for t in "${beside[@]}"; do execute "$(basename "$t")" ${EMULATOR:+"$EMULATOR"} "$t"; done &
for t in "${tests[@]}"; do
    case $t in */test_cuda*) ;; *) run "$(basename "$t")" ${EMULATOR:+"$EMULATOR"} "$t" ;; esac
done
if [ -n "${clients:-}" ]; then
    for t in tests/clients/test_*.py; do
        t=$(basename "$t" .py)
        run "$t" build/clients/bin/python -m unittest -v "tests.clients.$t"
    done
elif [ -f tests/test_cli.sh ]; then
    run test_cli bash tests/test_cli.sh
fi
if [ -n "${all:-}" ]; then
    for t in tests/test_*.py; do
        t=$(basename "$t" .py)
        run "$t" .venv/bin/python -m unittest -v "tests.$t"
    done
fi
wait
for t in "${beside[@]}"; do report "$(basename "$t")"; done
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
