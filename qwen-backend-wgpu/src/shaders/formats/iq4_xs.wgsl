// IQ4_XS: four-bit codes that index a table; for every 256 values eight scales of six bits, minus 32, and the f16 number
// that they are multiples of.

//#include formats/levels

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let head = at + params.chunks + 2u * (u / 8u);
    let low = (word(head) >> (4u * (u % 8u))) & 15u;
    let both = word(head + 1u);
    let high = (both >> (16u + 2u * (u % 8u))) & 3u;
    let scale = unpack2x16float(both).x * f32(i32(low | (high << 4u)) - 32);
    return Unit(levels(four_bits(four_words(at + 4u * u))), vec2(scale), vec2(0.0), 0.0);
}
