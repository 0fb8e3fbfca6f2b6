#!/bin/sh
# Installs what building, testing and exporting need: Debian packages (as root or through sudo) and
# .venv with export/requirements.txt. Quick when all is there.
#   scripts/deps.sh            all of that
#   scripts/deps.sh --clients  what `make test-clients` needs besides: a browser, nginx, Redis, and
#                              build/clients with tests/clients/requirements.txt
#   scripts/deps.sh PACKAGE... these Debian packages alone
set -eu
cd "$(dirname "$0")/.."
packages="gcc g++ libc6-dev pkg-config libgomp1 libsentencepiece-dev libpcre2-dev libjansson-dev
libsodium-dev libhiredis-dev libcivetweb-dev libcmocka-dev python3 python3-venv python3-pip
ca-certificates"
requirements=export/requirements.txt venv=.venv
if [ "${1:-}" = --clients ]; then
    packages="chromium chromium-driver nginx-light redis-server python3 python3-venv"
    requirements=tests/clients/requirements.txt venv=build/clients
elif [ $# -gt 0 ]; then
    packages=$* requirements=""
fi

missing=""
for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q "ok installed" || missing="$missing $p"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo=sudo; else
        echo "deps: these packages are missing and neither root nor sudo is at hand:$missing" >&2
        exit 1
    fi
    echo "deps: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    $sudo apt-get update -q >/dev/null
    # shellcheck disable=SC2086
    $sudo apt-get install -y -q --no-install-recommends $missing >/dev/null
fi

if [ -n "$requirements" ] && ! cmp -s "$requirements" "$venv/requirements.txt"; then
    echo "deps: filling $venv with $requirements"
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
