// Activations rounded to signed bytes, 32 at a time, and products of bytes. A row is its codes, then for each 32 of them
// an f32 scale, padded to 16 bytes. A value is scale * code; a block that is not finite has a scale of NaN.
#pragma once
#include "kernel.cuh"

// Bytes of a row of `units` units of 32 columns.
DEVICE u32 byte_row(u32 units) {
    return (36 * units + 15) & ~15u;
}

// sum + the products of the four signed bytes of two words.
DEVICE int dot4(u32 a, u32 b, int sum) {
#ifdef __CUDACC_RTC__
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
#else
    for (u32 i = 0; i < 4; i++) {
        sum += int(static_cast<signed char>(a >> 8 * i)) * int(static_cast<signed char>(b >> 8 * i));
    }
    return sum;
#endif
}
