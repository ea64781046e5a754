// Attention over a partition of the positions: the largest score, the sum of weights relative to it, and the weighted
// values. Partitions are merged in order of position, in attention and in attention_merge, by the same arithmetic.

// Below all scores.
const LOWEST: f32 = -3.0e38;

// The sequence of a token of the batch, or the number of sequences for padding.
fn sequence_of(token: u32) -> u32 {
    var low = 0u;
    var high = params.num_seqs;
    while low < high {
        let middle = (low + high) / 2u;
        if cu_seqlens_q[middle + 1u] <= token {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

struct Share {
    // The factors of the previous partitions and of the new one.
    before: f32,
    added: f32,
    largest: f32,
    total: f32,
}

// A partition whose `total` is 0 adds nothing: it has no positions, or all of its scores are -inf. The bits are
// compared, since a driver that assumes no NaN may treat one as 0. A NaN that `max` drops is still in its total.
fn merge(largest: f32, total: f32, new_largest: f32, new_total: f32) -> Share {
    let m = max(largest, new_largest);
    let before = select(exp_negative(largest - m), 0.0, bitcast<u32>(total) == 0u);
    let added = select(exp_negative(new_largest - m), 0.0, bitcast<u32>(new_total) == 0u);
    return Share(before, added, m, fma(total, before, new_total * added));
}

fn blend(before: vec2<f32>, share: vec2<f32>, added: vec2<f32>) -> vec2<f32> {
    return fma(before, vec2(share.x), added * share.y);
}
