// IQ2_S: the low bytes of point indices, a byte of signs for each, their two high bits; a scale of four bits for every
// 16 values; for every 256 values an f16 scale.

//#include formats/grid

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let units = params.chunks / 4u;
    let signs = at + units;
    let high = signs + units;
    let scales = high + params.chunks / 16u;
    let shift = 8u * (chunk % 4u);
    let low = (word(at + chunk / 4u) >> shift) & 255u;
    let point = low | (((word(high + chunk / 16u) >> (2u * (chunk % 16u))) & 3u) << 8u);
    let d = half(scales + params.chunks / 16u, chunk / 32u);
    let scale = d * (0.5 + f32(nibble(scales, chunk / 2u))) * 0.25;
    let q = negated(vec2(word(2u * point), word(2u * point + 1u)), word(signs + chunk / 4u) >> shift);
    return Codes(q, scale, 0.0, 0.0);
}
