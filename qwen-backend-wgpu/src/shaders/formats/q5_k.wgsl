// Q5_K: the low four bits of codes, their fifth bits, then the scales and minima of 256 values.

//#include formats/scales_and_mins

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let fifth = at + params.chunks;
    let both = scale_and_min(fifth + params.chunks / 4u, u);
    let q = with_bits(four_bits(four_words(at + 4u * u)), one_bit(word(fifth + u)), 4u);
    return Unit(q, vec2(both.x), vec2(both.y), 0.0);
}
