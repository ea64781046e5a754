// Q4_0: four-bit codes minus 8, then an f16 scale for every 32 values.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let scale = half(at + params.chunks, chunk / 4u);
    return Codes(four_bits(word(at + chunk)), scale, -8.0, 0.0);
}
