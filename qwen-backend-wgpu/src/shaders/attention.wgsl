// Causal attention over the paged store, for a tile of ROWS query rows that share a K/V head.
//
// A row is a token's query head. Positions are processed in partitions of PARTITION, each reduced separately: a thread
// computes one position's scores for all rows, then a pair of value channels for all rows. A vector holds four rows, so
// that one read of workgroup memory serves four sums. With SPLIT a workgroup takes one partition and writes a partial
// result for attention_merge (few rows, long contexts); without it a workgroup takes all partitions in order. The bits
// are the same.

struct Params {
    num_tokens: u32,
    num_seqs: u32,
    num_attention_heads: u32,
    num_key_value_heads: u32,
    block_size: u32,
    max_blocks_per_seq: u32,
    num_slots: u32,
    // K/V heads before this slab of the store.
    first_head: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
    // Partitions that a query head's partial results have room for.
    num_partitions: u32,
    // Tokens before this piece of the batch, whose tokens are counted from 0 here.
    first_token: u32,
}

// A thread for each position of a partition.
const WIDTH: u32 = PARTITION;
// Vectors of four rows.
const QUADS: u32 = ROWS / 4u;
const HEAD_DIM: u32 = 2u * HALF_DIM;
// Threads that reduce a row's scores together.
const LANES: u32 = WIDTH / ROWS;
// Threads that share a pair of channels, each a part of the positions.
const PARTS: u32 = WIDTH / HALF_DIM;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> cu_seqlens_q: array<u32>;
@group(0) @binding(3) var<storage, read> context_lens: array<u32>;
@group(0) @binding(4) var<storage, read> block_tables: array<u32>;
//#if KEY_F16
@group(0) @binding(5) var<storage, read> keys: array<vec4<u32>>;
//#else
//#if KEY_Q8
@group(0) @binding(5) var<storage, read> keys: array<vec4<u32>>;
//#else
@group(0) @binding(5) var<storage, read> keys: array<vec4<f32>>;
//#endif
//#endif
//#if VALUE_F16
@group(0) @binding(6) var<storage, read> values: array<u32>;
//#else
//#if VALUE_Q8
@group(0) @binding(6) var<storage, read> values: array<u32>;
//#else
@group(0) @binding(6) var<storage, read> values: array<vec2<f32>>;
//#endif
//#endif
// With SPLIT partial results of partitions, otherwise rows of all query heads.
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

// [channel][row]: queries, the channels in the order of the keys.
var<workgroup> queries: array<vec4<f32>, QUADS * HEAD_DIM>;
// [position][row]: scores, then weights. Not in vectors: a thread writes the value of one row, and a write to one
// component may write the whole vector.
var<workgroup> scores: array<f32, ROWS * PARTITION>;
var<workgroup> slots: array<u32, PARTITION>;
var<workgroup> reduced: array<f32, WIDTH>;
// [part][row][pair] of all parts except the first.
var<workgroup> parts: array<vec2<f32>, max(1u, (PARTS - 1u) * ROWS * HALF_DIM)>;
// Per row: its token, head and sequence, how many positions it sees, and the state of its sum.
var<workgroup> row_token: array<u32, ROWS>;
var<workgroup> row_head: array<u32, ROWS>;
var<workgroup> row_seq: array<u32, ROWS>;
var<workgroup> row_visible: array<u32, ROWS>;
var<workgroup> row_largest: array<f32, ROWS>;
var<workgroup> row_total: array<f32, ROWS>;
var<workgroup> row_share: array<vec2<f32>, ROWS>;

//#include math
//#include attention_state

// Positions of a sequence, clamped to the room in its block table: lengths and sums bound the loops below, and a kernel
// of this step may have written them.
fn context_of(seq: u32) -> u32 {
    return min(context_lens[seq], params.max_blocks_per_seq * params.block_size);
}

// The contribution of channel `channel` of a key to the scores of all rows.
fn add_products(dots: array<vec4<f32>, QUADS>, channel: u32, key: f32) -> array<vec4<f32>, QUADS> {
    var sums = dots;
    for (var q = 0u; q < QUADS; q++) {
        sums[q] = fma(queries[channel * QUADS + q], vec4(key), sums[q]);
    }
    return sums;
}

//#include attention_kv

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let head = group.y;
    let heads_per_kv = params.num_attention_heads / params.num_key_value_heads;
    let first_head = (params.first_head + head) * heads_per_kv;
    //#if SPLIT
    // The rows of one token: tiles of its heads.
    let tiles = (heads_per_kv + ROWS - 1u) / ROWS;
    let first_token = group.x / tiles;
    let last_token = first_token;
    //#else
    let first_token = group.x * ROWS / heads_per_kv;
    let last_token = min((group.x * ROWS + ROWS - 1u) / heads_per_kv, params.num_tokens - 1u);
    //#endif
    if local < ROWS {
        //#if SPLIT
        let h = group.x % tiles * ROWS + local;
        let token = first_token;
        let exists = h < heads_per_kv;
        //#else
        let h = (group.x * ROWS + local) % heads_per_kv;
        let token = (group.x * ROWS + local) / heads_per_kv;
        let exists = token < params.num_tokens;
        //#endif
        let seq = sequence_of(params.first_token + token);
        var visible = 0u;
        if exists && seq < params.num_seqs {
            visible = context_of(seq) + params.first_token + token + 1u - cu_seqlens_q[seq + 1u];
        }
        row_token[local] = select(0u, token, exists);
        row_head[local] = select(0u, first_head + h, exists);
        row_seq[local] = seq;
        row_visible[local] = visible;
        row_largest[local] = LOWEST;
        row_total[local] = 0.0;
    }
    workgroupBarrier();
    let row_size = (params.num_attention_heads + 2u * params.num_key_value_heads) * HEAD_DIM;
    for (var i = local; i < QUADS * HALF_DIM; i += WIDTH) {
        let q = i / HALF_DIM;
        let channel = i % HALF_DIM;
        var first: vec4<f32>;
        var second: vec4<f32>;
        for (var r = 0u; r < 4u; r++) {
            let at = row_token[4u * q + r] * row_size + row_head[4u * q + r] * HEAD_DIM + channel;
            first[r] = qkv[at] * params.scale;
            second[r] = qkv[at + HALF_DIM] * params.scale;
        }
        queries[first_of_pair(channel) * QUADS + q] = first;
        queries[second_of_pair(channel) * QUADS + q] = second;
    }
    workgroupBarrier();
    let row = local / LANES;
    let lane = local % LANES;
    let pair = local % HALF_DIM;
    let part = local / HALF_DIM;
    var attended: array<vec2<f32>, ROWS>;

    // A tile may extend over the end of a sequence: then its sequences are processed one after another.
    let seqs = min(sequence_of(params.first_token + last_token) + 1u, params.num_seqs);
    for (var seq = sequence_of(params.first_token + first_token); seq < seqs; seq++) {
        let last = min(params.first_token + last_token + 1u, cu_seqlens_q[seq + 1u]);
        let context = context_of(seq);
        let end = min(context + last - cu_seqlens_q[seq + 1u], context);
        let visible = select(0u, row_visible[row], row_seq[row] == seq);
        //#if SPLIT
        let first_position = group.z * PARTITION;
        let positions_end = min(end, first_position + PARTITION);
        //#else
        let first_position = 0u;
        let positions_end = end;
        //#endif
        for (var first = first_position; first < positions_end; first += PARTITION) {
            let position = first + local;
            if position < end {
                let block = block_tables[seq * params.max_blocks_per_seq + position / params.block_size];
                slots[local] = min(block * params.block_size + position % params.block_size, params.num_slots - 1u);
                let dots = scores_of(head, slots[local]);
                for (var r = 0u; r < ROWS; r++) {
                    scores[local * ROWS + r] = dots[r / 4u][r % 4u];
                }
            }
            workgroupBarrier();

            var largest = LOWEST;
            for (var i = lane; i < PARTITION; i += LANES) {
                if first + i < visible {
                    largest = max(largest, scores[i * ROWS + row]);
                }
            }
            reduced[local] = largest;
            workgroupBarrier();
            for (var i = 0u; i < LANES; i++) {
                largest = max(largest, reduced[row * LANES + i]);
            }
            workgroupBarrier();
            var total = 0.0;
            for (var i = lane; i < PARTITION; i += LANES) {
                var weight = 0.0;
                if first + i < visible {
                    weight = exp_negative(scores[i * ROWS + row] - largest);
                }
                scores[i * ROWS + row] = weight;
                total += weight;
            }
            reduced[local] = total;
            workgroupBarrier();
            if lane == 0u {
                total = 0.0;
                for (var i = 0u; i < LANES; i++) {
                    total += reduced[local + i];
                }
                //#if SPLIT
                row_largest[row] = largest;
                row_total[row] = total;
                //#else
                let share = merge(row_largest[row], row_total[row], largest, total);
                row_largest[row] = share.largest;
                row_total[row] = share.total;
                row_share[row] = vec2(share.before, share.added);
                //#endif
            }

            var sums: array<vec2<f32>, ROWS>;
            if part < PARTS {
                let count = min(PARTITION, end - first);
                var first_channel: array<vec4<f32>, QUADS>;
                var second_channel: array<vec4<f32>, QUADS>;
                for (var p = part; p < count; p += PARTS) {
                    let v = value_pair(head, slots[p], pair);
                    for (var q = 0u; q < QUADS; q++) {
                        // A weight of 0 adds nothing, even if the value is not finite.
                        let s = p * ROWS + 4u * q;
                        let weights = vec4(scores[s], scores[s + 1u], scores[s + 2u], scores[s + 3u]);
                        let taken = weights > vec4(0.0);
                        let first_sum = fma(weights, vec4(v.x), first_channel[q]);
                        let second_sum = fma(weights, vec4(v.y), second_channel[q]);
                        first_channel[q] = select(first_channel[q], first_sum, taken);
                        second_channel[q] = select(second_channel[q], second_sum, taken);
                    }
                }
                for (var r = 0u; r < ROWS; r++) {
                    sums[r] = vec2(first_channel[r / 4u][r % 4u], second_channel[r / 4u][r % 4u]);
                }
                if part > 0u {
                    for (var r = 0u; r < ROWS; r++) {
                        parts[((part - 1u) * ROWS + r) * HALF_DIM + pair] = sums[r];
                    }
                }
            }
            workgroupBarrier();
            if part == 0u {
                for (var r = 0u; r < ROWS; r++) {
                    for (var other = 0u; other + 1u < PARTS; other++) {
                        sums[r] += parts[(other * ROWS + r) * HALF_DIM + pair];
                    }
                    //#if SPLIT
                    attended[r] = sums[r];
                    //#else
                    if row_seq[r] == seq {
                        attended[r] = blend(attended[r], row_share[r], sums[r]);
                    }
                    //#endif
                }
            }
            workgroupBarrier();
        }
    }

    if part == 0u {
        for (var r = 0u; r < ROWS; r++) {
            //#if SPLIT
            // Only rows of the tile that exist and see part of the partition.
            let exists = group.x % tiles * ROWS + r < heads_per_kv && row_visible[r] > group.z * PARTITION;
            let output_row = (params.first_token + row_token[r]) * params.num_attention_heads + row_head[r];
            let partial = output_row * params.num_partitions + group.z;
            let at = partial * (HEAD_DIM + 2u);
            if exists {
                out[at + 2u * pair] = attended[r].x;
                out[at + 2u * pair + 1u] = attended[r].y;
                if pair == 0u {
                    out[at + HEAD_DIM] = row_largest[r];
                    out[at + HEAD_DIM + 1u] = row_total[r];
                }
            }
            //#else
            let exists = (group.x * ROWS + r) / heads_per_kv < params.num_tokens && row_visible[r] > 0u;
            let at = (row_token[r] * params.num_attention_heads + row_head[r]) * HEAD_DIM + 2u * pair;
            if exists {
                out[at] = attended[r].x / row_total[r];
                out[at + 1u] = attended[r].y / row_total[r];
            }
            //#endif
        }
    }
}
