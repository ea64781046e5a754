#!/usr/bin/env bash
# Type-checks the library for systems other than this one. Nothing is linked or run.
#
#     tools/check-systems.sh [TARGET ...]
#
# Uses the toolchain's standard library for a target, if rustup has it; otherwise builds it from source, from a
# toolchain with the component rust-src or from Debian's packages rustc-web and rust-web-src (installed by root). A
# target that cannot be checked is reported, and is not an error.
set -euo pipefail
cd "$(dirname "$0")/.."
# One target folder for all: procedural macros and build scripts, which run on this machine, are compiled once.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/systems" CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0
all=cpu,cuda,wgpu,mpi
# The whole check takes four minutes on two cores. On aarch64 Linux wgpu is the same as on x86-64, so it is only
# included if the target is named.
declare -A features=(
    [aarch64-unknown-linux-gnu]=cpu,cuda,mpi
    [aarch64-apple-darwin]=$all
    [x86_64-pc-windows-msvc]=$all
    [wasm32-unknown-unknown]=cpu
)
order=(aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-msvc wasm32-unknown-unknown)
# On this target the program has to choose the source of random numbers, by a flag for getrandom.
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS='--cfg getrandom_backend="custom"'

has_source() { [ -e "$("$@" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/Cargo.lock" ]; }

# Sets `compiler` to the compiler whose standard library can be built.
compiler=() installed=no
find_source() {
    [ ${#compiler[@]} = 0 ] || return 0
    local rustc
    for rustc in "rustc" "rustc +nightly"; do
        # shellcheck disable=SC2086
        if has_source $rustc; then
            compiler=(cargo ${rustc#rustc})
            return 0
        fi
    done
    local debian=/usr/bin/rustc
    if [ "$installed" = no ] && ! has_source "$debian" && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "installing rustc-web and rust-web-src"
        installed=yes
        { apt-get update && apt-get install -y --no-install-recommends rustc-web rust-web-src; } >/dev/null 2>&1 || true
    fi
    has_source "$debian" || return 1
    compiler=(env "RUSTC=$debian" cargo)
}

if [ $# -gt 0 ]; then
    features[aarch64-unknown-linux-gnu]=$all
else
    set -- "${order[@]}"
fi
fail=0
for target in "$@"; do
    check=(check --quiet -p qwen-rs --lib --no-default-features --features "${features[$target]:-$all}" --target "$target")
    started=$SECONDS
    if [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
        cargo "${check[@]}" || fail=1
    elif find_source; then
        # Building it needs an unstable option, even on stable compilers.
        RUSTC_BOOTSTRAP=1 "${compiler[@]}" "${check[@]}" -Zbuild-std=std,panic_abort -Zbuild-std-features=panic-unwind || fail=1
    else
        echo "!!!! NO STANDARD LIBRARY for $target (rustup target add $target): the library is not checked for it !!!!"
        continue
    fi
    [ "$fail" = 1 ] && { echo "error: the library does not type-check for $target" >&2; exit 1; }
    echo "$target, features ${features[$target]:-$all}: type-checks ($((SECONDS - started)) s)"
done
