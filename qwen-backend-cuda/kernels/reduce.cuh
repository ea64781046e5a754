// Sums and maxima over a warp or a block, in one fixed order.
#pragma once
#include "kernel.cuh"

// Of the 32 lanes, to each: a tree, the same for every lane.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        value += shuffle_xor(value, step);
    }
    return value;
}

// The largest of the 32 lanes, to each. A NaN counts as nothing.
DEVICE float warp_max(float value) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        value = fmaxf(value, shuffle_xor(value, step));
    }
    return value;
}

// Of all threads of the block, to each: warps first, then their sums in order. One call a kernel: what it shares is not
// free again before a barrier.
template <u32 THREADS>
DEVICE float block_sum(float value) {
    SHARED(float, sums, THREADS / 32);
    value = warp_sum(value);
    if (lane() == 0) {
        sums[warp()] = value;
    }
    barrier();
    float sum = sums[0];
#pragma unroll
    for (u32 i = 1; i < THREADS / 32; i++) {
        sum += sums[i];
    }
    return sum;
}

// As block_sum, the largest; a NaN counts as nothing.
template <u32 THREADS>
DEVICE float block_max(float value) {
    SHARED(float, largest, THREADS / 32);
    value = warp_max(value);
    if (lane() == 0) {
        largest[warp()] = value;
    }
    barrier();
    float result = largest[0];
#pragma unroll
    for (u32 i = 1; i < THREADS / 32; i++) {
        result = fmaxf(result, largest[i]);
    }
    return result;
}
