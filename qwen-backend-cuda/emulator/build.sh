#!/bin/sh
# Builds the emulator with kernels into one shared library: build.sh OUT.so [sources, in place of all kernels].
# Needs only g++ (CXX names another compiler). -ffp-contract=off: kernels say where they fuse, and NVRTC gets the same
# option, so that both give the same bits.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT.so [sources]}
shift
[ $# -gt 0 ] || set -- "$here"/../kernels/*.cu
case $(uname -m) in
    aarch64) native=-mcpu=native ;;
    *) native=-march=native ;;
esac
exec "${CXX:-g++}" -O2 -std=c++17 -shared -fPIC -fvisibility=hidden -ffp-contract=off "$native" \
    -Wall -Wextra -Werror -Wno-unknown-pragmas -I "$here" -I "$here/../kernels" -o "$out" \
    "$here/emulator.cpp" "$here/fibre.cpp" -x c++ "$@"
