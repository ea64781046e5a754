// x += y, in rows of `width` values so that any length fits the grid.

struct Params {
    len: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let i = at.y * params.width + at.x;
    if at.x < params.width && i < params.len {
        x[i] += y[i];
    }
}
