// The scale and the minimum of 32 of the 256 values whose four words are in a plane: two f16 numbers, the low bits of
// eight scales, of eight minima, and the high bits of both.
fn scale_and_min(plane: u32, u: u32) -> vec2<f32> {
    let four = four_words(plane + 4u * (u / 8u));
    let i = u % 8u;
    let low = (four.yz >> vec2(4u * i)) & vec2(15u);
    let high = (vec2(four.w) >> (vec2(0u, 16u) + 2u * i)) & vec2(3u);
    return unpack2x16float(four.x) * vec2<f32>(low | (high << vec2(4u)));
}
