// The index of a row's largest value, the lowest one among equals, or 0xffffffff if a value is not finite. One
// workgroup per row.

struct Params {
    width: u32,
    valid: u32,
    // Rows before this piece of the batch.
    first_row: u32,
}

const WIDTH: u32 = 256u;
const NON_FINITE: u32 = 0xffffffffu;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

var<workgroup> best_key: array<u32, WIDTH>;
var<workgroup> best_index: array<u32, WIDTH>;

// An integer that orders like the values, since float comparisons may assume that there are no infinities. Values that
// are not finite have the greatest key; both zeros have the same.
fn key(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7f800000u) == 0x7f800000u {
        return 0xffffffffu;
    }
    if (bits & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = group.x * params.width;
    var best = 0u;
    var index = 0u;
    for (var i = local; i < params.valid; i += WIDTH) {
        let k = key(x[first + i]);
        if k > best {
            best = k;
            index = i;
        }
    }
    best_key[local] = best;
    best_index[local] = index;
    workgroupBarrier();
    for (var step = WIDTH / 2u; step > 0u; step /= 2u) {
        if local < step {
            let k = best_key[local + step];
            let i = best_index[local + step];
            if k > best_key[local] || (k == best_key[local] && i < best_index[local]) {
                best_key[local] = k;
                best_index[local] = i;
            }
        }
        workgroupBarrier();
    }
    if local == 0u {
        out[params.first_row + group.x] = select(best_index[0], NON_FINITE, best_key[0] == 0xffffffffu);
    }
}
