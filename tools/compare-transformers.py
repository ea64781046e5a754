#!/usr/bin/env python3
"""Runs the bench example and transformers on torch, alternating, on the same checkpoint.

    cargo build --release --example bench
    python tools/compare-transformers.py --model PATH

    python tools/compare-transformers.py --model PATH --device cuda

Needs torch and transformers. Both run in bf16, on the CPU with the same number of
threads; they alternate, so that a shared machine treats them alike. Prints
tokens per second of a prompt and of generation, the medians of all turns.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import time

import torch
from transformers import AutoModelForCausalLM

BENCH = pathlib.Path(__file__).resolve().parent.parent / "target/release/examples/bench"


def ours(args):
    """(prompt, generation) tokens a second by the bench example, and its whole report."""
    command = [args.bench, "--model", args.model, "--prompt-tokens", args.prompt_tokens, "--new-tokens", args.new_tokens,
               "--threads", args.threads, "--device", args.device, "--repeat", 1, "--json"]
    report = json.loads(subprocess.run(map(str, command), check=True, capture_output=True).stdout)
    return report["prompt_tokens_per_second"], report["generation_tokens_per_second"], report


def theirs(model, args):
    """(prompt, generation) tokens a second by transformers with a growing cache."""
    ids = torch.randint(0, 300, (1, args.prompt_tokens), device=args.device)
    # A card computes behind the program's back: it is done when an id has come back.
    with torch.no_grad():
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        int(out.logits[0, -1].argmax())
        prompt = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(args.new_tokens - 1):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        int(out.logits[0, -1].argmax())
        generation = time.perf_counter() - start
    return args.prompt_tokens / prompt, (args.new_tokens - 1) / generation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bench", default=BENCH, help="the bench example; built with --features cuda for a card")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to(args.device)
    model.eval()
    theirs(model, args)  # the first pass builds torch's caches
    turns = []
    for _ in range(args.repeat):
        prompt, generation, report = ours(args)
        turns.append((prompt, generation, *theirs(model, args), report))
        print(f"turn: ours {prompt:.1f} and {generation:.2f}, transformers {turns[-1][2]:.1f} and {turns[-1][3]:.2f};"
              f" prompt at {report['prompt_share_of_arithmetic']:.1%} of arithmetic,"
              f" generation at {report['generation_share_of_memory']:.1%} of memory", flush=True)
    for name, our, their in (("prompt", 0, 2), ("generation", 1, 3)):
        a, b = (statistics.median(turn[i] for turn in turns) for i in (our, their))
        print(f"{name}: {a:.2f} tokens/s, transformers {b:.2f}, ratio {a / b:.2f}")


if __name__ == "__main__":
    main()
