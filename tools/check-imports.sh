#!/usr/bin/env bash
# Checks imports: the tokenizer and core import none of our crates, backends import only core; within core the engine
# never names a backend and the model never names the engine. No crate has an import cycle.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0

forbid() { # folder, pattern, rule
    if grep -rnE "$2" "$1" --include='*.rs' --include='Cargo.toml' | grep -vE '^\S+:[0-9]+:\s*//'; then
        echo "error: $3" >&2
        fail=1
    fi
}

forbid qwen-tokenizer 'qwen[-_](core|rs|backend)' 'qwen-tokenizer imports no crate of ours'
forbid qwen-core 'qwen[-_](tokenizer|rs|backend|conformance)' 'qwen-core imports no crate of ours'
forbid qwen-conformance 'qwen[-_](tokenizer|rs|backend)' 'qwen-conformance imports qwen-core only'
for backend in qwen-backend-*; do
    forbid "$backend" '(qwen[-_]tokenizer|^qwen-rs|use qwen::)' "$backend imports only qwen-core"
    for other in qwen-backend-*; do
        [ "$other" = "$backend" ] || forbid "$backend" "${other//-/[-_]}" "$backend does not know $other"
    done
done
forbid examples 'qwen_(core|tokenizer|backend)' 'examples import only the facade'
forbid qwen-core/src/engine 'Backend' 'the engine never names a backend'
forbid qwen-core/src/engine/kv 'Backend[^`:]' 'K/V bookkeeping never names a backend'
forbid qwen-core/src/model 'engine::' 'the model never names the engine'
# Only one module of core and one file of the facade know about processes; tests may name them.
if grep -rnE '(core|crate)::ranks' src qwen-core/src qwen-backend-*/src --include='*.rs' |
    grep -vE '^(src/distributed\.rs:|qwen-core/src/ranks/|[^:]*tests\.rs:)|^\S+:[0-9]+:\s*//'; then
    echo 'error: only qwen-core/src/ranks/ and src/distributed.rs name the module `ranks`' >&2
    fail=1
fi
python3 tools/check-circles.py || fail=1
[ "$fail" = 0 ] && echo "imports are in order"
exit "$fail"
