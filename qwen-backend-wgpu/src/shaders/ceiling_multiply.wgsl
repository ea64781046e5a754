//#if F16
enable f16;
alias Vector = vec4<f16>;
//#else
alias Vector = vec4<f32>;
//#endif
// The arithmetic ceiling: each thread has eight sums, to cover the latency of one, and reads no memory in the loop.

struct Params {
    rounds: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    // Unknown at compile time, so that nothing can be precomputed.
    let x = Vector(source[0]);
    var a = x;
    var b = x;
    var c = x;
    var d = x;
    var e = x;
    var f = x;
    var g = x;
    var h = x;
    for (var i = 0u; i < params.rounds; i++) {
        a = fma(a, x, b);
        b = fma(b, x, c);
        c = fma(c, x, d);
        d = fma(d, x, e);
        e = fma(e, x, f);
        f = fma(f, x, g);
        g = fma(g, x, h);
        h = fma(h, x, a);
    }
    let sum = a + b + c + d + e + f + g + h;
    // Otherwise nothing would depend on the sums.
    if f32(sum.x + sum.y + sum.z + sum.w) == 1.0 {
        result[thread] = 1.0;
    }
}
