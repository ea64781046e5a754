// Groups of GROUP bytes, then a word for each group: an f16 scale, and the code that stands for zero. Codes are made
// signed by taking 128 from them, and from the zero.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let head = word(at + 2u * params.chunks + 8u * chunk / GROUP);
    let q = vec2(word(at + 2u * chunk), word(at + 2u * chunk + 1u)) ^ vec2(0x80808080u);
    return Codes(q, unpack2x16float(head).x, 128.0 - f32(head >> 16u), 0.0);
}
