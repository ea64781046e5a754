// halve: activations rounded to 16 bits, as tensor cores take them.
//
// A block takes a row. For f16 it is first divided by a power of two, so that no value is beyond the format; the power
// goes to scales, and multiplies the sums.
#include "numbers.cuh"
#include "reduce.cuh"

// The power of two that brings a row whose largest magnitude is this to [1, 2): its exponent alone. 1 for a row of
// zeros and for an infinity, which no division mends. Below 2^-126 it would not be a normal number: there it is that.
DEVICE float scale_of(float largest) {
    const u32 exponent = as_u32(largest) & 0x7f800000;
    if (largest == 0.0f || exponent == 0x7f800000) {
        return 1.0f;
    }
    return as_float(exponent == 0 ? 1u << 23 : exponent);
}

// Eight columns a thread at a time; a row of halves is padded with zeros to `stride`, a multiple of eight.
template <class Round>
DEVICE void round_row(const Halve& p, const float* x, Round round) {
    u16* const halves = static_cast<u16*>(p.halves) + size_t(blockIdx.x) * p.stride;
    for (u32 col = 8 * threadIdx.x; col < p.stride; col += 8 * HALVE_THREADS) {
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 c = col + 2 * i;
            const u32 low = c < p.cols ? round(x[c]) : 0;
            const u32 high = c + 1 < p.cols ? round(x[c + 1]) : 0;
            words[i] = low | high << 16;
        }
        store16(halves + col, uint4{words[0], words[1], words[2], words[3]});
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

KERNEL(halve_bf16, Halve, HALVE_THREADS, 4) {
    round_row(p, p.x + size_t(blockIdx.x) * p.cols, ToBf16{});
}

KERNEL(halve_f16, Halve, HALVE_THREADS, 4) {
    const float* const x = p.x + size_t(blockIdx.x) * p.cols;
    float largest = 0.0f;
    for (u32 col = threadIdx.x; col < p.cols; col += HALVE_THREADS) {
        largest = fmaxf(largest, fabsf(x[col]));
    }
    const float scale = scale_of(block_max<HALVE_THREADS>(largest));
    if (threadIdx.x == 0) {
        p.scales[blockIdx.x] = scale;
    }
    round_row(p, x, ToScaledF16{scale});
}
