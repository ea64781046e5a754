// Q5_0: the low four bits of codes, their fifth bits, then an f16 scale for every 32 values; 16 stands for zero.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let fifth = at + params.chunks;
    let q = with_bits(four_bits(four_words(at + 4u * u)), one_bit(word(fifth + u)), 4u);
    return Unit(q, vec2(half(fifth + params.chunks / 4u, u)), vec2(0.0), -16.0);
}
