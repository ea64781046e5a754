// IQ2_XXS: for every 32 values four point indices and a word with four times seven signs and a scale; for every 256
// values an f16 scale.

//#include formats/grid

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let head = at + 2u * (chunk / 4u);
    let bits = word(head + 1u);
    let d = half(at + params.chunks / 2u, chunk / 32u);
    let scale = d * (0.5 + f32(bits >> 28u)) * 0.25;
    let i = chunk % 4u;
    let point = (word(head) >> (8u * i)) & 255u;
    return Codes(negated(vec2(word(2u * point), word(2u * point + 1u)), eight_signs(bits >> (7u * i))), scale, 0.0, 0.0);
}
