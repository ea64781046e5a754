// Groups of GROUP bytes, then a word for each group: an f16 scale, and the code that stands for zero. Codes are made
// signed by taking 128 from them, and from the zero.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let head = word(at + 2u * params.chunks + 32u * u / GROUP);
    let a = four_words(at + 8u * u) ^ vec4(0x80808080u);
    let b = four_words(at + 8u * u + 4u) ^ vec4(0x80808080u);
    let q = Codes(vec4(a.xz, b.xz), vec4(a.yw, b.yw));
    return Unit(q, vec2(unpack2x16float(head).x), vec2(0.0), 128.0 - f32(head >> 16u));
}
