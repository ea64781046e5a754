// Q4_1: four-bit codes, then an f16 scale and an f16 minimum for every 32 values.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let both = unpack2x16float(word(at + params.chunks + u));
    return Unit(four_bits(four_words(at + 4u * u)), vec2(both.x), vec2(-both.y), 0.0);
}
