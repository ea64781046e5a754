// The read ceiling: a workgroup reads 16 runs of 256 vectors, each thread one vector per run.

@group(0) @binding(1) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * 4096u + thread;
    var seen = vec4<u32>(0u);
    for (var i = 0u; i < 16u; i++) {
        seen |= source[first + i * 256u];
    }
    // Otherwise nothing would depend on what was read.
    if (seen.x | seen.y | seen.z | seen.w) == 1u {
        result[thread] = 1u;
    }
}
