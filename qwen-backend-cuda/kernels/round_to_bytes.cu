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
        round_four(row, col, p.cols, values);
    }
}
