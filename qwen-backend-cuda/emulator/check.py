"""Every plain kernel on ragged shapes, forwards and backwards, against a plain reference; then without each wait.

    python check.py EMULATOR.so [kernel name begins with ...]

Each case runs in both orders of threads and has to agree with its reference. Then each barrier is passed over in turn:
some case has to fail in at least one order, or the barrier is not needed. Needs numpy.
"""

import sys
import time

import numpy as np

from emulator import Emulator, KernelError, address, constants, structures

S, C = structures(), constants()
STORED = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
ENCODING = {"f32": 0, "bf16": 1, "f16": 2}


def ceil(a, b):
    return -(-a // b)


def stored(values, encoding):
    """As an array of `encoding`, and the values that this has, in float64."""
    if encoding == "bf16":
        bits = values.astype(np.float32).view(np.uint32)
        bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return bits, decoded(bits, encoding)
    array = values.astype(STORED[encoding])
    return array, array.astype(np.float64)


def decoded(array, encoding):
    if encoding == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def padded_rows(matrix, align=8):
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % align)))


def silu(x):
    return x / (1 + np.exp(-x))


class Wrong(Exception):
    pass


def near(what, got, want, tolerance):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise Wrong(f"{what}: shape {got.shape}, not {want.shape}")
    if (np.isnan(got) != np.isnan(want)).any():
        raise Wrong(f"{what}: {np.isnan(got).sum()} NaNs, not {np.isnan(want).sum()}")
    error = np.nan_to_num(np.abs(got - want)).max(initial=0) / max(1.0, np.nan_to_num(np.abs(want)).max(initial=0))
    if not error <= tolerance:
        raise Wrong(f"{what}: off by {error:.1e}, at most {tolerance:.0e}")


def exact(what, got, want):
    if np.asarray(got).tobytes() != np.asarray(want).tobytes():
        raise Wrong(f"{what}: other bits")


# Each case takes an emulator and a generator, launches, and raises Wrong.


def case_embed(e, rng, encoding):
    for cols in (896, 13):
        table, values = stored(rng.normal(size=(11, cols)), encoding)
        table = e.array(padded_rows(table))
        ids = e.array([3, 10, 11, 0, 0xFFFFFFFF], np.uint32)
        out = e.array(np.full((5, cols), np.nan, np.float32))
        p = S["Embed"](address(ids), address(table), address(out), 5, cols, table.shape[1], 11, ENCODING[encoding], 0)
        e.launch("embed", (5, 1, 1), 128, p)
        want = np.stack([values[i] if i < 11 else np.zeros(cols) for i in ids])
        near("embed", out, want, 0)


def rotated(x, cos_sin):
    """Heads [tokens, heads, head_dim] turned by [tokens, head_dim]."""
    half = x.shape[-1] // 2
    c, s = cos_sin[:, None, :half], cos_sin[:, None, half:]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def product_case(e, rng, kernel, geometry, encoding, ending, tokens, cols):
    heads, kv, head_dim, slots = 3, 2, 10, 9
    rows = {"write": 35, "add": 37, "silu": 70, "heads": (heads + 2 * kv) * head_dim}[ending]
    w, wv = stored(rng.normal(size=(rows, cols)), encoding)
    w = e.array(padded_rows(w))
    x = e.array(rng.normal(size=(tokens, cols)), np.float32)
    bias = e.array(rng.normal(size=rows), np.float32) if ending in ("write", "heads") else None
    before = rng.normal(size=(tokens, rows // 2 if ending == "silu" else rows)).astype(np.float32)
    out = e.array(before)
    cos_sin = e.array(rng.normal(size=(tokens, head_dim)), np.float32)
    slot = e.array(np.where(np.arange(tokens) == 1, slots, rng.permutation(max(slots, tokens))[:tokens]), np.uint32)
    keys = e.array(np.zeros((kv, slots, head_dim), np.float16))
    values = e.array(np.zeros((kv, slots, head_dim), np.float32))
    p = S["Product"]()
    for name, array in dict(
        x=x, w=w, out=out, bias=bias, cos_sin=cos_sin, slot_mapping=slot, keys=keys, values=values
    ).items():
        setattr(p, name, address(array))
    p.tokens, p.rows, p.cols, p.stride = tokens, rows, cols, w.shape[1]
    p.num_attention_heads, p.num_key_value_heads, p.head_dim, p.num_slots = heads, kv, head_dim, slots
    p.key_encoding, p.value_encoding = ENCODING["f16"], ENCODING["f32"]
    pairs = ceil(rows, 2)
    e.launch(kernel, geometry(pairs, tokens), C[kernel.split("_")[0].upper() + "_THREADS"], p)
    sums = x.astype(np.float64) @ wv.T
    tolerance = 1e-6 * np.sqrt(cols) + 1e-6
    if ending == "write":
        near(kernel, out, sums + bias, tolerance)
    elif ending == "add":
        near(kernel, out, before + sums, tolerance)
    elif ending == "silu":
        near(kernel, out, silu(sums[:, : rows // 2]) * sums[:, rows // 2 :], tolerance)
    else:
        qkv = (sums + bias).reshape(tokens, -1, head_dim)
        turned = rotated(qkv[:, : heads + kv], cos_sin.astype(np.float64))
        want = before.astype(np.float64).reshape(qkv.shape)
        want[:, :heads] = turned[:, :heads]
        near(kernel, out, want.reshape(tokens, -1), tolerance)
        want_keys, want_values = np.zeros((kv, slots, head_dim)), np.zeros((kv, slots, head_dim))
        for t, s in enumerate(slot):
            if s < slots:
                want_keys[:, s] = turned[t, heads:]
                want_values[:, s] = qkv[t, heads + kv :]
        near(kernel + " keys", keys, want_keys, 1e-3)
        near(kernel + " values", values, want_values, tolerance)
    return x, w, out


def case_matvec(e, rng, encoding, ending):
    for cols in (72, 13, 1200):
        for t in (1, 2, 4, 8):
            for tokens in (1, t, 2 * t + 1):
                kernel = f"matvec_{encoding}_t{t}_{ending}"
                product_case(
                    e,
                    rng,
                    kernel,
                    lambda pairs, tokens: (ceil(pairs, C["MATVEC_PAIRS"]), ceil(tokens, t), 1),
                    encoding,
                    ending,
                    tokens,
                    cols,
                )


def case_matvec_invariance(e, rng, encoding):
    """A token's bits are the same alone and among others, whatever kernel takes them."""
    for cols in (1200, 77):
        tokens, rows = 9, 12
        w = e.array(padded_rows(stored(rng.normal(size=(rows, cols)), encoding)[0]))
        x = rng.normal(size=(tokens, cols)).astype(np.float32)

        def run(part, t):
            x_part, out = e.array(part), e.array(np.zeros((len(part), rows), np.float32))
            p = S["Product"](x=address(x_part), w=address(w), out=address(out))
            p.tokens, p.rows, p.cols, p.stride = len(part), rows, cols, w.shape[1]
            grid = (ceil(rows // 2, C["MATVEC_PAIRS"]), ceil(len(part), t), 1)
            e.launch(f"matvec_{encoding}_t{t}_write", grid, C["MATVEC_THREADS"], p)
            return out

        alone = np.concatenate([run(x[i : i + 1], 1) for i in range(tokens)])
        for t in (1, 2, 4, 8):
            for first in (0, 1):
                exact(f"matvec_{encoding}_t{t}", run(x[first:], t), alone[first:])


def case_tile(e, rng, encoding, ending):
    for cols, tokens in ((72, 5), (13, 66), (200, 65)):
        product_case(
            e,
            rng,
            f"tile_{encoding}_{ending}",
            lambda pairs, tokens: (ceil(pairs, C["TILE_PAIRS"]), ceil(tokens, C["TILE_TOKENS"]), 1),
            encoding,
            ending,
            tokens,
            cols,
        )


def case_halve(e, rng, encoding):
    for cols in (13, 2100):
        x = rng.normal(size=(6, cols)).astype(np.float32) * 10.0 ** rng.integers(-6, 7, size=(6, 1)).astype(np.float32)
        x[1] = 0
        x[2, 3], x[3, 4], x[4] = np.nan, -np.inf, 0
        x[4, 5] = -1e-40
        stride = ceil(cols, 8) * 8
        x = e.array(x)
        halves = e.array(np.full((6, stride), 0x5555, np.uint16))
        scales = e.array(np.zeros(6, np.float32))
        p = S["Halve"](address(x), address(halves), address(scales), 6, cols, stride, 0)
        e.launch(f"halve_{encoding}", (6, 1, 1), C["HALVE_THREADS"], p)
        if (halves[:, cols:] != 0).any():
            raise Wrong("halve: padding is not zero")
        if encoding == "bf16":
            got, want = decoded(halves[:, :cols], encoding), stored(x, encoding)[1]
            near("halve_bf16", np.nan_to_num(got), np.nan_to_num(want), 0)
            continue
        with np.errstate(all="ignore"):
            largest = np.nanmax(np.abs(x), axis=1).astype(np.float64)
            power = np.exp2(np.maximum(np.floor(np.log2(largest)), -126))
            power = np.where((largest == 0) | np.isinf(largest), 1, power)
            near("halve_f16 scales", scales / power, np.ones(6), 0)
            want = (x.astype(np.float64) / power[:, None]).astype(np.float16)
        got = halves[:, :cols].view(np.float16)
        near("halve_f16", np.isnan(got), np.isnan(want), 0)
        exact("halve_f16", got[~np.isnan(want)], want[~np.isnan(want)])


def case_rms_norm(e, rng):
    for hidden in (896, 13, 8192, 8196, 3584):
        for with_y in (True, False):
            x, y = rng.normal(size=(2, 3, hidden)).astype(np.float32)
            weight = e.array(rng.normal(size=hidden), np.float32)
            total = x.astype(np.float64) + (y if with_y else 0)
            x, y, out = e.array(x), e.array(y), e.array(np.zeros_like(x))
            p = S["RmsNorm"](
                address(x), address(y) if with_y else None, address(weight), address(out), hidden, 3, 1e-6, 0
            )
            e.launch("rms_norm", (3, 1, 1), C["NORM_THREADS"], p)
            want = total / np.sqrt((total**2).mean(1, keepdims=True) + 1e-6) * weight
            near("rms_norm", out, want, 1e-6)
            near("rms_norm x", x, total, 1e-6)


def heads_params(e, rng, key, value, head_dim=12):
    tokens, heads, kv, slots = 4, 3, 2, 6
    qkv = e.array(rng.normal(size=(tokens, heads + 2 * kv, head_dim)), np.float32)
    cos_sin = e.array(rng.normal(size=(tokens, head_dim)), np.float32)
    slot = e.array([5, 6, 0, 2], np.uint32)
    keys = e.array(np.zeros((kv, slots, head_dim), STORED[key]))
    values = e.array(np.zeros((kv, slots, head_dim), STORED[value]))
    p = S["Heads"](address(qkv), address(cos_sin), address(slot), address(keys), address(values), tokens, heads, kv)
    p.head_dim, p.num_slots, p.key_encoding, p.value_encoding = head_dim, slots, ENCODING[key], ENCODING[value]
    return p, qkv, cos_sin, slot, keys, values


def case_rope(e, rng):
    p, qkv, cos_sin, *_ = heads_params(e, rng, "f32", "f16")
    want = qkv.astype(np.float64)
    want[:, :5] = rotated(want[:, :5], cos_sin.astype(np.float64))
    e.launch("rope", (4, 1, 1), 128, p)
    near("rope", qkv, want, 1e-6)


def case_store_kv(e, rng):
    for key, value in (("f32", "f16"), ("f16", "f32")):
        p, qkv, _, slot, keys, values = heads_params(e, rng, key, value)
        qkv[0, 4, 1], qkv[2, 5, 1], qkv[3, 4, 0], qkv[3, 6, 0] = 1e6, -1e6, np.nan, np.nan
        e.launch("store_kv", (4, 1, 1), 128, p)
        for array, first in ((keys, 3), (values, 5)):
            want = np.zeros(array.shape)
            for t, s in enumerate(slot):
                if s < 6:
                    want[:, s] = qkv[t, first : first + 2]
            limited = np.clip(want, -65504, 65504) if array.dtype == np.float16 else want
            near("store_kv", array, limited.astype(array.dtype), 0)


def attention_batch(e, rng, key, value, head_dim, heads, kv, lens, block_size=16, tokens_padded=0):
    """`lens`: for each sequence its tokens in the step, and its context with them."""
    tokens = sum(n for n, _ in lens)
    blocks = [ceil(context, block_size) for _, context in lens]
    num_blocks, width = sum(blocks) + 2, max(blocks)
    order, tables = rng.permutation(num_blocks), np.full((len(lens), width), 0xFFFFFFFF, np.uint32)
    for s, n in enumerate(blocks):
        tables[s, :n], order = order[:n], order[n:]
    slots = num_blocks * block_size
    # Blocks that are no sequence's hold NaNs: nobody may see them.
    k, v = rng.normal(size=(2, kv, slots, head_dim))
    unused = np.ones(slots, bool)
    for s, (_, context) in enumerate(lens):
        for position in range(context):
            unused[tables[s, position // block_size] * block_size + position % block_size] = False
    k[:, unused], v[:, unused] = np.nan, np.nan
    k, v = e.array(k.astype(STORED[key])), e.array(v.astype(STORED[value]))
    qkv = e.array(rng.normal(size=(tokens + tokens_padded, heads + 2 * kv, head_dim)) * 2, np.float32)
    cu = e.array(np.cumsum([0] + [n for n, _ in lens]), np.uint32)
    context = e.array([c for _, c in lens], np.uint32)
    tables = e.array(tables)
    out = e.array(np.full((tokens + tokens_padded, heads, head_dim), -7, np.float32))
    p = S["Attention"](address(qkv), address(k), address(v), address(cu), address(context), address(tables))
    p.out, p.num_tokens, p.num_seqs = address(out), tokens + tokens_padded, len(lens)
    p.num_attention_heads, p.num_key_value_heads, p.head_dim = heads, kv, head_dim
    p.block_size, p.max_blocks_per_seq, p.num_slots = block_size, width, slots
    p.key_encoding, p.value_encoding, p.scale = ENCODING[key], ENCODING[value], head_dim**-0.5
    return p, qkv, k, v, tables, out


def attention_reference(p, qkv, k, v, tables, lens):
    heads, group = p.num_attention_heads, p.num_attention_heads // p.num_key_value_heads
    want, token = np.full((p.num_tokens, heads, p.head_dim), -7.0), 0
    for s, (n, context) in enumerate(lens):
        slots = [tables[s, i // p.block_size] * p.block_size + i % p.block_size for i in range(context)]
        for i in range(n):
            seen = slots[: context - n + i + 1]
            for h in range(heads):
                scores = k[h // group, seen].astype(np.float64) @ qkv[token, h].astype(np.float64) * p.head_dim**-0.5
                weights = np.exp(scores - scores.max())
                want[token, h] = weights @ v[h // group, seen].astype(np.float64) / weights.sum()
            token += 1
    return want


def attention_grid(p):
    group = p.num_attention_heads // p.num_key_value_heads
    return (ceil(p.num_tokens * group, C["ATTENTION_ROWS"]), p.num_key_value_heads, 1)


def run_split(e, p, kernel, out, splits):
    """By records and attention_merge."""
    group, spans = p.num_attention_heads // p.num_key_value_heads, ceil(p.max_blocks_per_seq * p.block_size, 128)
    records = e.array(np.full((p.num_tokens, p.num_attention_heads, spans, p.head_dim + 2), np.nan, np.float32))
    p.records, p.max_spans = address(records), spans
    out[:] = -7
    grid = (p.num_tokens * ceil(group, C["ATTENTION_ROWS"]), p.num_key_value_heads, splits)
    e.launch(kernel, grid, C["ATTENTION_THREADS"], p)
    e.launch("attention_merge", (p.num_attention_heads, p.num_tokens, 1), C["MERGE_THREADS"], p)
    p.records = None


def case_attention(e, rng, key, value, d):
    kernel = f"attention_k{key}_v{value}_d{d}"
    for head_dim in sorted({d, d - 8 if d == 32 else d - 24}):
        for heads, kv, lens, padding in (
            (7, 1, [(1, 300)], 0),
            (6, 2, [(1, 5), (3, 130), (1, 1), (9, 140)], 3),
            (18, 2, [(1, 129), (1, 256)], 1),
        ):
            p, qkv, k, v, tables, out = attention_batch(
                e, rng, key, value, head_dim, heads, kv, lens, tokens_padded=padding
            )
            e.launch(kernel, attention_grid(p), C["ATTENTION_THREADS"], p)
            near(kernel, out, attention_reference(p, qkv, k, v, tables, lens), 3e-6)
            together = out.copy()
            for splits in (1, 2, 3):
                run_split(e, p, kernel, out, splits)
                exact(f"{kernel} from records", out, together)


def case_attention_invariance(e, rng):
    """A chunk's bits are the same as those of its tokens one by one."""
    p, qkv, k, v, tables, out = attention_batch(e, rng, "f16", "f16", 64, 6, 2, [(5, 133)])
    e.launch("attention_kf16_vf16_d64", attention_grid(p), 128, p)
    for i in range(5):
        one, out_one = e.array(qkv[i : i + 1]), e.array(np.zeros((1, 6, 64), np.float32))
        cu, context = e.array([0, 1], np.uint32), e.array([129 + i], np.uint32)
        p.qkv, p.out, p.cu_seqlens_q, p.context_lens = map(address, (one, out_one, cu, context))
        p.num_tokens = 1
        e.launch("attention_kf16_vf16_d64", attention_grid(p), 128, p)
        exact("attention one by one", out_one[0], out[i])


def case_attention_damage(e, rng):
    """A NaN in a key, a value or a query comes out; an infinity is not hidden."""
    for what in ("key", "value", "query", "infinite value"):
        lens = [(1, 200)]
        p, qkv, k, v, tables, out = attention_batch(e, rng, "f16", "f16", 64, 2, 1, lens)
        slot = tables[0, 100 // 16] * 16 + 100 % 16
        target = {"key": k[0, slot], "value": v[0, slot], "query": qkv[0, 0], "infinite value": v[0, slot]}[what]
        target[3] = np.inf if "inf" in what else np.nan
        e.launch("attention_kf16_vf16_d64", attention_grid(p), 128, p)
        if np.isfinite(out[0, 0]).all():
            raise Wrong(f"attention: a damaged {what} was hidden")
        together = out.copy()
        run_split(e, p, "attention_kf16_vf16_d64", out, 2)
        near("attention damaged", np.isfinite(out), np.isfinite(together), 0)


def case_attention_merge(e, rng):
    """More spans than the merging block has threads."""
    heads, d, spans = 2, 40, 300
    qkv, cu = e.array(np.zeros((1, 4, d), np.float32)), e.array([0, 1], np.uint32)
    context = e.array([spans * 128 - 5], np.uint32)
    records = rng.normal(size=(1, heads, spans, d + 2)).astype(np.float32)
    records[..., d] *= 9
    records[..., d + 1] = np.exp(rng.normal(size=(1, heads, spans)))
    records, out = e.array(records), e.array(np.zeros((1, heads, d), np.float32))
    p = S["Attention"](qkv=address(qkv), cu_seqlens_q=address(cu), context_lens=address(context))
    p.out, p.records, p.max_spans, p.num_tokens, p.num_seqs = address(out), address(records), spans, 1, 1
    p.num_attention_heads, p.num_key_value_heads, p.head_dim = heads, 1, d
    e.launch("attention_merge", (heads, 1, 1), C["MERGE_THREADS"], p)
    r = records[0].astype(np.float64)
    share = np.exp(r[..., d] - r[..., d].max(1, keepdims=True))
    want = (share[..., None] * r[..., :d]).sum(1) / (share * r[..., d + 1]).sum(1)[:, None]
    near("attention_merge", out[0], want, 1e-5)


def case_silu_and_mul(e, rng):
    x = rng.normal(size=(3, 2 * 300)).astype(np.float32) * 30
    x[0, 0], x[0, 1], x[0, 2] = -200, 200, np.nan
    x, out = e.array(x), e.array(np.zeros((3, 300), np.float32))
    e.launch("silu_and_mul", (2, 3, 1), 256, S["Rows"](address(x), None, address(out), 3, 300))
    with np.errstate(over="ignore"):
        near("silu_and_mul", out, silu(x[:, :300].astype(np.float64)) * x[:, 300:], 1e-6)


def case_add(e, rng):
    x, before = rng.normal(size=(2, 7, 90)).astype(np.float32)
    x, out = e.array(x), e.array(before)
    e.launch("add", (3, 1, 1), 256, S["Rows"](address(x), None, address(out), 7, 90))
    near("add", out, x + before, 0)


def case_gather_rows(e, rng):
    x, indices = e.array(rng.normal(size=(9, 300)), np.float32), e.array([8, 0, 8], np.uint32)
    out = e.array(np.zeros((3, 300), np.float32))
    e.launch("gather_rows", (3, 1, 1), 256, S["Rows"](address(x), address(indices), address(out), 3, 300))
    near("gather_rows", out, x[indices], 0)


def case_argmax(e, rng):
    for width, valid in ((20000, 19999), (4099, 4099), (8, 3), (7, 7)):
        x = rng.normal(size=(6, width)).astype(np.float32)
        x[:, valid:] = 99
        x[0, [valid - 1, valid // 2]] = 50
        x[1, valid - 1], x[2, 1] = 60, -np.inf
        x[3, valid // 2] = np.nan
        x[4] = -5
        x, out = e.array(x), e.array(np.zeros(6, np.uint32))
        e.launch("argmax", (6, 1, 1), C["ARGMAX_THREADS"], S["Argmax"](address(x), address(out), 6, width, valid, 0))
        want = np.where(np.isfinite(x[:, :valid]).all(1), x[:, :valid].argmax(1), 0xFFFFFFFF)
        near("argmax", out, want, 0)


def case_copy_blocks(e, rng):
    array = rng.integers(0, 256, size=(3, 7, 48 * 60), dtype=np.uint8)
    want = array.copy()
    want[:, 5], want[:, 0] = array[:, 2], array[:, 6]
    array, pairs = e.array(array), e.array([2, 5, 6, 0, 7, 1], np.uint32)
    p = S["CopyBlocks"](address(array), address(pairs), 3, 7, array.shape[2], 0)
    e.launch("copy_blocks", (3, 3, 1), 128, p)
    exact("copy_blocks", array, want)


def case_ceiling(e, rng):
    data = rng.integers(0, 2**32, size=4 * 5000, dtype=np.uint32)
    data, sums, copy = e.array(data), e.array(np.zeros(3 * 256, np.uint32)), e.array(np.zeros(4 * 5000, np.uint32))
    e.launch("ceiling_read", (3, 1, 1), 256, S["Ceiling"](address(data), address(sums), data.nbytes, 0, 0))
    near("ceiling_read", sums.sum(dtype=np.uint32), data.sum(dtype=np.uint32), 0)
    e.launch("ceiling_copy", (3, 1, 1), 256, S["Ceiling"](address(data), address(copy), data.nbytes, 0, 0))
    exact("ceiling_copy", copy, data)
    out = e.array(np.full(512, -1, np.float32))
    e.launch("ceiling_fma_f32", (2, 1, 1), 256, S["Ceiling"](None, address(out), 0, 100, 0))
    near("ceiling_fma_f32", out, np.tile(16.0 * np.arange(256), 2), 1e-6)


ENDINGS = ("write", "add", "silu", "heads")
CASES = [(case_rms_norm,), (case_rope,), (case_store_kv,), (case_silu_and_mul,), (case_add,), (case_gather_rows,)]
CASES += [(case_argmax,), (case_copy_blocks,), (case_ceiling,), (case_attention_merge,)]
CASES += [(case_embed, x) for x in STORED] + [(case_halve, x) for x in ("bf16", "f16")]
CASES += [(case_matvec, x, y) for x in STORED for y in ENDINGS] + [(case_matvec_invariance, x) for x in STORED]
CASES += [(case_tile, x, y) for x in STORED for y in ENDINGS]
CASES += [(case_attention, k, v, d) for k in ("f32", "f16") for v in ("f32", "f16") for d in (32, 64, 128, 256)]
CASES += [(case_attention_invariance,), (case_attention_damage,)]


def run(e, case, reverse):
    """None, or what is wrong."""
    e.reverse, e.guarded = reverse, []
    try:
        case[0](e, np.random.default_rng(7), *case[1:])
    except (Wrong, KernelError) as error:
        return str(error)
    return None


def main():
    e = Emulator(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    failures, needed = 0, {}
    for case in CASES:
        name = " ".join([case[0].__name__[5:], *map(str, case[1:])])
        if not name.startswith(wanted):
            continue
        start = time.time()
        e.seen = set()
        wrong = [w for w in (run(e, case, False), run(e, case, True)) if w]
        print(f"{name}: {'; '.join(wrong) or 'right'} ({time.time() - start:.2f} s)", flush=True)
        failures += bool(wrong)
        for wait in [] if wrong else sorted(e.seen):
            if not needed.get(wait):
                e.without(wait)
                needed[wait] = list(filter(None, (run(e, case, False), run(e, case, True))))
                e.without(None)
    for wait, found in sorted(needed.items()):
        print(f"without {wait}: {found[0] if found else 'NOTHING IS WRONG'} ({len(found)} of 2 orders)")
        failures += not found
    sys.exit(f"{failures} failures" if failures else 0)


if __name__ == "__main__":
    main()
