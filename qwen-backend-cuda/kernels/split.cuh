// Values as sums of two f16, so that tensor cores multiply them as exactly as f32 would.
//
// A row is first multiplied with the power of two that brings its largest magnitude to [2^14, 2^15): nothing overflows,
// and what the two parts leave of any value is below 2^-22 of it or 2^-39 of the largest.
#pragma once
#include "mma.cuh"

// A factor, a power of two, and its inverse.
struct PowerOfTwo {
    float factor, inverse;
};

// For a row with this largest magnitude. An infinity stays one, and its second part is a NaN.
DEVICE PowerOfTwo split_scale(float largest) {
    const u32 exponent = as_u32(largest) >> 23;
    if (exponent == 255) {
        return PowerOfTwo{1.0f, 1.0f};
    }
    // Both have to be normal numbers; rows that small are as good as zero.
    const u32 clamped = exponent < 20 ? 20 : exponent;
    return PowerOfTwo{as_float((268 - clamped) << 23), as_float((clamped - 14) << 23)};
}

// Two values' parts, a word each.
struct SplitPair {
    u32 high, low;
};

DEVICE SplitPair split(float first, float second) {
    const u32 high = f16_pair(first, second);
    return SplitPair{high, f16_pair(first - f16_to_f32(u16(high)), second - f16_to_f32(u16(high >> 16)))};
}

DEVICE float larger_magnitude(float a, float b) {
    return fmaxf(a, fabsf(b));
}
