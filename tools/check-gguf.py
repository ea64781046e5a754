#!/usr/bin/env python3
"""Compare GGUF files with the bf16 checkpoint that they were made from, reading them with the package `gguf`.

    python3 tools/check-gguf.py CHECKPOINT FILE.gguf ...

Each tensor is dequantised by the package and compared with its source; hyperparameters, tokens, merges and the template
with config.json and the tokenizer's files.
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

# Relative RMS errors of the types, with room for a tensor whose values are not spread evenly.
LIMITS = {
    "F32": 0, "BF16": 0, "F16": 1e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q5_K": 0.06, "Q5_1": 0.06, "Q5_0": 0.08,
    "Q4_K": 0.12, "Q4_1": 0.12, "Q4_0": 0.15, "Q3_K": 0.25,
}


def safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file in bf16, as f32."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", f"{name} is in {entry['dtype']}"
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(data[start:end], "<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return tensors


def check(path: Path, folder: Path) -> str:
    reader = gguf.GGUFReader(path)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    source = safetensors(folder / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])

    worst: dict[str, float] = {}
    written = {tensor.name: tensor for tensor in reader.tensors}
    for name, values in source.items():
        tensor = written.pop(names.get_name(name, try_suffixes=(".weight", ".bias")))
        kind = tensor.tensor_type.name
        read = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64).reshape(values.shape)
        error = np.sqrt(((read - values) ** 2).sum() / max((values.astype(np.float64) ** 2).sum(), 1e-30))
        assert error <= LIMITS[kind], f"{path.name}: {name} in {kind} has the error {error}"
        worst[kind] = max(worst.get(kind, 0), error)
    assert not written, f"{path.name}: has {list(written)} besides"

    value = lambda key: reader.fields[key].contents()
    for key, expected in {
        "general.architecture": "qwen2",
        "qwen2.block_count": config["num_hidden_layers"],
        "qwen2.context_length": config["max_position_embeddings"],
        "qwen2.embedding_length": config["hidden_size"],
        "qwen2.feed_forward_length": config["intermediate_size"],
        "qwen2.attention.head_count": config["num_attention_heads"],
        "qwen2.attention.head_count_kv": config["num_key_value_heads"],
        "qwen2.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
        "tokenizer.ggml.merges": tokenizer["model"]["merges"],
    }.items():
        assert value(key) == expected, f"{path.name}: {key} is {value(key)!r}, expected {expected!r}"
    tokens = value("tokenizer.ggml.tokens")
    assert len(tokens) == len(value("tokenizer.ggml.token_type")) == config["vocab_size"]
    known = tokenizer["model"]["vocab"] | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    for token, index in known.items():
        assert tokens[index] == token, f"{path.name}: token {index} is {tokens[index]!r}, expected {token!r}"
    return ", ".join(f"{kind} {error:.4f}" for kind, error in sorted(worst.items()))


def main() -> None:
    folder, *files = (Path(arg) for arg in sys.argv[1:])
    for path in files:
        print(f"{path.name}: {check(path, folder)}")
    assert files, "no file was given"


if __name__ == "__main__":
    main()
