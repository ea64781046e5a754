// IQ2_S: the low bytes of point indices, a byte of signs for each, their two high bits; a scale of four bits for every
// 16 values; for every 256 values an f16 scale.

//#include formats/grid

fn eight_codes(low: u32, high: u32, signs: u32, i: u32) -> vec2<u32> {
    let index = ((low >> (8u * i)) & 255u) | (((high >> (2u * i)) & 3u) << 8u);
    return negated(point_of_eight(index), signs >> (8u * i));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let units = params.chunks / 4u;
    let signs = word(at + units + u);
    let scales = at + 2u * units + units / 4u;
    let low = word(at + u);
    let high = word(at + 2u * units + u / 4u) >> (8u * (u % 4u));
    let d = half(scales + units / 4u, u / 8u) * 0.25;
    let q = codes_of(
        eight_codes(low, high, signs, 0u),
        eight_codes(low, high, signs, 1u),
        eight_codes(low, high, signs, 2u),
        eight_codes(low, high, signs, 3u),
    );
    return Unit(q, d * (0.5 + vec2<f32>(nibbles(scales, u))), vec2(0.0), 0.0);
}
