// Store the keys or the values of the heads in this slab of the store in Q8_0, with the bytes that the CPU would store:
// sixteen threads for 64 channels, whose two scales share a word.
//
// Quotients are whole numbers, since WGSL leaves it to the driver how it divides, and what it takes for a number that is
// not finite.

struct Params {
    qkv_size: u32,
    // The position of the slab's first head in a row.
    first_channel: u32,
    head_dim: u32,
    num_slots: u32,
    // Threads for all heads of the slab.
    threads: u32,
    // Tokens before this piece of the batch.
    first_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> slot_mapping: array<u32>;
@group(0) @binding(3) var<storage, read_write> store: array<u32>;

//#include f16
//#include kv_q8

const INFINITY: u32 = 0x7f800000u;
const NAN_F16: u32 = 0x7e00u;

// The bits of the largest magnitude of each thread's four channels.
var<workgroup> largest: array<u32, 64>;

// The largest of the eight threads of a block.
fn largest_of(first: u32) -> u32 {
    var most = 0u;
    for (var i = 0u; i < 8u; i++) {
        most = max(most, largest[first + i]);
    }
    return most;
}

// The bits of a positive f32 divided by 127, to the nearest f32, ties to even. Those too small for an f16 are 0.
fn divided_by_127(bits: u32) -> u32 {
    let exponent = bits >> 23u;
    if exponent < 64u {
        return 0u;
    }
    // 24 significant bits, or 25.
    let significand = ((bits & 0x7fffffu) | 0x800000u) << 7u;
    var quotient = significand / 127u;
    let rest = significand % 127u;
    if quotient >= 0x1000000u {
        let up = (quotient & 1u) & (select(0u, 1u, rest > 0u) | ((quotient >> 1u) & 1u));
        quotient = (quotient >> 1u) + up;
        // A carry increments the exponent.
        return ((exponent - 7u) << 23u) + quotient;
    }
    quotient += select(0u, 1u, 2u * rest > 127u);
    return ((exponent - 8u) << 23u) + quotient;
}

// The bits of the f16 scale of a block whose largest magnitude has these bits.
fn scale_of(most: u32) -> u32 {
    if most >= INFINITY {
        return NAN_F16;
    }
    let nearest = f16_bits(bitcast<f32>(divided_by_127(most)));
    // Among the smallest f16 numbers the nearest may be far too small: 127.5 times it is less than the largest.
    if nearest < 1024u && most > bitcast<u32>(f32(255u * nearest) * 2.98023224e-8) {
        return nearest + 1u;
    }
    return nearest;
}

// 1 / scale in f32, to the nearest, for the bits of a positive f16.
fn inverse_of(scale: u32) -> f32 {
    // scale = m * 2^(exponent - 25) with m in 1024..2048.
    var m = (scale & 0x3ffu) | 0x400u;
    var exponent = i32(scale >> 10u);
    if exponent == 0 {
        let places = countLeadingZeros(scale) - 21u;
        m = scale << places;
        exponent = 1 - i32(places);
    }
    // 2^34 / m in two steps of a long division: 24 bits, or 2^24 itself. There are no ties.
    let high = 0x80000000u / m;
    let rest = (0x80000000u % m) << 3u;
    var quotient = 8u * high + rest / m;
    quotient += select(0u, 1u, 2u * (rest % m) > m);
    return bitcast<f32>((u32(140 - exponent) << 23u) + quotient);
}

@compute @workgroup_size(64)
fn main(
    @builtin(global_invocation_id) at: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let token = at.y;
    let units = scale_words(params.head_dim);
    let unit = at.x / 16u;
    let head = unit / units;
    let channel = unit % units * 64u + 4u * (at.x % 16u);
    let exists = at.x < params.threads && channel < params.head_dim;
    var values: vec4<f32>;
    if exists {
        let start = token * params.qkv_size + params.first_channel + head * params.head_dim + channel;
        values = vec4(qkv[start], qkv[start + 1u], qkv[start + 2u], qkv[start + 3u]);
    }
    let magnitudes = bitcast<vec4<u32>>(values) & vec4(0x7fffffffu);
    largest[local] = max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
    workgroupBarrier();
    let slot = slot_mapping[params.first_token + token];
    if !exists || slot >= params.num_slots {
        return;
    }
    let most = largest_of(local / 8u * 8u);
    let scale = scale_of(most);
    var codes: vec4<i32>;
    if most < INFINITY && scale > 0u {
        codes = vec4<i32>(round(clamp(values * inverse_of(scale), vec4(-127.0), vec4(127.0))));
    }
    let bytes = vec4<u32>(codes) & vec4(255u);
    store[codes_at(params.head_dim, params.num_slots, head, slot) + channel / 4u] =
        bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
    if at.x % 16u == 0u {
        let second = scale_of(largest_of(local + 8u));
        store[scales_at(params.head_dim, params.num_slots, head, slot) + channel / 64u] = scale | (second << 16u);
    }
}
