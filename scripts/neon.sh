#!/bin/sh
# Builds for 64-bit ARM into build/neon and runs the C tests and the command line under qemu-user,
# on a CPU with dot products; the kernels and the forward pass once more on one without. Left out is
# what fails every allocation in turn, slow here and the same everywhere. ARM's libraries are
# unpacked into build/neon/sysroot, so that nothing of this machine's changes.
set -eu
cd "$(dirname "$0")/.."
if [ "$(uname -m)" = aarch64 ]; then
    echo "neon: this machine is one; make test-c runs the same tests" >&2
    exit 1
fi
scripts/deps.sh gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user \
    pkg-config make

out=$PWD/build/neon
root=$out/sysroot
if [ ! -f "$root/complete" ]; then
    echo "neon: fetching ARM's libraries"
    rm -rf "$root" "$out/apt"
    mkdir -p "$root" "$out/apt/lists/partial" "$out/apt/cache/archives/partial"
    (
        cd "$out/apt"
        arm="-q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=
            -o Dir::State::lists=$out/apt/lists -o Dir::State::status=/dev/null
            -o Dir::Cache=$out/apt/cache"
        # shellcheck disable=SC2086
        apt-get $arm update >/dev/null
        # shellcheck disable=SC2086
        apt-get $arm download libsentencepiece0 libsentencepiece-dev libpcre2-8-0 libpcre2-dev \
            libjansson4 libjansson-dev libcmocka0 libcmocka-dev >/dev/null
        for p in *.deb; do dpkg-deb -x "$p" "$root"; done
    )
    rm -rf "$out/apt"
    touch "$root/complete"
fi

libs=$root/usr/lib/aarch64-linux-gnu
export PKG_CONFIG_SYSROOT_DIR="$root" PKG_CONFIG_LIBDIR="$libs/pkgconfig"
export PKG_CONFIG_ALLOW_SYSTEM_LIBS=1 QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
export QEMU_SET_ENV="LD_LIBRARY_PATH=$libs:/usr/aarch64-linux-gnu/lib"
tests=$(printf '%s\n' tests/test_*.c tests/test_*.cu |
    sed -e '/_memory/d' -e 's|\(.*\)\.cu*$|build/neon/\1|')
# shellcheck disable=SC2086
make --no-print-directory BUILD=build/neon ARCH=aarch64 CC=aarch64-linux-gnu-gcc \
    CXX=aarch64-linux-gnu-g++ CFLAGS="-O2 -g -I$root/usr/include" $tests build/neon/linnet

printf '#!/bin/sh\nexec qemu-aarch64 %s/linnet "$@"\n' "$out" >"$out/linnet.sh"
chmod +x "$out/linnet.sh"
export EMULATOR=qemu-aarch64 LINNET="$out/linnet.sh"
# shellcheck disable=SC2086
scripts/test.sh --c $tests
for t in test_kernels test_forward; do
    QEMU_CPU=cortex-a57 qemu-aarch64 "build/neon/tests/$t" >"$out/$t.log" 2>&1 ||
        { cat "$out/$t.log"; exit 1; }
    echo "ok   $t without dot products"
done
