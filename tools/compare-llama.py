#!/usr/bin/env python3
"""Compares throughput with llama.cpp, on the same files, threads and machine, interleaved.

    cargo build --release --example bench
    python3 tools/compare-llama.py --llama-bench PATH model-q4_0.gguf model-q4_k_m.gguf
    python3 tools/compare-llama.py --build target/llama.cpp model-q4_0.gguf

A shared machine's speed drifts within minutes, so each round runs both programs on a cell before the next round begins,
and the ratio is the median of the rounds' ratios. --build builds llama-bench for this CPU from the source in the Python
package llama-cpp-python; it needs a C++ compiler and takes ten minutes or more.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python==0.3.36"


def build(folder: Path) -> Path:
    """llama-bench, built in `folder` if it is not there."""
    program = folder / "build/bin/llama-bench"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "cmake", "ninja"], check=True)
    subprocess.run([*pip, "download", "--quiet", "--no-deps", "--no-binary", ":all:", PACKAGE, "-d", folder], check=True)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
    ninja = f"-DCMAKE_MAKE_PROGRAM={venv / 'bin/ninja'}"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=OFF"]
    cmake = venv / "bin/cmake"
    subprocess.run([cmake, "-G", "Ninja", ninja, *options, "-S", source, "-B", folder / "build"], check=True)
    subprocess.run([cmake, "--build", folder / "build", "--target", "llama-bench"], check=True)
    return program


def run(command: list) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
    return result.stdout


def ours(args: argparse.Namespace, model: Path, tokens: int, depth: int) -> dict:
    out = run([
        args.bench, "--model", model, "--prompt-tokens", tokens, "--new-tokens", args.new_tokens, "--depth", depth,
        "--threads", args.threads, "--repeat", 1, "--json",
    ])  # fmt: skip
    figures = json.loads(out)
    return {
        "prompt": figures["prompt_tokens_per_second"],
        "generation": figures["generation_tokens_per_second"],
        "share": figures["generation_share_of_memory"],
    }


def theirs(args: argparse.Namespace, model: Path, tokens: int, depth: int) -> dict:
    # Its generation begins at the depth alone.
    out = run([
        args.llama_bench, "-m", model, "-p", tokens, "-n", args.new_tokens, "-d", depth, "-t", args.threads, "-r", 1,
        "-fa", 1, "-o", "json",
    ])  # fmt: skip
    rows = json.loads(out)
    speed = lambda key: next(row["avg_ts"] for row in rows if row[key] > 0)
    return {"prompt": speed("n_prompt"), "generation": speed("n_gen")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files")
    parser.add_argument("--llama-bench", type=Path, help="the program")
    parser.add_argument("--build", type=Path, help="a folder to build it in")
    parser.add_argument("--bench", type=Path, default=ROOT / "target/release/examples/bench")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--depth", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.build:
        args.llama_bench = build(args.build)
    if not args.llama_bench:
        parser.error("--llama-bench or --build says where llama.cpp is")

    cells = [(m, t, d) for m in args.models for t in args.prompt_tokens for d in args.depth]
    measured: dict = {cell: [] for cell in cells}
    for number in range(args.rounds):
        for cell in cells:
            measured[cell].append((ours(args, *cell), theirs(args, *cell)))
            print(f"round {number + 1}: {cell[0].name}, {cell[1]} tokens at depth {cell[2]}", file=sys.stderr)

    print("| file | prompt | depth | prompt tokens/s | llama.cpp | ratio | generated tokens/s | llama.cpp | ratio | of reads |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (model, tokens, depth), rounds in measured.items():
        median = lambda figure: statistics.median(map(figure, rounds))
        columns = [model.stem, str(tokens), str(depth)]
        for name, digits in (("prompt", 1), ("generation", 2)):
            columns.append(f"{median(lambda r: r[0][name]):.{digits}f}")
            columns.append(f"{median(lambda r: r[1][name]):.{digits}f}")
            columns.append(f"{median(lambda r: r[0][name] / r[1][name]):.2f}")
        columns.append(f"{100 * median(lambda r: r[0]['share']):.0f} %")
        print("| " + " | ".join(columns) + " |")


if __name__ == "__main__":
    main()
