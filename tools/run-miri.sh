#!/usr/bin/env bash
# Steps of the CPU backend under Miri: undefined behaviour and data races, on the kernels in plain Rust.
#
#     tools/run-miri.sh [FILTER ...]
#
# FILTERs are names of tests; a selection that takes minutes without. Miri is a component of nightly toolchains.
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
if [ $# = 0 ]; then
    set -- indices_written_in_a_step a_raised_interrupt one_buffer_may_be_read a_step_within_a_step sequences_that_share \
        slots_outside sequences_that_overlap calls_
fi
# The clock and the sizes of memory that the machine tells are read.
export CARGO_TARGET_DIR=target/miri MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
"${miri[@]}" test -p qwen-backend-cpu --lib --test steps -- "$@"
