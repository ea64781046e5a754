// IQ2_XXS: for every 32 values four point indices and a word with four times seven signs and a scale; for every 256
// values an f16 scale.

//#include formats/grid

fn eight_codes(points: u32, bits: u32, i: u32) -> vec2<u32> {
    return negated(point_of_eight((points >> (8u * i)) & 255u), eight_signs(bits >> (7u * i)));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let points = word(at + 2u * u);
    let bits = word(at + 2u * u + 1u);
    let d = half(at + params.chunks / 2u, u / 8u);
    let scale = d * (0.5 + f32(bits >> 28u)) * 0.25;
    let q = codes_of(
        eight_codes(points, bits, 0u),
        eight_codes(points, bits, 1u),
        eight_codes(points, bits, 2u),
        eight_codes(points, bits, 3u),
    );
    return Unit(q, vec2(scale), vec2(0.0), 0.0);
}
