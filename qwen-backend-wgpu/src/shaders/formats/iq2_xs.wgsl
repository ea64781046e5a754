// IQ2_XS: for every 8 values a point index of nine bits and seven signs; a scale of four bits for every 16 values; for
// every 256 values an f16 scale.

//#include formats/grid

fn eight_codes(bits: u32) -> vec2<u32> {
    return negated(point_of_eight(bits & 511u), eight_signs(bits >> 9u));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let scales = at + params.chunks / 2u;
    let a = word(at + 2u * u);
    let b = word(at + 2u * u + 1u);
    let d = half(scales + params.chunks / 16u, u / 8u) * 0.25;
    let q = codes_of(eight_codes(a), eight_codes(a >> 16u), eight_codes(b), eight_codes(b >> 16u));
    return Unit(q, d * (0.5 + vec2<f32>(nibbles(scales, u))), vec2(0.0), 0.0);
}
