// Put the records of a query row's spans together, in order of position. One workgroup a token's query head.

struct Params {
    num_seqs: u32,
    num_attention_heads: u32,
    max_spans: u32,
    // Tokens before this piece of the batch.
    first_token: u32,
}

const HEAD_DIM: u32 = 2u * HALF_DIM;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cu_seqlens_q: array<u32>;
@group(0) @binding(2) var<storage, read> context_lens: array<u32>;
@group(0) @binding(3) var<storage, read> records: array<f32>;
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
    let spans = (context_lens[seq] + SPAN - 1u) / SPAN;
    var largest = LOWEST;
    var total = 0.0;
    var attended = vec2(0.0);
    for (var span = 0u; span < spans; span++) {
        let at = (row * params.max_spans + span) * (HEAD_DIM + 2u);
        let share = merge(largest, total, records[at + HEAD_DIM], records[at + HEAD_DIM + 1u]);
        largest = share.largest;
        total = share.total;
        attended = blend(attended, vec2(share.before, share.span), vec2(records[at + 2u * pair], records[at + 2u * pair + 1u]));
    }
    let at = (group.y * params.num_attention_heads + group.x) * HEAD_DIM + 2u * pair;
    out[at] = attended.x / total;
    out[at + 1u] = attended.y / total;
}
