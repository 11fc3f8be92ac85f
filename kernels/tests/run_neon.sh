#!/bin/sh
# Builds the library and its tests for AArch64 and runs them under qemu's user mode: sh kernels/tests/run_neon.sh [BUILD]
# Exit status: that of the tests, or 77 where a tool is missing (nothing is installed from here).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$(mktemp -d)}
missing=
command -v cmake >/dev/null || missing="$missing cmake"
command -v aarch64-linux-gnu-g++ >/dev/null || missing="$missing g++-aarch64-linux-gnu"
command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
if [ -n "$missing" ]; then
    echo "skipped: needs$missing (apt-get install$missing)"
    exit 77
fi
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DEDGEMAMBA_BUILD_TESTS=ON -DEDGEMAMBA_WERROR=ON \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" -j 2 >>"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cd "$build" && ctest --output-on-failure
