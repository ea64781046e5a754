// Rows of blocks: planes of codes and scales (`planes/mod.rs`), from which a format's fragment takes 32 values at a time,
// a unit, with 16-byte loads of codes. A value is `scale * (code + offset) - min`.

// 32 signed bytes. Word i of `low` has values 8 i to 8 i + 3, word i of `high` the four after them.
struct Codes {
    low: vec4<u32>,
    high: vec4<u32>,
}

struct Unit {
    q: Codes,
    // Of the first 16 values, and of the others.
    scale: vec2<f32>,
    min: vec2<f32>,
    offset: f32,
}

fn word(at: u32) -> u32 {
    return w[at / 4u][at % 4u];
}

// Four words, of which the first is at a multiple of four.
fn four_words(at: u32) -> vec4<u32> {
    return w[at / 4u];
}

// The first word of a row, behind the table of the slab.
fn row_start(row: u32) -> u32 {
    return TABLE_WORDS + row * params.row_words;
}

// Number `i` of a plane of f16.
fn half(plane: u32, i: u32) -> f32 {
    return unpack2x16float(word(plane + i / 2u))[i % 2u];
}

// Numbers 2 i and 2 i + 1 of a plane of four bits each.
fn nibbles(plane: u32, i: u32) -> vec2<u32> {
    return (vec2(word(plane + i / 4u)) >> (vec2(0u, 4u) + 8u * (i % 4u))) & vec2(15u);
}

// The codes of a unit from four words with four bits of each, from two words with two, and from a word with one.
fn four_bits(u: vec4<u32>) -> Codes {
    return Codes(u & vec4(0x0f0f0f0fu), (u >> vec4(4u)) & vec4(0x0f0f0f0fu));
}

fn two_bits(at: u32) -> Codes {
    let u = vec4(vec2(word(at)), vec2(word(at + 1u))) >> vec4(0u, 4u, 0u, 4u);
    return Codes(u & vec4(0x03030303u), (u >> vec4(2u)) & vec4(0x03030303u));
}

fn one_bit(u: u32) -> Codes {
    let v = vec4(u) >> vec4(0u, 2u, 4u, 6u);
    return Codes(v & vec4(0x01010101u), (v >> vec4(1u)) & vec4(0x01010101u));
}

// The codes of a unit with more bits above.
fn with_bits(q: Codes, above: Codes, bits: u32) -> Codes {
    return Codes(q.low | (above.low << vec4(bits)), q.high | (above.high << vec4(bits)));
}

// Eights of a unit, as f32.
fn eight_of(u: Unit, i: u32) -> Eight {
    let a = vec4<f32>(unpack4xI8(u.q.low[i])) + u.offset;
    let b = vec4<f32>(unpack4xI8(u.q.high[i])) + u.offset;
    return Eight(u.scale[i / 2u] * a - u.min[i / 2u], u.scale[i / 2u] * b - u.min[i / 2u]);
}

fn weights(row: u32, chunk: u32) -> Eight {
    return eight_of(unit(row, chunk / 4u), chunk % 4u);
}
