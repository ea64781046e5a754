// IQ3_XXS: a point index for every 4 values; for every 32 values a word with four times seven signs and a scale; for
// every 256 values an f16 scale.

//#include formats/grid

fn eight_codes(points: u32, signs: u32) -> vec2<u32> {
    return negated(vec2(word(points & 255u), word((points >> 8u) & 255u)), eight_signs(signs));
}

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let units = params.chunks / 4u;
    let a = word(at + 2u * u);
    let b = word(at + 2u * u + 1u);
    let bits = word(at + 2u * units + u);
    let d = half(at + 3u * units, u / 8u);
    let q = codes_of(
        eight_codes(a, bits),
        eight_codes(a >> 16u, bits >> 7u),
        eight_codes(b, bits >> 14u),
        eight_codes(b >> 16u, bits >> 21u),
    );
    return Unit(q, vec2(d * (0.5 + f32(bits >> 28u)) * 0.5), vec2(0.0), 0.0);
}
