#!/usr/bin/env bash
# linnet and llama.cpp on one GGUF file, in turns, on this machine: bench/README.md tells how it
# measures. Prints a Markdown table.
#
#   bench/peers.sh MODEL.gguf [FOLDER]     FOLDER: where llama.cpp is built, or found built already
#   LLAMA_BENCH=path  a llama-bench to use instead         LINNET=./linnet
#   ROUNDS=5   THREADS="1 2"   PROMPT=512   TOKENS=128
set -euo pipefail

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
rounds=${ROUNDS:-5}
threads=${THREADS:-1 2}
n_prompt=${PROMPT:-512}
n_tokens=${TOKENS:-128}
linnet=${LINNET:-./linnet}

die() { echo "peers.sh: $*" >&2; exit 1; }
note() { echo "peers.sh: $*" >&2; }

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model=$1
[ -f "$model" ] || die "$model: no such file"
[ -x "$linnet" ] || die "$linnet is not there: run make first, or set LINNET"

# ---- llama.cpp, from the source package of its Python binding --------------------------------

build_llama() { # FOLDER
    local folder=$1 tar=$1/llama_cpp_python-$version.tar.gz
    local tree=$1/llama_cpp_python-$version/vendor/llama.cpp
    mkdir -p "$folder"
    if [ ! -f "$tar" ]; then
        note "fetching llama-cpp-python $version into $folder"
        python3 -m pip download -q --disable-pip-version-check --no-deps \
            --no-binary llama-cpp-python --dest "$folder" "llama-cpp-python==$version"
    fi
    echo "$sha256  $tar" | sha256sum --check --quiet || die "$tar: not the file that was expected"
    [ -d "$tree" ] || tar -xzf "$tar" -C "$folder"
    note "building llama-bench in $folder/build (log: $folder/build.log)"
    { cmake -S "$tree" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DGGML_OPENMP=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=ON -DBUILD_SHARED_LIBS=OFF &&
        cmake --build "$folder/build" -j "$(nproc)" --target llama-bench; } \
        >"$folder/build.log" 2>&1 || die "building llama-bench failed: $folder/build.log"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
llama=${LLAMA_BENCH:-}
if [ -z "$llama" ]; then
    folder=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/linnet/llama.cpp-$version}
    llama=$folder/build/bin/llama-bench
    [ -x "$llama" ] || build_llama "$folder"
fi
[ -x "$llama" ] || die "$llama: no llama-bench there"

# ---- The prompts -----------------------------------------------------------------------------

# A text of exactly $1 tokens, BOS included, into file $2: a word that is one token, repeated.
count_tokens() { "$linnet" tokenize "$model" --quiet <"$1" | wc -w; }
make_prompt() {
    local words=$1 found=0
    for _ in 1 2 3 4 5 6; do
        awk -v n="$words" 'BEGIN { for (i = 0; i < n; i++) printf "%sthe", i ? " " : "" }' >"$2"
        found=$(count_tokens "$2")
        [ "$found" -eq "$1" ] && return 0
        words=$((words + $1 - found))
        [ "$words" -ge 1 ] || break
    done
    die "could not write a prompt of $1 tokens for $model (found $found)"
}
make_prompt "$n_prompt" "$work/prefill.txt"
: >"$work/decode.txt" # the shortest prompt: BOS alone, or one word
[ "$(count_tokens "$work/decode.txt")" -ge 1 ] || printf 'the' >"$work/decode.txt"

# An ending token would cut the measurement short, so all of them are forbidden.
forbid=()
for end in '<|endoftext|>' '<|im_end|>' '</s>' '<|eot_id|>' '<|end_of_text|>' '<|eom_id|>' \
    '<|end|>' '<end_of_turn>'; do
    ids=$(printf '%s' "$end" | "$linnet" tokenize "$model" --quiet --no-bos --parse-special)
    [[ $ids =~ ^[0-9]+$ ]] && forbid+=(--logit-bias "$ids=-inf")
done

# ---- One measurement each --------------------------------------------------------------------

run_linnet() { # prefill|decode THREADS -> tok/s
    local kind=$1 n=$n_tokens want=$n_tokens line
    [ "$kind" = prefill ] && n=1 want=$n_prompt
    "$linnet" run "$model" -f "$work/$kind.txt" -n "$n" --temp 0 -t "$2" --stats --quiet \
        "${forbid[@]}" >/dev/null 2>"$work/stats" || die "linnet: $(tail -n 1 "$work/stats")"
    line=$(tail -n 1 "$work/stats")
    [[ $line =~ $kind\ ([0-9.]+)\ tok/s\ \(([0-9]+)\) ]] || die "no $kind speed in '$line'"
    [ "${BASH_REMATCH[2]}" -eq "$want" ] ||
        die "linnet: $kind of ${BASH_REMATCH[2]} tokens, expected $want: '$line'"
    echo "${BASH_REMATCH[1]}"
}

run_llama() { # prefill|decode THREADS -> tok/s
    local p=0 n=$n_tokens
    [ "$1" = prefill ] && p=$n_prompt n=0
    "$llama" -m "$model" -p "$p" -n "$n" -t "$2" -r 1 -o csv 2>"$work/llama" >"$work/csv" ||
        die "llama-bench: $(tail -n 1 "$work/llama")"
    # The column named avg_ts; fields are quoted, and some hold commas.
    python3 -c 'import csv, sys; print([r["avg_ts"] for r in csv.DictReader(sys.stdin)][-1])' \
        <"$work/csv"
}

for round in $(seq "$rounds"); do
    for t in $threads; do
        for kind in decode prefill; do
            # Who goes first changes with each round.
            if [ $((round % 2)) = 1 ]; then order="linnet llama"; else order="llama linnet"; fi
            for who in $order; do
                speed=$("run_$who" "$kind" "$t") || exit 1
                echo "$kind $t $who $speed" >>"$work/all"
                note "round $round: $kind, $t threads: $who $speed tok/s"
            done
        done
    done
done

# ---- The table -------------------------------------------------------------------------------

speeds() { awk -v k="$1" -v t="$2" -v w="$3" '$1 == k && $2 == t && $3 == w { print $4 }' \
    "$work/all" | sort -g; }
median() { awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
range() { awk 'NR == 1 { a = $1 } { b = $1 } END { printf "%.1f-%.1f", a, b }'; }
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
commit=$(git -C "$(dirname "$0")" describe --always --dirty 2>/dev/null || echo unknown)

echo "$(basename "$model") on ${cpu:-$(uname -m)}, $(nproc) processors, $(uname -sr);" \
    "$(date -u +%Y-%m-%d); linnet $commit, llama.cpp of llama-cpp-python $version;"
echo "medians of $rounds interleaved rounds (lowest-highest), tok/s;" \
    "\`ROUNDS=$rounds THREADS=\"$threads\" PROMPT=$n_prompt TOKENS=$n_tokens bench/peers.sh" \
    "$(basename "$model")\`"
echo
echo "| test | threads | linnet | llama.cpp | linnet / llama.cpp |"
echo "|---|---:|---:|---:|---:|"
for kind in decode prefill; do
    name="decode, $n_tokens tokens at depth 0"
    [ $kind = prefill ] && name="prefill, $n_prompt tokens"
    for t in $threads; do
        a=$(speeds $kind "$t" linnet | median)
        b=$(speeds $kind "$t" llama | median)
        printf '| %s | %s | %.1f (%s) | %.1f (%s) | %s |\n' "$name" "$t" \
            "$a" "$(speeds $kind "$t" linnet | range)" "$b" "$(speeds $kind "$t" llama | range)" \
            "$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", a / b }')"
    done
done
