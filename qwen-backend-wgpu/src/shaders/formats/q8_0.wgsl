// Q8_0: signed bytes, then an f16 scale for every 32 values.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let a = four_words(at + 8u * u);
    let b = four_words(at + 8u * u + 4u);
    let q = Codes(vec4(a.xz, b.xz), vec4(a.yw, b.yw));
    return Unit(q, vec2(half(at + 2u * params.chunks, u)), vec2(0.0), 0.0);
}
