#!/usr/bin/env python3
"""Compile the CUDA kernels to the PTX that is kept in the repository.

    bash tools/cuda/setup.sh && python3 tools/cuda/compile.py
    python3 tools/cuda/compile.py --check       # fails when the PTX is stale; needs no compiler

Each source becomes one file of PTX in qwen-backend-cuda/kernels/ptx; SOURCES there holds a hash of everything that the
PTX depends on. With the compilers at hand --check also compiles anew and compares the text.
"""

import argparse
import concurrent.futures
import pathlib
import sys

from toolchain import PTX, VENV, digest, nvrtc, output, sources

HASHES = PTX / "SOURCES"


def compiled(source):
    """The PTX of a source, by a process of its own: a fault of the compiler ends that one alone."""
    return output([sys.executable, __file__, "--one", source])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--one", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(nvrtc(args.one))
        return
    hashes = {source.stem: digest(source) for source in sources()}
    listing = "".join(f"{hash}  {name}\n" for name, hash in hashes.items())
    stale = []
    if args.check:
        kept = dict(reversed(line.split()) for line in HASHES.read_text().splitlines()) if HASHES.exists() else {}
        files = {file.stem for file in PTX.glob("*.ptx")}
        stale = sorted({name for name in {*hashes, *kept, *files} if kept.get(name) != hashes.get(name) or name not in files})
    if not stale and (VENV.exists() or not args.check):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            texts = dict(zip(hashes, pool.map(compiled, sources())))
        if args.check:
            stale = [name for name, text in texts.items() if (PTX / f"{name}.ptx").read_text() != text]
        else:
            PTX.mkdir(exist_ok=True)
            for file in PTX.glob("*.ptx"):
                file.unlink()
            for name, text in texts.items():
                (PTX / f"{name}.ptx").write_text(text)
            HASHES.write_text(listing)
    elif not stale:
        print("!!!! NO COMPILERS (tools/cuda/setup.sh): only hashes were compared !!!!")
    if stale:
        sys.exit(f"stale PTX: {', '.join(stale)}; run tools/cuda/compile.py")
    size = sum(file.stat().st_size for file in PTX.glob("*.ptx"))
    print(f"{len(hashes)} sources, {size / 1024:.0f} KiB of PTX, up to date")


if __name__ == "__main__":
    main()
