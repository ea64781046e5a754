// Rows of activations as f16 with a scale per row, for cooperative matrices.
//
// A row is multiplied by the power of two that brings its largest value to 2^14 .. 2^15, so that no value overflows, and
// only values below 2^-28 of the largest have fewer bits than normal f16. One workgroup per row.

struct Params {
    // Columns, and eights of them.
    cols: u32,
    chunks: u32,
    // Rows before this piece of the batch.
    first_row: u32,
}

const WIDTH: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
//#if RAGGED
@group(0) @binding(1) var<storage, read> x: array<f32>;
//#else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
//#endif
@group(0) @binding(2) var<storage, read_write> packed: array<vec4<u32>>;
// What the products of a row are multiplied by, to undo its scaling.
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;

struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

//#include activations
//#include f16

// The bits of the largest magnitude: as integers they order like the values, with NaN above all of them.
var<workgroup> largest: array<u32, WIDTH>;

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.x;
    var bits = vec4(0u);
    for (var chunk = local; chunk < params.chunks; chunk += WIDTH) {
        let eight = activations(row, chunk);
        let magnitudes = vec4(0x7fffffffu);
        bits = max(bits, max(bitcast<vec4<u32>>(eight.a) & magnitudes, bitcast<vec4<u32>>(eight.b) & magnitudes));
    }
    largest[local] = max(max(bits.x, bits.y), max(bits.z, bits.w));
    workgroupBarrier();
    for (var step = WIDTH / 2u; step > 0u; step /= 2u) {
        if local < step {
            largest[local] = max(largest[local], largest[local + step]);
        }
        workgroupBarrier();
    }
    // Biased exponents: of the scale, and of its inverse.
    let exponent = clamp(i32(largest[0] >> 23u) - 14, 1, 253);
    let inverse = bitcast<f32>(u32(254 - exponent) << 23u);
    for (var chunk = local; chunk < params.chunks; chunk += WIDTH) {
        let eight = activations(row, chunk);
        let a = eight.a * inverse;
        let b = eight.b * inverse;
        packed[row * params.chunks + chunk] =
            vec4(f16_pair(a.xy), f16_pair(a.zw), f16_pair(b.xy), f16_pair(b.zw));
    }
    if local == 0u {
        // The results of a row with an infinity or a NaN are NaN.
        let finite = largest[0] < 0x7f800000u;
        scales[params.first_row + row] = bitcast<f32>(select(largest[0] | 0x7fc00000u, u32(exponent) << 23u, finite));
    }
}
