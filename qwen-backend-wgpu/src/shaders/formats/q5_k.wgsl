// Q5_K: the low four bits of codes, their fifth bits, then the scales and minima of 256 values.

//#include formats/scales_and_mins

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let fifth = at + params.chunks;
    let both = scale_and_min(fifth + params.chunks / 4u, chunk);
    let q = four_bits(word(at + chunk)) | (one_bit(word(fifth + chunk / 4u), chunk) << vec2(4u));
    return Codes(q, both.x, 0.0, both.y);
}
