// What sums over a token's halves are multiplied with: f16 ones were divided by a power of two, see Halve in
// params.cuh.
#pragma once
#include "numbers.cuh"

DEVICE float scale_of(F16, const Product& p, u32 token) {
    return p.scales[token];
}

DEVICE float scale_of(Bf16, const Product&, u32) {
    return 1.0f;
}
