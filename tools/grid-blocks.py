#!/usr/bin/env python3
"""What the IQ2 and IQ3 formats are checked with, and the source of their grids.

    pip install gguf==0.19.0 numpy==1.26.4
    tools/grid-blocks.py fixture    writes qwen-core/tests/data/grid-blocks.safetensors
    tools/grid-blocks.py grids      writes qwen-core/src/numerics/encoding/grids/tables.rs

The fixture has for each type random blocks that among them point at every entry of the grid, the values of the first
two blocks as the `gguf` package decodes them, and of every block a digest of its values (FNV-1a, 64 bits, over their
little-endian bytes). Each entry of a grid is written as one u16: the number of each coordinate's level, the first
coordinate in the lowest bits.
"""

import json
import random
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType as T

ROOT = Path(__file__).resolve().parent.parent
WHOLE = 2  # blocks whose values are kept

rng = random.Random(20250214)


def scale():
    """An F16 scale of either sign, about as large as those of trained weights."""
    return np.float16(rng.choice([-1, 1]) * 2 ** rng.uniform(-14, 3)).tobytes()


def byte(n):
    return bytes(rng.randrange(256) for _ in range(n))


def blocks(t):
    """Random blocks that point at every entry of the grid once."""
    entries, width = quants._type_traits[t].grid_shape
    order = list(range(entries))
    rng.shuffle(order)
    for at in range(0, entries, 256 // width):
        points = order[at : at + 256 // width]
        low = bytes(p & 255 for p in points)
        if t == T.IQ2_XXS:
            body = b"".join(low[i : i + 4] + byte(4) for i in range(0, 32, 4))
        elif t == T.IQ2_XS:
            body = b"".join(struct.pack("<H", p | rng.randrange(128) << 9) for p in points) + byte(8)
        elif t == T.IQ2_S:
            high = bytes(sum((points[i + l] >> 8) << 2 * l for l in range(4)) for i in range(0, 32, 4))
            body = low + byte(32) + high + byte(8)
        elif t == T.IQ3_XXS:
            body = low + byte(32)
        else:
            high = bytes(sum((points[i + l] >> 8) << l for l in range(8)) for i in range(0, 64, 8))
            body = low + high + byte(32) + byte(4)
        yield scale() + body


def fnv1a(data):
    digest = 0xCBF29CE484222325
    for value in data:
        digest = (digest ^ value) * 0x100000001B3 % 2**64
    return digest


def fixture():
    tensors = {}
    for t in TYPES:
        data = np.frombuffer(b"".join(blocks(t)), dtype=np.uint8).reshape(-1, quants.GGML_QUANT_SIZES[t][1])
        values = quants.dequantize(data, t)
        assert values.dtype == np.float32 and np.isfinite(values).all()
        digests = b"".join(struct.pack("<Q", fnv1a(row.tobytes())) for row in values)
        name = t.name.lower()
        tensors[f"{name}.values"] = ("F32", [WHOLE, 256], values[:WHOLE].tobytes())
        tensors[f"{name}.bytes"] = ("U8", list(data.shape), data.tobytes())
        tensors[f"{name}.digests"] = ("U8", [len(data), 8], digests)
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    path = ROOT / "qwen-core/tests/data/grid-blocks.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + b"".join(d for _, _, d in tensors.values()))
    print(path, path.stat().st_size)


def grids():
    lines = [
        "//! The grids as numbers of levels, the first coordinate in the lowest bits: written by `tools/grid-blocks.py grids`",
        "//! out of those in the `gguf` Python package (MIT), which are constants of the formats.",
    ]
    for t in TYPES:
        traits = quants._type_traits[t]
        traits.init_grid()
        entries, width = traits.grid_shape
        bits = 16 // width if width == 8 else 3
        level = {v: i for i, v in enumerate(traits.grid_map)}
        grid = np.asarray(traits.grid).reshape(entries, width)
        codes = [sum(level[int(v)] << bits * i for i, v in enumerate(row)) for row in grid]
        assert len(set(codes)) == entries
        lines += ["", "#[rustfmt::skip]", f"pub(super) const {t.name}: [u16; {entries}] = ["]
        lines += ["    " + " ".join(f"{c:#06x}," for c in codes[i : i + 14]) for i in range(0, entries, 14)]
        lines += ["];"]
    path = ROOT / "qwen-core/src/numerics/encoding/grids/tables.rs"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(path)


TYPES = [T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S]

if __name__ == "__main__":
    {"fixture": fixture, "grids": grids}[sys.argv[1]]()
