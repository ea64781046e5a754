// rms_norm: each row over its root mean square, times a weight.
//
// A block takes a row. Up to 8192 columns (32 a thread) stay in registers between the sum of squares and the division;
// longer rows, and those that 16 bytes do not divide, are read twice.
//
// rms_norm_to_bytes: the same for rows that stay in registers, rounded to signed bytes as round_to_bytes does.
#include "bytes.cuh"
#include "reduce.cuh"

// float4s that a thread keeps.
#define KEPT 8
static_assert(NORM_KEPT == 4 * KEPT * NORM_THREADS, "as params.cuh says");

// The factor that a row is multiplied with, once each thread has summed its squares.
DEVICE float row_factor(const RmsNorm& p, float squares) {
    return 1.0f / sqrtf(block_sum<NORM_THREADS>(squares) / float(p.hidden_size) + p.eps);
}

template <bool TO_BYTES>
DEVICE void norm_kept(const RmsNorm& p, size_t start) {
    const u32 quads = p.hidden_size / 4;
    float4 kept[KEPT];
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 quad = i * NORM_THREADS + threadIdx.x;
        if (quad < quads) {
            kept[i] = load_float4(p.x + start + 4 * quad);
        }
    }
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        if (i * NORM_THREADS + threadIdx.x < quads) {
            const float4 v = kept[i];
            squares = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, squares))));
        }
    }
    const float factor = row_factor(p, squares);
#pragma unroll
    for (u32 i = 0; i < KEPT; i++) {
        const u32 quad = i * NORM_THREADS + threadIdx.x;
        float4 normed = {0.0f, 0.0f, 0.0f, 0.0f};
        if (quad < quads) {
            const float4 v = kept[i], w = load_float4(p.weight + 4 * quad);
            normed = float4{v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w};
            if (!TO_BYTES) {
                store_float4(p.out + start + 4 * quad, normed);
            }
        }
        // The same for all lanes of a warp.
        if (TO_BYTES && i * NORM_THREADS + threadIdx.x / 32 * 32 < quads) {
            unsigned char* const row =
                static_cast<unsigned char*>(p.bytes) + size_t(blockIdx.x) * byte_row(p.hidden_size / 32);
            round_four(row, 4 * quad, p.hidden_size, {normed.x, normed.y, normed.z, normed.w});
        }
    }
}

DEVICE void norm_twice(const RmsNorm& p, size_t start) {
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < p.hidden_size; i += NORM_THREADS) {
        const float v = p.x[start + i];
        squares = fmaf(v, v, squares);
    }
    const float factor = row_factor(p, squares);
    for (u32 i = threadIdx.x; i < p.hidden_size; i += NORM_THREADS) {
        p.out[start + i] = p.x[start + i] * factor * p.weight[i];
    }
}

KERNEL(rms_norm, RmsNorm, NORM_THREADS, 2) {
    const size_t start = size_t(blockIdx.x) * p.hidden_size;
    if (p.hidden_size % 4 == 0 && p.hidden_size <= NORM_KEPT) {
        norm_kept<false>(p, start);
    } else {
        norm_twice(p, start);
    }
}

KERNEL(rms_norm_to_bytes, RmsNorm, NORM_THREADS, 2) {
    norm_kept<true>(p, size_t(blockIdx.x) * p.hidden_size);
}
