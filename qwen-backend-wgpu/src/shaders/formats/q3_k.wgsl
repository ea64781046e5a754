// Q3_K: the low two bits of codes, their third bits; for every 16 values a scale of six bits, minus 32; for every 256
// values the f16 number that scales are multiples of. 4 stands for zero.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let units = params.chunks / 4u;
    let scales = at + 3u * units;
    let block = scales + 3u * (u / 8u);
    let high = (vec2(word(block + 2u)) >> (vec2(0u, 2u) + 4u * (u % 8u))) & vec2(3u);
    let scale = vec2<f32>(vec2<i32>(nibbles(block, u % 8u) | (high << vec2(4u))) - 32);
    let q = with_bits(two_bits(at + 2u * u), one_bit(word(at + 2u * units + u)), 2u);
    return Unit(q, half(scales + 3u * (units / 8u), u / 8u) * scale, vec2(0.0), -4.0);
}
