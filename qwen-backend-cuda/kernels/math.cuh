// Functions whose last bits a compiler may choose, written out so that GPU and CPU compute the same.
#pragma once
#include "kernel.cuh"

// e^x for x <= 0, and 0 below -87, within 2 ulp: 2^n times a polynomial on |r| <= ln(2) / 2. A NaN gives a NaN.
DEVICE float exp_negative(float x) {
    const float n = rintf(x * 1.44269504f);
    // ln(2) in two parts, the first short enough that n times it is exact.
    const float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, x));
    float power = fmaf(r, 1.98412698e-4f, 1.38888889e-3f);
    power = fmaf(power, r, 8.33333333e-3f);
    power = fmaf(power, r, 4.16666667e-2f);
    power = fmaf(power, r, 1.66666667e-1f);
    power = fmaf(power, r, 0.5f);
    power = fmaf(power, r, 1.0f);
    power = fmaf(power, r, 1.0f);
    const float scale = as_float(u32(int(fmaxf(n, -126.0f)) + 127) << 23);
    return x < -87.0f ? 0.0f : power * scale;
}

// x / (1 + e^-x) by the exponential of -|x|, so that nothing overflows.
DEVICE float silu(float x) {
    const float e = exp_negative(-fabsf(x));
    return x * (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// A rotary pair turned by the angle with cosine `c` and sine `s`.
DEVICE float2 rotate(float2 v, float c, float s) {
    return float2{v.x * c - v.y * s, v.y * c + v.x * s};
}
