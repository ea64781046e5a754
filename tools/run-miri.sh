#!/usr/bin/env bash
# Runs steps of the CPU backend under Miri to find undefined behaviour and data races, on the kernels in plain Rust.
#
#     tools/run-miri.sh [FILTER ...]
#
# FILTERs are names of tests of the crate and of tests/steps.rs; the default is a selection that takes a minute or two.
# Miri is a component of nightly toolchains.
set -euo pipefail
cd "$(dirname "$0")/.."

for toolchain in "${MIRI_TOOLCHAIN:-nightly}" ""; do
    miri=(cargo ${toolchain:+"+$toolchain"} miri)
    # Miri builds the standard library once from its source, which is a separate component.
    "${miri[@]}" --version >/dev/null 2>&1 && "${miri[@]}" setup >/dev/null 2>&1 && break
    miri=()
done
if [ ${#miri[@]} = 0 ]; then
    echo "!!!! NO Miri (rustup component add miri rust-src --toolchain nightly): undefined behaviour is not looked for !!!!"
    exit 0
fi
targets=(--lib --test steps)
if [ $# = 0 ]; then
    # Steps of a whole model take a quarter of an hour each under Miri: run them by hand, by name.
    targets=(--lib)
    set -- sequences_that_overlap slots_outside calls_
fi
# Tests read the clock and the machine's memory sizes.
export CARGO_TARGET_DIR=target/miri MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
"${miri[@]}" test -p qwen-backend-cpu "${targets[@]}" -- "$@"
