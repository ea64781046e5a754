// out[indices[i]] += scale * x[i] over rows of `width` values. Rows that `out` does not have are left out.

struct Params {
    width: u32,
    // Rows before this piece of the source, and of the output, and rows of the output's.
    first_row: u32,
    first_out: u32,
    out_rows: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let row = indices[params.first_row + at.y] - params.first_out;
    if at.x < params.width && row < params.out_rows {
        let to = row * params.width + at.x;
        out[to] = fma(params.scale, x[at.y * params.width + at.x], out[to]);
    }
}
