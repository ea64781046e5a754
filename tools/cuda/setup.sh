#!/usr/bin/env bash
# The compilers that make and check the CUDA kernels, from pinned packages, into target/cuda-venv. No driver, no card and
# no toolkit; only who changes a kernel needs them.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=target/cuda-venv
# NVRTC 12.1 writes PTX 8.1, which drivers from 530 on take; assembler and disassembler know every later card.
packages=(nvidia-cuda-nvrtc-cu12==12.1.105 nvidia-cuda-nvcc==13.0.88 nvidia-cuda-nvdisasm==13.2.51)
stamp="$venv/$(printf '%s ' "${packages[@]}" | sha256sum | cut -c1-16)"
if [ ! -e "$stamp" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${packages[@]}"
    touch "$stamp"
fi
