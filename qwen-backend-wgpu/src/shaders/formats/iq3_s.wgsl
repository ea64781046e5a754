// IQ3_S: the low byte of a point index for every 4 values, a byte of signs for every 8, the ninth bits of the indices; a
// scale of four bits for every 32 values; for every 256 values an f16 scale.

//#include formats/grid

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let signs = at + params.chunks / 2u;
    let high = signs + params.chunks / 4u;
    let scales = high + params.chunks / 16u;
    let low = word(at + chunk / 2u) >> (16u * (chunk % 2u));
    let ninth = word(high + chunk / 16u) >> (2u * (chunk % 16u));
    let first = (low & 255u) | ((ninth & 1u) << 8u);
    let second = ((low >> 8u) & 255u) | ((ninth & 2u) << 7u);
    let d = half(scales + params.chunks / 32u, chunk / 32u);
    let scale = d * (1.0 + 2.0 * f32(nibble(scales, chunk / 4u)));
    let q = negated(vec2(word(first), word(second)), word(signs + chunk / 4u) >> (8u * (chunk % 4u)));
    return Codes(q, scale, 0.0, 0.0);
}
