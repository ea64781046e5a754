#!/usr/bin/env bash
# Checks that all vector intrinsics are inlined in an optimised program: kernels that call them run several times
# slower. A reported one was used in a closure or a function that is compiled without the features of its instruction
# set.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:-target/release/examples/bench}
# `xsave` detects features; `loadu` in `try_map` is in the construction of one of the tokenizer's searchers.
calls=$(objdump --disassemble --demangle --no-show-raw-insn "$program" | awk '
    /^[0-9a-f]+ <.*>:$/ { within = $0; kernels += /qwen_backend_cpu::simd::.*::enter/ }
    /call.*<core::core_arch::/ && !/x86::xsave/ && !(within ~ /try_map/ && /_mm256_loadu_si256/) { print within " " $NF }
    END { if (!kernels) { print "no kernels found" } }' | sort | uniq -c)
if [ -n "$calls" ]; then
    echo "error: intrinsics that are calls in $program:" >&2
    echo "$calls" >&2
    exit 1
fi
echo "no intrinsic is a call in $program"
