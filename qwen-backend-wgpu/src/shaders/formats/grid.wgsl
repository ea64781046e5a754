// Formats whose codes are points of a grid, four or eight coordinates each, with separate signs.

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

// A point of eight coordinates.
fn point_of_eight(index: u32) -> vec2<u32> {
    return vec2(word(2u * index), word(2u * index + 1u));
}

// The codes of four eights.
fn codes_of(a: vec2<u32>, b: vec2<u32>, c: vec2<u32>, d: vec2<u32>) -> Codes {
    return Codes(vec4(a.x, b.x, c.x, d.x), vec4(a.y, b.y, c.y, d.y));
}
