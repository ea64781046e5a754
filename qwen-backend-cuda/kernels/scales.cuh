// The factor of a token's sums: activations that were rounded to f16 were divided by a power of two before, see
// ScaleAndRound in params.cuh.
#pragma once
#include "numbers.cuh"

DEVICE float scale_of(F16, const Product& p, u32 token) {
    return p.scales[token];
}

DEVICE float scale_of(Bf16, const Product&, u32) {
    return 1.0f;
}
