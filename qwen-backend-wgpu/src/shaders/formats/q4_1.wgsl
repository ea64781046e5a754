// Q4_1: four-bit codes, then an f16 scale and an f16 minimum for every 32 values.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let both = unpack2x16float(word(at + params.chunks + chunk / 4u));
    return Codes(four_bits(word(at + chunk)), both.x, 0.0, -both.y);
}
