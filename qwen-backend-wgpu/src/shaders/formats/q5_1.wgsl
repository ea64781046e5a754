// Q5_1: the low four bits of codes, their fifth bits, then an f16 scale and an f16 minimum for every 32 values.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let fifth = at + params.chunks;
    let q = with_bits(four_bits(four_words(at + 4u * u)), one_bit(word(fifth + u)), 4u);
    let both = unpack2x16float(word(fifth + params.chunks / 4u + u));
    return Unit(q, vec2(both.x), vec2(-both.y), 0.0);
}
