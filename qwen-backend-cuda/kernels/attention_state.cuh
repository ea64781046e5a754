// Attention over a span of positions gives the largest score, the sum of the weights relative to it (e to the score
// less the largest), and the values so weighted. Spans are merged in order of position by the same arithmetic wherever
// it is done, so that the bits do not depend on how spans were shared out.
//
// A NaN among the scores is no maximum, but its weight is a NaN and so is the total: it cannot be hidden.
#pragma once
#include "math.cuh"

// Below all scores: the largest of no positions.
#define LOWEST (-3.0e38f)

// What the part before and a new span are scaled by when they are merged.
struct Share {
    float before, span;
};

DEVICE Share share_of(float before_largest, float span_largest) {
    const float largest = fmaxf(before_largest, span_largest);
    return Share{exp_negative(before_largest - largest), exp_negative(span_largest - largest)};
}

// Of a total or of a channel.
DEVICE float blend(float before, Share share, float span) {
    return fmaf(before, share.before, span * share.span);
}

// The sequence of a token of the batch, or their number for padding.
DEVICE u32 sequence_of(const Attention& p, u32 token) {
    u32 low = 0, high = p.num_seqs;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (p.cu_seqlens_q[middle + 1] <= token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// How many positions a token of sequence `seq` sees.
DEVICE u32 positions_seen(const Attention& p, u32 seq, u32 token) {
    return p.context_lens[seq] + token + 1 - p.cu_seqlens_q[seq + 1];
}

// A record of a row's span: head_dim values, the largest score, the total.
DEVICE float* record_of(const Attention& p, u32 token, u32 head, u32 span) {
    const size_t row = size_t(token) * p.num_attention_heads + head;
    return p.records + (row * p.max_spans + span) * (p.head_dim + 2);
}
