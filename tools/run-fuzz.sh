#!/usr/bin/env bash
# Runs the fuzz targets for a bounded time: with cargo-fuzz if a nightly toolchain has it, and always with the stable
# runner, on a fixed number of inputs unless FUZZ_SECONDS sets a time.
set -euo pipefail
cd "$(dirname "$0")/.."
if cargo +nightly fuzz --version >/dev/null 2>&1; then
    for target in $(cd fuzz && cargo +nightly fuzz list); do
        (cd fuzz && cargo +nightly fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-20}")
    done
else
    echo "no nightly toolchain with cargo-fuzz: the stable runner mutates inputs instead"
fi
(cd fuzz && cargo test --release --quiet)
