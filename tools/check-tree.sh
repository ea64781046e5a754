#!/usr/bin/env bash
# Checks that the facade's dependency trees stay small and free of C: no crate builds or binds foreign code.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0

# features, the maximum number of crates, the text in README.md that states the number
check() {
    local tree count
    tree=$(cargo tree -p qwen-rs --no-default-features --features "$1" -e normal,build --prefix none --no-dedupe |
        sed 's/ (.*//' | sort -u)
    count=$(printf '%s\n' "$tree" | wc -l)
    echo "$1: $count crates, our own included"
    # renderdoc-sys declares the types of a debugger's library, linux-raw-sys those of Linux system calls for rustix;
    # nothing is compiled or linked.
    if printf '%s\n' "$tree" | grep -E '^(cc|cmake|bindgen|pkg-config|[a-z0-9_-]+-sys) ' |
        grep -vE '^(renderdoc|linux-raw)-sys '; then
        echo "error: with $1 the crates above compile or bind C" >&2
        fail=1
    fi
    if ! grep -q "$count with \`$1\`" README.md; then
        echo "error: README.md states another number of crates with $1" >&2
        fail=1
    fi
    if [ "$count" -gt "$2" ]; then
        echo "error: more than $2 crates with $1" >&2
        fail=1
    fi
}

check cpu 90
check cpu,cuda 95
check cpu,wgpu 130
check cpu,hub 112
check cpu,structure 105

# The server has dependencies of its own, which bind no C either.
tree=$(cargo tree -p qwen-server -e normal,build --prefix none --no-dedupe | sed 's/ (.*//' | sort -u)
echo "the server: $(printf '%s\n' "$tree" | wc -l) crates"
if printf '%s\n' "$tree" | grep -E '^(cc|cmake|bindgen|pkg-config|[a-z0-9_-]+-sys) '; then
    echo "error: the crates of the server above compile or bind C" >&2
    fail=1
fi
exit "$fail"
