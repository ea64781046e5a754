// Q4_K: four-bit codes, then the scales and minima of 256 values.

//#include formats/scales_and_mins

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let both = scale_and_min(at + params.chunks, u);
    return Unit(four_bits(four_words(at + 4u * u)), vec2(both.x), vec2(both.y), 0.0);
}
