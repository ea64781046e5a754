// IQ4_NL: four-bit codes that index a table, then an f16 scale for every 32 values.

//#include formats/levels

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let scale = half(at + params.chunks, chunk / 4u);
    return Codes(levels(four_bits(word(at + chunk))), scale, 0.0, 0.0);
}
