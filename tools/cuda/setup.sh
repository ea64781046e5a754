#!/usr/bin/env bash
# What compiles and checks the CUDA kernels, from pinned packages into target/cuda-venv. Needs Python 3 and a package
# registry; no GPU, driver or toolkit. Prints the venv's Python. Exit status 77: the packages cannot be had here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../target/cuda-venv
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    # --no-deps: the headers and libraries that these name are for host programs.
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --no-deps -r "$here/requirements.txt"; } >&2; then
        echo "!!!! SKIPPED: the packages of tools/cuda/requirements.txt cannot be had; CUDA kernels not compiled !!!!" >&2
        exit 77
    fi
    cp "$here/requirements.txt" "$venv/installed.txt"
fi
echo "$venv/bin/python"
