#!/bin/sh
# Builds the emulator with kernels into one shared library: build.sh OUT.so [sources, in place of all kernels].
# Needs only g++ (CXX names another compiler). -ffp-contract=off: kernels say where they fuse, and NVRTC gets the same
# option, so that both give the same bits.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT.so [sources]}
shift
[ $# -gt 0 ] || set -- "$here"/../kernels/*.cu "$here"/../kernels/formats/*.cu
case $(uname -m) in
    aarch64) native=-mcpu=native ;;
    *) native=-march=native ;;
esac
CXX=${CXX:-g++}
command -v "$CXX" >/dev/null || { echo "$CXX is not there" >&2; exit 127; }
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
# An object a source, as many at once as there are processors. xargs answers 123 if one of them fails.
n=0
for source in "$here/emulator.cpp" "$here/fibre.cpp" "$@"; do
    n=$((n + 1))
    printf '%s\0%s\0' "$source" "$objects/$n.o"
done | xargs -0 -n 2 -P "$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)" sh -c '
    "$0" -O2 -std=c++17 -c -fPIC -fvisibility=hidden -ffp-contract=off "$1" -Wall -Wextra -Werror \
        -Wno-unknown-pragmas -I "$2" -I "$2/../kernels" -x c++ "$3" -o "$4"' "$CXX" "$native" "$here"
"$CXX" -shared -o "$out" "$objects"/*.o
