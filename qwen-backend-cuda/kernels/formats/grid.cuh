// Codes as points of a grid, for the IQ2 and IQ3 formats. The table has a word for four coordinates, all positive; the
// signs are stored beside the numbers of points.
#pragma once
#include "block_kernels.cuh"

// The eight signs of seven stored bits: the number of negative ones is even.
DEVICE u32 eight_signs(u32 bits) {
    const u32 seven = bits & 127;
#ifdef __CUDACC_RTC__
    const u32 ones = __popc(seven);
#else
    const u32 ones = u32(__builtin_popcount(seven));
#endif
    return seven | (ones & 1) << 7;
}

// Four coordinates, those with a bit in `signs` negated.
DEVICE u32 negated(u32 four, u32 signs) {
    const u32 ones = ((signs & 15) * 0x00204081) & 0x01010101;
    return (four ^ ones * 255) + ones;
}

// Eight coordinates, the codes from number 8 i on, with their signs.
DEVICE void put_eight(u32 (&codes)[8], u32 i, u32 first, u32 second, u32 signs) {
    codes[2 * i] = negated(first, signs);
    codes[2 * i + 1] = negated(second, signs >> 4);
}

// The point of eight coordinates, and that of four.
DEVICE uint2 point_of_eight(Bytes table, u32 point) {
    return *reinterpret_cast<const uint2*>(table + 8 * point);
}

DEVICE u32 point_of_four(Bytes table, u32 point) {
    return *reinterpret_cast<const u32*>(table + 4 * point);
}
