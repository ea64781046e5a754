// IQ4_XS: four-bit codes that index a table; for every 256 values eight scales of six bits, minus 32, and the f16 number
// that they are multiples of.

//#include formats/levels

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let head = at + params.chunks + 2u * (chunk / 32u);
    let unit = chunk / 4u % 8u;
    let low = (word(head) >> (4u * unit)) & 15u;
    let both = word(head + 1u);
    let high = (both >> (16u + 2u * unit)) & 3u;
    let d = unpack2x16float(both).x;
    return Codes(levels(four_bits(word(at + chunk))), d * f32(i32(low | (high << 4u)) - 32), 0.0, 0.0);
}
