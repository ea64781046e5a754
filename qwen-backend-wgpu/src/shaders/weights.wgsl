// Rows of a packed matrix: each a multiple of eight values, read eight at a time.

struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

//#if BF16
// There is no bf16 in WGSL: one is the upper half of an f32.
fn weights(row: u32, chunk: u32) -> Eight {
    let u = w[row * params.chunks + chunk];
    let low = bitcast<vec4<f32>>(u << vec4(16u));
    let high = bitcast<vec4<f32>>(u & vec4(0xffff0000u));
    return Eight(vec4(low.x, high.x, low.y, high.y), vec4(low.z, high.z, low.w, high.w));
}
//#endif
//#if F16
fn weights(row: u32, chunk: u32) -> Eight {
    let u = w[row * params.chunks + chunk];
    return Eight(
        vec4(unpack2x16float(u.x), unpack2x16float(u.y)),
        vec4(unpack2x16float(u.z), unpack2x16float(u.w)),
    );
}
//#endif
//#if F32
fn weights(row: u32, chunk: u32) -> Eight {
    let at = 2u * (row * params.chunks + chunk);
    return Eight(bitcast<vec4<f32>>(w[at]), bitcast<vec4<f32>>(w[at + 1u]));
}
//#endif
//#if BLOCKS
//#include blocks
//#include FORMAT
//#endif
