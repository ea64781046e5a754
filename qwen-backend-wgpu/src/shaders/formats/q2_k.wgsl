// Q2_K: two-bit codes; for every 16 values a byte with a scale and a minimum of four bits; for every 256 values the f16
// numbers that scales and minima are multiples of.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let scales = at + params.chunks / 2u;
    let both = vec2(word(scales + u / 2u)) >> (vec2(0u, 8u) + 16u * (u % 2u));
    let d = unpack2x16float(word(scales + params.chunks / 8u + u / 8u));
    let scale = d.x * vec2<f32>(both & vec2(15u));
    let min = d.y * vec2<f32>((both >> vec2(4u)) & vec2(15u));
    return Unit(two_bits(at + 2u * u), scale, min, 0.0);
}
