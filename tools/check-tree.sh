#!/usr/bin/env bash
# The dependency tree of the facade stays small and free of C: no crate that builds or binds foreign code.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$(cargo tree -p qwen-rs -e normal,build --prefix none --no-dedupe | sed 's/ (.*//' | sort -u)
count=$(printf '%s\n' "$tree" | wc -l)
echo "$count crates, our own included"
if printf '%s\n' "$tree" | grep -E '^(cc|cmake|bindgen|pkg-config|[a-z0-9_-]+-sys) '; then
    echo "error: the crates above compile or bind C" >&2
    exit 1
fi
if ! grep -q "has $count crates" README.md; then
    echo "error: README.md states another number of crates" >&2
    exit 1
fi
if [ "$count" -gt 90 ]; then
    echo "error: more than 90 crates" >&2
    exit 1
fi
