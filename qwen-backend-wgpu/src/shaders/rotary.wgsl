// A rotary pair rotated by the angle with cosine `c` and sine `s`.
//
// Explicitly fused: a driver may contract `a * c - b * s` in either way, and differently in each kernel.
fn rotate(pair: vec2<f32>, c: f32, s: f32) -> vec2<f32> {
    return vec2(fma(pair.x, c, -(pair.y * s)), fma(pair.y, c, pair.x * s));
}
