// round_to_bytes: activations rounded to signed bytes, 32 at a time, for matrices in blocks.
//
// A block takes a row, eight threads take 32 columns: the scale is the largest magnitude divided by 127.
#include "bytes.cuh"

KERNEL(round_to_bytes, RoundToBytes, ROUND_TO_BYTES_THREADS, 4) {
    const u32 units = p.cols / 32;
    const float* const x = p.x + size_t(blockIdx.x) * p.cols;
    unsigned char* const row = static_cast<unsigned char*>(p.bytes) + size_t(blockIdx.x) * byte_row(units);
    // All lanes of a warp take part in the maximum.
    const u32 end = div_up(p.cols, 4 * ROUND_TO_BYTES_THREADS) * (4 * ROUND_TO_BYTES_THREADS);
    for (u32 col = 4 * threadIdx.x; col < end; col += 4 * ROUND_TO_BYTES_THREADS) {
        float values[4] = {};
        if (col < p.cols && p.column_order) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                values[i] = x[p.column_order[col + i]];
            }
        } else if (col < p.cols) {
            const float4 four = load_float4(x + col);
            values[0] = four.x;
            values[1] = four.y;
            values[2] = four.z;
            values[3] = four.w;
        }
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
        if (col >= p.cols) {
            continue;
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
            reinterpret_cast<float*>(row + p.cols)[col / 32] = written;
        }
    }
}
