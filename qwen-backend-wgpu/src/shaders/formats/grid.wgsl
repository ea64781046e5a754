// The eight signs of seven stored bits: the number of negative ones is even.
fn eight_signs(bits: u32) -> u32 {
    let seven = bits & 127u;
    return seven | ((countOneBits(seven) & 1u) << 7u);
}

// Coordinates, all positive, with a bit of signs for each.
fn negated(q: vec2<u32>, signs: u32) -> vec2<u32> {
    let four = vec2(signs & 15u, (signs >> 4u) & 15u);
    let ones = (four * 0x00204081u) & vec2(0x01010101u);
    return (q ^ (ones * 255u)) + ones;
}
