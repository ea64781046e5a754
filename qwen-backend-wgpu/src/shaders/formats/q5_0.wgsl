// Q5_0: the low four bits of codes, their fifth bits, then an f16 scale for every 32 values; 16 stands for zero.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let fifth = at + params.chunks;
    let units = params.chunks / 4u;
    let unit = chunk / 4u;
    let q = four_bits(word(at + chunk)) | (one_bit(word(fifth + unit), chunk) << vec2(4u));
    return Codes(q, half(fifth + units, unit), -16.0, 0.0);
}
