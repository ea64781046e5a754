#!/usr/bin/env python3
"""Writes the embeddings that the demo model's are compared with: tests/data/embeddings.json.

    python -m venv target/embeddings && target/embeddings/bin/pip install torch==2.9.1 transformers==5.24.0
    target/embeddings/bin/python tools/embedding_fixtures.py

The hidden states after the final norm by transformers in float64, pooled and normalised as sentence-transformers does:
the last token's, or the mean over all tokens, with padding on the right and a mask, several texts in one batch; with
instructions in front of queries as the cards of such models have them.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples/demo-model"
OUT = ROOT / "tests/data/embeddings.json"

logging.set_verbosity_error()

TASK = "Given a question, find the passage that answers it"
TEXTS = [
    "Anna is 31 years old and lives in Oslo.",
    "A",
    f"Instruct: {TASK}\nQuery: Where does Anna live?",
    "Find the most relevant code snippet given the following query:\nsort a list",
]


def pooled(hidden, mask, pooling):
    if pooling == "last":
        last = mask.sum(dim=1) - 1
        return hidden[torch.arange(len(hidden)), last]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def main():
    tokenizer = AutoTokenizer.from_pretrained(DEMO, padding_side="right")
    model = AutoModel.from_pretrained(DEMO, dtype=torch.float64).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    cases = []
    for pooling in ["last", "mean"]:
        rows = torch.nn.functional.normalize(pooled(hidden, inputs["attention_mask"], pooling), dim=1)
        for text, tokens, row in zip(TEXTS, inputs["attention_mask"].sum(dim=1).tolist(), rows.tolist()):
            values = [float(f"{value:.7g}") for value in row]
            cases.append({"pooling": pooling, "text": text, "num_tokens": tokens, "values": values})
    OUT.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
    print(f"{len(cases)} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
