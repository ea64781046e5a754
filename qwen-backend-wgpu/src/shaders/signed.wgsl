// Activations as 32 signed bytes with a scale, in three vectors of four words (`signed_rows.wgsl`).

struct Signed {
    // As the codes of a unit.
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
    // Of the first 16 bytes, and of the others.
    sums: vec2<f32>,
}

fn signed(token: u32, unit: u32) -> Signed {
    let at = 3u * (token * (params.chunks / 4u) + unit);
    let head = bitcast<vec4<f32>>(x[at + 2u]);
    return Signed(x[at], x[at + 1u], head.x, head.yz);
}
