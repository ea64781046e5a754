// scale_and_round: activations rounded to 16 bits, as tensor cores take them.
//
// A block takes a row. For f16 the row is first divided by a power of two, so that no value exceeds the format; the
// power is stored in `scales`, and multiplies the sums of a product.
#include "numbers.cuh"
#include "reduce.cuh"

// The power of two that brings a row with this largest magnitude to [1, 2): the magnitude with its mantissa cleared. 1
// for a row of zeros and for an infinity, which no division mends. At least 2^-126, the smallest normal number.
DEVICE float scale_of(float largest) {
    const u32 exponent = as_u32(largest) & 0x7f800000;
    if (largest == 0.0f || exponent == 0x7f800000) {
        return 1.0f;
    }
    return as_float(exponent == 0 ? 1u << 23 : exponent);
}

// Eight columns from `col` on, zeros beyond the last. If `cols` is a multiple of 8, rows begin at multiples of 32
// bytes.
DEVICE void load_eight(float (&values)[8], const float* x, u32 col, u32 cols) {
    if (cols % 8 == 0) {
        const float4 low = load_float4(x + col), high = load_float4(x + col + 4);
        const float loaded[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            values[i] = loaded[i];
        }
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        values[i] = col + i < cols ? x[col + i] : 0.0f;
    }
}

// Eight columns a thread at a time; a rounded row is padded with zeros to `stride`, a multiple of eight.
template <class Round>
DEVICE void round_row(const ScaleAndRound& p, const float* x, Round round, const u32* order) {
    u16* const rounded = static_cast<u16*>(p.rounded) + size_t(blockIdx.x) * p.stride;
    for (u32 col = 8 * threadIdx.x; col < p.stride; col += 8 * SCALE_AND_ROUND_THREADS) {
        float values[8];
        if (order) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                values[i] = col + i < p.cols ? x[order[col + i]] : 0.0f;
            }
        } else {
            load_eight(values, x, col, p.cols);
        }
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            words[i] = round(values[2 * i]) | round(values[2 * i + 1]) << 16;
        }
        store16(rounded + col, uint4{words[0], words[1], words[2], words[3]});
    }
}

struct ToBf16 {
    __device__ __forceinline__ u32 operator()(float value) const {
        return f32_to_bf16(value);
    }
};

struct ToScaledF16 {
    float scale;

    __device__ __forceinline__ u32 operator()(float value) const {
        return f32_to_f16(value / scale);
    }
};

KERNEL(scale_and_round_bf16, ScaleAndRound, SCALE_AND_ROUND_THREADS, 4) {
    round_row(p, p.x + size_t(blockIdx.x) * p.cols, ToBf16{}, p.column_order);
}

KERNEL(scale_and_round_f16, ScaleAndRound, SCALE_AND_ROUND_THREADS, 4) {
    const float* const x = p.x + size_t(blockIdx.x) * p.cols;
    float largest = 0.0f;
    for (u32 col = 8 * threadIdx.x; col < p.cols; col += 8 * SCALE_AND_ROUND_THREADS) {
        float values[8];
        load_eight(values, x, col, p.cols);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            largest = fmaxf(largest, fabsf(values[i]));
        }
    }
    const float scale = scale_of(block_max<SCALE_AND_ROUND_THREADS>(largest));
    if (threadIdx.x == 0) {
        p.scales[blockIdx.x] = scale;
    }
    round_row(p, x, ToScaledF16{scale}, nullptr);
}
