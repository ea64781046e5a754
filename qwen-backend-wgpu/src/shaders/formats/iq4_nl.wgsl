// IQ4_NL: four-bit codes that index a table, then an f16 scale for every 32 values.

//#include formats/levels

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let scale = half(at + params.chunks, u);
    return Unit(levels(four_bits(four_words(at + 4u * u))), vec2(scale), vec2(0.0), 0.0);
}
