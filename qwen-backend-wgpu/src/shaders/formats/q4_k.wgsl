// Q4_K: four-bit codes, then the scales and minima of 256 values.

//#include formats/scales_and_mins

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let both = scale_and_min(at + params.chunks, chunk);
    return Codes(four_bits(word(at + chunk)), both.x, 0.0, both.y);
}
