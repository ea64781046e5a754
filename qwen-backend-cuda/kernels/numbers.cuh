// The 16-bit formats, and matrices stored as f32, bf16 or f16 read 16 bytes at a time.
#pragma once
#include "kernel.cuh"

// The largest f16.
#define F16_MAX 65504.0f

DEVICE float f16_to_f32(u16 half) {
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    const u32 magnitude = half & 0x7fffu;
    const u32 sign = (half & 0x8000u) << 16;
    if (magnitude >= 0x7c00) {
        return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    }
    // As an f32 the exponent is 112 short; the product is exact, of a subnormal too.
    return as_float(sign | as_u32(as_float(magnitude << 13) * 0x1p112f));
#endif
}

// To the nearest f16, ties to even.
DEVICE u16 f32_to_f16(float value) {
#ifdef __CUDACC_RTC__
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    const u32 magnitude = as_u32(value) & 0x7fffffff;
    const u32 sign = as_u32(value) >> 16 & 0x8000;
    if (magnitude > 0x7f800000) {
        return 0x7fff;
    }
    if (magnitude >= as_u32(65520.0f)) {
        return u16(sign | 0x7c00);
    }
    if (magnitude < as_u32(0x1p-14f)) {
        // 0.5 has the same last place as subnormal f16: the addition rounds.
        return u16(sign | (as_u32(as_float(magnitude) + 0.5f) - as_u32(0.5f)));
    }
    const u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return u16(sign | (rounded - (112u << 23)) >> 13);
#endif
}

DEVICE float bf16_to_f32(u16 half) {
    return as_float(u32(half) << 16);
}

// To the nearest bf16, ties to even; a NaN stays one.
DEVICE u16 f32_to_bf16(float value) {
    const u32 bits = as_u32(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;
    }
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To f16 as keys and values are stored: clamped to the largest f16; a NaN stays one.
DEVICE u16 f32_to_stored_f16(float value) {
    const float clamped = value > F16_MAX ? F16_MAX : value < -F16_MAX ? -F16_MAX : value;
    return f32_to_f16(clamped);
}

// The formats of stored arrays: a value, WIDE of them in 16 bytes, and back. Values on the right are f32.
struct F32 {
    typedef float Stored;
    static const u32 WIDE = 4;

    DEVICE float decode(float stored) {
        return stored;
    }
    DEVICE void decode(uint4 v, float* values) {
        values[0] = as_float(v.x);
        values[1] = as_float(v.y);
        values[2] = as_float(v.z);
        values[3] = as_float(v.w);
    }
    // As keys and values are stored.
    DEVICE float encode(float value) {
        return value;
    }
};

struct Bf16 {
    typedef u16 Stored;
    static const u32 WIDE = 8;

    DEVICE float decode(u16 stored) {
        return bf16_to_f32(stored);
    }
    DEVICE void decode(uint4 v, float* values) {
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            values[2 * i] = as_float(words[i] << 16);
            values[2 * i + 1] = as_float(words[i] & 0xffff0000);
        }
    }
};

struct F16 {
    typedef u16 Stored;
    static const u32 WIDE = 8;

    DEVICE float decode(u16 stored) {
        return f16_to_f32(stored);
    }
    DEVICE void decode(uint4 v, float* values) {
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            values[2 * i] = f16_to_f32(u16(words[i]));
            values[2 * i + 1] = f16_to_f32(u16(words[i] >> 16));
        }
    }
    DEVICE u16 encode(float value) {
        return f32_to_stored_f16(value);
    }
};

// Encodings as parameters name them.
#define ENCODING_F32 0
#define ENCODING_BF16 1
#define ENCODING_F16 2
