// The end of a product whose columns the warps of a block divide among them: the sums of all warps are added in their
// order, through shared memory, and passed to the epilogue.
#pragma once
#include "epilogue.cuh"
#include "scales.cuh"

#define SKINNY_WARPS (SKINNY_THREADS / 32)
// Tiles of sums that are added at once: what fits 48 KB of shared memory.
#define TILES_AT_ONCE 8

// N tiles of 8 tokens, each of M tiles of 8 pairs; a lane has the sums of two pairs' rows and two tokens, as tensor cores
// leave them. All threads of the block call this.
template <class Half, class Epilogue, u32 N, u32 M>
DEVICE void add_warps(const Product& p, const float (&c)[N * M][4], u32 first_pair) {
    constexpr u32 TILES = N * M;
    constexpr u32 AT_ONCE = TILES < TILES_AT_ONCE ? TILES : TILES_AT_ONCE;
    SHARED(float4, sums, SKINNY_WARPS * AT_ONCE * 32);
    const u32 g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (u32 first = 0; first < TILES; first += AT_ONCE) {
        if (first > 0) {
            barrier();
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++) {
            const float(&of)[4] = c[first + i];
            sums[(warp() * AT_ONCE + i) * 32 + lane()] = float4{of[0], of[1], of[2], of[3]};
        }
        barrier();
        if (threadIdx.x >= 32 * AT_ONCE) {
            continue;
        }
        float4 sum = sums[threadIdx.x];
#pragma unroll
        for (u32 i = 1; i < SKINNY_WARPS; i++) {
            const float4 other = sums[i * AT_ONCE * 32 + threadIdx.x];
            sum = float4{sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
        }
        const u32 tile = first + warp();
        const u32 pair = first_pair + 8 * (tile % M) + g;
        const u32 token = 8 * (tile / M) + 2 * t;
        if (pair >= Epilogue::pairs(p)) {
            continue;
        }
        // One copy of the epilogue's code for both tokens.
#pragma unroll 1
        for (u32 i = 0; i < 2; i++) {
            if (token + i < p.tokens) {
                const float scale = scale_of(Half(), p, token + i);
                const float first_sum = i == 0 ? sum.x : sum.y, second_sum = i == 0 ? sum.z : sum.w;
                Epilogue::emit(p, token + i, pair, first_sum * scale, second_sum * scale);
            }
        }
    }
}
