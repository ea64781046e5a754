// out[i] = x[indices[i]] over rows of `width` values. For rows that `x` does not have, `out` is left unchanged.

struct Params {
    width: u32,
    // Rows before this piece of the output, and of the source, and rows of the source's.
    first_row: u32,
    first_source: u32,
    source_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let source = indices[params.first_row + at.y] - params.first_source;
    if at.x < params.width && source < params.source_rows {
        out[at.y * params.width + at.x] = x[source * params.width + at.x];
    }
}
