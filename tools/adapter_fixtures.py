#!/usr/bin/env python3
"""Writes small low-rank adapters and what peft computes with them: tests/data/adapters/.

    python -m venv target/adapters && target/adapters/bin/pip install torch==2.9.1 transformers==5.24.0 peft==0.21.2
    target/adapters/bin/python tools/adapter_fixtures.py

Each case is a folder as peft saves it, beside the golden case `tiny-bf16`, with random weights in place of a training
(peft begins with B = 0, which changes nothing). `cases.json` has for each case a prompt, the logits after it in float64,
the token with the largest one at each position, and what greedy search finds.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "tests/data/golden/tiny-bf16"
OUT = ROOT / "tests/data/adapters"

# How strongly B differs from 0: enough that every case changes what greedy search finds.
STRENGTH = 0.4

logging.set_verbosity_error()

CASES = {
    "attention-f32": (torch.float32, dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])),
    "all-linear-bf16": (torch.bfloat16, dict(r=2, lora_alpha=3, target_modules="all-linear")),
    "patterns-f16": (
        torch.float16,
        dict(
            r=2,
            lora_alpha=4,
            use_rslora=True,
            target_modules=["q_proj", "k_proj", "gate_proj", "up_proj", "down_proj"],
            rank_pattern={"k_proj": 1, r"layers\.1\.mlp\.up_proj": 3},
            alpha_pattern={"q_proj": 5.5, "model.layers.0.mlp.gate_proj": 1},
        ),
    ),
    "regex-f32": (torch.float32, dict(r=3, lora_alpha=6, target_modules=r".*\.(o_proj|down_proj)")),
    "one-layer-f32": (
        torch.float32,
        dict(r=2, lora_alpha=8, target_modules=["v_proj", "up_proj"], layers_to_transform=[1]),
    ),
}


def base(dtype):
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)


def make(name, dtype, options, generator):
    model = get_peft_model(base(torch.float32), LoraConfig(task_type="CAUSAL_LM", **options))
    folder = OUT / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tests/data/golden/tiny-bf16"
    # peft writes what this stands for; the file may have either.
    if options["target_modules"] == "all-linear":
        config["target_modules"] = "all-linear"
    elif isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        random = torch.randn(value.shape, generator=generator) * (STRENGTH if ".lora_B." in key else 0.3)
        tensors[key] = random.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def main():
    generator = torch.Generator().manual_seed(20261130)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    plain = base(torch.float64)
    cases = []
    for name, (dtype, options) in CASES.items():
        folder = make(name, dtype, options, generator)
        model = PeftModel.from_pretrained(base(torch.float64), folder, autocast_adapter_dtype=False).double().eval()
        prompt = torch.randint(2, 128, (9,), generator=generator).tolist()
        rows = logits(model, prompt)
        distance = (rows - logits(plain, prompt)).norm() / rows.norm()
        ids = list(prompt)
        margins = []
        for _ in range(12):
            row = logits(model, ids)[-1]
            top = row.topk(2).values
            margins.append(float(top[0] - top[1]))
            ids.append(int(row.argmax()))
        print(f"{name}: differs from the model by {distance:.3f}, smallest margin {min(margins):.4f}")
        if distance < 0.05:
            sys.exit(f"{name} hardly changes the model")
        cases.append(
            {
                "adapter": name,
                "prompt": prompt,
                "logits": [[float(f"{value:.7g}") for value in row] for row in rows[-2:].tolist()],
                "greedy": ids[len(prompt):],
                "margins": [float(f"{margin:.4g}") for margin in margins],
            }
        )
    (OUT / "cases.json").write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
    print(sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file()), "bytes")


if __name__ == "__main__":
    main()
