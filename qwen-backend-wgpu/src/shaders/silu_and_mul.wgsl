// out = silu(gate) * up where a row of gate_up is [gate | up].

struct Params {
    intermediate_size: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

//#include math

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x >= params.intermediate_size {
        return;
    }
    let first = 2u * at.y * params.intermediate_size + at.x;
    out[at.y * params.intermediate_size + at.x] = silu(gate_up[first]) * gate_up[first + params.intermediate_size];
}
