// f32 to f16, written out: WGSL leaves it to the driver how `pack2x16float` rounds.

// The bits of the f16 nearest to `value`, ties to even. Values beyond the largest f16 are clamped to it; NaN stays NaN.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude >= 0x38800000u {
        // Add just under half a unit in the last place, plus one bit if that place is odd; a carry increments the
        // exponent.
        let rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u;
        return sign | min(rounded, 0x7bffu);
    }
    // Below the normal range: in units of 2^-24. A shift by 25 places or more leaves 0.
    let significand = (magnitude & 0x7fffffu) | 0x800000u;
    let places = min(126u - (magnitude >> 23u), 25u);
    return sign | ((significand + (1u << (places - 1u)) - 1u + ((significand >> places) & 1u)) >> places);
}

fn f16_pair(pair: vec2<f32>) -> u32 {
    return f16_bits(pair.x) | (f16_bits(pair.y) << 16u);
}
