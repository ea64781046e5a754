// Split-KV attention (Flash-Decoding): a partition of positions yields the largest score, the sum of the weights
// relative to it (exp(score - largest)), and the weighted sum of the values. Partitions are merged in order of position
// by the same arithmetic everywhere, so that the bits do not depend on which block attended which partition.
//
// A NaN among the scores is not the maximum, but its weight is a NaN and so is the total: it is never hidden.
#pragma once
#include "math.cuh"
#include "sequences.cuh"

// Below every score: the largest score of no positions.
#define LOWEST (-3.0e38f)

// The factors of the partitions before and of a new one when they are merged.
struct Share {
    float before, partition;
};

DEVICE Share share_of(float before_largest, float partition_largest) {
    const float largest = fmaxf(before_largest, partition_largest);
    return Share{exp_negative(before_largest - largest), exp_negative(partition_largest - largest)};
}

// Merge a total, or a channel.
DEVICE float blend(float before, Share share, float partition) {
    return fmaf(before, share.before, partition * share.partition);
}

// The sequence of a row of the batch; num_seqs for padding.
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

// How many positions the row `token` of sequence `seq` sees, at most what its block table holds.
DEVICE u32 positions_seen(const Attention& p, u32 seq, u32 token) {
    return smaller(p.context_lens[seq] + token + 1 - p.cu_seqlens_q[seq + 1], max_positions(p));
}

// The partial result of a row's partition: head_dim values, the largest score, the total.
DEVICE float* partial_of(const Attention& p, u32 token, u32 head, u32 partition) {
    const size_t row = size_t(token) * p.num_attention_heads + head;
    return p.partials + (row * p.max_partitions + partition) * (p.head_dim + 2);
}
