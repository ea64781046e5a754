// Groups of GROUP values of four bits, then a word for each group: an f16 scale, and the code that stands for zero.

fn unit(row: u32, u: u32) -> Unit {
    let at = row_start(row);
    let head = word(at + params.chunks + 32u * u / GROUP);
    let scale = vec2(unpack2x16float(head).x);
    return Unit(four_bits(four_words(at + 4u * u)), scale, vec2(0.0), -f32(head >> 16u));
}
