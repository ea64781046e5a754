// Q6_K: the low four bits of codes, the next two; a signed byte as the scale of every 16 values; for every 256 values the
// f16 number that scales are multiples of. 32 stands for zero.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let high = at + params.chunks;
    let scales = high + params.chunks / 2u;
    let group = chunk / 2u;
    let scale = f32(signed_byte(scales, group));
    let d = half(scales + params.chunks / 8u, chunk / 32u);
    let q = four_bits(word(at + chunk)) | (two_bits(word(high + group), chunk) << vec2(4u));
    return Codes(q, d * scale, -32.0, 0.0);
}
