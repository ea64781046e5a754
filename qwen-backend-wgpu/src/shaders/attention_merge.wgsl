// Merge the partial results of a query row's partitions, in order of position. One workgroup per token and query head.

struct Params {
    num_seqs: u32,
    num_attention_heads: u32,
    num_partitions: u32,
    // Tokens before this piece of the batch.
    first_token: u32,
}

const HEAD_DIM: u32 = 2u * HALF_DIM;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cu_seqlens_q: array<u32>;
@group(0) @binding(2) var<storage, read> context_lens: array<u32>;
@group(0) @binding(3) var<storage, read> partials: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

//#include math
//#include attention_state

@compute @workgroup_size(HALF_DIM)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) pair: u32) {
    let token = params.first_token + group.y;
    let seq = sequence_of(token);
    if seq == params.num_seqs {
        return;
    }
    let row = token * params.num_attention_heads + group.x;
    // Clamped to the available room, whatever the array holds.
    let context = context_lens[seq];
    let partitions = min(context / PARTITION + select(0u, 1u, context % PARTITION > 0u), params.num_partitions);
    var largest = LOWEST;
    var total = 0.0;
    var attended = vec2(0.0);
    for (var index = 0u; index < partitions; index++) {
        let at = (row * params.num_partitions + index) * (HEAD_DIM + 2u);
        let share = merge(largest, total, partials[at + HEAD_DIM], partials[at + HEAD_DIM + 1u]);
        largest = share.largest;
        total = share.total;
        attended = blend(attended, vec2(share.before, share.added), vec2(partials[at + 2u * pair], partials[at + 2u * pair + 1u]));
    }
    let at = (group.y * params.num_attention_heads + group.x) * HEAD_DIM + 2u * pair;
    out[at] = attended.x / total;
    out[at + 1u] = attended.y / total;
}
