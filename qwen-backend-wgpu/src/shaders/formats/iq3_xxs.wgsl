// IQ3_XXS: a point index for every 4 values; for every 32 values a word with four times seven signs and a scale; for
// every 256 values an f16 scale.

//#include formats/grid

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let signs = at + params.chunks / 2u;
    let bits = word(signs + chunk / 4u);
    let d = half(signs + params.chunks / 4u, chunk / 32u);
    let scale = d * (0.5 + f32(bits >> 28u)) * 0.5;
    let points = word(at + chunk / 2u) >> (16u * (chunk % 2u));
    let q = vec2(word(points & 255u), word((points >> 8u) & 255u));
    return Codes(negated(q, eight_signs(bits >> (7u * (chunk % 4u)))), scale, 0.0, 0.0);
}
