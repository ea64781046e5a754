#!/usr/bin/env python3
"""Writes the cases that the samplers are compared with: qwen-core/tests/data/sampling.json.

    python -m venv target/sampling && target/sampling/bin/pip install torch==2.9.1 transformers==5.24.0 numpy
    target/sampling/bin/python tools/sampling_fixtures.py

A case has logits, a prompt, an answer so far, parameters under the names of `SamplingParams`, and the logits after all
stages: null for a token that is out. Where transformers has a processor, it made them, in the order of its `generate`.
What it lacks is computed here by its definition: top-n-sigma (Tang et al. 2024), XTC and DRY (p-e-w 2024), mirostat 2
(Basu et al. 2021), dynamic temperature, presence and frequency penalties (OpenAI's API), and the order of vLLM and
llama.cpp. A second list has log-probabilities in float64.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from transformers.generation import logits_process as hf

OUT = Path(__file__).resolve().parent.parent / "qwen-core/tests/data/sampling.json"
STOP = [0, 1]

rng = random.Random(20261129)


def row(size, deviation):
    """Distinct logits with four digits: ties have no order in torch."""
    values = set()
    while len(values) < size:
        values.add(round(rng.gauss(0, deviation), 4))
    values = list(values)
    rng.shuffle(values)
    return values


def softmax(x):
    weights = np.exp(x - np.max(x))
    return weights / weights.sum()


# What transformers has, each with the class that it uses.
def by_transformers(name, params, prompt, tokens):
    value = params[name]
    return {
        "repetition_penalty": lambda: hf.RepetitionPenaltyLogitsProcessor(value),
        "no_repeat_ngram_size": lambda: hf.NoRepeatNGramLogitsProcessor(value),
        "banned_sequences": lambda: hf.NoBadWordsLogitsProcessor(value),
        "min_new_tokens": lambda: hf.MinNewTokensLengthLogitsProcessor(len(prompt), value, STOP),
        "logit_bias": lambda: hf.SequenceBiasLogitsProcessor([[[int(i)], float(b)] for i, b in value.items()]),
        "banned_token_ids": lambda: hf.SuppressTokensLogitsProcessor(value),
        "temperature": lambda: hf.TemperatureLogitsWarper(value),
        "top_k": lambda: hf.TopKLogitsWarper(value),
        "top_p": lambda: hf.TopPLogitsWarper(value),
        "min_p": lambda: hf.MinPLogitsWarper(value),
        "typical_p": lambda: hf.TypicalLogitsWarper(value),
        "epsilon_cutoff": lambda: hf.EpsilonLogitsWarper(value),
        "eta_cutoff": lambda: hf.EtaLogitsWarper(value),
    }[name]()


# What it lacks: functions of the logits (float64, -inf for what is out), the parameters, the prompt and all tokens.
def counted(params, prompt, tokens):
    window = params.get("penalty_window", 64 if params.get("preset") == "llama_cpp" else None)
    if window is not None:
        return tokens[len(tokens) - min(window, len(tokens)):], True
    return tokens[len(prompt):], False


def presence_penalty(x, params, prompt, tokens):
    for token in set(counted(params, prompt, tokens)[0]):
        x[token] -= params["presence_penalty"]
    return x


def frequency_penalty(x, params, prompt, tokens):
    for token in counted(params, prompt, tokens)[0]:
        x[token] -= params["frequency_penalty"]
    return x


def repetition_penalty(x, params, prompt, tokens):
    """Over a window; without one it is transformers'."""
    for token in set(counted(params, prompt, tokens)[0]):
        x[token] = x[token] * params["repetition_penalty"] if x[token] < 0 else x[token] / params["repetition_penalty"]
    return x


def dry(x, params, prompt, tokens):
    p = {"base": 1.75, "allowed_length": 2, "range": 0, "sequence_breakers": []} | params["dry"]
    window = tokens if p["range"] == 0 else tokens[-p["range"]:]
    # A match may not include the end of a breaker: at most this many tokens.
    limit = len(window)
    for length in range(len(window) + 1):
        head = window[: len(window) - length]
        if any(head[len(head) - len(b):] == b for b in p["sequence_breakers"] if len(b) <= len(head)):
            limit = length
            break
    longest = {}
    for at in range(len(window) - 1):
        length = 0
        while length <= at and length < limit and window[at - length] == window[len(window) - 1 - length]:
            length += 1
        longest[window[at + 1]] = max(longest.get(window[at + 1], 0), length)
    for token, length in longest.items():
        if length >= p["allowed_length"]:
            x[token] -= p["multiplier"] * p["base"] ** (length - p["allowed_length"])
    return x


def top_n_sigma(x, params, *_):
    left = x[np.isfinite(x)]
    x[x < left.max() - params["top_n_sigma"] * left.std()] = -np.inf
    return x


def dynatemp_range(x, params, *_):
    p = softmax(x[np.isfinite(x)])
    entropy = -(p * np.log(p)).sum()
    middle, reach = params.get("temperature", 1.0), params["dynatemp_range"]
    low, high = max(0.0, middle - reach), middle + reach
    relative = (entropy / math.log(len(p))) ** params.get("dynatemp_exponent", 1.0)
    return x / (low + (high - low) * relative)


def xtc_probability(x, params, *_):
    assert params["xtc_probability"] == 1.0, "a fixture leaves nothing to chance"
    p = softmax(x)
    top = [i for i in np.argsort(-p) if p[i] >= params["xtc_threshold"]]
    x[top[:-1]] = -np.inf
    return x


def allowed_token_ids(x, params, *_):
    left = x[params["allowed_token_ids"]]
    x[:] = -np.inf
    x[params["allowed_token_ids"]] = left
    return x


def mirostat(x, params, *_):
    """The first token: its bound is twice tau."""
    p = softmax(x)
    out = -np.log2(np.maximum(p, 1e-300)) > 2 * params["mirostat"]["tau"]
    out[np.argmax(p)] = False
    x[out] = -np.inf
    return x


MASKS = ["allowed_token_ids", "banned_token_ids", "banned_sequences", "no_repeat_ngram_size", "min_new_tokens"]
PENALTIES = ["logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty", "dry"]
ORDERS = {
    "transformers": ["top_n_sigma", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "xtc_probability", "mirostat"],
    "vllm": ["temperature", "min_p", "top_k", "top_p"],
    "llama_cpp": ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_probability", "temperature", "mirostat"],
}
# Parameters that go with another one.
PARTS = {"xtc_threshold", "dynatemp_exponent", "penalty_window", "preset", "stages"}
STAGES = {"xtc": "xtc_probability"}


def process(params, logits, prompt, answer):
    tokens = prompt + answer
    order = MASKS + PENALTIES + ORDERS[params.get("preset", "transformers")]
    if "stages" in params:
        order = MASKS + [STAGES.get(stage, stage) for stage in params["stages"]]
    order = ["dynatemp_range" if n == "temperature" and "dynatemp_range" in params else n for n in order]
    unused = set(params) - set(order) - PARTS - ({"temperature"} if "dynatemp_range" in params else set())
    assert not unused, unused
    x = np.array(logits, dtype=np.float64)
    for name in order:
        if name not in params:
            continue
        windowed = name == "repetition_penalty" and counted(params, prompt, tokens)[1]
        if name in globals() and (name != "repetition_penalty" or windowed):
            x = globals()[name](x, params, prompt, tokens)
        else:
            processor = by_transformers(name, params, prompt, tokens)
            ids = torch.tensor([tokens], dtype=torch.long)
            x = processor(ids, torch.tensor(x[None], dtype=torch.float64))[0].numpy().copy()
    return x


def case(params, size=32, deviation=2.0, prompt=12, answer=8, logits=None):
    logits = row(size, deviation) if logits is None else logits
    size = len(logits)
    prompt = [rng.randrange(size) for _ in range(prompt)] if isinstance(prompt, int) else prompt
    answer = [rng.randrange(size) for _ in range(answer)] if isinstance(answer, int) else answer
    found = process(params, logits, prompt, answer)
    assert np.isfinite(found).any()
    left = [float(f"{v:.8g}") if np.isfinite(v) else None for v in found]
    return {"params": params, "logits": logits, "prompt": prompt, "answer": answer, "left": left}


def cases():
    # One stage at a time, at several settings.
    for name, values in {
        "temperature": [0.1, 0.7, 2.5],
        "top_k": [1, 5, 31],
        "top_p": [0.1, 0.5, 0.8, 0.95, 0.999],
        "min_p": [0.01, 0.1, 0.9],
        "typical_p": [0.05, 0.2, 0.5, 0.9, 0.99],
        "epsilon_cutoff": [0.001, 0.02, 0.3],
        "eta_cutoff": [0.001, 0.02, 0.3],
        "top_n_sigma": [0.3, 1.0, 2.0],
        "repetition_penalty": [0.8, 1.05, 1.5],
        "presence_penalty": [1.5, -0.5],
        "frequency_penalty": [0.7, -0.5],
        "no_repeat_ngram_size": [1, 2],
    }.items():
        for value in values:
            params = {name: value} | ({} if name == "temperature" else {"temperature": 1.0})
            yield case(params, size=rng.choice([20, 32, 60]), deviation=rng.choice([0.5, 2.0, 4.0]))
    # What needs a history of its own.
    yield case({"no_repeat_ngram_size": 3, "temperature": 1.0}, prompt=[3, 4, 5, 6, 3, 4, 7], answer=[9, 3, 4])
    yield case({"banned_sequences": [[5], [3, 4, 6], [4, 7], [9]], "temperature": 1.0}, prompt=[2, 3], answer=[4])
    yield case({"banned_token_ids": [7, 3, 11], "allowed_token_ids": [2, 3, 5, 7, 20], "temperature": 1.0})
    yield case({"min_new_tokens": 9, "temperature": 1.0}, answer=8)
    yield case({"min_new_tokens": 8, "temperature": 1.0}, answer=8)
    yield case({"logit_bias": {"3": 2.5, "9": -4.0, "15": 100.0}, "temperature": 1.0})
    yield case({"penalty_window": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "temperature": 1.0})
    loop = [4, 5, 6, 7, 8, 9, 4, 5, 6, 3, 5, 6, 7, 2, 4, 5, 6]
    for dry in [
        {"multiplier": 0.8},
        {"multiplier": 0.5, "base": 3.0, "allowed_length": 1},
        {"multiplier": 0.8, "range": 9},
        {"multiplier": 0.8, "allowed_length": 1, "sequence_breakers": [[5]]},
        {"multiplier": 0.8, "allowed_length": 1, "sequence_breakers": [[31], [4, 5]]},
    ]:
        yield case({"dry": dry, "temperature": 1.0}, prompt=loop[:10], answer=loop[10:])
    for threshold in [0.0, 0.02, 0.1, 0.3]:
        yield case({"xtc_probability": 1.0, "xtc_threshold": threshold, "temperature": 1.0})
    for deviation, exponent in [(0.5, 1.0), (3.0, 1.0), (2.0, 2.5)]:
        params = {"temperature": 1.0, "dynatemp_range": 0.5, "dynatemp_exponent": exponent}
        yield case(params, deviation=deviation)
    for tau in [0.5, 1.5, 3.0]:
        yield case({"mirostat": {"tau": tau, "eta": 0.1}, "temperature": 0.9}, answer=0)
    # A row with ids that are ruled out already.
    yield case({"temperature": 0.8, "top_p": 0.9, "banned_token_ids": list(range(0, 30, 2))}, size=40)
    yield case({"temperature": 1.0, "typical_p": 0.7, "banned_token_ids": list(range(0, 30, 2))}, size=40)
    yield case({"temperature": 1.0, "top_n_sigma": 1.0, "banned_token_ids": list(range(0, 30, 2))}, size=40)
    # Chains, in each order.
    instruct = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    for size, deviation in [(32, 1.0), (60, 2.0), (60, 4.0)]:
        yield case(dict(instruct), size=size, deviation=deviation)
        yield case(instruct | {"preset": "vllm", "min_p": 0.02, "frequency_penalty": 0.3}, size=size, deviation=deviation)
        yield case(instruct | {"preset": "llama_cpp", "min_p": 0.05, "presence_penalty": 0.3}, size=size, deviation=deviation, prompt=70)
    everything = {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.95, "epsilon_cutoff": 0.002}
    everything |= {"eta_cutoff": 0.004, "repetition_penalty": 1.1, "logit_bias": {"8": 1.5}, "no_repeat_ngram_size": 2}
    yield case(dict(everything), size=60)
    yield case(everything | {"top_n_sigma": 2.0, "xtc_probability": 1.0, "xtc_threshold": 0.1}, size=60)
    yield case({"temperature": 2.0, "top_k": 9, "min_p": 0.1, "typical_p": 0.9, "stages": ["typical_p", "min_p", "temperature", "top_k"]})
    yield case({"temperature": 2.0, "top_k": 9, "repetition_penalty": 1.4, "stages": ["top_k", "temperature", "repetition_penalty"]})


def logprobs():
    for size, deviation in [(20, 2.0), (60, 5.0), (40, 30.0)]:
        logits = row(size, deviation)
        exact = torch.tensor(logits, dtype=torch.float32).double().log_softmax(-1)
        yield {"logits": logits, "logprobs": [float(v) for v in exact]}


def main():
    data = {"stop_token_ids": STOP, "cases": list(cases()), "logprobs": list(logprobs())}
    OUT.write_text("{\n" + ",\n".join(
        f'"{key}": ' + (json.dumps(value) if key == "stop_token_ids" else "[\n" + ",\n".join(map(json.dumps, value)) + "\n]")
        for key, value in data.items()
    ) + "\n}\n")
    print(f"{len(data['cases'])} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
