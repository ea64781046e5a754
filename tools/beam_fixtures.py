#!/usr/bin/env python3
"""Writes the beams that beam search is compared with: tests/data/beams.json.

    python -m venv target/beams && target/beams/bin/pip install torch==2.9.1 transformers==5.24.0
    target/beams/bin/python tools/beam_fixtures.py [golden suite]

A case has a checkpoint (of this repository, or of the full golden suite where its folder is given), a prompt, options
under the names of `BeamOptions`, and the sequences with their scores that transformers' `generate` finds in float64. Its
sums are in float32, so a case is only kept where float32 weights give the same sequences: nothing hangs on a rounding.
"""

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/data/beams.json"

logging.set_verbosity_error()
rng = random.Random(20261129)


def search(model, prompt, options):
    config = GenerationConfig(
        do_sample=False,
        num_beams=options["num_beams"],
        num_return_sequences=options["num_return_sequences"],
        length_penalty=options["length_penalty"],
        early_stopping=options["early_stopping"],
        max_new_tokens=options["max_new_tokens"],
        eos_token_id=options["stop_token_ids"] or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    # What the checkpoint says must not fill what is unset here.
    model.generation_config = GenerationConfig()
    with torch.no_grad():
        found = model.generate(torch.tensor([prompt]), generation_config=config)
    lengths = (found.beam_indices >= 0).sum(dim=1).tolist()
    sequences = [ids[len(prompt):len(prompt) + length].tolist() for ids, length in zip(found.sequences, lengths)]
    return sequences, found.sequences_scores.tolist()


def cases(name, folder, prompts):
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for dtype in (torch.float64, torch.float32)]
    for prompt in prompts:
        # Tokens that the best beams have: as stop tokens they end beams at unlike lengths.
        plain = {"num_beams": 8, "num_return_sequences": 8, "length_penalty": 0.0, "early_stopping": "never"}
        likely = search(models[0], prompt, plain | {"max_new_tokens": 6, "stop_token_ids": []})[0]
        likely = sorted({token for ids in likely for token in ids[2:]})
        for num_beams, length_penalty, early_stopping, max_new_tokens, ends in [
            (1, 1.0, False, 8, 1),
            (3, 1.0, False, 1, 1),
            (2, 1.0, True, 10, 1),
            (4, 1.0, False, 12, 0),
            (4, 1.0, False, 12, 2),
            (4, 0.0, "never", 12, 2),
            (5, 2.0, "never", 9, 2),
            (5, -1.0, False, 9, 2),
            (6, 0.6, True, 10, 3),
            (8, 1.3, False, 10, 3),
        ]:
            options = {
                "num_beams": num_beams,
                "num_return_sequences": max(1, num_beams - 1),
                "length_penalty": length_penalty,
                "early_stopping": early_stopping,
                "max_new_tokens": max_new_tokens,
                "stop_token_ids": sorted(rng.sample(likely, min(ends, len(likely)))),
            }
            (sequences, scores), (others, _) = (beams(models, i, prompt, options) for i in range(2))
            if sequences != others:
                print(f"{name}: left out, since it hangs on a rounding: {options}")
                continue
            yield {"checkpoint": name, "prompt": prompt, "options": options, "sequences": sequences, "scores": scores}


def beams(models, index, prompt, options):
    # A single beam is greedy search in transformers, which gives no score.
    if options["num_beams"] > 1:
        return search(models[index], prompt, options)
    model, ids, total = models[index], list(prompt), 0.0
    for _ in range(options["max_new_tokens"]):
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        ids.append(int(row.argmax()))
        total += float(row.max())
        if ids[-1] in options["stop_token_ids"]:
            break
    answer = ids[len(prompt):]
    return [answer], [total / len(answer) ** options["length_penalty"]]


def main():
    demo = ROOT / "examples/demo-model"
    tokenizer = AutoTokenizer.from_pretrained(demo)
    texts = ["Anna is 31 years old and", "What is 3 + 4?"]
    found = list(cases("examples/demo-model", demo, [tokenizer.encode(text) for text in texts]))
    tiny = "tests/data/golden/tiny-bf16"
    found += cases(tiny, ROOT / tiny, [[rng.randrange(2, 128) for _ in range(n)] for n in (1, 11)])
    for suite in map(Path, sys.argv[1:]):
        for name in ["dense-bf16", "dense-untied-hd128-bf16", "yarn-v5-bf16"]:
            prompts = [[rng.randrange(2, 512) for _ in range(n)] for n in (9, 40)]
            found += cases(f"golden/{name}", suite / name, prompts)
    for case in found:
        case["scores"] = [float(f"{score:.8g}") for score in case["scores"]]
    OUT.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    print(f"{len(found)} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
