#!/usr/bin/env bash
# The CPU backend's conformance and step tests under AddressSanitizer: reads and writes outside of buffers, use after free.
#
#     tools/run-asan.sh [FILTER ...]
#
# FILTERs are names of tests; by default all run. The sanitizer's runtime is part of the toolchain, but its flag is
# unstable: RUSTC_BOOTSTRAP allows it. Build output is in target/asan.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
lib=$(rustc --print target-libdir)
if ! ls "$lib"/librustc-*_rt.asan.* >/dev/null 2>&1; then
    echo "!!!! NO AddressSanitizer runtime for $host in $(rustc --version): the CPU kernels' memory is not checked !!!!"
    exit 0
fi
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=target/asan
# A release build without debug information: addresses in a report still resolve to functions.
export CARGO_PROFILE_RELEASE_DEBUG=0
# Deliberately huge allocations are refused, as without the sanitizer.
export ASAN_OPTIONS="allocator_may_return_null=1:${ASAN_OPTIONS:-}"
cargo test --release --target "$host" -p qwen-backend-cpu --lib --test steps --test conformance -- "$@"
