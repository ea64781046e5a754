// Q5_1: the low four bits of codes, their fifth bits, then an f16 scale and an f16 minimum for every 32 values.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let fifth = at + params.chunks;
    let units = params.chunks / 4u;
    let unit = chunk / 4u;
    let q = four_bits(word(at + chunk)) | (one_bit(word(fifth + unit), chunk) << vec2(4u));
    let both = unpack2x16float(word(fifth + units + unit));
    return Codes(q, both.x, 0.0, -both.y);
}
