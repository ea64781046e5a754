#!/usr/bin/env bash
# The fuzz targets for a bounded time: by cargo-fuzz where a nightly toolchain has it, and always by the stable runner.
set -euo pipefail
cd "$(dirname "$0")/.."
export FUZZ_SECONDS="${FUZZ_SECONDS:-10}"
if cargo +nightly fuzz --version >/dev/null 2>&1; then
    for target in $(cd fuzz && cargo +nightly fuzz list); do
        (cd fuzz && cargo +nightly fuzz run "$target" -- -max_total_time="$FUZZ_SECONDS")
    done
else
    echo "no nightly toolchain with cargo-fuzz: the stable runner mutates inputs instead"
fi
(cd fuzz && cargo test --release --quiet)
