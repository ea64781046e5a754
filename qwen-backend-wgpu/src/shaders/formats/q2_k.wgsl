// Q2_K: two-bit codes; for every 16 values a byte with a scale and a minimum of four bits; for every 256 values the f16
// numbers that scales and minima are multiples of.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let scales = at + params.chunks / 2u;
    let blocks = params.chunks / 32u;
    let group = chunk / 2u;
    let both = word(scales + group / 4u) >> (8u * (group % 4u));
    let d = unpack2x16float(word(scales + 4u * blocks + chunk / 32u));
    let q = two_bits(word(at + group), chunk);
    return Codes(q, d.x * f32(both & 15u), 0.0, d.y * f32((both >> 4u) & 15u));
}
