// out = x / sqrt(mean(x^2) + eps) * weight, one workgroup per row.
//
// norm.wgsl computes the same within a product, in the same order.

struct Params {
    hidden_size: u32,
    eps: f32,
}

const WIDTH: u32 = 256u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> partial: array<f32, WIDTH>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = group.x * params.hidden_size;
    var sum = 0.0;
    for (var i = local; i < params.hidden_size; i += WIDTH) {
        let value = x[first + i];
        sum = fma(value, value, sum);
    }
    partial[local] = sum;
    workgroupBarrier();
    for (var step = WIDTH / 2u; step > 0u; step /= 2u) {
        if local < step {
            partial[local] += partial[local + step];
        }
        workgroupBarrier();
    }
    let scale = 1.0 / sqrt(partial[0] / f32(params.hidden_size) + params.eps);
    for (var i = local; i < params.hidden_size; i += WIDTH) {
        out[first + i] = x[first + i] * scale * weight[i];
    }
}
