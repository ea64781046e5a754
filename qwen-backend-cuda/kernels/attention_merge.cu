// attention_merge: put the records of a query row's spans together, in order of position. A block takes a token's query
// head, a thread a channel.
//
// The order makes a chain, but what the links are scaled by depends on the largest scores alone: those are known for
// MERGE_THREADS spans at once, a thread each, by a running maximum. What is left of the chain is one multiplication and
// addition a span, on values that were asked for together.
#include "attention_state.cuh"

// Records that a thread has under way.
#define RECORDS 16

// What a span's record is merged with, in one piece of 16 bytes.
struct alignas(16) Link {
    Share share;
    float total, unused;
};

KERNEL(attention_merge, Attention, MERGE_THREADS, 3) {
    SHARED(float, warp_largest, MERGE_THREADS / 32);
    SHARED(Link, links, MERGE_THREADS);
    const u32 head = blockIdx.x, token = blockIdx.y;
    const u32 seq = sequence_of(p, token);
    if (seq == p.num_seqs) {
        return;
    }
    const u32 spans = smaller(div_up(positions_seen(p, seq, token), ATTENTION_SPAN), p.max_spans);
    // Threads without a channel read the last one: no branch keeps loads apart.
    const u32 channel = smaller(threadIdx.x, p.head_dim - 1), width = p.head_dim + 2;
    float largest = LOWEST, total = 0.0f, attended = 0.0f;
    for (u32 first = 0; first < spans; first += MERGE_THREADS) {
        // The largest score up to and with this thread's span, and up to the one before.
        const u32 mine = first + threadIdx.x;
        const float* const record = record_of(p, token, head, smaller(mine, spans - 1)) + p.head_dim;
        const float own = mine < spans ? record[0] : LOWEST, own_total = record[1];
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
        links[threadIdx.x] = Link{share_of(before, own), own_total, 0.0f};
        for (u32 w = 0; w < MERGE_THREADS / 32; w++) {
            largest = fmaxf(largest, warp_largest[w]);
        }
        barrier();
        const u32 count = smaller(MERGE_THREADS, spans - first);
        const float* const records = record_of(p, token, head, first) + channel;
#pragma unroll 1
        for (u32 from = 0; from < count; from += RECORDS) {
            float values[RECORDS];
#pragma unroll
            for (u32 i = 0; i < RECORDS; i++) {
                values[i] = records[smaller(from + i, count - 1) * width];
            }
#pragma unroll
            for (u32 i = 0; i < RECORDS; i++) {
                if (from + i < count) {
                    const Link link = links[from + i];
                    total = blend(total, link.share, link.total);
                    attended = blend(attended, link.share, values[i]);
                }
            }
        }
    }
    if (threadIdx.x < p.head_dim) {
        p.out[(size_t(token) * p.num_attention_heads + head) * p.head_dim + channel] = attended / total;
    }
}
