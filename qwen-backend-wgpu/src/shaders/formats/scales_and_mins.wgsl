// The scale and the minimum of 32 of the 256 values whose four words are in a plane: two f16 numbers, the low bits of
// eight scales, of eight minima, and the high bits of both.
fn scale_and_min(plane: u32, chunk: u32) -> vec2<f32> {
    let at = plane + 4u * (chunk / 32u);
    let unit = chunk / 4u % 8u;
    let high = word(at + 3u) >> (2u * unit);
    let scale = ((word(at + 1u) >> (4u * unit)) & 15u) | ((high & 3u) << 4u);
    let min = ((word(at + 2u) >> (4u * unit)) & 15u) | (((high >> 16u) & 3u) << 4u);
    return unpack2x16float(word(at)) * vec2(f32(scale), f32(min));
}
