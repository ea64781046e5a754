// A rotary pair turned by the angle of cosine `c` and sine `s`.
//
// Fused by hand: a driver may contract `a * c - b * s` in either way, and differently in each kernel that rotates.
fn rotate(pair: vec2<f32>, c: f32, s: f32) -> vec2<f32> {
    return vec2(fma(pair.x, c, -(pair.y * s)), fma(pair.y, c, pair.x * s));
}
