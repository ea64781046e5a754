// Rows of blocks: planes of codes and scales (`formats/mod.rs`), from which a format's fragment takes the codes of eight
// values with their scale. A value is `scale * (code + offset) - min`.

struct Codes {
    // Eight signed bytes.
    q: vec2<u32>,
    scale: f32,
    offset: f32,
    min: f32,
}

fn word(at: u32) -> u32 {
    return w[at / 4u][at % 4u];
}

// The first word of a row, behind the table of the slab.
fn row_start(row: u32) -> u32 {
    return TABLE_WORDS + row * params.row_words;
}

// Number `i` of a plane of f16.
fn half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(word(plane + i / 2u))[i % 2u];
}

fn signed_byte(plane: u32, i: u32) -> i32 {
    return bitcast<i32>(word(plane + i / 4u) << (24u - 8u * (i % 4u))) >> 24u;
}

fn nibble(plane: u32, i: u32) -> u32 {
    return (word(plane + i / 8u) >> (4u * (i % 8u))) & 15u;
}

// The codes of a chunk from a word with those of one chunk, of two, and of four.
fn four_bits(u: u32) -> vec2<u32> {
    return vec2(u, u >> 4u) & vec2(0x0f0f0f0fu);
}

fn two_bits(u: u32, chunk: u32) -> vec2<u32> {
    let v = u >> (4u * (chunk % 2u));
    return vec2(v, v >> 2u) & vec2(0x03030303u);
}

fn one_bit(u: u32, chunk: u32) -> vec2<u32> {
    let v = u >> (2u * (chunk % 4u));
    return vec2(v, v >> 1u) & vec2(0x01010101u);
}


fn weights(row: u32, chunk: u32) -> Eight {
    let c = codes(row, chunk);
    let a = vec4<f32>(unpack4xI8(c.q.x)) + c.offset;
    let b = vec4<f32>(unpack4xI8(c.q.y)) + c.offset;
    return Eight(c.scale * a - c.min, c.scale * b - c.min);
}
