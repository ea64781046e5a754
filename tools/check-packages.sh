#!/usr/bin/env bash
# Checks the packages as a registry would get them: each has its licence and readme, none has tests, tools, fixtures or
# models, and none exceeds its size limit.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
complain() {
    echo "error: $1" >&2
    fail=1
}

# The size limit of each package in KiB, compressed. The CUDA backend contains its compiled kernels.
declare -A most=(
    [qwen-rs]=380
    [qwen-core]=340
    [qwen-tokenizer]=150
    [qwen-backend-cpu]=150
    [qwen-backend-wgpu]=150
    [qwen-backend-cuda]=2900
    [qwen-conformance]=100
)
# What no package may contain: the repository's own folders and files, and checkpoint files.
forbidden='(^|/)(tests?|benches|fuzz|tools|emulator|golden|demo-model|target|__pycache__|\.ci|\.git[a-z]*|\.github)(/|$)'
forbidden+='|(^|/)tests\.rs$|\.(safetensors|gguf|py|sh)$|(^|/)tokenizer(_config)?\.json$|(^|/)deny\.toml$'

# Offline if the registry's index is cached, as it is after any build.
# The server and the schemas of tests are not published.
package() {
    cargo package --workspace --exclude qwen-server --exclude qwen-schemas --no-verify --allow-dirty --quiet "$@" 2>"$log"
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
package --offline || package || { cat "$log" >&2; exit 1; }
# Cargo warns for each test that it is not in the package, which is intended.
grep -vE '^warning: ignoring (test|benchmark|example) `' "$log" >&2 || true

# One "name version folder" per line.
members=$(cargo metadata --no-deps --offline --format-version 1 | python3 -c '
import json, os, sys
metadata = json.load(sys.stdin)
for package in metadata["packages"]:
    if package["publish"] == []:
        continue
    print(package["name"], package["version"], os.path.join(metadata["target_directory"], "package"))')
while read -r name version folder; do
    file="$folder/$name-$version.crate"
    size=$((($(stat -c %s "$file") + 1023) / 1024))
    files=$(tar -tzf "$file" | sed "s#^$name-$version/##")
    echo "$name: $size KiB, $(wc -l <<<"$files") files"
    if [ -z "${most[$name]:-}" ]; then
        complain "$name has no limit in tools/check-packages.sh"
    elif [ "$size" -gt "${most[$name]}" ]; then
        complain "$name is larger than ${most[$name]} KiB; its largest files: $(
            tar -tvzf "$file" | sort -k3 -rn | head -n 3 | awk '{ print $6 " (" $3 ")" }' | tr '\n' ' ')"
    fi
    if grep -E "$forbidden" <<<"$files"; then complain "$name holds the files above"; fi
    for needed in LICENSE README.md Cargo.toml; do
        grep -qx "$needed" <<<"$files" || complain "$name has no $needed"
    done
    tar -xzOf "$file" "$name-$version/LICENSE" | cmp -s - LICENSE || complain "$name has another LICENSE than the repository"
done <<<"$members"
exit "$fail"
