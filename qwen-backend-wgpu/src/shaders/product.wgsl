// Shared by the matrix products: their parameters and arrays, and the epilogues over the sums.
//
// An epilogue processes the rows of a packed matrix in pairs: gate and up of the MLP, two rows that rotate together, or
// adjacent rows.

struct Params {
    // Rows of activations.
    tokens: u32,
    // Columns, and eights of them.
    cols: u32,
    chunks: u32,
    // Pairs in this slab. The first row of its first pair, and the end of the rows in its encoding, as rows of the output.
    pairs: u32,
    first_row: u32,
    end_row: u32,
    // Values of a row of the output; twice as many if pairs are gate and up.
    rows: u32,
    // Words of a row of the matrix, if it consists of blocks.
    row_words: u32,
    // Tokens before this piece of the batch.
    first_token: u32,
    num_attention_heads: u32,
    num_key_value_heads: u32,
    // head_dim / 2: rotary pairs of a head.
    half_dim: u32,
    num_slots: u32,
    //#if COOPERATIVE
    // The biased exponent of the power of two that undoes the scaling of the weights.
    weight_exponent: u32,
    //#else
    // Of the norm of the activations.
    eps: f32,
    //#endif
}

@group(0) @binding(0) var<uniform> params: Params;
//#if COOPERATIVE
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(SCALES_BINDING) var<storage, read> scales: array<f32>;
//#else
//#if SIGNED
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
//#else
//#if RAGGED
@group(0) @binding(1) var<storage, read> x: array<f32>;
//#else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
//#endif
//#endif
//#endif
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

//#include weights
//#if COOPERATIVE
//#else
//#if SIGNED
//#include signed
//#else
//#include activations
//#endif
//#endif

// The positions of a pair's two rows in this slab, and their indices in the whole matrix.
//#if ORDER_PLAIN
fn local_rows(pair: u32) -> vec2<u32> {
    return vec2(2u * pair, 2u * pair + 1u);
}

fn logical_rows(pair: u32) -> vec2<u32> {
    return params.first_row + 2u * pair + vec2(0u, 1u);
}
//#endif
//#if ORDER_GATE_UP
fn local_rows(pair: u32) -> vec2<u32> {
    return vec2(pair, params.pairs + pair);
}

fn logical_rows(pair: u32) -> vec2<u32> {
    return params.first_row + pair + vec2(0u, params.rows / 2u);
}
//#endif
//#if ORDER_HEADS
// Queries and keys: the two rows that rotate together. Values: adjacent rows.
fn local_rows(pair: u32) -> vec2<u32> {
    let head = pair / params.half_dim;
    let i = pair % params.half_dim;
    let first = head * 2u * params.half_dim;
    if head < params.num_attention_heads + params.num_key_value_heads {
        return first + i + vec2(0u, params.half_dim);
    }
    return first + 2u * i + vec2(0u, 1u);
}

fn logical_rows(pair: u32) -> vec2<u32> {
    return local_rows(pair);
}
//#endif

//#if EPILOGUE_WRITE
//#if BIAS
@group(0) @binding(4) var<storage, read> bias: array<f32>;
//#endif

fn emit(token: u32, pair: u32, sums: vec2<f32>) {
    let rows = logical_rows(pair);
    var value = sums;
    //#if BIAS
    value += vec2(bias[rows.x], bias[min(rows.y, params.rows - 1u)]);
    //#endif
    let at = token * params.rows;
    out[at + rows.x] = value.x;
    // With an odd number of rows in an encoding, the last pair is half empty.
    if rows.y < params.end_row {
        out[at + rows.y] = value.y;
    }
}
//#endif

//#if EPILOGUE_ADD
fn emit(token: u32, pair: u32, sums: vec2<f32>) {
    let rows = logical_rows(pair);
    let at = token * params.rows;
    out[at + rows.x] += sums.x;
    if rows.y < params.end_row {
        out[at + rows.y] += sums.y;
    }
}
//#endif

//#if EPILOGUE_SILU
//#include math

fn emit(token: u32, pair: u32, sums: vec2<f32>) {
    out[token * (params.rows / 2u) + params.first_row + pair] = silu(sums.x) * sums.y;
}
//#endif

//#if EPILOGUE_GATED
//#include math

// The rows are those of up, and the output holds the products with gate.
fn emit(token: u32, pair: u32, sums: vec2<f32>) {
    let rows = logical_rows(pair);
    let at = token * params.rows;
    out[at + rows.x] = silu(out[at + rows.x]) * sums.x;
    if rows.y < params.end_row {
        out[at + rows.y] = silu(out[at + rows.y]) * sums.y;
    }
}
//#endif

//#if EPILOGUE_HEADS
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> cos_sin: array<f32>;
@group(0) @binding(6) var<storage, read> slot_mapping: array<u32>;
@group(0) @binding(7) var<storage, read_write> keys: array<KeyPair>;
@group(0) @binding(8) var<storage, read_write> values: array<ValuePair>;
//#include kv_write
//#include rotary

fn emit(token: u32, pair: u32, sums: vec2<f32>) {
    let rows = logical_rows(pair);
    let value = sums + vec2(bias[rows.x], bias[rows.y]);
    let head = pair / params.half_dim;
    let i = pair % params.half_dim;
    let stored = params.num_attention_heads + params.num_key_value_heads;
    let slot = slot_mapping[params.first_token + token];
    if head >= stored {
        store_value(slot, head - stored, i, value);
        return;
    }
    let angle = 2u * (params.first_token + token) * params.half_dim + i;
    let c = cos_sin[angle];
    let s = cos_sin[angle + params.half_dim];
    let turned = rotate(value, c, s);
    if head >= params.num_attention_heads {
        store_key(slot, head - params.num_attention_heads, i, turned);
        return;
    }
    let at = token * params.rows;
    out[at + rows.x] = turned.x;
    out[at + rows.y] = turned.y;
}
//#endif
