// Rows of activations as signed bytes, for integer products with the codes of block formats.
//
// Each 32 values get a scale, with which the largest magnitude becomes 127. A thread rounds 32 values. With NORM the
// rows are normed first, by each of the workgroups that share a row.

struct Params {
    // Rows, their columns, and eights of columns.
    tokens: u32,
    cols: u32,
    chunks: u32,
    // Of the norm.
    eps: f32,
}

const WIDTH: u32 = 64u;
const TOKENS: u32 = 1u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
// Of each 32 values: the first four bytes of each eight, the others, and the scale with the sums of each half.
@group(0) @binding(2) var<storage, read_write> packed: array<vec4<u32>>;

struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

//#include activations
//#if NORM
//#include norm
//#endif

fn sum_of(bytes: u32) -> i32 {
    return dot4I8Packed(bytes, 0x01010101u);
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.y;
    //#if NORM
    let norm = norm_scales(row, local)[0];
    //#endif
    let unit = group.x * WIDTH + local;
    if unit >= params.chunks / 4u {
        return;
    }
    var eights: array<Eight, 4>;
    // The bits of the largest magnitude: as integers they order like the values, with NaN above all of them.
    var bits = vec4(0u);
    for (var i = 0u; i < 4u; i++) {
        let chunk = 4u * unit + i;
        var eight = activations(row, chunk);
        //#if NORM
        let weight = norm_weights(chunk);
        eight = Eight(eight.a * norm * weight.a, eight.b * norm * weight.b);
        //#endif
        eights[i] = eight;
        let magnitudes = vec4(0x7fffffffu);
        bits = max(bits, max(bitcast<vec4<u32>>(eight.a) & magnitudes, bitcast<vec4<u32>>(eight.b) & magnitudes));
    }
    let largest = max(max(bits.x, bits.y), max(bits.z, bits.w));
    let most = bitcast<f32>(largest);
    // The quotient of values below 1e-30 could overflow: they become 0.
    let inverse = select(0.0, 127.0 / most, largest < 0x7f800000u && most > 1e-30);
    var low: vec4<u32>;
    var high: vec4<u32>;
    for (var i = 0u; i < 4u; i++) {
        low[i] = pack4xI8(vec4<i32>(round(eights[i].a * inverse)));
        high[i] = pack4xI8(vec4<i32>(round(eights[i].b * inverse)));
    }
    let sums = vec2(
        sum_of(low.x) + sum_of(high.x) + sum_of(low.y) + sum_of(high.y),
        sum_of(low.z) + sum_of(high.z) + sum_of(low.w) + sum_of(high.w),
    );
    // The results of a row with an infinity or a NaN are NaN.
    let scale = select(largest | 0x7fc00000u, bitcast<u32>(select(0.0, most / 127.0, inverse > 0.0)), largest < 0x7f800000u);
    let at = 3u * (row * (params.chunks / 4u) + unit);
    packed[at] = low;
    packed[at + 1u] = high;
    packed[at + 2u] = vec4(scale, bitcast<vec2<u32>>(vec2<f32>(sums)), 0u);
}
