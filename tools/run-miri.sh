#!/usr/bin/env bash
# Steps of the CPU backend under Miri: undefined behaviour and data races, on the kernels in plain Rust.
#
#     tools/run-miri.sh [FILTER ...]
#
# FILTERs are names of tests of the crate and of tests/steps.rs; without, a selection that takes a minute or two. Miri is a component of nightly toolchains.
set -euo pipefail
cd "$(dirname "$0")/.."

for toolchain in "${MIRI_TOOLCHAIN:-nightly}" ""; do
    miri=(cargo ${toolchain:+"+$toolchain"} miri)
    # Miri builds the standard library from its source once, which is a component of its own.
    "${miri[@]}" --version >/dev/null 2>&1 && "${miri[@]}" setup >/dev/null 2>&1 && break
    miri=()
done
if [ ${#miri[@]} = 0 ]; then
    echo "!!!! NO Miri (rustup component add miri rust-src --toolchain nightly): undefined behaviour is not looked for !!!!"
    exit 0
fi
targets=(--lib --test steps)
if [ $# = 0 ]; then
    # Steps of a whole model take Miri a quarter of an hour each: by hand, by name.
    targets=(--lib)
    set -- sequences_that_overlap slots_outside calls_
fi
# The clock and the sizes of memory that the machine tells are read.
export CARGO_TARGET_DIR=target/miri MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
"${miri[@]}" test -p qwen-backend-cpu "${targets[@]}" -- "$@"
