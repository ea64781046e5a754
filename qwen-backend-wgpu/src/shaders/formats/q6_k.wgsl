// Q6_K: the low four bits of codes, the next two; a signed byte as the scale of every 16 values; for every 256 values the
// f16 number that scales are multiples of. 32 stands for zero.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let high = at + params.chunks;
    let scales = high + params.chunks / 2u;
    let both = word(scales + u / 2u) >> (16u * (u % 2u));
    let scale = vec2<f32>(unpack4xI8(both).xy);
    let d = half(scales + params.chunks / 8u, u / 8u);
    let q = with_bits(four_bits(four_words(at + 4u * u)), two_bits(high + 2u * u), 4u);
    return Unit(q, d * scale, vec2(0.0), -32.0);
}
