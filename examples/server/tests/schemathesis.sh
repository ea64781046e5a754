#!/usr/bin/env bash
# Holds the server to its own description: requests made from openapi.json, right and wrong ones, and what it answers.
#
# QWEN_SERVER is the program; without it the server is built. SECONDS_AT_MOST bounds the run. Requests that fit the
# description may still be refused: token ids that the model does not have, fields that go only with others.
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
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 NO_COLOR=1

venv="$target/clients/schemathesis"
if [ ! -x "$venv/bin/schemathesis" ]; then
    python3 -m venv "$venv"
    if ! "$venv/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5; then
        rm -rf "$venv"
        echo "!!!! schemathesis CANNOT BE HAD HERE: the server is not held to openapi.json !!!!"
        exit 0
    fi
fi

work=$(mktemp -d)
"$QWEN_SERVER" --model "${QWEN_MODEL:-$root/examples/demo-model}" --port 0 >"$work/out" 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" || true; rm -rf "$work"' EXIT
until grep -q "listening on" "$work/out"; do
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/.*listening on //p' "$work/out")
until curl -sf "$url/health" >/dev/null; do sleep 0.1; done

# It leaves what it found where it runs.
description=$(realpath ../openapi.json)
cd "$work"
most=${SECONDS_AT_MOST:-60}
if ! timeout $((most + 120)) "$venv/bin/schemathesis" run "$description" --url "$url" \
    --phases examples,coverage,fuzzing --checks all --exclude-checks positive_data_acceptance,ignored_auth \
    --continue-on-failure --generation-deterministic --max-examples 20 --max-time "$most" --request-timeout 60 --no-color >"$work/report" 2>&1; then
    cat "$work/report"
    exit 1
fi
sed -n '/SUMMARY/,$p' "$work/report"
kill -0 "$server"
