// Q3_K: the low two bits of codes, their third bits; for every 16 values a scale of six bits, minus 32; for every 256
// values the f16 number that scales are multiples of. 4 stands for zero.

fn codes(row: u32, chunk: u32) -> Codes {
    let at = row_start(row);
    let third = at + params.chunks / 2u;
    let scales = third + params.chunks / 4u;
    let blocks = params.chunks / 32u;
    let block = chunk / 32u;
    let group = chunk / 2u % 16u;
    let low = (word(scales + 3u * block + group / 8u) >> (4u * (group % 8u))) & 15u;
    let high = (word(scales + 3u * block + 2u) >> (2u * group)) & 3u;
    let scale = f32(i32(low | (high << 4u)) - 32);
    let q = two_bits(word(at + chunk / 2u), chunk) | (one_bit(word(third + chunk / 4u), chunk) << vec2(2u));
    return Codes(q, half(scales + 3u * blocks, block) * scale, -4.0, 0.0);
}
