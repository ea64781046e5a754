// Q4_0: four-bit codes minus 8, then an f16 scale for every 32 values.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let scale = half(at + params.chunks, u);
    return Unit(four_bits(four_words(at + 4u * u)), vec2(scale), vec2(0.0), -8.0);
}
