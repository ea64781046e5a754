#!/usr/bin/env bash
# Run every example on the demo checkpoint, in one build with all devices.
#
# EXAMPLE_FLAGS are cargo's, where another build is there already (.ci/run: that of the tests).
set -euo pipefail
cd "$(dirname "$0")/.."
demo=examples/demo-model
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# shellcheck disable=SC2086
cargo build --quiet --release ${EXAMPLE_FLAGS:---all-features} --examples
run() {
    echo "-- $*" >&2
    local example=$1
    shift 2 # the name and --
    "${CARGO_TARGET_DIR:-target}/release/examples/$example" "$@"
}

# Where nothing is piped into it, a prompt is all there is.
run chat -- --prompt "Hello!" </dev/null | tee "$out/answer"
[ -s "$out/answer" ]
echo "Anna is 31 years old and lives in Oslo." | run chat -- --prompt "Turn this into JSON:" --json | grep -q '"finish_reason":"stop"'
printf 'What is 3 + 4?\nAnd 5 + 6?\n' | run chat --
# It is not an error if the reader of the output closes it early.
run chat -- --prompt "Hello!" </dev/null | head -c 1
echo
run plan -- --model "$demo" --json | head -c 1
echo
run quickstart --
run batch -- | tee "$out/batch"
grep -q "^> What is 3 + 4?" "$out/batch"
run sessions -- --file "$out/session.json"
run sessions -- --file "$out/session.json" | grep "going on after 6 messages"
run tools -- | tee "$out/tools"
grep -q "^\[calls get_time" "$out/tools"
run adapters -- | grep "^-- no adapter"
run structure -- | grep "^Person { name: \"Anna\", age: 31"
run structure -- --regex "yes|no" "Is the sky blue?" | grep -qxE "yes|no"
run embed -- "A cat." "A cat." | grep -q "0 and 1: 1.000"
run speculate -- | tee "$out/speculate"
grep -q "^the answers are equal" "$out/speculate"
echo '[{"text": "Hello"}, {"messages": [{"role": "user", "content": "Hello"}]}]' >"$out/in.json"
run tokenize -- --model "$demo" --json "$out/in.json" --out "$out/out.json"
grep -q '"ids"' "$out/out.json"
run logits -- --model "$demo" --ids 1,2,3 --prompt "Hello" --new 4 --out "$out/logits.safetensors"
[ -s "$out/logits.safetensors" ]
run plan -- --model "$demo"
run plan -- --model "$demo" --json >"$out/plan.json"
run bench -- --model "$demo" --prompt-tokens 64 --new-tokens 8 --repeat 1
run bench -- --model "$demo" --prompt-tokens 64 --new-tokens 8 --repeat 1 --json >"$out/bench.json"
grep -q prompt_share_of_arithmetic "$out/bench.json"
run bench -- --model "$demo" --requests 6 --prompt-tokens 32 --new-tokens 8 --repeat 1
run bench -- --model "$demo" --requests 6 --rate 200 --shared-tokens 64 --prompt-tokens 32 --new-tokens 8 --repeat 1 --json >"$out/bench.json"
grep -q first_token_p99 "$out/bench.json"
run bench -- --model "$demo" --turns 4 --prompt-tokens 200 --new-tokens 8 --repeat 1
run bench -- --model "$demo" --speculate --prompt-tokens 96 --new-tokens 64 --repeat 1
run custom_backend --
# Offline, an empty cache is an error that says so.
{ run pull -- --offline --cache "$out/cache" Qwen/absent 2>&1 || true; } | grep "^Error: Qwen/absent is not in the cache"
run devices -- --model "$demo"

# A quantised model answers, with and without importances.
run quantize -- "$demo" --to q8_0 --out "$out/small.gguf"
run chat -- --model "$out/small.gguf" --prompt "Hello!" </dev/null | tee "$out/answer"
[ -s "$out/answer" ]
run quantize -- "$demo" --to q4_k_m --out "$out/small.gguf" --imatrix "$demo/README.md"
run plan -- --model "$out/small.gguf"

# Its loss is measured against the original model, which has no divergence from itself.
run perplexity -- --model "$out/small.gguf" --base "$demo" --text "$demo/README.md" --window 32
run perplexity -- --model "$demo" --base "$demo" --precision exact --text "$demo/README.md" --window 32 --json >"$out/ppl.json"
grep -q '"divergence":0.0' "$out/ppl.json"

# Models from a GGUF file, its folder, and any part of a split one.
gguf="${QWEN_GOLDEN:-../shared/golden}/gguf-split-q4_0"
if [ -d "$gguf" ]; then
    run plan -- --model "$gguf"
    echo '[{"text": "Hello"}]' >"$out/text.json"
    run tokenize -- --model "$gguf" --json "$out/text.json" --out "$out/gguf.json"
    run logits -- --model "$gguf/model-00002-of-00004.gguf" --ids 1,2,3 --prompt "Hello" --out "$out/gguf.safetensors"
    run bench -- --model "$gguf" --prompt-tokens 16 --new-tokens 4 --repeat 1
else
    echo "!!!! NO GOLDENS at $gguf: no example runs on a GGUF file !!!!"
fi

# A model over several processes gives the same answer as in one process.
run ranks -- --ranks 1 --prompt "What is 3 + 4?" >"$out/one"
run ranks -- --ranks 2 --prompt "What is 3 + 4?" | tee "$out/two"
run ranks -- --ranks 3 --pipeline-parallel --prompt "What is 3 + 4?" >"$out/three"
[ -s "$out/one" ]
cmp "$out/one" "$out/two"
cmp "$out/one" "$out/three"

# A build for NVIDIA GPUs runs without a driver, and says why there is no GPU.
run devices -- | tee "$out/devices"
grep -q '^cuda' "$out/devices"

# The same on a GPU backend, where software Vulkan is installed.
run devices -- --model "$demo" --json >"$out/devices.json"
if grep -q llvmpipe "$out/devices.json"; then
    run chat -- --device wgpu:llvmpipe --prompt "Hello!" </dev/null | tee "$out/answer"
    [ -s "$out/answer" ]
    run chat -- --model "$out/small.gguf" --device wgpu:llvmpipe --prompt "Hello!" </dev/null | tee "$out/answer"
    [ -s "$out/answer" ]
    run quickstart -- --device wgpu:llvmpipe
    run plan -- --model "$demo" --device wgpu:llvmpipe
    run logits -- --model "$demo" --device wgpu:llvmpipe --ids 1,2,3 --new 4 --out "$out/wgpu.safetensors"
    [ -s "$out/wgpu.safetensors" ]
    run bench -- --model "$demo" --device wgpu:llvmpipe --wgpu-capabilities best \
        --prompt-tokens 16 --new-tokens 4 --repeat 1 --json >"$out/bench.json"
    grep -q generation_share_of_memory "$out/bench.json"
    run ranks -- --ranks 2 --device wgpu:llvmpipe --prompt "What is 3 + 4?" | tee "$out/two"
    [ -s "$out/two" ]
else
    echo "!!!! NO SOFTWARE VULKAN (llvmpipe): no example runs on a GPU backend !!!!"
fi
