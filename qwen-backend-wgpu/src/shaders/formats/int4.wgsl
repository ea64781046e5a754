// Groups of GROUP values of four bits, then a word for each group: an f16 scale, and the code that stands for zero.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let head = word(at + params.chunks + 8u * chunk / GROUP);
    return Codes(four_bits(word(at + chunk)), unpack2x16float(head).x, -f32(head >> 16u), 0.0);
}
