#!/usr/bin/env bash
# An engine under random clients for some minutes: answers stay right, blocks come back, memory stays flat.
#
#     tools/soak.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
QWEN_SOAK_SECONDS="${1:-180}" cargo test --release --test soak -- --nocapture
