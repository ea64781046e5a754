// attention_merge: put the records of a query row's spans together, in order of position. A block takes a token's query
// head.
//
// The order makes a chain, but what the links are scaled by depends on the largest scores alone: those are known for
// MERGE_THREADS spans at once, a thread each, by a running maximum. What is left of the chain is one multiplication and
// addition a span.
#include "attention_state.cuh"

// The largest head_dim is twice the threads.
#define CHANNELS 2

KERNEL(attention_merge, Attention, MERGE_THREADS, 8) {
    SHARED(float, warp_largest, MERGE_THREADS / 32);
    SHARED(Share, shares, MERGE_THREADS);
    const u32 head = blockIdx.x, token = blockIdx.y;
    const u32 seq = sequence_of(p, token);
    if (seq == p.num_seqs) {
        return;
    }
    const u32 spans = smaller(div_up(positions_seen(p, seq, token), ATTENTION_SPAN), p.max_spans);
    float largest = LOWEST, total = 0.0f, attended[CHANNELS] = {};
    for (u32 first = 0; first < spans; first += MERGE_THREADS) {
        // The largest score up to and with this thread's span, and up to the one before.
        const u32 mine = first + threadIdx.x;
        const float own = mine < spans ? record_of(p, token, head, mine)[p.head_dim] : LOWEST;
        float upto = own;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            upto = fmaxf(upto, shuffle_up(upto, step));
        }
        if (lane() == 31) {
            warp_largest[warp()] = upto;
        }
        const float before_in_warp = shuffle_up(upto, 1);
        barrier();
        float before = largest;
        for (u32 w = 0; w < warp(); w++) {
            before = fmaxf(before, warp_largest[w]);
        }
        if (lane() > 0) {
            before = fmaxf(before, before_in_warp);
        }
        shares[threadIdx.x] = share_of(before, own);
        for (u32 w = 0; w < MERGE_THREADS / 32; w++) {
            largest = fmaxf(largest, warp_largest[w]);
        }
        barrier();
        const u32 count = smaller(MERGE_THREADS, spans - first);
#pragma unroll 4
        for (u32 i = 0; i < count; i++) {
            const float* const record = record_of(p, token, head, first + i);
            total = blend(total, shares[i], record[p.head_dim + 1]);
#pragma unroll
            for (u32 c = 0; c < CHANNELS; c++) {
                const u32 channel = threadIdx.x + c * MERGE_THREADS;
                if (channel < p.head_dim) {
                    attended[c] = blend(attended[c], shares[i], record[channel]);
                }
            }
        }
    }
    float* const out = p.out + (size_t(token) * p.num_attention_heads + head) * p.head_dim;
#pragma unroll
    for (u32 c = 0; c < CHANNELS; c++) {
        const u32 channel = threadIdx.x + c * MERGE_THREADS;
        if (channel < p.head_dim) {
            out[channel] = attended[c] / total;
        }
    }
}
