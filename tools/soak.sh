#!/usr/bin/env bash
# Runs an engine under random clients for some minutes: answers stay right, blocks are freed, memory does not grow.
#
#     tools/soak.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
QWEN_SOAK_SECONDS="${1:-180}" cargo test --release --test soak -- --nocapture
