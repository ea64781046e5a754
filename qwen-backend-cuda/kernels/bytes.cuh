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

// Round four columns of a row of `cols`, from column `col` on, to `row`. Eight lanes that are neighbours have 32 columns,
// and all lanes of a warp call this: those beyond the last column with zeros.
DEVICE void round_four(unsigned char* row, u32 col, u32 cols, const float (&values)[4]) {
    // As bits, so that a NaN is larger than all numbers.
    u32 largest = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 magnitude = as_u32(values[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
#pragma unroll
    for (u32 step = 1; step < 8; step *= 2) {
        const u32 other = shuffle_xor(largest, step);
        largest = other > largest ? other : largest;
    }
    if (col >= cols) {
        return;
    }
    const float scale = as_float(largest) / 127.0f;
    u32 codes = 0;
    if (largest < 0x7f800000 && scale > 0.0f) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            // A scale that is subnormal may be too small.
            const float code = fminf(fmaxf(rintf(values[i] / scale), -127.0f), 127.0f);
            codes |= (u32(int(code)) & 255) << 8 * i;
        }
    }
    *reinterpret_cast<u32*>(row + col) = codes;
    if (col % 32 == 0) {
        const float written = largest < 0x7f800000 ? scale : as_float(0x7fc00000);
        reinterpret_cast<float*>(row + cols)[col / 32] = written;
    }
}
