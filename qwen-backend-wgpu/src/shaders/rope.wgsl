// Rotate query and key heads in place: one thread per pair (i, i + half_dim).

struct Params {
    qkv_size: u32,
    half_dim: u32,
    // Pairs of all query and key heads of a token.
    pairs: u32,
    // Tokens before this piece of the batch.
    first_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> cos_sin: array<f32>;

//#include rotary

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let token = at.y;
    if at.x >= params.pairs {
        return;
    }
    let i = at.x % params.half_dim;
    let first = token * params.qkv_size + 2u * (at.x - i) + i;
    let angle = 2u * (params.first_token + token) * params.half_dim + i;
    let c = cos_sin[angle];
    let s = cos_sin[angle + params.half_dim];
    let turned = rotate(vec2(qkv[first], qkv[first + params.half_dim]), c, s);
    qkv[first] = turned.x;
    qkv[first + params.half_dim] = turned.y;
}
