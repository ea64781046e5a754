// attention_merge: merge the partials of a query row's partitions, in order of position. A block takes a token's query
// head, a thread a channel.
//
// The merges form a chain, but their factors depend on the largest scores only: a running maximum gives those of
// MERGE_THREADS partitions at once, one a thread. One multiplication and addition a partition remain for the chain, on
// values that are loaded together.
#include "attention_state.cuh"

// Partials that a thread loads at once.
#define PARTIALS 16

// The factors and the total of a partition, in one piece of 16 bytes.
struct alignas(16) Link {
    Share share;
    float total, unused;
};

KERNEL(attention_merge, Attention, MERGE_THREADS, 3) {
    SHARED(float, warp_largest, MERGE_THREADS / 32);
    SHARED(Link, links, MERGE_THREADS);
    const u32 head = blockIdx.x, token = blockIdx.y;
    const u32 seq = sequence_of(p, token);
    if (seq >= p.num_seqs) {
        return;
    }
    const u32 partitions = smaller(div_up(positions_seen(p, seq, token), ATTENTION_PARTITION), p.max_partitions);
    // Threads without a channel read the last one: without a branch the loads stay together.
    const u32 channel = smaller(threadIdx.x, p.head_dim - 1), width = p.head_dim + 2;
    float largest = LOWEST, total = 0.0f, attended = 0.0f;
    for (u32 first = 0; first < partitions; first += MERGE_THREADS) {
        // The largest score up to and including this thread's partition, and up to the one before.
        const u32 mine = first + threadIdx.x;
        const float* const partial = partial_of(p, token, head, smaller(mine, partitions - 1)) + p.head_dim;
        const float own = mine < partitions ? partial[0] : LOWEST, own_total = partial[1];
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
        const u32 count = smaller(MERGE_THREADS, partitions - first);
        const float* const partials = partial_of(p, token, head, first) + channel;
#pragma unroll 1
        for (u32 from = 0; from < count; from += PARTIALS) {
            float values[PARTIALS];
#pragma unroll
            for (u32 i = 0; i < PARTIALS; i++) {
                values[i] = partials[smaller(from + i, count - 1) * width];
            }
#pragma unroll
            for (u32 i = 0; i < PARTIALS; i++) {
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
