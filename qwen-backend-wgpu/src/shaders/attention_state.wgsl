// Attention over a span of positions: the largest score, the sum of weights relative to it, and the weighted values.
// Spans are merged in order of position, here and in attention_merge: the same arithmetic in both.

// Below all scores.
const LOWEST: f32 = -3.0e38;

// The sequence of a token of the batch, or their number for padding.
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
    // What the part before and the new span are scaled by.
    before: f32,
    span: f32,
    largest: f32,
    total: f32,
}

// A part whose `total` is 0 adds nothing: it has no positions, or all of its scores are -inf. Asked of the bits: a driver
// that expects no NaN may take one for 0. A NaN that `max` drops is still in its total.
fn merge(largest: f32, total: f32, span_largest: f32, span_total: f32) -> Share {
    let m = max(largest, span_largest);
    let before = select(exp_negative(largest - m), 0.0, bitcast<u32>(total) == 0u);
    let span = select(exp_negative(span_largest - m), 0.0, bitcast<u32>(span_total) == 0u);
    return Share(before, span, m, fma(total, before, span_total * span));
}

fn blend(before: vec2<f32>, share: vec2<f32>, span: vec2<f32>) -> vec2<f32> {
    return fma(before, vec2(share.x), span * share.y);
}
