// Store keys and values of the heads in this slab of the store: one thread per pair.

struct Params {
    qkv_size: u32,
    // The positions of the slab's first key head and value head in a row.
    first_key: u32,
    first_value: u32,
    half_dim: u32,
    num_slots: u32,
    // Pairs of the slab's heads.
    pairs: u32,
    // Tokens before this piece of the batch.
    first_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> slot_mapping: array<u32>;
@group(0) @binding(3) var<storage, read_write> keys: array<KeyPair>;
@group(0) @binding(4) var<storage, read_write> values: array<ValuePair>;
//#include kv_write

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let token = at.y;
    if at.x >= params.pairs {
        return;
    }
    let i = at.x % params.half_dim;
    let head = at.x / params.half_dim;
    let slot = slot_mapping[params.first_token + token];
    let key = token * params.qkv_size + params.first_key + 2u * head * params.half_dim + i;
    store_key(slot, head, i, vec2(qkv[key], qkv[key + params.half_dim]));
    let value = token * params.qkv_size + params.first_value + 2u * head * params.half_dim + 2u * i;
    store_value(slot, head, i, vec2(qkv[value], qkv[value + 1u]));
}
