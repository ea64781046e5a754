// K/V in Q8_0: 32 channels of a head at a position are an f16 scale and 32 signed bytes. An array is the codes of all
// heads and slots, then the scales: the block of the value `i` of the array has scale `i / 32`.
#pragma once
#include "numbers.cuh"

// Its number as the encoding of keys or values.
#define KV_Q8 3
#define Q8_VALUES 32
#define INFINITY_BITS 0x7f800000u
#define F16_NAN 0x7e00

// The scales of an array of `heads` heads.
DEVICE const u16* q8_scales(const void* array, u32 heads, u32 num_slots, u32 head_dim) {
    return reinterpret_cast<const u16*>(static_cast<const signed char*>(array) + size_t(heads) * num_slots * head_dim);
}

// The values of four codes in a word.
DEVICE void q8_decode(u32 codes, float scale, float* values) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        values[i] = scale * float(int(codes << (24 - 8 * i)) >> 24);
    }
}

// The scale of a block whose largest magnitude, which is finite, is `largest`.
DEVICE u16 q8_scale(float largest) {
    const u16 nearest = f32_to_stored_f16(largest / 127.0f);
    // Among the smallest f16 numbers the nearest may be far too small.
    return largest > 127.5f * f16_to_f32(nearest) && nearest < 1024 ? u16(nearest + 1) : nearest;
}

// Store value `index` of an array, with those of the warp's other lanes, which are a block: the bytes that the CPU
// stores.
DEVICE void store_q8(void* array, const u16* scales, size_t index, float value) {
    u32 largest = as_u32(value) & 0x7fffffff;
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        const u32 other = shuffle_xor(largest, step);
        largest = other > largest ? other : largest;
    }
    u16 scale = F16_NAN;
    u32 code = 0;
    if (largest < INFINITY_BITS) {
        scale = q8_scale(as_float(largest));
        const float level = scale == 0 ? 0.0f : value * (1.0f / f16_to_f32(scale));
        // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits, ties to even.
        code = as_u32(fminf(fmaxf(level, -127.0f), 127.0f) + 12582912.0f);
    }
    static_cast<unsigned char*>(array)[index] = static_cast<unsigned char>(code);
    if (lane() == 0) {
        const_cast<u16*>(scales)[index / Q8_VALUES] = scale;
    }
}
