#!/usr/bin/env bash
# Reads files written by the example `quantize` with the Python package `gguf`, the reader of llama.cpp's tools.
# Needs Python 3 and its package registry; the packages go to target/.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import gguf' 2>/dev/null || "$venv/bin/pip" install --quiet numpy==1.26.4 gguf==0.19.0
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# shellcheck disable=SC2086
cargo build --quiet --release ${EXAMPLE_FLAGS:-} --example quantize
for mix in bf16 f16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 q3_k_s; do
    "${CARGO_TARGET_DIR:-target}/release/examples/quantize" examples/demo-model --to "$mix" --out "$out/$mix.gguf" 2>/dev/null >/dev/null
done
"$venv/bin/python" tools/check-gguf.py examples/demo-model "$out"/*.gguf
