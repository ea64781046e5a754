"""Checks the tensor-core kernels in the emulator against float64: python check_tensor.py [a word of the check's name].

Ragged shapes, in both orders of threads; then each barrier and each wait for copies is passed over in turn, which has
to show. Errors are relative RMS. Needs numpy and g++.
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from emulator import KERNELS, Emulator, KernelError, address, constants, structures

HERE = Path(__file__).resolve().parent
S, C = structures(), constants()
random = np.random.default_rng(1)


def build():
    out = Path(tempfile.mkdtemp()) / "kernels.so"
    command = ["sh", HERE / "build.sh", out, "-I", KERNELS, HERE / "mma_layouts.cpp"]
    subprocess.run(list(map(str, command)), check=True)
    return Emulator(out)


E = build()


def error(found, expected, least=0.0):
    """Relative to the RMS of what is expected, or to `least` where that is smaller."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if not np.isfinite(found).all():
        return np.inf
    return np.sqrt(((found - expected) ** 2).mean()) / max(np.sqrt((expected**2).mean()), least, 1e-300)


def to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(half, x):
    return to_bf16(x) if half == "bf16" else np.asarray(x, np.float16).view(np.uint16)


def decode(half, bits):
    return from_bf16(bits) if half == "bf16" else bits.view(np.float16).astype(np.float32)


def fields(name, **values):
    values = {k: address(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return S[name](**values)


# ---- Products


class Product:
    """Operands of a product and what should come out."""

    def __init__(self, half, op, tokens, rows, cols, heads=None, bias=True, encodings=(0, 0)):
        self.half, self.op, self.tokens, self.rows, self.cols = half, op, tokens, rows, cols
        stride = -(-cols // 8) * 8
        w = encode(half, np.pad(random.normal(0, cols**-0.5, (rows, cols)), ((0, 0), (0, stride - cols))))
        x = random.normal(0, 1, (tokens, cols)).astype(np.float32) * (10.0 if tokens > 1 else 1e4)
        scales = None
        scaled = x
        if half == "f16":
            scales = np.exp2(np.floor(np.log2(np.abs(x).max(1)))).astype(np.float32)
            scaled = x / scales[:, None]
        halves = encode(half, np.pad(scaled, ((0, 0), (0, stride - cols))))
        used = decode(half, halves).astype(np.float64) * (1 if scales is None else scales[:, None].astype(np.float64))
        self.least = np.sqrt((used**2).mean())
        self.sums = used @ decode(half, w).astype(np.float64).T
        self.w, self.halves, self.scales, self.stride = E.array(w), E.array(halves), scales, stride
        self.scales = None if scales is None else E.array(scales)
        self.bias = E.array(random.normal(0, 1, rows), np.float32) if bias and op in ("write", "heads") else None
        self.heads = heads or (0, 0, 2)
        self.encodings = encodings
        self.num_slots = 3 * tokens + 2
        self.slots = random.permutation(self.num_slots)[:tokens].astype(np.uint32)
        if op == "heads" and tokens > 2:
            self.slots[1] = self.num_slots + 5
        self.slots = E.array(self.slots)
        angles = random.normal(0, 3, (tokens, self.heads[2] // 2))
        self.cos_sin = E.array(np.concatenate([np.cos(angles), np.sin(angles)], 1), np.float32)
        self.pairs = rows // 2 if op in ("silu", "heads") else -(-rows // 2)

    def run(self, kernel, grid, block, shared=0):
        E.guarded, kept = E.guarded[:], E.guarded
        width = self.rows // 2 if self.op == "silu" else self.rows
        before = random.normal(0, 1, (self.tokens, width)).astype(np.float32)
        self.before = before
        self.out = E.array(before)
        queries, kv, head_dim = self.heads
        kinds = [np.float32 if e == 0 else np.float16 for e in self.encodings]
        self.keys = E.array(np.full((max(kv, 1), self.num_slots, head_dim), 7, kinds[0]))
        self.values = E.array(np.full((max(kv, 1), self.num_slots, head_dim), 7, kinds[1]))
        E.launch(
            kernel, grid, block,
            fields("Product", x=None, w=self.w, out=self.out, bias=self.bias, halves=self.halves, scales=self.scales,
                   cos_sin=self.cos_sin, slot_mapping=self.slots, keys=self.keys, values=self.values,
                   tokens=self.tokens, rows=self.rows, cols=self.cols, stride=self.stride,
                   num_attention_heads=queries, num_key_value_heads=kv, head_dim=head_dim, num_slots=self.num_slots,
                   key_encoding=self.encodings[0] and 2, value_encoding=self.encodings[1] and 2),
            shared,
        )  # fmt: skip
        E.guarded = kept

    def error(self):
        sums = self.sums + (0 if self.bias is None else self.bias.astype(np.float64))
        if self.op == "write":
            return error(self.out, sums, self.least)
        if self.op == "add":
            return error(self.out, self.before + sums, self.least)
        if self.op == "silu":
            gate, up = np.split(sums, 2, 1)
            # Far below zero e^x counts as 0.
            return error(self.out, gate / (1 + np.exp(np.minimum(-gate, 700))) * up)
        queries, kv, head_dim = self.heads
        half = head_dim // 2
        split = np.split(sums, [queries * head_dim, (queries + kv) * head_dim], 1)
        cos, sin = self.cos_sin[:, None, :half].astype(np.float64), self.cos_sin[:, None, half:].astype(np.float64)

        def turned(x):
            x = x.reshape(self.tokens, -1, head_dim)
            first, second = x[..., :half], x[..., half:]
            return np.concatenate([first * cos - second * sin, second * cos + first * sin], 2)

        worst = error(self.out[:, : queries * head_dim], turned(split[0]).reshape(self.tokens, -1))
        there = self.slots < self.num_slots
        for store, expected in [(self.keys, turned(split[1])), (self.values, split[2].reshape(self.tokens, kv, -1))]:
            full = np.full(store.shape, 7.0)
            full[:, self.slots[there]] = expected[there].transpose(1, 0, 2)
            wrong = error(store, np.clip(full, -65504, 65504) if store.dtype == np.float16 else full)
            worst = max(worst, wrong / 300 if store.dtype == np.float16 else wrong)
        return worst


def skinny(n, product):
    pairs = C["SKINNY_PAIRS"] if n < 4 else C["SKINNY_PAIRS_WIDE"]
    grid = (-(-product.pairs // pairs), 1, 1)
    product.run(f"skinny_{product.half}_n{n}_{product.op}", grid, C["SKINNY_THREADS"])


def matmul(product):
    grid = (-(-product.tokens // C["MATMUL_TOKENS"]), -(-product.pairs // C["MATMUL_PAIRS"]), 1)
    product.run(f"matmul_{product.half}_{product.op}", grid, C["MATMUL_THREADS"], C["MATMUL_SHARED"])


def both_orders(run):
    worst = 0.0
    for reverse in (False, True):
        E.reverse = reverse
        worst = max(worst, run())
    E.reverse = False
    return worst


def product_error(launch, *arguments, **options):
    def run():
        E.guarded.clear()
        product = Product(*arguments, **options)
        launch(product)
        return product.error()

    return both_orders(run)


# Shapes of matrices for an epilogue: rows, cols and the other arguments.
def shapes(op):
    if op == "heads":
        return [
            (6 * 64, 96, dict(heads=(4, 1, 64), encodings=(1, 1))),
            (4 * 16, 40, dict(heads=(2, 1, 16), encodings=(0, 1), bias=False)),
            (4 * 128, 24, dict(heads=(2, 1, 128), encodings=(0, 0))),
        ]
    if op == "silu":
        return [(26, 64, {}), (128, 900, {}), (2, 8, {}), (300, 33, {})]
    plain = [(50, 96), (35, 1), (1, 17), (129, 100), (257, 513), (16, 1100)]
    return [(*shape, {}) for shape in plain] + [(3, 130, dict(bias=False))]


def check_skinny():
    worst = 0.0
    for half in ("bf16", "f16"):
        for op in ("write", "add", "silu", "heads"):
            for n, counts in ((1, (1, 3, 8)), (2, (5, 9, 16)), (4, (17, 32)), (8, (33, 50, 64))):
                for rows, cols, options in shapes(op):
                    for tokens in counts if rows < 60 else counts[1:2]:
                        found = product_error(lambda p: skinny(n, p), half, op, tokens, rows, cols, **options)
                        require(found < 3e-6, f"skinny {half} n{n} {op} {tokens}x{cols}x{rows}: {found:.2g}")
                        worst = max(worst, found)
    return f"largest error {worst:.2g}"


def check_matmul():
    worst = 0.0
    for half in ("bf16", "f16"):
        for op in ("write", "add", "silu", "heads"):
            for rows, cols, options in shapes(op):
                for tokens in (1, 70, 130) if cols < 100 and rows < 200 else (65,):
                    found = product_error(matmul, half, op, tokens, rows, cols, **options)
                    require(found < 3e-6, f"matmul {half} {op} {tokens}x{cols}x{rows}: {found:.2g}")
                    worst = max(worst, found)
    return f"largest error {worst:.2g}"


def check_invariance():
    """A token's bits in `skinny` are the same among any number of tokens."""
    for half in ("bf16", "f16"):
        E.guarded.clear()
        whole = Product(half, "write", 64, 70, 700)
        skinny(8, whole)
        for n, first, tokens in ((1, 0, 8), (1, 63, 1), (2, 9, 16), (4, 32, 32), (8, 1, 40), (1, 20, 3)):
            part = Product(half, "write", tokens, 70, 700)
            part.w, part.bias = whole.w, whole.bias
            part.halves = E.array(whole.halves[first : first + tokens])
            part.scales = whole.scales if whole.scales is None else E.array(whole.scales[first : first + tokens])
            skinny(n, part)
            same = (part.out.view(np.uint32) == whole.out[first : first + tokens].view(np.uint32)).all()
            require(same, f"skinny {half} n{n}: tokens {first}..{first + tokens} differ from those among 64")
    return "the same bits"


# ---- Attention


class Attention:
    """A ragged batch over a paged store. `sequences`: computed positions and tokens of this step."""

    def __init__(self, key, head_dim, heads, sequences, block_size=16, biased=False, scale_of_keys=1.0, pad=(0, 0)):
        self.key, self.D, self.heads = key, head_dim, heads
        queries, kv = heads
        computed, tokens = np.array(sequences).T
        self.context = computed + tokens
        self.rows = int(tokens.sum())
        blocks = -(-self.context // block_size)
        order = random.permutation(int(blocks.sum()) + 3)
        tables = np.zeros((len(sequences) + pad[1], int(blocks.max()) + 1), np.uint32)
        self.num_slots = len(order) * block_size
        keys = np.full((kv, self.num_slots, head_dim), np.nan)
        values = np.full((kv, self.num_slots, head_dim), np.nan)
        bias = np.zeros(head_dim)
        if biased:
            bias[3], bias[40] = 250, -180
        used = 0
        self.slots = []
        for s, count in enumerate(blocks):
            tables[s, :count] = order[used : used + count]
            used += count
            p = np.arange(self.context[s])
            slots = tables[s, p // block_size].astype(np.int64) * block_size + p % block_size
            self.slots.append(slots)
            keys[:, slots] = (random.normal(0, 1, (kv, len(p), head_dim)) + bias) * scale_of_keys
            values[:, slots] = random.normal(0, 1, (kv, len(p), head_dim))
        # The values of keys as they were before the store rounded them, and what the store has.
        self.true_keys, self.true_values = keys.astype(np.float32), values.astype(np.float32)
        self.keys = E.array(keys, np.float32 if key == "f32" else np.float16)
        self.values = E.array(values, np.float16)
        width = (queries + 2 * kv) * head_dim
        qkv = random.normal(0, 1, (self.rows + pad[0], width)).astype(np.float32)
        qkv[self.rows :] = np.nan
        self.qkv = E.array(qkv)
        cu = np.concatenate([[0], np.cumsum(tokens), np.full(pad[1], self.rows)])
        self.cu = E.array(cu, np.uint32)
        self.context_lens = E.array(np.pad(self.context, (0, pad[1])), np.uint32)
        self.tables = E.array(tables)
        self.out = E.array(np.full((self.rows + pad[0], queries * head_dim), 7, np.float32))
        self.params = fields(
            "Attention", qkv=self.qkv, keys=self.keys, values=self.values, cu_seqlens_q=self.cu,
            context_lens=self.context_lens, block_tables=self.tables, out=self.out, records=None,
            num_tokens=self.rows + pad[0], num_seqs=len(tables), num_attention_heads=queries, num_key_value_heads=kv,
            head_dim=head_dim, block_size=block_size, max_blocks_per_seq=tables.shape[1], num_slots=self.num_slots,
            max_spans=0, key_encoding=0 if key == "f32" else 2, value_encoding=2, scale=head_dim**-0.5,
        )  # fmt: skip

    def run(self):
        tile = C["ATTENTION_TILE"]
        grid = (-(-self.params.num_tokens // tile) + self.params.num_seqs, self.heads[0], 1)
        shared = 2 * C["ATTENTION_TILE"] * self.D * (6 if self.key == "f32" else 4)
        E.launch(f"attention_tile_k{self.key}_d{self.D}", grid, C["ATTENTION_TILE_THREADS"], self.params, shared)

    def reference(self, keys, values):
        queries, kv = self.heads
        out = np.zeros((self.rows, queries * self.D))
        for s, slots in enumerate(self.slots):
            first, end = int(self.cu[s]), int(self.cu[s + 1])
            for h in range(queries):
                k = keys[h // (queries // kv), slots].astype(np.float64)
                v = values[h // (queries // kv), slots].astype(np.float64)
                q = self.qkv[first:end, h * self.D : (h + 1) * self.D].astype(np.float64)
                scores = q @ k.T * self.D**-0.5
                positions = np.arange(len(slots))[None] > np.arange(end - first)[:, None] + len(slots) - (end - first)
                scores[positions] = -np.inf
                p = np.exp(scores - scores.max(1, keepdims=True))
                out[first:end, h * self.D : (h + 1) * self.D] = p @ v / p.sum(1, keepdims=True)
        return out

    def errors(self):
        """Against the store as it is, and against keys and values before they were rounded to it."""
        if not (self.out[self.rows :] == 7).all():
            return np.inf, np.inf
        found = self.out[: self.rows]
        return (error(found, self.reference(self.keys, self.values)),
                error(found, self.reference(self.true_keys, self.true_values)))  # fmt: skip


def allowed(head_dim, context, biased):
    """qwen-core/src/conformance/tolerance.rs: attention in Fast."""
    u, f16 = 2.0**-24, 1.66e-3 / 8
    score = np.sqrt(1 + ((250**2 + 180**2) / head_dim if biased else 0))
    return u * (2 + context**0.5) + u * (4 + head_dim**0.5 * score) + 2 * f16 * np.sqrt(2 + 2 * score**2)


BATCHES = [
    dict(sequences=[(0, 9)]),
    dict(sequences=[(0, 33), (130, 1), (0, 1), (47, 16), (12, 5), (0, 17)], pad=(5, 3)),
    dict(sequences=[(0, 130), (100, 70)], block_size=48),
    dict(sequences=[(0, 40), (99, 1), (16, 9)], biased=True),
    dict(sequences=[(3, 1)] * 40),
]


def check_attention():
    lines = []
    for key in ("f16", "f32"):
        for D, heads in ((64, (2, 1)), (128, (2, 2))):
            for batch in BATCHES:
                biased = batch.get("biased", False)

                def run():
                    E.guarded.clear()
                    attention = Attention(key, D, heads, **batch)
                    attention.run()
                    return np.array(attention.errors())

                of_store, of_values = np.maximum(*[both(run, r) for r in (False, True)])
                limit = allowed(D, max(sum(s) for s in batch["sequences"]), biased)
                found = f"{of_store:.2g} against the store, {of_values:.2g} against what it rounded"
                require(of_store < 6e-4 and of_values < limit, f"attention_tile k{key} d{D} {batch}: {found}")
                lines.append(f"k{key} d{D} biased={biased}: {found}, {limit:.2g} allowed")
    return "\n  ".join(["errors"] + lines)


def both(run, reverse):
    E.reverse = reverse
    found = run()
    E.reverse = False
    return found


def check_attention_extremes():
    """Large and small keys and queries keep their accuracy; what is not finite stays so, and stays in its sequence."""
    for key, scale in (("f32", 1e30), ("f32", 1e-30), ("f32", 3e5), ("f16", 200.0)):
        E.guarded.clear()
        attention = Attention(key, 64, (2, 1), [(5, 20)], scale_of_keys=scale)
        attention.qkv[:] /= scale
        attention.run()
        found = attention.errors()[0]
        require(found < 6e-4, f"attention_tile k{key} with keys of {scale}: {found:.2g}")
    for key in ("f16", "f32"):
        for bad in (np.nan, np.inf, -np.inf):
            for where in ("query", "key", "value"):
                # What is stored as f16 is clamped: an infinity does not come there.
                if where != "query" and (key == "f16" or where == "value") and not np.isnan(bad):
                    continue
                E.guarded.clear()
                attention = Attention(key, 64, (2, 1), [(5, 20), (0, 70)])
                if where == "query":
                    attention.qkv[3, 7] = bad
                elif where == "key":
                    attention.keys[0, attention.slots[0][2], 11] = bad
                else:
                    attention.values[0, attention.slots[0][2], 11] = bad
                attention.run()
                row = attention.out[3, :64]
                lost = row[11] if where == "value" else row
                require(not np.isfinite(lost).any(), f"attention_tile k{key}: a {where} of {bad} gave {lost}")
                require(np.isfinite(attention.out[20:]).all(), f"attention_tile k{key}: {where} {bad} spread")
    return "as they should be"


# ---- Twins and waits


class MmaLayouts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("a", "b", "c", "transposed")]


def check_mma():
    for half in ("bf16", "f16"):
        E.guarded.clear()
        a, b = encode(half, random.normal(0, 1, (16, 16))), encode(half, random.normal(0, 1, (16, 8)))
        expected = decode(half, a).astype(np.float64) @ decode(half, b).astype(np.float64)
        for reverse in (False, True):
            E.reverse = reverse
            arrays = [E.array(a), E.array(b), *(E.array(np.zeros((16, 8), np.float32)) for _ in range(2))]
            E.launch(f"mma_layouts_{half}", (1, 1, 1), 32, MmaLayouts(*[address(x) for x in arrays]))
            for c in arrays[2:]:
                require(error(c, expected) < 1e-6, f"mma {half}: {error(c, expected):.2g}")
        E.reverse = False
    return "as the PTX ISA has it"


def check_ceiling():
    """ceiling_mma_bf16: a warp's products of signs, added to what its chains begin with."""
    rounds, threads = 3, C["CEILING_THREADS"]
    out = E.array(np.zeros(2 * threads, np.float32))
    E.launch("ceiling_mma_bf16", (2, 1, 1), threads, fields("Ceiling", out=out, rounds=rounds))
    thread = np.arange(threads)
    signs = (thread * 0x9E3779B9 & 0xFFFFFFFF).astype(np.uint64)
    for warp in range(threads // 32):
        of_lane, g, t = signs[32 * warp :][:32], thread[:32] // 4, thread[:32] % 4

        def values(shift, upper):
            return 1.0 - 2.0 * ((of_lane << np.uint64(shift)) >> np.uint64(31 if upper else 15) & np.uint64(1))

        a, b = np.zeros((16, 16)), np.zeros((16, 8))
        for upper in (0, 1):
            for i in range(4):
                a[g + i % 2 * 8, 2 * t + upper + i // 2 * 8] = values(i, upper)
            for i in range(2):
                b[2 * t + upper + 8 * i, g] = values(4 + i, upper)
        c = a @ b
        sums = c[g, 2 * t] + c[g, 2 * t + 1] + c[g + 8, 2 * t] + c[g + 8, 2 * t + 1]
        products = C["CEILING_MMA_FLOPS"] // 4096 * rounds
        expected = sums * products + 31 * 32 / 2
        for block in (0, 1):
            require((out[block * threads + 32 * warp :][:32] == expected).all(), f"ceiling_mma_bf16: warp {warp}")
    return "the sums of all products"


def check_waits():
    """Each barrier and wait for copies, passed over, has to show in one order at least."""

    def tensor(key, D):
        attention = Attention(key, D, (2, 1), [(0, 200)])
        attention.run()
        return attention.errors()[0] > 6e-4

    def product(launch, half, op, tokens, rows, cols):
        found = Product(half, op, tokens, rows, cols)
        launch(found)
        return found.error() > 3e-6

    runs = {
        "skinny n1": lambda: product(lambda p: skinny(1, p), "bf16", "write", 8, 40, 1100),
        "skinny n8": lambda: product(lambda p: skinny(8, p), "f16", "add", 64, 40, 1100),
        "matmul": lambda: product(matmul, "bf16", "write", 130, 130, 260),
        "attention f16": lambda: tensor("f16", 64),
        "attention f32": lambda: tensor("f32", 128),
    }
    lines = []
    for name, run in runs.items():
        E.guarded.clear()
        require(not run(), f"{name} is wrong with all waits")
        for wait in E.waits():
            shown = []
            for reverse in (False, True):
                E.reverse = reverse
                E.guarded.clear()
                E.without(wait)
                try:
                    shown.append("wrong" if run() else "unseen")
                except KernelError as e:
                    shown.append("error")
                E.without(None)
            E.reverse = False
            lines.append(f"{name} without {wait}: {shown[0]}, backwards {shown[1]}")
            if shown == ["unseen", "unseen"]:
                lines[-1] += "  <- not found"
    missed = [line for line in lines if "not found" in line]
    require(not missed, "; ".join(missed) + "\n all:\n  " + "\n  ".join(lines))
    return "\n  ".join(["each shows"] + lines)


FAILURES = []


def require(holds, what):
    if not holds:
        print("FAILED", what, flush=True)
        FAILURES.append(what)


word = sys.argv[1] if len(sys.argv) > 1 else ""
CHECKS = [check_mma, check_skinny, check_matmul, check_invariance, check_attention, check_attention_extremes]
for check in CHECKS + [check_ceiling, check_waits]:
    if word in check.__name__:
        try:
            print(f"{check.__name__}: {check()}", flush=True)
        except KernelError as e:
            require(False, f"{check.__name__}: {e}")
sys.exit(1 if FAILURES else 0)
