// IQ3_S: the low byte of a point index for every 4 values, a byte of signs for every 8, the ninth bits of the indices; a
// scale of four bits for every 32 values; for every 256 values an f16 scale.

//#include formats/grid

fn eight_codes(low: u32, ninth: u32, signs: u32) -> vec2<u32> {
    let first = (low & 255u) | ((ninth & 1u) << 8u);
    let second = ((low >> 8u) & 255u) | ((ninth & 2u) << 7u);
    return negated(vec2(word(first), word(second)), signs);
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let units = params.chunks / 4u;
    let a = word(at + 2u * u);
    let b = word(at + 2u * u + 1u);
    let signs = word(at + 2u * units + u);
    let ninth = word(at + 3u * units + u / 4u) >> (8u * (u % 4u));
    let scales = at + 3u * units + units / 4u;
    let d = half(scales + units / 8u, u / 8u);
    let q = codes_of(
        eight_codes(a, ninth, signs),
        eight_codes(a >> 16u, ninth >> 2u, signs >> 8u),
        eight_codes(b, ninth >> 4u, signs >> 16u),
        eight_codes(b >> 16u, ninth >> 6u, signs >> 24u),
    );
    return Unit(q, vec2(d * (1.0 + 2.0 * f32(nibbles(scales, u / 2u)[u % 2u]))), vec2(0.0), 0.0);
}
