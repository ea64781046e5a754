#!/usr/bin/env bash
# Tests the server with the clients that people use: the newest openai for Python with LangChain on top, and the 1.x line.
#
# QWEN_SERVER is the program; without it the server is built. Without the package index nothing is tested, and it says so.
set -euo pipefail
[ -z "${QWEN_SERVER:-}" ] || QWEN_SERVER=$(realpath "$QWEN_SERVER")
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
target=$(cd "$root" && realpath -m "${CARGO_TARGET_DIR:-target}")

if [ -z "${QWEN_SERVER:-}" ]; then
    # shellcheck disable=SC2086
    (cd "$root" && cargo build --quiet --release ${SERVER_FLAGS:--p qwen-server} --bin qwen-server)
    QWEN_SERVER="$target/release/qwen-server"
fi
export QWEN_SERVER

# Nothing between these clients and a server on this machine.
export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost

fail=0
for requirements in requirements.txt requirements-1.txt; do
    venv="$target/clients/${requirements%.txt}"
    if ! cmp -s "clients/$requirements" "$venv/installed"; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        if ! "$venv/bin/pip" install --quiet --disable-pip-version-check -r "clients/$requirements"; then
            echo "!!!! THE PACKAGES OF clients/$requirements CANNOT BE HAD HERE: the server is not tested with them !!!!"
            continue
        fi
        cp "clients/$requirements" "$venv/installed"
    fi
    echo "-- $("$venv/bin/pip" list --disable-pip-version-check 2>/dev/null | awk '$1 == "openai" || $1 == "langchain-openai" { printf "%s %s ", $1, $2 }')"
    "$venv/bin/python" -m pytest -q -rs -p no:cacheprovider --tb=short clients "$@" || fail=1
done
exit "$fail"
