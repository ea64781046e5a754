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
    "${miri[@]}" --version >/dev/null 2>&1 && break
    miri=()
done
if [ ${#miri[@]} = 0 ]; then
    echo "!!!! NO Miri (rustup component add miri --toolchain nightly): undefined behaviour is not looked for !!!!"
    exit 0
fi
if [ $# = 0 ]; then
    set -- indices_written_in_a_step a_raised_interrupt one_buffer_may_be_read a_step_within_a_step sequences_that_share \
        slots_outside sequences_that_overlap calls_
fi
export CARGO_TARGET_DIR=target/miri MIRIFLAGS="${MIRIFLAGS:-}"
"${miri[@]}" test -p qwen-backend-cpu --lib --test steps -- "$@"
