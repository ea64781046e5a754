// Copy blocks of a K/V slab onto others: one thread per word. WebGPU has no copy within one buffer.

struct Params {
    // Words of a block of one head in the plane that is copied, and of all planes of one head.
    block_words: u32,
    head_words: u32,
    // Words of a block of all heads of the slab.
    words: u32,
    // Words of a head before the plane.
    first_word: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> kv: array<u32>;
@group(0) @binding(2) var<storage, read> pairs: array<vec2<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x >= params.words {
        return;
    }
    let pair = pairs[at.y];
    let i = at.x / params.block_words * params.head_words + params.first_word + at.x % params.block_words;
    kv[i + pair.y * params.block_words] = kv[i + pair.x * params.block_words];
}
