// Q8_0: signed bytes, then an f16 scale for every 32 values.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let q = vec2(word(at + 2u * chunk), word(at + 2u * chunk + 1u));
    return Codes(q, half(at + 2u * params.chunks, chunk / 4u), 0.0, 0.0);
}
