// f32 to f16, written out: how `pack2x16float` rounds is left to the driver.

// The bits of the f16 nearest to `value`, of two equally near the even one. What lies beyond the largest is stored as
// that; a NaN stays one.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude >= 0x38800000u {
        // Just short of half of the last place, and the rest where that place is odd: a carry moves the exponent.
        let rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u;
        return sign | min(rounded, 0x7bffu);
    }
    // Below the normal range: in units of 2^-24. From 25 places on nothing is left.
    let significand = (magnitude & 0x7fffffu) | 0x800000u;
    let places = min(126u - (magnitude >> 23u), 25u);
    return sign | ((significand + (1u << (places - 1u)) - 1u + ((significand >> places) & 1u)) >> places);
}

fn f16_pair(pair: vec2<f32>) -> u32 {
    return f16_bits(pair.x) | (f16_bits(pair.y) << 16u);
}
