#!/usr/bin/env bash
# linnet and llama.cpp on the same GGUF files, in turns, on this machine. Builds what is missing, then
# measures with bench/peers.py, whose flags these are (--help); bench/README.md tells how.
#
#   bench/peers.sh [flags] MODEL.gguf...
#   LLAMA_FOLDER=path  where llama.cpp is built, or found built already, with its two programs in
#                      build/bin; default ~/.cache/linnet/llama.cpp-0.3.36
set -euo pipefail

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
here=$(dirname "$0")

die() { echo "peers.sh: $*" >&2; exit 1; }
note() { echo "peers.sh: $*" >&2; }

for flag in "$@"; do
    case $flag in -h | --help) exec python3 "$here/peers.py" --help ;; esac
done
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -x "$here/../linnet" ] && [ -x "$here/../build/bench/bandwidth" ] ||
    die "linnet or build/bench/bandwidth is not there: run make linnet bench first"

# llama.cpp, from the source package of its Python binding.
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
    note "building llama.cpp in $folder/build (log: $folder/build.log)"
    { cmake -S "$tree" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DGGML_OPENMP=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=ON -DBUILD_SHARED_LIBS=OFF &&
        cmake --build "$folder/build" -j "$(nproc)" --target llama-bench llama-batched-bench; } \
        >"$folder/build.log" 2>&1 || die "building llama.cpp failed: $folder/build.log"
}

folder=${LLAMA_FOLDER:-${XDG_CACHE_HOME:-$HOME/.cache}/linnet/llama.cpp-$version}
bin=$folder/build/bin
[ -x "$bin/llama-bench" ] && [ -x "$bin/llama-batched-bench" ] || build_llama "$folder"
exec python3 "$here/peers.py" --linnet "$here/../linnet" --bandwidth "$here/../build/bench/bandwidth" \
    --llama-bench "$bin/llama-bench" --llama-batched-bench "$bin/llama-batched-bench" \
    --llama-name "llama.cpp of llama-cpp-python $version" "$@"
