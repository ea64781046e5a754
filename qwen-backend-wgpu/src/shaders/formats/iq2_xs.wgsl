// IQ2_XS: for every 8 values a point index of nine bits and seven signs; a scale of four bits for every 16 values; for
// every 256 values an f16 scale.

//#include formats/grid

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let scales = at + params.chunks / 2u;
    let bits = word(at + chunk / 2u) >> (16u * (chunk % 2u));
    let d = half(scales + params.chunks / 16u, chunk / 32u);
    let scale = d * (0.5 + f32(nibble(scales, chunk / 2u))) * 0.25;
    let point = bits & 511u;
    return Codes(negated(vec2(word(2u * point), word(2u * point + 1u)), eight_signs(bits >> 9u)), scale, 0.0, 0.0);
}
