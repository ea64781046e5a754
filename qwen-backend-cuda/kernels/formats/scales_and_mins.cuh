// The scale and the minimum of a unit of Q4_K and Q5_K from the four words of its block: two f16 numbers, the low bits
// of eight scales, of eight minima, and the high bits of both.
#pragma once
#include "block_kernels.cuh"

DEVICE void scale_and_min(Unit& to, uint4 head, u32 unit) {
    const u32 i = unit % 8, high = head.w >> 2 * i;
    const u32 scale = (head.y >> 4 * i & 15) | (high & 3) << 4;
    const u32 min = (head.z >> 4 * i & 15) | (high >> 16 & 3) << 4;
    to.scale[0] = low_half(head.x) * float(scale);
    to.min[0] = high_half(head.x) * float(min);
}
